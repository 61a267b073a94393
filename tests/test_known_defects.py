"""Each known defect of earlier systems, told as what has to happen here instead.

1 to 20 are those of llm-d's WVA, 21 to 25 those of the control laws that replaced it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from tests.builders import a_key, a_replica, a_state, a_variant, decide
from tests.collect.test_gateway import CONTROLS, OLD, Pages, queue_of, reading
from tests.collect.test_manifests import a_workload, an_hpa
from tests.collect.test_thresholds import SYSTEM, policies, read
from tests.core.test_demand import Fleet, only, said
from tests.core.test_room import a_node, an_option, taken
from tests.emulator.servers import until
from tests.publish.test_board import Clock
from tests.publish.test_telemetry import samples
from wva_adapter.collect.engines import inspect_page
from wva_adapter.collect.gateway import Gateway, GatewayReader
from wva_adapter.collect.manifests import Objects, describe
from wva_adapter.collect.objects import Autoscaler, Workload
from wva_adapter.collect.thresholds import SATURATION, SCALE_TO_ZERO
from wva_adapter.core.decision import Plan
from wva_adapter.core.fleet import Taint
from wva_adapter.core.memory import Memory
from wva_adapter.core.planner import plan
from wva_adapter.core.policies import Policies
from wva_adapter.core.policy import Policy
from wva_adapter.core.remembered import bounded, from_document, to_document
from wva_adapter.core.room import Supply
from wva_adapter.core.snapshot import GatewayState, Phase, ReplicaState, Snapshot
from wva_adapter.kube.meta import ObjectKey
from wva_adapter.publish.board import Board
from wva_adapter.publish.explain import Explanation
from wva_adapter.publish.telemetry import Telemetry
from wva_adapter.runtime import Adapter
from wva_adapter.settings import parse_settings

DATA = Path(__file__).parent / "data"
SATURATION_POLICY = Policy(analysis="saturation")


def counts(planned: Plan) -> Mapping[str, int]:
    return {key.name: decision.desired for key, decision in planned.decisions.items()}


def test_defect_1_an_override_of_one_model_is_applied_and_inherits_what_it_does_not_set() -> None:
    """Overrides were parsed and never applied; a partial one zeroed the rest."""
    found = read(
        {
            (SYSTEM, SATURATION): {
                "default": "queueLengthThreshold: 7",
                "a": "{model_id: a, kvCacheThreshold: 0.95}",
            }
        }
    )
    # At 0.75 of the KV cache 0.05 is left below the threshold 0.8, less than the trigger 0.1; below
    # 0.95 it is 0.2.
    states = tuple(a_state(a_variant(m, model_id=m), usage=[0.75]) for m in ("a", "b"))
    base = Policies(SATURATION_POLICY, tuple(found.overrides.values()))

    planned, _ = plan(Snapshot(0.0, states), base, Memory())

    assert counts(planned) == {"a": 1, "b": 2}
    assert policies(found).of("chat", "a").queue_length_threshold == 7


def test_defect_2_without_a_config_map_of_thresholds_decisions_go_on_by_the_defaults() -> None:
    """A missing thresholds ConfigMap stopped scaling."""
    found = read({})

    planned, _ = plan(
        Snapshot(0.0, (a_state(usage=0.95),)),
        Policies(SATURATION_POLICY, tuple(found.overrides.values())),
        Memory(),
    )

    assert counts(planned) == {"llama-a100": 3}


SETTINGS = """
listen: {port: 0}
tls: {directory: certificates}
shutdown: {lame_duck: 0s}
static_file: fleet.yaml
"""


@pytest.mark.anyio
@pytest.mark.parametrize(("cycle", "fewest", "most"), [("50ms", 5, 80), ("30s", 1, 1)])
async def test_defect_3_decisions_come_as_often_as_the_setting_says(
    tmp_path: Path, cycle: str, fewest: int, most: int
) -> None:
    """The interval setting was ignored."""
    (tmp_path / "fleet.yaml").write_text(
        "variants: [{namespace: chat, name: v, model_id: m, replicas: []}]"
    )
    adapter = Adapter(parse_settings(f"{SETTINGS}cycle: {cycle}\n", "wva.yaml"), folder=tmp_path)
    stop, seen = asyncio.Event(), set()
    running = asyncio.create_task(adapter.run(stop))
    try:
        await until(lambda: adapter.plan is not None, within_s=30)
        for _ in range(200):
            assert adapter.plan is not None
            seen.add(adapter.plan.at_s)
            await asyncio.sleep(0.01)
    finally:
        stop.set()
        await asyncio.wait_for(running, 10)
    assert fewest <= len(seen) <= most


def test_defect_4_capacity_and_cached_prompts_are_read_by_the_names_that_pages_have() -> None:
    """``cache_config_info`` has no ``model_name`` and counters end in ``_total``: capacity was 0."""
    page = (DATA / "vllm-0.32.0-idle-prefix-hits-and-errors.txt").read_bytes()

    total = inspect_page(page, None, at_s=0.0, source="page").total

    assert total.kv_cache_tokens is not None
    assert total.kv_cache_tokens > 0
    assert total.prompt_tokens_total is not None
    assert total.computed_prompt_tokens_total is not None
    assert 0 < total.computed_prompt_tokens_total < total.prompt_tokens_total


def test_defect_5_a_cheaper_variant_parked_at_zero_is_what_is_added() -> None:
    """It was never used."""
    parked = a_state(a_variant("cheap", cost=1.0, minimum=0), ready=0)

    planned, _ = decide(parked, a_state(a_variant("dear", cost=4.0), usage=0.95))

    assert counts(planned) == {"cheap": 1, "dear": 2}


def test_defect_6_free_devices_are_those_of_one_node_that_nobody_has_and_that_takes_pods() -> None:
    """Others' pods, cordons and taints were ignored; 8 nodes with 1 free took a replica of 8."""
    eight = an_option(devices=8)

    assert taken(Supply(tuple(a_node(f"n{i}", 8, 7) for i in range(8))), eight)[0] == 0
    assert taken(Supply((a_node(requested=1),)), eight)[0] == 0
    assert taken(Supply((a_node(cordoned=True),)), eight)[0] == 0
    assert taken(Supply((a_node(taints=(Taint("team", "search"),)),)), eight)[0] == 0
    assert taken(Supply((a_node(),)), eight)[0] == 1


def test_defect_7_the_series_of_a_removed_variant_go_with_it() -> None:
    """Gauges of removed variants stayed."""
    board = Board(60.0, Clock(0.0))
    telemetry = Telemetry(board, clock=Clock(0.0))
    for names in (("a", "b"), ("b",)):
        states = tuple(a_state(a_variant(name)) for name in names)
        planned, _ = decide(*states)
        board.post(planned, Snapshot(0.0, states))
        assert set(samples(telemetry, "wva_desired_replicas")) == set(names)


@pytest.mark.parametrize("analysis", ["demand", "saturation", "tokens"])
def test_defect_8_without_any_metrics_the_count_stays(analysis: str) -> None:
    """It could emit 0."""
    policy = Policy(analysis=analysis)  # type: ignore[arg-type]
    memory = Memory()
    for number in range(200):
        at_s = 5.0 * number
        state = a_state(replicas=[a_replica(f"r{i}", seen=False) for i in range(4)])
        planned, memory = decide(state, at_s=at_s, policy=policy, memory=memory)
        assert counts(planned) == {"llama-a100": 4}


@pytest.mark.parametrize("usage", ["NaN", "missing"])
def test_defect_9_a_gauge_that_is_no_number_or_not_there_is_not_an_idle_replica(usage: str) -> None:
    """NaN and missing read as idle, so a scrape gap scaled down."""
    text = (DATA / "vllm-0.32.0-running.txt").read_text()
    lines = [
        line.rsplit(" ", 1)[0] + " NaN" if line.startswith("vllm:kv_cache_usage_perc") else line
        for line in text.splitlines()
        if usage == "NaN" or not line.startswith("vllm:kv_cache_usage_perc")
    ]
    memory = Memory()
    for number in range(200):
        at_s = 5.0 * number
        page = inspect_page("\n".join([*lines, ""]).encode(), None, at_s=at_s, source="page").total
        assert page.kv_cache_usage is None
        replicas = [ReplicaState(f"r{i}", sample=replace(page, replica=f"r{i}")) for i in range(4)]
        planned, memory = decide(a_state(replicas=replicas), at_s=at_s, memory=memory)
    assert counts(planned) == {"llama-a100": 4}
    assert "unseen" in said(planned)


def test_defect_10_the_load_of_saturated_replicas_stays_when_one_goes() -> None:
    """Scale-down ignored the load on saturated replicas."""
    memory = Memory()
    # Over the two that are not saturated 0.79 would be spare; all load on three is 0.5 each.
    for number in range(100):
        at_s = 5.0 * number
        state = a_state(usage=(0.99, 0.99, 0.01, 0.01), at_s=at_s)
        planned, memory = decide(state, at_s=at_s, memory=memory)
        assert counts(planned)["llama-a100"] >= 3
    small = Memory()
    for number in range(100):
        at_s = 5.0 * number
        state = a_state(usage=(0.99, 0.99, 0.01), at_s=at_s)
        planned, small = decide(state, at_s=at_s, memory=small)
    # On two it would be 0.995 each.
    assert counts(planned) == {"llama-a100": 3}


def test_defect_10_a_pending_pod_of_one_variant_freezes_no_other() -> None:
    """One Pending pod froze the whole model."""
    pending = a_state(
        a_variant("dear", cost=4.0),
        replicas=[a_replica("d0", usage=0.95), ReplicaState("d1", Phase.STARTING, 0.0)],
        spec=2,
    )
    full = a_state(a_variant("cheap", cost=1.0), usage=(0.95, 0.95, 0.95))

    planned, _ = decide(pending, full, policy=Policy(analysis="tokens"))

    # 4 x 0.95 / 0.85 = 4.5 of a whole cache are needed, the five have 5 x 0.8 = 4.
    assert counts(planned) == {"cheap": 4, "dear": 2}


def test_defect_11_replicas_go_a_quarter_at_a_time_and_after_a_window() -> None:
    """Many were dropped in one step without a cool-down."""
    fleet = Fleet(ready=12, spec=12, policy=Policy(utilization=0.9))
    for _ in range(120):
        decided = only(fleet.cycle(60.0))
        fleet.ready = fleet.spec = max(fleet.spec, decided.desired)
    before = fleet.spec
    fell_after_s = None
    for number in range(240):
        desired = only(fleet.cycle(1.0)).desired
        assert desired >= fleet.spec - max(1, fleet.spec // 4)
        if desired < fleet.spec and fell_after_s is None:
            fell_after_s = 5.0 * (number + 1)
        fleet.ready = fleet.spec = desired
    assert fell_after_s is not None
    assert fell_after_s >= 120
    assert fleet.spec < before / 2  # it does go, in the end


def test_defect_11_even_without_a_window_a_quarter_goes_at_a_time() -> None:
    policy = Policy(analysis="tokens", scale_down_window_s=0.0)
    memory, published, spec = Memory(), [], 12
    for number in range(10):
        at_s = 5.0 * number
        state = a_state(a_variant(maximum=20), usage=0.01, ready=spec, at_s=at_s)
        planned, memory = decide(state, at_s=at_s, policy=policy, memory=memory)
        spec = counts(planned)["llama-a100"]
        published.append(spec)

    # One of them carries all of it. Within 15 s three of 12 may go, then two of 9, then one of 7.
    assert published == [12, 9, 9, 9, 7, 7, 7, 6, 6, 6]


def test_defect_12_the_ranks_of_a_data_parallel_engine_are_added_up() -> None:
    """``max by (pod)`` hid all ranks but one."""
    reading_ = inspect_page(
        (DATA / "vllm-0.32.0-dp2-saturated.txt").read_bytes(), None, at_s=0.0, source="page"
    )

    running = [rank.running_requests for rank in reading_.ranks.values()]
    assert len(running) == 2
    assert all(running)
    assert reading_.total.running_requests == sum(one or 0 for one in running)


def test_defect_13_from_zero_the_cheapest_variant_alone_is_woken() -> None:
    """It woke every variant."""
    states = tuple(
        a_state(a_variant(name, cost=cost, minimum=0), ready=0)
        for name, cost in (("cheap", 1.0), ("dear", 4.0), ("dearer", 5.0))
    )
    gateway = GatewayState(namespace="chat", model_id="llama", at_s=0.0, queued_requests=40.0)

    planned, _ = plan(Snapshot(0.0, states, (gateway,)), SATURATION_POLICY, Memory())

    assert counts(planned) == {"cheap": 1, "dear": 0, "dearer": 0}


@pytest.mark.anyio
async def test_defect_13_the_error_of_one_gateway_makes_no_other_wait() -> None:
    """One model's gateway error slowed all wake-ups from 0.1 to 4 s."""

    async def hang(_: web.Request) -> web.Response:
        await asyncio.sleep(30)
        return web.Response()

    app = web.Application()
    app.router.add_get("/metrics", hang)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    pages = Pages(OLD + CONTROLS)
    async with reading(pages) as other:
        await until(lambda: other.states((a_state(),)) != ())
        woken: list[float] = []
        loop = asyncio.get_running_loop()
        both = GatewayReader(
            [
                Gateway("code", (f"http://127.0.0.1:{port}/metrics",)),
                Gateway("chat", tuple(w.url for w in other._watched)),
            ],
            period_s=0.02,
            timeout_s=4,
            stale_after_s=15,
            clock=lambda: 1_700_000_000.0,
            on_queue=lambda: woken.append(loop.time()),
        )
        task = asyncio.create_task(both.run())
        try:
            await until(lambda: both.states((a_state(),)) != ())
            pages.texts, began_s = [OLD + queue_of(1)], loop.time()
            await until(lambda: bool(woken))
            assert woken[0] - began_s < 1  # and not the 4 s after which the silent one is given up
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await runner.cleanup()


def test_defect_14_the_reason_of_every_change_is_shown() -> None:
    """Reasons were computed and never shown."""
    state = a_state(usage=0.95)
    planned, _ = decide(state)
    board = Board(60.0, Clock(0.0))
    board.post(planned, Snapshot(0.0, (state,)))

    explained = board.explain("chat", "llama-a100")

    (decision,) = planned.decisions.values()
    assert decision.desired == 3
    assert isinstance(explained, Explanation)
    for step in decision.trail:
        assert step.why
        assert f"{step.before} → {step.after}  {step.why}" in explained.text or (
            f"{step.before} stays  {step.why}" in explained.text
        )


@pytest.mark.parametrize("deleted", [SATURATION, SCALE_TO_ZERO])
def test_defect_15_deleting_one_config_map_drops_that_one_also_where_it_holds_for_all(
    deleted: str,
) -> None:
    """Deleting one dropped both; deletion of the global one was ignored."""
    maps = {
        (SYSTEM, SATURATION): {"default": "kvCacheThreshold: 0.7"},
        (SYSTEM, SCALE_TO_ZERO): {"default": "enable_scale_to_zero: true"},
        ("chat", SATURATION): {"default": "kvCacheThreshold: 0.6"},
    }
    before = read(maps)

    del maps[SYSTEM, deleted]
    after = read(maps, before=before)

    gone = before.overrides.keys() - after.overrides.keys()
    assert gone == {f"configmap {SYSTEM}/{deleted} default"}


def test_defect_16_an_error_that_passes_takes_no_value_away() -> None:
    """A passing Prometheus error removed the metric, and the HPA showed ``<unknown>``."""
    board, memory = Board(60.0, Clock(20.0)), Memory()
    telemetry = Telemetry(board, clock=Clock(20.0))
    for at_s, problem in ((0.0, None), (5.0, "HTTP 500"), (10.0, "timed out after 5 s")):
        replicas = [a_replica(f"r{i}", at_s=0.0, problem=problem) for i in range(2)]
        state = a_state(replicas=replicas)
        planned, memory = decide(state, at_s=at_s, memory=memory)
        board.post(planned, Snapshot(at_s, (state,)))
        assert samples(telemetry, "wva_desired_replicas") == {"llama-a100": 2.0}


def test_defect_17_what_was_learned_of_capacity_outlives_the_process() -> None:
    """Capacity knowledge was lost at failover."""
    fleet = Fleet()
    fleet.cycles(8.0, 300)

    text = json.dumps(to_document(bounded(fleet.memory)))
    restored = from_document(json.loads(text))

    fit = restored.variants[a_key()].fit
    assert fit is not None
    assert fit.samples > 50
    assert fit == fleet.memory.variants[a_key()].fit


def test_defect_18_of_two_installs_one_answers_for_a_variant() -> None:
    """Both answered, and the HPA summed them."""
    hpa = an_hpa()
    hpa["metadata"]["labels"] = {"wva.llmd.ai/controller-instance": "blue"}
    autoscaler = msgspec.convert(hpa, Autoscaler)
    workload = msgspec.convert(a_workload(), Workload)
    objects = Objects(
        autoscalers={autoscaler.metadata.key: autoscaler},
        deployments={ObjectKey(*workload.metadata.key): workload},
    )

    seen = {name: len(describe(objects, {}, instance=name).views) for name in ("default", "blue")}

    assert seen == {"default": 0, "blue": 1}


def test_defect_19_requests_that_are_stuck_in_one_engine_do_not_block_scaling_down_for_ever() -> (
    None
):
    fleet = Fleet(ready=6, spec=6)
    fleet.cycles(12.0, 300)
    fleet.frozen = frozenset({"r5"})
    inner = fleet._replica

    def with_dead_requests(name: str, unseen: bool) -> ReplicaState:
        found = inner(name, unseen)
        if name != "r5" or found.sample is None:
            return found
        return replace(found, sample=replace(found.sample, queued_requests=3.0))

    fleet._replica = with_dead_requests  # type: ignore[method-assign]
    planned = fleet.cycles(2.0, 900)

    assert only(planned).desired < 6
    assert any("stuck" in note for note in planned.loads[0].notes)


def test_defect_20_a_deleted_pod_counts_for_nothing_at_once() -> None:
    """``max_over_time`` kept deleted pods alive for a minute, and counts oscillated."""
    _, memory = decide(a_state(usage=(0.95, 0.3, 0.3)), at_s=0.0)
    left = [a_replica(f"llama-a100-{i}", at_s=5.0) for i in (1, 2)]

    planned, _ = decide(a_state(replicas=left), at_s=5.0, memory=memory)

    (load,) = planned.loads
    assert load.replicas == 2
    # Nothing is short: what the deleted one held, 0.95 against the threshold 0.8, is not there.
    assert counts(planned) == {"llama-a100": 2}
    assert load.shortage == 0


def test_defect_21_a_pool_that_is_full_gets_more_than_two_replicas_whatever_its_size() -> None:
    """A saturation ratio against a target of 0.7 never asks for more than 2 replicas."""
    fleet = Fleet(ready=8, spec=8)
    fleet.cycles(8.0, 300)
    fleet.waiting = 200.0

    desired = only(fleet.cycles(80.0, 15)).desired

    assert desired > 8


def test_defect_22_pods_that_warm_up_are_not_a_reason_to_ask_for_fewer() -> None:
    """6 replicas, of which 3 ready, at 0.9: it asked for 5."""
    replicas = [a_replica(f"r{i}", usage=0.72, queue=1) for i in range(3)]  # 0.9 of 0.8
    replicas += [ReplicaState(f"s{i}", Phase.STARTING, 0.0) for i in range(3)]
    for analysis in ("saturation", "tokens", "demand"):
        policy = Policy(analysis=analysis)
        planned, _ = decide(a_state(replicas=replicas, spec=6), policy=policy)
        assert counts(planned)["llama-a100"] >= 6


def test_defect_23_a_lost_source_drains_no_fleet() -> None:
    """It read as 0 and drained the fleet to its minimum."""
    fleet = Fleet(ready=6, spec=6, policy=Policy())
    fleet.cycles(20.0, 300)
    unseen = [f"r{i}" for i in range(6)]
    for _ in range(240):  # 20 minutes
        planned = fleet.cycle(20.0, unseen=unseen)
        assert only(planned).desired >= 6
    assert "unseen" in said(planned)


def test_defect_24_two_variants_of_one_pool_do_not_both_grow_for_one_need() -> None:
    """Two scalers on two variants read the same sum, and both scaled up."""
    states = (a_state(a_variant("a"), usage=0.95), a_state(a_variant("b"), usage=0.95))

    planned, _ = decide(*states)

    assert sum(counts(planned).values()) == 5  # one more than the four that there are


def test_defect_25_pages_of_a_replica_that_warms_up_teach_nothing_of_capacity() -> None:
    """They poisoned the learned capacity."""
    fleet = Fleet(ready=1, spec=1)
    inner = fleet._replica

    def just_ready(name: str, unseen: bool) -> ReplicaState:
        return replace(inner(name, unseen), ready_at_s=1_000_000.0)

    fleet._replica = just_ready  # type: ignore[method-assign]
    fleet.cycles(4.0, 60)
    fit = fleet.memory.variants[a_key()].fit
    assert fit is not None
    assert fit.samples == 0
    fleet.cycles(4.0, 60)
    fit = fleet.memory.variants[a_key()].fit
    assert fit is not None
    assert fit.samples > 0
