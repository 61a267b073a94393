"""How a decision is told to people: in lines, from what was decided to what comes next."""

from __future__ import annotations

from collections.abc import Sequence

from wva_adapter.core.decision import Step
from wva_adapter.core.fleet import Reader
from wva_adapter.core.leads import starts_by_kind
from wva_adapter.core.load import ModelLoad, figure
from wva_adapter.core.saturation import blind_reason
from wva_adapter.core.snapshot import Phase, ReplicaState
from wva_adapter.core.whynot import Alternative
from wva_adapter.publish.explain.case import Case


def lines(case: Case) -> Sequence[str]:
    """Return what is known of one variant and its decision, the answer to ``why not`` last."""
    variant, decision = case.state.variant, case.decision
    accelerator = variant.accelerator or "an unknown accelerator"
    price = f"{variant.cost_per_h:g} $/h per replica"
    does = "" if variant.role == "both" else f", {variant.role} alone"
    told = [f"{variant.key}  {variant.target}, {variant.model_id}{does} on {accelerator}, {price}"]
    if decision is not None:
        told.append(
            f"  desired {decision.desired}, now {decision.current}, ready {decision.ready} "
            f"(plan {case.plan_age_s:.0f} s old)"
        )
        width = max((len(step.rule) for step in decision.trail), default=0)
        told += [
            f"    {step.rule:<{width}}  {_change(step)}  {step.why}" for step in decision.trail
        ]
        if decision.limited is not None:
            told.append(f"  limited: {decision.limited}")
    told += [f"  configuration refused, the last good one holds: {one}" for one in case.refused]
    if case.load is not None:
        told += _load_lines(case, case.load)
    others = case.alternatives
    if len(others) > 1:
        told.append("  counts that could be")
        plans = [_counts(one) for one in others]
        width, digits = max(map(len, plans)), max(len(f"{one.cost_per_h:.2f}") for one in others)
        told += [
            f"    {plan:<{width}}  {one.cost_per_h:>{digits}.2f} $/h  {one.why}"
            for plan, one in zip(plans, others, strict=True)
        ]
    told += [f"  {_replica_line(replica, case)}" for replica in case.state.replicas]
    if variant.reader is not None:
        told.append(f"  read by {_reader_words(variant.reader)}")
    told.append(f"  next: {case.next_step}")
    told += [f"    {one}" for one in case.outlook]
    answer = case.why_not
    if answer is not None:
        told.append(f"  why not {answer.count}?")
        told += [f"    {one}" for one in answer.sentences]
    return told


def _change(step: Step) -> str:
    """Return what a rule did: changed the count, or left it as it was and said so."""
    if step.before == step.after:
        return f"{step.before} stays"
    return f"{step.before} → {step.after}"


def _counts(plan: Alternative) -> str:
    return " + ".join(f"{count} {key.name}" for key, count in plan.counts.items())


def _load_lines(case: Case, load: ModelLoad) -> Sequence[str]:
    demand = "unknown" if load.demand is None else f"{load.demand:.2f}"
    told = [f"  {load.analysis}: demand {demand}, supply {load.supply:.4g} {load.unit}"]
    told += [f"    {note}" for note in load.notes]
    key, fit = case.state.variant.key, case.memory.fit
    if fit is None or key not in load.bounds:
        return told
    learned = f"learned from {fit.samples} samples" if fit.samples else "nothing seen yet"
    error = fit.relative_error
    if error is not None:
        learned += f", which it explains within {error:.0%}"
    told.append(f"  capacity: {figure(load.capacity[key])} {load.unit} per replica; {learned}")
    starts = starts_by_kind(case.memory)
    if starts:
        kinds = (f"{kind} within {s:.0f} s ({seen} seen)" for kind, (seen, s) in starts.items())
        told.append(f"  nine of ten start: {', '.join(kinds)}")
    return told


def _replica_line(replica: ReplicaState, case: Case) -> str:
    requests, tokens = replica.in_flight_requests, replica.in_flight_tokens
    told = [f"{replica.name}  {_page_words(replica, case)}"]
    told += [] if requests is None else [f"{requests:g} requests in flight"]
    told += [] if tokens is None else [f"{tokens:,.0f} tokens in flight"]
    return ", ".join(told)


def _page_words(replica: ReplicaState, case: Case) -> str:
    why = blind_reason(replica, case.at_s, case.policy)
    if replica.phase is not Phase.READY:
        kind = replica.start_kind(case.at_s) if replica.phase is Phase.STARTING else None
        return f"{replica.phase.value}{'' if kind is None else f', {kind}'}"
    sample = replica.sample
    if why is not None or sample is None:
        return f"unseen: {why}"
    usage = "unknown" if sample.kv_cache_usage is None else f"{sample.kv_cache_usage:.2f}"
    queue = "unknown" if sample.queued_requests is None else f"{sample.queued_requests:g}"
    age_s = case.at_s - sample.at_s
    return f"KV-cache usage {usage}, queue {queue}, page {age_s:.1f} s old"


def _reader_words(reader: Reader) -> str:
    return (
        f"{reader.name}, target {reader.target_type} {reader.target:g}, "
        f"tolerance up {reader.tolerance_up:g} down {reader.tolerance_down:g}"
    )
