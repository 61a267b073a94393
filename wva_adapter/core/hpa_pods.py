"""How the HorizontalPodAutoscaler reads metrics that each pod has: Pods averages and resource use.

Pods without a sample and pods that do not run yet are not left out: the controller fills them in
so that they soften the step, upwards as idle, downwards as just at the target.

References:
    kubernetes, ``pkg/controller/podautoscaler/replica_calculator.go`` and ``metrics/utilization.go``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from wva_adapter.core.hpa import HpaPod, Proposal, Scale, Tolerances, within

CPU_INITIALIZATION_S = 300.0
"""For so long after its start a pod's CPU counts only while it is ready; the controller's flag."""
INITIAL_READINESS_S = 30.0
"""A pod that became unready within so long of its start was never ready; the controller's flag."""


@dataclass(frozen=True, slots=True)
class PodsAverage:
    """A metric of type Pods (always ``AverageValue``), or a resource with ``averageValue``.

    Attributes:
        values_milli: What each pod reported, in thousandths; pods that reported nothing are absent.
        target_milli: Target per pod, in thousandths; positive.
        problem: Why nothing could be read, in place of values.
    """

    name: str
    values_milli: Mapping[str, int]
    target_milli: int
    problem: str | None = None

    @property
    def from_zero(self) -> bool:
        return False

    def propose(self, now_s: float, scale: Scale, tolerances: Tolerances) -> Proposal:
        if self.problem is not None:
            return Proposal(None, f"{self.name}: {self.problem}")

        def ratio(values: Mapping[str, int]) -> float:
            # Go divides integers: the mean loses its fraction before it meets the target.
            return (sum(values.values()) // len(values)) / float(self.target_milli)

        return _from_pods(
            self.name,
            scale.pods,
            self.values_milli,
            scale.spec_replicas,
            tolerances,
            ratio,
            at_target=self.target_milli,
        )


@dataclass(frozen=True, slots=True)
class UsageSample:
    """What a pod used of a resource.

    Attributes:
        usage_milli: In thousandths (of a core, for CPU).
        at_s: When it was measured; ``None`` takes it as fresh.
        window_s: Over how long.
    """

    usage_milli: int
    at_s: float | None = None
    window_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Utilization:
    """A metric of type Resource with ``averageUtilization``, in percent of the pods' requests.

    Attributes:
        samples: By pod; pods that reported nothing are absent.
        request_milli: What one pod requests; positive.
        target_percent: Target, in percent of the requests.
        cpu: Whether it is CPU, whose samples of pods still starting are left out.
        problem: Why nothing could be read, in place of samples.
    """

    name: str
    samples: Mapping[str, UsageSample]
    request_milli: int
    target_percent: int
    cpu: bool = True
    problem: str | None = None
    cpu_initialization_s: float = CPU_INITIALIZATION_S
    initial_readiness_s: float = INITIAL_READINESS_S

    @property
    def from_zero(self) -> bool:
        return False

    def propose(self, now_s: float, scale: Scale, tolerances: Tolerances) -> Proposal:
        if self.problem is not None:
            return Proposal(None, f"{self.name}: {self.problem}")
        usage = {pod: sample.usage_milli for pod, sample in self.samples.items()}

        def starting(pod: HpaPod) -> bool:
            return self.cpu and self._starting(pod, now_s)

        def ratio(values: Mapping[str, int]) -> float:
            percent = sum(values.values()) * 100 // (self.request_milli * len(values))
            return percent / float(self.target_percent)

        return _from_pods(
            self.name,
            scale.pods,
            usage,
            scale.spec_replicas,
            tolerances,
            ratio,
            at_target=self.request_milli * max(100, self.target_percent) // 100,
            starting=starting,
        )

    def _starting(self, pod: HpaPod, now_s: float) -> bool:
        if pod.started_at_s is None or pod.ready_changed_at_s is None:
            return True
        if pod.started_at_s + self.cpu_initialization_s > now_s:
            sample = self.samples[pod.name]
            measured_s = now_s if sample.at_s is None else sample.at_s
            return not pod.ready or measured_s < pod.ready_changed_at_s + sample.window_s
        return (
            not pod.ready and pod.started_at_s + self.initial_readiness_s > pod.ready_changed_at_s
        )


def _from_pods(
    name: str,
    pods: Sequence[HpaPod],
    values: Mapping[str, int],
    spec_replicas: int,
    tolerances: Tolerances,
    ratio: Callable[[Mapping[str, int]], float],
    *,
    at_target: int,
    starting: Callable[[HpaPod], bool] = lambda pod: False,
) -> Proposal:
    if not pods:
        return Proposal(None, f"{name}: the target has no pods")
    alive = [pod for pod in pods if pod.phase not in ("terminating", "failed")]
    running = [pod for pod in alive if pod.phase == "running"]
    missing = [pod.name for pod in running if pod.name not in values]
    young = [pod.name for pod in running if pod.name in values and starting(pod)]
    unready = young + [pod.name for pod in alive if pod.phase == "pending"]
    # A sample of a pod that is not listed stays in, as it does there.
    left_out = {pod.name for pod in pods if pod.phase != "running"} | set(unready)
    counted = {pod: value for pod, value in values.items() if pod not in left_out}
    if not counted:
        return Proposal(None, f"{name}: no samples of pods that count (they might be unready)")
    measured = ratio(counted)
    words = f"{name} at {measured:.3g} of its target over {len(counted)} pods"
    soften_up = bool(unready) and measured > 1.0
    if not soften_up and not missing:
        if within(tolerances, measured):
            return Proposal(spec_replicas, words)
        return Proposal(math.ceil(measured * (len(running) - len(young))), words)
    filled = dict(counted)
    if measured < 1.0:
        filled.update(dict.fromkeys(missing, at_target))
    elif measured > 1.0:
        filled.update(dict.fromkeys(missing, 0))
    if soften_up:
        filled.update(dict.fromkeys(unready, 0))
    softened = ratio(filled)
    words += f", {softened:.3g} with {len(missing)} unmeasured and {len(unready)} unready"
    replicas = math.ceil(softened * len(filled))
    turned = (measured < 1.0 < softened) or (softened < 1.0 < measured)
    against = (softened < 1.0 and replicas > spec_replicas) or (
        softened > 1.0 and replicas < spec_replicas
    )
    if within(tolerances, softened) or turned or against:
        return Proposal(spec_replicas, words)
    return Proposal(replicas, words)
