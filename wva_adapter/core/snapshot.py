"""What was seen of the fleet at one moment; ``None`` is unknown, 0 is zero."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Literal

from wva_adapter.core.fleet import NodeState, Variant, VariantKey
from wva_adapter.core.guards import Guard
from wva_adapter.core.inventory import Inventory, ResourceQuota

LARGEST = 1e15
"""No counter, time or count that anything reports honestly is larger."""


def _check(holder: object, name: str, quantities: Iterable[str], *, lowest: float = 0.0) -> None:
    for quantity in quantities:
        value = getattr(holder, quantity)
        # Written so that NaN, which compares false with everything, is refused too.
        if value is not None and not lowest <= value <= LARGEST:
            wanted = f"want a number from {lowest:g} to {LARGEST:g}"
            raise ValueError(f"{name}: {quantity} {value}, {wanted}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSample:
    """What one replica reported in one scrape.

    ``None`` means the engine did not report the quantity; 0 means it reported zero. Fields that
    end in ``_total``, ``_sum``, ``_sum_s`` or ``_count`` are counters since the engine started.

    Attributes:
        replica: Pod name, or the replica's own name in a static file.
        at_s: Unix time of the scrape.
        awake: Whether the engine holds its weights; ``None`` where it does not say.
        kv_cache_usage: Share of KV-cache blocks in use, 0 to 1, weighted over its ranks.
        kv_cache_tokens: KV-cache size in tokens, all ranks.
        running_requests: Requests in the running batch.
        queued_requests: Requests admitted by the engine and waiting for capacity.
        deferred_requests: Requests that wait for something else (a KV transfer, a LoRA slot).
        prompt_tokens_total: Prompt tokens of requests whose prefill ended.
        computed_prompt_tokens_total: Those of them that no cache held.
        generation_tokens_total: Tokens generated.
        successes_total: Requests that ended by stop, length or repetition.
        aborts_total: Requests that ended by abort or error.
        preemptions_total: Requests thrown back into the queue for lack of memory.
        rejections_total: Requests refused at the engine's door.
        ttft_sum_s: Sum of times to first token.
        ttft_count: Requests that got a first token.
        itl_sum_s: Sum of inter-token latencies.
        itl_count: Inter-token gaps observed.
        prefill_sum_s: Sum of the times between a request's place in the batch and its first token.
        input_tokens_sum: Prompt tokens of finished requests.
        input_tokens_count: Finished requests, as the prompt histogram counts them.
        output_tokens_sum: Generated tokens of finished requests.
        output_tokens_count: Finished requests, as the generation histogram counts them.
        mean_input_tokens: Prompt tokens per request over the engine's recent past.
        model_names: Names under which the engine serves, as its page has them.

    Raises:
        ValueError: A quantity is negative, not a number, or larger than any engine's.
    """

    replica: str
    at_s: float
    awake: bool | None = None
    kv_cache_usage: float | None = None
    kv_cache_tokens: int | None = None
    running_requests: float | None = None
    queued_requests: float | None = None
    deferred_requests: float | None = None
    prompt_tokens_total: float | None = None
    computed_prompt_tokens_total: float | None = None
    generation_tokens_total: float | None = None
    successes_total: float | None = None
    aborts_total: float | None = None
    preemptions_total: float | None = None
    rejections_total: float | None = None
    ttft_sum_s: float | None = None
    ttft_count: float | None = None
    itl_sum_s: float | None = None
    itl_count: float | None = None
    prefill_sum_s: float | None = None
    input_tokens_sum: float | None = None
    input_tokens_count: float | None = None
    output_tokens_sum: float | None = None
    output_tokens_count: float | None = None
    mean_input_tokens: float | None = None
    model_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check(self, f"replica {self.replica}", _QUANTITIES)

    @property
    def unused(self) -> bool:
        """Whether the engine never served: its page may lack gauges then, and it is idle.

        A data-parallel engine shows everything but the gauges before the first request, with its
        counters at zero; a V0 one shows nothing but its configuration, which names no model. A
        page whose counters are missing or not numbers in any other way says nothing of the kind.
        """
        if self.generation_tokens_total is None and self.prompt_tokens_total is None:
            return self.kv_cache_tokens is not None and not self.model_names
        return self.generation_tokens_total == 0 and self.prompt_tokens_total == 0


_QUANTITIES = tuple(
    field.name
    for field in fields(ReplicaSample)
    if field.name not in ("replica", "awake", "model_names")
)


class Phase(Enum):
    """Where a replica is in its life."""

    STARTING = "starting"
    READY = "ready"
    TERMINATING = "terminating"


StartKind = Literal["cold", "warm"]
"""What a pod begins with: an image that must be pulled first, or one that its node has."""

PULLED_AFTER_S = 20.0
"""A container whose image is there begins within seconds of its pod's having a node; those that
serve models have images of many gigabytes, which take minutes to pull."""


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """One replica that exists, with the last page that was read from it.

    Attributes:
        name: Pod name.
        phase: Starting, ready, or terminating; only ready ones serve.
        created_at_s: Unix time of its creation; ``None`` where nothing says.
        ready_at_s: Unix time from which it serves; ``None`` where nothing says.
        sample: Its last page, however old; ``None`` if none was ever read.
        node: The node that it runs on; ``None`` where it has none yet, or nothing says.
        unscheduled: Why it has no node, as the scheduler puts it: ``Unschedulable``,
            ``SchedulingGated``; ``None`` where nothing says.
        unscheduled_since_s: Unix time since when it has none; ``None`` where nothing says.
        problem: Why its latest scrape brought nothing; ``None`` if it brought a page.
        uid: Which of all pods that ever were it is; ``None`` where nothing says.
        deletion_cost: The lower, the sooner its controller removes it
            (``controller.kubernetes.io/pod-deletion-cost``); ``None`` where nothing says.
        ordinal: Its place in a StatefulSet, whose highest goes first; ``None`` in any other.
        pulling_since_s: Unix time from which its image was pulled, if it was: it had a node, and
            all that runs before its engine had ended; ``None`` where nothing says.
        began_at_s: Unix time at which its engine's container began, for the first time; ``None``
            where it has not yet, or nothing says.
        in_flight_requests: Requests that gateways have sent to it and that are not answered yet;
            ``None`` where no gateway tells.
        in_flight_tokens: Tokens that those have before them: of prompts, as far as no cache holds
            them, and of answers where a gateway adds what it expects; ``None`` where none tells.
    """

    name: str
    phase: Phase = Phase.READY
    created_at_s: float | None = None
    ready_at_s: float | None = None
    sample: ReplicaSample | None = None
    problem: str | None = None
    node: str | None = None
    unscheduled: str | None = None
    unscheduled_since_s: float | None = None
    uid: str | None = None
    deletion_cost: int | None = None
    ordinal: int | None = None
    pulling_since_s: float | None = None
    began_at_s: float | None = None
    in_flight_requests: float | None = None
    in_flight_tokens: float | None = None

    def __post_init__(self) -> None:
        times = (
            *("created_at_s", "ready_at_s", "unscheduled_since_s"),
            *("pulling_since_s", "began_at_s"),
        )
        _check(self, f"replica {self.name}", times, lowest=-LARGEST)
        _check(self, f"replica {self.name}", ("in_flight_requests", "in_flight_tokens"))

    @property
    def gated(self) -> bool:
        """Whether something else than the scheduler (Kueue) must let it go first."""
        return self.unscheduled == "SchedulingGated"

    def start_kind(self, at_s: float) -> StartKind | None:
        """Return what its pod began with, as far as that shows at this time."""
        since_s, began_at_s = self.pulling_since_s, self.began_at_s
        if since_s is None:
            return None
        if (at_s if began_at_s is None else began_at_s) - since_s > PULLED_AFTER_S:
            return "cold"
        return None if began_at_s is None else "warm"


class _Kept:
    """A place for what is worked out once from values that never change."""

    __slots__ = ("_ready",)
    _ready: tuple[ReplicaState, ...]


@dataclass(frozen=True, slots=True)
class VariantState(_Kept):
    """A variant as it stands.

    Attributes:
        spec_replicas: The count its scale target asks for; ``None`` if that could not be read.
        status_replicas: The count its scale target reports; ``None`` if that could not be read.
        replicas: Every replica that exists, terminating ones too; names are unique.
        problem: What is wrong with the variant as a whole; ``None`` where nothing is.
        refused: Why pods that its target asks for are not made (a quota); ``None`` where they are.
    """

    variant: Variant
    spec_replicas: int | None
    status_replicas: int | None = None
    replicas: tuple[ReplicaState, ...] = ()
    problem: str | None = None
    refused: str | None = None

    def __post_init__(self) -> None:
        _check(self, str(self.variant.key), ("spec_replicas", "status_replicas"))

    @property
    def ready(self) -> tuple[ReplicaState, ...]:
        """The replicas that serve."""
        try:
            return self._ready
        except AttributeError:
            serves = Phase.READY
            ready = tuple([r for r in self.replicas if r.phase is serves])
            object.__setattr__(self, "_ready", ready)
            return ready

    @property
    def missing(self) -> int:
        """How many replicas that its target asks for do not exist, those that terminate aside."""
        there = len(self.replicas)
        if len(self.ready) < there:
            there = sum(replica.phase is not Phase.TERMINATING for replica in self.replicas)
        return max(0, (self.spec_replicas or 0) - there)

    @property
    def starting(self) -> int:
        """How many replicas are on their way: asked for and not ready, whether or not a pod exists."""
        return 0 if self.spec_replicas is None else max(0, self.spec_replicas - len(self.ready))


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayState:
    """What the gateway in front of one model reports; ``None`` is unknown.

    Attributes:
        at_s: Unix time of the report.
        queued_requests: Requests that it holds back, before any replica.
        queued_bytes: Their size.
        arrivals_total: Requests that came for the model, a counter.
        offline_queued_requests: Those held back that nobody waits for, of a negative priority.
        offline_arrivals_total: Those that came of them.
    """

    namespace: str
    model_id: str
    at_s: float
    queued_requests: float | None = None
    queued_bytes: float | None = None
    arrivals_total: float | None = None
    offline_queued_requests: float | None = None
    offline_arrivals_total: float | None = None

    def __post_init__(self) -> None:
        name = f"gateway of {self.namespace}/{self.model_id}"
        _check(self, name, ("at_s",), lowest=-LARGEST)
        counts = ("queued_requests", "queued_bytes", "arrivals_total")
        _check(self, name, counts)
        _check(self, name, ("offline_queued_requests", "offline_arrivals_total"))


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The fleet at one moment.

    Attributes:
        at_s: Unix time at which it was put together; the only "now" the core knows.
        variants: One state per variant, keys unique. Their order carries no meaning.
        gateways: What gateways report, at most one per namespace and model.
        nodes: The nodes with accelerators, names unique; ``None`` where they could not be read.
        guards: What the operator holds counts by now; calendars are already read.
        inventory: What the operator says there is to put replicas on.
        proposal: Counts that were found beside the cycle for an earlier snapshot, where
            accelerators are scarce; ``None`` without one.
        quotas: What ResourceQuota objects bound in the namespaces of the variants; ``None`` where
            none could be read.

    Raises:
        ValueError: Two variants have one name, or the time is none.
    """

    at_s: float
    variants: tuple[VariantState, ...] = ()
    gateways: tuple[GatewayState, ...] = ()
    nodes: tuple[NodeState, ...] | None = None
    guards: tuple[Guard, ...] = ()
    inventory: Inventory = field(default_factory=Inventory)
    proposal: Mapping[VariantKey, int] | None = None
    quotas: tuple[ResourceQuota, ...] | None = None

    def __post_init__(self) -> None:
        _check(self, "snapshot", ("at_s",))
        seen = set()
        for state in self.variants:
            if state.variant.key in seen:
                raise ValueError(f"{state.variant.key}: two variants have this name")
            seen.add(state.variant.key)
