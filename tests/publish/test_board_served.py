"""The board behind the HTTP port: what an HPA and KEDA see of it."""

from __future__ import annotations

import httpx
import pytest

from tests.publish.test_board import Clock, a_decision, post
from wva_adapter.publish.board import Board
from wva_adapter.publish.telemetry import Telemetry
from wva_adapter.serve.app import create_app, in_front
from wva_adapter.serve.hot import MetricReads

pytestmark = pytest.mark.anyio

DESIRED = "/apis/external.metrics.k8s.io/v1beta1/namespaces/chat/wva_desired_replicas"


async def test_no_plan_then_a_plan_then_a_plan_too_old() -> None:
    clock = Clock()
    board = Board(60.0, clock)
    telemetry = Telemetry(board, clock=clock)
    reads = MetricReads(board, clock=clock)
    app = create_app(reads, board, metrics=telemetry.page, ready={"engine": board.problem})
    transport = httpx.ASGITransport(app=in_front(app, reads))
    async with httpx.AsyncClient(transport=transport, base_url="https://adapter") as client:

        async def codes() -> tuple[int, ...]:
            paths = (DESIRED, "/v1/desired/chat/llama-a100", "/explain", "/readyz", "/metrics")
            return tuple([(await client.get(path)).status_code for path in paths])

        assert await codes() == (503, 503, 503, 500, 200)

        post(board, a_decision(desired=9, value_milli=8001))
        assert await codes() == (200, 200, 200, 200, 200)
        listed = (await client.get(f"{DESIRED}?labelSelector=variant_name%3Dllama-a100")).json()
        assert [item["value"] for item in listed["items"]] == ["8001m"]
        plain = (await client.get("/v1/desired/chat/llama-a100")).json()
        assert plain["desiredReplicas"] == 9

        # Still ready: an unready pod would take the whole API group away from every HPA.
        clock.now_s += 61
        assert await codes() == (503, 503, 200, 200, 200)
        refused = (await client.get(DESIRED)).json()
        assert refused["message"] == "chat/llama-a100: the plan is 61 s old, max_age is 60 s"
        assert "items" not in refused


async def test_a_wrong_name_is_answered_with_the_names_there_are() -> None:
    board = Board(60.0, Clock())
    post(board, a_decision())
    app = create_app(MetricReads(board, clock=Clock()), board, metrics=bytes, ready={})
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="https://adapter") as client:
        answer = await client.get(f"{DESIRED}?labelSelector=variant_name%3Dllama-x")
    assert answer.status_code == 404
    assert answer.json()["message"] == (
        "no variant in namespace chat has variant_name=llama-x; "
        "there variant_name is one of: llama-a100"
    )
