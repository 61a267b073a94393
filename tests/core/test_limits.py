"""What a plan grants where accelerators, quotas or nodes are scarce."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders import a_key, a_state, a_variant
from wva_adapter.core.decision import Plan
from wva_adapter.core.fleet import NodeState, Variant, VariantKey
from wva_adapter.core.inventory import Inventory, NamespaceQuota, ResourceQuota
from wva_adapter.core.memory import Memory
from wva_adapter.core.planner import plan, scarce
from wva_adapter.core.policies import Override, Policies
from wva_adapter.core.policy import Policy
from wva_adapter.core.proposal import propose
from wva_adapter.core.sharing import value
from wva_adapter.core.snapshot import GatewayState, Snapshot, VariantState

SATURATION = Policy(analysis="saturation")
GPU = "nvidia.com/gpu"
FULL = 0.95
"""A replica so full that its model asks for one more."""


def a_model(
    name: str,
    *,
    usage: float = FULL,
    ready: int = 1,
    accelerator: str = "A100",
    devices: int = 1,
    cost: float = 1.2,
    model: str = "",
    namespace: str = "chat",
    maximum: int | None = 10,
    resource: str | None = GPU,
) -> VariantState:
    described = a_variant(
        name, namespace=namespace, model_id=model or name, cost=cost, maximum=maximum
    )
    described = replace(
        described,
        accelerator=accelerator,
        accelerators_per_replica=devices,
        resource=resource,
    )
    return a_state(described, usage=usage, ready=ready)


def decided(
    *states: VariantState,
    inventory: Inventory,
    policy: Policy | Policies = SATURATION,
    nodes: tuple[NodeState, ...] | None = None,
    proposal: Mapping[VariantKey, int] | None = None,
    quotas: tuple[ResourceQuota, ...] | None = None,
) -> Plan:
    snapshot = Snapshot(
        0.0, states, nodes=nodes, inventory=inventory, proposal=proposal, quotas=quotas
    )
    return plan(snapshot, policy, Memory())[0]


def counts(made: Plan) -> dict[str, int]:
    return {key.name: decision.desired for key, decision in made.decisions.items()}


def said(made: Plan, name: str, namespace: str = "chat") -> str:
    trail = made.decisions[a_key(name, namespace)].trail
    return "; ".join(step.why for step in trail if step.rule == "limit_accelerators")


def test_the_last_device_goes_to_the_model_of_the_higher_priority() -> None:
    first, second = a_model("chat-a"), a_model("chat-b")
    policies = Policies(
        SATURATION, (Override(source="it", changes={"priority": 1}, model_id="chat-b"),)
    )
    made = decided(first, second, inventory=Inventory({"A100": 3}), policy=policies)
    assert counts(made) == {"chat-a": 1, "chat-b": 2}
    words = "2 wanted, 1 granted: A100 limited to 3 devices, 3 in use, 1 needed"
    assert said(made, "chat-a") == words
    assert made.decisions[a_key("chat-a")].limited == words
    assert said(made, "chat-b") == ""


def test_of_equal_priority_the_worst_served_is_first() -> None:
    # One more is a third of what chat-a wants, and half of what chat-b wants.
    made = decided(
        a_model("chat-a", ready=2), a_model("chat-b", ready=1), inventory=Inventory({"A100": 4})
    )
    assert counts(made) == {"chat-a": 2, "chat-b": 2}


def test_what_runs_is_never_bounded() -> None:
    made = decided(a_model("chat-a", ready=4), inventory=Inventory({"A100": 2}))
    assert counts(made) == {"chat-a": 4}
    assert "A100 limited to 2 devices, 4 in use" in said(made, "chat-a")


def test_without_limits_nothing_is_said_of_them() -> None:
    made = decided(a_model("chat-a"), inventory=Inventory())
    assert counts(made) == {"chat-a": 2}
    assert said(made, "chat-a") == ""


def test_what_one_variant_cannot_get_its_dearer_sibling_gets() -> None:
    made = decided(
        a_model("cheap", model="llama", cost=1.2),
        a_model("dear", model="llama", cost=3.9, accelerator="H100"),
        inventory=Inventory({"A100": 1}),
    )
    assert counts(made) == {"cheap": 1, "dear": 2}
    assert said(made, "cheap").endswith("1 in use, 1 needed; dear gets 1 more")
    assert said(made, "dear") == "1 more in place of cheap"


def test_a_variant_that_gets_no_place_is_no_substitute() -> None:
    full = a_model("dear", model="llama", cost=3.9, accelerator="H100", maximum=1)
    made = decided(a_model("cheap", model="llama"), full, inventory=Inventory({"A100": 1}))
    assert counts(made) == {"cheap": 1, "dear": 1}


def test_a_quota_bounds_its_namespace_alone() -> None:
    made = decided(
        a_model("chat-a"),
        a_model("code-a", namespace="code"),
        inventory=Inventory(quotas=(NamespaceQuota("chat", 1),)),
    )
    assert counts(made) == {"chat-a": 1, "code-a": 2}
    assert said(made, "chat-a") == (
        "2 wanted, 1 granted: quota of 1 devices of namespace chat has 0 devices left, 1 needed"
    )


def a_quota(
    hard: int,
    used: int,
    key: str = f"requests.{GPU}",
    *,
    name: str = "gpus",
    namespace: str = "chat",
) -> ResourceQuota:
    return ResourceQuota(namespace, name, key, hard, used)


def test_a_resource_quota_bounds_what_is_added_and_the_next_variant_gets_the_need() -> None:
    cheap = a_model("cheap", model="llama")
    dear = a_model("dear", model="llama", cost=3.9, accelerator="MI300X", resource="amd.com/gpu")

    made = decided(cheap, dear, inventory=Inventory(), quotas=(a_quota(8, 8),))

    assert counts(made) == {"cheap": 1, "dear": 2}
    words = (
        "2 wanted, 1 granted: ResourceQuota gpus (8 of 8 requests.nvidia.com/gpu used) of "
        "namespace chat has 0 nvidia.com/gpu left, 1 needed; dear gets 1 more"
    )
    assert said(made, "cheap") == words
    assert made.decisions[a_key("cheap")].limited == words
    assert counts(decided(cheap, dear, inventory=Inventory(), quotas=None)) == {
        "cheap": 2,
        "dear": 1,
    }


@pytest.mark.parametrize(
    ("quotas", "granted"),
    [
        ((a_quota(8, 6),), 2),
        ((a_quota(8, 7),), 1),  # a replica needs two
        ((a_quota(8, 8, "requests.amd.com/gpu"),), 2),
        ((a_quota(8, 8, namespace="code"),), 2),
        ((a_quota(5, 5, "pods", name="few"),), 1),
        ((a_quota(5, 5, "count/pods", name="few"),), 1),
        ((a_quota(6, 5, "pods", name="few"),), 2),
        ((a_quota(8, 6), a_quota(5, 5, "pods", name="few")), 1),
        ((), 2),
    ],
)
def test_a_resource_quota_counts_devices_by_their_name_or_pods(
    quotas: tuple[ResourceQuota, ...], granted: int
) -> None:
    made = decided(a_model("chat-a", devices=2), inventory=Inventory(), quotas=quotas)
    assert counts(made) == {"chat-a": granted}


def test_of_the_configured_quota_and_the_objects_the_smaller_wins_and_is_named() -> None:
    # The settings leave one device, the object none; and the other way round.
    made = decided(
        a_model("chat-a"),
        inventory=Inventory(quotas=(NamespaceQuota("chat", 2),)),
        quotas=(a_quota(8, 8),),
    )
    assert counts(made) == {"chat-a": 1}
    assert "ResourceQuota gpus" in said(made, "chat-a")

    made = decided(
        a_model("chat-a"),
        inventory=Inventory(quotas=(NamespaceQuota("chat", 1),)),
        quotas=(a_quota(8, 7),),
    )
    assert counts(made) == {"chat-a": 1}
    assert "quota of 1 devices of namespace chat" in said(made, "chat-a")

    made = decided(
        a_model("chat-a", devices=4),
        inventory=Inventory(),
        quotas=(a_quota(8, 6, name="a"), a_quota(8, 8, name="b")),
    )
    assert "ResourceQuota b" in said(made, "chat-a")


def test_what_was_asked_for_and_is_not_there_has_its_part_of_a_resource_quota() -> None:
    on_its_way = replace(a_model("chat-b", usage=0.3, ready=2), spec_replicas=3)
    one_left = (a_quota(8, 7),)
    assert counts(decided(a_model("chat-a"), on_its_way, inventory=Inventory(), quotas=one_left))[
        "chat-a"
    ] == (1)
    there = replace(on_its_way, spec_replicas=2)
    assert counts(decided(a_model("chat-a"), there, inventory=Inventory(), quotas=one_left))[
        "chat-a"
    ] == (2)


def test_what_runs_stays_however_small_a_resource_quota_became() -> None:
    made = decided(a_model("chat-a", ready=4), inventory=Inventory(), quotas=(a_quota(2, 4),))
    assert counts(made) == {"chat-a": 4}


def test_a_variant_whose_count_is_unknown_holds_what_its_pods_hold() -> None:
    unread = replace(a_model("chat-b", ready=2), spec_replicas=None)
    made = decided(a_model("chat-a"), unread, inventory=Inventory({"A100": 3}))
    assert counts(made) == {"chat-a": 1}


EIGHT_NODES = tuple(NodeState(f"n{i}", "A100", 8, 7) for i in range(8))


def test_nodes_bound_only_where_no_more_of_them_come() -> None:
    large = a_model("chat-a", devices=8)
    made = decided(large, inventory=Inventory(), nodes=EIGHT_NODES)
    assert counts(made) == {"chat-a": 2}
    made = decided(large, inventory=Inventory(fixed_nodes=True), nodes=EIGHT_NODES)
    assert counts(made) == {"chat-a": 1}
    assert "8 A100 free, but no node has 8 together" in said(made, "chat-a")


def test_nodes_that_could_not_be_read_bound_nothing() -> None:
    made = decided(a_model("chat-a"), inventory=Inventory(fixed_nodes=True), nodes=None)
    assert counts(made) == {"chat-a": 2}


def test_who_wakes_gets_the_place_that_there_is() -> None:
    asleep = [
        a_state(
            replace(
                a_variant(name, cost=cost, minimum=0),
                accelerator=accelerator,
            ),
            ready=0,
        )
        for name, cost, accelerator in (("cheap", 1.2, "A100"), ("dear", 3.9, "H100"))
    ]
    waiting = GatewayState(namespace="chat", model_id="llama", at_s=0.0, queued_requests=3.0)
    snapshot = Snapshot(0.0, tuple(asleep), gateways=(waiting,), inventory=Inventory({"A100": 0}))
    made, _ = plan(snapshot, SATURATION, Memory())
    assert counts(made) == {"cheap": 0, "dear": 1}


# One model can use either type, the other one only the cheap one; by turns the first takes it.
CHOICE = (
    a_model("a-cheap", model="a", cost=1.0),
    a_model("a-dear", model="a", cost=1.5, accelerator="H100"),
    a_model("b-cheap", model="b", cost=1.0),
)
ONE_LEFT = Inventory({"A100": 3, "H100": 9})


def test_a_better_proposal_is_adopted_and_said() -> None:
    by_turns = decided(*CHOICE, inventory=ONE_LEFT)
    problem = scarce(by_turns)
    assert problem is not None
    found = propose(problem.requests, problem.supply, change_penalty=problem.change_penalty)
    adopted = decided(*CHOICE, inventory=ONE_LEFT, proposal=found)

    def worth(made: Plan) -> float:
        known = {key: decision.desired for key, decision in made.decisions.items()}
        return value(problem.requests, known, change_penalty=problem.change_penalty).objective

    assert worth(adopted) <= worth(by_turns)
    assert counts(adopted) == {"a-cheap": 1, "a-dear": 2, "b-cheap": 2}


def test_a_proposal_of_other_variants_or_a_worse_one_is_not() -> None:
    by_turns = counts(decided(*CHOICE, inventory=ONE_LEFT))
    for bad in ({a_key("gone"): 3}, {state.variant.key: 1 for state in CHOICE}):
        assert counts(decided(*CHOICE, inventory=ONE_LEFT, proposal=bad)) == by_turns


def test_nothing_is_solved_where_nothing_is_scarce() -> None:
    assert scarce(decided(*CHOICE, inventory=Inventory({"A100": 9, "H100": 9}))) is None
    assert scarce(decided(*CHOICE, inventory=Inventory())) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Inventory({"A100": -1}), "limit on A100: -1 devices, want at least 0"),
        (
            lambda: ResourceQuota("chat", "gpus", "pods", 1, -1),
            "ResourceQuota chat/gpus: used -1 of pods, want at least 0",
        ),
        (lambda: NamespaceQuota("chat", -1), "quota of chat: -1 devices, want at least 0"),
    ],
)
def test_negative_devices_are_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


TYPES = ("A100", "H100")


@st.composite
def fleets(draw: st.DrawFn, sizes: tuple[int, ...] = (1, 2, 8)) -> tuple[VariantState, ...]:
    states = []
    for model in range(draw(st.integers(1, 4))):
        for place in range(draw(st.integers(1, 2))):
            states.append(
                a_model(
                    f"m{model}-{place}",
                    model=f"m{model}",
                    namespace=draw(st.sampled_from(("chat", "code"))),
                    usage=draw(st.sampled_from((0.1, 0.5, FULL))),
                    ready=draw(st.integers(0, 3)),
                    accelerator=draw(st.sampled_from(TYPES)),
                    devices=draw(st.sampled_from(sizes)),
                    cost=draw(st.sampled_from((1.0, 2.0, 4.0))),
                )
            )
    return tuple(states)


INVENTORIES = st.builds(
    Inventory,
    st.dictionaries(st.sampled_from(TYPES), st.integers(0, 20)),
    st.lists(
        st.builds(
            NamespaceQuota,
            st.sampled_from(("chat", "code")),
            st.integers(0, 12),
            st.sampled_from((None, *TYPES)),
        ),
        max_size=2,
    ).map(tuple),
)


QUOTAS = st.lists(
    st.builds(
        a_quota,
        st.integers(0, 12),
        st.integers(0, 12),
        st.sampled_from((f"requests.{GPU}", "pods")),
        name=st.sampled_from(("q", "r")),
        namespace=st.sampled_from(("chat", "code")),
    ),
    max_size=3,
).map(tuple)


@settings(max_examples=500, deadline=None)
@given(fleets(), QUOTAS)
def test_what_is_added_keeps_within_resource_quotas_and_what_runs_stays(
    states: tuple[VariantState, ...], quotas: tuple[ResourceQuota, ...]
) -> None:
    free = decided(*states, inventory=Inventory())
    made = decided(*states, inventory=Inventory(), quotas=quotas)
    variants = {state.variant.key: state.variant for state in states}
    added = {
        key: max(0, decision.desired - decision.current)
        for key, decision in made.decisions.items()
        # Least counts are an operator's word over the limits, and no part of this law.
        if decision.trail[-1].rule != "stay_in_bounds"
    }
    for quota in quotas:
        took = sum(quota.uses(variants[key]) * count for key, count in added.items())
        assert took <= quota.left
    for key, decision in made.decisions.items():
        assert decision.desired >= min(decision.current, free.decisions[key].desired)


def held(variants: dict[VariantKey, Variant], by: Mapping[VariantKey, int], kind: str) -> int:
    return sum(
        variants[key].accelerators_per_replica * count
        for key, count in by.items()
        if variants[key].accelerator == kind
    )


@settings(max_examples=500, deadline=None)
@given(fleets(), INVENTORIES)
def test_what_is_added_keeps_within_the_limits_and_what_runs_stays(
    states: tuple[VariantState, ...], inventory: Inventory
) -> None:
    free = decided(*states, inventory=Inventory())
    made = decided(*states, inventory=inventory)
    variants = {state.variant.key: state.variant for state in states}
    before = {key: decision.current for key, decision in made.decisions.items()}
    # Least counts are an operator's word over the limits, and no part of this law.
    after = {
        key: decision.desired
        for key, decision in made.decisions.items()
        if decision.trail[-1].rule != "stay_in_bounds"
    }
    for kind, devices in inventory.accelerators.items():
        added = {key: max(0, after[key] - before[key]) for key in after}
        room = max(0, devices - held(variants, before, kind))
        assert held(variants, added, kind) <= room
    for key, count in after.items():
        assert count >= min(before[key], free.decisions[key].desired)


@settings(max_examples=500, deadline=None)
@given(fleets(sizes=(1,)), st.sampled_from(TYPES), st.integers(0, 12), st.integers(1, 8))
def test_more_accelerators_never_lower_the_demand_that_is_served(
    states: tuple[VariantState, ...], kind: str, devices: int, more: int
) -> None:
    """Served: of what all models want, the sum that they get, where every replica has one device.

    With replicas of several sizes the law holds of the best plan (``test_proposal``), and of a
    fleet that runs (``test_sharing``): one model more can have a place that two others shared.
    """
    states = tuple(s for s in states if s.variant.accelerator == kind)

    def served(limit: int) -> dict[str, int]:
        made = decided(*states, inventory=Inventory({kind: limit}))
        found: dict[str, int] = {}
        for decision in made.decisions.values():
            name = f"{decision.key.namespace}/{decision.model_id}"
            found[name] = found.get(name, 0) + decision.desired
        return found

    less, greater = served(devices), served(devices + more)
    for name, count in less.items():
        assert greater[name] >= count


CYCLE_S = 20.0
RESTLESS = Policy(
    analysis="saturation", scale_down_window_s=0, peak_window_s=0, down_period_s=CYCLE_S
)


def lived(
    demands: Sequence[Sequence[float]], limits: Sequence[int], policy: Policy, size: int
) -> list[tuple[float, ...]]:
    """What each model serves at the end of each cycle, in full replicas.

    Args:
        demands: By cycle, what comes for each model, in full replicas.
        limits: By cycle, the devices that there are.
        size: Devices of each replica.
    """
    memory, current, served = Memory(), [1] * len(demands[0]), []
    for cycle, (demand, limit) in enumerate(zip(demands, limits, strict=True)):
        at_s = CYCLE_S * cycle
        states = tuple(
            a_state(
                replace(
                    a_variant(f"m{i}", model_id=f"m{i}", maximum=None),
                    accelerators_per_replica=size,
                ),
                usage=min(1.0, comes / there),
                ready=there,
                at_s=at_s,
            )
            for i, (comes, there) in enumerate(zip(demand, current, strict=True))
        )
        made, memory = plan(
            Snapshot(at_s, states, inventory=Inventory({"A100": limit})), policy, memory
        )
        current = [made.decisions[state.variant.key].desired for state in states]
        served.append(tuple(map(min, demand, current)))
    return served


@settings(max_examples=500, deadline=None)
@given(
    st.integers(1, 3).flatmap(
        lambda models: st.lists(
            st.lists(st.floats(0, 6), min_size=models, max_size=models), min_size=1, max_size=4
        )
    ),
    st.integers(1, 12),
    st.integers(0, 24),
    st.integers(1, 12),
    st.integers(0, 12),
    st.sampled_from([1, 2, 4]),
)
def test_in_a_history_more_accelerators_lower_at_no_time_the_demand_that_is_served(
    phases: list[list[float]], spell: int, devices: int, more: int, since: int, size: int
) -> None:
    """Demand changes every so many cycles, and from some cycle on there are more devices."""
    demands = [demand for demand in phases for _ in range(spell)]
    fewer = [devices] * len(demands)
    grown = [devices + more * (cycle >= since) for cycle in range(len(demands))]

    less = lived(demands, fewer, RESTLESS, size)
    greater = lived(demands, grown, RESTLESS, size)

    for before, after in zip(less, greater, strict=True):
        assert all(a >= b for a, b in zip(after, before, strict=True))


@settings(max_examples=500, deadline=None)
@given(fleets(), INVENTORIES, st.randoms(use_true_random=False))
def test_the_order_of_inputs_changes_nothing(
    states: tuple[VariantState, ...], inventory: Inventory, chance: object
) -> None:
    shuffled = list(states)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    first = decided(*states, inventory=inventory)
    assert decided(*shuffled, inventory=inventory).decisions == first.decisions
