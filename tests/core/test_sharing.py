"""Who gets what where accelerators are scarce."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders import a_key
from wva_adapter.core.allocation import Option
from wva_adapter.core.fleet import LoadKey, NodeState
from wva_adapter.core.room import Quota, Supply
from wva_adapter.core.sharing import (
    Grants,
    ModelRequest,
    Objective,
    feasible,
    share,
    unmet_penalty,
    unmet_prices,
    value,
)


def an_option(
    name: str,
    accelerator: str = "A100",
    *,
    capacity: float = 1.0,
    cost: float = 1.0,
    current: int = 0,
    lowest: int = 0,
    highest: int = 10,
    devices: int = 1,
    power_w: float | None = None,
) -> Option:
    return Option(
        a_key(name),
        capacity,
        cost,
        current,
        lowest,
        highest,
        accelerator=accelerator,
        devices=devices,
        power_w=power_w,
    )


def a_request(need: float, *options: Option, priority: int = 0, model: str = "") -> ModelRequest:
    return ModelRequest("chat", model or options[0].key.name, need, options, priority)


def nodes(*free: int, accelerator: str = "A100") -> tuple[NodeState, ...]:
    """Nodes of eight devices, so many of which are free."""
    return tuple(NodeState(f"{accelerator}-{i}", accelerator, 8, 8 - n) for i, n in enumerate(free))


def counts(grants: Grants) -> dict[str, int]:
    return {key.name: count for key, count in grants.counts.items()}


# --- stories ------------------------------------------------------------------------------------


def test_where_all_fits_every_model_gets_its_cheapest_plan() -> None:
    dear, cheap = an_option("dear", cost=3), an_option("cheap", cost=1)
    grants = share([a_request(4, dear, cheap)], Supply(nodes(8)))
    assert counts(grants) == {"cheap": 4, "dear": 0}
    assert (grants.limited, grants.unmet) == ({}, {})


def test_a_partial_grant_says_by_what_it_was_limited() -> None:
    grants = share([a_request(5, an_option("v"))], Supply(nodes(3)))
    assert counts(grants) == {"v": 3}
    assert grants.limited == {a_key("v"): "5 wanted, 3 granted: 0 A100 free, 1 needed"}
    assert grants.unmet == {LoadKey("chat", "v"): pytest.approx(0.4)}


def test_what_one_variant_cannot_get_the_next_gets() -> None:
    first, second = an_option("a100", cost=1), an_option("h100", "H100", cost=2, capacity=1.5)
    supply = Supply((*nodes(2), *nodes(8, accelerator="H100")))
    grants = share([a_request(5, first, second)], supply)
    assert counts(grants) == {"a100": 2, "h100": 2}
    assert grants.limited[a_key("a100")] == (
        "5 wanted, 2 granted: 0 A100 free, 1 needed; h100 gets 2 more"
    )
    assert grants.unmet == {}


def test_the_higher_priority_is_served_first() -> None:
    low = a_request(3, an_option("low"))
    high = a_request(3, an_option("zzz-high"), priority=5)
    assert counts(share([low, high], Supply(nodes(4)))) == {"low": 1, "zzz-high": 3}


def test_of_equal_priority_the_worst_served_is_next() -> None:
    # 2 of 2 and 2 of 4 run: the second is worse off until it has 4
    one = a_request(4, an_option("one", current=2))
    two = a_request(8, an_option("two", current=2))
    # 2/4 against 2/8: two, two (3/8), then 4/8 ties with 2/4 and the name decides
    assert counts(share([one, two], Supply(nodes(2)))) == {"one": 2, "two": 4}
    assert counts(share([one, two], Supply(nodes(3)))) == {"one": 3, "two": 4}


def test_what_runs_stays_where_nothing_is_free() -> None:
    grants = share([a_request(9, an_option("v", current=5, lowest=5))], Supply(nodes(0)))
    assert counts(grants) == {"v": 5}
    over = share(
        [a_request(9, an_option("v", current=5, lowest=5))], Supply(nodes(8), limits={"A100": 2})
    )
    assert counts(over) == {"v": 5}
    assert over.limited[a_key("v")] == (
        "9 wanted, 5 granted: A100 limited to 2 devices, 5 in use, 1 needed"
    )


def test_what_leaves_is_not_handed_out_in_the_same_cycle() -> None:
    going = a_request(1, an_option("going", current=4))
    coming = a_request(4, an_option("coming"))
    assert counts(share([going, coming], Supply(nodes(1)))) == {"going": 1, "coming": 1}


def test_a_quota_of_the_namespace_is_named() -> None:
    grants = share([a_request(5, an_option("v"))], Supply(quotas=(Quota("chat", "gpus", 2),)))
    assert grants.limited == {
        a_key("v"): "5 wanted, 2 granted: quota gpus of namespace chat has 0 devices left, 1 needed"
    }


def test_a_large_replica_that_fits_nowhere_leaves_its_need_to_small_ones() -> None:
    large = an_option("large", capacity=8, cost=6, devices=8)
    small = an_option("small", capacity=1, cost=1)
    grants = share([a_request(8, large, small)], Supply(nodes(*[1] * 8)))
    assert counts(grants) == {"large": 0, "small": 8}
    assert "8 A100 free, but no node has 8 together" in grants.limited[a_key("large")]


def test_what_became_superfluous_is_taken_back() -> None:
    # 5 cheap ones are wanted, 4 fit; the one of 5 that then helps makes all four superfluous
    cheap, big = an_option("cheap", cost=1), an_option("big", "H100", cost=9, capacity=5)
    grants = share([a_request(5, cheap, big)], Supply((*nodes(4), *nodes(1, accelerator="H100"))))
    assert counts(grants)["big"] == 1
    assert counts(grants)["cheap"] == 0


# --- the objective ------------------------------------------------------------------------------


def test_cost_and_power_are_both_reported() -> None:
    a = an_option("a", cost=1.5, power_w=300)
    b = an_option("b", "H100", cost=2.0, power_w=700, current=2, lowest=2)
    grants = share([a_request(5, a, b)], Supply())
    assert counts(grants) == {"a": 3, "b": 2}
    assert grants.value.cost_per_h == 3 * 1.5 + 2 * 2.0
    assert grants.value.power_w == 3 * 300 + 2 * 700


def test_power_is_unknown_where_that_of_one_that_runs_is() -> None:
    a, b = an_option("a", power_w=300), an_option("b", cost=9)
    assert share([a_request(2, a, b)], Supply()).value.power_w == 600  # b does not run
    assert share([a_request(2, replace(a, power_w=None), b)], Supply()).value.power_w is None


def test_power_can_be_what_counts() -> None:
    thrifty = an_option("thrifty", cost=3, power_w=200)
    cheap = an_option("cheap", cost=1, power_w=900)
    fleet = [a_request(2, thrifty, cheap)]
    power = Objective(cost=0, power_per_kwh=1)
    assert counts(share(fleet, Supply(), objective=power)) == {"thrifty": 2, "cheap": 0}
    # 3 + 0.2·p against 1 + 0.9·p: even at p = 20/7
    for price, chosen in ((2.8, "cheap"), (2.9, "thrifty")):
        mixed = Objective(cost=1, power_per_kwh=price)
        assert counts(share(fleet, Supply(), objective=mixed))[chosen] == 2


def test_an_unknown_power_is_that_of_the_hungriest_per_device() -> None:
    known = an_option("known", power_w=300, devices=1)
    unknown = an_option("unknown", devices=2, cost=0.1)
    power = Objective(cost=0, power_per_kwh=1)
    assert counts(share([a_request(2, known, unknown)], Supply(), objective=power)) == {
        "known": 2,
        "unknown": 0,
    }


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"cost": -1.0}, "objective: cost -1.0, want a finite number of at least 0"),
        ({"power_per_kwh": float("nan")}, "objective: power_per_kwh nan, want a finite number"),
        ({"cost": 0.0}, "objective: cost and power_per_kwh are 0, want one above"),
    ],
)
def test_an_objective_that_says_nothing_is_refused(weights: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Objective(**weights)


def test_the_penalty_of_what_is_unmet_grows_faster_the_more_is_unmet() -> None:
    # slopes 1.25, 1.75, 2.25, 2.75 over a quarter each
    assert [unmet_penalty(s) for s in (0, 0.25, 0.5, 0.75, 1)] == [0, 0.3125, 0.75, 1.3125, 2]


def test_each_class_of_priority_outweighs_the_next_a_hundred_times() -> None:
    requests = [a_request(1, an_option(f"m{p}"), priority=p) for p in (7, 3, 1)]
    # 100 × a need of 1 at 1 $/h, then 100 times that per class
    assert list(unmet_prices(requests).values()) == [1e6, 1e4, 1e2]


def test_a_change_has_its_price() -> None:
    request = a_request(2, an_option("v", cost=2, current=1))
    worth = value([request], {a_key("v"): 2}, change_penalty=0.05)
    assert worth.objective == pytest.approx(2 * 2 + 0.05 * 2)


# --- a proposal ---------------------------------------------------------------------------------


def contested() -> tuple[list[ModelRequest], Supply]:
    """A model that can go elsewhere, and one that cannot: greedy gives each one A100."""
    either = a_request(2, an_option("either", cost=1), an_option("other", "H100", cost=1.1))
    only = a_request(2, an_option("only", cost=1))
    return [either, only], Supply((*nodes(2), *nodes(8, accelerator="H100")))


def test_a_better_proposal_is_taken() -> None:
    requests, supply = contested()
    greedy = share(requests, supply)
    assert counts(greedy) == {"either": 1, "other": 1, "only": 1}
    better = {a_key("either"): 0, a_key("other"): 2, a_key("only"): 2}
    grants = share(requests, supply, proposal=better)
    assert (grants.method, grants.counts) == ("proposal", better)
    assert grants.unmet == {}
    assert grants.value.objective < greedy.value.objective


def test_a_worse_proposal_is_not() -> None:
    requests, supply = contested()
    worse = {a_key("either"): 2, a_key("other"): 0, a_key("only"): 0}
    assert share(requests, supply, proposal=worse).method == "greedy"


def test_a_proposal_worse_than_the_previous_plan_is_not() -> None:
    requests, supply = contested()
    best = {a_key("either"): 0, a_key("other"): 2, a_key("only"): 2}
    dearer = {a_key("either"): 0, a_key("other"): 3, a_key("only"): 2}
    assert share(requests, supply, proposal=dearer).method == "proposal"
    assert share(requests, supply, proposal=dearer, previous=best).method == "greedy"


@pytest.mark.parametrize(
    "outdated",
    [
        {a_key("either"): 0, a_key("other"): 2},  # a variant is missing
        {a_key("either"): 0, a_key("other"): 2, a_key("only"): 3},  # three A100 of two
        {a_key("either"): 0, a_key("other"): 99, a_key("only"): 2},  # above its highest count
    ],
)
def test_a_proposal_that_is_not_possible_today_is_not(outdated: dict[object, int]) -> None:
    requests, supply = contested()
    assert not feasible(outdated, requests, supply)  # type: ignore[arg-type]
    assert share(requests, supply, proposal=outdated).method == "greedy"  # type: ignore[arg-type]


def test_a_proposal_that_gives_less_says_so() -> None:
    # greedy gives b the last device, since it is worse served; the proposal gives it to a,
    # where it carries five times as much
    a = a_request(10, an_option("a", capacity=5, cost=5, current=1))
    b = a_request(3, an_option("b", capacity=1, current=1))
    supply = Supply(nodes(1))
    assert counts(share([a, b], supply)) == {"a": 1, "b": 2}
    grants = share([a, b], supply, proposal={a_key("a"): 2, a_key("b"): 1})
    assert grants.method == "proposal"
    assert grants.limited == {
        a_key("b"): "3 wanted, 1 granted: 0 A100 free, 1 needed",
    }


# --- laws ---------------------------------------------------------------------------------------

TYPES = ("A100", "H100", "L40S")


@st.composite
def fleets(draw: st.DrawFn) -> tuple[list[ModelRequest], Supply]:
    requests = []
    for m in range(draw(st.integers(1, 5))):
        options = []
        for v in range(draw(st.integers(1, 3))):
            current = draw(st.integers(0, 3))
            options.append(
                an_option(
                    f"m{m}v{v}",
                    draw(st.sampled_from(TYPES)),
                    # Eighths: sums of them are exact.
                    capacity=draw(st.integers(1, 40)) / 8,
                    cost=draw(st.integers(1, 40)) / 8,
                    devices=draw(st.sampled_from([1, 1, 2, 4, 8])),
                    current=current,
                    lowest=draw(st.integers(0, current)),
                    highest=current + draw(st.integers(0, 6)),
                )
            )
        need = draw(st.integers(0, 160)) / 8
        requests.append(a_request(need, *options, priority=draw(st.integers(0, 2)), model=f"m{m}"))
    free = tuple(
        node
        for accelerator in TYPES
        for node in nodes(*draw(st.lists(st.integers(0, 8), max_size=3)), accelerator=accelerator)
    )
    return requests, Supply(free, limits=draw(st.sampled_from([{}, {"A100": 6}])))


@settings(max_examples=500, deadline=None)
@given(fleets())
def test_what_is_granted_fits(fleet: tuple[list[ModelRequest], Supply]) -> None:
    requests, supply = fleet
    grants = share(requests, supply, change_penalty=0.05)
    for request in requests:
        for option in request.options:
            assert 0 <= grants.counts[option.key] <= option.highest
    for accelerator in TYPES:
        of_type = [o for r in requests for o in r.options if o.accelerator == accelerator]
        added = sum(o.devices * max(0, grants.counts[o.key] - o.current) for o in of_type)
        assert added <= sum(n.free for n in supply.nodes or () if n.accelerator == accelerator)
        for devices in (2, 4, 8):
            replicas = sum(
                max(0, grants.counts[o.key] - o.current) for o in of_type if o.devices == devices
            )
            assert replicas <= sum(
                n.free // devices for n in supply.nodes or () if n.accelerator == accelerator
            )


@settings(max_examples=500, deadline=None)
@given(fleets())
def test_what_is_wanted_and_runs_is_never_taken(
    fleet: tuple[list[ModelRequest], Supply],
) -> None:
    requests, supply = fleet
    wished, granted = share(requests, Supply()), share(requests, supply)
    for option in (o for r in requests for o in r.options):
        kept = min(wished.counts[option.key], option.current)
        assert granted.counts[option.key] >= kept


@settings(max_examples=500, deadline=None)
@given(fleets(), st.randoms(use_true_random=False))
def test_the_order_of_inputs_changes_nothing(
    fleet: tuple[list[ModelRequest], Supply], random: object
) -> None:
    requests, supply = fleet
    flipped = [replace(r, options=tuple(reversed(r.options))) for r in reversed(requests)]
    other = replace(supply, nodes=tuple(reversed(supply.nodes or ())))
    assert share(flipped, other) == share(requests, supply)


@settings(max_examples=500, deadline=None)
@given(fleets(), st.sampled_from([0.01, 3.0, 7.5, 1000.0]))
def test_the_unit_of_money_changes_no_count(
    fleet: tuple[list[ModelRequest], Supply], unit: float
) -> None:
    requests, supply = fleet
    scaled = [
        replace(r, options=tuple(replace(o, cost_per_h=o.cost_per_h * unit) for o in r.options))
        for r in requests
    ]
    first = share(requests, supply, change_penalty=0.05)
    assert share(scaled, supply, change_penalty=0.05).counts == first.counts


@settings(max_examples=500, deadline=None)
@given(fleets(), st.sampled_from(TYPES), st.integers(1, 8))
def test_more_accelerators_never_lower_what_is_served(
    fleet: tuple[list[ModelRequest], Supply], accelerator: str, more: int
) -> None:
    """In a fleet that runs: what it has it keeps, whatever is added."""
    requests, supply = fleet
    before = share(requests, supply)
    running = [
        replace(
            r,
            options=tuple(
                replace(
                    o,
                    current=before.counts[o.key],
                    lowest=min(o.lowest, before.counts[o.key]),
                    highest=max(o.highest, before.counts[o.key]),
                )
                for o in r.options
            ),
        )
        for r in requests
    ]
    grown = replace(supply, nodes=(*(supply.nodes or ()), NodeState("new", accelerator, more, 0)))
    after = share(running, grown)
    for request in requests:
        assert request.unmet(after.counts) <= request.unmet(before.counts)


@settings(max_examples=500, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 24), st.integers(1, 40), st.integers(0, 2)), min_size=1, max_size=5
    ),
    st.integers(0, 40),
    st.integers(1, 8),
)
def test_more_of_one_accelerator_serve_every_model_no_worse(
    models: list[tuple[int, int, int]], free: int, more: int
) -> None:
    """From nothing, where each replica needs one device: more only goes on where less stops."""
    requests = [
        a_request(need, an_option(f"m{i}", capacity=capacity / 8, highest=99), priority=priority)
        for i, (need, capacity, priority) in enumerate(models)
    ]
    pool = Supply((NodeState("n", "A100", 99, 99 - free),))
    larger = Supply((NodeState("n", "A100", 99, 99 - free - more),) if free + more <= 99 else ())
    less, greater = share(requests, pool), share(requests, larger)
    for request in requests:
        assert request.unmet(greater.counts) <= request.unmet(less.counts)
