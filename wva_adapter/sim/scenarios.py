"""The scenarios: fleets, what their clients send, and what they promise."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from wva_adapter.sim.clients import Kind, Traffic
from wva_adapter.sim.cluster import Deployed, RemovalOrder
from wva_adapter.sim.draws import Draw, bursts, copies, lognormal, normal, scheduled
from wva_adapter.sim.hardware import Hardware
from wva_adapter.sim.outcome import Slo
from wva_adapter.sim.router import Routing, WhenSaturated
from wva_adapter.sim.workload import arrivals, wave


class Library(Protocol):
    """What scenarios are made of and do not hold themselves."""

    def hardware(self, name: str) -> Hardware:
        """Return the hardware of this name."""
        ...

    def conversation(self) -> Traffic:
        """Return the hour of production arrivals that comes with the product."""
        ...


@dataclass(frozen=True, slots=True)
class Loss:
    """Nodes that go away with the pods on them.

    Attributes:
        variant: Whose pods they carry.
        share: How much of its ready pods is on them, rounded up.
        back_s: So long there is room only for the pods that are left; 0 where other nodes are free.
    """

    at_s: float
    variant: str
    share: float
    back_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Restart:
    """Engines that end and begin again in their pods, with empty counters.

    Attributes:
        variant: Whose pods they are in.
        share: How many of its ready pods, rounded up.
    """

    at_s: float
    variant: str
    share: float


@dataclass(frozen=True, slots=True)
class Blindness:
    """A while in which something cannot be scraped.

    Attributes:
        what: The gateway, or all engines.
    """

    from_s: float
    to_s: float
    what: Literal["gateway", "engines"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A fleet, its clients and its gateway; times are model seconds.

    Attributes:
        name: Its id.
        title: What it is, in a line.
        horizon_s: Until then requests come, and pods are billed.
        fleet: The variants of the one model that it serves.
        draw: Makes the requests.
        slo: What a request should get.
        grace_s: How long a pod that is removed may finish what it has.
        timeout_s: How long a client waits for its last token.
        concurrency: Most requests that clients have open at once; ``None`` for no bound.
        retries: How often a client sends again what was shed, killed, or found no endpoint.
        backoff_s: It waits so long before the first time, twice as long before the next, and so on,
            each time half to all of that.
        transfer_s: From the end of a prefill until its KV cache is where it is decoded.
        routing: How the gateway chooses.
        sticky_share: Share of the requests that go where their prefix has gone before.
        when_saturated: What the gateway does with endpoints that are.
        removal_order: Which ready pods go first.
        deregistration_lag_s: How long a pod that leaves still gets requests.
        gateway_tells: Whether the gateway reports arrivals and its queue.
        losses: What goes away, and when.
        restarts: What begins again in its place, and when.
        kinds: The classes of its requests, those that ``Traffic.kinds`` counts.
        batch_workers: Most offline requests that are in flight at once, while no endpoint has
            anything to do; fewer by the share to which the pool is saturated.
        blindness: What cannot be seen, and when.
        lost_scrapes: Share of the engines' pages that cannot be read, by chance.
    """

    name: str
    title: str
    horizon_s: float
    fleet: tuple[Deployed, ...]
    draw: Draw
    slo: Slo = field(default_factory=Slo)
    grace_s: float = 30.0
    timeout_s: float = 120.0
    concurrency: int | None = None
    retries: int = 0
    backoff_s: float = 1.0
    transfer_s: float = 0.0
    routing: Routing = "least-load"
    sticky_share: float = 0.0
    when_saturated: WhenSaturated = "pass"
    removal_order: RemovalOrder = "newest"
    deregistration_lag_s: float = 0.0
    gateway_tells: bool = True
    losses: tuple[Loss, ...] = ()
    restarts: tuple[Restart, ...] = ()
    kinds: tuple[Kind, ...] = (Kind(),)
    batch_workers: int = 32
    blindness: tuple[Blindness, ...] = ()
    lost_scrapes: float = 0.0

    def __post_init__(self) -> None:
        for name in ("horizon_s", "timeout_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{self.name}: {name} {getattr(self, name)}, want above 0")
        for name in ("grace_s", "deregistration_lag_s", "transfer_s"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{self.name}: {name} {getattr(self, name)}, want at least 0")
        for name in ("sticky_share", "lost_scrapes"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{self.name}: {name} {getattr(self, name)}, want 0 to 1")
        if not self.fleet:
            raise ValueError(f"{self.name}: no variants, want at least one")
        roles = {deployed.role for deployed in self.fleet}
        if roles not in ({"both"}, {"prefill", "decode"}):
            raise ValueError(
                f"{self.name}: roles {', '.join(sorted(roles))}, want prefill and decode, or both alone"
            )
        names = [deployed.name for deployed in self.fleet]
        wanted = [("takes nodes from", loss.variant) for loss in self.losses]
        wanted += [("restarts engines of", restart.variant) for restart in self.restarts]
        for does, variant in wanted:
            if variant not in names:
                raise ValueError(
                    f"{self.name}: it {does} variant {variant!r}, "
                    f"and the fleet has {', '.join(names)}"
                )

    def with_startup_s(self, startup_s: float) -> Scenario:
        """Return the scenario with pods that start so fast."""
        return replace(
            self, fleet=tuple(replace(deployed, startup_s=startup_s) for deployed in self.fleet)
        )


_CHAT = lognormal(1024, 256)
_SMALL_MODEL = normal((4096, 2048, 10, 8192), (1024, 512, 10, 2048))


def scenario(name: str, library: Library) -> Scenario:
    """Return the scenario of this id.

    Raises:
        ValueError: There is none; the message says which it may have been.
    """
    if name not in SCENARIOS:
        near = difflib.get_close_matches(name.upper(), [n.upper() for n in SCENARIOS], n=1)
        named = [n for n in SCENARIOS if n.upper() in near]
        hint = f"did you mean {named[0]}?" if named else f"known: {', '.join(SCENARIOS)}"
        raise ValueError(f"scenario {name!r}: unknown; {hint}")
    return SCENARIOS[name](library)


def _step(
    low: float, high: float, up_s: float, down_s: float, end_s: float
) -> list[tuple[float, float]]:
    return [(0, low), (up_s, low), (up_s, high), (down_s, high), (down_s, low), (end_s, low)]


def _stairs(rates: Sequence[float], each_s: Sequence[float]) -> list[tuple[float, float]]:
    schedule, at_s = [], 0.0
    for rate, span_s in zip(rates, each_s, strict=True):
        schedule += [(at_s, rate), (at_s + span_s, rate)]
        at_s += span_s
    return schedule


def _deployed(library: Library, hardware: str, name: str = "", **given: object) -> Deployed:
    of = library.hardware(hardware)
    price = given.pop("usd_per_h", of.usd_per_h)
    return Deployed(name=name or hardware.split("/")[1], hardware=of, usd_per_h=price, **given)  # type: ignore[arg-type]


_A100, _H100 = "llama3-8b/a100/tp1", "llama3-8b/h100/tp1"
_QWEN = "qwen3-0.6b/h100/tp1"


def _s1(library: Library) -> Scenario:
    return Scenario(
        name="S1",
        title="saturation: 4 to 40 requests/s at once",
        horizon_s=1800,
        fleet=(_deployed(library, _A100),),
        draw=scheduled(_step(4, 40, 300, 1200, 1800), _CHAT),
    )


def _s1b(library: Library) -> Scenario:
    return replace(
        _s1(library),
        name="S1b",
        title="a mild step: 4 to 16 requests/s",
        draw=scheduled(_step(4, 16, 300, 1200, 1800), _CHAT),
    )


def _s1c(library: Library) -> Scenario:
    return Scenario(
        name="S1c",
        title="a step on a small model: 1.5 to 6 requests/s",
        horizon_s=2100,
        fleet=(_deployed(library, _QWEN, start_replicas=1, max_replicas=10),),
        draw=scheduled(_step(1.5, 6, 300, 1500, 2100), _SMALL_MODEL),
    )


def _ramp(library: Library, name: str, title: str, fleet: tuple[Deployed, ...]) -> Scenario:
    schedule = [(0.0, 2.0), (1200.0, 40.0), (1800.0, 40.0), (2400.0, 2.0)]
    return Scenario(
        name=name, title=title, horizon_s=2400, fleet=fleet, draw=scheduled(schedule, _CHAT)
    )


def _s2(library: Library) -> Scenario:
    fleet = tuple(
        _deployed(library, hardware, start_replicas=1, max_replicas=8)
        for hardware in (_A100, _H100)
    )
    return _ramp(library, "S2", "a ramp on A100s and H100s, at list prices", fleet)


def _s2p(library: Library) -> Scenario:
    fleet = tuple(
        _deployed(library, hardware, start_replicas=1, max_replicas=8, usd_per_h=price)
        for hardware, price in ((_A100, 1.20), (_H100, 3.90))
    )
    return _ramp(library, "S2p", "a ramp where A100s are cheaper per capacity too", fleet)


def _s2_a100(library: Library) -> Scenario:
    fleet = (_deployed(library, _A100, max_replicas=16),)
    return _ramp(library, "S2-A100", "the ramp on A100s alone", fleet)


def _s2_h100(library: Library) -> Scenario:
    fleet = (_deployed(library, _H100, max_replicas=16),)
    return _ramp(library, "S2-H100", "the ramp on H100s alone", fleet)


def _s3(library: Library) -> Scenario:
    return Scenario(
        name="S3",
        title="bursts: 5, 20 and 45 requests/s by chance",
        horizon_s=3600,
        fleet=(_deployed(library, _A100),),
        draw=bursts([(5, 240), (20, 180), (45, 120)], 3600, _CHAT),
    )


def _s4(library: Library) -> Scenario:
    return Scenario(
        name="S4",
        title="drops: stairs on a small model, 512 clients, no grace",
        horizon_s=4800,
        fleet=(_deployed(library, _QWEN, start_replicas=2, startup_s=60.0),),
        draw=scheduled(_stairs([2, 3, 5, 6], [1200] * 4), _SMALL_MODEL),
        grace_s=0.0,
        concurrency=512,
    )


def _s4b(library: Library) -> Scenario:
    return Scenario(
        name="S4b",
        title="a square wave of long requests: 2 and 8 requests/s",
        horizon_s=5400,
        fleet=(_deployed(library, _H100, max_replicas=12),),
        draw=scheduled(_stairs([2, 8] * 4 + [2], [600] * 9), lognormal(4096, 1024)),
        timeout_s=300.0,
    )


def _s5(library: Library) -> Scenario:
    trace = library.conversation()
    span_s = float(trace.arrived_s[-1])
    return Scenario(
        name="S5",
        title="production arrivals: six copies of a conversation trace",
        horizon_s=span_s,
        fleet=(_deployed(library, _A100, start_replicas=6),),
        draw=copies(trace, 6, span_s),
    )


def _s6(library: Library) -> Scenario:
    return Scenario(
        name="S6",
        title="two days in two hours: 4 to 40 requests/s",
        horizon_s=7200,
        fleet=(_deployed(library, _A100),),
        draw=scheduled(wave(22, 18, 3600, 7200), _CHAT),
    )


def _sa(library: Library) -> Scenario:
    rates, spans = [2, 4, 6, 8, 10, 4, 1], [330, 360, 360, 360, 360, 360, 300]
    return Scenario(
        name="SA",
        title="stairs on a 32B model, as published for real H100s",
        horizon_s=sum(spans),
        fleet=(
            _deployed(
                library,
                "qwen3-32b/h100/tp2",
                start_replicas=3,
                min_replicas=3,
                max_replicas=8,
                startup_s=100.0,
            ),
        ),
        draw=scheduled(
            _stairs(rates, spans), normal((4000, 300, 3500, 4500), (1000, 80, 500, 1500))
        ),
        slo=Slo(ttft_s=3.0, itl_s=0.100),
    )


def _mix(library: Library) -> Scenario:
    short, long = lognormal(512, 128), lognormal(8192, 256)

    def half_of_each(
        count: int, generator: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        is_long = generator.random(count) < 0.5
        few, many = short(count, generator), long(count, generator)
        return np.where(is_long, many[0], few[0]), np.where(is_long, many[1], few[1])

    return replace(
        _s1(library),
        name="MIX",
        title="two kinds of requests: half 512/128 tokens, half 8192/256",
        draw=scheduled(_step(1, 4, 300, 1200, 1800), half_of_each),
    )


def _shift(library: Library) -> Scenario:
    def draw(times: np.random.Generator, sizes: np.random.Generator) -> Traffic:
        traffic = scheduled([(0, 10), (3600, 10)], _CHAT)(times, sizes)
        doubled = np.where(traffic.arrived_s >= 1800, 2, 1)
        return replace(traffic, prompt_tokens=traffic.prompt_tokens * doubled)

    return replace(
        _s1(library),
        name="SHIFT",
        title="prompts become twice as long at half time, at 10 requests/s",
        horizon_s=3600,
        draw=draw,
    )


def _two(library: Library) -> Scenario:
    fleet = tuple(
        _deployed(library, _A100, name, start_replicas=1, max_replicas=10)
        for name in ("a100-blue", "a100-green")
    )
    return replace(
        _s1b(library), name="TWO", title="the mild step, two equal variants scaled", fleet=fleet
    )


def _loop(library: Library) -> Scenario:
    clients, most = 256, 100_000

    def draw(times: np.random.Generator, sizes: np.random.Generator) -> Traffic:
        return Traffic(np.zeros(most), *_CHAT(most, sizes))

    return replace(
        _s1(library),
        name="LOOP",
        title=f"{clients} clients, each sending when it has been answered",
        draw=draw,
        concurrency=clients,
    )


def _lead(startup_s: float) -> Callable[[Library], Scenario]:
    return lambda library: replace(
        _s1(library).with_startup_s(startup_s),
        name=f"LEAD-{startup_s:g}",
        title=f"the step of S1, pods start in {startup_s:g} s",
    )


def _node(library: Library) -> Scenario:
    return replace(
        _s6(library),
        name="NODE",
        title="a node is lost at the peak; another comes after 5 minutes",
        horizon_s=3600,
        draw=scheduled(wave(22, 18, 3600, 3600), _CHAT),
        losses=(Loss(1800, "a100", 0.4, 300),),
    )


def _restart(library: Library) -> Scenario:
    return replace(
        _s6(library),
        name="RESTART",
        title="a third of the engines crash at the peak and begin again in their pods",
        horizon_s=3600,
        draw=scheduled(wave(22, 18, 3600, 3600), _CHAT),
        restarts=(Restart(1800, "a100", 1 / 3),),
    )


def _batch(library: Library) -> Scenario:
    online, count = _s6(library), 20_000

    def draw(times: np.random.Generator, sizes: np.random.Generator) -> Traffic:
        # Drawn first, so that they are the very requests of S6.
        traffic = online.draw(times, sizes)
        offline = _CHAT(count, sizes)
        return Traffic(
            np.concatenate([np.zeros(count), traffic.arrived_s]),
            np.concatenate([offline[0], traffic.prompt_tokens]),
            np.concatenate([offline[1], traffic.output_tokens]),
            np.repeat([1, 0], [count, len(traffic.arrived_s)]),
        )

    return replace(
        online,
        name="BATCH",
        title="beside S6, 20,000 offline requests that are due after two hours",
        draw=draw,
        kinds=(Kind(), Kind(due_s=online.horizon_s)),
    )


def _prefix(library: Library) -> Scenario:
    def draw(times: np.random.Generator, sizes: np.random.Generator) -> Traffic:
        arrived_s = arrivals(_step(2, 8, 300, 1200, 1800), times)
        count = len(arrived_s)
        is_known = (sizes.random(count) < 0.5).astype(np.int64)
        return Traffic(arrived_s, *lognormal(4096, 256)(count, sizes), is_known)

    return replace(
        _s1(library),
        name="PREFIX",
        title="a step of long prompts, of which half have 80 % in the prefix cache",
        draw=draw,
        kinds=(Kind(), Kind(hit_share=0.8)),
    )


def _pd(library: Library) -> Scenario:
    fleet = (
        _deployed(library, _H100, "h100-prefill", start_replicas=1, max_replicas=8, role="prefill"),
        _deployed(library, _A100, "a100-decode", start_replicas=1, max_replicas=16, role="decode"),
    )
    return replace(
        _s1b(library),
        name="PD",
        title="a step of long prompts, H100s prefill and A100s decode",
        fleet=fleet,
        draw=scheduled(_step(2, 8, 300, 1200, 1800), lognormal(4096, 256)),
        # 4,096 tokens of 128 KiB each, at 25 GB/s.
        transfer_s=0.02,
    )


def _spot(library: Library) -> Scenario:
    return replace(
        _s2(library),
        name="SPOT",
        title="a third of the cheaper variant is reclaimed at the peak",
        losses=(Loss(1500, "h100", 1 / 3),),
    )


def _zero(library: Library) -> Scenario:
    fleet = (_deployed(library, _A100, min_replicas=0, start_replicas=0),)
    return replace(
        _s1(library),
        name="ZERO",
        title="from zero, the gateway holding requests back: 2/s from 60 s on",
        fleet=fleet,
        draw=scheduled([(60, 2), (1800, 2)], _CHAT),
        timeout_s=300,
        when_saturated="queue",
    )


def _blind(what: Literal["gateway", "engines"]) -> Callable[[Library], Scenario]:
    return lambda library: replace(
        _s6(library),
        name=f"BLIND-{what}",
        title=f"the {what} cannot be scraped for 10 minutes at the peak",
        horizon_s=3600,
        draw=scheduled(wave(22, 18, 3600, 3600), _CHAT),
        blindness=(Blindness(1500, 2100, what),),
    )


def _70b(library: Library) -> Scenario:
    fleet = (
        _deployed(library, "llama2-70b/a100/tp4", start_replicas=1, max_replicas=8),
        _deployed(library, "llama2-70b/h100/tp4", start_replicas=1, max_replicas=8),
    )
    return replace(
        _s1b(library),
        name="70B",
        title="a mild step on a 70B model: 2 to 8 requests/s",
        fleet=fleet,
        draw=scheduled(_step(2, 8, 300, 1200, 1800), _CHAT),
    )


SCENARIOS: Mapping[str, Callable[[Library], Scenario]] = {
    "S1": _s1,
    "S1b": _s1b,
    "S1c": _s1c,
    "S2": _s2,
    "S2-A100": _s2_a100,
    "S2-H100": _s2_h100,
    "S2p": _s2p,
    "S3": _s3,
    "S4": _s4,
    "S4b": _s4b,
    "S5": _s5,
    "S6": _s6,
    "SA": _sa,
    "MIX": _mix,
    "SHIFT": _shift,
    "BLIND-gateway": _blind("gateway"),
    "BLIND-engines": _blind("engines"),
    "TWO": _two,
    "LOOP": _loop,
    "LEAD-7": _lead(7),
    "LEAD-96": _lead(96),
    "LEAD-158": _lead(158),
    "LEAD-300": _lead(300),
    "NODE": _node,
    "SPOT": _spot,
    "RESTART": _restart,
    "BATCH": _batch,
    "PREFIX": _prefix,
    "PD": _pd,
    "ZERO": _zero,
    "70B": _70b,
}
"""Every scenario by its id."""


def as_recorded(scenario: Scenario, traffic: Traffic) -> Scenario:
    """Return the scenario with these requests in place of its own, until the last has come."""
    last_s = float(traffic.arrived_s[-1])
    return replace(
        scenario,
        horizon_s=max(1.0, last_s),
        draw=lambda times, sizes: traffic,
        kinds=scenario.kinds[:1],
    )
