"""Where the memory is kept over restarts, and what happens to a damaged one."""

from __future__ import annotations

import base64
import gzip
import json
import logging
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from tests.builders import a_state, decide
from tests.collect.apiserver import ApiServer, Document
from wva_adapter.core.fleet import LoadKey
from wva_adapter.core.memory import Memory, ModelMemory
from wva_adapter.core.remembered import bounded, to_document
from wva_adapter.errors import ConfigError
from wva_adapter.kube.api import KubernetesApi
from wva_adapter.publish.keep import ConfigMapStore, FileStore, KeepError, MemoryKeeper, Store

pytestmark = pytest.mark.anyio

NOW_S = 1_700_000_000.0


def a_memory() -> Memory:
    _, memory = decide(a_state(at_s=NOW_S), at_s=NOW_S)
    return bounded(replace(memory, prior_scale=1.25))


def keeper(store: Store, *, now_s: float = NOW_S + 10) -> MemoryKeeper:
    return MemoryKeeper(store, period_s=60, clock=lambda: now_s)


def written(held: Memory, *, at_s: float = NOW_S, **changes: object) -> bytes:
    return json.dumps({"at_s": at_s, **to_document(held), **changes}).encode()


async def test_what_is_written_to_a_file_is_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "memory.json"
    await keeper(FileStore(path), now_s=NOW_S).save(a_memory())

    after = keeper(FileStore(path))

    assert await after.restore() == a_memory()
    assert after.problems == ()
    assert os.listdir(tmp_path) == ["memory.json"]  # and nothing that was on its way there


async def test_without_a_file_nothing_is_known_and_nothing_is_wrong(tmp_path: Path) -> None:
    fresh = keeper(FileStore(tmp_path / "memory.json"))

    assert await fresh.restore() == Memory()
    assert fresh.problems == ()


async def test_nothing_known_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "memory.json"
    await keeper(FileStore(path), now_s=NOW_S).save(a_memory())

    await keeper(FileStore(path)).save(None)

    assert await keeper(FileStore(path)).restore() == a_memory()


WHOLE = written(a_memory())


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (WHOLE[: len(WHOLE) // 2], "no memory, or a damaged one: want a document of format"),
        (b"\x00\xff\x17", "no memory, or a damaged one: want a document of format"),
        (b"[" * 100_000, "no memory, or a damaged one: want a document of format"),
        (b"{}", "no memory, or a damaged one: want a document of format"),
        (written(a_memory(), version=7), "memory of version 7, want 2"),
        (written(a_memory(), memory={"prior_scale": "high"}), "memory: prior_scale: found 'high'"),
        (json.dumps(to_document(a_memory())).encode(), "at_s: found None, want a number"),
        (written(a_memory(), at_s=NOW_S + 7200), "written 7190 s after now: the clock was set"),
    ],
)
async def test_a_memory_that_is_none_is_set_aside_by_name_and_the_start_is_careful(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: bytes, why: str
) -> None:
    path = tmp_path / "memory.json"
    path.write_bytes(text)

    careful = keeper(FileStore(path))
    memory = await careful.restore()

    assert memory == Memory()
    (problem,) = careful.problems
    assert f"{path}: {why}" in problem
    assert f"set aside as {path}.aside; no count falls before a full window was seen" in problem
    assert (tmp_path / "memory.json.aside").read_bytes() == text
    assert not path.exists()
    logged = [r.__dict__["problem"] for r in caplog.records if r.message == "memory lost"]
    assert [f"memory: {one}" for one in logged] == [problem]


async def test_after_a_careful_start_the_new_memory_is_kept_again(tmp_path: Path) -> None:
    path = tmp_path / "memory.json"
    path.write_bytes(b"damaged")
    careful = keeper(FileStore(path))
    await careful.restore()

    await careful.save(a_memory())

    assert await keeper(FileStore(path)).restore() == a_memory()


async def test_an_old_memory_knows_all_but_what_had_to_be_carried_in_the_gap(
    tmp_path: Path,
) -> None:
    path = tmp_path / "memory.json"
    path.write_bytes(written(a_memory()))

    found = await keeper(FileStore(path), now_s=NOW_S + 3600).restore()

    assert found.variants == a_memory().variants
    assert {model.analysis for model in found.models.values()} == {""}


async def test_a_write_that_fails_is_told_until_one_succeeds_and_harms_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "kept" / "memory.json"
    path.parent.mkdir()
    store = FileStore(path)
    one = keeper(store)
    await one.save(a_memory())
    beside = path.with_name("memory.json.new")
    beside.mkdir()  # where the next one is prepared there is something else

    for _ in range(2):
        await one.save(Memory(models={LoadKey("chat", "other"): ModelMemory()}))

    (problem,) = one.problems
    assert f"{path}: cannot be written: Is a directory; a restart would not know" in problem
    assert [r.message for r in caplog.records].count("memory not written") == 1
    assert await keeper(store).restore() == a_memory()
    beside.rmdir()
    await one.save(a_memory())
    assert one.problems == ()


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"memory\.file: .*absent is no folder"):
        FileStore(tmp_path / "absent" / "memory.json")


PATH = "/api/v1/namespaces/wva-system/configmaps/"


class ConfigMaps(ApiServer):
    """Keeps ConfigMaps that are there, and makes none."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.maps: dict[str, Document] = {PATH + name: {} for name in names}

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if request.path in self.refused or request.path not in self.maps:
            status = self.refused.get(request.path, 404)
            return web.json_response({"message": f"refused {request.path}"}, status=status)
        return web.json_response(self.maps[request.path])

    async def _write(self, request: web.Request) -> web.StreamResponse:
        if request.method != "PATCH" or request.path not in self.maps:
            return web.json_response({"message": "not found"}, status=404)
        kept = self.maps[request.path].setdefault("binaryData", {})
        kept.update(json.loads(await request.read())["binaryData"])
        return web.json_response(self.maps[request.path])


async def in_config_map(tmp_path: Path, server: ConfigMaps) -> tuple[KubernetesApi, ConfigMapStore]:
    await server.start()
    api = KubernetesApi(server.write_kubeconfig(tmp_path / "kubeconfig"))
    return api, ConfigMapStore(api, "wva-system/wva-adapter-memory")


async def test_what_is_written_to_a_config_map_is_there_after_a_restart(tmp_path: Path) -> None:
    server = ConfigMaps("wva-adapter-memory")
    api, store = await in_config_map(tmp_path, server)
    try:
        assert await keeper(store).restore() == Memory()
        await keeper(store, now_s=NOW_S).save(a_memory())

        assert await keeper(store).restore() == a_memory()
    finally:
        await api.close()
        await server.stop()


@pytest.mark.parametrize("contents", [b"damaged", gzip.compress(WHOLE)[:-40]])
async def test_a_damaged_config_map_is_copied_aside(tmp_path: Path, contents: bytes) -> None:
    server = ConfigMaps("wva-adapter-memory", "wva-adapter-memory-aside")
    packed = base64.b64encode(contents).decode()
    server.maps[PATH + "wva-adapter-memory"] = {"binaryData": {"memory.json.gz": packed}}
    api, store = await in_config_map(tmp_path, server)
    try:
        careful = keeper(store)

        assert await careful.restore() == Memory()
        (problem,) = careful.problems
        assert "set aside as configmap wva-system/wva-adapter-memory-aside" in problem
        aside = server.maps[PATH + "wva-adapter-memory-aside"]
        assert aside == {"binaryData": {"memory.json.gz": packed}}
    finally:
        await api.close()
        await server.stop()


async def test_a_config_map_that_is_not_there_is_named_and_the_start_is_careful(
    tmp_path: Path,
) -> None:
    server = ConfigMaps()
    api, store = await in_config_map(tmp_path, server)
    try:
        careful = keeper(store)

        assert await careful.restore() == Memory()
        await careful.save(a_memory())
        lost, unwritten = careful.problems
        assert "configmap wva-system/wva-adapter-memory: cannot be read" in lost
        assert "configmap wva-system/wva-adapter-memory: cannot be written" in unwritten
    finally:
        await api.close()
        await server.stop()


async def test_a_memory_too_large_for_a_config_map_is_not_cut(tmp_path: Path) -> None:
    server = ConfigMaps("wva-adapter-memory")
    api, store = await in_config_map(tmp_path, server)
    try:
        with pytest.raises(
            KeepError, match=r"1\.10 MiB do not fit a ConfigMap .*want memory\.file"
        ):
            await store.write(random.Random(0).randbytes(1_153_000))  # which do not compress

        assert server.maps[PATH + "wva-adapter-memory"] == {}
    finally:
        await api.close()
        await server.stop()
