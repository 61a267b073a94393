"""The cluster as followed over a real connection, with an API server that misbehaves on demand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from tests.collect.apiserver import (
    DEPLOYMENTS,
    HPAS,
    NODES,
    PODS,
    QUOTAS,
    SCALED_OBJECTS,
    STATEFUL_SETS,
    ApiServer,
    eventually,
)
from tests.collect.test_autoscalers import a_scaled_object
from tests.collect.test_manifests import a_node, a_pod, a_workload, an_hpa
from wva_adapter.collect.assemble import VariantView
from wva_adapter.collect.cluster import ClusterSource
from wva_adapter.core.inventory import ResourceQuota
from wva_adapter.errors import ClusterError, ConfigError
from wva_adapter.kube.api import KubernetesApi, Refused

pytestmark = pytest.mark.anyio


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
async def api() -> AsyncIterator[ApiServer]:
    """An API server with one variant of three replicas, two of which have a pod."""
    server = ApiServer()
    server.put(HPAS, an_hpa())
    server.put(DEPLOYMENTS, a_workload(replicas=3))
    server.put(PODS, a_pod("p-1"))
    server.put(PODS, a_pod("p-2", ready=False))
    server.put(NODES, a_node())
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def source(api: ApiServer, clock: Clock, tmp_path: Path) -> AsyncIterator[ClusterSource]:
    """The cluster as followed from that server, all of it listed and watched."""
    source = a_source(api, tmp_path, clock)
    await source.start()
    await eventually(lambda: all(map(api.watching, (HPAS, DEPLOYMENTS, PODS, NODES))))
    yield source
    await source.stop()


def a_source(
    api: ApiServer, folder: Path, clock: Clock, namespaces: Sequence[str] = ()
) -> ClusterSource:
    kubeconfig = api.write_kubeconfig(folder / "kubeconfig")
    return ClusterSource(kubeconfig, namespaces, start_tries=2, clock=clock)


def the_view(source: ClusterSource) -> VariantView:
    (view,) = source.view()
    return view


def replicas(source: ClusterSource) -> list[str]:
    return [replica.name for view in source.view() for replica in view.replicas]


async def test_once_started_all_that_exists_is_in_view(source: ClusterSource) -> None:
    view = the_view(source)
    assert str(view.variant.key) == "chat/llama-a100"
    assert view.variant.accelerator == "H100"
    assert view.spec_replicas == 3
    assert replicas(source) == ["p-1", "p-2"]
    assert view.problem is None


async def test_what_changes_is_in_view_at_once(api: ApiServer, source: ClusterSource) -> None:
    api.put(PODS, a_pod("p-3"))
    await eventually(lambda: replicas(source) == ["p-1", "p-2", "p-3"])

    api.remove(PODS, "p-1")
    await eventually(lambda: replicas(source) == ["p-2", "p-3"])

    api.put(DEPLOYMENTS, a_workload(replicas=8))
    await eventually(lambda: the_view(source).spec_replicas == 8)

    api.remove(HPAS, "llama-a100")
    await eventually(lambda: source.view() == ())
    assert len(api.lists(PODS)) == 1  # all of it came as events


async def test_nodes_are_known_where_all_pods_are_seen(
    api: ApiServer, source: ClusterSource, clock: Clock, tmp_path: Path
) -> None:
    gpu = {"resources": {"limits": {"nvidia.com/gpu": "2"}}}
    api.put(PODS, {**a_pod("p-3"), "spec": {"nodeName": "n0", "containers": [gpu]}})
    await eventually(lambda: [n.requested for n in source.nodes or ()] == [2])

    part = a_source(api, tmp_path, clock, namespaces=["chat"])
    assert part.nodes is None


async def test_a_long_list_comes_in_pages(api: ApiServer, clock: Clock, tmp_path: Path) -> None:
    api.page_size = 4
    for i in range(3, 11):
        api.put(PODS, a_pod(f"p-{i}"))
    source = a_source(api, tmp_path, clock)
    await source.start()
    assert len(replicas(source)) == 10
    # 4 + 4 + 2 pods
    assert [query.get("continue") for query in api.lists(PODS)] == [None, "4", "8"]
    assert {query["limit"] for query in api.lists(PODS)} == {"500"}
    await source.stop()


async def test_a_list_whose_pages_age_out_begins_anew(
    api: ApiServer, clock: Clock, tmp_path: Path
) -> None:
    api.page_size, api.expired_continues = 1, 1
    source = a_source(api, tmp_path, clock)
    await source.start()
    assert replicas(source) == ["p-1", "p-2"]
    await source.stop()


async def test_after_a_turn_it_goes_on_from_the_last_bookmark(
    api: ApiServer, source: ClusterSource
) -> None:
    version = api.bookmark(PODS)
    api.end_turn(PODS)
    await eventually(lambda: len(api.watches(PODS)) == 2)
    first, second = api.watches(PODS)
    assert first["allowWatchBookmarks"] == "true"
    assert second["resourceVersion"] == version
    assert len(api.lists(PODS)) == 1
    assert the_view(source).problem is None


async def test_a_connection_that_died_silently_is_replaced_when_its_turn_is_over(
    api: ApiServer, clock: Clock, tmp_path: Path
) -> None:
    kubeconfig = api.write_kubeconfig(tmp_path / "kubeconfig")
    source = ClusterSource(kubeconfig, watch_turn_s=0.5, clock=clock)
    await source.start()
    # The server never ends a turn, so that it looks like one that has gone without a word.
    await eventually(lambda: len(api.watches(PODS)) == 2)
    assert len(api.lists(PODS)) == 1
    await source.stop()


@pytest.mark.parametrize("gone_as", ["status", "event"])
async def test_a_version_too_old_to_go_on_from_is_listed_anew(
    api: ApiServer, source: ClusterSource, gone_as: str
) -> None:
    api.gone_as = gone_as
    await api.stop()
    api.remove(PODS, "p-1")
    api.put(PODS, a_pod("p-9"))
    api.forget()
    await api.start()
    # The deletion itself was never told: only a list can show that the pod is gone.
    await eventually(lambda: replicas(source) == ["p-2", "p-9"])
    assert the_view(source).problem is None


async def test_half_an_event_is_no_event_and_the_whole_one_comes_after_it(
    api: ApiServer, source: ClusterSource
) -> None:
    api.say(PODS, b'{"type":"DELETED","object":{"metadata":{"name":"p-1","namespace":"chat"')
    await eventually(lambda: len(api.watches(PODS)) == 2)
    assert replicas(source) == ["p-1", "p-2"]

    api.put(PODS, a_pod("p-3"))
    await eventually(lambda: replicas(source) == ["p-1", "p-2", "p-3"])
    assert len(api.lists(PODS)) == 1


async def test_a_blank_line_is_no_event(api: ApiServer, source: ClusterSource) -> None:
    event = b'{"type":"DELETED","object":{"metadata":{"name":"p-1","namespace":"chat"}}}'
    api.say(PODS, b"\n" + event + b"\n\n")
    await eventually(lambda: replicas(source) == ["p-2"])


@pytest.mark.parametrize(
    "line",
    [b"<html>\n", b'{"type":"ADDED"}\n', b'{"type":"ERROR","object":{"code":500}}\n'],
    ids=["no json", "no object", "error"],
)
async def test_a_stream_that_makes_no_sense_is_left_and_listed_anew(
    api: ApiServer, source: ClusterSource, line: bytes
) -> None:
    api.say(PODS, line)
    await eventually(lambda: len(api.lists(PODS)) == 2)
    assert replicas(source) == ["p-1", "p-2"]


async def test_an_object_that_cannot_be_read_leaves_the_others_in_view(
    api: ApiServer, source: ClusterSource
) -> None:
    api.put(PODS, {"metadata": {"name": "odd", "namespace": "chat"}, "spec": 7})
    api.put(PODS, a_pod("p-3"))
    await eventually(lambda: replicas(source) == ["p-1", "p-2", "p-3"])


async def test_while_the_server_is_away_the_last_view_stays_and_says_so(
    api: ApiServer, source: ClusterSource, clock: Clock
) -> None:
    await api.stop()
    await eventually(lambda: "pods not seen" in problem_after(source, clock, 31))
    view = the_view(source)
    assert (view.spec_replicas, replicas(source)) == (3, ["p-1", "p-2"])

    await api.start()
    await eventually(lambda: the_view(source).problem is None)


def problem_after(source: ClusterSource, clock: Clock, seconds: float) -> str:
    """What the variant says about itself so much later; the clock is put back."""
    clock.now_s += seconds
    problem = the_view(source).problem or ""
    clock.now_s -= seconds
    return problem


async def test_a_short_interruption_is_no_problem(
    api: ApiServer, source: ClusterSource, clock: Clock
) -> None:
    await api.stop()
    await eventually(lambda: "pods not seen" in problem_after(source, clock, 31))
    clock.now_s += 29  # below the 30 s from which it counts
    assert the_view(source).problem is None


async def test_missing_permissions_are_all_named(
    api: ApiServer, clock: Clock, tmp_path: Path
) -> None:
    api.refused = {PODS: 403, NODES: 403}
    source = a_source(api, tmp_path, clock)
    with pytest.raises(ClusterError) as caught:
        await source.start()
    pods, nodes = str(caught.value).splitlines()
    assert pods == (
        "GET /api/v1/pods: HTTP 403: pods is forbidden: cannot list; "
        "the adapter's role needs the verbs list and watch on it"
    )
    assert nodes.startswith("GET /api/v1/nodes: HTTP 403")
    assert len(api.lists(PODS)) == 2  # as often as it was to try


async def test_after_a_start_that_failed_it_can_be_started_again(
    api: ApiServer, clock: Clock, tmp_path: Path
) -> None:
    api.refused = {PODS: 403}
    source = a_source(api, tmp_path, clock)
    with pytest.raises(ClusterError):
        await source.start()
    api.refused.clear()
    await source.start()
    assert replicas(source) == ["p-1", "p-2"]
    await source.stop()


async def test_a_server_that_is_not_there_is_named(
    api: ApiServer, clock: Clock, tmp_path: Path
) -> None:
    source = a_source(api, tmp_path, clock)
    await api.stop()
    with pytest.raises(ClusterError, match=r"GET /api/v1/pods: .*[Cc]onnect"):
        await source.start()


async def test_a_server_that_comes_late_is_waited_for(
    api: ApiServer, clock: Clock, tmp_path: Path
) -> None:
    api.refused = {STATEFUL_SETS: 503}
    source = a_source(api, tmp_path, clock)
    async with anyio.create_task_group() as group:
        group.start_soon(source.start)
        await eventually(lambda: bool(api.lists(STATEFUL_SETS)))
        api.refused.clear()  # before the second try, a quarter of a second later
    assert replicas(source) == ["p-1", "p-2"]
    await source.stop()


def a_quota(
    used: str | None = "7", *, namespace: str = "chat", spec: dict[str, object] | None = None
) -> dict[str, object]:
    gpus, counted = {"requests.nvidia.com/gpu": "8", "requests.cpu": "64"}, {}
    if used is not None:
        counted = {"requests.nvidia.com/gpu": used, "requests.cpu": "9500m"}
    return {
        "metadata": {"name": f"gpus-{namespace}", "namespace": namespace},
        "spec": {"hard": gpus, **(spec or {})},
        "status": {"hard": gpus, "used": counted},
    }


async def test_resource_quotas_are_known_where_there_are_variants(
    api: ApiServer, source: ClusterSource
) -> None:
    assert source.quotas == ()
    api.put(QUOTAS, a_quota())
    api.put(QUOTAS, a_quota(namespace="elsewhere"))
    known = ResourceQuota("chat", "gpus-chat", "requests.nvidia.com/gpu", 8, 7)
    await eventually(lambda: source.quotas == (known,))

    api.put(QUOTAS, a_quota("8"))
    await eventually(lambda: source.quotas == (replace(known, used=8),))

    # What is used was not counted yet, or the quota is of other pods perhaps.
    batch = {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "Exists"}]}
    for unclear in (
        a_quota(None),
        a_quota(spec={"scopes": ["BestEffort"]}),
        a_quota(spec={"scopeSelector": batch}),
    ):
        api.put(QUOTAS, a_quota("8", spec={"scopes": ["NotTerminating"]}))
        await eventually(lambda: source.quotas == (replace(known, used=8),))
        api.put(QUOTAS, unclear)
        await eventually(lambda: source.quotas == ())


async def test_resource_quotas_that_may_not_be_read_are_unknown_and_named_and_nothing_else_is(
    api: ApiServer, clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    api.put(QUOTAS, a_quota())
    api.refused = {QUOTAS: 403}
    kubeconfig = api.write_kubeconfig(tmp_path / "kubeconfig")
    source = ClusterSource(kubeconfig, quotas_forbidden_for_s=0.05, clock=clock)

    await source.start()

    assert source.quotas is None
    await eventually(lambda: len(api.lists(QUOTAS)) > 2)
    told = [r for r in caplog.records if "decided without it" in r.message]
    (problem,) = (record.__dict__["problem"] for record in told)
    assert problem == (
        "GET /api/v1/resourcequotas: HTTP 403: resourcequotas is forbidden: cannot list; "
        "the adapter's role needs the verbs list and watch on it"
    )
    clock.now_s += 3600
    assert the_view(source).problem is None
    api.refused.clear()
    await eventually(lambda: source.quotas is not None)
    await source.stop()


async def test_resource_quotas_whose_watch_is_broken_are_unknown_after_a_while(
    api: ApiServer, source: ClusterSource, clock: Clock
) -> None:
    api.put(QUOTAS, a_quota())
    await eventually(lambda: bool(source.quotas))
    api.refused = {QUOTAS: 500}
    api.end_turn(QUOTAS)
    await eventually(lambda: len(api.watches(QUOTAS)) > 1)
    assert source.quotas
    clock.now_s += 31
    await eventually(lambda: source.quotas is None)
    assert the_view(source).problem is None


async def test_only_the_namespaces_asked_for_are_looked_at(
    api: ApiServer, clock: Clock, tmp_path: Path
) -> None:
    api.put("/api/v1/namespaces/chat/pods", a_pod("p-7"))
    api.put("/apis/apps/v1/namespaces/chat/deployments", a_workload())
    api.put("/apis/autoscaling/v2/namespaces/chat/horizontalpodautoscalers", an_hpa())
    source = a_source(api, tmp_path, clock, namespaces=["chat", "code"])
    await source.start()
    assert replicas(source) == ["p-7"]
    asked = {path for path, _ in api.asked}
    assert "/api/v1/namespaces/code/pods" in asked
    assert NODES in asked  # nodes are in no namespace
    assert not asked & {PODS, DEPLOYMENTS, STATEFUL_SETS, HPAS}
    await source.stop()


async def test_a_token_that_was_replaced_is_read_anew(
    api: ApiServer, clock: Clock, tmp_path: Path
) -> None:
    api.token = "old"
    kubeconfig = api.write_kubeconfig(tmp_path / "kubeconfig", token="old")
    source = ClusterSource(kubeconfig, clock=clock)
    await source.start()
    await eventually(lambda: api.watching(PODS))

    api.token = "new"
    api.end_turn(PODS)
    api.put(PODS, a_pod("p-3"))
    api.write_kubeconfig(tmp_path / "kubeconfig", token="new")
    await eventually(lambda: replicas(source) == ["p-1", "p-2", "p-3"])
    await source.stop()


async def test_a_request_on_its_way_outlives_the_token_that_it_began_with(
    api: ApiServer, tmp_path: Path
) -> None:
    api.token = "old"
    connection = KubernetesApi(api.write_kubeconfig(tmp_path / "kubeconfig", token="old"))
    async with connection.get(
        PODS, {"watch": "true", "resourceVersion": "0", "timeoutSeconds": 9}, timeout_s=10
    ) as watched:
        api.token = "new"
        with pytest.raises(Refused):
            async with connection.get(PODS, {"limit": 500}, timeout_s=5):
                raise AssertionError("let in with the old token")
        api.write_kubeconfig(tmp_path / "kubeconfig", token="new")
        async with connection.get(PODS, {"limit": 500}, timeout_s=5) as listed:
            assert b"p-1" in await listed.read()
        api.put(PODS, a_pod("p-9"))
        with anyio.fail_after(5):
            while b"p-9" not in await watched.content.readline():
                pass
    await connection.close()


async def test_a_wrong_configuration_is_told_until_it_is_mended(
    api: ApiServer, source: ClusterSource
) -> None:
    api.put(HPAS, an_hpa(cost="cheap"))
    await eventually(lambda: source.problems != ())
    (problem,) = source.problems
    assert "annotation llm-d.ai/variant-cost: found 'cheap'" in problem
    assert the_view(source).variant.cost_per_h == 10

    api.put(HPAS, an_hpa(cost="3"))
    await eventually(lambda: source.problems == ())
    assert the_view(source).variant.cost_per_h == 3


async def test_keda_may_come_and_go(api: ApiServer, clock: Clock, tmp_path: Path) -> None:
    api.remove(HPAS, "llama-a100")
    api.refused = {SCALED_OBJECTS: 404}  # its kind is not installed
    kubeconfig = api.write_kubeconfig(tmp_path / "kubeconfig")
    source = ClusterSource(kubeconfig, clock=clock, keda_absent_for_s=0.05)
    await source.start()
    assert source.view() == ()
    await eventually(lambda: len(api.lists(SCALED_OBJECTS)) > 1)
    clock.now_s += 3600
    assert source.problems == ()  # that it is absent is no problem, however long

    api.put(SCALED_OBJECTS, a_scaled_object())
    api.refused.clear()
    await eventually(lambda: replicas(source) == ["p-1", "p-2"])
    assert the_view(source).problem is None

    api.refused = {SCALED_OBJECTS: 404}
    api.end_turn(SCALED_OBJECTS)
    await eventually(lambda: source.view() == ())
    await source.stop()


async def test_without_the_right_to_see_scaled_objects_it_does_not_start(
    api: ApiServer, clock: Clock, tmp_path: Path
) -> None:
    api.refused = {SCALED_OBJECTS: 403}
    source = a_source(api, tmp_path, clock)
    with pytest.raises(
        ClusterError, match=r"scaledobjects: HTTP 403: .* needs the verbs list and watch"
    ):
        await source.start()


async def test_a_kubeconfig_that_is_not_there_is_refused(tmp_path: Path) -> None:
    missing = tmp_path / "none"
    with pytest.raises(ConfigError, match=r"none: cannot be read: No such file or directory"):
        await ClusterSource(missing).start()


async def test_outside_of_a_pod_a_kubeconfig_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigError, match=r"no kubeconfig is given: Service host/port is not set"):
        await ClusterSource(None).start()
