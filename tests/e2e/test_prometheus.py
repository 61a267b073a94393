"""Queries get from the adapter what they get from a real Prometheus that scrapes it."""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from aiohttp import web

from tests.e2e.cluster import free_port, tell
from tests.e2e.prometheus import process, scraping
from tests.emulator.servers import an_engine, running

pytestmark = pytest.mark.anyio

_PROGRAM = Path(sys.executable).parent / "wva-adapter"
_RUNNING = Path(__file__).parents[1] / "data" / "vllm-0.32.0-running.txt"
_D = "wva_desired_replicas"
# Four variants with a count that differs from the current one, one of them with labels that need
# every kind of escape, and one that is idle, whose saturation nobody knows.
_ODD_MODEL = 'odd/"quoted" \\back\\ <&> ünï'

SAME = [
    # One series, as KEDA's trigger asks for it.
    f'{_D}{{variant_name="llama-a100",exported_namespace="chat"}}',
    f'{_D}{{variant_name="llama-a100",namespace="chat"}}',
    f'{_D}{{exported_namespace="chat", variant_name="llama-h100"}}',
    f'{_D}{{variant_name="idle"}}',
    'wva_current_replicas{variant_name="qwen"}',
    'wva_desired_ratio{variant_name="qwen"}',
    'wva_saturation{variant_name="odd"}',
    'wva_shortage_replicas{variant_name="odd"}',
    'wva_variant_cost{variant_name="llama-h100"}',
    # Several.
    _D,
    f"{_D}{{}}",
    "wva_current_replicas",
    "wva_desired_ratio",
    "wva_variant_cost",
    f'{_D}{{exported_namespace="search"}}',
    # Matchers.
    f'{_D}{{variant_name!="llama-a100"}}',
    f'{_D}{{variant_name=~"llama-.*"}}',
    f'{_D}{{variant_name=~"llama.+"}}',
    f'{_D}{{variant_name!~"llama-.*"}}',
    f'{_D}{{variant_name=~"llama-a100|qwen"}}',
    f'{_D}{{variant_name=~"^llama-[ah]100$"}}',
    f'{_D}{{variant_name=~"(?i)LLAMA-(a|h)\\\\d{{3}}"}}',
    f'{_D}{{variant_name=~"[^i]+"}}',
    f'{_D}{{model_name=~"meta-llama/.*",accelerator_type!~"A.*"}}',
    f'{_D}{{accelerator_type=""}}',
    f'{_D}{{accelerator_type!=""}}',
    f'{_D}{{accelerator_type=~"H100|"}}',
    f'{_D}{{accelerator_type!~".+"}}',
    f'{_D}{{no_such_label=""}}',
    f'{_D}{{no_such_label!="x",exported_namespace="chat"}}',
    f'{_D}{{variant_name=~"llama-.*",variant_name!~".*h100"}}',
    f'{_D}{{model_name=~".*[[:space:]].*"}}',
    # The name as a label, and how strings and blanks may be written.
    f'{{__name__="{_D}"}}',
    f'{{__name__="{_D}",variant_name="qwen"}}',
    '{__name__=~"wva_(desired|current)_replicas",variant_name="qwen"}',
    f"{_D}{{variant_name='qwen'}}",
    f"{_D}{{variant_name=`qwen`}}",
    f'{_D}{{variant_name="q\\x77\\u0065n"}}',
    f"{_D}{{model_name={json.dumps(_ODD_MODEL)}}}",
    f"{_D}{{model_name=`{_ODD_MODEL}`}}",
    f'{_D}{{variant_name="qwen",}}',
    f'  {_D}  {{\n variant_name = "qwen" # why\n}} # that is all',
    f'(({_D}{{variant_name="qwen"}}))',
    # Sums and maxima.
    f"sum({_D})",
    f"SUM({_D})",
    f"max({_D})",
    "sum(wva_variant_cost)",
    f'sum({_D}{{exported_namespace="chat"}})',
    f"sum by (exported_namespace) ({_D})",
    f"sum({_D}) by (exported_namespace, no_such_label)",
    f"max without (variant_name, accelerator_type) ({_D})",
    f"sum without () ({_D})",
    f"sum by () ({_D})",
    f"sum by (__name__) ({_D})",
    f"max(sum by (exported_namespace) ({_D}))",
    "max by (model_name) (wva_variant_cost)",
    # Thresholds.
    f"{_D} > 1",
    f"{_D} >= 2",
    f"1 < {_D}",
    f"{_D} == 2",
    f"{_D} != 2",
    f"{_D} > bool 1",
    f"2 <= bool {_D}",
    f"sum({_D}) > bool 3",
    f"sum({_D}) > 3",
    f"sum({_D} > 1)",
    f"max({_D}) == bool 3",
    # Arithmetic.
    f"{_D} * 2",
    f"{_D} / 3",
    f"3 - {_D}",
    f"10 % ({_D} + 1)",
    f"2 ^ {_D}",
    f"-{_D}",
    f"+{_D}",
    f"-{_D} ^ 2",
    f"sum(-{_D}{{variant_name='idle'}})",
    f"2 * {_D} + 1 > 4",
    f"(sum({_D}) + 1) / 2",
    f"-sum({_D}) * -0.1",
    "wva_variant_cost * 1e-9",
    "wva_variant_cost / 7e30",
    "(wva_variant_cost + 1) * 3e25",
    'wva_desired_ratio{variant_name="qwen"} * 2 ^ -3',
    # Numbers alone.
    "1 + 1",
    "-2 ^ 2",
    "2 ^ 3 ^ 2",
    "7 % -4",
    "1e30 / 3",
    "1e-9",
    "0x1F + 010 + .5",
    "1 > bool 2",
    "1 / 0",
    "-Inf",
    "NaN",
]
EMPTY_THERE = {
    # A variant, label or metric that does not exist, and one whose value is unknown.
    f'{_D}{{variant_name="lama-a100"}}': 'no variant has variant_name="lama-a100"; there '
    "variant_name is one of: idle, llama-a100, llama-h100, odd, qwen",
    f'{_D}{{variant_name="qwen",exported_namespace="chat"}}': "no variant in namespace chat has "
    'variant_name="qwen"; there variant_name is one of: llama-a100, llama-h100, odd',
    f'sum({_D}{{exported_namespace="chats"}})': "namespace chats has no variants: none of its HPAs",
    f'{_D}{{variant="qwen"}}': 'no variant has variant="qwen"; there labels are: ',
    f'{_D}{{variant_name="qwen",accelerator_type="H100"}}': "no variant has all of "
    '{variant_name="qwen",accelerator_type="H100"}',
    "wva_desired_replica": 'no metric has __name__="wva_desired_replica"; there are: wva_desired',
    'wva_saturation{variant_name="idle"}': "search/idle: wva_saturation is unknown",
    # The comparison is with what is known, and KEDA would still read 0.
    f"{_D} > 100": "no series is left after the comparison, and an empty answer is none",
    f'sum({_D}{{variant_name="qwen"}} < 1)': "no series is left after the comparison",
}
PARTIAL_THERE = {
    "wva_saturation": "search/idle: wva_saturation is unknown",
    "sum(wva_saturation)": "search/idle: wva_saturation is unknown",
    "wva_variant_cost / 0": "would be inf: KEDA would read it as 0",
    "max(wva_variant_cost) % 0": "{} would be nan: KEDA would read it as 0",
}
BAD_THERE_TOO = [
    "",
    f"{_D}{{",
    f'{_D}{{variant_name="qwen"',
    f"{_D}{{variant_name=qwen}}",
    f'{_D}{{variant_name="qwen}}',
    f'{_D}{{variant_name=~"("}}',
    f'{_D}{{variant_name=~"(?=a)"}}',
    f'{_D}{{variant_name=~"(a)\\\\1"}}',
    f'{_D}{{variant_name=~"a**"}}',
    f'{_D}{{__name__="other"}}',
    '{__name__=~".*"}',
    "{}",
    "sum(1)",
    f"sum({_D}, {_D})",
    f"sum {_D}",
    "1 > 2",
    f"{_D} + bool 1",
    f"{_D} $ 1",
    f"{_D})",
    "5x",
    f"no_such_function({_D})",
]
REFUSED_BY_NAME = {
    f"rate({_D}[5m])": "functions are not supported: rate()",
    f"{_D} or vector(0)": "the operator or is not supported",
    f"avg({_D})": "the aggregation avg is not supported; there are: sum, max",
    f"min by (namespace) ({_D})": "the aggregation min is not supported",
    f"{_D}[5m]": "range selectors and subqueries are not supported",
    f"max_over_time({_D}[5m:1m])": "functions are not supported: max_over_time()",
    f"{_D} offset 5m": "the offset modifier is not supported",
    f"{_D} @ 1700000000": "the @ modifier is not supported",
    f"{_D} - wva_current_replicas": "- between two vectors is not supported",
    f"{_D} > on (variant_name) wva_current_replicas": "vector matching is not supported: on",
    f"{_D} and {_D}": "the operator and is not supported",
    f"{_D} unless {_D}": "the operator unless is not supported",
    f"{_D} atan2 1": "the operator atan2 is not supported",
    '"text"': "string literals are not supported",
    '{variant_name="qwen"}': "a selector without the metric's name is not supported",
}


@dataclass
class Both:
    """The adapter, and the Prometheus that scrapes it."""

    adapter: httpx.AsyncClient
    prometheus: httpx.AsyncClient

    async def ask(self, **asked: str) -> tuple[httpx.Response, httpx.Response]:
        # Two decimals, because the third is there in some answers all the same.
        asked = {"time": f"{time.time():.2f}", **asked}
        ours = await self.adapter.get("/api/v1/query", params=asked)
        theirs = await self.prometheus.get("/api/v1/query", params=asked)
        return ours, theirs


async def _answers(request: web.Request) -> web.Response:
    return web.Response(body=_RUNNING.read_bytes(), content_type="text/plain")


async def _page(stack: AsyncExitStack) -> str:
    """Return where an engine answers that is busy and stays so."""
    app = web.Application()
    app.router.add_get("/metrics", _answers)
    runner = web.AppRunner(app)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return f"http://127.0.0.1:{runner.addresses[0][1]}"


def _variant(namespace: str, name: str, model: str, **more: Any) -> dict[str, Any]:
    return {"namespace": namespace, "name": name, "model_id": model, **more}


async def _fleet(stack: AsyncExitStack) -> dict[str, Any]:
    urls = []
    for _ in range(4):
        engine = await stack.enter_async_context(running(an_engine()))
        urls.append(engine.url)
    llama = "meta-llama/Llama-3.1-8B-Instruct"
    a100 = {"accelerator": "A100", "cost_per_h": 1.2, "min_replicas": 2, "replicas": urls[:2]}
    h100 = {"accelerator": "H100", "cost_per_h": 3.93, "replicas": urls[2:3]}
    odd = {"cost_per_h": 0.1, "replicas": [await _page(stack)]}
    qwen = {"accelerator": "L4", "cost_per_h": 0.7, "min_replicas": 3, "current_replicas": 7}
    idle = {"accelerator": "L4", "cost_per_h": 0.2, "min_replicas": 0, "current_replicas": 0}
    return {
        "variants": [
            _variant("search", "qwen", "qwen", **qwen, replicas=urls[3:]),
            _variant("search", "idle", "idle", **idle),
            _variant("chat", "llama-h100", llama, **h100),
            _variant("chat", "llama-a100", llama, **a100),
            _variant("chat", "odd", _ODD_MODEL, **odd),
        ]
    }


async def _until(what: Callable[[], Awaitable[bool]], within_s: float = 20) -> None:
    deadline = time.monotonic() + within_s
    while True:
        try:
            if await what():
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline, "did not come about in time"
        await asyncio.sleep(0.1)


@pytest.fixture(scope="module")
async def both(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Both]:
    folder = tmp_path_factory.mktemp("prometheus")
    port = free_port()
    settings = {
        "listen": {"address": "127.0.0.1", "port": port},
        "tls": {"directory": "certificates"},
        "static_file": "fleet.yaml",
        "scrape_period": "500ms",
        "scrape_timeout": "500ms",
        "cycle": "500ms",
    }
    async with AsyncExitStack() as stack:
        (folder / "fleet.yaml").write_text(yaml.safe_dump(await _fleet(stack)))
        (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
        program = (_PROGRAM, "serve", "--config", folder / "settings.yaml")
        stack.enter_context(process(folder, "adapter", *program))
        ca = folder / "certificates" / "ca.crt"

        async def is_there() -> bool:
            return ca.exists()

        await _until(is_there)
        adapter = await stack.enter_async_context(
            httpx.AsyncClient(
                base_url=f"https://127.0.0.1:{port}",
                verify=ssl.create_default_context(cafile=str(ca)),
                trust_env=False,
            )
        )

        async def serves() -> bool:
            answer = await adapter.get("/api/v1/query", params={"query": "wva_saturation > 0"})
            return "idle" in answer.text

        await _until(serves)
        there = await stack.enter_async_context(scraping(folder, adapter.base_url, ca))
        found = Both(adapter, there)

        async def agree() -> bool:
            # As long ago as the oldest time that is asked for.
            ours, theirs = await found.ask(query=_D, time=f"{time.time() - 2:.0f}")
            return ours.status_code == 200 and ours.content == theirs.content

        await _until(agree)
        yield found


async def test_every_form_is_answered_byte_for_byte_as_prometheus_does(both: Both) -> None:
    different = []
    for query in SAME:
        ours, theirs = await both.ask(query=query)
        if (ours.status_code, ours.content) != (theirs.status_code, theirs.content):
            different.append((query, ours.text, theirs.text))
        assert ours.headers["content-type"] == theirs.headers["content-type"]
    assert different == []
    tell(f"{len(SAME)} queries are answered byte for byte as Prometheus answers them")


@pytest.mark.parametrize("query", EMPTY_THERE)
async def test_what_is_empty_there_and_would_be_0_to_keda_is_an_error_here(
    both: Both, query: str
) -> None:
    ours, theirs = await both.ask(query=query)
    assert theirs.json()["data"]["result"] == []
    assert ours.status_code == 503
    assert ours.json()["errorType"] == "unavailable"
    assert EMPTY_THERE[query] in ours.json()["error"]


@pytest.mark.parametrize("query", PARTIAL_THERE)
async def test_what_has_no_finite_value_of_every_series_is_an_error_here(
    both: Both, query: str
) -> None:
    ours, theirs = await both.ask(query=query)
    assert theirs.status_code == 200
    assert (ours.status_code, ours.json()["errorType"]) == (503, "unavailable")
    assert PARTIAL_THERE[query] in ours.json()["error"]


@pytest.mark.parametrize("query", BAD_THERE_TOO)
async def test_what_prometheus_cannot_read_is_refused_in_its_shape_with_a_position(
    both: Both, query: str
) -> None:
    ours, theirs = await both.ask(query=query)
    assert ours.status_code == theirs.status_code == 400
    said = ours.json()
    assert list(said) == list(theirs.json())
    assert (said["status"], said["errorType"]) == ("error", "bad_data")
    for error in (said["error"], theirs.json()["error"]):
        assert error.startswith('invalid parameter "query": ')
    assert ": parse error: " in said["error"]


@pytest.mark.parametrize("query", REFUSED_BY_NAME)
async def test_what_is_not_supported_is_refused_by_its_name(both: Both, query: str) -> None:
    ours, theirs = await both.ask(query=query)
    assert theirs.status_code == 200
    assert (ours.status_code, ours.json()["errorType"]) == (400, "bad_data")
    assert REFUSED_BY_NAME[query] in ours.json()["error"]


async def test_series_that_become_one_are_refused_as_there(both: Both) -> None:
    query = '-{__name__=~"wva_(desired|current)_replicas"}'
    ours, theirs = await both.ask(query=query)
    assert (ours.status_code, ours.content) == (theirs.status_code, theirs.content)
    assert ours.status_code == 422


async def test_forms_and_times_are_read_as_there(both: Both) -> None:
    now_s = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now_s))
    forms: list[dict[str, str]] = [
        {"time": f"{now_s:.0f}"},
        {"time": f"{now_s:.5f}"},
        {"time": f"{stamp}Z"},
        {"time": f"{stamp}.25Z"},
        {"time": f"{stamp}+00:00"},
        {"time": f"{now_s:.0f}", "timeout": "5s"},
        {"time": f"{now_s:.0f}", "timeout": "1m30s", "namespace": "x", "dedup": "true"},
        {"time": "noon"},
        {"time": f"{now_s:.0f}", "timeout": "soon"},
    ]
    for form in forms:
        asked = {"query": _D, **form}
        for method in ("GET", "POST"):
            where = {"params": asked} if method == "GET" else {"data": asked}
            ours, theirs = [
                await client.request(method, "/api/v1/query", **where)  # type: ignore[arg-type]
                for client in (both.adapter, both.prometheus)
            ]
            assert ours.status_code == theirs.status_code, (form, ours.text, theirs.text)
            if ours.status_code == 200:
                assert ours.content == theirs.content
            else:
                assert ours.json()["errorType"] == theirs.json()["errorType"]
    # A form's value comes before the address' own; Grafana tries a data source out like this.
    ours, theirs = [
        await client.post("/api/v1/query?query=2&time=9", data={"query": "1+1", "time": "4"})
        for client in (both.adapter, both.prometheus)
    ]
    assert ours.content == theirs.content
