"""Values as JSON documents, by their declared types."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wva_adapter.core.fleet import LoadKey
from wva_adapter.core.portable import ITEM_BYTES, from_portable, to_portable
from wva_adapter.core.snapshot import Phase


class Place(NamedTuple):
    name: str
    number: int | None


@dataclass(frozen=True, slots=True)
class Inner:
    rate: float
    phase: Phase = Phase.READY


@dataclass(frozen=True, slots=True)
class Outer:
    inner: Inner
    mode: Literal["one", "two"] = "two"
    seen: bool | None = None
    packed: bytes = field(default=b"", metadata={ITEM_BYTES: 8})
    pairs: tuple[tuple[float, int], ...] = ()
    by_place: Mapping[Place, tuple[Inner, ...]] = field(default_factory=dict)
    places: frozenset[Place] = frozenset()
    limit: float = math.inf


def written(value: object) -> Any:
    return json.loads(json.dumps(to_portable(value), allow_nan=False))


floats = st.floats(allow_nan=False) | st.integers(-5, 5)
inners = st.builds(Inner, floats, st.sampled_from(Phase))
places = st.builds(Place, st.text(max_size=3), st.none() | st.integers())
outers = st.builds(
    Outer,
    inners,
    st.sampled_from(["one", "two"]),
    st.none() | st.booleans(),
    st.lists(st.binary(min_size=8, max_size=8), max_size=9).map(b"".join),
    st.lists(st.tuples(floats, st.integers()), max_size=3).map(tuple),
    st.dictionaries(places, st.lists(inners, max_size=2).map(tuple), max_size=3),
    st.frozensets(st.builds(Place, st.text(max_size=3), st.integers()), max_size=3),
    floats,
)


@given(outers)
def test_what_is_written_reads_as_it_was(value: Outer) -> None:
    found = from_portable(Outer, written(value))

    assert found == value
    # Equal is not enough where a number is told in words: 3 and 3.0 are.
    told, wanted = (repr(replace(outer, places=frozenset())) for outer in (found, value))
    assert told == wanted


def test_nan_reads_as_nan() -> None:
    assert math.isnan(from_portable(Inner, written(Inner(math.nan))).rate)


def test_what_is_unknown_or_empty_by_default_is_not_written() -> None:
    assert written(Outer(Inner(1.5))) == {
        "inner": {"rate": 1.5, "phase": "ready"},
        "mode": "two",
        "limit": "inf",
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "three"}, "mode: found 'three', want one of: one, two"),
        ({"mode": ["one"]}, r"mode: found \['one'\], want one of: one, two"),
        ({"seen": 1}, "seen: found 1, want true or false"),
        ({"inner": {"rate": True}}, "inner.rate: found True, want a number"),
        ({"inner": {"rate": 1, "phase": "x"}}, "inner.phase: found 'x', want one of: starting"),
        ({"pairs": [[1.0, 2], [1.0]]}, r"pairs\[1\]: found \[1.0\], want a list of 2"),
        ({"pairs": [[1.0, 2.5]]}, r"pairs\[0\]\[1\]: found 2.5, want a whole number"),
        ({"by_place": {}}, r"by_place: found \{\}, want a list"),
        ({"packed": "AB"}, "packed: packed numbers of 8 bytes each are cut"),
        ({"other": 1}, "unknown field 'other', want of: by_place, inner"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_portable(Outer, {**written(Outer(Inner(1.5))), **change})


def test_a_type_without_a_form_is_refused_when_it_is_met() -> None:
    @dataclass(frozen=True)
    class Odd:
        when: complex

    with pytest.raises(TypeError, match="complex"):
        to_portable(Odd(1j))


def test_a_document_of_before_a_field_was_added_is_read_with_its_default() -> None:
    assert from_portable(LoadKey, ["chat", "llama"]) == LoadKey("chat", "llama")
    assert written(LoadKey("chat", "llama", "decode")) == ["chat", "llama", "decode"]
    with pytest.raises(ValueError, match="want a list of 3"):
        from_portable(LoadKey, ["chat"])
