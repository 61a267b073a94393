"""The HPA's arithmetic, row by row as the real controller answers."""

from __future__ import annotations

import pytest

from wva_adapter.core.hpa import (
    MOST_MILLI,
    MOST_REPLICAS,
    average_value_replicas,
    usage_milli,
    value_replicas,
)

# status replicas, value, Kubernetes <= 1.32, Kubernetes >= 1.33; target 1, tolerance 0.1
ROWS = [
    (20, 21_000, 20, 20),  # 1.05: inside both
    (20, 22_000, 22, 20),  # |1 - 1.1| is 0.10000000000000009 in floats; 1.1 <= 1.1 is not
    (20, 23_000, 23, 23),
    (10, 11_000, 11, 10),
    (9, 10_000, 10, 10),
    (1, 1_001, 1, 1),  # 1.000001 reaches the controller as 1001 thousandths
    (0, 0, 0, 0),
    (5, 0, 0, 0),
    (10, 9_000, 10, 10),
    (10, 8_001, 9, 9),
    (20, 18_000, 20, 20),
    (20, 17_001, 18, 18),
    (15, 13_001, 14, 14),
    (1, 1_200, 2, 2),
    (0, 3_000, 3, 3),
    (100, 90_500, 100, 100),
]


@pytest.mark.parametrize(("replicas", "value", "distance", "interval"), ROWS)
def test_average_value_as_the_controller_computes_it(
    replicas: int, value: int, distance: int, interval: int
) -> None:
    assert average_value_replicas(replicas, value, order="distance") == distance
    assert average_value_replicas(replicas, value, order="interval") == interval


@pytest.mark.parametrize(
    ("replicas", "value", "reached"),
    [(20, 21_000, 21), (20, 19_000, 19), (7, 21_001, 22)],
)
def test_without_tolerance_every_count_is_reached(replicas: int, value: int, reached: int) -> None:
    # 21.0000001 arrives as 21001 thousandths, since the controller rounds each item up.
    assert average_value_replicas(replicas, value, tolerance_up=0.0, tolerance_down=0.0) == reached


def test_the_controller_sums_all_items() -> None:
    assert average_value_replicas(7, usage_milli([4_000, 3_000])) == 7
    assert usage_milli([MOST_MILLI, 1]) == MOST_MILLI


def test_a_huge_proposal_is_capped_at_the_largest_int32() -> None:
    assert average_value_replicas(1, MOST_MILLI) == MOST_REPLICAS
    assert value_replicas(1, 1, MOST_MILLI, 1000) == MOST_REPLICAS


@pytest.mark.parametrize(
    ("spec", "ready", "usage", "reached"),
    [
        (4, 4, 1_050, 4),  # ratio 1.05 is inside the tolerance
        (4, 4, 1_500, 6),  # ceil(1.5 * 4)
        (4, 2, 1_500, 3),  # only ready pods are multiplied
        (4, 4, 500, 2),
        (0, 0, 2_500, 3),  # from zero: ceil(2.5), no tolerance
        (0, 0, 0, 0),
    ],
)
def test_value_multiplies_the_ready_pods(spec: int, ready: int, usage: int, reached: int) -> None:
    assert value_replicas(spec, ready, usage, 1000) == reached


def test_the_operand_orders_of_value_differ_at_the_very_edge() -> None:
    assert value_replicas(10, 10, 1_100, 1000, order="distance") == 11
    assert value_replicas(10, 10, 1_100, 1000, order="interval") == 10


def test_down_at_the_very_edge_stays_in_both_orders() -> None:
    # |1 - 0.9| is 0.09999999999999998 in floats
    assert value_replicas(10, 10, 900, 1000, order="distance") == 10
    assert value_replicas(10, 10, 900, 1000, order="interval") == 10
