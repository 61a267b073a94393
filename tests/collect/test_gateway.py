"""What gateways tell, read off the pages of real and of emulated ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from aiohttp import web

from tests.builders import a_sample, a_state, a_variant
from tests.emulator.servers import free_port, until
from wva_adapter.collect.assemble import InFlight, ReplicaView, VariantView, assemble
from wva_adapter.collect.gateway import Gateway, GatewayReader, read_gateway
from wva_adapter.collect.static import read_static
from wva_adapter.core.snapshot import GatewayState, Phase, ReplicaState
from wva_adapter.emulator.gateway import Gateway as EmulatedGateway
from wva_adapter.errors import CollectError
from wva_adapter.runtime import Adapter
from wva_adapter.settings import parse_settings

pytestmark = pytest.mark.anyio

NOW_S = 1_700_000_000.0
FLOW = 'fairness_id="a",inference_pool="pool",model_name="llama",target_model_name="llama"'
OLD = "process_start_time_seconds 1.69e+09\n"
CONTROLS = 'llm_d_epp_flow_control_pool_saturation{inference_pool="pool"} 0.5\n'


def test_a_queue_is_summed_over_priorities_and_fairness_ids() -> None:
    page = read_gateway(
        f'{OLD}llm_d_epp_flow_control_queue_size{{{FLOW},priority="0"}} 3\n'
        f'llm_d_epp_flow_control_queue_size{{{FLOW},priority="-1"}} 4\n'
        f'llm_d_epp_flow_control_queue_bytes{{{FLOW},priority="0"}} 2048\n'.encode(),
        at_s=NOW_S,
        source="epp",
    )

    assert page.queued == {"llama": 7}
    assert page.queued_bytes == {"llama": 2048}


def test_what_has_a_negative_priority_is_offline() -> None:
    page = read_gateway(
        f'{OLD}llm_d_epp_flow_control_queue_size{{{FLOW},priority="2"}} 3\n'
        f'llm_d_epp_flow_control_queue_size{{{FLOW},priority="-1"}} 4\n'
        f'llm_d_epp_flow_control_queue_size{{{FLOW},priority="-10"}} 5\n'
        f'llm_d_epp_request_total{{model_name="llama",priority="0"}} 70\n'
        f'llm_d_epp_request_total{{model_name="llama",priority="-1"}} 30\n'.encode(),
        at_s=NOW_S,
        source="epp",
    )

    assert page.offline_queued == {"llama": 9}
    assert page.offline_let_through == {"llama": 30}
    assert page.queued == {"llama": 12}
    assert page.let_through == {"llama": 100}


def test_a_series_under_its_old_and_its_new_name_counts_once() -> None:
    page = read_gateway(
        f"llm_d_epp_flow_control_queue_size{{{FLOW}}} 3\n"
        f"inference_extension_flow_control_queue_size{{{FLOW}}} 3\n"
        f'inference_objective_request_total{{model_name="llama"}} 9\n'.encode(),
        at_s=NOW_S,
        source="epp",
    )

    assert page.queued == {"llama": 3}
    assert page.let_through == {"llama": 9}


def test_an_old_picker_is_read_by_its_old_names() -> None:
    page = read_gateway(
        f"inference_extension_flow_control_queue_size{{{FLOW}}} 3\n"
        f'inference_model_request_total{{model_name="llama",target_model_name="v2"}} 9\n'.encode(),
        at_s=NOW_S,
        source="epp",
    )

    assert page.queued == {"llama": 3}
    assert page.let_through == {"v2": 9}


def test_without_flow_control_the_queue_is_unknown_and_not_empty() -> None:
    page = read_gateway(
        f'{OLD}llm_d_epp_request_total{{model_name="llama"}} 9\n'.encode(), at_s=NOW_S, source="epp"
    )

    assert page.queued is None


def test_with_flow_control_a_model_without_a_series_holds_nothing() -> None:
    page = read_gateway((OLD + CONTROLS).encode(), at_s=NOW_S, source="epp")

    assert page.queued == {}


@pytest.mark.parametrize("text", ["<html>", "", "vllm:num_requests_waiting 3\n"])
def test_another_page_is_refused(text: str) -> None:
    with pytest.raises(CollectError, match="epp"):
        read_gateway(text.encode(), at_s=NOW_S, source="epp")


class Pages:
    """Ports that answer with whatever page they are given."""

    def __init__(self, *texts: str) -> None:
        self.texts = list(texts)
        self.status = 200
        self.tokens: list[str | None] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.tokens.append(request.headers.get("Authorization"))
        return web.Response(text=self.texts[int(request.match_info["n"])], status=self.status)


@asynccontextmanager
async def served(pages: Pages) -> AsyncIterator[tuple[str, ...]]:
    app = web.Application()
    app.router.add_get("/{n}", pages.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    try:
        yield tuple(f"http://127.0.0.1:{port}/{n}" for n in range(len(pages.texts)))
    finally:
        await runner.cleanup()


@asynccontextmanager
async def reading(
    pages: Pages,
    *,
    model_id: str | None = None,
    token_file: Path | None = None,
    clock: Callable[[], float] = lambda: NOW_S,
    on_queue: Callable[[], None] = lambda: None,
) -> AsyncIterator[GatewayReader]:
    async with served(pages) as urls:
        reader = GatewayReader(
            [Gateway("chat", urls, model_id, token_file)],
            period_s=0.02,
            timeout_s=2,
            stale_after_s=15,
            clock=clock,
            on_queue=on_queue,
        )
        task = asyncio.create_task(reader.run())
        try:
            yield reader
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def queue_of(count: int, model: str = "llama") -> str:
    return f'llm_d_epp_flow_control_queue_size{{model_name="{model}"}} {count}\n'


def total_of(count: int, model: str = "llama") -> str:
    return f'llm_d_epp_request_total{{model_name="{model}"}} {count}\n'


async def first_told(reader: GatewayReader) -> GatewayState:
    await until(lambda: bool(reader.states((a_state(),))))
    (state,) = reader.states((a_state(),))
    return state


async def test_what_waits_counts_as_arrived_before_a_replica_is_picked_for_it() -> None:
    async with reading(Pages(OLD + queue_of(3) + total_of(10))) as reader:
        state = await first_told(reader)

        assert (state.queued_requests, state.arrivals_total) == (3, 13)
        assert (state.namespace, state.model_id) == ("chat", "llama")


async def test_a_gateway_that_started_just_now_does_not_know_what_waits() -> None:
    young = f"process_start_time_seconds {NOW_S - 59}\n"
    pages = Pages(young + CONTROLS + total_of(0))
    async with reading(pages) as reader:
        await until(lambda: len(pages.tokens) > 2)
        assert reader.states((a_state(),)) == ()

        # What it does hold is real all the same.
        pages.texts = [young + queue_of(2) + total_of(0)]
        state = await first_told(reader)
        assert (state.queued_requests, state.arrivals_total) == (2, None)

        pages.texts = [f"process_start_time_seconds {NOW_S - 61}\n" + CONTROLS]
        await until(lambda: reader.states((a_state(),))[0].queued_requests == 0)


async def test_a_counter_that_fell_makes_a_gateway_young_where_it_does_not_say_when_it_began() -> (
    None
):
    now_s = [NOW_S]
    pages = Pages(CONTROLS + total_of(10))
    async with reading(pages, clock=lambda: now_s[0]) as reader:
        await until(lambda: len(pages.tokens) > 2)
        assert reader.states((a_state(),)) == ()  # since when it runs, nobody knows
        now_s[0] += 60
        assert (await first_told(reader)).arrivals_total == 10
        pages.texts = [CONTROLS + total_of(1)]
        await until(lambda: reader.states((a_state(),)) == ())
        now_s[0] += 60
        assert (await first_told(reader)).arrivals_total == 1


async def test_of_several_processes_the_one_that_leads_holds_the_queue() -> None:
    async with reading(
        Pages(OLD + queue_of(5) + total_of(10), OLD + CONTROLS + total_of(2))
    ) as reader:
        await until(lambda: (s := reader.states((a_state(),))) != () and s[0].arrivals_total == 17)
        (state,) = reader.states((a_state(),))

        assert state.queued_requests == 5


async def test_while_one_process_is_not_read_no_queue_is_not_an_empty_one() -> None:
    async with reading(Pages(OLD + CONTROLS + total_of(1), "broken")) as reader:
        await until(lambda: reader.problems != ())
        assert reader.states((a_state(),)) == ()
        assert "page cut in the middle" in reader.problems[0]


async def test_a_page_that_is_too_old_tells_nothing() -> None:
    now_s = [NOW_S]
    pages = Pages(OLD + queue_of(3))
    async with reading(pages, clock=lambda: now_s[0]) as reader:
        assert (await first_told(reader)).queued_requests == 3
        pages.status = 500
        await until(lambda: reader.problems != ())
        now_s[0] += 16
        assert reader.states((a_state(),)) == ()
        assert reader.problems[0].endswith(": HTTP 500")


async def test_a_model_is_found_by_the_name_its_engines_serve_it_under_also_once_they_are_gone() -> (
    None
):
    variant = a_variant(model_id="meta/llama-3")
    sample = replace(a_sample(), model_names=("chat-large",))
    serving = a_state(variant, replicas=[ReplicaState("r0", Phase.READY, sample=sample)])
    pages = Pages(OLD + queue_of(3, "chat-large") + queue_of(9, "another"))
    async with reading(pages) as reader:
        await until(
            lambda: (
                (s := reader.states((a_state(variant, ready=0),))) != ()
                and s[0].queued_requests == 0
            )
        )
        assert reader.states((serving,))[0].queued_requests == 3
        assert reader.states((a_state(variant, ready=0),))[0].queued_requests == 3


async def test_a_gateway_of_one_model_needs_no_names() -> None:
    pages = Pages(OLD + queue_of(3, "other") + queue_of(4, "x"))
    async with reading(pages, model_id="llama") as reader:
        assert (await first_told(reader)).queued_requests == 7
        assert reader.states((a_state(a_variant(model_id="else")),)) == ()
        assert reader.states((a_state(a_variant(namespace="other")),)) == ()


async def test_a_token_is_sent_where_one_is_given(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    pages = Pages(OLD + CONTROLS)
    async with reading(pages, token_file=tmp_path / "token") as reader:
        await first_told(reader)

    assert set(pages.tokens) == {"Bearer s3cret"}


async def test_the_first_request_that_waits_is_told_at_once_and_once() -> None:
    news: list[None] = []
    pages = Pages(OLD + CONTROLS)
    async with reading(pages, on_queue=lambda: news.append(None)) as reader:
        await first_told(reader)
        assert news == []
        pages.texts = [OLD + queue_of(1)]
        await until(lambda: len(news) == 1)
        asked = len(pages.tokens)
        await until(lambda: len(pages.tokens) > asked + 3)
        assert len(news) == 1


def sent_to(endpoint: str, count: float | str, *, unit: str = "requests", **labels: str) -> str:
    named = {
        "endpoint_name": endpoint,
        "namespace": "chat",
        "producer_name": "inflight-load-producer",
        "fairness_id": "a",
        "priority": "0",
    } | labels
    text = ",".join(f'{name}="{value}"' for name, value in named.items())
    return f"llm_d_epp_inflight_{unit}{{{text}}} {count}\n"


def in_flight_of(*lines: str) -> dict[str, InFlight]:
    page = read_gateway((OLD + "".join(lines)).encode(), at_s=NOW_S, source="epp")
    return dict(page.in_flight)


def test_what_is_in_flight_is_summed_over_flows() -> None:
    assert in_flight_of(
        sent_to("r0-rank-0", 3),
        sent_to("r0-rank-0", 2, fairness_id="b"),
        sent_to("r0-rank-0", 1, priority="-1"),
        sent_to("r0-rank-0", 900, unit="tokens"),
    ) == {"chat/r0-rank-0": InFlight(6, 900)}


def test_producers_that_count_the_same_requests_are_not_added_up() -> None:
    found = in_flight_of(
        sent_to("r0", 3),
        sent_to("r0", 2, fairness_id="b"),
        sent_to("r0", 4, producer_name="second"),
    )

    assert found["chat/r0"].requests == 5


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-1"])
def test_a_number_in_flight_that_is_none_is_unknown_and_not_zero(value: str) -> None:
    assert in_flight_of(sent_to("r0", value))["chat/r0"].requests is None
    # Nothing in one flow says nothing of another; what is in flight in one is real all the same.
    other = sent_to("r0", value, fairness_id="b")
    assert in_flight_of(sent_to("r0", 0), other)["chat/r0"].requests is None
    assert in_flight_of(sent_to("r0", 3), other)["chat/r0"].requests == 3


def a_view(name: str, *replicas: ReplicaView, namespace: str = "chat") -> VariantView:
    count = len(replicas)
    return VariantView(a_variant(name, namespace=namespace), count, count, replicas)


def a_pod(name: str) -> ReplicaView:
    return ReplicaView(f"uid of {name}", name, f"http://10.0.0.9:8000/{name}", Phase.READY)


async def told_in_flight(reader: GatewayReader, *views: VariantView) -> dict[str, float | None]:
    await until(lambda: bool(reader.in_flight(views)))
    snapshot, _ = assemble(views, {}, NOW_S, in_flight=reader.in_flight(views))
    return {r.name: r.in_flight_requests for state in snapshot.variants for r in state.replicas}


async def test_two_variants_behind_one_gateway_get_what_was_sent_to_each() -> None:
    views = [a_view("cheap", a_pod("c-0"), a_pod("c-1")), a_view("dear", a_pod("d-0"))]
    page = sent_to("c-0-rank-0", 3) + sent_to("c-0-rank-1", 2) + sent_to("d-0-rank-0", 7)
    async with reading(Pages(OLD + page + sent_to("d-0-rank-0", 512, unit="tokens"))) as reader:
        # Each port of a pod is an endpoint of its own; of c-1 nobody says anything.
        assert await told_in_flight(reader, *views) == {"c-0": 5, "c-1": None, "d-0": 7}

        snapshot, _ = assemble(views, {}, NOW_S, in_flight=reader.in_flight(views))
        assert [r.in_flight_tokens for s in snapshot.variants for r in s.replicas] == [
            None,
            None,
            512,
        ]


async def test_endpoints_that_left_or_are_of_another_namespace_are_nobodys() -> None:
    page = sent_to("r0", 3) + sent_to("gone-rank-0", 9) + sent_to("r1", 8, namespace="other")
    async with reading(Pages(OLD + page)) as reader:
        views = [a_view("llama", a_pod("r0"), a_pod("r1"))]
        assert await told_in_flight(reader, *views) == {"r0": 3, "r1": None}
        assert reader.in_flight([a_view("llama", a_pod("r0"), namespace="other")]) == {}


async def test_a_pod_whose_own_name_ends_like_a_rank_is_not_taken_for_another() -> None:
    async with reading(Pages(OLD + sent_to("r-rank-0", 3))) as reader:
        views = [a_view("llama", a_pod("r"), a_pod("r-rank-0"))]
        assert await told_in_flight(reader, *views) == {"r": None, "r-rank-0": 3}


async def test_a_replica_in_a_static_file_is_found_by_its_address_unless_two_have_its_name(
    tmp_path: Path,
) -> None:
    (tmp_path / "fleet.yaml").write_text(
        "variants:\n"
        "- namespace: chat\n"
        "  name: a\n"
        "  model_id: llama\n"
        "  replicas: [{name: first, url: 'http://10.0.4.2:8000'}, 'http://10.0.4.3:8000']\n"
        "- {namespace: chat, name: b, model_id: llama, replicas: [{name: first, url: 'http://h:1'}]}\n"
    )
    views = read_static(tmp_path / "fleet.yaml")
    page = sent_to("10.0.4.2:8000", 3) + sent_to("10.0.4.3:8000", 4) + sent_to("first", 5)
    async with reading(Pages(OLD + page)) as reader:
        await until(lambda: bool(reader.in_flight(views)))
        assert {uid: sent.requests for uid, sent in reader.in_flight(views).items()} == {
            "chat/a/first@http://10.0.4.2:8000": 3,
            "chat/a/10.0.4.3:8000@http://10.0.4.3:8000": 4,
        }


async def test_nothing_in_flight_is_unknown_while_a_gateway_is_young() -> None:
    young = f"process_start_time_seconds {NOW_S - 59}\n"
    views = [a_view("llama", a_pod("r0"), a_pod("r1"))]
    pages = Pages(young + sent_to("r0", 0) + sent_to("r1", 2))
    async with reading(pages) as reader:
        assert await told_in_flight(reader, *views) == {"r0": None, "r1": 2}
        pages.texts = [OLD + sent_to("r0", 0) + sent_to("r1", 2)]
        await until(lambda: reader.in_flight(views)["uid of r0"].requests == 0)


async def test_what_each_process_of_a_gateway_sent_adds_up_and_is_nothing_only_if_all_say_so() -> (
    None
):
    views = [a_view("llama", a_pod("r0"), a_pod("r1"))]
    pages = Pages(OLD + sent_to("r0", 3) + sent_to("r1", 0), OLD + sent_to("r0", 2))
    async with reading(pages) as reader:
        await until(lambda: reader.in_flight(views).get("uid of r0") == InFlight(5, None))
        assert reader.in_flight(views)["uid of r1"].requests == 0
    pages.texts[1] = "broken"
    async with reading(pages) as reader:
        assert await told_in_flight(reader, *views) == {"r0": 3, "r1": None}


async def test_what_was_in_flight_on_a_page_that_is_too_old_is_unknown() -> None:
    now_s = [NOW_S]
    pages = Pages(OLD + sent_to("r0", 3))
    views = [a_view("llama", a_pod("r0"))]
    async with reading(pages, clock=lambda: now_s[0]) as reader:
        assert await told_in_flight(reader, *views) == {"r0": 3}
        pages.status = 500
        await until(lambda: reader.problems != ())
        now_s[0] += 16
        assert reader.in_flight(views) == {}


SETTINGS = """
listen: {port: 0}
tls: {directory: certificates}
shutdown: {lame_duck: 0s}
static_file: fleet.yaml
scrape_period: 100ms
scrape_timeout: 1s
cycle: 100ms
max_age: 2s
policy: {scale_to_zero: true, retention: 1s}
"""


async def test_a_request_that_waits_in_a_gateway_wakes_one_replica_of_the_cheapest_variant(
    tmp_path: Path,
) -> None:
    gateway = EmulatedGateway("127.0.0.1", free_port(), metrics_port=0, clock=lambda: 0.0)
    await gateway.start()
    (tmp_path / "fleet.yaml").write_text(
        "variants:\n"
        "- {namespace: chat, name: dear, model_id: llama, cost_per_h: 4, min_replicas: 0, replicas: []}\n"
        "- {namespace: chat, name: cheap, model_id: llama, cost_per_h: 1, min_replicas: 0, replicas: []}\n"
    )
    settings = parse_settings(
        f"{SETTINGS}gateways: [{{namespace: chat, urls: ['{gateway.metrics_url}']}}]\n", "wva.yaml"
    )
    adapter = Adapter(settings, folder=tmp_path)
    stop = asyncio.Event()
    running = asyncio.create_task(adapter.run(stop))

    def counts() -> dict[str, int]:
        decided = {} if adapter.plan is None else adapter.plan.decisions
        return {key.name: decision.desired for key, decision in decided.items()}

    try:
        await until(lambda: adapter.snapshot is not None and adapter.snapshot.gateways != ())
        await until(lambda: counts() == {"cheap": 0, "dear": 0})
        async with httpx.AsyncClient(timeout=10, trust_env=False) as client:
            asking = asyncio.create_task(
                client.post(f"{gateway.url}/v1/completions", json={"model": "llama", "prompt": "a"})
            )
            await until(lambda: counts() == {"cheap": 1, "dear": 0})
            assert adapter.plan is not None
            (cheap,) = (d for k, d in adapter.plan.decisions.items() if k.name == "cheap")
            assert any("1 requests wait in the gateway" in step.why for step in cheap.trail)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
    finally:
        stop.set()
        await asyncio.wait_for(running, 10)
        await gateway.stop()


async def test_what_a_gateway_has_in_flight_at_a_replica_that_cannot_be_read_is_decided_on(
    tmp_path: Path,
) -> None:
    address = f"127.0.0.1:{free_port()}"
    (tmp_path / "fleet.yaml").write_text(
        "variants:\n"
        f"- {{namespace: chat, name: a, model_id: llama, replicas: ['http://{address}']}}\n"
    )
    async with served(Pages(OLD + CONTROLS + sent_to(address, 3))) as urls:
        settings = parse_settings(
            f"{SETTINGS}gateways: [{{namespace: chat, urls: ['{urls[0]}']}}]\n", "wva.yaml"
        )
        adapter = Adapter(settings, folder=tmp_path)
        stop = asyncio.Event()
        running = asyncio.create_task(adapter.run(stop))

        def said() -> str:
            decided = {} if adapter.plan is None else adapter.plan.decisions
            return " | ".join(step.why for one in decided.values() for step in one.trail)

        try:
            await until(lambda: "3 in flight there by the gateway" in said())
        finally:
            stop.set()
            await asyncio.wait_for(running, 10)
