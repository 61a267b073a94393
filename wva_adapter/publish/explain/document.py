"""How a decision is told to programs: as a document in which unknown is ``None``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, Final

from wva_adapter.core.decision import Decision
from wva_adapter.core.leads import starts_by_kind
from wva_adapter.core.load import ModelLoad
from wva_adapter.core.memory import Bill
from wva_adapter.core.saturation import blind_reason
from wva_adapter.core.snapshot import ReplicaSample, ReplicaState
from wva_adapter.publish.explain.case import Case

Document = Mapping[str, Any]

_SAMPLE_FIELDS: Final = tuple(
    field.name for field in fields(ReplicaSample) if field.name not in ("replica", "at_s")
)


def document(case: Case) -> Document:
    """Return all that is known of one variant and its decision."""
    return {
        "variant": {
            "namespace": case.state.variant.key.namespace,
            "name": case.state.variant.key.name,
            "target": case.state.variant.target,
            "role": case.state.variant.role,
        },
        "plan_age_s": round(case.plan_age_s, 3),
        "problem": case.problem,
        "decision": None if case.decision is None else decision_document(case.decision),
        "model": None if case.load is None else load_document(case.load),
        "replicas": [_replica_document(replica, case) for replica in case.state.replicas],
        "capacity": _capacity_document(case),
        "demand": _demand_document(case.load),
        "allocations": _allocation_documents(case),
        "reader": _reader_document(case),
        "next": "; ".join((case.next_step, *case.outlook)),
        "configuration": {"problems": list(case.refused)},
        **_why_not_document(case),
    }


def decision_document(decision: Decision) -> Document:
    """Return a decision with its trail."""
    return {
        "namespace": decision.key.namespace,
        "name": decision.key.name,
        "model_id": decision.model_id,
        "accelerator": decision.accelerator,
        "current": decision.current,
        "ready": decision.ready,
        "desired": decision.desired,
        "limited": decision.limited,
        "shadow": None if decision.bill is None else _bill_document(decision.bill),
        "cost_per_h": decision.cost_per_h,
        "power_w": decision.power_w,
        "trail": [
            {"rule": step.rule, "from": step.before, "to": step.after, "why": step.why}
            for step in decision.trail
        ],
    }


def _bill_document(bill: Bill) -> Document:
    return {
        "desired": bill.desired,
        "since_s": bill.since_s,
        "would_usd": bill.would_usd,
        "ran_usd": bill.ran_usd,
    }


def load_document(load: ModelLoad) -> Document:
    """Return a model's load."""
    return {
        "model_id": load.model_id,
        "role": load.role,
        "analysis": load.analysis,
        "unit": load.unit,
        "demand": load.demand,
        "supply": load.supply,
        "shortage": load.shortage,
        "surplus": load.surplus,
        "binding": load.binding,
    }


def _replica_document(replica: ReplicaState, case: Case) -> Document:
    sample = replica.sample
    unseen = blind_reason(replica, case.at_s, case.policy)
    said = dict.fromkeys(_SAMPLE_FIELDS) if sample is None else asdict(sample)
    return {
        "replica": replica.name,
        "phase": replica.phase.value,
        "age_s": None if sample is None else round(case.at_s - sample.at_s, 3),
        "seen": unseen is None,
        "problem": unseen,
        "start": replica.start_kind(case.at_s),
        "in_flight_requests": replica.in_flight_requests,
        "in_flight_tokens": replica.in_flight_tokens,
        **{name: said[name] for name in _SAMPLE_FIELDS},
    }


def _capacity_document(case: Case) -> Document | None:
    key, load = case.state.variant.key, case.load
    if load is None or key not in load.capacity:
        return None
    fit = case.memory.fit
    error = None if fit is None else fit.relative_error
    return {
        "per_replica": load.capacity[key],
        "per_s": load.capacity[key] if load.unit == "req/s" else None,
        "unit": load.unit,
        "bound": load.bounds.get(key),
        "samples": None if fit is None else fit.samples,
        "fit_error": error,
        "starts": {
            kind: {"seen": seen, "within_s": within_s}
            for kind, (seen, within_s) in starts_by_kind(case.memory).items()
        },
    }


def _demand_document(load: ModelLoad | None) -> Document | None:
    if load is None or load.forecast is None:
        return None
    expected = load.forecast
    return {
        "per_s": load.demand,
        "confidence": expected.confidence,
        "similar_moments": expected.analogs,
        "covered_per_s": expected.covered_per_s,
        "ramp_per_s": expected.ramp_per_s,
        "lead_s": expected.lead_s,
        "why": expected.why,
    }


def _allocation_documents(case: Case) -> Sequence[Document] | None:
    found = [
        {
            "counts": {key.name: count for key, count in one.counts.items()},
            "cost_per_h": one.cost_per_h,
            "feasible": one.feasible,
            "why": one.why,
        }
        for one in case.alternatives
    ]
    return found or None


def _why_not_document(case: Case) -> Document:
    answer = case.why_not
    if answer is None:
        return {}
    return {
        "why_not": {
            "count": answer.count,
            "breaks": list(answer.breaks),
            "cost_per_h": answer.cost_per_h,
            "more_per_h": answer.more_per_h,
            "carried": answer.carried,
            "needed": answer.needed,
            "unit": answer.unit,
            "why": "; ".join(answer.sentences),
        }
    }


def _reader_document(case: Case) -> Document | None:
    reader = case.state.variant.reader
    if reader is None:
        return None
    kind, _, name = reader.name.partition(" ")
    served = case.decision is not None and case.problem is None
    return {
        "kind": kind,
        "name": name,
        "target_type": reader.target_type,
        "target": reader.target,
        "shaped": reader.shaped,
        "served": case.decision.value_milli / 1000 if case.decision and served else None,
        "will_set": case.will_set,
    }
