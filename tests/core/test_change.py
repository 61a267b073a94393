from __future__ import annotations

import dataclasses

import pytest

from tests.builders import filled
from wva_adapter.core.capacity import Times
from wva_adapter.core.change import replace
from wva_adapter.core.memory import Memory, ModelMemory, Setback, VariantMemory


@pytest.mark.parametrize("kind", [Memory, ModelMemory, Setback, VariantMemory])
def test_a_changed_value_is_what_the_library_would_make_of_it(kind: type) -> None:
    value = filled(kind)
    name = dataclasses.fields(value)[0].name
    change = {name: getattr(kind(), name) if kind is not Setback else 7.0}
    assert replace(value, **change) == dataclasses.replace(value, **change)
    assert replace(value) == value


def test_a_name_that_is_no_field_is_refused() -> None:
    with pytest.raises(TypeError, match="at_m"):
        replace(Setback(0.0, 60.0, 1, "why"), at_m=1.0)


def test_a_change_that_the_class_would_refuse_is_refused_and_the_value_stays() -> None:
    times = Times(0.01, 0.02, 0.03, 0.04)
    with pytest.raises(ValueError, match="b_s -1"):
        replace(times, b_s=-1.0)
    assert times == Times(0.01, 0.02, 0.03, 0.04)
