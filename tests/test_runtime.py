"""The adapter as it runs: real pages over HTTP in, real answers over HTTPS out."""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest
from aiohttp import web

from tests.collect.apiserver import eventually
from tests.pki import Authority
from tests.publish.registry_api import RegistryApi, registered
from tests.serve.cluster import Certificates, ReviewingApi, trusting
from wva_adapter.errors import ConfigError
from wva_adapter.runtime import Adapter
from wva_adapter.settings import SettingsFile, parse_settings

pytestmark = pytest.mark.anyio

DATA = Path(__file__).parent / "data"
SATURATED = (DATA / "vllm-0.32.0-saturated.txt").read_bytes()  # 32 requests wait
RUNNING = (DATA / "vllm-0.32.0-running.txt").read_bytes()  # KV cache 0.26, none wait
GOOD = {"Authorization": "Bearer good-1"}
METRIC = "/apis/external.metrics.k8s.io/v1beta1/namespaces/chat/wva_desired_replicas"
SETTINGS = """
listen: {port: 0}
tls: {directory: certificates}
shutdown: {lame_duck: 0s}
static_file: fleet.yaml
scrape_period: 100ms
scrape_timeout: 200ms
cycle: 100ms
max_age: 2s
policy: {analysis: saturation, peak_window: 0s, scale_down_window: 1s, down_period: 0s}
"""


class Engine:
    """A port that answers with whatever page it is given."""

    def __init__(self) -> None:
        self.page: bytes = RUNNING
        self.status = 200
        self.port = 0

    async def answer(self, _: web.Request) -> web.Response:
        return web.Response(body=self.page, status=self.status, content_type="text/plain")


@asynccontextmanager
async def an_engine() -> AsyncIterator[Engine]:
    engine = Engine()
    app = web.Application()
    app.router.add_get("/metrics", engine.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    engine.port = runner.addresses[0][1]
    try:
        yield engine
    finally:
        await runner.cleanup()


@asynccontextmanager
async def serving(
    folder: Path, *engines: Engine, text: str = SETTINGS
) -> AsyncIterator[tuple[Adapter, httpx.AsyncClient]]:
    urls = ", ".join(f"'http://127.0.0.1:{engine.port}'" for engine in engines)
    (folder / "fleet.yaml").write_text(
        "variants: [{namespace: chat, name: llama-a100, model_id: llama, cost_per_h: 1.2,"
        f" min_replicas: 1, max_replicas: 8, replicas: [{urls}]}}]"
    )
    (folder / "wva.yaml").write_text(text)
    file = SettingsFile(folder / "wva.yaml")
    adapter = Adapter(file.settings, folder=folder, file=file)
    stop = asyncio.Event()
    running = asyncio.create_task(adapter.run(stop))
    context = ssl.create_default_context(cafile=folder / "certificates" / "ca.crt")
    try:
        async with httpx.AsyncClient(base_url=adapter.server.url, verify=context) as client:
            yield adapter, client
    finally:
        stop.set()
        await asyncio.wait_for(running, 10)


async def until(what: Callable[[], Awaitable[bool]], within_s: float = 5.0) -> None:
    deadline = asyncio.get_running_loop().time() + within_s
    while not await what():
        assert asyncio.get_running_loop().time() < deadline, "did not come about in time"
        await asyncio.sleep(0.02)


async def value(client: httpx.AsyncClient) -> str:
    response = await client.get(METRIC, params={"labelSelector": "variant_name=llama-a100"})
    if response.status_code != 200:
        return str(response.status_code)
    (item,) = response.json()["items"]
    return str(item["value"])


async def _has_value(client: httpx.AsyncClient) -> bool:
    return (await client.get(METRIC)).status_code == 200


async def test_a_saturated_engine_raises_the_served_value(tmp_path: Path) -> None:
    async with an_engine() as engine, serving(tmp_path, engine) as (_, client):

        async def served(count: str) -> bool:
            return await value(client) == count

        await until(lambda: served("1"))
        engine.page = SATURATED
        await until(lambda: served("2"))
        engine.page = RUNNING
        await until(lambda: served("1"))  # after the window of a second


async def test_changed_settings_hold_from_the_next_cycle_on_and_bad_ones_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with an_engine() as engine, serving(tmp_path, engine) as (_, client):

        async def explained(what: str) -> bool:
            answer = await client.get("/explain/chat/llama-a100", headers={"accept": "text/plain"})
            return what in answer.text

        async def served(count: str) -> bool:
            return await value(client) == count

        await until(lambda: served("1"))
        file = tmp_path / "wva.yaml"
        file.write_text(SETTINGS + "overrides: [{model: llama, kv_cache_treshold: 0.01}]\n")
        await until(lambda: explained("overrides[0].kv_cache_treshold: unknown key; did you mean"))
        assert await value(client) == "1"
        assert "settings refused, the last good ones stay" in caplog.text
        # Whatever is used of the KV cache, less is left than this trigger: one more replica.
        file.write_text(SETTINGS + "overrides: [{model: llama, kv_spare_trigger: 0.799}]\n")
        await until(lambda: served("2"))
        assert not await explained("refused")


BUDGET = "guards: {budgets: [{name: cap, namespace: chat, usd_per_h: 1.0}]}\n"
TOO_SMALL = "guard cap: usd_per_h 1 for namespace chat, want at least 1.2: what its min_replicas"


async def test_a_budget_that_does_not_pay_the_fewest_replicas_is_refused_at_the_start(
    tmp_path: Path,
) -> None:
    async with an_engine() as engine:
        with pytest.raises(ConfigError, match=re.escape(TOO_SMALL)):
            async with serving(tmp_path, engine, text=SETTINGS + BUDGET):
                pass


async def test_and_in_changed_settings_and_the_last_good_ones_stay(tmp_path: Path) -> None:
    async with an_engine() as engine, serving(tmp_path, engine) as (adapter, client):

        async def explained(what: str) -> bool:
            answer = await client.get("/explain", headers={"accept": "text/plain"})
            return what in answer.text

        await until(lambda: _has_value(client))
        (tmp_path / "wva.yaml").write_text(SETTINGS + BUDGET)
        await until(lambda: explained(TOO_SMALL))
        assert adapter.snapshot is not None
        assert adapter.snapshot.guards == ()
        (tmp_path / "wva.yaml").write_text(SETTINGS + BUDGET.replace("1.0", "2.0"))
        await until(lambda: _guarded(adapter))
        assert not await explained("refused")


async def _guarded(adapter: Adapter) -> bool:
    return adapter.snapshot is not None and adapter.snapshot.guards != ()


async def test_a_broken_page_holds_the_count_and_is_named(tmp_path: Path) -> None:
    async with (
        an_engine() as good,
        an_engine() as broken,
        serving(tmp_path, good, broken) as (_, client),
    ):
        broken.page = b"not a page at all"

        async def named() -> bool:
            return "unseen" in (await client.get("/explain/chat/llama-a100")).text

        await until(named)
        await asyncio.sleep(1.5)  # longer than the window: only blindness holds it now
        assert await value(client) == "2"
        text = (await client.get("/explain/chat/llama-a100", headers={"accept": "text/plain"})).text
        assert f"127.0.0.1:{broken.port} unseen" in text
        broken.page = RUNNING

        async def falls() -> bool:
            return await value(client) == "1"

        await until(falls)  # 0.26 + 0.26 fits one replica


async def test_an_onset_is_decided_on_before_the_cycle_is_due(tmp_path: Path) -> None:
    text = SETTINGS.replace("cycle: 100ms", "cycle: 60s").replace("max_age: 2s", "max_age: 2m")
    async with an_engine() as engine, serving(tmp_path, engine, text=text) as (_, client):

        async def served(count: str) -> bool:
            return await value(client) == count

        await until(lambda: served("1"))
        engine.page = SATURATED
        await until(lambda: served("2"), within_s=2)


async def test_a_plan_that_is_too_old_is_not_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with an_engine() as engine, serving(tmp_path, engine) as (adapter, client):

        async def served() -> bool:
            return await value(client) == "1"

        await until(served)

        def fail() -> None:
            raise RuntimeError("the decision broke")

        monkeypatch.setattr(adapter, "_decide", fail)

        async def withheld() -> bool:
            return await value(client) == "503"

        await until(withheld)
        response = await client.get(METRIC, params={"labelSelector": "variant_name=llama-a100"})
        assert "items" not in response.json()
        assert "s old" in response.json()["message"]


async def test_a_port_in_use_is_refused_before_anything_starts(tmp_path: Path) -> None:
    async with an_engine() as engine:
        (tmp_path / "fleet.yaml").write_text("variants: []")
        text = SETTINGS.replace("port: 0", f"port: {engine.port}")
        with pytest.raises(ConfigError, match=f"port {engine.port} on 127.0.0.1 is in use"):
            Adapter(parse_settings(text, "wva.yaml"), folder=tmp_path)


async def test_other_addresses_than_loopback_are_refused_where_nobody_is_authenticated(
    tmp_path: Path,
) -> None:
    (tmp_path / "fleet.yaml").write_text("variants: []")
    text = SETTINGS.replace("listen: {port: 0}", "listen: {port: 0, address: 0.0.0.0}")
    with pytest.raises(ConfigError, match="is not a loopback address: nobody can be auth"):
        Adapter(parse_settings(text, "wva.yaml"), folder=tmp_path)


CLUSTER = """
listen: {port: 0}
tls: {directory: certificates}
cluster: {kubeconfig: kubeconfig}
cycle: 100ms
max_age: 2s
reader: {port: 0, token_file: token}
audit_log: true
shutdown: {lame_duck: 0s}
"""


async def test_in_a_cluster_everybody_is_asked_who_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="wva_adapter.audit")
    (tmp_path / "pki").mkdir()
    (tmp_path / "token").write_text("s3cret")
    certificates, api = Certificates(tmp_path / "pki"), ReviewingApi()
    await api.start()
    api.write_kubeconfig(tmp_path / "kubeconfig")
    adapter = Adapter(parse_settings(CLUSTER, "wva.yaml"), folder=tmp_path)
    assert adapter.reader is not None
    stop = asyncio.Event()
    running = asyncio.create_task(adapter.run(stop))
    ca_file = tmp_path / "certificates" / "ca.crt"
    try:
        async with (
            httpx.AsyncClient(base_url=adapter.server.url, verify=trusting(ca_file)) as nobody,
            httpx.AsyncClient(base_url=adapter.reader.url, verify=trusting(ca_file)) as reader,
        ):

            async def waits_for_the_config_map() -> bool:
                text = (await nobody.get("/readyz/informer-sync", headers=GOOD)).text
                return "there is no ConfigMap" in text

            await until(waits_for_the_config_map)
            assert (await nobody.get("/livez")).status_code == 200
            assert (await nobody.get("/readyz")).status_code == 500
            api.put_config_map(**certificates.config_map)

            async def ready() -> bool:
                return (await nobody.get("/readyz")).status_code == 200

            await until(ready)
            assert (await nobody.get(METRIC)).status_code == 403
            assert (await nobody.get(METRIC, headers=GOOD)).status_code == 404
            context = trusting(ca_file, certificates.alice)
            async with httpx.AsyncClient(base_url=adapter.server.url, verify=context) as alice:
                assert (await alice.get("/metrics")).status_code == 200
            assert (await reader.get("/metrics")).status_code == 401
            said = {"Authorization": "Bearer s3cret"}
            assert (await reader.get("/metrics", headers=said)).status_code == 200
            assert (await nobody.get("/metrics", headers=said)).status_code == 401
            audited = [vars(record) for record in caplog.records if record.message == "request"]
            seen = {(line["user"], line["uri"], line["code"]) for line in audited}
            # The second port knows no users, and its requests are told of all the same.
            assert {(None, "/metrics", 200), (None, "/metrics", 401)} <= seen
    finally:
        stop.set()
        try:
            await asyncio.wait_for(running, 10)
        finally:
            await api.stop()


async def test_without_a_cluster_a_client_ca_lets_its_clients_in_and_no_others(
    tmp_path: Path,
) -> None:
    (tmp_path / "pki").mkdir()
    certificates = Certificates(tmp_path / "pki")
    text = f"{SETTINGS}authentication: {{client_ca_file: {certificates.client_ca.file}}}"
    async with an_engine() as engine, serving(tmp_path, engine, text=text) as (adapter, nobody):
        ca_file = tmp_path / "certificates" / "ca.crt"
        context = trusting(ca_file, certificates.alice)
        assert (await nobody.get("/explain")).status_code == 403
        assert (await nobody.get("/explain", headers=GOOD)).status_code == 401
        async with httpx.AsyncClient(base_url=adapter.server.url, verify=context) as alice:
            assert (await alice.get("/explain")).status_code == 200


async def test_another_providers_metric_is_asked_of_it_and_the_rest_is_ours(
    tmp_path: Path,
) -> None:
    authority = Authority(tmp_path, "other-ca")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("other", hosts=["localhost"]))

    async def answer(request: web.BaseRequest) -> web.Response:
        return web.Response(text=f"{request.headers['Authorization']} {request.raw_path}")

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    (tmp_path / "token").write_text("our-token\n")
    port = runner.addresses[0][1]
    chain = (
        f"chain: {{providers: [{{name: other, url: 'https://localhost:{port}', default: true,"
        f" ca_file: {authority.file.name}, token_file: token}}]}}\n"
    )
    metric = METRIC.replace("wva_desired_replicas", "sessions")
    try:
        async with (
            an_engine() as engine,
            serving(tmp_path, engine, text=SETTINGS + chain) as (
                _,
                client,
            ),
        ):
            passed_on = await client.get(f"{metric}?labelSelector=app%3Da")
            assert passed_on.text == f"Bearer our-token {metric}?labelSelector=app%3Da"
            await until(lambda: _has_value(client))
    finally:
        await runner.cleanup()


async def test_an_api_group_of_another_is_told_and_everything_else_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    api = RegistryApi()
    await api.start()
    api.register(registered())
    api.write_kubeconfig(tmp_path / "kubeconfig")
    text = f"{SETTINGS}cluster: {{kubeconfig: kubeconfig}}\nauthentication: {{skip_lookup: true}}\n"
    try:
        async with an_engine() as engine, serving(tmp_path, engine, text=text) as (_, client):
            await until(lambda: _has_value(client))
            await eventually(lambda: "the API group belongs to another adapter" in caplog.text)
            assert (await client.get("/readyz")).status_code == 200
            assert (await client.get("/metrics")).status_code == 200
    finally:
        await api.stop()


async def test_the_nodes_of_a_cluster_are_in_its_snapshots_and_none_are_known_without_one(
    tmp_path: Path,
) -> None:
    api = RegistryApi()
    await api.start()
    api.write_kubeconfig(tmp_path / "kubeconfig")
    text = f"{SETTINGS}cluster: {{kubeconfig: kubeconfig}}\nauthentication: {{skip_lookup: true}}\n"
    try:
        for settings, nodes in ((text, ()), (SETTINGS, None)):
            async with (
                an_engine() as engine,
                serving(tmp_path, engine, text=settings) as (it, door),
            ):
                await until(partial(_has_value, door))
                assert it.snapshot is not None
                assert it.snapshot.nodes == nodes
    finally:
        await api.stop()


async def test_a_limit_on_accelerators_bounds_what_is_served_and_is_explained(
    tmp_path: Path,
) -> None:
    limited = SETTINGS + "inventory: {quotas: [{namespace: chat, devices: 1}]}\n"
    async with an_engine() as engine, serving(tmp_path, engine, text=limited) as (_, client):
        engine.page = SATURATED

        async def explained() -> bool:
            answer = await client.get("/explain/chat/llama-a100", headers={"accept": "text/plain"})
            return "of namespace chat has 0 devices left, 1 needed" in answer.text

        await until(explained)
        assert await value(client) == "1"
        # The limit is one of the keys that hold from the next cycle on.
        (tmp_path / "wva.yaml").write_text(limited.replace("devices: 1", "devices: 2"))

        async def served() -> bool:
            return await value(client) == "2"

        await until(served)
