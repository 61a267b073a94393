"""What KEDA and Grafana are told by ``/api/v1/query``: the counts of the board, or why not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from tests.builders import a_key
from tests.publish.test_board import Clock, a_decision, post
from wva_adapter.publish.board import Board
from wva_adapter.publish.telemetry import Telemetry
from wva_adapter.serve.app import create_app, in_front
from wva_adapter.serve.hot import MetricReads

pytestmark = pytest.mark.anyio

DESIRED = "wva_desired_replicas"
PATH = "/api/v1/query"
FORM = "application/x-www-form-urlencoded"


class Port:
    """A board behind its port, and the clock that its plan ages by."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.board = Board(60.0, self.clock)
        self.page = Telemetry(self.board, clock=self.clock).page
        reads = MetricReads(self.board, clock=self.clock)
        app = create_app(reads, self.board, metrics=self.page, ready={}, series=self.board)
        transport = httpx.ASGITransport(app=in_front(app, reads))
        self.client = httpx.AsyncClient(transport=transport, base_url="https://adapter")

    async def ask(self, query: str, **asked: str) -> Any:
        answer = await self.client.get(PATH, params={"query": query, **asked})
        assert answer.headers["content-type"] == "application/json"
        return answer.json()

    async def value(self, query: str, **asked: str) -> str:
        answer = await self.ask(query, **asked)
        assert answer["status"] == "success", answer
        ((_, value),) = [sample["value"] for sample in answer["data"]["result"]]
        assert isinstance(value, str)
        return value

    async def error(self, query: str, *, kind: str = "unavailable", **asked: str) -> str:
        answer = await self.client.get(PATH, params={"query": query, **asked})
        assert answer.status_code == {"unavailable": 503, "bad_data": 400}[kind]
        document = answer.json()
        assert (document["status"], document["errorType"]) == ("error", kind)
        return str(document["error"])


@asynccontextmanager
async def a_port() -> AsyncIterator[Port]:
    port = Port()
    async with port.client:
        yield port


async def test_a_method_that_prometheus_has_not_is_refused_in_its_words() -> None:
    async with a_port() as port:
        accepts = {"accept": "application/vnd.kubernetes.protobuf"}
        answer = await port.client.put(PATH, headers=accepts)
        assert answer.status_code == 405
        assert answer.headers["content-type"] == "application/json"
        assert answer.json() == {
            "status": "error",
            "errorType": "method_not_allowed",
            "error": "the server does not allow this method on the requested resource",
        }


async def test_the_count_is_plain_where_an_hpa_gets_one_that_is_shaped_for_it() -> None:
    async with a_port() as port:
        post(port.board, a_decision(desired=9, value_milli=8001))
        assert await port.value(DESIRED) == "9"
        assert await port.ask(DESIRED, time="1000.5") == {
            "status": "success",
            "data": {
                "resultType": "vector",
                "result": [
                    {
                        "metric": {
                            "__name__": DESIRED,
                            "accelerator_type": "A100",
                            "controller_instance": "default",
                            "exported_namespace": "chat",
                            "model_name": "llama",
                            "namespace": "chat",
                            "variant_name": "llama-a100",
                        },
                        "value": [1000.5, "9"],
                    }
                ],
            },
        }


async def test_every_value_is_that_of_the_page_that_prometheus_scrapes() -> None:
    async with a_port() as port:
        post(port.board, a_decision(), a_decision("llama-h100", current=3, desired=2))
        for metric in port.board.metrics:
            answer = await port.ask(metric)
            lines = [
                line.rsplit(" ", 1)[1]
                for line in port.page().decode().splitlines()
                if line.startswith(f"{metric}{{")
            ]
            found = [sample["value"][1] for sample in answer["data"]["result"]]
            assert sorted(map(float, found)) == sorted(map(float, lines))
            assert len(found) == 2


async def test_a_variant_without_a_valid_plan_leaves_every_query_that_touches_it_unanswered() -> (
    None
):
    async with a_port() as port:
        assert await port.error(DESIRED) == (
            "no plan yet: the adapter has not finished its first cycle"
        )

        undecided = {a_key("llama-h100"): "its scale target is not readable"}
        post(port.board, a_decision(), undecided=undecided)
        why = "chat/llama-h100 is undecided: its scale target is not readable"
        assert await port.error(DESIRED) == why
        assert await port.error(f"sum({DESIRED})") == why
        assert await port.error(f"max by (variant_name) ({DESIRED} * 2) > 0") == why
        assert await port.value(f'{DESIRED}{{variant_name="llama-a100"}}') == "3"

        port.clock.now_s += 61
        why = "chat/llama-a100: the plan is 61 s old, max_age is 60 s"
        assert await port.error(f'{DESIRED}{{variant_name="llama-a100"}}') == why
        # What is scraped keeps the last count: a series that vanished would read as 0.
        assert b'variant_name="llama-a100"} 3.0' in port.page()


async def test_what_matches_nothing_is_an_error_that_says_what_there_is() -> None:
    async with a_port() as port:
        assert await port.error("wva_desired") == (
            'no metric has __name__="wva_desired"; there are: '
            "wva_desired_replicas, wva_current_replicas, wva_desired_ratio, wva_saturation, "
            "wva_shortage_replicas, wva_variant_cost"
        )
        post(port.board)
        assert await port.error(DESIRED) == "there are no variants"

        post(port.board, a_decision(), a_decision("qwen", namespace="search"))
        assert await port.error(f'{DESIRED}{{variant_name="lama"}}') == (
            'no variant has variant_name="lama"; there variant_name is one of: llama-a100, qwen'
        )
        # Who may read one namespace is told nothing of the names in another.
        assert await port.error(f'{DESIRED}{{variant_name="lama",namespace="chat"}}') == (
            'no variant in namespace chat has variant_name="lama"; '
            "there variant_name is one of: llama-a100"
        )
        assert await port.error(f'{DESIRED}{{namespace="chat",exported_namespace="search"}}') == (
            'no variant in namespace chat has exported_namespace="search"; '
            "there exported_namespace is one of: chat"
        )
        assert await port.error("wva_plan_age_seconds") == (
            f"wva_plan_age_seconds is on /metrics only; here there are: "
            f"{', '.join(port.board.metrics)}"
        )
        assert "wva_plan_age_seconds is on /metrics only" in await port.error(
            '{__name__=~"wva_.+"}'
        )


async def test_what_keda_reads_as_0_is_no_answer() -> None:
    async with a_port() as port:
        post(port.board, a_decision(desired=5))
        assert await port.value(f"{DESIRED} > 4") == "5"
        assert await port.value(f"{DESIRED} > bool 5") == "0"
        assert await port.error(f"{DESIRED} > 5") == (
            "no series is left after the comparison, and an empty answer is none: KEDA would read "
            "it as 0; with bool after the operator the answer is 1 or 0"
        )
        assert (await port.error(f"{DESIRED} / 0")).endswith(
            "would be inf: KEDA would read it as 0"
        )
        assert await port.error(f"sum({DESIRED} - 5) / 0") == (
            "{} would be nan: KEDA would read it as 0"
        )


async def test_only_the_present_is_known() -> None:
    async with a_port() as port:
        post(port.board, a_decision(desired=5))
        for time in ("1000", "940", "1060", "1970-01-01T00:16:40Z", "1970-01-01T01:16:40.9+01:00"):
            assert await port.value(DESIRED, time=time) == "5"
        assert await port.error(DESIRED, time="400", kind="bad_data") == (
            'invalid parameter "time": it is 600 s before the present, which is all that is known '
            "here; want within 60 s of it, or none"
        )
        for time in ("noon", "1e400", "1970-01-01", "1970-13-01T00:00:00Z", "NaN"):
            said = f'invalid parameter "time": cannot parse "{time}" to a valid timestamp'
            assert await port.error(DESIRED, time=time, kind="bad_data") == said
        assert await port.error(DESIRED, timeout="soon", kind="bad_data") == (
            'invalid parameter "timeout": cannot parse "soon" to a valid duration'
        )
        answer = await port.ask("1+1", time="4")
        assert answer["data"] == {"resultType": "scalar", "result": [4, "2"]}


async def test_a_form_is_read_and_nothing_else_is_taken_for_one() -> None:
    async with a_port() as port:
        post(port.board, a_decision(desired=5))

        async def posted(**how: Any) -> tuple[int, str]:
            answer = await port.client.post(PATH, **how)
            return answer.status_code, answer.text

        code, text = await posted(data={"query": f"sum({DESIRED})"})
        assert code == 200
        assert text.endswith(',"5"]}]}}')
        code, text = await posted(json={"query": DESIRED})
        assert code == 400
        assert "content-type is application/json, want application/x-www-form-urlencoded" in text
        code, text = await posted(data={"query": "x" * 70_000})
        assert code == 400
        assert "the form is larger than 65536 bytes" in text
        # A semicolon parts no parameters: who is asked for rights reads them the same way.
        code, text = await posted(
            content=f"query=1;query={DESIRED}", headers={"content-type": FORM}
        )
        assert code == 400
        assert "1:2: parse error: unexpected character: ';'" in text
        assert (await port.client.request("HEAD", PATH)).status_code == 405
        assert (await port.client.put(PATH)).status_code == 405


async def test_a_form_that_does_not_arrive_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("wva_adapter.serve.promapi._FORM_TIMEOUT_S", 0.05)

    async def never() -> AsyncIterator[bytes]:
        yield b"query="
        await asyncio.sleep(60)

    async with a_port() as port:
        answer = await port.client.post(PATH, content=never(), headers={"content-type": FORM})
    assert answer.status_code == 400
    assert answer.json()["error"] == "the form did not arrive whole within 0.05 s"


async def test_the_route_is_described() -> None:
    async with a_port() as port:
        document = (await port.client.get("/openapi.json")).json()
    described = document["paths"][PATH]
    assert [one["name"] for one in described["get"]["parameters"]] == ["query", "time", "timeout"]
    assert "application/x-www-form-urlencoded" in described["post"]["requestBody"]["content"]
    assert set(described["get"]["responses"]) == {"200", "400", "401", "403", "422", "503"}
    assert {"QueryAnswer", "QueryError"} <= set(document["components"]["schemas"])


async def test_a_query_of_a_thousand_variants_is_answered_whole() -> None:
    async with a_port() as port:
        names = [f"llama-{number:04}" for number in range(1000)]
        post(port.board, *(a_decision(name) for name in names))
        answer = await port.ask(f'{DESIRED}{{variant_name=~"llama-(0|1).*",namespace="chat"}}')
        found = [sample["metric"]["variant_name"] for sample in answer["data"]["result"]]
        assert found == names
        assert await port.value(f"sum({DESIRED})") == "3000"
