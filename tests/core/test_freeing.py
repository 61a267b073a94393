"""Which of equal removals is chosen: the one that frees a node, or a block that somebody needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders import a_key, a_replica, a_variant
from wva_adapter.core.decision import Decision
from wva_adapter.core.fleet import NodeState, Taint, Toleration, VariantKey
from wva_adapter.core.freeing import Ground, Removal, Tenant, exchange
from wva_adapter.core.guards import Freeze, Guard, Scope
from wva_adapter.core.memory import Memory
from wva_adapter.core.planner import plan
from wva_adapter.core.policy import Policy
from wva_adapter.core.removal import removal_order
from wva_adapter.core.snapshot import Phase, ReplicaState, Snapshot, VariantState

DAY_S = 86_400.0
POLICY = Policy(analysis="saturation", scale_down_window_s=0, peak_window_s=0, max_down_share=1)


def a_pod(name: str, node: str | None, *, age_s: float = DAY_S, usage: float = 0.1) -> ReplicaState:
    """A replica that has been ready for so long at second 0."""
    return replace(a_replica(name, usage=usage), node=node, ready_at_s=-age_s, uid=name)


def a_model(
    name: str,
    *pods: ReplicaState,
    model: str = "llama",
    cost: float = 1.2,
    devices: int = 1,
    spec: int | None = None,
    minimum: int = 0,
) -> VariantState:
    variant = replace(
        a_variant(name, model_id=model, cost=cost, minimum=minimum),
        accelerator="H100",
        accelerators_per_replica=devices,
    )
    return VariantState(variant, len(pods) if spec is None else spec, replicas=pods)


def a_node(name: str, requested: int, *, size: int = 8) -> NodeState:
    return NodeState(name, "H100", size, requested)


def decided(
    *states: VariantState,
    nodes: Sequence[NodeState] | None,
    guards: Sequence[Guard] = (),
    policy: Policy = POLICY,
) -> dict[str, Decision]:
    """Decide twice on the same, so that nothing of before the first time is waited for."""
    memory = Memory()
    for at_s in (0.0, 20.0):
        fresh = tuple(
            replace(
                state,
                replicas=tuple(
                    replace(r, sample=r.sample and replace(r.sample, at_s=at_s))
                    for r in state.replicas
                ),
            )
            for state in states
        )
        known = None if nodes is None else tuple(nodes)
        made, memory = plan(
            Snapshot(at_s, fresh, nodes=known, guards=tuple(guards)), policy, memory
        )
    return {key.name: decision for key, decision in made.decisions.items()}


def counts(decisions: dict[str, Decision]) -> dict[str, int]:
    return {name: decision.desired for name, decision in decisions.items()}


def said(decision: Decision) -> str:
    return "; ".join(step.why for step in decision.trail if step.rule == "free_nodes")


# --- stories ------------------------------------------------------------------------------------

ON_SHARED = a_model("z", a_pod("z0", "n1"), a_pod("z1", "n1"))
ALONE = a_model("a", a_pod("a0", "n1"), a_pod("a1", "n3", age_s=60))


def test_of_equal_removals_the_one_that_frees_a_node_is_chosen_before_the_name_decides() -> None:
    nodes = (a_node("n1", 8), a_node("n3", 1))
    assert counts(decided(ON_SHARED, ALONE, nodes=None)) == {"a": 2, "z": 1}

    freed = decided(ON_SHARED, ALONE, nodes=nodes)

    assert counts(freed) == {"a": 1, "z": 2}
    words = "removing 1 of a frees node n3 whole (8 H100), and saves as much as 1 of z"
    assert said(freed["a"]) == said(freed["z"]) == words


def test_a_node_that_other_pods_use_too_is_not_freed() -> None:
    # Two devices are requested on n3, and one of them is not a1's.
    assert counts(decided(ON_SHARED, ALONE, nodes=(a_node("n1", 8), a_node("n3", 2)))) == {
        "a": 2,
        "z": 1,
    }


def test_a_block_that_a_replica_waits_for_comes_before_a_whole_node() -> None:
    # z1 would free n3, which is too small for the four of b; a1 completes four on n1.
    waiting = a_model("b", spec=1, model="large", devices=4, cost=9.0)
    large = a_model("a", a_pod("a0", "n2"), a_pod("a1", "n1", age_s=60))
    small = a_model("z", a_pod("z0", "n2"), a_pod("z1", "n3", age_s=60))
    nodes = (a_node("n1", 5), a_node("n2", 8), a_node("n3", 1, size=2))

    assert counts(decided(large, small, nodes=nodes)) == {"a": 2, "z": 1}
    assert counts(decided(large, small, waiting, nodes=nodes)) == {"a": 1, "b": 1, "z": 2}


def test_it_says_who_waits_for_what_is_freed() -> None:
    waiting = a_model("b", spec=1, model="large", devices=8, cost=9.0)

    freed = decided(ON_SHARED, ALONE, waiting, nodes=(a_node("n1", 8), a_node("n3", 1)))

    assert counts(freed) == {"a": 1, "b": 1, "z": 2}
    assert said(freed["a"]) == (
        "removing 1 of a frees node n3 whole (8 H100), for b, which waits for a block of 8, "
        "and saves as much as 1 of z"
    )


def test_a_block_on_a_node_that_stays_in_use_is_told_as_room() -> None:
    waiting = a_model("b", spec=1, model="large", devices=4, cost=9.0)
    one = a_model("a", a_pod("a0", "n1"), a_pod("a1", "n3", age_s=60))
    other = a_model("z", a_pod("z0", "n1"), a_pod("z1", "n1"))

    freed = decided(one, other, waiting, nodes=(a_node("n1", 8), a_node("n3", 5)))

    assert counts(freed) == {"a": 1, "b": 1, "z": 2}
    assert said(freed["a"]) == (
        "removing 1 of a frees room on node n3, for b, which waits for a block of 4 H100, "
        "and saves as much as 1 of z"
    )


def test_a_cheaper_removal_stays_cheaper_whatever_the_dearer_one_frees() -> None:
    dear = a_model("dear", a_pod("d0", "n1"), a_pod("d1", "n1"), cost=3.0)
    freed = decided(dear, ALONE, nodes=(a_node("n1", 8), a_node("n3", 1)))
    assert counts(freed) == {"a": 2, "dear": 1}
    assert said(freed["a"]) == ""


def test_the_pod_that_its_controller_takes_first_is_the_one_that_counts() -> None:
    nodes = (a_node("n1", 8), a_node("n3", 1))
    older = a_model("a", a_pod("a0", "n1", age_s=60), a_pod("a1", "n3"))
    assert counts(decided(ON_SHARED, older, nodes=nodes)) == {"a": 2, "z": 1}

    marked = replace(older.replicas[1], deletion_cost=-5)
    told = replace(older, replicas=(older.replicas[0], marked))
    assert counts(decided(ON_SHARED, told, nodes=nodes)) == {"a": 1, "z": 2}


def test_what_its_minimum_or_an_unseen_replica_holds_is_not_exchanged() -> None:
    nodes = (a_node("n1", 8), a_node("n3", 1))
    at_least = a_model("a", *ALONE.replicas, minimum=2)
    assert counts(decided(ON_SHARED, at_least, nodes=nodes)) == {"a": 2, "z": 1}

    lost = replace(ALONE.replicas[0], problem="timed out after 2 s")
    unseen = replace(ALONE, replicas=(lost, ALONE.replicas[1]))
    assert counts(decided(ON_SHARED, unseen, nodes=nodes))["a"] == 2


def test_where_a_guard_objects_the_trail_says_what_would_have_been_freed() -> None:
    frozen = Freeze(name="sale", scope=Scope(variant="a"), from_s=0.0, until_s=100.0)
    nodes = (a_node("n1", 8), a_node("n3", 1))

    held = decided(ON_SHARED, ALONE, nodes=nodes, guards=[frozen])

    assert counts(held) == {"a": 2, "z": 1}
    assert said(held["a"]) == (
        "removing 1 of a would free node n3 whole (8 H100), not 1 of z: "
        "guard sale: frozen at 2 for 80 s more"
    )


def test_a_replica_of_many_devices_goes_for_as_much_as_many_small_ones() -> None:
    # Two of 0.6 $/h save what one of 1.2 does; together they are all that n3 has.
    ground = Ground(
        (a_node("n1", 8), a_node("n3", 2)),
        (
            Tenant(a_key("large"), "H100", 2, order=("n1", "n1")),
            Tenant(a_key("small"), "H100", 1, order=("n3", "n3", "n1")),
        ),
        before := {a_key("large"): 1, a_key("small"): 3},
    )
    removals = (Removal(a_key("large"), 1.2, 0, 2), Removal(a_key("small"), 0.6, 0, 3))
    after = exchange(removals, before, ground, lambda _: True)
    assert after == {a_key("large"): 2, a_key("small"): 1}


def test_what_terminates_already_is_gone_from_its_node() -> None:
    ending = Tenant(a_key("other"), "H100", 4, ending=("n3",))
    going = Tenant(a_key("a"), "H100", 1, order=("n3", "n1"))
    settled = {a_key("other"): 0, a_key("a"): 2}
    ground = Ground((a_node("n1", 8), a_node("n3", 5)), (ending, going), settled)
    assert ground.freed({a_key("a"): 1}).whole == {"n3": 8}
    assert ground.freed({a_key("a"): 2}).whole == {}


@pytest.mark.parametrize(
    "node",
    [
        NodeState("n3", "H100", 8, 1, ready=False),
        NodeState("n3", "H100", 8, 1, cordoned=True),
        NodeState("n3", "H100", None, 1),
        NodeState("n3", "H100", 8, None),
    ],
)
def test_a_node_of_no_use_is_no_gain(node: NodeState) -> None:
    assert counts(decided(ON_SHARED, ALONE, nodes=(a_node("n1", 8), node))) == {"a": 2, "z": 1}


def test_a_block_is_one_that_the_waiting_replica_may_have() -> None:
    tainted = NodeState("n3", "H100", 8, 1, taints=(Taint("team", "search"),))
    waiting = Tenant(a_key("b"), "H100", 8)
    going = Tenant(a_key("a"), "H100", 1, order=("n3",))
    free = {a_key("a"): 0, a_key("b"): 1}

    def placed(node: NodeState, tenant: Tenant) -> int:
        return len(Ground((node,), (tenant, going), free).freed(free).placed)

    assert placed(tainted, waiting) == 0
    assert placed(tainted, replace(waiting, tolerations=(Toleration("team", "search"),))) == 1
    assert placed(a_node("n3", 1), waiting) == 1
    assert placed(a_node("n3", 1), replace(waiting, accelerator="A100")) == 0
    assert placed(a_node("n3", 1), replace(waiting, order=(None,), gated=1)) == 0


# --- which pod goes -----------------------------------------------------------------------------


def order(*pods: ReplicaState) -> list[str]:
    first = removal_order(a_model("a", *pods), 0.0)
    assert removal_order(a_model("a", *reversed(pods)), 0.0) == first
    return [pod.name for pod in first]


def test_pods_without_a_node_go_first_then_the_unready_then_the_newest() -> None:
    waiting = ReplicaState("waiting", Phase.STARTING)
    starting = ReplicaState("starting", Phase.STARTING, node="n9")
    ending = ReplicaState("ending", Phase.TERMINATING, node="n9")
    old, new = a_pod("old", "n1"), a_pod("new", "n2", age_s=60)
    assert order(old, new, ending, starting, waiting) == ["waiting", "starting", "new", "old"]


def test_of_pods_ready_for_about_as_long_the_smaller_uid_goes_first() -> None:
    # 2 ** 39 ns are 550 s: 600 s and 1000 s lie in one doubling, 2000 s does not.
    pods = a_pod("c", "n1", age_s=600), a_pod("b", "n2", age_s=1000), a_pod("a", "n3", age_s=2000)
    assert order(*pods) == ["b", "c", "a"]


def test_two_on_one_node_are_parted_before_one_that_is_alone() -> None:
    assert order(a_pod("p0", "n1"), a_pod("p1", "n1"), a_pod("new", "n2", age_s=60))[-1] == "new"


def test_the_lower_deletion_cost_goes_first_and_a_stateful_set_takes_its_highest_ordinal() -> None:
    cheap, dear = replace(a_pod("cheap", "n1"), deletion_cost=-1), a_pod("dear", "n2", age_s=60)
    assert order(cheap, dear) == ["cheap", "dear"]
    first = replace(a_pod("s-9", "n1", age_s=60), ordinal=9)
    second = replace(a_pod("s-10", "n2"), ordinal=10)
    assert order(first, second) == ["s-10", "s-9"]


# --- laws ---------------------------------------------------------------------------------------

NAMES = ("n0", "n1", "n2", "n3")


@st.composite
def fleets(draw: st.DrawFn) -> tuple[tuple[VariantState, ...], tuple[NodeState, ...]]:
    states = []
    used = dict.fromkeys(NAMES, 0)
    for place in range(draw(st.integers(1, 5))):
        name, devices = f"v{place}", draw(st.sampled_from((1, 1, 2, 4)))
        pods = []
        for number in range(draw(st.integers(0, 4))):
            node = draw(st.sampled_from((None, *NAMES)))
            pod = a_pod(f"{name}-{number}", node, age_s=draw(st.sampled_from((60.0, DAY_S))))
            if node is None:
                pod = replace(pod, phase=Phase.STARTING, sample=None, ready_at_s=None)
            else:
                used[node] += devices
            pods.append(pod)
        states.append(
            a_model(
                name,
                *pods,
                model=draw(st.sampled_from(("llama", "qwen"))),
                cost=draw(st.sampled_from((1.0, 1.0, 2.0))),
                devices=devices,
                spec=len(pods) + draw(st.integers(0, 1)),
                minimum=draw(st.integers(0, 1)),
            )
        )
    nodes = [a_node(n, used[n] + draw(st.sampled_from((0, 0, 1))), size=8) for n in NAMES]
    return tuple(states), tuple(nodes)


def costs(decisions: dict[str, Decision]) -> dict[str, float]:
    found: dict[str, float] = {}
    for decision in decisions.values():
        paid = decision.cost_per_h * decision.desired
        found[decision.model_id] = found.get(decision.model_id, 0.0) + paid
    return found


@settings(max_examples=500, deadline=None)
@given(fleets(), st.randoms(use_true_random=False))
def test_nodes_change_no_cost_and_no_number_and_order_changes_nothing(
    fleet: tuple[tuple[VariantState, ...], tuple[NodeState, ...]], chance: object
) -> None:
    states, nodes = fleet
    blind = decided(*states, nodes=None)
    assert not any(said(decision) for decision in blind.values())
    assert counts(decided(*states, nodes=())) == counts(blind)

    freed = decided(*states, nodes=nodes)

    assert costs(freed) == pytest.approx(costs(blind))
    for name, decision in freed.items():
        # No exchange asks for more than there is.
        assert decision.desired <= max(decision.current, blind[name].desired)
        assert (decision.desired == blind[name].desired) or said(decision)
    shuffled, mixed = list(states), list(nodes)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    chance.shuffle(mixed)  # type: ignore[attr-defined]
    assert decided(*shuffled, nodes=mixed) == freed


@st.composite
def exchanges(draw: st.DrawFn) -> tuple[list[Removal], dict[VariantKey, int], Ground]:
    tenants, removals, before = [], [], {}
    for place in range(draw(st.integers(2, 4))):
        key, devices = a_key(f"v{place}"), draw(st.sampled_from((1, 2, 4)))
        nodes = draw(st.lists(st.sampled_from(NAMES), max_size=4))
        tenants.append(Tenant(key, "H100", devices, order=tuple(nodes)))
        before[key] = draw(st.integers(0, len(nodes)))
        lowest = draw(st.integers(0, before[key]))
        price = draw(st.sampled_from((0.0, 1.0, 2.0, 3.0)))
        removals.append(Removal(key, price, lowest, len(nodes)))
    large = a_key("large")
    tenants.append(Tenant(large, "H100", 8))
    before[large] = draw(st.integers(0, 2))
    used = {
        name: sum(t.devices * t.order.count(name) for t in tenants) + draw(st.integers(0, 1))
        for name in NAMES
    }
    nodes_of = [a_node(name, used[name], size=max(8, used[name])) for name in NAMES]
    ground = Ground(nodes_of, tenants, before)
    del before[large]
    return removals, before, ground


@settings(max_examples=500, deadline=None)
@given(exchanges())
def test_an_exchange_costs_the_same_frees_no_less_and_keeps_its_bounds(
    case: tuple[list[Removal], dict[VariantKey, int], Ground],
) -> None:
    removals, before, ground = case
    after = exchange(removals, before, ground, lambda _: True)
    assert sum(r.price * after[r.key] for r in removals) == pytest.approx(
        sum(r.price * before[r.key] for r in removals)
    )
    assert ground.freed(after).worth >= ground.freed(before).worth
    assert all(min(r.lowest, before[r.key]) <= after[r.key] <= r.highest for r in removals)
    assert after == before or ground.freed(after).worth > ground.freed(before).worth
    assert exchange(list(reversed(removals)), before, ground, lambda _: True) == after
    assert exchange(removals, before, ground, lambda _: False) == before
