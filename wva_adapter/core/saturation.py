"""How full the replicas of a model are: the paper's headroom and fragmentation tests.

References:
    "WVA: A Global Optimization Control Plane for llm-d", arXiv 2603.09730: proactive scale-up by
    headroom, fragmentation-aware scale-down.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wva_adapter.core.fleet import VariantKey
from wva_adapter.core.leads import on_their_way
from wva_adapter.core.load import ModelLoad
from wva_adapter.core.memory import UNSEEN_REPLICA, UNSEEN_VARIANT, ReplicaMemory, VariantMemory
from wva_adapter.core.policy import Policy
from wva_adapter.core.snapshot import ReplicaSample, ReplicaState, VariantState


@dataclass(frozen=True, slots=True)
class Fill:
    """How full one replica is: the peaks of its recent past.

    Attributes:
        kv_cache_usage: Share, 0 to 1.
        queued_requests: Requests that wait for capacity.
    """

    kv_cache_usage: float
    queued_requests: float

    def saturated(self, policy: Policy) -> bool:
        """Return whether the replica has no room for more requests."""
        return (
            self.kv_cache_usage >= policy.kv_cache_threshold
            or self.queued_requests >= policy.queue_length_threshold
        )

    def replicas(self, policy: Policy) -> float:
        """Return how many replicas at their thresholds this load fills."""
        return max(
            self.kv_cache_usage / policy.kv_cache_threshold,
            self.queued_requests / policy.queue_length_threshold,
        )


def read_fill(sample: ReplicaSample | None) -> Fill | None:
    """Return how full a page says the replica is; ``None`` where it does not say."""
    if sample is None:
        return None
    if sample.kv_cache_usage is None or sample.queued_requests is None:
        return Fill(0.0, 0.0) if sample.unused else None
    return Fill(sample.kv_cache_usage, sample.queued_requests)


def blind_reason(replica: ReplicaState, at_s: float, policy: Policy) -> str | None:
    """Return why a ready replica's load is not known now; ``None`` where it is."""
    sample = replica.sample
    if sample is None:
        return replica.problem or "no page read yet"
    age_s = at_s - sample.at_s
    if replica.problem is not None:
        return f"{replica.problem}, last page {age_s:.0f} s old"
    if age_s > policy.stale_after_s:
        return f"last page {age_s:.0f} s old, at most {policy.stale_after_s:g} s count"
    if (sample.kv_cache_usage is None or sample.queued_requests is None) and not sample.unused:
        return "its page has no KV-cache usage or no queue"
    if policy.analysis == "tokens" and not sample.kv_cache_tokens and not sample.unused:
        return "its page has no KV-cache size"
    return None


def crosses(before: ReplicaSample | None, now: ReplicaSample, policy: Policy) -> bool:
    """Return whether a replica became saturated between two pages: a reason to decide at once."""
    fill = read_fill(now)
    if fill is None or not fill.saturated(policy):
        return False
    earlier = read_fill(before)
    return earlier is None or not earlier.saturated(policy)


def remember_peaks(
    states: Sequence[VariantState],
    peaks: Mapping[VariantKey, Mapping[str, ReplicaMemory]],
    policy: Policy,
) -> Mapping[VariantKey, Mapping[str, ReplicaMemory]]:
    """Return the peaks with the pages of ``states`` added, and without replicas that are gone."""
    remembered = {}
    for state in states:
        key = state.variant.key
        past = peaks.get(key, {})
        now = remembered[key] = dict[str, ReplicaMemory]()
        for replica in state.ready:
            memory = past.get(replica.name, UNSEEN_REPLICA)
            fill, sample = read_fill(replica.sample), replica.sample
            if fill is not None and sample is not None and sample.at_s > memory.read_at_s:
                span_s = policy.peak_window_s
                memory = ReplicaMemory(
                    memory.kv_cache_usage.add(sample.at_s, fill.kv_cache_usage, span_s=span_s),
                    memory.queued_requests.add(sample.at_s, fill.queued_requests, span_s=span_s),
                    sample.at_s,
                    memory.page,
                    memory.arrivals_per_s,
                    memory.moved_at_s,
                    memory.caught_up,
                )
            now[replica.name] = memory
    return remembered


def analyze_saturation(
    states: Sequence[VariantState],
    peaks: Mapping[VariantKey, Mapping[str, ReplicaMemory]],
    at_s: float,
    policy: Policy,
    variants: Mapping[VariantKey, VariantMemory] | None = None,
) -> ModelLoad:
    """Return the load of one model, in replicas.

    *Up*: over the replicas that are not saturated, the mean spare KV cache or the mean spare
    queue is below its trigger. Replicas on their way count as empty ones, so what is ordered is
    not ordered twice. *Down*: the load of all replicas, saturated ones too, spread over fewer of
    the unsaturated ones, leaves both spares at their triggers or above.

    The analysis does not know what one accelerator does more than another: each replica counts
    as one unit of capacity, so the cheapest variant per unit is the cheapest by price.

    Args:
        states: The variants of one model, at least one.
        peaks: What ``remember_peaks`` returned for these states.
        at_s: Unix time now.
        policy: Thresholds and triggers.
        variants: What is remembered of how long their replicas take to start.
    """
    seen: list[Fill] = []
    unseen: list[Fill] = []
    asleep = 0
    # A replica that never told its load may be full: that is what it counts for when room is sought.
    full = Fill(policy.kv_cache_threshold, policy.queue_length_threshold)
    for state in states:
        for replica in state.ready:
            if replica.sample is not None and replica.sample.awake is False:
                asleep += 1
            elif blind_reason(replica, at_s, policy) is None:
                seen.append(_peak(peaks[state.variant.key][replica.name], policy))
            else:
                unseen.append(read_fill(replica.sample) or full)
    # What is ready and was not asked yet has served nothing so far: it is on its way, too.
    fresh = sum(r.sample is None and r.problem is None for state in states for r in state.ready)
    past = variants or {}
    starting = fresh + math.fsum(
        on_their_way(state, past.get(state.variant.key, UNSEEN_VARIANT), at_s, policy)
        for state in states
    )
    roomy = [fill for fill in seen if not fill.saturated(policy)]
    shortage, up_words = _headroom(roomy, len(seen), starting, policy)
    surplus, down_words = (0, "") if shortage else _removable(seen + unseen, len(roomy), policy)
    notes = [up_words] if shortage else [up_words, down_words]
    if unseen:
        notes.append(f"{len(unseen)} of {len(seen) + len(unseen)} ready replicas unseen")
    if asleep:
        notes.append(f"{asleep} asleep")
    described = [state.variant for state in states]
    present = float(len(seen) + len(unseen) - fresh + starting)
    return ModelLoad(
        namespace=described[0].key.namespace,
        model_id=described[0].model_id,
        role=described[0].role,
        analysis="saturation",
        unit="replicas",
        demand=sum(fill.replicas(policy) for fill in seen + unseen) if seen else None,
        need=present + (shortage or -surplus),
        keep=present - surplus,
        present=present,
        replicas=sum(state.spec_replicas or 0 for state in states),
        capacity={variant.key: 1.0 for variant in described},
        step=1.0,
        window_s=policy.window_s(),
        binding="; ".join(notes),
    )


def _peak(memory: ReplicaMemory, policy: Policy) -> Fill:
    # The window ends at the last page, not now: however short it is, that page is in it.
    at_s, span_s = memory.read_at_s, policy.peak_window_s
    return Fill(
        memory.kv_cache_usage.largest(at_s, span_s=span_s) or 0.0,
        memory.queued_requests.largest(at_s, span_s=span_s) or 0.0,
    )


def _headroom(roomy: Sequence[Fill], seen: int, starting: float, policy: Policy) -> tuple[int, str]:
    """Return the replicas to add, 0 or 1, and the test in words."""
    if seen == 0:
        return 0, "no replica seen: nothing says that more are needed"
    counted = len(roomy) + starting
    if counted <= 0:
        return 1, (
            f"nothing spare: all {seen} seen are saturated (KV cache at "
            f"{_percent(policy.kv_cache_threshold)} or {policy.queue_length_threshold:g} queued)"
        )
    used_kv = math.fsum(fill.kv_cache_usage for fill in roomy)
    used_queue = math.fsum(fill.queued_requests for fill in roomy)
    spare_kv = policy.kv_cache_threshold - used_kv / counted
    spare_queue = policy.queue_length_threshold - used_queue / counted
    over = f"over {len(roomy)} unsaturated of {seen} seen" + (
        f" and {starting:.3g} starting" if starting else ""
    )
    failed = []
    if spare_kv < policy.kv_spare_trigger:
        failed.append(f"spare KV cache {_percent(spare_kv)} < {_percent(policy.kv_spare_trigger)}")
    if spare_queue < policy.queue_spare_trigger:
        failed.append(f"spare queue {spare_queue:.1f} < {policy.queue_spare_trigger:g}")
    if failed:
        return 1, f"{' and '.join(failed)} {over}"
    return 0, f"spare KV cache {_percent(spare_kv)} and queue {spare_queue:.1f} suffice {over}"


def _removable(fills: Sequence[Fill], unsaturated: int, policy: Policy) -> tuple[int, str]:
    """Return how many replicas could go, and the test in words."""
    if unsaturated < 2:
        return 0, f"{unsaturated} unsaturated, so none can go"
    kv = sum(fill.kv_cache_usage for fill in fills)
    queue = sum(fill.queued_requests for fill in fills)

    def fits(remaining: int) -> bool:
        return (
            policy.kv_cache_threshold - kv / remaining >= policy.kv_spare_trigger
            and policy.queue_length_threshold - queue / remaining >= policy.queue_spare_trigger
        )

    fewest = unsaturated
    while fewest > 1 and fits(fewest - 1):
        fewest -= 1
    load = f"load of all (KV cache {_percent(kv)}, queue {queue:g})"
    if fewest < unsaturated:
        return unsaturated - fewest, f"{load} fits {fewest} of {unsaturated}"
    return 0, f"{load} does not fit {unsaturated - 1} of {unsaturated}"


def _percent(share: float) -> str:
    return f"{round(100 * share, 1):g} %"
