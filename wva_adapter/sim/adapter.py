"""The adapter in the simulated fleet: the same snapshot, the same ``plan()``, and an HPA that reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from wva_adapter.core.fleet import Reader, Variant, VariantKey
from wva_adapter.core.hpa import External, Scale
from wva_adapter.core.hpa_sync import RECOMMENDED, Behavior, Bounds, HpaState, sync
from wva_adapter.core.memory import Memory
from wva_adapter.core.planner import plan
from wva_adapter.core.policy import Policy
from wva_adapter.core.snapshot import GatewayState, Phase, ReplicaState, Snapshot, VariantState
from wva_adapter.sim.cluster import Deployed
from wva_adapter.sim.observe import SCRAPE_PERIOD_S, Observatory
from wva_adapter.sim.scaler import Metrics, VariantView
from wva_adapter.sim.scenarios import Scenario

NAMESPACE = "sim"

_SYNCS_EVERY = 3
"""The HPA looks at every third decision: each 15 s, where decisions come each 5 s."""


class AdapterScaler:
    """Decides with ``plan()`` each cycle; the HPA of each variant reads the value every 15 s.

    Attributes:
        last: The latest plan.

    Args:
        scenario: Whose fleet it is.
        observatory: Whose pages it reads.
        policy: How to decide.
        behavior: What the HPAs allow.
        prior_scale: By how much the times that are believed at first are off.
        cycle_s: How often it decides; a whole part of the HPA's 15 s or a multiple of them.
        shaped: Whether values are shaped for the HPA's arithmetic.
    """

    def __init__(
        self,
        scenario: Scenario,
        observatory: Observatory,
        policy: Policy,
        *,
        behavior: Behavior | None = RECOMMENDED,
        prior_scale: float = 1.0,
        cycle_s: float = SCRAPE_PERIOD_S,
        shaped: bool = True,
    ) -> None:
        self.period_s = cycle_s
        self._policy = policy
        self._behavior = behavior
        self._observatory = observatory
        self._gateway_tells = scenario.gateway_tells
        self._offline = any(kind.due_s is not None for kind in scenario.kinds)
        self._variants = {d.name: _variant(d, behavior, shaped) for d in scenario.fleet}
        self._model_id = next(iter(self._variants.values())).model_id
        self._memory = Memory(prior_scale=prior_scale)
        self._states: dict[str, HpaState] = {}
        self._acts = 0
        observatory.pages_wanted = True

    def act(
        self, now_s: float, fleet: Sequence[VariantView], metrics: Metrics
    ) -> Mapping[str, int]:
        """Decide; return the counts that the HPAs set, where it is their turn."""
        self.last, self._memory = plan(self._snapshot(now_s, fleet), self._policy, self._memory)
        self._acts += 1
        if self._acts % max(1, round(_SYNCS_EVERY * SCRAPE_PERIOD_S / self.period_s)):
            return {}
        return {view.name: self._sync(now_s, view) for view in fleet}

    def why(self, variant: str) -> str:
        """Return the steps of the decision that changed the count, in words."""
        decision = self.last.decisions.get(VariantKey(NAMESPACE, variant))
        steps = () if decision is None else decision.trail
        return "; ".join(f"{s.rule}: {s.why}" for s in steps if s.before != s.after)

    def _snapshot(self, now_s: float, fleet: Sequence[VariantView]) -> Snapshot:
        observatory = self._observatory
        gateways: tuple[GatewayState, ...] = ()
        if self._gateway_tells and "gateway" not in observatory.blind:
            gateways = (self._gateway(now_s),)
        return Snapshot(now_s, tuple(self._state(view) for view in fleet), gateways)

    def _gateway(self, now_s: float) -> GatewayState:
        """Return what the gateway tells; what a batch processor holds is its lowest priority."""
        observatory = self._observatory
        state = GatewayState(
            namespace=NAMESPACE,
            model_id=self._model_id,
            at_s=now_s,
            queued_requests=observatory.value("queue", now_s),
            arrivals_total=observatory.arrivals_total,
        )
        if not self._offline:
            return state
        held = observatory.offline_waiting
        return replace(
            state,
            queued_requests=(state.queued_requests or 0.0) + held,
            arrivals_total=observatory.arrivals_total + held,
            offline_queued_requests=held,
            offline_arrivals_total=observatory.offline_total + held,
        )

    def _state(self, view: VariantView) -> VariantState:
        pages = self._observatory.pages
        replicas = []
        for pod in view.pods:
            ready = pod.phase is Phase.READY
            problem = None
            observatory = self._observatory
            if ready and ("engines" in observatory.blind or pod.name in observatory.lost):
                problem = "timed out"
            elif ready and pod.name not in pages:
                problem = "not scraped yet"
            replicas.append(
                ReplicaState(
                    name=pod.name,
                    phase=pod.phase,
                    created_at_s=pod.created_at_s,
                    ready_at_s=pod.ready_at_s,
                    sample=pages.get(pod.name) if ready else None,
                    problem=problem,
                    unscheduled=None if pod.scheduled else "Unschedulable",
                )
            )
        return VariantState(
            variant=self._variants[view.name],
            spec_replicas=view.spec_replicas,
            status_replicas=view.status_replicas,
            replicas=tuple(replicas),
        )

    def _sync(self, now_s: float, view: VariantView) -> int:
        decision = self.last.decisions.get(VariantKey(NAMESPACE, view.name))
        values = () if decision is None else (decision.value_milli,)
        # A fleet that begins at zero was put there by its autoscaler: else it would never wake.
        state = self._states.get(view.name, HpaState(scaled_to_zero=not view.spec_replicas))
        synced = sync(
            now_s,
            Scale(view.spec_replicas, view.status_replicas, view.ready_replicas),
            (External("wva_desired_replicas", values),),
            Bounds(view.min_replicas, view.max_replicas),
            self._behavior,
            state,
        )
        self._states[view.name] = synced.state
        return synced.replicas


def _variant(deployed: Deployed, behavior: Behavior | None, shaped: bool) -> Variant:
    model_id, accelerator, tensor_parallel = deployed.hardware.name.split("/")
    up = down = 0.1
    if behavior is not None:
        up = up if behavior.up.tolerance is None else behavior.up.tolerance
        down = down if behavior.down.tolerance is None else behavior.down.tolerance
    return Variant(
        key=VariantKey(NAMESPACE, deployed.name),
        model_id=model_id,
        target=f"Deployment {deployed.name}",
        accelerator=accelerator.upper(),
        accelerators_per_replica=int(tensor_parallel.removeprefix("tp")),
        cost_per_h=deployed.usd_per_h,
        min_replicas=deployed.min_replicas,
        max_replicas=deployed.max_replicas,
        reader=Reader(
            f"HorizontalPodAutoscaler {deployed.name}", "AverageValue", 1.0, up, down, shaped
        ),
        max_num_seqs=deployed.max_num_seqs,
        role=deployed.role,
    )
