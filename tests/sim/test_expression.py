"""The language of laws: what it computes, and how it refuses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wva_adapter.sim.evaluate import Scope
from wva_adapter.sim.expression import Known, parse

KNOWN = Known(
    series=("kv_usage", "waiting", "running", "ttft_s"),
    names=("replicas", "need"),
    constants=("slo_s",),
)


class Readings:
    """Series with samples every five seconds, the newest last."""

    def __init__(self, names: Mapping[str, float | None], **series: Sequence[float | None]) -> None:
        self._names = names
        self._series = series

    def value(self, series: str, scope: Scope, ago_s: float) -> float | None:
        past = self._series.get(f"{scope}_{series}", self._series.get(series, ()))
        index = len(past) - 1 - int(ago_s // 5)
        return past[index] if index >= 0 else None

    def window(self, series: str, scope: Scope, span_s: float) -> Sequence[float]:
        past = self._series.get(f"{scope}_{series}", self._series.get(series, ()))
        count = int(span_s // 5)
        return [value for value in past[-count:] if value is not None]

    def name(self, name: str) -> float | None:
        return self._names[name]


def value(
    text: str, names: Mapping[str, float | None] | None = None, **series: Sequence[float | None]
) -> float | None:
    return parse(text, KNOWN)(Readings(names or {}, **series))


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("1 + 2 * 3", 7),
        ("(1 + 2) * 3", 9),
        ("-2 - -3", 1),
        ("7 / 2", 3.5),
        ("ceil(7 / 2)", 4),
        ("floor(-0.5)", -1),
        ("abs(-3)", 3),
        ("max(1, 2, 3)", 3),
        ("min(3, 2)", 2),
        ("clamp(9, 1, 5)", 5),
        ("clamp(-9, 1, 5)", 1),
        ("2 if 3 > 2 else 1", 2),
        ("2 if 3 != 3 else 1", 1),
        ("1 < 2 and not 2 <= 1", 1),
        ("1 > 2 or 2 == 1", 0),
        ("1e3 + .5", 1000.5),
        ("  1 +\n  2", 3),
    ],
)
def test_arithmetic(text: str, result: float) -> None:
    assert value(text) == result


def test_series_are_read_now_and_over_windows() -> None:
    past = [9.0, 1.0, 2.0, 6.0]
    assert value("waiting", waiting=past) == 6
    assert value("avg(waiting, 15s)", waiting=past) == 3  # (1 + 2 + 6)/3
    assert value("max(waiting, 1m)", waiting=past) == 9
    assert value("min(waiting, 10s) + 1", waiting=past) == 3


def test_an_expression_in_a_window_is_computed_at_each_moment_of_it() -> None:
    # three moments: min(4/2, 2), min(1/2, 2), min(6/2, 2) = 2, 0.5, 2
    text = "avg(min(ttft_s / slo_s, 2), 15s)"
    assert value(text, {"slo_s": 2}, ttft_s=[99, 4, 1, 6]) == 1.5
    assert value(text, {"slo_s": 2}, ttft_s=[99, 4, None, 6]) == 2


def test_a_scope_says_whose_series_it_is() -> None:
    readings = Readings({}, model_waiting=[10.0], variant_waiting=[3.0])
    assert parse("model.waiting - variant.waiting", KNOWN)(readings) == 7
    assert parse("waiting", KNOWN)(readings) == 10
    assert parse("avg(waiting, 5s)", Known(("waiting",), scope="variant"))(readings) == 3


def test_what_is_missing_stays_missing_until_a_default() -> None:
    for text in ("waiting + 1", "ceil(waiting)", "1 if waiting > 2 else 0", "waiting or 1 > 0"):
        assert value(text) is None
    assert value("avg(waiting, 1m)") is None
    assert value("1 / 0") is None
    assert value("1e300 * 1e300") is None  # too large to be a number
    assert value("default(waiting, 4)") == 4
    assert value("max(waiting, running)", running=[2]) == 2  # the other says nothing
    assert value("max(waiting, running)") is None
    assert value("need * 2", {"need": None}) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 + kv_usge", r"position 5: unknown series 'kv_usge'; did you mean kv_usage\?"),
        ("zz", "'zz'; Series are kv_usage, waiting, running, ttft_s; beside them replicas, need"),
        ("ciel(2)", r"position 1: unknown function 'ciel'; did you mean ceil\?"),
        ("2 + ", r"position 4: invalid syntax in '2 \+'"),
        ("  2 +) ", r"position 6: unmatched '\)'"),
        ("avg(waiting)", "position 1: avg takes a series and a duration"),
        ("avg(waiting, 45)", "position 1: avg takes a series and a duration"),
        ("1 + 45s", "position 5: a duration stands only as the second argument of a window"),
        ("max(waiting, 0s)", "position 14: a window of no length"),
        ("avg(replicas, 45s)", "position 5: replicas has no past"),
        ("avg(avg(waiting, 5s), 45s)", "position 5: a window inside a window"),
        ("waiting ** 2", r"position 1: 'waiting \*\* 2' is not part of this language"),
        ("1 < 2 < 3", "position 1: '1 < 2 < 3' is not part of this language"),
        ("waiting[0]", "is not part of this language"),
        ("(lambda: 1)()", "is not part of this language"),
        ("other.waiting", "is not part of this language"),
        ("model.replicas", "unknown series 'replicas'"),
        ("ceil(1, 2)", "position 1: ceil got 2 arguments"),
        ("max()", "position 1: max got 0 arguments"),
        ("True", "position 1: True is no number"),
        ("'a'", "position 1: 'a' is no number"),
        ("1e999", "is not part of this language"),
        ("3j", "position 1: '3j' is no number"),
        ("waiting × 2", "position 9: '×', want ASCII"),
        ("1" * 2001, "2001 characters, want at most 2000"),
        ("(" * 900, "position|nested too deep"),
    ],
)
def test_what_is_not_of_the_language_is_refused_with_its_position(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(text, KNOWN)


@given(st.text(alphabet="0123456789smhj+-*/().,<>=! abckvuqwig_", max_size=40))
def test_any_text_is_an_expression_or_refused(text: str) -> None:
    try:
        expression = parse(text, KNOWN)
    except ValueError:
        return
    expression(Readings({"replicas": 1, "need": None, "slo_s": 2}, waiting=[1.0]))


numbers = st.floats(0.001, 1000)


@given(numbers, numbers, numbers)
def test_it_computes_as_python_does(a: float, b: float, c: float) -> None:
    text = f"{a!r} * ({b!r} - {c!r}) / {a!r} if {a!r} < {b!r} else max({b!r}, {c!r}, -{a!r})"
    assert value(text) == eval(text)
