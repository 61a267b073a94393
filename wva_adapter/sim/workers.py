"""Runs side by side in processes: each scenario under each policy with each seed."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Event
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

from wva_adapter.errors import ConfigError
from wva_adapter.sim import files
from wva_adapter.sim.clients import Traffic
from wva_adapter.sim.contenders import contender
from wva_adapter.sim.fleet_files import read_fleet
from wva_adapter.sim.hardware import Hardware
from wva_adapter.sim.outcome import Outcome
from wva_adapter.sim.scenarios import Scenario, as_recorded, scenario
from wva_adapter.sim.world import run

_TOLD_EVERY_S = 60.0
_LOOK_S = 0.2
_NEARLY_POINTS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What a run changes of its scenarios; ``None`` leaves what they say.

    Attributes:
        trace: A CSV file whose arrivals replace the scenario's.
        fleet: A YAML file whose variants do.
    """

    trace: Path | None = None
    fleet: Path | None = None
    startup_s: float | None = None
    slo_ttft_s: float | None = None
    slo_itl_s: float | None = None
    timeout_s: float | None = None
    grace_s: float | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """One run.

    Attributes:
        prior_error: By how much the times that the adapter believes at first are off.
    """

    scenario: str
    policy: str
    seed: int
    changes: Changes = Changes()
    prior_error: float = 1.0


@dataclass(frozen=True, slots=True)
class Done:
    """One run and what it came to.

    Attributes:
        wall_s: Seconds that it took.
    """

    job: Job
    outcome: Outcome
    wall_s: float

    def document(self) -> dict[str, Any]:
        """Return it as one entry of the JSON document."""
        outcome = self.outcome
        return {
            "scenario": self.job.scenario,
            "policy": self.job.policy,
            "seed": self.job.seed,
            "requests": outcome.requests,
            "offline": outcome.offline,
            "offline_in_time": outcome.offline_in_time,
            "in_slo_pct": _number(outcome.in_slo_pct),
            "goodput_tokens_per_s": outcome.goodput_tokens_per_s,
            "failed_pct": _number(outcome.failed_pct),
            "killed": outcome.failures["killed"],
            "failures": dict(outcome.failures),
            "usd": outcome.usd,
            "kwh": outcome.kwh,
            "replica_hours": outcome.replica_hours,
            "mean_replicas": outcome.mean_replicas,
            "mean_ready": outcome.mean_ready,
            "turns_per_h": outcome.turns_per_h,
            "ttft_s": {name: _number(value) for name, value in outcome.ttft_s.items()},
            "hash": outcome.digest,
            "wall_s": self.wall_s,
        }


class _Library:
    def hardware(self, name: str) -> Hardware:
        return files.hardware(name)

    def conversation(self) -> Traffic:
        return files.conversation()


def staged(name: str, changes: Changes) -> Scenario:
    """Return a scenario with what a run changes of it.

    Raises:
        ConfigError: There is no such scenario, or what it is changed to cannot be.
    """
    try:
        found = scenario(name, _Library())
        if changes.trace is not None:
            found = as_recorded(found, files.read_trace(changes.trace))
        if changes.fleet is not None:
            found = replace(found, fleet=read_fleet(changes.fleet))
        if changes.startup_s is not None:
            found = found.with_startup_s(changes.startup_s)
        slo = found.slo
        if changes.slo_ttft_s is not None:
            slo = replace(slo, ttft_s=changes.slo_ttft_s)
        if changes.slo_itl_s is not None:
            slo = replace(slo, itl_s=changes.slo_itl_s)
        return replace(
            found,
            slo=slo,
            timeout_s=found.timeout_s if changes.timeout_s is None else changes.timeout_s,
            grace_s=found.grace_s if changes.grace_s is None else changes.grace_s,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None


def work(job: Job, on_time: Callable[[float], None] | None = None) -> Done:
    """Do one run."""
    begin_s = time.perf_counter()
    competes = contender(job.policy, prior_error=job.prior_error)
    setting = staged(job.scenario, job.changes)
    if competes.prepare is not None:
        setting = competes.prepare(setting, job.seed)
    outcomes = [
        run(
            setting,
            make,
            job.seed,
            when_saturated=competes.when_saturated,
            on_time=on_time if index == 0 else None,
        )
        for index, make in enumerate(competes.tries)
    ]
    best = max(outcome.in_slo_pct for outcome in outcomes)
    nearly = [o for o in outcomes if o.in_slo_pct >= best - _NEARLY_POINTS]
    return Done(job, nearly[-1], time.perf_counter() - begin_s)


class Progress:
    """What is told of runs while they go on.

    Attributes:
        model_s: Model seconds that all of them will take together.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        spans_s = {
            (job.scenario, job.changes): staged(job.scenario, job.changes).horizon_s for job in jobs
        }
        self.model_s = sum(spans_s[job.scenario, job.changes] for job in jobs)

    def passed(self, model_s: float) -> None:
        """Hear that so many more model seconds have passed in one of them."""

    def done(self, done: Done) -> None:
        """Hear of a run that is over."""


def check(jobs: Sequence[Job]) -> None:
    """Look up all that the runs name, so that nothing is refused after the first has begun.

    Raises:
        ConfigError: A scenario or a policy is wrong.
    """
    for job in jobs:
        staged(job.scenario, job.changes)
        contender(job.policy)


def work_all(jobs: Sequence[Job], progress: Progress, *, processes: int) -> list[Done]:
    """Do all runs; return those that were done, in the order of ``jobs``.

    Ctrl-C ends it early with what is done by then.
    """
    done: dict[Job, Done] = {}
    try:
        if processes == 1 or len(jobs) == 1:
            for job in jobs:
                done[job] = work(job, _Clock(progress.passed))
                progress.done(done[job])
        else:
            _work_in_processes(jobs, progress, processes, done)
    except KeyboardInterrupt:
        pass
    return [done[job] for job in jobs if job in done]


class _Stopped(Exception):
    """Raised in a worker whose result nobody waits for any more."""


class _Clock:
    """Tells how much time has passed, now and then, and stops a run that is to stop."""

    def __init__(self, tell: Callable[[float], None], stop: Event | None = None) -> None:
        self._tell = tell
        self._stop = stop
        self._told_s = 0.0

    def __call__(self, at_s: float) -> None:
        if at_s - self._told_s >= _TOLD_EVERY_S:
            if self._stop is not None and self._stop.is_set():
                raise _Stopped
            self._tell(at_s - self._told_s)
            self._told_s = at_s


_channel: list[tuple[SimpleQueue[float], Event]] = []
"""In a worker, where it tells of time and hears that it is to stop."""


def _begin_worker(ticks: SimpleQueue[float], stop: Event) -> None:
    _channel.append((ticks, stop))
    # Ctrl-C reaches the whole group; the parent decides what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _work(job: Job) -> Done:
    ticks, stop = _channel[0]
    return work(job, _Clock(ticks.put, stop))


def _work_in_processes(
    jobs: Sequence[Job], progress: Progress, processes: int, done: dict[Job, Done]
) -> None:
    context = get_context("spawn")
    ticks: SimpleQueue[float] = context.SimpleQueue()
    stop = context.Event()
    pool = ProcessPoolExecutor(
        min(processes, len(jobs)), context, initializer=_begin_worker, initargs=(ticks, stop)
    )
    try:
        waiting: dict[Future[Done], Job] = {pool.submit(_work, job): job for job in jobs}
        while waiting:
            with _interrupts_held_back():
                ended, _ = wait(waiting, timeout=_LOOK_S, return_when=FIRST_COMPLETED)
            while not ticks.empty():
                progress.passed(ticks.get())
            for future in ended:
                job = waiting.pop(future)
                done[job] = future.result()
                progress.done(done[job])
    finally:
        stop.set()
        # Those that just start still look for the channel and the event, which this process owns.
        pool.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Let Ctrl-C wait for the end of this: who waits for futures holds a lock of each for a moment.

    Interrupted then, it would keep them, and the pool could never end.
    """
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if ignored or current_thread() is not main_thread():
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


def _number(value: float) -> float | None:
    """Return what JSON has of a number: it knows no infinity."""
    return value if math.isfinite(value) else None
