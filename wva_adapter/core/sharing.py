"""Who gets how many replicas where accelerators are scarce, and what every plan is worth."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from wva_adapter.core.allocation import Option, allocate
from wva_adapter.core.change import replace
from wva_adapter.core.fleet import LoadKey, Role, VariantKey
from wva_adapter.core.room import Room, Supply

Counts = Mapping[VariantKey, int]

_COVERED = 1e-9
"""A need is met from this share below it: sums of floats differ by rounding."""

_UNMET_WEIGHT = 100.0
"""What a wholly unmet need costs, in prices of meeting it: unmet by a hundredth of a replica is
as bad as one replica more."""

UNMET_SLOPES = (1.25, 1.75, 2.25, 2.75)
"""By quarters of the need, how fast the price of leaving it unmet grows: a model left with nothing
is worse than several that miss a little."""

_PRIORITY_STEP = 100.0
_PRIORITY_STEPS = 3
"""Each class of priority outweighs the next by so much; the classes below the fourth are alike."""


@dataclass(frozen=True, slots=True)
class Objective:
    """What is minimised: $ per hour, plus ``power_per_kwh`` for each kW.

    Attributes:
        cost: Weight of the $ per hour; 0 where only power counts.
        power_per_kwh: Weight of a kW; 0 where only cost counts.

    Raises:
        ValueError: A weight is negative or not finite, or both are 0.
    """

    cost: float = 1.0
    power_per_kwh: float = 0.0

    def __post_init__(self) -> None:
        for name in ("cost", "power_per_kwh"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"objective: {name} {value}, want a finite number of at least 0")
        if self.cost == self.power_per_kwh == 0:
            raise ValueError("objective: cost and power_per_kwh are 0, want one above")


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """What one model asks for.

    Attributes:
        need: Capacity to reach, in the unit of its options' capacity.
        options: Its variants, keys unique.
        priority: Larger ones are served first.
        wanted: The counts that it would like; ``None`` for its own cheapest plan.
        role: Which part of the model's work asks.
    """

    namespace: str
    model_id: str
    need: float
    options: tuple[Option, ...]
    priority: int = 0
    wanted: Counts | None = None
    role: Role = "both"

    @property
    def key(self) -> LoadKey:
        """Whose load it is."""
        return LoadKey(self.namespace, self.model_id, self.role)

    def unmet(self, counts: Counts) -> float:
        """Return the share of the need that these counts leave unmet, 0 to 1."""
        if self.need <= 0:
            return 0.0
        served = math.fsum(o.capacity * counts[o.key] for o in self.options)
        share = 1.0 - served / self.need
        return share if share > _COVERED else 0.0


@dataclass(frozen=True, slots=True)
class Value:
    """What a plan is worth; less is better.

    Attributes:
        cost_per_h: $ per hour of all replicas.
        power_w: What they draw; ``None`` where that of one that runs is unknown.
        objective: Price, changes and unmet needs in one number.
    """

    cost_per_h: float
    power_w: float | None
    objective: float


@dataclass(frozen=True, slots=True)
class Grants:
    """The counts of all variants.

    Attributes:
        counts: By variant.
        limited: By variant that gets less than its model would have liked, what limited it.
        unmet: By model whose need is not met, the share of it, 0 to 1.
        value: What the counts are worth.
        method: What found them: ``greedy`` or ``proposal``.
    """

    counts: Counts
    limited: Mapping[VariantKey, str]
    unmet: Mapping[LoadKey, float]
    value: Value
    method: str = "greedy"


@dataclass(slots=True)
class _Turn:
    """One model while replicas are handed out."""

    request: ModelRequest
    wanted: Counts
    counts: dict[VariantKey, int]
    served: float
    closed: dict[VariantKey, str] = field(default_factory=dict)
    _key: LoadKey = field(init=False)

    def __post_init__(self) -> None:
        self._key = self.request.key

    @property
    def rank(self) -> tuple[int, float, LoadKey]:
        need = self.request.need
        return -self.request.priority, self.served / need if need > 0 else 1.0, self._key

    @property
    def missing(self) -> float:
        return self.request.need * (1.0 - _COVERED) - self.served

    def choose(self) -> Option | None:
        """Return the variant to try next: those of the model's own plan first, then the cheapest.

        The cheapest is that of the least price per unit of what is still missing.
        """
        counts, closed, wanted = self.counts, self.closed, self.wanted
        open_ = [
            o for o in self.request.options if o.key not in closed and counts[o.key] < o.highest
        ]
        missing = self.missing
        if missing <= 0:
            open_ = [o for o in open_ if counts[o.key] < o.lowest]
        planned = [o for o in open_ if counts[o.key] < wanted[o.key]]
        chosen = planned or open_
        if len(chosen) <= 1:
            # Mostly so, and then no price matters.
            return chosen[0] if chosen else None
        unit = max((o.cost_per_h for o in open_), default=0.0) or 1.0

        def rate(option: Option) -> tuple[float, VariantKey]:
            useful = option.capacity if planned else min(option.capacity, missing)
            # Rounded, so that the unit of money does not decide between equal ones.
            return round(option.cost_per_h / unit / useful, 9), option.key

        return min(chosen, key=rate)


def share(
    requests: Sequence[ModelRequest],
    supply: Supply,
    *,
    change_penalty: float = 0.0,
    objective: Objective | None = None,
    previous: Counts | None = None,
    proposal: Counts | None = None,
) -> Grants:
    """Return the counts of all models on the accelerators that there are.

    Each model's own cheapest plan is what it wants. Where not all of that fits, replicas are
    handed out one at a time, to the model of the highest priority that is worst served; what one
    variant cannot get another may. Only what is added is bounded, never what runs.

    Args:
        requests: Every model once, variants' keys unique over all.
        supply: What replicas can be added on.
        change_penalty: As ``allocate`` has it.
        objective: What a plan is judged by; cost if not said.
        previous: The counts of the last plan.
        proposal: Counts that a slower method found; taken only as ``adopt`` says.
    """
    objective = objective or Objective()
    priced = price(requests, objective)
    wishes, counts, reasons = _greedy(priced, supply, change_penalty)
    method = "greedy"
    if proposal is not None and adopt(
        proposal, counts, previous, priced, supply, change_penalty=change_penalty
    ):
        counts, method = {key: proposal[key] for key in counts}, "proposal"
    unmet = {r.key: r.unmet(counts) for r in priced}
    return Grants(
        counts=counts,
        limited={
            key: words
            for request in priced
            for key, words in _limits(request, wishes, counts, reasons).items()
        },
        unmet={key: share for key, share in unmet.items() if share > 0},
        value=value(requests, counts, change_penalty=change_penalty, objective=objective),
        method=method,
    )


def price(requests: Iterable[ModelRequest], objective: Objective) -> tuple[ModelRequest, ...]:
    """Return the requests in the order of their models, with the objective's prices for costs.

    A variant of unknown power draws as much per device as the hungriest known one of its model.
    """
    ordered = sorted(requests, key=lambda r: r.key)
    if objective == Objective():
        return tuple(ordered)
    priced = []
    for request in ordered:
        known = [o.power_w / max(1, o.devices) for o in request.options if o.power_w is not None]
        hungriest = max(known, default=0.0)
        options = []
        for o in request.options:
            watts = hungriest * max(1, o.devices) if o.power_w is None else o.power_w
            money = objective.cost * o.cost_per_h + objective.power_per_kwh * watts / 1000
            options.append(replace(o, cost_per_h=money))
        priced.append(replace(request, options=tuple(options)))
    return tuple(priced)


def unmet_prices(requests: Sequence[ModelRequest]) -> dict[LoadKey, float]:
    """Return what each model's wholly unmet need costs at a slope of 1.

    It follows the model's own dearest price per capacity, so that the unit of money and the size
    of the model change nothing.
    """
    classes = sorted({r.priority for r in requests}, reverse=True)
    weights = {
        priority: _PRIORITY_STEP ** (_PRIORITY_STEPS - min(place, _PRIORITY_STEPS))
        for place, priority in enumerate(classes)
    }
    if len(classes) <= _PRIORITY_STEPS:
        smallest = weights[classes[-1]] if classes else 1.0
        weights = {priority: weight / smallest for priority, weight in weights.items()}
    return {
        r.key: _UNMET_WEIGHT
        * weights[r.priority]
        * r.need
        * (max((o.cost_per_h / o.capacity for o in r.options), default=0.0) or 1.0)
        for r in requests
    }


def unmet_penalty(share: float) -> float:
    """Return the penalty of an unmet share, 0 to 1, at a price of 1: convex, 0 at 0, 2 at 1."""
    part = 1.0 / len(UNMET_SLOPES)
    return math.fsum(
        slope * min(part, max(0.0, share - i * part)) for i, slope in enumerate(UNMET_SLOPES)
    )


def value(
    requests: Sequence[ModelRequest],
    counts: Counts,
    *,
    change_penalty: float = 0.0,
    objective: Objective | None = None,
) -> Value:
    """Return what these counts are worth on today's numbers."""
    priced = price(requests, objective or Objective())
    prices = unmet_prices(priced)
    paid = [
        o.cost_per_h * (counts[o.key] + change_penalty * abs(counts[o.key] - o.current))
        for r in priced
        for o in r.options
    ]
    paid += [prices[r.key] * unmet_penalty(r.unmet(counts)) for r in priced]
    running = [o for r in requests for o in r.options if counts[o.key]]
    watts = [o.power_w * counts[o.key] for o in running if o.power_w is not None]
    return Value(
        cost_per_h=math.fsum(o.cost_per_h * counts[o.key] for o in running),
        power_w=math.fsum(watts) if len(watts) == len(running) else None,
        objective=math.fsum(paid),
    )


def adopt(
    proposal: Counts,
    greedy: Counts,
    previous: Counts | None,
    requests: Sequence[ModelRequest],
    supply: Supply,
    *,
    change_penalty: float = 0.0,
    objective: Objective | None = None,
) -> bool:
    """Return whether a proposal is taken instead of the greedy plan.

    It is where it is still possible on today's bounds and supply, and where its objective on
    today's numbers is no worse than the greedy plan's and the previous one's. A previous plan
    that is not possible any more is no bar.
    """
    if not feasible(proposal, requests, supply):
        return False

    def worth(counts: Counts) -> float:
        return value(requests, counts, change_penalty=change_penalty, objective=objective).objective

    bar = worth(greedy)
    if previous is not None and feasible(previous, requests, supply):
        bar = min(bar, worth(previous))
    return worth(proposal) <= bar


def feasible(counts: Counts, requests: Sequence[ModelRequest], supply: Supply) -> bool:
    """Return whether the counts name every variant, are in bounds, and fit what there is.

    What fits is looked for with the largest replicas first.
    """
    options = [o for r in requests for o in r.options]
    for option in options:
        count = counts.get(option.key)
        if count is None or not option.lowest <= count <= option.highest:
            return False
    room = Room(supply, options)
    added = sorted(
        (o for o in options if counts[o.key] > o.current), key=lambda o: (-o.devices, o.key)
    )
    return all(room.take(o) is None for o in added for _ in range(counts[o.key] - o.current))


def _greedy(
    requests: Sequence[ModelRequest], supply: Supply, change_penalty: float
) -> tuple[Counts, Counts, Mapping[VariantKey, str]]:
    """Return what each model wishes for, the counts handed out, and why a variant got no more."""
    wishes: dict[VariantKey, int] = {}
    turns = []
    for request in requests:
        wanted = request.wanted
        if wanted is None:
            wanted = allocate(request.need, request.options, change_penalty=change_penalty)
        wishes |= wanted
        # What runs and is wanted stays; what is not wanted goes without a turn.
        start = {o.key: min(wanted[o.key], o.current) for o in request.options}
        turns.append(_Turn(request, wanted, start, _served(request, start)))
    if not supply.bounded:
        return wishes, wishes, {}
    room = Room(supply, (o for r in requests for o in r.options))
    queue = [(turn.rank, turn) for turn in turns if turn.counts != turn.wanted]
    heapq.heapify(queue)
    while queue:
        _, turn = heapq.heappop(queue)
        option = turn.choose()
        if option is None:
            continue
        # Coming back to what runs takes no devices: those are held already.
        why = None if turn.counts[option.key] < option.current else room.take(option)
        if why is None:
            turn.counts[option.key] += 1
            turn.served += option.capacity
        else:
            # Room never grows while a plan is made, so it is not asked again.
            turn.closed[option.key] = why
        heapq.heappush(queue, (turn.rank, turn))
    granted: dict[VariantKey, int] = {}
    reasons: dict[VariantKey, str] = {}
    for turn in turns:
        _trim(turn)
        granted |= turn.counts
        reasons |= turn.closed
    return wishes, granted, reasons


def _served(request: ModelRequest, counts: Counts) -> float:
    return math.fsum(o.capacity * counts[o.key] for o in request.options)


def _trim(turn: _Turn) -> None:
    """Take back what was handed out for a plan that then became another one."""
    floor = {o.key: max(o.lowest, min(o.current, turn.wanted[o.key])) for o in turn.request.options}
    for option in sorted(turn.request.options, key=lambda o: (-o.cost_per_h, o.key)):
        while turn.counts[option.key] > floor[option.key] and turn.missing + option.capacity <= 0:
            turn.counts[option.key] -= 1
            turn.served -= option.capacity


def _limits(
    request: ModelRequest, wishes: Counts, counts: Counts, reasons: Mapping[VariantKey, str]
) -> Mapping[VariantKey, str]:
    """Return what limited the variants of one model, in words."""
    keys = [o.key for o in request.options]
    short = [key for key in keys if counts[key] < wishes[key]]
    if not (request.unmet(counts) or any(key in reasons for key in short)):
        return {}
    instead = [
        f"; {key.name} gets {counts[key] - wishes[key]} more"
        for key in sorted(keys)
        if counts[key] > wishes[key]
    ]
    return {
        key: (
            f"{wishes[key]} wanted, {counts[key]} granted: "
            f"{reasons.get(key, 'other models need the devices more')}{''.join(instead)}"
        )
        for key in short
    }
