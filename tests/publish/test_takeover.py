"""The API group changes hands only where nobody is cut off, and comes back as it was."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.publish.registry_api import (
    KEDAS,
    OURS,
    SETTINGS,
    VALUES,
    RegistryApi,
    bundle,
    registered,
)
from wva_adapter.errors import ClusterError
from wva_adapter.kube.api import KubernetesApi
from wva_adapter.publish.apiservice import FORMER, ServiceAddress
from wva_adapter.publish.takeover import Chained, Registration, Registry

pytestmark = pytest.mark.anyio

ADAPTER = ServiceAddress("wva-system", "wva-adapter")
PATCHES = "--enable-cert-rotation=true"
PATCHES_NOT = "--enable-apiservice-patching=false"


class Administrator:
    def __init__(self, connection: KubernetesApi) -> None:
        self.registry = Registry(connection, ADAPTER, within_s=0.5, settled_s=0.0)
        self.settings: list[tuple[str | None, ServiceAddress]] = []
        self.chained = Chained()

    async def take_over(self, *, ca: bytes | None = OURS, force: bool = False) -> Registration:
        def read_settings(text: str | None, owner: ServiceAddress) -> Chained:
            self.settings.append((text, owner))
            return self.chained

        return await self.registry.take_over(ca=ca, read_settings=read_settings, force=force)

    async def refused(self) -> str:
        with pytest.raises(ClusterError) as caught:
            await self.take_over()
        return str(caught.value)


@pytest.fixture
async def admin(api: RegistryApi, tmp_path: Path) -> AsyncIterator[Administrator]:
    connection = KubernetesApi(api.write_kubeconfig(tmp_path / "kubeconfig"))
    yield Administrator(connection)
    await connection.close()


def written(document: Any) -> Any:
    """What somebody wrote of it."""
    metadata = {
        key: value
        for key, value in document["metadata"].items()
        if key not in ("resourceVersion", "managedFields", "uid")
    }
    return {"metadata": metadata, "spec": document["spec"]}


async def test_a_group_without_an_owner_is_taken(api: RegistryApi, admin: Administrator) -> None:
    before = await admin.registry.status()
    assert before.lines() == [
        "v1beta1.external.metrics.k8s.io",
        "  owner      nobody: there is no such APIService",
    ]
    found = await admin.take_over()
    assert found.ours
    assert found.available
    assert api.service is not None
    assert written(api.service) == {
        "metadata": {
            "name": "v1beta1.external.metrics.k8s.io",
            "labels": {"app.kubernetes.io/name": "wva-adapter"},
            "annotations": {},
        },
        "spec": {
            "group": "external.metrics.k8s.io",
            "version": "v1beta1",
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
            "service": {"namespace": "wva-system", "name": "wva-adapter", "port": 443},
            "caBundle": bundle(OURS),
        },
    }


async def test_what_is_taken_over_comes_back_exactly_as_it_was(
    api: RegistryApi, admin: Administrator
) -> None:
    api.run_keda(PATCHES, PATCHES_NOT)
    api.register(registered())
    found = await admin.take_over()
    assert found.document() == {
        "apiservice": "v1beta1.external.metrics.k8s.io",
        "owner": "wva-system/wva-adapter",
        "ours": True,
        "available": True,
        "problem": None,
        "former": "keda/keda-metrics-apiserver",
        "ca_bundle_written_by": "wva-adapter",
        "keda": {"operator": "keda/keda-operator", "rewrites_ca_bundle": False},
    }
    assert found.lines() == [
        "v1beta1.external.metrics.k8s.io",
        "  owner      wva-system/wva-adapter (us)",
        "  available  yes",
        "  on record  keda/keda-metrics-apiserver, put back by --restore",
        "  caBundle   written by wva-adapter",
        "  KEDA       keda/keda-operator, which leaves caBundle alone",
    ]
    assert api.service is not None
    assert list(api.service["metadata"]["annotations"]) == [FORMER]
    assert "ownerReferences" not in api.service["metadata"]

    restored = await admin.registry.restore()
    assert restored.owner == ServiceAddress("keda", "keda-metrics-apiserver")
    assert written(api.service) == written(registered())


async def test_taking_what_is_ours_changes_nothing(api: RegistryApi, admin: Administrator) -> None:
    api.register(registered())
    await admin.take_over()
    writes = len(api.written)
    assert (await admin.take_over()).former == ServiceAddress("keda", "keda-metrics-apiserver")
    assert len(api.written) == writes


async def test_without_an_authority_the_running_adapter_writes_its_own(
    api: RegistryApi, admin: Administrator
) -> None:
    await admin.take_over(ca=None)
    assert api.service is not None
    assert "caBundle" not in api.service["spec"]


@pytest.mark.parametrize(
    ("arguments", "rewrites"),
    [
        ([PATCHES], True),
        (["--enable-cert-rotation"], True),
        ([PATCHES, "--enable-apiservice-patching=true"], True),
        ([PATCHES, PATCHES_NOT], False),
        # Without certificates of its own it has no CA to write.
        ([], False),
        (["--enable-cert-rotation=false"], False),
    ],
)
async def test_keda_rewrites_the_bundle_unless_it_is_told_not_to(
    api: RegistryApi, admin: Administrator, arguments: list[str], rewrites: bool
) -> None:
    api.run_keda(*arguments)
    api.register(registered())
    keda = (await admin.registry.status()).keda
    assert keda is not None
    assert keda.rewrites_ca_bundle is rewrites
    if rewrites:
        said = await admin.refused()
        assert said.startswith(
            "v1beta1.external.metrics.k8s.io belongs to keda/keda-metrics-apiserver and was not "
            "taken over: KEDA's operator keda/keda-operator would write its own CA into caBundle"
        )
        assert "want it to run with --enable-apiservice-patching=false" in said
        assert api.written == []
        assert (await admin.take_over(force=True)).ours


async def test_an_owner_that_the_settings_do_not_chain_is_not_cut_off(
    api: RegistryApi, admin: Administrator
) -> None:
    api.register(registered())
    admin.chained = Chained("chain.former_owner is false")
    said = await admin.refused()
    assert "keda/keda-metrics-apiserver would be cut off: chain.former_owner is false" in said
    assert "(--force takes it all the same)" in said
    assert admin.settings == [("cluster: {}", ServiceAddress("keda", "keda-metrics-apiserver"))]
    api.settings = None
    await admin.refused()
    assert admin.settings[-1][0] is None
    assert api.written == []


async def test_an_owner_that_would_not_let_us_in_is_not_cut_off(
    api: RegistryApi, admin: Administrator
) -> None:
    api.register(registered())
    api.allowed = False
    said = await admin.refused()
    assert "system:serviceaccount:wva-system:wva-adapter may not list external.metrics" in said
    assert "want apiservice/rbac.yaml applied" in said
    assert api.written == []
    assert api.reviewed[0]["resourceAttributes"] == {
        "verb": "list",
        "group": "external.metrics.k8s.io",
        "resource": "*",
    }
    # Where it goes by a token of its own, the account does not matter.
    admin.chained = Chained(as_account=False)
    assert (await admin.take_over()).ours


async def test_kube_apiserver_itself_cannot_be_chained(
    api: RegistryApi, admin: Administrator
) -> None:
    local = registered()
    api.register(local)
    assert api.service is not None
    del api.service["spec"]["service"]
    assert "kube-apiserver itself would be cut off" in await admin.refused()


async def test_an_adapter_that_is_not_reached_gives_it_back_at_once(
    api: RegistryApi, admin: Administrator
) -> None:
    api.reached["wva-adapter"] = False
    api.register(registered())
    said = await admin.refused()
    assert said == (
        "v1beta1.external.metrics.k8s.io was taken over and given back at once: within 0.5 s "
        "kube-apiserver does not reach it (FailedDiscoveryCheck: bad certificate); it belongs to "
        "keda/keda-metrics-apiserver again"
    )
    assert api.service is not None
    assert written(api.service) == written(registered())

    api.remove("/apis/apiregistration.k8s.io/v1/apiservices", "v1beta1.external.metrics.k8s.io")
    assert (await admin.refused()).endswith("; there is none now, as before")
    assert api.service is None


async def test_a_metric_that_had_a_value_and_has_none_any_more_gives_it_back(
    api: RegistryApi, admin: Administrator
) -> None:
    api.register(registered())
    for metric in ("s0-lag", "s1-broken", "wva_desired_replicas"):
        api.read_by_an_hpa(metric)
    api.values = {
        "keda-metrics-apiserver": {"s0-lag", "wva_desired_replicas"},
        "wva-adapter": set(),
    }
    said = await admin.refused()
    assert "metric s0-lag of another provider, which had a value before, has none" in said
    assert "wva-adapter does not know it" in said
    assert api.service is not None
    assert written(api.service) == written(registered())
    asked = {
        (path.removeprefix(VALUES), query["labelSelector"])
        for path, query in api.asked
        if path.startswith(VALUES)
    }
    selector = "scaledobject.keda.sh/name=queue,tier in (a,b)"
    assert asked == {("chat/s0-lag", selector), ("chat/s1-broken", selector)}

    # What had no value before is no reason.
    api.values["wva-adapter"] = {"s0-lag"}
    assert (await admin.take_over()).ours


async def test_what_somebody_changed_meanwhile_is_not_overwritten(
    api: RegistryApi, admin: Administrator
) -> None:
    api.register(registered())

    def meanwhile(text: str | None, owner: ServiceAddress) -> Chained:
        api.register(registered("prometheus-adapter", "monitoring"))
        return Chained()

    with pytest.raises(ClusterError, match="HTTP 409: the object has been modified"):
        await admin.registry.take_over(ca=OURS, read_settings=meanwhile)
    assert api.service is not None
    assert api.service["spec"]["service"]["name"] == "prometheus-adapter"


async def test_nothing_is_restored_that_is_not_on_record(
    api: RegistryApi, admin: Administrator
) -> None:
    with pytest.raises(ClusterError, match=r"there is no v1beta1\S+: nothing to restore"):
        await admin.registry.restore()
    await admin.take_over()
    with pytest.raises(
        ClusterError, match=r"has no former owner on record \(annotation wva-adapter/"
    ):
        await admin.registry.restore()


async def test_what_another_took_since_is_not_restored_over(
    api: RegistryApi, admin: Administrator
) -> None:
    api.register(registered())
    await admin.take_over()
    assert api.service is not None
    api.service["spec"]["service"]["name"] = "prometheus-adapter"
    with pytest.raises(
        ClusterError,
        match="belongs to wva-system/prometheus-adapter, want wva-system/wva-adapter: somebody",
    ):
        await admin.registry.restore()
    assert (await admin.registry.restore(force=True)).owner == ServiceAddress(
        "keda", "keda-metrics-apiserver"
    )


async def test_a_former_owner_that_is_back_and_not_reached_is_told_of(
    api: RegistryApi, admin: Administrator
) -> None:
    api.register(registered())
    await admin.take_over()
    api.reached["keda-metrics-apiserver"] = False
    with pytest.raises(
        ClusterError,
        match=r"is back with keda/keda-metrics-apiserver, and within 0\.5 s kube-apiserver does not",
    ):
        await admin.registry.restore()
    status = await admin.registry.status()
    assert "  available  no, FailedDiscoveryCheck: bad certificate" in status.lines()
    assert not status.ours


async def test_an_object_too_large_for_the_record_stays_where_it_is(
    api: RegistryApi, admin: Administrator
) -> None:
    large = registered(ca=bytes(200_000))
    api.register(large)
    assert "want at most 204800 to put it on record" in await admin.refused()
    assert api.written == []


async def test_deployments_that_may_not_be_read_leave_keda_unknown(
    api: RegistryApi, admin: Administrator
) -> None:
    api.refused["/apis/apps/v1/deployments"] = 403
    api.register(registered(ca=KEDAS))
    assert (await admin.registry.status()).keda is None
    api.refused[SETTINGS] = 403
    with pytest.raises(ClusterError, match="configmaps/wva-adapter: HTTP 403"):
        await admin.take_over()
