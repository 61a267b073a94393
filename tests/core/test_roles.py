"""Models of which some replicas prefill and others decode, as an operator meets them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders import a_state, a_variant
from tests.core.driven import intervals, page
from wva_adapter.core.capacity import Times, fresh_fit
from wva_adapter.core.decision import Decision, Plan
from wva_adapter.core.fleet import LoadKey, Role, Variant
from wva_adapter.core.interval import unusable
from wva_adapter.core.inventory import Inventory
from wva_adapter.core.memory import Memory
from wva_adapter.core.parts import WAIT_SHARE, learn, part_rate
from wva_adapter.core.planner import plan
from wva_adapter.core.policy import Analysis, Policy, RequestClass
from wva_adapter.core.service_rate import Shape, Slo
from wva_adapter.core.snapshot import (
    GatewayState,
    Phase,
    ReplicaSample,
    ReplicaState,
    Snapshot,
    VariantState,
)
from wva_adapter.core.whynot import why_not
from wva_adapter.sim import files
from wva_adapter.sim.replica import Replica
from wva_adapter.sim.request import Request
from wva_adapter.sim.workload import lengths

CYCLE_S = 5.0
PROMPT, OUTPUT = 4000.0, 200.0
PREFILL_TOKEN_S = 50e-6  # 0.2 s a prompt, 20,000 tokens/s
STEP_S = 0.020


def a_role(role: Role, *, minimum: int = 0, cost: float = 2.0) -> Variant:
    return replace(a_variant(role, minimum=minimum, maximum=30, cost=cost), role=role)


PREFILL, DECODE = a_role("prefill"), a_role("decode", cost=1.0)


@dataclass
class Split:
    """Replicas that prefill and others that decode, through which the same requests pass."""

    variants: tuple[Variant, ...] = (PREFILL, DECODE)
    counts: dict[str, int] = field(default_factory=lambda: {"prefill": 1, "decode": 1})
    starting: frozenset[str] = frozenset()
    policy: Policy = field(default_factory=Policy)
    at_s: float = 1_000_000.0
    served: float = 0.0
    computed_by_decode: float = 1.0
    queue: float | None = None
    total: float | None = None
    inventory: Inventory = field(default_factory=Inventory)
    memory: Memory = field(default_factory=Memory)

    def cycle(self, rate: float) -> Plan:
        """Let 5 s pass in which so many requests per second are served by both, and decide."""
        self.at_s += CYCLE_S
        self.served += rate * CYCLE_S
        gateways: tuple[GatewayState, ...] = ()
        if self.queue is not None or self.total is not None:
            gateways = (
                GatewayState(
                    namespace="chat",
                    model_id="llama",
                    at_s=self.at_s,
                    queued_requests=self.queue,
                    arrivals_total=self.total,
                ),
            )
        states = tuple(self._state(variant, rate) for variant in self.variants)
        snapshot = Snapshot(self.at_s, states, gateways, inventory=self.inventory)
        decided, self.memory = plan(snapshot, self.policy, self.memory)
        return decided

    def cycles(self, rate: float, seconds: float) -> Plan:
        for _ in range(int(seconds / CYCLE_S) - 1):
            self.cycle(rate)
        return self.cycle(rate)

    def _state(self, variant: Variant, rate: float) -> VariantState:
        count = self.counts[variant.key.name]
        replicas = tuple(
            ReplicaState(f"{variant.key.name}-{i}", Phase.READY, 1000.0, 1100.0, sample)
            for i in range(count)
            for sample in [self._page(variant, f"{variant.key.name}-{i}", count, rate)]
        )
        if variant.key.name in self.starting:
            replicas += (ReplicaState("new", Phase.STARTING, self.at_s - 10),)
        return VariantState(variant, len(replicas), len(replicas), replicas)

    def _page(self, variant: Variant, name: str, count: int, rate: float) -> ReplicaSample:
        n = self.served / count
        prefills = variant.role != "decode"
        decodes = variant.role != "prefill"
        outputs = OUTPUT if decodes else 1.0
        busy_s = PROMPT * PREFILL_TOKEN_S
        return ReplicaSample(
            replica=name,
            at_s=self.at_s,
            awake=True,
            kv_cache_usage=0.04 if rate else 0.0,
            kv_cache_tokens=400_000,
            running_requests=1.0 if rate else 0.0,
            queued_requests=0.0,
            prompt_tokens_total=n * PROMPT,
            computed_prompt_tokens_total=n * (PROMPT if prefills else self.computed_by_decode),
            generation_tokens_total=n * outputs,
            ttft_sum_s=n * busy_s,
            ttft_count=n,
            itl_sum_s=n * (outputs - 1) * STEP_S,
            itl_count=n * (outputs - 1),
            prefill_sum_s=n * (busy_s if prefills else STEP_S),
            input_tokens_sum=n * PROMPT,
            input_tokens_count=n,
            output_tokens_sum=n * outputs,
            output_tokens_count=n,
        )


def of(decided: Plan, name: str) -> Decision:
    return next(d for key, d in decided.decisions.items() if key.name == name)


def said(decided: Plan, name: str, rule: str = "") -> str:
    return " | ".join(s.why for s in of(decided, name).trail if rule in ("", s.rule))


def the_load(decided: Plan, role: Role) -> tuple[float, float, str]:
    """Return need, capacity of one replica, and unit."""
    load = next(one for one in decided.loads if one.role == role)
    return load.need, next(iter(load.capacity.values())), load.unit


# --- what each is sized in -----------------------------------------------------------------------


def test_prefill_is_sized_in_prompt_tokens_and_decode_in_requests() -> None:
    decided = Split().cycles(1.0, 300)
    need, each, unit = the_load(decided, "prefill")
    assert unit == "prompt tokens/s"
    # 20,000 tokens/s at full use; waiting of 0.65·(2 - 0.2) s allows 1.17/(1.17 + 0.2) of it
    assert each == pytest.approx(20_000 * 1.17 / 1.37, rel=0.05)
    assert need >= 1.0 * PROMPT
    need, each, unit = the_load(decided, "decode")
    assert unit == "req/s"
    assert need >= 1.0


def test_the_trail_names_role_and_unit_and_what_one_replica_does() -> None:
    decided = Split().cycles(1.0, 300)
    assert "prefill: " in said(decided, "prefill", "follow_demand")
    assert "prompt tokens/s to be ready for against 17," in said(decided, "prefill")
    assert "of one replica" in said(decided, "prefill")
    assert said(decided, "decode", "follow_demand").startswith("decode: ")
    assert "req/s to be ready for against" in said(decided, "decode")


def test_a_shortage_of_prefill_orders_no_decode() -> None:
    split = Split()
    split.cycles(1.0, 300)
    need, each, _ = the_load(split.cycle(1.0), "decode")
    decided = split.cycles(6.0, 30)  # 24,000 tokens/s are more than one prefills
    assert of(decided, "prefill").desired >= 2
    need, each, _ = the_load(decided, "decode")
    assert of(decided, "decode").desired == max(1, math.ceil(need / each / 0.85))


def test_what_engines_say_of_prompts_counts_for_decode_only_where_nobody_prefills() -> None:
    passed_on, counted = Split(), Split(computed_by_decode=PROMPT)
    _, each, _ = the_load(passed_on.cycles(1.0, 300), "decode")
    # an engine that counts what came over the network as computed changes nothing
    assert the_load(counted.cycles(1.0, 300), "decode")[1] == pytest.approx(each)
    alone = Split(variants=(DECODE,), computed_by_decode=PROMPT).cycles(1.0, 300)
    assert the_load(alone, "decode")[1] < 0.95 * each


def test_decode_hears_of_requests_that_prefill_cannot_pass_on_yet() -> None:
    split = Split()
    split.cycles(1.0, 300)
    states = [split._state(v, 1.0) for v in split.variants]
    prefill, decode = states
    at_s = split.at_s + CYCLE_S
    waiting = replace(
        prefill,
        replicas=tuple(
            replace(r, sample=replace(r.sample, at_s=at_s, queued_requests=50.0))
            for r in prefill.replicas
            if r.sample is not None
        ),
    )
    same = replace(
        decode,
        replicas=tuple(
            replace(r, sample=replace(r.sample, at_s=at_s))
            for r in decode.replicas
            if r.sample is not None
        ),
    )
    decided, _ = plan(Snapshot(at_s, (waiting, same)), split.policy, split.memory)
    load = next(one for one in decided.loads if one.role == "decode")
    assert load.demand is not None
    assert load.demand > 3  # 50 came in 5 s, of which chance explains a part


@pytest.mark.parametrize("analysis", ["saturation", "tokens"])
def test_other_analyses_look_at_each_role_alone(analysis: Analysis) -> None:
    full = a_state(PREFILL, usage=[0.95, 0.95], queue=9)
    idle = a_state(DECODE, usage=[0.3, 0.3])
    decided, _ = plan(Snapshot(0.0, (full, idle)), Policy(analysis=analysis), Memory())
    assert of(decided, "prefill").desired == 3 if analysis == "saturation" else 2
    assert of(decided, "prefill").desired > of(decided, "decode").desired
    assert of(decided, "decode").desired <= 2
    assert said(decided, "prefill", "follow_demand").startswith("prefill: ")


def test_why_not_is_answered_in_the_units_of_the_role() -> None:
    decided = Split(counts={"prefill": 2, "decode": 2}).cycles(5.0, 300)
    assert decided.case is not None
    answer = why_not(PREFILL.key, 0, decided.decisions, decided.case)
    assert answer.unit == "prompt tokens/s"
    assert any("short by" in why and "prompt tokens/s" in why for why in answer.sentences)
    assert why_not(DECODE.key, 0, decided.decisions, decided.case).unit == "req/s"


# --- from zero and to zero -----------------------------------------------------------------------

SLEEPY = Policy(analysis="saturation", scale_to_zero=True, retention_s=60)


def test_requests_at_the_gateway_wake_one_of_each_role() -> None:
    cheap = a_role("decode", cost=1.0)
    dear = replace(a_role("decode", cost=3.0), key=PREFILL.key._replace(name="dear"))
    split = Split(
        variants=(PREFILL, cheap, dear),
        counts={"prefill": 0, "decode": 0, "dear": 0},
        policy=SLEEPY,
        queue=4,
    )
    decided = split.cycle(0.0)
    found = {key.name: d.desired for key, d in decided.decisions.items()}
    assert found == {"prefill": 1, "decode": 1, "dear": 0}
    assert "there is no prefill replica" in said(decided, "prefill", "wake_from_zero")


def test_a_role_that_lost_its_last_replica_is_brought_back_beside_its_partner() -> None:
    decided = Split(counts={"prefill": 1, "decode": 0}, policy=SLEEPY, queue=4).cycle(0.0)
    assert of(decided, "decode").desired == 1
    assert of(decided, "prefill").desired == 1


def test_both_sleep_when_neither_had_work_and_neither_while_one_has() -> None:
    split = Split(policy=replace(SLEEPY, scale_down_window_s=10), queue=0, total=5)
    busy = split.cycles(0.0, 50)
    assert {d.desired for d in busy.decisions.values()} == {1}
    assert {d.desired for d in split.cycles(0.0, 40).decisions.values()} == {0}

    split = Split(policy=replace(SLEEPY, scale_down_window_s=10), queue=0, total=5)
    prefill, decode = (split._state(v, 0.0) for v in split.variants)
    memory = Memory()
    for at_s in np.arange(0.0, 200.0, 5.0):
        working = replace(
            decode,
            replicas=tuple(
                replace(r, sample=replace(r.sample, at_s=at_s, running_requests=1.0))
                for r in decode.replicas
                if r.sample is not None
            ),
        )
        rested = replace(
            prefill,
            replicas=tuple(
                replace(r, sample=replace(r.sample, at_s=at_s))
                for r in prefill.replicas
                if r.sample is not None
            ),
        )
        gateway = GatewayState(
            namespace="chat", model_id="llama", at_s=at_s, queued_requests=0, arrivals_total=5
        )
        decided, memory = plan(Snapshot(at_s, (rested, working), (gateway,)), split.policy, memory)
    assert {d.desired for d in decided.decisions.values()} == {1}
    assert "has requests" in said(decided, "prefill", "sleep_to_zero")


def test_no_role_sleeps_where_a_minimum_keeps_the_other() -> None:
    keeps = a_role("prefill", minimum=1)
    split = Split(variants=(keeps, DECODE), policy=SLEEPY, queue=0, total=5)
    decided = split.cycles(0.0, 300)
    assert {d.desired for d in decided.decisions.values()} == {1}
    assert "min_replicas keeps 1 of role prefill, useless alone" in said(decided, "decode")


def test_a_role_does_not_wake_where_its_partner_gets_no_place() -> None:
    split = Split(
        counts={"prefill": 0, "decode": 0},
        policy=SLEEPY,
        queue=4,
        inventory=Inventory(accelerators={"A100": 1}),
    )
    decided = split.cycle(0.0)
    assert {d.desired for d in decided.decisions.values()} == {0}
    assert "gets a place, so none comes" in " ".join(
        said(decided, name, "pair_roles") for name in ("prefill", "decode")
    )


@pytest.mark.parametrize(
    ("role", "words"),
    [
        ("prefill", "has no variant of role decode beside its role prefill (llm-d.ai/role)"),
        ("decode", "has no variant of role prefill beside its role decode (llm-d.ai/role)"),
    ],
)
def test_a_role_without_its_partner_is_named(role: Role, words: str) -> None:
    decided = Split(variants=(a_role(role),)).cycle(1.0)
    assert f"chat/llama {words}" in said(decided, role, "pair_roles")


# --- what a prefilling replica learns ------------------------------------------------------------


def seen(rate: float, prompt: float, *, replicas: int = 4, seconds: float = 900) -> list[list]:  # type: ignore[type-arg]
    """Return each replica's pages, where prompts go to whoever has the fewest tokens to compute."""
    generator = np.random.default_rng(3)
    hardware = files.hardware("llama3-8b/h100/tp1")
    fleet = [Replica(hardware) for _ in range(replicas)]
    owed = [0] * replicas
    arrived = np.cumsum(generator.exponential(1 / rate, int(rate * seconds)))
    sizes = lengths(prompt, 0.8, 20_000, len(arrived), generator).astype(int)
    pages: list[list[ReplicaSample]] = [[page(one, 0.0)] for one in fleet]
    next_s = CYCLE_S
    for at_s, tokens in zip(arrived, sizes, strict=True):
        while next_s < at_s:
            for one, its in zip(fleet, pages, strict=True):
                one.advance(next_s)
                its.append(page(one, next_s))
            next_s += CYCLE_S
        for i, one in enumerate(fleet):
            owed[i] -= sum(r.prompt_tokens for r in one.advance(float(at_s)).finished)
        chosen = min(range(replicas), key=lambda i: (owed[i], i))
        owed[chosen] += max(1, int(tokens))
        fleet[chosen].submit(Request(max(1, int(tokens)), 1), float(at_s))
    return pages


@pytest.mark.parametrize("off", [0.5, 2.0])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_what_a_prompt_token_takes_is_learned_without_a_gap_between_tokens(
    share: float, off: float
) -> None:
    true_s = 26.8e-6  # of this hardware, as its busy time over its tokens has it
    pages = seen(share * 4 / (true_s * 4096), 4096)
    fit = fresh_fit(Times(0.0117 * off, 27e-6 * off, 0.65e-7 * off, true_s * off))
    for cycle in zip(*(pairwise(its) for its in pages), strict=True):
        fit = learn("prefill", fit, [one for pair in cycle for one in intervals(pair)])
    assert fit.times.d_s == pytest.approx(true_s, rel=0.15)
    assert not fit.contradictory


def test_a_replica_in_which_prompts_always_wait_is_busy_all_of_the_time_and_not_stuck() -> None:
    def at(at_s: float, served: float) -> ReplicaSample:
        tokens = served * PROMPT
        return ReplicaSample(
            replica="r0",
            at_s=at_s,
            queued_requests=4.0,
            running_requests=1.0,
            prompt_tokens_total=tokens,
            computed_prompt_tokens_total=tokens,
            ttft_count=served,
            itl_sum_s=0.0,
            itl_count=0.0,
            # one at a time, as where a prompt fills the step
            prefill_sum_s=served * 0.2,
            output_tokens_sum=served,
            output_tokens_count=served,
        )

    fit = fresh_fit(Times(0.012, 1e-4, 1e-7, 4 * PREFILL_TOKEN_S))
    replica = ReplicaState("r0", Phase.READY, 0.0, 100.0)
    for cycle in range(60):
        before, now = (
            at(1000 + 5.0 * cycle, 25.0 * cycle),
            at(1005 + 5.0 * cycle, 25.0 + 25 * cycle),
        )
        (done,) = intervals([before, now])
        assert unusable(done, replica) is None
        fit = learn("prefill", fit, [done])
    # 25 prompts of 4,000 tokens in 5 s
    assert fit.times.d_s == pytest.approx(PREFILL_TOKEN_S, rel=0.03)


@given(
    slo_s=st.floats(0.05, 30),
    token_s=st.floats(1e-6, 1e-3),
    tokens=st.floats(1, 30_000),
)
def test_prompts_wait_no_longer_than_their_share_of_the_slo(
    slo_s: float, token_s: float, tokens: float
) -> None:
    fit = fresh_fit(Times(0.01, 1e-4, 1e-7, token_s))
    rate = part_rate(
        "prefill", fit, Shape(tokens, 1.0), Slo(slo_s), max_num_seqs=None, kv_cache_tokens=None
    )
    own_s = tokens * token_s
    busy = rate.rate_per_s * own_s
    assert 0.2 - 1e-9 <= busy <= 0.9 + 1e-9
    if busy > 0.2 + 1e-9:
        assert busy / (1 - busy) * own_s <= WAIT_SHARE * (slo_s - own_s) * (1 + 1e-9)


# --- laws ----------------------------------------------------------------------------------------

ROLES: Sequence[Role] = ("prefill", "decode", "both")


@settings(max_examples=500, deadline=None)
@given(
    roles=st.lists(st.sampled_from(ROLES), min_size=1, max_size=4),
    data=st.data(),
    decides=st.sampled_from(
        [
            ("demand", "online"),
            ("demand", "offline"),
            ("tokens", "online"),
            ("saturation", "online"),
        ]
    ),
    to_zero=st.booleans(),
)
def test_no_mixture_of_roles_and_counts_makes_the_plan_fail_or_leave_bounds(
    roles: list[Role],
    data: st.DataObject,
    decides: tuple[Analysis, RequestClass],
    to_zero: bool,
) -> None:
    analysis, request_class = decides
    variants = tuple(
        replace(a_variant(f"v{i}", minimum=data.draw(st.integers(0, 2)), maximum=6), role=role)
        for i, role in enumerate(roles)
    )
    split = Split(
        variants=variants,
        counts={v.key.name: data.draw(st.integers(0, 4)) for v in variants},
        policy=Policy(analysis=analysis, scale_to_zero=to_zero, request_class=request_class),
        queue=data.draw(st.none() | st.floats(0, 100)),
    )
    for _ in range(3):
        decided = split.cycle(data.draw(st.floats(0, 50)))
        for variant in variants:
            count = of(decided, variant.key.name).desired
            assert count == variant.clamp(count)


@cache
def _warm() -> Split:
    split = Split()
    split.cycles(1.0, 120)
    return split


@settings(max_examples=500, deadline=None)
@given(low=st.floats(0.1, 20), more=st.floats(1.0, 4.0))
def test_more_requests_never_want_fewer_replicas_of_either_role(low: float, more: float) -> None:
    first, second = deepcopy(_warm()), deepcopy(_warm())
    one, other = first.cycle(low), second.cycle(low * more)
    for name in ("prefill", "decode"):
        assert of(one, name).desired <= of(other, name).desired


def test_one_that_serves_stays_until_the_one_of_another_variant_does_and_the_trail_says_so() -> (
    None
):
    old, new = a_role("both", cost=2.0), replace(a_variant("new", cost=0.5), role="both")
    split = Split(variants=(old, new), counts={"both": 2, "new": 0})
    rate = 1.2 * the_load(split.cycles(1.0, 60), "both")[1]
    split.cycles(rate, 900)
    split.starting = frozenset({"new"})
    decided = split.cycle(rate)
    assert of(decided, "both").desired == 2
    assert "1 more stay until those on their way serve, without which others would carry" in said(
        decided, "both", "settle_down"
    )
    split.starting, split.counts = frozenset(), {"both": 2, "new": 1}
    assert of(split.cycles(rate, 600), "both").desired == 1


def test_each_role_remembers_its_own_past() -> None:
    split = Split()
    split.cycles(1.0, 60)
    assert set(split.memory.models) == {
        LoadKey("chat", "llama", "prefill"),
        LoadKey("chat", "llama", "decode"),
    }
