"""Kubernetes objects as the API server answers them, and the variants that they describe."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from wva_adapter.collect.accelerators import normalise
from wva_adapter.collect.assemble import VariantView
from wva_adapter.collect.autoscalers import parse_quantity
from wva_adapter.collect.manifests import Described, Objects, describe
from wva_adapter.collect.objects import Autoscaler, Node, Pod, ScaledObject, Workload
from wva_adapter.collect.pods import DELETION_COST, read_replica
from wva_adapter.core.fleet import Reader, VariantKey
from wva_adapter.core.snapshot import Phase

Document = dict[str, Any]


def an_hpa(
    name: str = "llama-a100",
    *,
    target: str | None = None,
    kind: str = "Deployment",
    uid: str | None = None,
    labels: dict[str, str] | None = None,
    owners: list[Document] | None = None,
    spec: Document | None = None,
    **annotations: str,
) -> Document:
    """A managed HPA; ``cost="2.5"`` sets ``llm-d.ai/variant-cost``."""
    known = {"managed": "true", "model_id": "llama", **annotations}
    names = {"cost": "variant-cost", "model_id": "model-id"}
    return {
        "metadata": {
            "name": name,
            "namespace": "chat",
            "uid": uid or f"hpa-{name}",
            "labels": labels or {},
            "annotations": {f"llm-d.ai/{names.get(k, k)}": v for k, v in known.items()},
            "ownerReferences": owners or [],
        },
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": kind, "name": target or name},
            "maxReplicas": 10,
            **(spec or {}),
        },
    }


def a_metric(target: Document, name: str = "wva_desired_replicas") -> Document:
    return {"type": "External", "external": {"metric": {"name": name}, "target": target}}


def a_workload(
    name: str = "llama-a100",
    *,
    replicas: int | None = 3,
    labels: dict[str, str] | None = None,
    pod_spec: Document | None = None,
) -> Document:
    document: Document = {
        "metadata": {"name": name, "namespace": "chat", "labels": labels or {}},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"creationTimestamp": None}, "spec": pod_spec or {}},
        },
        "status": {"replicas": 2},
    }
    if replicas is not None:
        document["spec"]["replicas"] = replicas
    return document


def a_pod(
    name: str = "llama-a100-x",
    *,
    app: str = "llama-a100",
    ip: str | None = "10.1.0.7",
    ready: bool = True,
    phase: str = "Running",
    node: str = "n0",
    ports: list[Document] | None = None,
    terminating: bool = False,
    annotations: dict[str, str] | None = None,
) -> Document:
    meta: Document = {
        "name": name,
        "namespace": "chat",
        "uid": f"uid-{name}",
        "labels": {"app": app},
        "creationTimestamp": "2026-01-02T03:04:05Z",
        "annotations": annotations or {},
    }
    if terminating:
        meta["deletionTimestamp"] = "2026-01-02T04:00:00Z"
    status: Document = {
        "phase": phase,
        "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
    }
    if ip is not None:
        status["podIP"] = ip
    spec = {"nodeName": node, "containers": [{"name": "engine", "ports": ports or []}]}
    return {"metadata": meta, "spec": spec, "status": status}


def a_node(name: str = "n0", product: str = "NVIDIA-H100-80GB-HBM3") -> Document:
    return {"metadata": {"name": name, "labels": {"nvidia.com/gpu.product": product}}}


def described(
    *,
    hpas: list[Document] | None = None,
    scaled_objects: list[Document] | None = None,
    deployments: list[Document] | None = None,
    stateful_sets: list[Document] | None = None,
    pods: list[Document] | None = None,
    nodes: list[Document] | None = None,
    before: Described | None = None,
) -> Described:
    """Describe a cluster of these objects: all Deployments that are scaled, if not said which."""
    if deployments is None:
        scaled = [*(hpas or ()), *(scaled_objects or ())]
        deployments = [a_workload(one["spec"]["scaleTargetRef"]["name"]) for one in scaled]

    def by_place(documents: list[Document] | None, shape: Any) -> Any:
        known = [msgspec.convert(document, shape) for document in documents or []]
        return {k.metadata.key: k for k in known}

    objects = Objects(
        autoscalers=by_place(hpas, Autoscaler),
        scaled_objects=by_place(scaled_objects, ScaledObject),
        deployments=by_place(deployments, Workload),
        stateful_sets=by_place(stateful_sets, Workload),
        pods=by_place(pods, Pod),
        nodes=by_place(nodes, Node),
    )
    return describe(objects, before.good if before else {})


def the_view(**cluster: Any) -> VariantView:
    result = described(**cluster)
    assert result.problems == ()
    (view,) = result.views
    return view


def test_a_managed_hpa_and_its_deployment_are_a_variant() -> None:
    view = the_view(
        hpas=[an_hpa(cost="2.5", spec={"minReplicas": 0, "maxReplicas": 7})],
        deployments=[a_workload(replicas=3)],
        pods=[a_pod("llama-a100-1"), a_pod("llama-a100-2"), a_pod("other-1", app="other")],
    )
    assert view.variant.key == VariantKey("chat", "llama-a100")
    assert view.variant.model_id == "llama"
    assert view.variant.target == "Deployment llama-a100"
    assert view.variant.cost_per_h == 2.5
    assert (view.variant.min_replicas, view.variant.max_replicas) == (0, 7)
    assert (view.spec_replicas, view.status_replicas) == (3, 2)
    assert [replica.name for replica in view.replicas] == ["llama-a100-1", "llama-a100-2"]


def test_absent_numbers_mean_what_kubernetes_means_by_them() -> None:
    view = the_view(hpas=[an_hpa()], deployments=[a_workload(replicas=None)])
    assert view.variant.min_replicas == 1
    assert view.variant.cost_per_h == 10  # llm-d's default
    assert view.spec_replicas == 1


def test_a_stateful_set_is_scaled_as_a_deployment_is() -> None:
    view = the_view(
        hpas=[an_hpa(kind="StatefulSet")], deployments=[], stateful_sets=[a_workload(replicas=4)]
    )
    assert view.variant.target == "StatefulSet llama-a100"
    assert view.spec_replicas == 4


def test_other_hpas_are_none_of_ours() -> None:
    unmanaged = an_hpa("plain")
    unmanaged["metadata"]["annotations"] = {}
    result = described(
        hpas=[
            unmanaged,
            an_hpa("off", managed="false"),
            an_hpa("keda-hpa-a", labels={"scaledobject.keda.sh/name": "a"}),
            an_hpa("keda-hpa-b", owners=[{"kind": "ScaledObject", "name": "b"}]),
        ]
    )
    assert result.views == ()
    assert result.problems == ()


@pytest.mark.parametrize("cost", ["-1", "nan", "inf", "cheap", "1_0", ""])
def test_a_cost_that_is_no_price_is_named_and_the_last_good_configuration_stays(cost: str) -> None:
    good = described(hpas=[an_hpa(cost="2.5")])

    broken = described(hpas=[an_hpa(cost=cost)], before=good)
    assert broken.views == good.views
    (problem,) = broken.problems
    assert problem == (
        "HorizontalPodAutoscaler chat/llama-a100: annotation llm-d.ai/variant-cost: "
        f"found {cost!r}, want a number of at least 0 in $/h"
    )

    still_broken = described(hpas=[an_hpa(cost=cost)], before=broken)
    assert still_broken.views == good.views


@pytest.mark.parametrize(
    ("annotation", "label", "role"),
    [
        (None, None, "both"),
        ("decode", None, "decode"),
        (None, "prefill", "prefill"),
        ("decode", "prefill", "decode"),
        (None, "prefill-decode", "both"),
    ],
)
def test_the_role_is_what_the_annotation_says_and_else_the_label_of_the_pods(
    annotation: str | None, label: str | None, role: str
) -> None:
    workload = a_workload()
    if label is not None:
        workload["spec"]["template"]["metadata"]["labels"] = {"llm-d.ai/role": label}
    hpa = an_hpa() if annotation is None else an_hpa(role=annotation)
    result = described(hpas=[hpa], deployments=[workload])
    assert result.views[0].variant.role == role


def test_an_unknown_role_is_refused_with_the_one_that_may_have_been_meant() -> None:
    good = described(hpas=[an_hpa(role="decode")], deployments=[a_workload()])
    broken = described(hpas=[an_hpa(role="decoder")], deployments=[a_workload()], before=good)
    assert broken.views[0].variant.role == "decode"
    assert broken.problems[0] == (
        "HorizontalPodAutoscaler chat/llama-a100: annotation llm-d.ai/role: found 'decoder', "
        "want both, prefill, decode; did you mean decode?"
    )
    workload = a_workload()
    workload["spec"]["template"]["metadata"]["labels"] = {"llm-d.ai/role": "Prefil"}
    (problem,) = described(hpas=[an_hpa()], deployments=[workload]).problems
    assert "label llm-d.ai/role on pods of Deployment llama-a100: found 'Prefil'" in problem
    assert problem.endswith("did you mean prefill?")


def test_a_role_without_the_one_that_does_the_other_part_is_a_problem_by_name() -> None:
    both = [an_hpa(role="prefill"), an_hpa("llama-d", role="decode")]
    workloads = [a_workload(), a_workload("llama-d")]
    assert described(hpas=both, deployments=workloads).problems == ()
    (problem,) = described(hpas=both[:1], deployments=workloads).problems
    assert problem == (
        "chat/llama has no variant of role decode beside its role prefill (llm-d.ai/role): "
        "nobody decodes what it prefills"
    )


def test_a_configuration_that_never_was_good_gives_a_variant_without_a_count() -> None:
    result = described(hpas=[an_hpa(cost="cheap")])
    (view,) = result.views
    assert view.variant.key == VariantKey("chat", "llama-a100")
    assert view.spec_replicas is None
    assert view.problem is not None
    assert "found 'cheap'" in view.problem


def test_the_good_configuration_of_a_deleted_hpa_is_not_that_of_a_new_one_of_its_name() -> None:
    good = described(hpas=[an_hpa(cost="2.5", uid="first")])
    (view,) = described(hpas=[an_hpa(cost="cheap", uid="second")], before=good).views
    assert view.spec_replicas is None


def test_a_missing_model_id_is_named() -> None:
    (view,) = described(hpas=[an_hpa(model_id=" ")]).views
    assert view.problem == (
        "HorizontalPodAutoscaler chat/llama-a100: no annotation llm-d.ai/model-id, "
        "want the model's name"
    )


def test_a_target_that_does_not_exist_has_an_unknown_count() -> None:
    (view,) = described(hpas=[an_hpa()], deployments=[]).views
    assert view.spec_replicas is None
    assert view.status_replicas is None
    assert view.problem == (
        "HorizontalPodAutoscaler chat/llama-a100: Deployment llama-a100 does not exist"
    )


def test_a_target_of_another_kind_is_named() -> None:
    (view,) = described(hpas=[an_hpa(kind="LeaderWorkerSet")]).views
    assert view.spec_replicas is None
    assert view.problem == (
        "HorizontalPodAutoscaler chat/llama-a100: scales a LeaderWorkerSet, "
        "want Deployment or StatefulSet"
    )


def test_the_variant_is_called_as_the_hpa_says_else_as_its_target() -> None:
    named = an_hpa("hpa", target="deploy", variant="premium")
    labelled = an_hpa("hpa-2", target="deploy-2", labels={"llm-d.ai/variant": "frugal"})
    result = described(hpas=[named, labelled, an_hpa("hpa-3", target="deploy-3")])
    assert [view.variant.key.name for view in result.views] == ["deploy-3", "frugal", "premium"]


def test_of_two_hpas_with_one_variant_the_first_by_name_counts_and_the_other_is_named() -> None:
    result = described(
        hpas=[
            an_hpa("b", target="llama-a100", cost="2"),
            an_hpa("a", target="llama-a100", cost="1"),
        ]
    )
    (view,) = result.views
    assert view.variant.cost_per_h == 1
    (problem,) = result.problems
    assert problem == (
        "HorizontalPodAutoscaler chat/b: names variant chat/llama-a100, "
        "as HorizontalPodAutoscaler chat/a does; that one counts"
    )


def test_the_reader_is_the_hpa_with_its_target_and_tolerances() -> None:
    spec = {
        "metrics": [
            {"type": "Resource", "resource": {"name": "cpu"}},
            a_metric({"type": "AverageValue", "averageValue": "1500m"}),
        ],
        "behavior": {"scaleUp": {"tolerance": "0"}, "scaleDown": {"tolerance": "50m"}},
    }
    view = the_view(hpas=[an_hpa(spec=spec)])
    assert view.variant.reader == Reader(
        "HorizontalPodAutoscaler chat/llama-a100", "AverageValue", 1.5, 0.0, 0.05
    )


def test_the_reader_of_a_value_target_has_the_clusters_tolerance_by_default() -> None:
    spec = {"metrics": [a_metric({"type": "Value", "value": "2"})]}
    view = the_view(hpas=[an_hpa(spec=spec)])
    assert view.variant.reader == Reader(
        "HorizontalPodAutoscaler chat/llama-a100", "Value", 2.0, 0.1, 0.1
    )


def test_an_hpa_that_reads_another_metric_is_no_reader() -> None:
    spec = {"metrics": [a_metric({"type": "Value", "value": "2"}, name="queue_length")]}
    assert the_view(hpas=[an_hpa(spec=spec)]).variant.reader is None


def test_a_target_value_of_zero_is_named() -> None:
    spec = {"metrics": [a_metric({"type": "AverageValue", "averageValue": "0"})]}
    (view,) = described(hpas=[an_hpa(spec=spec)]).views
    assert view.problem is not None
    assert "target 0.0, want a positive number" in view.problem


@pytest.mark.parametrize(
    ("text", "number"),
    [("1", 1), (3, 3), ("1500m", 1.5), ("2k", 2000), ("1e3", 1000), (".5", 0.5), ("100u", 1e-4)],
)
def test_a_quantity_is_the_number_that_it_stands_for(text: str | int, number: float) -> None:
    assert parse_quantity(text) == number


@pytest.mark.parametrize("text", ["", "m", "1Ki", "1 ", "nan", "1_0", "0x1"])
def test_what_is_no_decimal_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"want a quantity such as 1 or 1500m"):
        parse_quantity(text)


@pytest.mark.parametrize(
    ("product", "accelerator"),
    [
        ("NVIDIA-A100-PCIE-80GB", "A100"),
        ("NVIDIA-A100-SXM4-40GB", "A100"),
        ("NVIDIA-H100-80GB-HBM3", "H100"),
        ("NVIDIA-H200-NVL", "H200"),
        ("NVIDIA-L40S", "L40S"),
        ("NVIDIA-GeForce-RTX-4090", "RTX-4090"),
        ("NVIDIA-RTX-A6000", "RTX-A6000"),
        ("Tesla-T4", "T4"),
        ("Tesla-T4-SHARED", "T4"),
        ("NVIDIA-A100-SXM4-40GB-MIG-1g.5gb", "A100-MIG-1g.5gb"),
        ("AMD_Instinct_MI300X_OAM", "MI300X"),
        ("nvidia-h100-80gb", "H100"),
        ("nvidia-tesla-t4", "T4"),
        ("H100", "H100"),
        ("NVIDIA", "NVIDIA"),
    ],
)
def test_a_products_name_is_normalised_to_its_device(product: str, accelerator: str) -> None:
    assert normalise(product) == accelerator


def test_the_accelerator_comes_from_the_label_then_the_selector_then_the_nodes() -> None:
    selecting: Document = {"nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-A100-PCIE-80GB"}}
    terms = [
        {
            "matchExpressions": [
                {
                    "key": "nvidia.com/gpu.product",
                    "operator": "In",
                    "values": ["NVIDIA-L40S"],
                }
            ]
        }
    ]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    leaning: Document = {"affinity": {"nodeAffinity": required}}
    label = {"inference.optimization/acceleratorName": "MI300X"}
    around = {"pods": [a_pod()], "nodes": [a_node()]}

    def found(deployment: Document) -> str | None:
        view = the_view(hpas=[an_hpa()], deployments=[deployment], **around)
        return view.variant.accelerator

    assert found(a_workload(labels=label, pod_spec=selecting)) == "MI300X"
    assert found(a_workload(pod_spec=selecting)) == "A100"
    assert found(a_workload(pod_spec=leaning)) == "L40S"
    assert found(a_workload()) == "H100"


def test_pods_on_unlike_nodes_leave_the_accelerator_unknown() -> None:
    view = the_view(
        hpas=[an_hpa()],
        pods=[a_pod("a", node="n0"), a_pod("b", node="n1")],
        nodes=[a_node("n0"), a_node("n1", "NVIDIA-L40S")],
    )
    assert view.variant.accelerator is None


def test_a_variant_without_pods_keeps_the_accelerator_that_its_nodes_told() -> None:
    before = described(hpas=[an_hpa()], pods=[a_pod()], nodes=[a_node()])
    after = described(hpas=[an_hpa()], pods=[], nodes=[a_node()], before=before)
    assert after.views[0].variant.accelerator == "H100"


def test_a_replica_occupies_what_its_containers_request_together() -> None:
    containers = [
        {"resources": {"requests": {"nvidia.com/gpu": "4", "cpu": "8"}}},
        {"resources": {"limits": {"nvidia.com/gpu": 2}}},  # a limit alone is a request too
        {"resources": {"limits": {"nvidia.com/gpu": "1"}, "requests": {"nvidia.com/gpu": "1"}}},
        {"resources": {"requests": {"gpu.intel.com/xe": "1", "example.com/gpu": "9"}}},
    ]
    view = the_view(hpas=[an_hpa()], deployments=[a_workload(pod_spec={"containers": containers})])
    assert view.variant.accelerators_per_replica == 4 + 2 + 1 + 1


@pytest.mark.parametrize(
    ("resources", "named"),
    [
        ([{"limits": {"nvidia.com/gpu": "4"}}, {"requests": {"cpu": "8"}}], "nvidia.com/gpu"),
        ([{"limits": {"nvidia.com/gpu": 1}}, {"limits": {"gpu.intel.com/xe": 1}}], None),
        ([{"requests": {"cpu": "8"}}], None),
    ],
)
def test_devices_are_known_by_the_name_that_a_quota_counts_them_by(
    resources: list[Document], named: str | None
) -> None:
    pod_spec = {"containers": [{"resources": one} for one in resources]}
    view = the_view(hpas=[an_hpa()], deployments=[a_workload(pod_spec=pod_spec)])
    assert view.variant.resource == named


def replica_of(pod: Document) -> tuple[str | None, str | None]:
    view = read_replica(msgspec.convert(pod, Pod))
    return view.url, view.problem


def test_a_pod_is_a_replica_with_its_phase_and_age() -> None:
    view = read_replica(msgspec.convert(a_pod(), Pod))
    assert (view.uid, view.name) == ("uid-llama-a100-x", "llama-a100-x")
    assert view.created_at_s == 1767323045  # 2026-01-02T03:04:05Z
    assert view.phase is Phase.READY
    assert read_replica(msgspec.convert(a_pod(ready=False), Pod)).phase is Phase.STARTING
    # It answers its readiness probe still, and is on its way out.
    assert read_replica(msgspec.convert(a_pod(terminating=True), Pod)).phase is Phase.TERMINATING


def test_a_pod_says_in_which_order_its_controller_removes_it() -> None:
    def read(name: str = "llama-7", owner: str = "ReplicaSet", **annotations: str) -> list[object]:
        pod = a_pod(name, annotations={f"{DELETION_COST}": v for v in annotations.values()})
        pod["metadata"]["ownerReferences"] = [{"kind": owner, "name": "llama"}]
        view = read_replica(msgspec.convert(pod, Pod))
        return [view.node, view.deletion_cost, view.ordinal]

    assert read() == ["n0", None, None]
    assert read(cost="-10") == ["n0", -10, None]
    # As the controller does: what is no number counts for nothing.
    assert read(cost="+5") == read(cost="05") == read(cost="low") == ["n0", None, None]
    assert read(owner="StatefulSet") == ["n0", None, 7]


def pulled(
    *containers: Document, first: list[Document] | None = None, scheduled: str = "03:04:06"
) -> tuple[float | None, float | None]:
    """Return what a pod with these containers says of its image, in seconds from its creation."""
    pod = a_pod(ready=False)
    pod["status"]["conditions"] = [
        {
            "type": "PodScheduled",
            "status": "True",
            "lastTransitionTime": f"2026-01-02T{scheduled}Z",
        }
    ]
    pod["status"]["containerStatuses"] = list(containers)
    pod["status"]["initContainerStatuses"] = first or []
    view = read_replica(msgspec.convert(pod, Pod))
    assert view.created_at_s is not None
    since_s, began_s = view.pulling_since_s, view.began_at_s
    return (
        None if since_s is None else since_s - view.created_at_s,
        None if began_s is None else began_s - view.created_at_s,
    )


def test_a_pod_says_from_when_its_image_was_pulled_and_when_its_engine_began() -> None:
    def running(time: str, restarts: int = 0) -> Document:
        began = {"running": {"startedAt": f"2026-01-02T{time}Z"}}
        return {"name": "engine", "restartCount": restarts, "state": began}

    waiting = {"name": "engine", "state": {"waiting": {"reason": "ContainerCreating"}}}
    weights = {"name": "weights", "state": {"terminated": {"finishedAt": "2026-01-02T03:08:05Z"}}}

    assert pulled(waiting) == (1, None)
    assert pulled(running("03:04:08")) == (1, 3)
    # A download of 4 minutes before the engine is no pull of its image.
    assert pulled(running("03:08:07"), first=[weights]) == (240, 242)
    assert pulled(waiting, first=[running("03:04:08")]) == (None, None)
    # A sidecar runs as long as the engine does.
    assert pulled(running("03:04:10"), first=[running("03:04:08")]) == (1, 5)
    # A proxy beside the engine runs before the engine's image is there.
    assert pulled(running("03:04:08"), waiting) == (1, None)
    assert pulled(running("03:04:08"), running("03:07:05")) == (1, 180)
    # After a restart nothing tells of the first time.
    assert pulled(running("05:00:00", restarts=1)) == (None, None)


def test_pods_that_ended_are_no_replicas() -> None:
    pods = [a_pod("a"), a_pod("b", phase="Failed"), a_pod("c", phase="Succeeded")]
    view = the_view(hpas=[an_hpa()], pods=pods)
    assert [replica.name for replica in view.replicas] == ["a"]


def test_the_page_is_at_the_annotated_place_else_at_a_named_port_else_at_8000() -> None:
    ports = [
        {"name": "api", "containerPort": 8001},
        {"name": "http", "containerPort": 8002},
        {"name": "grpc", "containerPort": 8003},
    ]
    assert replica_of(a_pod()) == ("http://10.1.0.7:8000/metrics", None)
    assert replica_of(a_pod(ports=ports)) == ("http://10.1.0.7:8002/metrics", None)
    metrics = {"name": "metrics", "containerPort": 8004}
    assert replica_of(a_pod(ports=[*ports, metrics])) == ("http://10.1.0.7:8004/metrics", None)
    annotations = {
        "prometheus.io/scheme": "https",
        "prometheus.io/port": "9",
        "prometheus.io/path": "/m?x=1",
    }
    assert replica_of(a_pod(ports=ports, annotations=annotations)) == (
        "https://10.1.0.7:9/m?x=1",
        None,
    )
    annotations["llm-d.ai/metrics-port"] = "10"
    assert replica_of(a_pod(ports=ports, annotations=annotations)) == (
        "https://10.1.0.7:10/m?x=1",
        None,
    )
    assert replica_of(a_pod(ip="fd00::7")) == ("http://[fd00::7]:8000/metrics", None)


@pytest.mark.parametrize(
    ("annotations", "problem"),
    [
        ({"prometheus.io/port": "0"}, "prometheus.io/port: found '0', want a port from 1 to 65535"),
        ({"prometheus.io/port": "65536"}, "found '65536', want a port"),
        ({"prometheus.io/port": "80@evil"}, "found '80@evil', want a port"),
        ({"llm-d.ai/metrics-port": "http"}, "llm-d.ai/metrics-port: found 'http', want a port"),
        ({"prometheus.io/scheme": "file"}, "found 'file', want http or https"),
        ({"prometheus.io/path": "metrics"}, "found 'metrics', want /PATH"),
        ({"prometheus.io/path": "/a b"}, "found '/a b', want /PATH"),
        ({"prometheus.io/path": "/a\r\nHost: evil"}, "want /PATH"),
    ],
)
def test_an_annotation_that_leads_nowhere_is_named_and_nothing_is_asked(
    annotations: dict[str, str], problem: str
) -> None:
    url, found = replica_of(a_pod(annotations=annotations))
    assert url is None
    assert found is not None
    assert problem in found


def test_whatever_its_annotations_say_a_pod_is_asked_at_its_own_address() -> None:
    url, _ = replica_of(a_pod(annotations={"prometheus.io/path": "//evil.example/metrics"}))
    assert url == "http://10.1.0.7:8000//evil.example/metrics"


def test_a_pod_without_an_address_is_not_asked_yet() -> None:
    assert replica_of(a_pod(ip=None, ready=False)) == (None, "no address yet")


def test_match_expressions_find_pods_and_an_empty_selector_finds_none() -> None:
    deployment = a_workload()
    deployment["spec"]["selector"] = {
        "matchExpressions": [
            {"key": "app", "operator": "In", "values": ["llama-a100"]},
            {"key": "canary", "operator": "DoesNotExist"},
            {"key": "app", "operator": "Exists"},
            {"key": "app", "operator": "NotIn", "values": ["other"]},
        ]
    }
    canary = a_pod("b")
    canary["metadata"]["labels"]["canary"] = "yes"
    pods = [a_pod("a"), canary, a_pod("c", app="other")]
    view = the_view(hpas=[an_hpa()], deployments=[deployment], pods=pods)
    assert [replica.name for replica in view.replicas] == ["a"]

    deployment["spec"]["selector"] = {}
    assert the_view(hpas=[an_hpa()], deployments=[deployment], pods=pods).replicas == ()


def a_waiting_pod(*conditions: Document, gates: list[Document] | None = None) -> Document:
    pod = a_pod(ready=False, ip=None, node="", phase="Pending")
    pod["status"]["conditions"] = list(conditions)
    pod["spec"]["schedulingGates"] = gates or []
    return pod


def unplaced(pod: Document) -> tuple[str | None, float | None]:
    view = read_replica(msgspec.convert(pod, Pod))
    return view.unscheduled, view.unscheduled_since_s


def test_a_pod_that_the_scheduler_finds_no_node_for_says_so_and_since_when() -> None:
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/3 nodes are available",
        "lastTransitionTime": "2026-01-02T03:04:08Z",
    }
    assert unplaced(a_waiting_pod(condition)) == ("Unschedulable", 1767323048.0)
    scheduled = {"type": "PodScheduled", "status": "True"}
    assert unplaced(a_waiting_pod(scheduled)) == (None, None)
    assert unplaced(a_pod()) == (None, None)


def test_a_gated_pod_is_gated_with_and_without_the_schedulers_word() -> None:
    gates = [{"name": "kueue.x-k8s.io/admission"}]
    created_s = 1767323045.0
    assert unplaced(a_waiting_pod(gates=gates)) == ("SchedulingGated", created_s)
    condition = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}
    assert unplaced(a_waiting_pod(condition, gates=gates)) == ("SchedulingGated", created_s)


def test_a_workload_whose_pods_are_refused_says_why() -> None:
    workload = a_workload()
    message = 'pods "llama-a100-x" is forbidden: exceeded quota: gpus'
    workload["status"]["conditions"] = [
        {"type": "Available", "status": "True"},
        {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message},
    ]
    (view,) = described(hpas=[an_hpa()], deployments=[workload]).views
    assert view.refused == message
    (view,) = described(hpas=[an_hpa()]).views
    assert view.refused is None
