"""What speaks against other counts: the bounds that they break, and what they cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from wva_adapter.core.allocation import Cover, Option
from wva_adapter.core.case import Case
from wva_adapter.core.decision import Decision
from wva_adapter.core.fleet import VariantKey
from wva_adapter.core.leads import coming
from wva_adapter.core.load import ModelLoad, figure
from wva_adapter.core.memory import UNSEEN_VARIANT
from wva_adapter.core.rules import RULES, follow_demand

Decisions = Mapping[VariantKey, Decision]

_MOST_ALTERNATIVES = 8
_CENT = 0.01
# Sums of products of floats differ by rounding; a shortage of this share is none.
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Alternative:
    """Other counts for all variants of a model.

    Attributes:
        counts: By variant, in the order of their keys.
        cost_per_h: What all of them cost in $ per hour.
        feasible: Whether nothing speaks against them but their cost.
        why: How they compare with what was decided, in words.
    """

    counts: Mapping[VariantKey, int]
    cost_per_h: float
    feasible: bool
    why: str


@dataclass(frozen=True, slots=True)
class WhyNot:
    """What speaks against another count of one variant, the others of its model as decided.

    Attributes:
        count: The other count.
        desired: The one that was decided.
        breaks: What it breaks, a sentence each, with numbers; empty where it breaks nothing.
        cost_per_h: What the model would cost with it, in $ per hour.
        more_per_h: How much more that is than what was decided; negative where it is less.
        carried: What the model's replicas would carry; the unit is that of its load.
        needed: What they must carry.
        unit: The unit of both.
    """

    count: int
    desired: int
    breaks: tuple[str, ...]
    cost_per_h: float
    more_per_h: float
    carried: float
    needed: float
    unit: str

    @property
    def sentences(self) -> tuple[str, ...]:
        """The answer in words."""
        if self.count == self.desired:
            return (f"{self.count} is what was decided",)
        money = (
            f"it costs {abs(self.more_per_h):.2f} $/h {'more' if self.more_per_h > 0 else 'less'}"
        )
        if abs(self.more_per_h) < _CENT / 2:
            money = "it costs the same"
        said = list(self.breaks)
        if not said:
            fits = (
                f"{figure(self.needed)} of the {figure(self.carried)} {self.unit} that it carries"
            )
            said.append(f"it breaks nothing, but only {fits} are needed")
        return (*said, money)


def why_not(key: VariantKey, count: int, decisions: Decisions, case: Case) -> WhyNot:
    """Return what speaks against a count.

    Args:
        key: A variant that was decided.
        count: At least 0.
        decisions: What was decided on all variants.
        case: What it was decided from.

    Raises:
        ValueError: ``count`` is negative.
    """
    if count < 0:
        raise ValueError(f"{key}: count {count}, want at least 0")
    load, decided = case.loads[key], decisions[key].desired
    model = _decided(key, decisions, case)
    counts = {**model, key: count}
    cost = _cost(counts, case)
    breaks = () if count == decided else tuple(_objections(counts, decisions, case))
    return WhyNot(
        count=count,
        desired=decided,
        breaks=breaks,
        cost_per_h=cost,
        more_per_h=cost - _cost(model, case),
        carried=_carried(counts, load, case),
        needed=load.need,
        unit=load.unit,
    )


def alternatives(key: VariantKey, decisions: Decisions, case: Case) -> tuple[Alternative, ...]:
    """Return what was decided on the variant's model, and what else could have been.

    These are the counts that there are, one replica more and one less of each variant, and the
    need carried by each variant alone; what nothing speaks against first, the cheapest first.
    """
    load, decided = case.loads[key], _decided(key, decisions, case)
    now = {member: case.states[member].spec_replicas or 0 for member in decided}
    plans = [decided, now]
    for member, count in decided.items():
        plans += [{**decided, member: count + 1}]
        plans += [{**decided, member: count - 1}] if count else []
    if len(decided) > 1:
        plans += [_alone(member, load, decided, case) for member in decided if load.capacity]
    base, seen, found = _cost(decided, case), set(), []
    for counts in plans:
        place = tuple(counts.items())
        if place in seen:
            continue
        seen.add(place)
        cost = _cost(counts, case)
        if counts == decided:
            found.append(Alternative(counts, cost, True, "decided"))
            continue
        against = next(iter(_objections(counts, decisions, case)), None)
        why = f"{abs(cost - base):.2f} $/h {'more' if cost > base else 'less'}"
        if abs(cost - base) < _CENT / 2:
            why = "costs the same"
        if against is not None:
            why = f"{against} ({why})"
        elif counts == now:
            why += ", as it is now"
        found.append(Alternative(counts, cost, against is None, why))
    first, *others = found
    others.sort(key=lambda one: (not one.feasible, one.cost_per_h, tuple(one.counts.values())))
    return (first, *others[: _MOST_ALTERNATIVES - 1])


def outlook(key: VariantKey, decisions: Decisions, case: Case) -> tuple[str, ...]:
    """Return what will come about the variant if its load stays as it is, a sentence each."""
    state, load, policy = case.states[key], case.loads[key], case.policies[key]
    said = []
    past = case.memory.get(key, UNSEEN_VARIANT)
    expected = coming(state, past, case.at_s, policy)
    if expected:
        first, last = min(t for t, _ in expected), max(t for t, _ in expected)
        when = f"{first:.0f} s" if round(first) == round(last) else f"{first:.0f} to {last:.0f} s"
        late = sum(share < 1 for _, share in expected)
        said.append(
            f"{len(expected)} on the way, expected in {when}"
            + (f"; {late} of them late" if late else "")
        )
    wanted, floor = case.wanted[key], case.floors[key]
    kept = case.models[load.key].kept.entries
    if wanted < min(floor, decisions[key].desired) and len(kept) > 1:
        # The entries fall: what is needed now comes last, the largest need first.
        leaves_s = [max(0.0, at_s + load.window_s - case.at_s) for at_s, _ in kept[:-1]]
        largest, small = kept[0][1], kept[-1][1]
        said.append(
            f"if the load stays, it may go down from {leaves_s[0]:.0f} s on, when a need of "
            f"{figure(largest)} {load.unit} leaves the window, and to {wanted} after "
            f"{leaves_s[-1]:.0f} s, when {figure(small)} {load.unit} is all that is left in it"
        )
    return tuple(said)


def _decided(key: VariantKey, decisions: Decisions, case: Case) -> dict[VariantKey, int]:
    load = case.loads[key]
    return {
        other: decision.desired
        for other, decision in sorted(decisions.items())
        if case.loads[other].key == load.key
    }


def _cost(counts: Mapping[VariantKey, int], case: Case) -> float:
    return sum(case.states[key].variant.cost_per_h * count for key, count in counts.items())


def _carried(counts: Mapping[VariantKey, int], load: ModelLoad, case: Case) -> float:
    """Return what these counts carry once all of them serve that are on their way."""
    asked_for = sum(
        load.capacity.get(key, 0.0) * (case.states[key].spec_replicas or 0) for key in counts
    )
    absent = max(0.0, asked_for - load.present)
    whole = sum(load.capacity.get(key, 0.0) * count for key, count in counts.items())
    return max(0.0, whole - absent) * load.utilization.of(sum(counts.values()))


def _objections(
    counts: Mapping[VariantKey, int], decisions: Decisions, case: Case
) -> Iterable[str]:
    """Yield what speaks against a model's counts, with its numbers."""
    load = case.loads[next(iter(counts))]
    carried = _carried(counts, load, case)
    current = {key: case.states[key].spec_replicas or 0 for key in counts}
    for key, count in counts.items():
        most, asked = case.policies[key].max_up_step, case.standings[key].asked
        if count > asked + most:
            yield f"{key.name}: at most {most} more than {asked} per decision (max_up_step)"
    lacking = load.need - carried
    if lacking > _ROUNDING * max(1.0, load.need):
        yield (
            f"short by {figure(lacking)} {load.unit}: {_words(counts)} "
            f"{'carries' if sum(counts.values()) == 1 else 'carry'} {figure(carried)}, "
            f"{figure(load.need)} are needed"
        )
    elif sum(counts.values()) < sum(current.values()) and carried < load.keep:
        yield (
            f"too little margin: {_words(counts)} carry {figure(carried)} {load.unit}, a removal "
            f"must leave {figure(load.keep)}"
        )
    changed = {
        key: replace(decision, desired=counts.get(key, decision.desired), trail=())
        for key, decision in decisions.items()
    }
    for rule in RULES:
        if rule is follow_demand:
            continue
        for key, after in rule(changed, case).items():
            if key in counts and after.desired != counts[key]:
                yield f"{after.trail[-1].rule} makes it {after.desired}: {after.trail[-1].why}"


def _alone(
    member: VariantKey, load: ModelLoad, decided: Mapping[VariantKey, int], case: Case
) -> dict[VariantKey, int]:
    """Return counts that carry the need by one variant, the others at their minimum."""
    options = []
    for key in decided:
        variant = case.states[key].variant
        lowest = variant.min_replicas
        highest = lowest
        if key == member:
            alone = load.need / load.utilization.lowest / load.capacity.get(key, 1.0)
            highest = max(lowest, int(alone) + sum(decided.values()) + 1)
        options.append(
            Option(
                key=key,
                capacity=load.capacity.get(key, 1.0),
                cost_per_h=variant.cost_per_h,
                current=decided[key],
                lowest=lowest,
                highest=highest,
            )
        )
    counts = Cover(options, utilization=load.utilization).counts(load.need)
    return dict(sorted(counts.items()))


def _words(counts: Mapping[VariantKey, int]) -> str:
    if len(counts) == 1:
        return str(next(iter(counts.values())))
    return " + ".join(f"{count} {key.name}" for key, count in counts.items() if count) or "0"
