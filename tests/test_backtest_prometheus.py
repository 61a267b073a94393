"""What is read of a Prometheus' answers, and what is said where there is none to read."""

from __future__ import annotations

import json
from urllib.parse import parse_qs

import httpx
import pytest

from wva_adapter.backtest.prometheus import PAGE_S, of_prometheus
from wva_adapter.core.snapshot import Snapshot
from wva_adapter.errors import CollectError

POD = {"namespace": "chat", "pod": "llama-7c9f8d6b54-x2x9q", "model_name": "llama"}


def answer(
    pods: list[dict[str, str]], start_s: float, end_s: float, value: str
) -> dict[str, object]:
    times = [start_s + 15 * n for n in range(int((end_s - start_s) // 15) + 1)]
    series = [{"metric": pod, "values": [[at_s, value] for at_s in times]} for pod in pods]
    return {"status": "success", "data": {"resultType": "matrix", "result": series}}


def read(handler: object, *, from_s: float = 1000.0, to_s: float = 1060.0) -> list[Snapshot]:
    transport = httpx.MockTransport(handler)  # type: ignore[arg-type]
    cycles = of_prometheus(
        "http://prometheus",
        from_s=from_s,
        to_s=to_s,
        on_share=lambda share: None,
        transport=transport,
    )
    return [snapshot for snapshot, _ in cycles]


def told(request: httpx.Request) -> tuple[str, float, float]:
    form = parse_qs(request.content.decode())
    return form["query"][0], float(form["start"][0]), float(form["end"][0])


def test_pods_of_one_workload_are_one_variant() -> None:
    pods = [POD, {**POD, "pod": "llama-7c9f8d6b54-aaaaa"}, {**POD, "pod": "other-0"}]
    snapshots = read(lambda r: httpx.Response(200, json=answer(pods, *told(r)[1:], "3")))
    assert [s.at_s for s in snapshots] == [1000, 1015, 1030, 1045, 1060]
    states = {str(state.variant.key): state for state in snapshots[-1].variants}
    assert {name: s.spec_replicas for name, s in states.items()} == {
        "chat/llama": 2,
        "chat/other": 1,
    }
    sample = states["chat/other"].replicas[0].sample
    assert sample is not None
    assert (sample.running_requests, sample.kv_cache_usage) == (3, 1.0)  # a share ends at 1


def test_a_long_time_is_read_in_pages_without_a_moment_twice() -> None:
    asked: list[tuple[float, float]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        query, start_s, end_s = told(request)
        if "num_requests_running" in query:
            asked.append((start_s, end_s))
        return httpx.Response(200, json=answer([POD], start_s, end_s, "1"))

    snapshots = read(handler, from_s=0.0, to_s=2.5 * PAGE_S)
    assert len(asked) == 3
    times = [snapshot.at_s for snapshot in snapshots]
    assert times == [15.0 * n for n in range(int(2.5 * PAGE_S / 15) + 1)]


def test_a_pod_that_was_not_scraped_is_not_there() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        query, start_s, end_s = told(request)
        gone = {**POD, "pod": "llama-7c9f8d6b54-bbbbb"}
        pods = [POD] if "running" in query else [POD, gone]
        return httpx.Response(200, json=answer(pods, start_s, end_s, "1"))

    assert {s.variants[0].spec_replicas for s in read(handler)} == {1}


def test_a_number_that_is_none_is_unknown() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        query, start_s, end_s = told(request)
        value = "NaN" if "kv_cache" in query else "1"
        return httpx.Response(200, json=answer([POD], start_s, end_s, value))

    sample = read(handler)[0].variants[0].replicas[0].sample
    assert sample is not None
    assert sample.kv_cache_usage is None


@pytest.mark.parametrize(
    ("response", "why"),
    [
        (httpx.Response(404, text="not found"), "HTTP 404: no answer of a Prometheus, want its"),
        (
            httpx.Response(422, text=json.dumps({"status": "error", "error": "query timed out"})),
            "HTTP 422: query timed out",
        ),
        (httpx.Response(200, json=answer([], 0, 0, "1")), "no vllm:num_requests_running in the 60"),
    ],
)
def test_what_cannot_be_read_is_told(response: httpx.Response, why: str) -> None:
    with pytest.raises(CollectError, match=why):
        read(lambda request: response)


def test_a_prometheus_that_is_not_there_is_told() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused")

    with pytest.raises(CollectError, match="http://prometheus: connection refused"):
        read(handler)
