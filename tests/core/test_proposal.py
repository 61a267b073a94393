"""Better plans for scarce accelerators, against all plans there are."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings

from tests.builders import a_key
from tests.core.test_sharing import a_request, an_option, contested, fleets, nodes
from wva_adapter.core import proposal
from wva_adapter.core.fleet import NodeState
from wva_adapter.core.proposal import propose
from wva_adapter.core.room import Room, Supply
from wva_adapter.core.sharing import ModelRequest, feasible, share, value

TYPES = ("A100", "H100")


def a_small_fleet(rng: np.random.Generator) -> tuple[list[ModelRequest], Supply]:
    requests = []
    for m in range(int(rng.integers(1, 4))):
        options = []
        for v in range(2):
            current = int(rng.integers(0, 2))
            options.append(
                an_option(
                    f"m{m}v{v}",
                    TYPES[int(rng.integers(2))],
                    capacity=float(rng.uniform(0.5, 4)),
                    cost=float(rng.uniform(0.5, 4)),
                    devices=int(rng.choice([1, 2, 4])),
                    current=current,
                    highest=current + 2,
                )
            )
        need = float(rng.uniform(0, 8))
        requests.append(a_request(need, *options, priority=int(rng.integers(0, 2)), model=f"m{m}"))
    free = rng.integers(0, 5, size=4)
    return requests, Supply(
        (*nodes(int(free[0]), int(free[1])), *nodes(int(free[2]), accelerator="H100"))
    )


def the_least(requests: list[ModelRequest], supply: Supply, penalty: float) -> float:
    """The objective of the best of all plans that fit."""
    options = [o for r in requests for o in r.options]
    plans = product(*[range(o.lowest, o.highest + 1) for o in options])
    worths = sorted(
        (value(requests, counts, change_penalty=penalty).objective, i, counts)
        for i, counts in enumerate(
            dict(zip((o.key for o in options), plan, strict=True)) for plan in plans
        )
    )
    return next(worth for worth, _, counts in worths if feasible(counts, requests, supply))


def test_few_models_get_the_best_plan_of_all() -> None:
    rng = np.random.default_rng(5)
    better = 0
    for _ in range(300):
        requests, supply = a_small_fleet(rng)
        counts = propose(requests, supply, change_penalty=0.05)
        assert feasible(counts, requests, supply)
        worth = value(requests, counts, change_penalty=0.05).objective
        assert worth == pytest.approx(the_least(requests, supply, 0.05), rel=1e-5, abs=1e-9)
        greedy = share(requests, supply, change_penalty=0.05).value.objective
        better += worth < greedy * (1 - 1e-6)
    # else the greedy plan would do
    assert better > 30


def test_columns_find_nearly_the_best_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposal, "EXACT_MODELS", 0)
    rng = np.random.default_rng(6)
    found = []
    for _ in range(100):
        requests, supply = a_small_fleet(rng)
        worth = value(requests, propose(requests, supply)).objective
        found.append(worth / (the_least(requests, supply, 0.0) or 1.0))
    assert np.mean(np.array(found) < 1 + 1e-6) > 0.95


@pytest.mark.parametrize("exact", [0, 20])
def test_it_finds_that_the_one_with_a_choice_makes_way(
    exact: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proposal, "EXACT_MODELS", exact)
    requests, supply = contested()
    assert propose(requests, supply) == {a_key("either"): 0, a_key("other"): 2, a_key("only"): 2}


@pytest.mark.parametrize("exact", [0, 20])
def test_it_knows_that_a_replica_needs_one_node(
    exact: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proposal, "EXACT_MODELS", exact)
    large = an_option("large", capacity=8, cost=1, devices=8)
    small = an_option("small", capacity=1, cost=1)
    counts = propose([a_request(8, large, small)], Supply(nodes(*[1] * 8)))
    assert counts == {a_key("large"): 0, a_key("small"): 8}


@pytest.mark.parametrize("exact", [0, 20])
@settings(max_examples=500, deadline=None)
@given(fleets())
def test_a_proposal_is_possible_and_never_worse_than_greedy(
    exact: int, fleet: tuple[list[ModelRequest], Supply]
) -> None:
    requests, supply = fleet
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proposal, "EXACT_MODELS", exact)
        counts = propose(requests, supply, change_penalty=0.05)
    greedy = share(requests, supply, change_penalty=0.05)
    worth = value(requests, counts, change_penalty=0.05).objective
    assert worth <= greedy.value.objective
    if counts != greedy.counts:
        assert feasible(counts, requests, supply)
        assert share(requests, supply, change_penalty=0.05, proposal=counts).counts == counts


@settings(max_examples=500, deadline=None)
@given(fleets())
def test_more_accelerators_never_make_the_best_plan_worse(
    fleet: tuple[list[ModelRequest], Supply],
) -> None:
    requests, supply = fleet
    grown = Supply((*(supply.nodes or ()), NodeState("new", "A100", 4, 0)), limits=supply.limits)
    less, more = (value(requests, propose(requests, s)).objective for s in (supply, grown))
    assert more <= less * (1 + 1e-5) + 1e-9


def test_without_bounds_everybody_has_the_own_plan() -> None:
    requests, _ = contested()
    assert propose(requests, Supply()) == share(requests, Supply()).counts
    assert propose([], Supply(())) == {}


@settings(max_examples=500, deadline=None)
@given(fleets())
def test_whatever_fits_keeps_the_bounds(fleet: tuple[list[ModelRequest], Supply]) -> None:
    requests, supply = fleet
    options = [o for r in requests for o in r.options]
    counts = share(requests, supply).counts
    for bound in Room(supply, options).bounds(options):
        used = sum(
            bound.uses[o.key] * max(0, counts[o.key] - o.current)
            for o in options
            if o.key in bound.uses
        )
        assert used <= bound.most
