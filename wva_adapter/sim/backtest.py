"""What policies would have asked for in a fleet that was recorded: the load as it was, other counts."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from wva_adapter.core.fleet import LoadKey, VariantKey
from wva_adapter.core.hpa import External, Scale
from wva_adapter.core.hpa_sync import RECOMMENDED, SYNC_S, Bounds, HpaState, sync
from wva_adapter.core.leads import start_s
from wva_adapter.core.memory import Memory
from wva_adapter.core.planner import plan
from wva_adapter.core.policy import Policy
from wva_adapter.core.snapshot import Phase, ReplicaSample, ReplicaState, Snapshot, VariantState
from wva_adapter.errors import ConfigError
from wva_adapter.sim.contenders import OUR_POLICIES, contender_names
from wva_adapter.sim.hindsight import RECORDED, Judged, Moment, judge
from wva_adapter.sim.history import History, Spread
from wva_adapter.sim.laws import Law
from wva_adapter.sim.laws import scaler as law_scaler
from wva_adapter.sim.policy_files import law, law_names
from wva_adapter.sim.scaler import PodView, Scaler, VariantView

_SHOWN_S = 60.0
"""What a replica carried for so long within the SLO, it can carry."""

_UNBOUNDED = 1000
_LONG_AGO_S = -1e6
_EARLY_S = 0.5


@dataclass(frozen=True, slots=True)
class Backtest:
    """What a recording was, and what policies would have asked for in it.

    Attributes:
        moments: By model, its cycles.
        carried: By variant, the most requests per second that a replica has carried for a minute
            within the SLO.
        judged: By model the recorded counts first, under the name ``recorded``, then the policies.
    """

    moments: Mapping[LoadKey, tuple[Moment, ...]]
    carried: Mapping[VariantKey, float]
    judged: tuple[Judged, ...]


class _Fleet:
    """The replicas of one variant that a policy would have had."""

    def __init__(self, state: VariantState) -> None:
        self.variant = state.variant
        self.spec = state.spec_replicas or 0
        self._created = 0
        self._pods: list[tuple[str, float, float]] = []
        for index in range(self.spec):
            ready_s = _LONG_AGO_S if index < len(state.ready) else math.inf
            self._pods.append((self._name(), _LONG_AGO_S, ready_s))

    def _name(self) -> str:
        self._created += 1
        return f"{self.variant.key.name}-{self._created - 1}"

    def ask(self, count: int, at_s: float, takes_s: float) -> None:
        """Ask for so many; new ones serve after ``takes_s``, the newest go first and at once."""
        self.spec = count
        del self._pods[count:]
        while len(self._pods) < count:
            self._pods.append((self._name(), at_s, at_s + takes_s))

    def first_seen(self, at_s: float, takes_s: float) -> None:
        """Let those that were on their way when the recording began be ready in time."""
        self._pods = [
            (name, at_s, at_s + takes_s) if ready_s == math.inf else (name, created_s, ready_s)
            for name, created_s, ready_s in self._pods
        ]

    def ready(self, at_s: float) -> int:
        return sum(ready_s <= at_s for _, _, ready_s in self._pods)

    def stand_in(self, state: VariantState, at_s: float) -> VariantState:
        """Return a recorded state with these replicas in place of those that it asked for.

        Those that served keep their pages, and with them the load. Those beyond them are there,
        and have had nothing to do.
        """
        served = [r for r in state.replicas if r.phase is not Phase.STARTING]
        beyond = [pod for pod in self._pods if pod[2] <= at_s][len(state.ready) :]
        coming = [pod for pod in self._pods if pod[2] > at_s]
        idle = [
            ReplicaState(f"{name} (not run)", Phase.READY, created, ready, _idle(name, at_s))
            for name, created, ready in beyond
        ]
        starting = [
            ReplicaState(f"{name} (not run)", Phase.STARTING, created)
            for name, created, _ in coming
        ]
        return replace(
            state,
            spec_replicas=self.spec,
            status_replicas=self.spec,
            replicas=(*served, *idle, *starting),
        )

    def view(self, at_s: float) -> VariantView:
        pods = [
            PodView(
                name,
                Phase.READY if ready_s <= at_s else Phase.STARTING,
                created_s,
                ready_s if ready_s <= at_s else None,
            )
            for name, created_s, ready_s in self._pods
        ]
        most = self.variant.max_replicas
        return VariantView(
            self.variant.key.name,
            self.spec,
            self.variant.min_replicas,
            _UNBOUNDED if most is None else most,
            pods,
        )


def _idle(name: str, at_s: float) -> ReplicaSample:
    return ReplicaSample(
        replica=f"{name} (not run)",
        at_s=at_s,
        kv_cache_usage=0.0,
        running_requests=0,
        queued_requests=0,
        prompt_tokens_total=0,
        generation_tokens_total=0,
        successes_total=0,
    )


class _Player(Protocol):
    """A policy at work on a recording."""

    def decide(
        self,
        snapshot: Snapshot,
        fleets: Mapping[VariantKey, _Fleet],
        past: Mapping[LoadKey, History],
    ) -> Mapping[VariantKey, int]:
        """Return the counts to set now."""
        ...


class _Ours:
    """The adapter: what it would decide if its own counts had been asked for, through HPAs."""

    def __init__(self, policy: Policy, memory: Memory) -> None:
        self._policy = policy
        self._memory = memory
        self._synced_s = -math.inf
        self._states: dict[VariantKey, HpaState] = {}

    def decide(
        self,
        snapshot: Snapshot,
        fleets: Mapping[VariantKey, _Fleet],
        past: Mapping[LoadKey, History],
    ) -> Mapping[VariantKey, int]:
        states = tuple(fleets[s.variant.key].stand_in(s, snapshot.at_s) for s in snapshot.variants)
        planned, self._memory = plan(replace(snapshot, variants=states), self._policy, self._memory)
        if snapshot.at_s - self._synced_s < SYNC_S - _EARLY_S:
            return {}
        self._synced_s = snapshot.at_s
        counts = {}
        for state in states:
            key = state.variant.key
            fleet, decision = fleets[key], planned.decisions.get(key)
            view = fleet.view(snapshot.at_s)
            synced = sync(
                snapshot.at_s,
                Scale(fleet.spec, fleet.spec, fleet.ready(snapshot.at_s)),
                (External("count", () if decision is None else (decision.value_milli,)),),
                Bounds(view.min_replicas, view.max_replicas),
                RECOMMENDED,
                self._states.get(key, HpaState(scaled_to_zero=not fleet.spec)),
            )
            self._states[key] = synced.state
            counts[key] = synced.replicas
        return counts


class _Theirs:
    """A law, once for each model."""

    def __init__(self, of: Law, policy: Policy) -> None:
        self._law = of
        self._constants = {"slo_ttft_s": policy.slo_ttft_s, "slo_itl_s": policy.slo_itl_s}
        self._scalers: dict[LoadKey, tuple[Scaler, float]] = {}

    def decide(
        self,
        snapshot: Snapshot,
        fleets: Mapping[VariantKey, _Fleet],
        past: Mapping[LoadKey, History],
    ) -> Mapping[VariantKey, int]:
        counts: dict[VariantKey, int] = {}
        for model, history in past.items():
            its = {key: fleet for key, fleet in fleets.items() if fleet.variant.load_key == model}
            if model not in self._scalers:
                # A chip's prefill rate is not in a recording; a law that needs it reads nothing.
                constants = {key.name: self._constants for key in its}
                self._scalers[model] = (law_scaler(self._law, constants), -math.inf)
            scaler, acted_s = self._scalers[model]
            if snapshot.at_s - acted_s < scaler.period_s - _EARLY_S:
                continue
            self._scalers[model] = (scaler, snapshot.at_s)
            views = [fleet.view(snapshot.at_s) for fleet in its.values()]
            spread = Spread(history, self._law.name, _ready(its, snapshot.at_s))
            try:
                acted = scaler.act(snapshot.at_s, views, spread)
            except KeyError as missing:
                raise ConfigError(
                    f"policy {self._law.name!r}: it needs {missing.args[0]}, which no recording holds"
                ) from None
            counts |= {key: acted[key.name] for key in its if key.name in acted}
        return counts


def _ready(fleets: Mapping[VariantKey, _Fleet], at_s: float) -> ReadyOf:
    counts: dict[str | None, int] = {key.name: f.ready(at_s) for key, f in fleets.items()}
    counts[None] = sum(counts.values())
    return lambda variant: counts[variant]


class ReadyOf(Protocol):
    """Returns how many replicas of a variant, or of all, would serve."""

    def __call__(self, variant: str | None, /) -> int: ...


def backtest(
    cycles: Iterable[tuple[Snapshot, Policy]], memory: Memory, policies: Sequence[str]
) -> Backtest:
    """Return what policies would have asked for.

    Args:
        cycles: What was recorded, in order of time, with the policy that held then.
        memory: What the adapter remembered when the recording began.
        policies: Names or paths, as ``contender`` takes them.

    Raises:
        ConfigError: A policy is unknown, or reads what no recording holds.
    """
    tape = _Tape(memory)
    played: dict[str, _Play] = {}
    for snapshot, policy in cycles:
        if not played:
            played = {name: _Play(_player(name, policy, memory)) for name in policies}
        takes_s = tape.add(snapshot, policy)
        for play in played.values():
            play.take(snapshot, tape.histories, takes_s)
    moments = {model: tuple(found) for model, found in tape.moments.items()}
    carried = dict(tape.carried)
    judged = []
    for model, its in moments.items():
        ran = {key: tuple(m.ran.get(key, 0) for m in its) for key in _keys(its)}
        asked = {key: tuple(m.asked.get(key, 0) for m in its) for key in _keys(its)}
        judged.append(judge(RECORDED, model, its, carried, asked, ran))
        for name, play in played.items():
            counts = {key: tuple(play.counts[key]) for key in ran}
            ready = {key: tuple(play.ready[key]) for key in ran}
            judged.append(judge(name, model, its, carried, counts, ready))
    return Backtest(moments, carried, tuple(judged))


def check_policy(name: str) -> None:
    """Look whether there is a policy of this name that can be held against a recording.

    Raises:
        ConfigError: There is none.
    """
    _player(name, Policy(), Memory())


def _player(name: str, recorded: Policy, memory: Memory) -> _Player:
    if name in OUR_POLICIES:
        ours = OUR_POLICIES[name]
        return _Ours(
            replace(recorded, analysis=ours.analysis, service_level=ours.service_level),
            memory,
        )
    if name in contender_names() and name not in law_names():
        raise ConfigError(
            f"policy {name!r}: it lives in the simulator's fleet, which a recording does not have"
        )
    return _Theirs(law(name), recorded)


class _Play:
    """One policy, the replicas that it would have had, and what it asked for in each cycle."""

    def __init__(self, player: _Player) -> None:
        self._player = player
        self._fleets: dict[VariantKey, _Fleet] = {}
        self._seen = 0
        self.counts: dict[VariantKey, list[int]] = defaultdict(list)
        self.ready: dict[VariantKey, list[int]] = defaultdict(list)

    def take(
        self,
        snapshot: Snapshot,
        histories: Mapping[LoadKey, History],
        takes_s: Mapping[VariantKey, float],
    ) -> None:
        at_s = snapshot.at_s
        there = {state.variant.key: state for state in snapshot.variants}
        for key, state in there.items():
            fleet = self._fleets.get(key)
            if fleet is None:
                fleet = self._fleets[key] = _Fleet(state)
                fleet.first_seen(at_s, takes_s[key])
            fleet.variant = state.variant
        fleets = {key: self._fleets[key] for key in there}
        for key, count in self._player.decide(snapshot, fleets, histories).items():
            if count != fleets[key].spec:
                fleets[key].ask(count, at_s, takes_s[key])
        for key, fleet in fleets.items():
            # A variant that came later, or was away, had none meanwhile.
            for series in (self.counts[key], self.ready[key]):
                series += [0] * (self._seen - len(series))
            self.counts[key].append(fleet.spec)
            self.ready[key].append(fleet.ready(at_s))
        self._seen += 1
        for key, counts in self.counts.items():
            for series in (counts, self.ready[key]):
                series += [0] * (self._seen - len(series))


class _Tape:
    """The recording as it goes by: demand, what replicas can do, and the series of each model."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._pages: dict[tuple[VariantKey, str], deque[ReplicaSample]] = {}
        self.histories: dict[LoadKey, History] = {}
        self.moments: dict[LoadKey, list[Moment]] = defaultdict(list)
        self.carried: dict[VariantKey, float] = defaultdict(float)

    def add(self, snapshot: Snapshot, policy: Policy) -> Mapping[VariantKey, float]:
        """Take one cycle in; return by variant how long its replicas take to start."""
        learning = replace(policy, analysis="demand")
        planned, self._memory = plan(snapshot, learning, self._memory)
        gateways = {(g.namespace, g.model_id): g for g in snapshot.gateways}
        loads = {load.key: load for load in planned.loads}
        models: dict[LoadKey, list[VariantState]] = defaultdict(list)
        for state in snapshot.variants:
            models[state.variant.load_key].append(state)
            self._watch(state, policy)
        for model, states in models.items():
            load = loads.get(model)
            demand = None if load is None else load.demand
            gateway = gateways.get((model.namespace, model.model_id))
            self.histories.setdefault(model, History()).add(snapshot.at_s, states, gateway, demand)
            pages = [r.sample for s in states for r in s.ready if r.sample is not None]
            queued = sum(page.queued_requests or 0.0 for page in pages)
            held = 0.0 if gateway is None else gateway.queued_requests or 0.0
            keys = [s.variant.key for s in states]
            self.moments[model].append(
                Moment(
                    snapshot.at_s,
                    demand,
                    queued + held >= 1,
                    {k: len(s.ready) for k, s in zip(keys, states, strict=True)},
                    {k: s.spec_replicas or 0 for k, s in zip(keys, states, strict=True)},
                    {} if load is None else load.capacity,
                    {k: s.variant.cost_per_h for k, s in zip(keys, states, strict=True)},
                )
            )
        remembered = self._memory.variants
        return {
            s.variant.key: start_s(
                remembered[s.variant.key].starts if s.variant.key in remembered else (), policy
            )
            for s in snapshot.variants
        }

    def _watch(self, state: VariantState, policy: Policy) -> None:
        """Note what each replica carried in the last minute, if that was within the SLO."""
        key = state.variant.key
        for replica in state.ready:
            page = replica.sample
            if page is None:
                continue
            pages = self._pages.setdefault((key, replica.name), deque())
            if pages and page.at_s <= pages[-1].at_s:
                continue
            pages.append(page)
            while len(pages) > 1 and pages[1].at_s <= page.at_s - _SHOWN_S:
                pages.popleft()
            if page.at_s - pages[0].at_s >= _SHOWN_S and _within(pages, policy):
                took_s = page.at_s - pages[0].at_s
                rate = _grown(pages, "ttft_count") / took_s
                self.carried[key] = max(self.carried[key], rate)


def _grown(pages: Sequence[ReplicaSample] | deque[ReplicaSample], field: str) -> float:
    first, last = getattr(pages[0], field), getattr(pages[-1], field)
    return math.nan if first is None or last is None else float(last - first)


def _within(pages: deque[ReplicaSample], policy: Policy) -> bool:
    """Return whether nothing waited and mean latencies were within the SLO."""
    if any(page.queued_requests is None or page.queued_requests >= 1 for page in pages):
        return False
    started, gaps = _grown(pages, "ttft_count"), _grown(pages, "itl_count")
    # Written so that what is not known fails. Counters that fell are of an engine that began anew.
    return (
        started > 0
        and _grown(pages, "ttft_sum_s") <= policy.slo_ttft_s * started
        and gaps > 0
        and _grown(pages, "itl_sum_s") <= policy.slo_itl_s * gaps
    )


def _keys(moments: Sequence[Moment]) -> tuple[VariantKey, ...]:
    return tuple(sorted({key for moment in moments for key in moment.ran}))
