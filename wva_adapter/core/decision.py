"""What was decided, and every step that led there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from wva_adapter.core.change import replace
from wva_adapter.core.fleet import VariantKey
from wva_adapter.core.load import ModelLoad
from wva_adapter.core.memory import Bill

if TYPE_CHECKING:
    from wva_adapter.core.case import Case


@dataclass(frozen=True, slots=True)
class Step:
    """One rule's word on a count; ``before == after`` where it only would have changed it."""

    rule: str
    before: int
    after: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The replicas a variant should have, with the trail that led to the count.

    Attributes:
        current: The count its scale target asks for now.
        ready: Replicas that serve now.
        desired: The count to publish.
        value_milli: What its reader is served, in thousandths, so that its arithmetic arrives
            at ``desired``.
        limited: Why there can be no more, where more are needed; ``None`` where that is not so.
        bill: What it would have cost so far, where it is in shadow; ``None`` where it is served.
        power_w: What the desired replicas draw at the load that is decided for.
        trail: The steps, oldest first.
    """

    key: VariantKey
    model_id: str
    accelerator: str | None
    cost_per_h: float
    current: int
    ready: int
    desired: int
    value_milli: int = 0
    limited: str | None = None
    bill: Bill | None = None
    power_w: float | None = None
    trail: tuple[Step, ...] = ()

    def to(self, desired: int, *, rule: str, why: str) -> Decision:
        """Return the decision with this count and one more step."""
        step = Step(rule, self.desired, desired, why)
        return replace(self, desired=desired, trail=(*self.trail, step))


@dataclass(frozen=True, slots=True)
class Plan:
    """What one cycle decided.

    Attributes:
        at_s: Unix time of the snapshot that it was made from.
        decisions: By variant, in the order of their keys.
        undecided: Variants without a valid count, each with the reason.
        loads: Demand and supply per model.
        case: What the rules looked at, to try other counts on; ``None`` where that is not kept.
    """

    at_s: float
    decisions: Mapping[VariantKey, Decision] = field(default_factory=dict)
    undecided: Mapping[VariantKey, str] = field(default_factory=dict)
    loads: tuple[ModelLoad, ...] = ()
    case: Case | None = field(default=None, compare=False, repr=False)
