"""How many tokens a model's replicas hold and owe, against how many they can hold.

References:
    llm-d's workload variant autoscaler, release 0.9, its second saturation analyzer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from wva_adapter.core.fleet import Variant, VariantKey
from wva_adapter.core.leads import on_their_way
from wva_adapter.core.load import ModelLoad
from wva_adapter.core.memory import UNSEEN_VARIANT, VariantMemory
from wva_adapter.core.policy import Policy
from wva_adapter.core.saturation import blind_reason, read_fill
from wva_adapter.core.snapshot import GatewayState, ReplicaSample, ReplicaState, VariantState
from wva_adapter.core.token_memory import BoundKey, Hardware, TokenMemory

BOUNDS_KEPT = 10
"""So many observations of the compute bound are averaged."""

BYTES_PER_TOKEN = 4.0
"""What a token of a prompt takes in a request's body, roughly."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Mean tokens of a request; ``None`` where no request tells.

    Attributes:
        prompt: Its prompt.
        output: What is generated for it.
    """

    prompt: float | None
    output: float | None

    @property
    def output_bucket(self) -> str | None:
        """The class of output lengths whose compute bound is alike."""
        if self.output is None:
            return None
        return "short" if self.output < 100 else "medium" if self.output < 500 else "long"

    def or_else(self, other: Lengths) -> Lengths:
        """Return these lengths, those of ``other`` where one is unknown."""
        return Lengths(
            other.prompt if self.prompt is None else self.prompt,
            other.output if self.output is None else self.output,
        )


@dataclass(frozen=True, slots=True)
class _Replica:
    """A ready replica that is awake.

    Attributes:
        lengths: Its own requests' lengths, those of the model where it tells none.
        news: Whether its page was not looked at before.
        demand: Tokens that it holds and that its queue asks for; ``None`` where that is unknown.
        whole: Whether ``demand`` counts all that waits.
    """

    key: VariantKey
    state: ReplicaState
    lengths: Lengths
    seen: bool
    news: bool
    demand: float | None
    whole: bool


def read_lengths(sample: ReplicaSample) -> Lengths:
    """Return the lengths that a page tells: recent ones of prompts, else those of all its past."""
    prompt = sample.mean_input_tokens
    if prompt is None:
        prompt = _mean(sample.input_tokens_sum, sample.input_tokens_count)
    return Lengths(prompt, _mean(sample.output_tokens_sum, sample.output_tokens_count))


def model_lengths(states: Sequence[VariantState]) -> Lengths:
    """Return the mean lengths over the pages of one model's replicas, each page counting alike."""
    found = [read_lengths(r.sample) for s in states for r in s.ready if r.sample is not None]
    prompts = [one.prompt for one in found if one.prompt is not None]
    outputs = [one.output for one in found if one.output is not None]
    return Lengths(fmean(prompts) if prompts else None, fmean(outputs) if outputs else None)


def prefix_hit_rate(states: Sequence[VariantState]) -> float:
    """Return the share of prompt tokens that a cache held, 0 to 1; 0 where no page tells."""
    prompted = computed = 0.0
    for replica in (replica for state in states for replica in state.ready):
        page = replica.sample
        if page is not None and page.prompt_tokens_total and page.computed_prompt_tokens_total:
            prompted += page.prompt_tokens_total
            computed += page.computed_prompt_tokens_total
    return max(0.0, 1.0 - computed / prompted) if prompted else 0.0


def derived_bound(variant: Variant, lengths: Lengths) -> float | None:
    """Return the tokens that a replica holds at its largest batch; ``None`` where nothing tells.

    Of the B tokens of one step, prompts take I/(I + O) in the long run and decoding requests one
    each: B·O/(I + O) requests, at most ``max_num_seqs``, each half way through its output.
    """
    batched, most = variant.max_num_batched_tokens, variant.max_num_seqs
    prompt, output = lengths.prompt, lengths.output
    if batched is None or most is None or prompt is None or not output:
        return None
    return min(batched * output / (prompt + output), most) * (prompt + output / 2)


def gateway_tokens(
    gateway: GatewayState | None, lengths: Lengths, hit_rate: float
) -> tuple[float, str | None]:
    """Return the tokens that requests held back by the gateway ask for.

    Of a prompt only what no cache holds is counted; its length is the larger of what the bytes
    and what the mean request say.

    Returns:
        The tokens, and why they are not all of it; ``None`` where they are.
    """
    if gateway is None:
        return 0.0, None
    waiting = gateway.queued_requests
    if waiting is None:
        return 0.0, "the gateway's queue is unknown"
    if not waiting:
        return 0.0, None
    by_bytes = (gateway.queued_bytes or 0.0) / BYTES_PER_TOKEN
    prompts = max(by_bytes, waiting * (lengths.prompt or 0.0))
    tokens = prompts * (1.0 - hit_rate) + waiting * (lengths.output or 0.0)
    if lengths.output is None or not prompts:
        return tokens, "the gateway holds requests of unknown length"
    return tokens, None


def analyze_tokens(
    states: Sequence[VariantState],
    memory: TokenMemory,
    gateway: GatewayState | None,
    at_s: float,
    policy: Policy,
    variants: Mapping[VariantKey, VariantMemory] | None = None,
) -> tuple[ModelLoad, TokenMemory]:
    """Return the load of one model, in tokens, and what is remembered of it for the next time.

    *Demand*: tokens in the KV cache, the prompts that wait in the engines, and what the gateway
    holds back. *Capacity* of a replica: what its KV cache holds at its threshold, or what its
    engine computes on at once, whichever is less; of a variant, the median of its replicas. *Up*:
    demand above ``scale_up_threshold`` of what is ready and on its way. *Down*: what stays holds
    the demand of all, unseen replicas too, at ``scale_down_boundary``, and one replica stays.

    Args:
        states: The variants of one model, at least one.
        memory: What this returned for this model the last time.
        gateway: What the gateway in front of the model reports; ``None`` where there is none.
        at_s: Unix time now.
        policy: Thresholds.
        variants: What is remembered of how long their replicas take to start.

    Returns:
        The load, whose ``capacity`` lacks the variants of which nothing is known, and the memory.
    """
    states = sorted(states, key=lambda state: state.variant.key)
    past = variants or {}
    described = {state.variant.key: state.variant for state in states}
    typical = model_lengths(states)
    awake, asleep = _look(states, memory, typical, at_s, policy)
    after = _remember(described, awake, memory, policy)
    capacity, assumed = _capacities(described, typical, after)

    def carried(replicas: Sequence[_Replica]) -> float:
        return math.fsum(capacity.get(r.key, 0.0) for r in replicas)

    seen = [r for r in awake if r.seen]
    # What is ready and was not asked yet has served nothing so far: it is on its way, too.
    fresh = [r for r in awake if r.state.sample is None and r.state.problem is None]
    told = [r for r in awake if not r.seen and r.demand is not None]
    silent = [r for r in awake if r.demand is None and r not in fresh]
    held, why_not_all = gateway_tokens(
        None if gateway is None else _fresh(gateway, at_s, policy),
        typical,
        prefix_hit_rate(states),
    )
    on_seen = held + math.fsum(r.demand or 0.0 for r in seen)
    demand = on_seen + math.fsum(r.demand or 0.0 for r in told)
    coming = carried(fresh) + math.fsum(
        capacity.get(state.variant.key, 0.0)
        * on_their_way(state, past.get(state.variant.key, UNSEEN_VARIANT), at_s, policy)
        for state in states
    )
    ready = carried(seen) + carried(told)
    unknown = [] if why_not_all is None else [why_not_all]
    if not all(r.whole for r in awake):
        unknown.append("requests wait whose prompt length is unknown")
    shortage = surplus = 0.0
    if not capacity:
        words = ["no capacity known: nothing says that more or fewer are needed"]
    elif not seen and not held:
        words = ["no replica seen: nothing says that more are needed"]
    else:
        up, down = policy.scale_up_threshold, policy.scale_down_boundary
        # What is no longer seen may be gone, or may be as it was: the larger shortage counts.
        shortage = max(0.0, demand / up - ready - coming, on_seen / up - carried(seen) - coming)
        supply = f"capacity of {ready:,.0f}" + (f" and {coming:,.0f} starting" if coming else "")
        text = f"{demand:,.0f} tokens / {up:g}"
        if shortage:
            words = [f"{text} exceed the {supply} by {shortage:,.0f}"]
        else:
            # One that never told its load may be full.
            must_fit = demand + carried(silent)
            if seen and not unknown:
                least = min(capacity.get(r.key, 0.0) for r in seen)
                surplus = max(0.0, ready + carried(silent) - max(least, must_fit / down))
            words = [f"{text} fit the {supply}", f"at {down:g} {surplus:,.0f} tokens could go"]
    words += [f"{why}, so none can go" for why in unknown]
    words += [f"{len(told) + len(silent)} of {len(awake)} ready replicas unseen"] * bool(
        told or silent
    )
    words += [f"{asleep} asleep"] * bool(asleep)
    words += [
        f"{key.name} never seen, assumed to carry {capacity[key]:,.0f} like the smallest"
        for key in assumed
    ]
    present = ready + carried(silent) + coming
    load = ModelLoad(
        namespace=states[0].variant.key.namespace,
        model_id=states[0].variant.model_id,
        role=states[0].variant.role,
        analysis="tokens",
        unit="tokens",
        demand=demand if capacity and (seen or held) else None,
        need=present + (shortage or -surplus),
        keep=present - surplus,
        present=present,
        replicas=sum(state.spec_replicas or 0 for state in states),
        capacity=capacity,
        window_s=policy.window_s(),
        binding="; ".join(words),
    )
    return load, after


def _mean(total: float | None, count: float | None) -> float | None:
    return None if total is None or not count else total / count


def _hardware(variant: Variant) -> Hardware:
    return Hardware(variant.accelerator, variant.accelerators_per_replica)


def _fresh(gateway: GatewayState, at_s: float, policy: Policy) -> GatewayState:
    if at_s - gateway.at_s <= policy.stale_after_s:
        return gateway
    return GatewayState(namespace=gateway.namespace, model_id=gateway.model_id, at_s=gateway.at_s)


def _look(
    states: Sequence[VariantState],
    memory: TokenMemory,
    typical: Lengths,
    at_s: float,
    policy: Policy,
) -> tuple[list[_Replica], int]:
    """Return the ready replicas, each with its demand, and how many others are asleep."""
    awake, asleep = [], 0
    for state in states:
        key = state.variant.key
        for replica in sorted(state.ready, key=lambda r: r.name):
            sample = replica.sample
            if sample is not None and sample.awake is False:
                asleep += 1
                continue
            lengths = typical if sample is None else read_lengths(sample).or_else(typical)
            demand, whole = _demand(sample, lengths)
            awake.append(
                _Replica(
                    key=key,
                    state=replica,
                    lengths=lengths,
                    seen=demand is not None and blind_reason(replica, at_s, policy) is None,
                    news=sample is not None
                    and sample.at_s > memory.read_at_s.get((key, replica.name), -math.inf),
                    demand=demand,
                    whole=whole,
                )
            )
    return awake, asleep


def _demand(sample: ReplicaSample | None, lengths: Lengths) -> tuple[float | None, bool]:
    """Return the tokens a page asks for, ``None`` if it does not say, and whether that is all."""
    fill = read_fill(sample)
    if sample is None or fill is None or (fill.kv_cache_usage and not sample.kv_cache_tokens):
        return None, True
    in_use = fill.kv_cache_usage * (sample.kv_cache_tokens or 0)
    if not fill.queued_requests:
        return in_use, True
    if lengths.prompt is None:
        return in_use, False
    return in_use + fill.queued_requests * lengths.prompt, True


def _remember(
    variants: Mapping[VariantKey, Variant],
    awake: Sequence[_Replica],
    memory: TokenMemory,
    policy: Policy,
) -> TokenMemory:
    """Return the memory with what the seen replicas teach.

    Tokens in use while ``queue_length_threshold`` requests wait are what the engine computes on
    at once: more would run if it could.
    """
    observed = dict(memory.observed)
    read_at_s = {}
    for replica in awake:
        place, sample = (replica.key, replica.state.name), replica.state.sample
        if not replica.seen or sample is None:
            # What was read of it stays read: its old page is no news when it is seen again.
            if place in memory.read_at_s:
                read_at_s[place] = memory.read_at_s[place]
            continue
        read_at_s[place] = sample.at_s
        in_use = (sample.kv_cache_usage or 0.0) * (sample.kv_cache_tokens or 0)
        waiting = sample.queued_requests or 0.0
        if replica.news and in_use > 0 and waiting >= policy.queue_length_threshold:
            key = BoundKey(_hardware(variants[replica.key]), replica.lengths.output_bucket)
            observed[key] = (*observed.get(key, ()), in_use)[-BOUNDS_KEPT:]
    capacities = {k: v for k, v in memory.capacities.items() if k in variants}
    carried: dict[VariantKey, list[float]] = {}
    for replica in awake:
        sample, variant = replica.state.sample, variants[replica.key]
        if not replica.seen or sample is None or not sample.kv_cache_tokens:
            continue
        in_memory = sample.kv_cache_tokens * policy.kv_cache_threshold
        past = observed.get(BoundKey(_hardware(variant), replica.lengths.output_bucket))
        computed = fmean(past) if past else derived_bound(variant, replica.lengths)
        carried.setdefault(replica.key, []).append(
            in_memory if computed is None else min(in_memory, computed)
        )
    for variant_key, found in carried.items():
        capacities[variant_key] = (_hardware(variants[variant_key]), median(found))
    return TokenMemory(observed, dict(sorted(capacities.items())), read_at_s)


def _capacities(
    variants: Mapping[VariantKey, Variant], typical: Lengths, memory: TokenMemory
) -> tuple[dict[VariantKey, float], list[VariantKey]]:
    """Return what one replica of each variant carries, and the variants of which that is a guess."""
    known: dict[VariantKey, float] = {}
    for key, variant in sorted(variants.items()):
        hardware = _hardware(variant)
        own = memory.capacities.get(key)
        alike = [
            carried
            for _, (kind, carried) in sorted(memory.capacities.items())
            if hardware.accelerator is not None and kind == hardware
        ]
        if own is not None and own[0] == hardware:
            known[key] = own[1]
        elif alike:
            known[key] = median(alike)
        elif (derived := derived_bound(variant, typical)) is not None:
            known[key] = derived
    # A variant that never ran would never run if it counted for nothing.
    assumed = [key for key in sorted(variants) if key not in known] if known else []
    return known | dict.fromkeys(assumed, min(known.values(), default=0.0)), assumed
