"""llm-d's ConfigMaps: what they set, for whom, and what of them is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from tests.collect.apiserver import DEPLOYMENTS, HPAS, ApiServer, Document, eventually
from tests.collect.test_manifests import a_workload, an_hpa
from wva_adapter.collect.cluster import ClusterSource
from wva_adapter.collect.thresholds import SATURATION, SCALE_TO_ZERO, Thresholds, read_thresholds
from wva_adapter.core.policies import Override, Policies
from wva_adapter.core.policy import Policy
from wva_adapter.kube.meta import ObjectKey

SYSTEM = "wva"
CONFIG_MAPS = "/api/v1/configmaps"
NAMESPACES = "/api/v1/namespaces"

DEFAULT = "kvCacheThreshold: 0.75\nqueueLengthThreshold: 7\n"


def read(
    maps: Mapping[tuple[str, str], Mapping[str, str]],
    *,
    base: Policies | None = None,
    system: str | None = SYSTEM,
    enabled: tuple[str, ...] = ("chat",),
    before: Thresholds | None = None,
) -> Thresholds:
    return read_thresholds(
        {ObjectKey(*place): data for place, data in maps.items()},
        base or Policies(),
        system=system,
        local=enabled.__contains__,
        before=before or Thresholds(),
    )


def policies(found: Thresholds) -> Policies:
    return Policies(Policy(), tuple(found.overrides.values()))


def test_a_default_holds_for_all_and_an_entry_inherits_what_it_does_not_set() -> None:
    found = read(
        {
            (SYSTEM, SATURATION): {
                "default": DEFAULT,
                "granite": "model_id: ibm/granite\nnamespace: chat\nkvCacheThreshold: 0.9\n",
            }
        }
    )

    granite = policies(found).of("chat", "ibm/granite")
    assert (granite.kv_cache_threshold, granite.queue_length_threshold) == (0.9, 7)
    for other in (
        policies(found).of("code", "ibm/granite"),
        policies(found).of("chat", "llama"),
    ):
        assert (other.kv_cache_threshold, other.queue_length_threshold) == (0.75, 7)
    assert found.problems == ()


def test_what_a_namespace_sets_merges_over_what_holds_for_all_field_by_field() -> None:
    found = read(
        {
            (SYSTEM, SATURATION): {
                "default": DEFAULT,
                "g": "{model_id: granite, namespace: chat, kvCacheThreshold: 0.9}",
            },
            ("chat", SATURATION): {"default": "queueLengthThreshold: 4\nkvCacheThreshold: 0.6"},
        }
    )

    chat = policies(found).of("chat", "granite")
    # The namespace's default wins over an entry for all, narrow as that is: it is nearer.
    assert (chat.kv_cache_threshold, chat.queue_length_threshold) == (0.6, 4)
    assert policies(found).of("code", "granite").queue_length_threshold == 7


def test_a_namespace_sets_nothing_where_its_label_does_not_say_so() -> None:
    maps = {("chat", SATURATION): {"default": "kvCacheThreshold: 0.6"}}

    assert read(maps, enabled=()).overrides == {}
    assert read(maps).overrides != {}


def test_without_a_namespace_for_all_a_config_map_there_sets_nothing() -> None:
    assert read({(SYSTEM, SATURATION): {"default": DEFAULT}}, system=None).overrides == {}


def test_rest_at_zero_is_set_by_either_config_map_and_the_thresholds_win() -> None:
    found = read(
        {
            (SYSTEM, SCALE_TO_ZERO): {
                "default": "enable_scale_to_zero: true\nretention_period: 15m\n",
                "llama": "model_id: llama\nenable_scale_to_zero: false\n",
            },
            (SYSTEM, SATURATION): {
                "g": "{model_id: granite, scaleToZero: {retentionPeriod: 1m}}",
            },
        }
    )

    granite, llama = (policies(found).of("chat", model) for model in ("granite", "llama"))
    assert (granite.scale_to_zero, granite.retention_s) == (True, 60)
    assert (llama.scale_to_zero, llama.retention_s) == (False, 900)


def test_what_only_llm_d_goes_by_is_no_mistake() -> None:
    text = "analyzers: [{type: saturation, score: 1.0}]\npriority: 2\nenableLimiter: false\n"

    found = read({(SYSTEM, SATURATION): {"default": text + DEFAULT}})

    assert found.problems == ()
    assert policies(found).default.kv_cache_threshold == 0.8
    assert policies(found).of("chat", "llama").kv_cache_threshold == 0.75


@pytest.mark.parametrize(
    ("place", "key", "text", "problem"),
    [
        ((SYSTEM, SATURATION), "default", "kvCacheTreshold: 0.7", "did you mean kvCacheThreshold?"),
        (
            (SYSTEM, SATURATION),
            "default",
            "kvCacheThreshold: high",
            "kvCacheThreshold: found 'high'",
        ),
        ((SYSTEM, SATURATION), "default", "kvCacheThreshold: .nan", "want a finite number"),
        (
            (SYSTEM, SATURATION),
            "default",
            "kvCacheThreshold: -0.1",
            "kv_cache_threshold -0.1, want",
        ),
        ((SYSTEM, SATURATION), "default", "kvCacheThreshold: [", "not valid YAML"),
        (
            (SYSTEM, SATURATION),
            "default",
            "kvSpareTrigger: 0.85",
            "want kv_spare_trigger < kv_cache_threshold, got kv_spare_trigger=0.85",
        ),
        ((SYSTEM, SATURATION), "default", "model_id: m", "model_id or namespace in it"),
        (
            (SYSTEM, SATURATION),
            "m",
            "kvCacheThreshold: 0.7",
            "model_id: missing; only default holds",
        ),
        (
            ("chat", SATURATION),
            "m",
            "{model_id: m, namespace: code, kvCacheThreshold: 0.7}",
            "namespace: found 'code', want 'chat', its own",
        ),
        (
            (SYSTEM, SCALE_TO_ZERO),
            "default",
            "retention_period: 10",
            "retention_period: found 10, want a duration",
        ),
    ],
)
def test_an_invalid_entry_is_refused_by_name_and_its_last_good_one_stays(
    place: tuple[str, str], key: str, text: str, problem: str
) -> None:
    other = {(SYSTEM, SATURATION): {"other": "{model_id: o, queueLengthThreshold: 9}"}}
    good = "retention_period: 3m" if place[1] == SCALE_TO_ZERO else "kvCacheThreshold: 0.7"
    good = good if key == "default" else f"{{model_id: m, {good}}}"

    def with_entry(entry: str) -> dict[tuple[str, str], dict[str, str]]:
        maps = {where: dict(data) for where, data in other.items()}
        maps.setdefault(place, {})[key] = entry
        return maps

    before = read(with_entry(good))
    after = read(with_entry(text), before=before)

    assert before.problems == ()
    assert after.overrides == before.overrides
    (found,) = after.problems
    assert found.startswith(f"configmap {place[0]}/{place[1]} {key}")
    assert problem in found
    # Never good, it sets nothing; the others do all the same.
    assert set(read(with_entry(text)).overrides) == {f"configmap {SYSTEM}/{SATURATION} other"}


def test_two_entries_that_contradict_each_other_are_refused_where_they_meet() -> None:
    found = read(
        {
            (SYSTEM, SATURATION): {
                "default": "kvCacheThreshold: 0.5",
                "m": "{model_id: m, kvSpareTrigger: 0.6}",
            }
        }
    )

    (problem,) = found.problems
    assert f"configmap {SYSTEM}/{SATURATION} m: configmap {SYSTEM}/{SATURATION} default" in problem
    assert "want kv_spare_trigger < kv_cache_threshold" in problem
    assert policies(found).of("chat", "m").kv_cache_threshold == 0.5


def test_the_settings_own_overrides_are_minded_too() -> None:
    base = Policies(
        Policy(),
        (Override(source="overrides[0]", changes={"kv_spare_trigger": 0.6}, model_id="m"),),
    )

    found = read({(SYSTEM, SATURATION): {"default": "kvCacheThreshold: 0.5"}}, base=base)

    assert "overrides[0]" in found.problems[0]


pytestmark = pytest.mark.anyio


def a_config_map(name: str, namespace: str, **data: str) -> Document:
    return {"metadata": {"name": name, "namespace": namespace}, "data": data}


def a_namespace(
    name: str, labels: dict[str, str] | None = None, annotations: dict[str, str] | None = None
) -> Document:
    meta = {"name": name, "labels": labels or {}, "annotations": annotations or {}}
    return {"metadata": meta}


@pytest.fixture
async def api() -> AsyncIterator[ApiServer]:
    server = ApiServer()
    server.put(HPAS, an_hpa())
    server.put(DEPLOYMENTS, a_workload(replicas=3))
    server.put(NAMESPACES, a_namespace("chat"))
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def source(api: ApiServer, tmp_path: Path) -> AsyncIterator[ClusterSource]:
    source = ClusterSource(api.write_kubeconfig(tmp_path / "kubeconfig"), system=SYSTEM)
    await source.start()
    await eventually(lambda: api.watching(CONFIG_MAPS) and api.watching(NAMESPACES))
    yield source
    await source.stop()


async def test_only_the_two_config_maps_are_asked_for(
    api: ApiServer, source: ClusterSource
) -> None:
    assert {query["fieldSelector"] for query in api.lists(CONFIG_MAPS)} == {
        f"metadata.name={SATURATION}",
        f"metadata.name={SCALE_TO_ZERO}",
    }


async def test_changes_in_the_cluster_are_followed(api: ApiServer, source: ClusterSource) -> None:
    def threshold() -> float:
        found = source.thresholds(Policies())
        return policies(found).of("chat", "llama").kv_cache_threshold

    assert threshold() == 0.8
    api.put(CONFIG_MAPS, a_config_map(SATURATION, SYSTEM, default="kvCacheThreshold: 0.7"))
    await eventually(lambda: threshold() == 0.7)
    api.put(CONFIG_MAPS, a_config_map(SATURATION, SYSTEM, default="kvCacheThreshold: 7"))
    await eventually(lambda: source.thresholds(Policies()).problems != ())
    assert threshold() == 0.7
    api.remove(CONFIG_MAPS, SATURATION)
    await eventually(lambda: threshold() == 0.8)
    assert source.thresholds(Policies()).problems == ()


async def test_a_namespace_that_is_excluded_has_no_variants_until_it_takes_part_again(
    api: ApiServer, source: ClusterSource
) -> None:
    assert len(source.view()) == 1
    out = {"wva.llmd.ai/exclude": "true"}
    api.put(NAMESPACES, a_namespace("chat", annotations=out))
    await eventually(lambda: source.view() == ())
    api.put(NAMESPACES, a_namespace("chat", annotations={"wva.llmd.ai/exclude": "false"}))
    await eventually(lambda: len(source.view()) == 1)


async def test_what_is_labelled_for_another_adapter_is_left_to_it(
    api: ApiServer, source: ClusterSource
) -> None:
    hpa = an_hpa()
    hpa["metadata"]["labels"] = {"wva.llmd.ai/controller-instance": "blue"}
    api.put(HPAS, hpa)
    await eventually(lambda: source.view() == ())


async def test_an_adapter_with_a_name_takes_what_is_labelled_for_it_alone(
    api: ApiServer, tmp_path: Path
) -> None:
    hpa = an_hpa()
    source = ClusterSource(api.write_kubeconfig(tmp_path / "kubeconfig"), instance="blue")
    await source.start()
    try:
        assert source.view() == ()
        hpa["metadata"]["labels"] = {"wva.llmd.ai/controller-instance": "blue"}
        api.put(HPAS, hpa)
        await eventually(lambda: len(source.view()) == 1)
    finally:
        await source.stop()
