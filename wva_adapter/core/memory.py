"""The only past that decisions may look at: what was needed and published, and what replicas showed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from wva_adapter.core.arrivals import ArrivalHistory
from wva_adapter.core.capacity import Fit
from wva_adapter.core.fleet import LoadKey, VariantKey
from wva_adapter.core.owed import Owed
from wva_adapter.core.service_rate import Shape
from wva_adapter.core.snapshot import GatewayState, ReplicaSample, StartKind
from wva_adapter.core.strain import Strain
from wva_adapter.core.token_memory import TokenMemory


@dataclass(frozen=True, slots=True)
class Window:
    """The largest of the values seen in a span of time.

    Only values that can still become the largest are kept: each entry is larger than all that
    came after it, so the first one is the answer and a long window stays short.

    Attributes:
        entries: Unix times and values, times rising, values falling.
    """

    entries: tuple[tuple[float, float], ...] = ()

    def add(self, at_s: float, value: float, *, span_s: float) -> Window:
        """Return the window with one more value, without what is older than ``span_s``."""
        kept = [(t, v) for t, v in self.entries if v > value and at_s - t <= span_s]
        return Window((*kept, (at_s, value)))

    def largest(self, at_s: float, *, span_s: float) -> float | None:
        """Return the largest value of the last ``span_s`` seconds; ``None`` if there is none."""
        for added_s, value in self.entries:
            if at_s - added_s <= span_s:
                return value
        return None


@dataclass(frozen=True, slots=True)
class Setback:
    """A variant whose pods got no place.

    Attributes:
        at_s: Unix time at which that was noticed.
        wait_s: For how long nothing is added then; twice as long after each further try.
        blocked: How many of its pods are without a place now.
        why: What was found.
    """

    at_s: float
    wait_s: float
    blocked: int
    why: str

    def infeasible(self, at_s: float) -> str | None:
        """Return why nothing may be added now; ``None`` where a further try is due."""
        again_s = self.at_s + self.wait_s - at_s
        if self.blocked:
            return self.why
        return f"tried again in {again_s:.0f} s: {self.why}" if again_s > 0 else None


@dataclass(frozen=True, slots=True)
class Quiet:
    """For how long nobody asked a model for anything.

    Attributes:
        since_s: Unix time since when counters prove it; ``None`` where they do not.
        asked_at_s: Unix time at which a counter last told of a request; ``None`` if none did.
        arrivals_total: What the gateway's counter said last; ``None`` where there is none.
        woken: Whether the model was woken and no replica of it has served since.
    """

    since_s: float | None = None
    asked_at_s: float | None = None
    arrivals_total: float | None = None
    woken: bool = False


@dataclass(frozen=True, slots=True)
class Bill:
    """What a variant in shadow would have cost, and what it cost.

    Attributes:
        since_s: Unix time of the first count.
        at_s: Unix time of the latest one.
        desired: The count that was decided then.
        ran: The count that there was then.
        would_usd: What the decided counts would have cost so far.
        ran_usd: What those that there were cost so far.
    """

    since_s: float
    at_s: float
    desired: int
    ran: int
    would_usd: float = 0.0
    ran_usd: float = 0.0


class Start(NamedTuple):
    """One start of a replica that was seen to its end.

    Attributes:
        at_s: Unix time from which it served.
        took_s: Seconds from its pod's creation until then.
        kind: What it began with; ``None`` where nothing says.
    """

    at_s: float
    took_s: float
    kind: StartKind | None = None


@dataclass(frozen=True, slots=True)
class VariantMemory:
    """What is remembered of one variant.

    Attributes:
        published: Counts that were published for it.
        fit: What is known of a replica's speed; ``None`` before the variant was looked at.
        kv_cache_tokens: Size of a replica's KV cache; ``None`` before one told.
        starts: How replicas' pods started, in the order in which they became ready.
        unready: Replicas that served before and do not now, by their uid, or name where they have
            none: when they do again, they did not start.
        wakes_s: What engines that slept took to wake, in seconds, the latest last: no longer than
            from the last page that said they sleep.
        most: What guards know of published counts, and of the one before the first.
        fewest: The same negated: the largest of them is the fewest replicas.
        missing_since_s: Since when pods that its target asks for are not there; ``None`` while
            none are missing.
        setback: Why its pods got no place the last time; ``None`` if they did.
        hidden_cycles: In how many cycles on end a step up was hidden by its reader's tolerance.
        bill: What it would have cost in shadow; ``None`` where it is not in shadow.
    """

    published: Window = Window()
    fit: Fit | None = None
    kv_cache_tokens: float | None = None
    starts: tuple[Start, ...] = ()
    unready: tuple[str, ...] = ()
    wakes_s: tuple[float, ...] = ()
    most: Window = Window()
    fewest: Window = Window()
    missing_since_s: float | None = None
    setback: Setback | None = None
    hidden_cycles: int = 0
    bill: Bill | None = None


@dataclass(frozen=True, slots=True)
class ModelMemory:
    """What is remembered of one model, or of the part of it that one role does.

    Attributes:
        analysis: Which analysis the window belongs to: each has its own unit.
        kept: What its load had to keep, in the unit of that analysis.
        arrivals: Its requests per second, now and before.
        shape: How long its requests are.
        gateway: What its gateway reported last.
        tokens: What its replicas carry in tokens.
        quiet: For how long nobody asked for it.
        strain: How much less its replicas count for, since clients wait too long.
        owed: Its offline requests that are not done; ``None`` where there never were any.
    """

    analysis: str = ""
    kept: Window = Window()
    arrivals: ArrivalHistory = field(default_factory=ArrivalHistory)
    shape: Shape = field(default_factory=Shape)
    gateway: GatewayState | None = None
    tokens: TokenMemory = field(default_factory=TokenMemory)
    quiet: Quiet = Quiet()
    strain: Strain = field(default_factory=Strain)
    owed: Owed | None = None


class ReplicaMemory(NamedTuple):
    """What is remembered of one replica.

    Attributes:
        kv_cache_usage: Peaks of its shares, 0 to 1.
        queued_requests: Peaks of its queue.
        read_at_s: Unix time of the page that was added to the peaks last.
        page: The last page of it that was taken in.
        arrivals_per_s: Requests that came to it, as of that page; ``None`` before two pages.
        moved_at_s: Unix time at which it last served anything, or nothing waited.
        caught_up: Whether it had served all that may have waited for it when it became ready.
    """

    kv_cache_usage: Window = Window()
    queued_requests: Window = Window()
    read_at_s: float = float("-inf")
    page: ReplicaSample | None = None
    arrivals_per_s: float | None = None
    moved_at_s: float | None = None
    caught_up: bool = False


UNSEEN_VARIANT, UNSEEN_MODEL, UNSEEN_REPLICA = VariantMemory(), ModelMemory(), ReplicaMemory()
"""What is remembered of who was never seen before; made once, since it is asked for in each cycle."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Everything that outlives a cycle; a fresh one knows nothing.

    Attributes:
        replicas: By variant and name, those that were ready.
        prior_scale: By how much the times that are believed before anything was seen are off.
    """

    variants: Mapping[VariantKey, VariantMemory] = field(default_factory=dict)
    models: Mapping[LoadKey, ModelMemory] = field(default_factory=dict)
    replicas: Mapping[VariantKey, Mapping[str, ReplicaMemory]] = field(default_factory=dict)
    prior_scale: float = 1.0
