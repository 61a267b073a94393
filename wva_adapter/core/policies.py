"""Which policy holds for whom: the default, and what operators override for some."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final, get_type_hints

from wva_adapter.core.policy import Policy
from wva_adapter.core.portable import from_portable, to_portable

PER_VARIANT: Final = frozenset({"max_up_step", "max_down_share", "down_period_s", "shadow"})
"""Fields that an override of single variants may set; all others hold for a model as a whole."""

_FIELDS: Final = frozenset(one.name for one in fields(Policy))
_KINDS: Final = get_type_hints(Policy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """Values that hold for some variants in place of the default's.

    Attributes:
        source: What messages call it: ``overrides[1]``.
        changes: Fields of ``Policy`` and their values; what is not in it is inherited.
        namespace: Only for variants in it; ``None`` for those in any.
        model_id: Only for variants of this model; ``None`` for those of any.
        variant: Only for variants of this name; ``None`` for all.
        local: Whether it comes from the namespace that it is for, and so wins over what does not.

    Raises:
        ValueError: A field is none of ``Policy``, or holds for whole models and a variant is named.
    """

    source: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    namespace: str | None = None
    model_id: str | None = None
    variant: str | None = None
    local: bool = False

    def __post_init__(self) -> None:
        for name in self.changes:
            if name not in _FIELDS:
                raise ValueError(f"{self.source}: {name} is no field of a policy")
            if self.variant is not None and name not in PER_VARIANT:
                raise ValueError(
                    f"{self.source}: {name} holds for whole models, want it in an override that "
                    f"names no variant; of single variants there are: {', '.join(sorted(PER_VARIANT))}"
                )

    @property
    def scope(self) -> tuple[str | None, str | None, str | None]:
        """Namespace, model and variant that it asks for."""
        return self.namespace, self.model_id, self.variant

    @property
    def rank(self) -> tuple[bool, int]:
        """Of two that set one field, the one of the larger rank wins, then the later one."""
        # A variant is narrower than a model, and that than a namespace.
        narrow = (1, 2, 4)
        return self.local, sum(
            weight for weight, name in zip(narrow, self.scope, strict=True) if name is not None
        )

    def holds_for(self, namespace: str | None, model_id: str | None, variant: str | None) -> bool:
        """Return whether it is for this variant, or for a model as a whole (variant ``None``)."""
        there = (namespace, model_id, variant)
        return all(want is None or want == has for want, has in zip(self.scope, there, strict=True))


@dataclass(frozen=True, slots=True)
class Policies:
    """One policy per model and variant: the default, changed by the overrides that hold for it.

    Attributes:
        default: What holds where no override says otherwise.
        overrides: In any order of scopes; of equal ones the later wins, field by field.

    Raises:
        ValueError: The policy that comes of overrides contradicts itself somewhere; the message
            names the overrides that meet there.
    """

    default: Policy = field(default_factory=Policy)
    overrides: tuple[Override, ...] = ()

    def __post_init__(self) -> None:
        for scope in sorted(_meetings(self.overrides), key=str):
            met = self._holding(*scope)
            try:
                self.of(*scope)
            except ValueError as error:
                raise ValueError(f"{', with '.join(one.source for one in met)}: {error}") from None

    def of(self, namespace: str | None, model_id: str | None, variant: str | None = None) -> Policy:
        """Return the policy of a model, or of one variant of it."""
        changes: dict[str, Any] = {}
        for override in self._holding(namespace, model_id, variant):
            changes |= override.changes
        return replace(self.default, **changes) if changes else self.default

    def _holding(
        self, namespace: str | None, model_id: str | None, variant: str | None
    ) -> Sequence[Override]:
        if not self.overrides:
            return ()
        return sorted(
            (one for one in self.overrides if one.holds_for(namespace, model_id, variant)),
            key=lambda one: one.rank,
        )


_Scope = tuple[str | None, str | None, str | None]


def _meetings(overrides: Iterable[Override]) -> set[_Scope]:
    """Return for whom overrides hold, alone and together: each combination is one of these."""
    alone = {override.scope for override in overrides}
    found: set[_Scope] = set(alone)
    # Three names in a scope: whatever holds together is the union of three at most.
    for _ in range(2):
        found |= {
            (one[0] or other[0], one[1] or other[1], one[2] or other[2])
            for one in tuple(found)
            for other in alone
            if all(a is None or b is None or a == b for a, b in zip(one, other, strict=True))
        }
    return found


def to_document(policies: Policies) -> dict[str, Any]:
    """Return the policies as a JSON-able document, which ``from_document`` reads as equal ones."""
    return {
        "policy": to_portable(policies.default),
        "overrides": [
            {
                "source": one.source,
                "for": list(one.scope),
                "local": one.local,
                "changes": {
                    name: to_portable(value, _KINDS[name]) for name, value in one.changes.items()
                },
            }
            for one in policies.overrides
        ],
    }


def from_document(document: Mapping[str, Any]) -> Policies:
    """Return the policies that a document holds; one without ``overrides`` holds none.

    Raises:
        ValueError: They are damaged, or contradict themselves; the message says where and what.
    """
    default = from_portable(Policy, document.get("policy"))
    overrides = document.get("overrides", [])
    if not isinstance(overrides, list):
        overrides = [overrides]
    return Policies(default, tuple(_override(n, one) for n, one in enumerate(overrides)))


def _override(number: int, document: Any) -> Override:
    where = f"overrides[{number}]"
    try:
        namespace, model_id, variant = from_portable(
            tuple[str | None, str | None, str | None], document["for"]
        )
        return Override(
            source=from_portable(str, document["source"]),
            changes={
                name: from_portable(_KINDS[name], value)
                for name, value in document["changes"].items()
            },
            namespace=namespace,
            model_id=model_id,
            variant=variant,
            local=from_portable(bool, document["local"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{where}: damaged: {error}") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
