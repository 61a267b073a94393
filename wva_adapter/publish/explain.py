"""How a decision is told: as a document for programs, as lines for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from wva_adapter.core.decision import Decision
from wva_adapter.core.fleet import Reader
from wva_adapter.core.hpa import average_value_replicas, value_replicas
from wva_adapter.core.load import ModelLoad
from wva_adapter.core.memory import Bill
from wva_adapter.core.policy import Policy
from wva_adapter.core.saturation import blind_reason
from wva_adapter.core.snapshot import Phase, ReplicaSample, ReplicaState, VariantState

Document = Mapping[str, Any]

_SAMPLE_FIELDS: Final = tuple(
    field.name for field in fields(ReplicaSample) if field.name not in ("replica", "at_s")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One variant, and what was decided on it.

    Attributes:
        state: The variant as it stood then.
        decision: ``None`` where the plan left it undecided.
        load: Its model's load; ``None`` where there is none.
        at_s: Unix time of the plan.
        plan_age_s: How old the plan is now.
        problem: Why nothing is served for it now; ``None`` where its value is.
        policy: What tells a seen replica from an unseen one.
    """

    state: VariantState
    decision: Decision | None
    load: ModelLoad | None
    at_s: float
    plan_age_s: float
    problem: str | None
    policy: Policy

    @property
    def will_set(self) -> int | None:
        """The count that the reader's arithmetic makes of the served value; ``None`` if nobody reads."""
        reader, decision = self.state.variant.reader, self.decision
        if reader is None or decision is None or self.problem is not None:
            return None
        target, value = round(reader.target * 1000), decision.value_milli
        up, down = reader.tolerance_up, reader.tolerance_down
        if reader.target_type == "AverageValue":
            status = self.state.status_replicas
            scaled = decision.current if status is None else status
            return average_value_replicas(
                scaled, value, target, tolerance_up=up, tolerance_down=down
            )
        return value_replicas(
            decision.current,
            decision.ready,
            value,
            target,
            tolerance_up=up,
            tolerance_down=down,
        )

    @property
    def next_step(self) -> str:
        """What happens next, in words."""
        if self.problem is not None:
            return f"nothing is served, so the count stays: {self.problem}"
        if self.decision is None:
            return "nothing is served, so the count stays"
        reader, will_set = self.state.variant.reader, self.will_set
        if reader is None or will_set is None:
            return f"{self.decision.desired} is served; no autoscaler is known to read it"
        if will_set == self.decision.current:
            return f"{reader.name} keeps {will_set}"
        if will_set == 0 and not reader.shaped:
            return f"{reader.name} sets 0 after its cooldownPeriod, now {self.decision.current}"
        return f"{reader.name} sets {will_set} at its next look, now {self.decision.current}"


@dataclass(frozen=True, slots=True)
class Explanation:
    """How the counts of some variants came about.

    Attributes:
        single: One variant was asked for by its name.
    """

    cases: tuple[Case, ...]
    single: bool = False

    @property
    def document(self) -> Document:
        """The explanation of the one variant, or of all under ``variants``; unknown is ``None``."""
        documents = [_document(case) for case in self.cases]
        return documents[0] if self.single else {"variants": documents}

    @property
    def text(self) -> str:
        """The same in lines, ending in a newline."""
        if not self.cases:
            return "no variants\n"
        return "\n\n".join("\n".join(_lines(case)) for case in self.cases) + "\n"


def _document(case: Case) -> Document:
    return {
        "variant": {
            "namespace": case.state.variant.key.namespace,
            "name": case.state.variant.key.name,
            "target": case.state.variant.target,
        },
        "plan_age_s": round(case.plan_age_s, 3),
        "problem": case.problem,
        "decision": None if case.decision is None else decision_document(case.decision),
        "model": None if case.load is None else load_document(case.load),
        "replicas": [_replica_document(replica, case) for replica in case.state.replicas],
        "capacity": None,
        "demand": None,
        "allocations": None,
        "reader": _reader_document(case),
        "next": case.next_step,
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
        **{name: said[name] for name in _SAMPLE_FIELDS},
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


def _lines(case: Case) -> Sequence[str]:
    variant, decision = case.state.variant, case.decision
    accelerator = variant.accelerator or "an unknown accelerator"
    price = f"{variant.cost_per_h:g} $/h per replica"
    lines = [f"{variant.key}  {variant.target}, {variant.model_id} on {accelerator}, {price}"]
    if decision is not None:
        lines.append(
            f"  desired {decision.desired}, now {decision.current}, ready {decision.ready} "
            f"(plan {case.plan_age_s:.0f} s old)"
        )
        width = max((len(step.rule) for step in decision.trail), default=0)
        lines += [
            f"    {step.rule:<{width}}  {step.before} → {step.after}  {step.why}"
            for step in decision.trail
        ]
        if decision.limited is not None:
            lines.append(f"  limited: {decision.limited}")
    if case.load is not None:
        demand = "unknown" if case.load.demand is None else f"{case.load.demand:.2f}"
        lines.append(
            f"  {case.load.analysis}: demand {demand}, supply {case.load.supply:g} {case.load.unit}"
        )
    lines += [f"  {_replica_line(replica, case)}" for replica in case.state.replicas]
    if variant.reader is not None:
        lines.append(f"  read by {_reader_words(variant.reader)}")
    lines.append(f"  next: {case.next_step}")
    return lines


def _replica_line(replica: ReplicaState, case: Case) -> str:
    why = blind_reason(replica, case.at_s, case.policy)
    if replica.phase is not Phase.READY:
        return f"{replica.name}  {replica.phase.value}"
    sample = replica.sample
    if why is not None or sample is None:
        return f"{replica.name}  unseen: {why}"
    usage = "unknown" if sample.kv_cache_usage is None else f"{sample.kv_cache_usage:.2f}"
    queue = "unknown" if sample.queued_requests is None else f"{sample.queued_requests:g}"
    age_s = case.at_s - sample.at_s
    return f"{replica.name}  KV-cache usage {usage}, queue {queue}, page {age_s:.1f} s old"


def _reader_words(reader: Reader) -> str:
    return (
        f"{reader.name}, target {reader.target_type} {reader.target:g}, "
        f"tolerance up {reader.tolerance_up:g} down {reader.tolerance_down:g}"
    )
