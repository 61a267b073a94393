"""How the counts of variants came about, told from one structure to programs and to people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from wva_adapter.core.fleet import VariantKey
from wva_adapter.publish.explain.case import Case
from wva_adapter.publish.explain.document import (
    Document,
    decision_document,
    document,
    load_document,
)
from wva_adapter.publish.explain.text import lines

__all__ = ("Case", "Document", "Explanation", "Refusals", "decision_document", "load_document")


@dataclass(frozen=True, slots=True)
class Refusals:
    """What of the configuration is wrong, so that an earlier one holds; a sentence each.

    Attributes:
        whole: Of what holds for all: the settings' file, thresholds in ConfigMaps.
        of_variant: Of one variant's own objects.
        notes: Of what is missing besides: a memory that was lost, a gateway that is not read.
    """

    whole: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    of_variant: Mapping[VariantKey, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Explanation:
    """How the counts of some variants came about.

    Attributes:
        refused: What of all is wrong, so that an earlier or a careful one holds.
        single: One variant was asked for by its name.
    """

    cases: tuple[Case, ...]
    single: bool = False
    refused: Refusals = field(default_factory=Refusals)

    @property
    def document(self) -> Document:
        """The explanation of the one variant, or of all under ``variants``; unknown is ``None``."""
        documents = [document(case) for case in self.cases]
        told: Document = documents[0] if self.single else {"variants": documents}
        return {**told, "refused": list(self.refused.whole), "notes": list(self.refused.notes)}

    @property
    def text(self) -> str:
        """The same in lines, ending in a newline."""
        refused = [
            *(f"configuration refused, the last good one holds: {r}" for r in self.refused.whole),
            *(f"note: {note}" for note in self.refused.notes),
        ]
        told = ["\n".join(lines(case)) for case in self.cases] or ["no variants"]
        return "\n\n".join([*refused, *told]) + "\n"
