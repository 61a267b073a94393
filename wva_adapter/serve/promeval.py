"""What a query of ``/api/v1/query`` comes to on the series that there are now.

There is an answer only where every series that it touches has a valid value: KEDA reads an empty
answer, NaN and infinity as 0, and would scale to the minimum on what nobody knows.

References:
    https://prometheus.io/docs/prometheus/latest/querying/operators/ for what becomes of labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Final, Protocol

from wva_adapter.core.answer import Answer, Items, Matcher
from wva_adapter.serve.promql import (
    COMPARISONS,
    NAME,
    Aggregation,
    Expression,
    Negation,
    Number,
    Operation,
    Selector,
)


class SeriesSource(Protocol):
    """Who knows the series that queries are asked of."""

    metrics: Collection[str]
    """The names of those that can be asked for, in the order of ``/metrics``."""
    scraped_only: Collection[str]
    """The names of those about variants that only ``/metrics`` has."""

    @property
    def max_age_s(self) -> float:
        """A value older than this is served to nobody."""
        ...

    def now_s(self) -> float:
        """Return the Unix time by which values age."""
        ...

    def series(self, metric: str, namespace: str | None, matches: Matcher) -> Answer:
        """Return the plain values of one metric that match, or why there are none.

        Args:
            namespace: The only one to look into; ``None`` for all.
        """
        ...


class Unanswered(Exception):
    """A query that has no answer now; the message says why, and what would have one."""


class Unanswerable(Exception):
    """A query that never has an answer, whatever the values are."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of a vector.

    Attributes:
        labels: With ``__name__`` where it still is a value of that metric; none is empty.
    """

    labels: Mapping[str, str]
    value: float


Vector = tuple[Sample, ...]

_ARITHMETIC: Final = {
    "+": "add",
    "-": "subtract",
    "*": "multiply",
    "/": "divide",
    "%": "fmod",
    "^": "float_power",
}
_COMPARISON: Final[Mapping[str, Callable[[float, float], bool]]] = {
    "==": lambda left, right: left == right,
    "!=": lambda left, right: left != right,
    "<": lambda left, right: left < right,
    "<=": lambda left, right: left <= right,
    ">": lambda left, right: left > right,
    ">=": lambda left, right: left >= right,
}
_AGGREGATION: Final[Mapping[str, Callable[[float, float], float]]] = {"sum": add, "max": max}
_READ_AS_0: Final = "KEDA would read it as 0"


def evaluate(expression: Expression, source: SeriesSource) -> Vector | float:
    """Return a vector that is not empty and has finite values only, or a number.

    Raises:
        Unanswered: It has no such answer now.
        Unanswerable: Two of its series would be the same one.
    """
    result = _evaluate(expression, source)
    if isinstance(result, float):
        return result
    if not result:
        raise Unanswered(
            f"no series is left after the comparison, and an empty answer is none: {_READ_AS_0}; "
            "with bool after the operator the answer is 1 or 0"
        )
    for sample in result:
        if not math.isfinite(sample.value):
            raise Unanswered(f"{_written(sample.labels)} would be {sample.value}: {_READ_AS_0}")
    return result


def _evaluate(expression: Expression, source: SeriesSource) -> Vector | float:
    match expression:
        case Number(value):
            return value
        case Selector():
            return _select(expression, source)
        case Negation(of):
            negated = _evaluate(of, source)
            if isinstance(negated, float):
                return -negated
            return _distinct([Sample(_unnamed(s.labels), -s.value) for s in negated])
        case Aggregation():
            of_vector = _evaluate(expression.of, source)
            assert not isinstance(of_vector, float)
            return _aggregate(expression, of_vector)
        case Operation():
            left = _evaluate(expression.left, source)
            right = _evaluate(expression.right, source)
            return _operate(expression, left, right)


def _select(selector: Selector, source: SeriesSource) -> Vector:
    names = [name for name in source.metrics if _named(selector, name)]
    for name in source.scraped_only:
        if _named(selector, name):
            raise Unanswered(
                f"{name} is on /metrics only; here there are: {', '.join(source.metrics)}"
            )
    if not names:
        wanted = ",".join(map(str, selector.names))
        raise Unanswered(f"no metric has {wanted}; there are: {', '.join(source.metrics)}")
    samples = []
    for name in names:
        answer = source.series(name, selector.namespace, selector)
        if not isinstance(answer, Items):
            raise Unanswered(answer.message)
        samples += [
            Sample(
                {NAME: name, **{label: text for label, text in item.labels.items() if text}},
                item.value_milli / 1000,
            )
            for item in answer.items
        ]
    return tuple(sorted(samples, key=lambda sample: sorted(sample.labels.items())))


def _named(selector: Selector, name: str) -> bool:
    labels = {NAME: name}
    return all(matcher(labels) for matcher in selector.names)


def _operate(operation: Operation, left: Vector | float, right: Vector | float) -> Vector | float:
    if isinstance(left, float) and isinstance(right, float):
        return _apply(operation.operator, left, right)
    samples = []
    vector = right if isinstance(left, float) else left
    assert not isinstance(vector, float)
    for sample in vector:
        sides = (
            left if isinstance(left, float) else sample.value,
            right if isinstance(right, float) else sample.value,
        )
        value = _apply(operation.operator, *sides)
        if operation.operator not in COMPARISONS or operation.boolean:
            samples.append(Sample(_unnamed(sample.labels), value))
        elif value:
            samples.append(sample)
    return _distinct(samples)


def _apply(operator: str, left: float, right: float) -> float:
    if operator in COMPARISONS:
        return float(_COMPARISON[operator](left, right))
    # Imported here: its floats divide by zero as those of Prometheus do, it takes 20 MB, and what
    # KEDA asks for is mostly a plain series.
    import numpy as np

    with np.errstate(all="ignore"):
        return float(getattr(np, _ARITHMETIC[operator])(left, right))


def _aggregate(aggregation: Aggregation, vector: Vector) -> Vector:
    groups: dict[tuple[tuple[str, str], ...], list[float]] = {}
    for sample in vector:
        kept = tuple(
            (label, text)
            for label, text in sorted(sample.labels.items())
            if (label in aggregation.labels) != aggregation.without
            and not (aggregation.without and label == NAME)
        )
        groups.setdefault(kept, []).append(sample.value)
    combine = _AGGREGATION[aggregation.operator]
    # From the first value on: with a 0 before it, the sum of -0 would lose its sign.
    return tuple(Sample(dict(kept), reduce(combine, values)) for kept, values in groups.items())


def _unnamed(labels: Mapping[str, str]) -> Mapping[str, str]:
    return {label: text for label, text in labels.items() if label != NAME}


def _distinct(samples: Sequence[Sample]) -> Vector:
    if len({tuple(sorted(sample.labels.items())) for sample in samples}) < len(samples):
        raise Unanswerable("vector cannot contain metrics with the same labelset")
    return tuple(samples)


def _written(labels: Mapping[str, str]) -> str:
    inside = ",".join(f'{label}="{text}"' for label, text in sorted(labels.items()))
    return f"{{{inside}}}"
