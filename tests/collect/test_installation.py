"""The manifests that are shipped say what the adapter understands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from wva_adapter.collect.manifests import Objects, describe
from wva_adapter.collect.objects import Autoscaler, ScaledObject
from wva_adapter.core.fleet import Reader
from wva_adapter.settings import parse_settings

ROOT = Path(__file__).parents[2]


def documents(*path: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(ROOT.joinpath("manifests", *path).read_text()))


def test_the_shipped_settings_are_valid_and_read_the_cluster_as_the_pods_account() -> None:
    (config,) = documents("base", "config.yaml")
    settings = parse_settings(config["data"]["config.yaml"], "config.yaml")
    assert settings.cluster is not None
    assert settings.cluster.kubeconfig is None
    assert settings.listen.port == 6443


def test_what_the_settings_name_is_mounted() -> None:
    (config,) = documents("base", "config.yaml")
    (deployment,) = documents("base", "deployment.yaml")
    settings = parse_settings(config["data"]["config.yaml"], "config.yaml")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    for file in (settings.tls.cert_file, settings.tls.key_file):
        assert file is not None
        assert str(Path(file).parent) in mounts
    assert "--config=/etc/wva-adapter/config.yaml" in container["args"]
    assert "/etc/wva-adapter" in mounts
    assert "config.yaml" in config["data"]


def test_the_sample_hpas_are_two_variants_whose_readers_ignore_no_step() -> None:
    samples = [msgspec.convert(hpa, Autoscaler) for hpa in documents("samples", "hpas.yaml")]
    described = describe(Objects(autoscalers={hpa.metadata.key: hpa for hpa in samples}), {})
    assert described.problems == ()
    assert [
        (view.variant.key.name, view.variant.model_id, view.variant.cost_per_h)
        for view in described.views
    ] == [("llama-a100", "llama", 1.2), ("llama-h100", "llama", 3.0)]
    for view in described.views:
        reader = view.variant.reader
        assert reader is not None
        assert reader == Reader(reader.name, "AverageValue", 1.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("kind", "variant", "bounds"),
    [("metrics-api", "llama-a100", (1, 4)), ("prometheus", "llama-h100", (0, 4))],
)
def test_each_sample_scaled_object_reads_the_count_of_its_own_variant(
    kind: str, variant: str, bounds: tuple[int, int]
) -> None:
    (document,) = documents("samples", f"scaledobject-{kind}.yaml")
    sample = msgspec.convert(document, ScaledObject)
    described = describe(Objects(scaled_objects={sample.metadata.key: sample}), {})
    assert described.problems == ()
    (found,) = (view.variant for view in described.views)
    assert str(found.key) == f"chat/{variant}"
    assert (found.min_replicas, found.max_replicas) == bounds
    assert found.reader == Reader(
        f"ScaledObject chat/{variant}",
        "AverageValue",
        1.0,
        0.0,
        0.0,
        shaped=False,
        least_active=bounds[0],
    )
    assert [trigger.type for trigger in sample.spec.triggers] == [kind]


def test_the_samples_send_the_token_of_an_account_that_may_list_the_counts() -> None:
    parts = {part["kind"]: part for part in documents("samples", "keda-reader.yaml")}
    account = parts["ServiceAccount"]["metadata"]
    secret, authentication = parts["Secret"], parts["TriggerAuthentication"]
    annotations = secret["metadata"]["annotations"]
    assert annotations["kubernetes.io/service-account.name"] == account["name"]
    assert authentication["spec"]["secretTargetRef"] == [
        {"parameter": "token", "name": secret["metadata"]["name"], "key": "token"}
    ]
    assert parts["Role"]["rules"] == [
        {
            "apiGroups": ["external.metrics.k8s.io"],
            "resources": ["wva_desired_replicas"],
            "verbs": ["list"],
        }
    ]
    (subject,) = parts["RoleBinding"]["subjects"]
    assert (subject["name"], subject["namespace"]) == (account["name"], account["namespace"])
    for kind in ("metrics-api", "prometheus"):
        (document,) = documents("samples", f"scaledobject-{kind}.yaml")
        (trigger,) = document["spec"]["triggers"]
        assert trigger["authenticationRef"]["name"] == authentication["metadata"]["name"]
        assert document["metadata"]["namespace"] == account["namespace"]


def test_the_scaled_objects_of_the_readme_are_the_samples() -> None:
    readme = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^```yaml\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    shown = [document for block in blocks for document in yaml.safe_load_all(block)]
    assert [document for document in shown if document.get("kind") == "ScaledObject"] == [
        *documents("samples", "scaledobject-metrics-api.yaml"),
        *documents("samples", "scaledobject-prometheus.yaml"),
    ]
