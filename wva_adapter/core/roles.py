"""What holds for models of which some replicas prefill and others decode: neither serves alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

from wva_adapter.core.case import Case, Decisions
from wva_adapter.core.decision import Decision
from wva_adapter.core.fleet import LoadKey, Role

PARTNERS: Mapping[Role, tuple[Role, ...]] = {
    "prefill": ("decode", "both"),
    "decode": ("prefill",),
    "both": (),
}
"""Who does the other part of a request: one of these is wanted beside each role."""


def missing_partner(key: LoadKey, roles: Collection[Role]) -> str | None:
    """Return what is wrong with a model that has one role without its partner, in words.

    Args:
        key: One of its loads.
        roles: The roles of all its variants.

    Returns:
        ``None`` where the other part of each request is somebody's.
    """
    wanted = PARTNERS[key.role]
    if not wanted or any(role in wanted for role in roles):
        return None
    does = {
        "prefill": "nobody decodes what it prefills",
        "decode": "it computes its prompts itself, and is sized for that too",
    }
    return (
        f"{key.namespace}/{key.model_id} has no variant of role {wanted[0]} beside its role "
        f"{key.role} (llm-d.ai/role): {does[key.role]}"
    )


def part_of(role: Role, roles: Collection[Role]) -> Role:
    """Return which part of a request a role does where a model has these ones."""
    if role == "decode" and "prefill" not in roles:
        return "both"
    return role


def pair_roles(decisions: Decisions, case: Case) -> Decisions:
    """Bring no replica of one role from zero while the other has none, and name lone roles."""
    there = sorted({load.key for load in case.loads.values()})
    if all(key.role == "both" for key in there):
        return decisions
    paired = dict(decisions)
    groups = dict(case.by_load(decisions))
    roles_of: dict[tuple[str, str], list[Role]] = defaultdict(list)
    for key in there:
        roles_of[key[:2]].append(key.role)
    unknown = {state.variant.load_key for state in case.unknown}
    for key, members in groups.items():
        roles = roles_of[key[:2]]
        partners = [LoadKey(*key[:2], role) for role in PARTNERS[key.role] if role in roles]
        # A count that could not be read is not zero.
        alone = bool(partners) and not unknown.intersection(partners)
        alone = alone and not _any(groups.get(partner, ()) for partner in partners)
        lone = missing_partner(key, roles)
        for decision in members:
            if lone is not None:
                paired[decision.key] = decision.to(decision.desired, rule="pair_roles", why=lone)
            elif alone and _from_zero(members) and decision.desired:
                why = f"no replica of role {PARTNERS[key.role][0]} gets a place, so none comes"
                paired[decision.key] = decision.to(0, rule="pair_roles", why=why)
    return paired


def _from_zero(members: Sequence[Decision]) -> bool:
    return not any(decision.current for decision in members)


def _any(partners: Iterable[Sequence[Decision]]) -> bool:
    return any(decision.desired for members in partners for decision in members)
