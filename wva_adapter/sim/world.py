"""The fleet as a whole: requests meet pods, a law sets counts, and a run becomes an outcome."""

from __future__ import annotations

import gc
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wva_adapter.core.snapshot import Phase
from wva_adapter.sim.agenda import PODS, SCALE, SCRAPE, WORK, Agenda
from wva_adapter.sim.batch import Backlog
from wva_adapter.sim.clients import RETRIED, Call, Fate, Fates, Kind, Traffic, afresh
from wva_adapter.sim.cluster import Cluster, Group, Pod
from wva_adapter.sim.observe import SCRAPE_PERIOD_S, Observatory
from wva_adapter.sim.outcome import Bill, Moment, Outcome, bill, summarise
from wva_adapter.sim.router import Gateway, WhenSaturated
from wva_adapter.sim.scaler import Explains, Scaler
from wva_adapter.sim.scenarios import Loss, Restart, Scenario

_ARRIVALS, _LENGTHS, _PODS, CAPACITY, _RETRIES, _SESSIONS, _SCRAPES = range(7)
"""Streams of chance. Each has its own, so none depends on how often another was asked."""

_END = (math.inf, 0, 0)


@dataclass(frozen=True, slots=True)
class Stage:
    """What a law is made for.

    Attributes:
        scenario: The fleet, and what will come; a law that is not clairvoyant reads only the fleet.
        traffic: What will come, request by request.
        observatory: What it can see.
        seed: Of all chance in this run.
    """

    scenario: Scenario
    traffic: Traffic
    observatory: Observatory
    seed: int


ScalerMaker = Callable[[Stage], Scaler]


def run(
    scenario: Scenario,
    make_scaler: ScalerMaker,
    seed: int,
    *,
    when_saturated: WhenSaturated | None = None,
    leap: bool = True,
    on_time: Callable[[float], None] | None = None,
) -> Outcome:
    """Let a law run a scenario's fleet and return what became of the requests.

    Equal arguments give equal results, and two laws under one seed meet the same requests and the
    same start-up times.

    Args:
        scenario: The fleet, its clients and its gateway.
        make_scaler: Makes the law.
        seed: Of arrivals, lengths and start-up times.
        when_saturated: What the gateway does instead of what the scenario says.
        leap: Take equal steps of an engine at once; the outcome is the same without.
        on_time: Told of model seconds as they pass.
    """
    world = _World(scenario, make_scaler, seed, when_saturated, leap, on_time)
    # Requests die when nobody refers to them any more. The collector of cycles would find none among
    # them, and walk through all that live again and again: a tenth of the time of a large fleet.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return world.run()
    finally:
        if collecting:
            gc.enable()


def draw_traffic(scenario: Scenario, seed: int) -> Traffic:
    """Return the requests that a seed brings."""
    return scenario.draw(_generator(seed, _ARRIVALS), _generator(seed, _LENGTHS))


def _generator(seed: int, *stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *stream])))


def _offline(scenario: Scenario, traffic: Traffic) -> NDArray[np.bool_]:
    """Return for each request whether it is an offline one."""
    is_offline = np.array([kind.due_s is not None for kind in scenario.kinds])
    kinds = np.zeros(len(traffic.arrived_s), np.int64) if traffic.kinds is None else traffic.kinds
    return is_offline[kinds]


class _World:
    def __init__(
        self,
        scenario: Scenario,
        make_scaler: ScalerMaker,
        seed: int,
        when_saturated: WhenSaturated | None,
        leap: bool,
        on_time: Callable[[float], None] | None,
    ) -> None:
        self._scenario = scenario
        self._seed = seed
        self._on_time = on_time
        self._traffic = draw_traffic(scenario, seed)
        self._fates = Fates(len(self._traffic.arrived_s))
        self._agenda = Agenda()
        self._gateway = Gateway(
            scenario.routing,
            when_saturated or scenario.when_saturated,
            sticky_share=scenario.sticky_share,
            sessions=_generator(seed, _SESSIONS),
        )
        # Where prefill and decode are apart, who has been prefilled goes to one that decodes.
        self._decoders = Gateway(scenario.routing, "pass")
        self._groups = [
            Group(deployed, _generator(seed, _PODS, index), leap=leap)
            for index, deployed in enumerate(scenario.fleet)
        ]
        self._cluster = Cluster(
            self._agenda,
            self._groups,
            removal_order=scenario.removal_order,
            grace_s=scenario.grace_s,
            on_ready=self._pod_ready,
            on_leaving=self._pod_leaving,
            on_killed=self._pod_killed,
        )
        self._observatory = Observatory(self._groups, self._gateway)
        self._scaler = make_scaler(Stage(scenario, self._traffic, self._observatory, seed))
        self._by_name = {group.deployed.name: group for group in self._groups}
        self._deadlines: deque[Call] = deque()
        self._watching = False
        self._held: deque[Call] = deque()
        self._present = 0
        kinds = self._traffic.kinds
        self._kinds = None if kinds is None else kinds.tolist()
        # Most scenarios have one kind of requests, of which nothing is to be looked up.
        self._plain = scenario.kinds == (Kind(),)
        self._backlog = Backlog(scenario.batch_workers)
        self._bills: list[Bill] = []
        self._timeline: list[Moment] = []

    def run(self) -> Outcome:
        scenario, agenda = self._scenario, self._agenda
        self._cluster.begin()
        agenda.push(0.0, self._scrape, None, SCRAPE)
        agenda.push(self._scaler.period_s, self._scale, None, SCALE)
        agenda.push(scenario.horizon_s, self._close, None, SCALE)
        for loss in scenario.losses:
            agenda.push(loss.at_s, self._lose, loss, PODS)
        for restart in scenario.restarts:
            agenda.push(restart.at_s, self._restart, restart, PODS)
        for kind in scenario.kinds:
            if kind.due_s is not None:
                agenda.push(kind.due_s, self._overdue, None, PODS)
        coming = iter(self._traffic)
        step, arrive = agenda.step, self._arrive
        at_s, prompt_tokens, output_tokens = next(coming, _END)
        index = 0
        while True:
            while step(at_s):
                pass
            if at_s == math.inf:
                break
            arrive(index, at_s, prompt_tokens, output_tokens)
            index += 1
            at_s, prompt_tokens, output_tokens = next(coming, _END)
        return summarise(
            self._traffic,
            self._fates,
            self._groups,
            self._bills,
            self._timeline,
            horizon_s=scenario.horizon_s,
            slo=scenario.slo,
            offline=_offline(scenario, self._traffic),
        )

    # What clients do.

    def _arrive(self, index: int, at_s: float, prompt_tokens: int, output_tokens: int) -> None:
        call = Call(prompt_tokens, output_tokens)
        call.index = index
        if not self._plain:
            kind = self._scenario.kinds[self._kinds[index] if self._kinds else 0]
            call.cached_tokens = min(int(kind.hit_share * prompt_tokens), prompt_tokens - 1)
            call.known_tokens = call.cached_tokens
            if kind.due_s is not None:
                call.sent_s, call.due_s = at_s, kind.due_s
                self._backlog.waiting.append(call)
                return
        most = self._scenario.concurrency
        if most is not None and self._present >= most:
            self._held.append(call)
        else:
            self._send(call, at_s)

    def _send(self, call: Call, at_s: float) -> None:
        self._present += 1
        call.sent_s = at_s
        call.deadline_s = at_s + self._scenario.timeout_s
        self._deadlines.append(call)
        if not self._watching:
            self._watch()
        self._offer(call, at_s)

    def _send_held(self, _: None, at_s: float) -> None:
        most = self._scenario.concurrency
        if self._held and most is not None and self._present < most:
            self._send(self._held.popleft(), at_s)

    def _offer(self, call: Call, at_s: float) -> None:
        """Give a request to the gateway."""
        gateway = self._gateway
        gateway.arrivals_total += 1
        if gateway.queued or not self._route(call, at_s):
            if gateway.when_saturated == "queue":
                gateway.queue.append(call)
                gateway.queued += 1
            else:
                self._end(call, at_s, Fate.SHED if gateway.endpoints else Fate.NO_ENDPOINT)

    def _route(self, call: Call, at_s: float) -> bool:
        """Send a request to an endpoint; return whether there was one for it."""
        pod = self._gateway.pick(call)
        if pod is None:
            return False
        replica = pod.replica
        assert replica is not None
        if call.prompt_tokens + call.output_tokens > replica.longest_tokens:
            self._end(call, at_s, Fate.TOO_LONG)
            return True
        if pod.group.deployed.role == "prefill":
            # Its one token is thrown away: the one that decodes makes it again.
            call.later_tokens, call.output_tokens = call.output_tokens, 1
        self._give(call, pod, at_s)
        return True

    def _give(self, call: Call, pod: Pod, at_s: float) -> None:
        assert pod.replica is not None
        assert pod.gateway is not None
        call.pod = pod
        pod.replica.submit(call, at_s)
        pod.gateway.sent(pod, call)
        pod.group.sent += 1
        self._expect(pod)

    def _move(self, call: Call, at_s: float) -> None:
        """Let the KV cache of a prefilled request go to a replica that decodes it."""
        call.moving, call.pod = True, None
        call.output_tokens, call.later_tokens = call.later_tokens, 0
        call.first_token_s = call.finished_s = call.scheduled_s = None
        # All of it is there but for the token that brings the first one of the answer.
        call.cached_tokens = call.prompt_tokens - 1
        self._agenda.push(at_s + self._scenario.transfer_s, self._arrive_to_decode, call, WORK)

    def _arrive_to_decode(self, call: Call, at_s: float) -> None:
        if call.fate is not Fate.PRESENT:
            return
        call.moving = False
        pod = self._decoders.pick(call)
        if pod is None:
            self._end(call, at_s, Fate.NO_ENDPOINT)
            return
        assert pod.replica is not None
        if call.prompt_tokens + call.output_tokens > pod.replica.longest_tokens:
            self._end(call, at_s, Fate.TOO_LONG)
        else:
            self._give(call, pod, at_s)

    def _give_up(self, _: None, at_s: float) -> None:
        """End what has waited too long; put down when to look again."""
        self._watching = False
        deadlines = self._deadlines
        while deadlines and (
            deadlines[0].deadline_s <= at_s or deadlines[0].fate is not Fate.PRESENT
        ):
            self._time_out(deadlines.popleft(), at_s)
        if deadlines and not self._watching:
            self._watch()

    def _time_out(self, call: Call, at_s: float) -> None:
        if call.fate is not Fate.PRESENT:
            return
        pod = call.pod
        if pod is None:
            self._gateway.queued -= not call.moving
            self._end(call, at_s, Fate.TIMEOUT)
        else:
            assert pod.replica is not None
            pod.replica.cancel(call, at_s)
            self._leave(pod, call, at_s, Fate.TIMEOUT)
            self._expect(pod)

    def _watch(self) -> None:
        """Look again when the one that was sent first will give up; few ever do."""
        self._watching = True
        self._agenda.push(self._deadlines[0].deadline_s, self._give_up, None, PODS)

    def _end(self, call: Call, at_s: float, fate: Fate) -> None:
        if call.due_s is not None:
            self._end_offline(call, at_s, fate)
            return
        if fate in RETRIED and call.attempts < self._scenario.retries and self._retry(call, at_s):
            call.fate = fate
            return
        self._fates.record(call, at_s, fate)
        self._present -= 1
        if self._held:
            # Put down, not done: what is refused at once would go through all of them in one stack.
            self._agenda.push(at_s, self._send_held, None, WORK)

    def _retry(self, call: Call, at_s: float) -> bool:
        """Put down that a request is sent again; return whether its client has the patience."""
        chance = float(_generator(self._seed, _RETRIES, call.index, call.attempts).random())
        wait_s = self._scenario.backoff_s * 2**call.attempts * (1 + chance) / 2
        if at_s + wait_s >= call.deadline_s:
            return False
        again = afresh(call)
        again.attempts = call.attempts + 1
        self._agenda.push(at_s + wait_s, self._resend, again, PODS)
        return True

    def _resend(self, call: Call, at_s: float) -> None:
        self._agenda.push(call.deadline_s, self._time_out, call, PODS)
        self._offer(call, at_s)

    # What a batch processor does.

    def _feed(self, _: None, at_s: float) -> None:
        """Send offline requests, as far as what was scraped last leaves room."""
        gateway, backlog = self._gateway, self._backlog
        saturation = self._observatory.value("saturation", at_s)
        if saturation is None:
            return
        while not gateway.queued and (call := backlog.next(saturation)) is not None:
            if not self._route(call, at_s):
                backlog.again(call)
                break
            gateway.arrivals_total += 1
            gateway.offline_total += 1

    def _end_offline(self, call: Call, at_s: float, fate: Fate) -> None:
        if fate in RETRIED:
            call.fate = fate
            self._backlog.again(call)
            return
        self._backlog.sent.pop(call, None)
        self._fates.record(call, at_s, fate)
        if fate is Fate.FINISHED and self._backlog.waiting:
            self._agenda.push(at_s, self._feed, None, WORK)

    def _overdue(self, _: None, at_s: float) -> None:
        """Give up what was to be done by now."""
        flying, late = self._backlog.overdue(at_s)
        for call in late:
            self._fates.record(call, at_s, Fate.TIMEOUT)
        for call in flying:
            pod = call.pod
            if pod is None:
                self._end(call, at_s, Fate.TIMEOUT)
                continue
            assert pod.replica is not None
            pod.replica.cancel(call, at_s)
            self._leave(pod, call, at_s, Fate.TIMEOUT)
            self._expect(pod)

    # What engines do.

    def _wake(self, pod: Pod, at_s: float) -> None:
        if pod.due_s == at_s:
            self._progress(pod, at_s)

    def _progress(self, pod: Pod, at_s: float) -> None:
        """Let an engine come up to date, and hear what happened in it."""
        assert pod.replica is not None
        started, finished = pod.replica.advance(at_s)
        gateway = self._gateway
        for call in started:
            assert isinstance(call, Call)
            assert call.first_token_s is not None
            pod.unprefilled_tokens -= call.prompt_tokens - call.cached_tokens
            if not call.later_tokens:
                pod.group.ttfts_s.append(call.first_token_s - call.sent_s)
        for call in finished:
            assert isinstance(call, Call)
            assert call.first_token_s is not None
            assert call.finished_s is not None
            if call.output_tokens > 1:
                generating_s = call.finished_s - call.first_token_s
                pod.group.itls_s.append(generating_s / (call.output_tokens - 1))
            self._leave(pod, call, call.finished_s, Fate.FINISHED)
        self._expect(pod)
        if pod.gateway is gateway and gateway.when_saturated != "pass" and pod.slot >= 0:
            gateway.judge(pod)
            if gateway.queued:
                self._dispatch(at_s)

    def _expect(self, pod: Pod) -> None:
        """Put down when an engine will have something to tell."""
        assert pod.replica is not None
        due_s = pod.replica.next_event_s()
        if due_s is None:
            pod.due_s = math.inf
        elif due_s != pod.due_s:
            pod.due_s = due_s
            self._agenda.push(due_s, self._wake, pod, WORK)

    def _leave(self, pod: Pod, call: Call, at_s: float, fate: Fate) -> None:
        """Let a request leave its endpoint."""
        assert pod.gateway is not None
        pod.gateway.ended(pod, call)
        if call.later_tokens and fate is Fate.FINISHED:
            self._move(call, at_s)
        else:
            self._end(call, at_s, fate)
        if pod.phase is Phase.TERMINATING and not pod.in_flight and pod.slot < 0:
            self._pod_drained(pod, at_s)

    def _dispatch(self, at_s: float) -> None:
        """Send what the gateway holds back, as long as an endpoint takes it."""
        gateway = self._gateway
        while gateway.queued:
            while gateway.queue[0].fate is not Fate.PRESENT:
                gateway.queue.popleft()
            if not self._route(gateway.queue[0], at_s):
                break
            gateway.queue.popleft()
            gateway.queued -= 1

    # What the cluster does.

    def _lose(self, loss: Loss, at_s: float) -> None:
        group = self._by_name[loss.variant]
        count = math.ceil(loss.share * len(group.serving()))
        self._cluster.lose(group, count, at_s, back_s=loss.back_s)

    def _restart(self, restart: Restart, at_s: float) -> None:
        group = self._by_name[restart.variant]
        count = math.ceil(restart.share * len(group.serving()))
        self._cluster.restart(group, count, at_s)

    def _pod_ready(self, pod: Pod, at_s: float) -> None:
        (self._decoders if pod.group.deployed.role == "decode" else self._gateway).add(pod)
        if self._gateway.queued:
            self._dispatch(at_s)

    def _pod_leaving(self, pod: Pod, at_s: float) -> None:
        lag_s = self._scenario.deregistration_lag_s
        if lag_s > 0:
            self._agenda.push(at_s + lag_s, self._deregister, pod, PODS)
        else:
            self._deregister(pod, at_s)

    def _deregister(self, pod: Pod, at_s: float) -> None:
        assert pod.gateway is not None
        pod.gateway.remove(pod)
        if not pod.in_flight and pod.ended_s == math.inf:
            self._pod_drained(pod, at_s)

    def _pod_drained(self, pod: Pod, at_s: float) -> None:
        if pod.ended_s == math.inf:
            self._cluster.end(pod, at_s)

    def _pod_killed(self, pod: Pod, at_s: float) -> None:
        self._progress(pod, at_s)
        assert pod.gateway is not None
        assert pod.replica is not None
        pod.gateway.remove(pod)
        pod.due_s = math.inf
        for call in pod.replica.present():
            assert isinstance(call, Call)
            pod.gateway.ended(pod, call)
            self._end(call, at_s, Fate.KILLED)

    # What watches, and what decides.

    def _catch_up(self, at_s: float) -> None:
        for group in self._groups:
            for pod in tuple(group.pods):
                if pod.due_s != math.inf:
                    self._progress(pod, at_s)

    def _scrape(self, _: None, at_s: float) -> None:
        self._catch_up(at_s)
        observatory = self._observatory
        blind = {b.what for b in self._scenario.blindness if b.from_s <= at_s < b.to_s}
        chances = None
        if self._scenario.lost_scrapes:
            chances = _generator(self._seed, _SCRAPES, round(at_s / SCRAPE_PERIOD_S))
        observatory.scrape(at_s, blind, self._scenario.lost_scrapes, chances)
        observatory.offline_waiting = len(self._backlog.waiting)
        self._timeline.append(
            Moment(
                at_s,
                tuple(group.spec_replicas for group in self._groups),
                tuple(len(group.serving()) for group in self._groups),
                tuple(len(group.pods) for group in self._groups),
                observatory.value("arrivals_per_s", at_s) or 0.0,
                int(observatory.value("in_flight", at_s) or 0),
                int(observatory.value("waiting", at_s) or 0),
                self._gateway.queued,
                observatory.value("ttft_p90_1m_s", at_s),
            )
        )
        if self._backlog.waiting:
            self._feed(None, at_s)
        if self._on_time is not None:
            self._on_time(at_s)
        if at_s + SCRAPE_PERIOD_S < self._scenario.horizon_s:
            self._agenda.push(at_s + SCRAPE_PERIOD_S, self._scrape, None, SCRAPE)

    def _scale(self, _: None, at_s: float) -> None:
        fleet = [group.view() for group in self._groups]
        for name, count in self._scaler.act(at_s, fleet, self._observatory).items():
            group = self._by_name[name]
            why = ""
            if count != group.spec_replicas and isinstance(self._scaler, Explains):
                why = self._scaler.why(name)
            self._cluster.set_count(group, count, at_s, why)
        if at_s + self._scaler.period_s < self._scenario.horizon_s:
            self._agenda.push(at_s + self._scaler.period_s, self._scale, None, SCALE)

    def _close(self, _: None, at_s: float) -> None:
        """Write the bill; what is still present may end, under the counts that are."""
        self._catch_up(at_s)
        self._bills = [bill(group, at_s) for group in self._groups]
        # Who could not send until now does not send any more.
        self._held.clear()
