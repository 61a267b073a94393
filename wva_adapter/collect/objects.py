"""What of Kubernetes objects the adapter reads: the fields that are decoded, and no others.

A whole pod as the client library models it takes a hundred times the memory and the time.
"""

from __future__ import annotations

from datetime import datetime

from msgspec import Struct, field

from wva_adapter.kube.meta import Meta


class _Object(Struct, rename="camel", frozen=True):
    """A part of an object: fields as Go names them, everything else skipped."""


class Condition(_Object, frozen=True):
    type: str
    status: str
    reason: str = ""
    message: str = ""
    last_transition_time: datetime | None = None


class Requirement(_Object, frozen=True):
    """One expression of a label or node selector."""

    key: str
    operator: str
    values: tuple[str, ...] = ()


class LabelSelector(_Object, frozen=True):
    match_labels: dict[str, str] = {}
    match_expressions: tuple[Requirement, ...] = ()

    def matches(self, labels: dict[str, str]) -> bool:
        """Return whether a workload with this selector owns pods with these labels.

        A selector without any requirement owns nothing: an object that lost it does not
        collect its whole namespace.
        """
        if not (self.match_labels or self.match_expressions):
            return False
        return all(labels.get(k) == v for k, v in self.match_labels.items()) and all(
            _fulfils(labels, r) for r in self.match_expressions
        )


def _fulfils(labels: dict[str, str], requirement: Requirement) -> bool:
    value = labels.get(requirement.key)
    match requirement.operator:
        case "In":
            return value is not None and value in requirement.values
        case "NotIn":
            return value not in requirement.values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case _:
            return False


class ContainerPort(_Object, frozen=True):
    container_port: int
    name: str = ""


class Resources(_Object, frozen=True):
    requests: dict[str, str | int] = {}
    limits: dict[str, str | int] = {}


class Container(_Object, frozen=True):
    name: str = ""
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    ports: tuple[ContainerPort, ...] = ()
    resources: Resources = Resources()


class NodeSelectorTerm(_Object, frozen=True):
    match_expressions: tuple[Requirement, ...] = ()


class NodeSelector(_Object, frozen=True):
    node_selector_terms: tuple[NodeSelectorTerm, ...] = ()


class NodeAffinity(_Object, frozen=True):
    required_during_scheduling_ignored_during_execution: NodeSelector = NodeSelector()


class Affinity(_Object, frozen=True):
    node_affinity: NodeAffinity = NodeAffinity()


class SchedulingGate(_Object, frozen=True):
    name: str = ""


class Toleration(_Object, frozen=True):
    key: str = ""
    operator: str = "Equal"
    value: str = ""
    effect: str = ""


class PodSpec(_Object, frozen=True):
    node_name: str = ""
    node_selector: dict[str, str] = {}
    affinity: Affinity = Affinity()
    scheduling_gates: tuple[SchedulingGate, ...] = ()
    containers: tuple[Container, ...] = ()
    tolerations: tuple[Toleration, ...] = ()


class Running(_Object, frozen=True):
    started_at: datetime | None = None


class Terminated(_Object, frozen=True):
    finished_at: datetime | None = None


class ContainerState(_Object, frozen=True):
    running: Running | None = None
    terminated: Terminated | None = None


class ContainerStatus(_Object, frozen=True):
    restart_count: int = 0
    state: ContainerState = ContainerState()


class PodStatus(_Object, frozen=True):
    phase: str = ""
    pod_ip: str = field(name="podIP", default="")
    conditions: tuple[Condition, ...] = ()
    container_statuses: tuple[ContainerStatus, ...] = ()
    init_container_statuses: tuple[ContainerStatus, ...] = ()


class Pod(_Object, frozen=True):
    metadata: Meta
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()


class PodTemplate(_Object, frozen=True):
    metadata: Meta = Meta()
    spec: PodSpec = PodSpec()


class WorkloadSpec(_Object, frozen=True):
    replicas: int | None = None
    selector: LabelSelector = LabelSelector()
    template: PodTemplate = PodTemplate()


class WorkloadStatus(_Object, frozen=True):
    replicas: int = 0
    conditions: tuple[Condition, ...] = ()


class Workload(_Object, frozen=True):
    """A Deployment or a StatefulSet: what is read of them is alike."""

    metadata: Meta
    spec: WorkloadSpec = WorkloadSpec()
    status: WorkloadStatus = WorkloadStatus()


class Taint(_Object, frozen=True):
    key: str
    effect: str
    value: str = ""


class NodeSpec(_Object, frozen=True):
    unschedulable: bool = False
    taints: tuple[Taint, ...] = ()


class NodeStatus(_Object, frozen=True):
    allocatable: dict[str, str | int] = {}
    conditions: tuple[Condition, ...] = ()


class Node(_Object, frozen=True):
    metadata: Meta
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()


class Namespace(_Object, frozen=True):
    metadata: Meta


class ScopeSelector(_Object, frozen=True):
    """Which pods a quota is of: only that there is one is read."""


class QuotaSpec(_Object, frozen=True):
    scopes: tuple[str, ...] = ()
    scope_selector: ScopeSelector | None = None


class QuotaStatus(_Object, frozen=True):
    hard: dict[str, str | int] = {}
    used: dict[str, str | int] = {}


class QuotaObject(_Object, frozen=True):
    """A ResourceQuota, as the API server enforces it."""

    metadata: Meta
    spec: QuotaSpec = QuotaSpec()
    status: QuotaStatus = QuotaStatus()


class ConfigMap(_Object, frozen=True):
    metadata: Meta
    data: dict[str, str] = {}


class TargetReference(_Object, frozen=True):
    name: str
    kind: str = ""


class MetricIdentifier(_Object, frozen=True):
    name: str


class MetricTarget(_Object, frozen=True):
    average_value: str | int | None = None
    value: str | int | None = None


class ExternalMetric(_Object, frozen=True):
    metric: MetricIdentifier
    target: MetricTarget


class MetricSpec(_Object, frozen=True):
    type: str
    external: ExternalMetric | None = None


class ScalingRules(_Object, frozen=True):
    tolerance: str | int | None = None


class Behavior(_Object, frozen=True):
    scale_up: ScalingRules = ScalingRules()
    scale_down: ScalingRules = ScalingRules()


class AutoscalerSpec(_Object, frozen=True):
    scale_target_ref: TargetReference
    max_replicas: int
    min_replicas: int | None = None
    metrics: tuple[MetricSpec, ...] = ()
    behavior: Behavior = Behavior()


class Autoscaler(_Object, frozen=True):
    """A HorizontalPodAutoscaler of autoscaling/v2."""

    metadata: Meta
    spec: AutoscalerSpec


class Trigger(_Object, frozen=True):
    """One of the things by which KEDA scales; ``metadata`` is what its type wants to know."""

    type: str
    metric_type: str = ""
    metadata: dict[str, str] = {}


class AutoscalerConfig(_Object, frozen=True):
    behavior: Behavior = Behavior()


class ScalingModifiers(_Object, frozen=True):
    formula: str = ""


class AdvancedConfig(_Object, frozen=True):
    horizontal_pod_autoscaler_config: AutoscalerConfig = AutoscalerConfig()
    scaling_modifiers: ScalingModifiers = ScalingModifiers()


class Fallback(_Object, frozen=True):
    replicas: int


class ScaledObjectSpec(_Object, frozen=True):
    scale_target_ref: TargetReference
    min_replica_count: int | None = None
    max_replica_count: int | None = None
    idle_replica_count: int | None = None
    cooldown_period: int | None = None
    advanced: AdvancedConfig = AdvancedConfig()
    triggers: tuple[Trigger, ...] = ()
    fallback: Fallback | None = None


class ScaledObject(_Object, frozen=True):
    """KEDA's: what it makes an HPA of."""

    metadata: Meta
    spec: ScaledObjectSpec
