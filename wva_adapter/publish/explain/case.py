"""One variant and what was decided on it: all that can be told of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wva_adapter.core import case
from wva_adapter.core.decision import Decision, Plan
from wva_adapter.core.hpa import average_value_replicas, value_replicas
from wva_adapter.core.load import ModelLoad
from wva_adapter.core.memory import VariantMemory
from wva_adapter.core.policy import Policy
from wva_adapter.core.snapshot import VariantState
from wva_adapter.core.whynot import Alternative, WhyNot, alternatives, outlook, why_not


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
        plan: The whole plan.
        refused: What is wrong with its configuration, so that an earlier one holds; a sentence
            each.
        other_count: A count of which is asked why it was not decided; ``None`` where none is.
    """

    state: VariantState
    decision: Decision | None
    load: ModelLoad | None
    at_s: float
    plan_age_s: float
    problem: str | None
    plan: Plan
    refused: tuple[str, ...] = ()
    other_count: int | None = None

    @property
    def policy(self) -> Policy:
        """How it was decided."""
        grounds = self.plan.case
        if grounds is None:
            return Policy()
        return grounds.policies.get(self.state.variant.key, Policy())

    @property
    def memory(self) -> VariantMemory:
        """What is remembered of it."""
        grounds = self.plan.case
        if grounds is None:
            return VariantMemory()
        return grounds.memory.get(self.state.variant.key, VariantMemory())

    @property
    def alternatives(self) -> tuple[Alternative, ...]:
        """What could have been decided on its model; the decision first, none where that is missing."""
        grounds = self._grounds
        if grounds is None:
            return ()
        return alternatives(self.state.variant.key, self.plan.decisions, grounds)

    @property
    def why_not(self) -> WhyNot | None:
        """What speaks against ``other_count``; ``None`` where nothing was asked, or decided."""
        grounds = self._grounds
        if grounds is None or self.other_count is None:
            return None
        return why_not(self.state.variant.key, self.other_count, self.plan.decisions, grounds)

    @property
    def _grounds(self) -> case.Case | None:
        return None if self.decision is None else self.plan.case

    @property
    def will_set(self) -> int | None:
        """The count that the reader's arithmetic makes of the served value; ``None`` if nobody reads."""
        reader, decision = self.state.variant.reader, self.decision
        if reader is None or decision is None or self.problem is not None:
            return None
        if reader.paused:
            paused_at = reader.paused_replicas
            return decision.current if paused_at is None else paused_at
        target, value = round(reader.target * 1000), decision.value_milli
        up, down = reader.tolerance_up, reader.tolerance_down
        if reader.target_type == "AverageValue":
            status = self.state.status_replicas
            scaled = decision.current if status is None else status
            count = average_value_replicas(
                scaled, value, target, tolerance_up=up, tolerance_down=down
            )
        else:
            count = value_replicas(
                decision.current,
                decision.ready,
                value,
                target,
                tolerance_up=up,
                tolerance_down=down,
            )
        return max(count, reader.least_active) if count else 0

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
        if reader.paused:
            at = "" if reader.paused_replicas is None else f" at {reader.paused_replicas}"
            return (
                f"{reader.name} is paused{at}, so {self.decision.desired} is served and not "
                "followed until its annotations autoscaling.keda.sh/paused are taken away"
            )
        if will_set == self.decision.current:
            return f"{reader.name} keeps {will_set}"
        if will_set == 0 and not reader.shaped:
            return f"{reader.name} sets 0 after its cooldownPeriod, now {self.decision.current}"
        said = f"{reader.name} sets {will_set} at its next look, now {self.decision.current}"
        if will_set == reader.least_active > self.decision.desired:
            said += f" (its minReplicaCount is {will_set} once anything runs)"
        return said

    @property
    def outlook(self) -> Sequence[str]:
        """What comes after that if the load stays as it is, a sentence each."""
        grounds = self._grounds
        if grounds is None:
            return ()
        return outlook(self.state.variant.key, self.plan.decisions, grounds)
