from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from wva_adapter import garbage


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


def test_a_small_fleet_is_walked_through_as_often_as_python_does() -> None:
    garbage.pace(50)
    assert gc.get_threshold()[0] == garbage.PYTHONS_OWN


def test_ten_times_the_replicas_are_walked_through_no_more_often_per_cycle() -> None:
    garbage.pace(50_000)
    fewer = gc.get_threshold()[0]
    garbage.pace(500_000)
    assert gc.get_threshold()[0] == 10 * fewer > garbage.PYTHONS_OWN


def test_a_fleet_that_shrank_is_walked_through_as_a_small_one() -> None:
    garbage.pace(500_000)
    garbage.pace(50)
    assert gc.get_threshold()[0] == garbage.PYTHONS_OWN
