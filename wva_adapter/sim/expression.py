"""The language in which laws are written down: arithmetic over series and their recent past.

It is Python's own syntax of expressions, cut down to what a law needs::

    in_flight / 16                          a series, of the scope that the law names
    model.queue + variant.waiting           the same, of the whole model and of one variant
    avg(kv_usage, 45s)                      mean of its samples of the last 45 seconds
    max(gpu_busy, 1m)   min(ready, 30s)     largest, smallest
    avg(min(ttft_p90_1m_s / slo_ttft_s, 2), 45s)   of an expression, every five seconds
    max(a, b)  min(a, b, c)                 of numbers; those that are missing are left out
    ceil(x)  floor(x)  abs(x)
    clamp(x, low, high)
    default(x, 0)                           the second where the first is missing
    a if kv_usage > 0.8 else b              comparisons, and, or, not

What a series does not have is *missing*, and so is what is computed with it; a division by zero is
missing too. Durations are whole numbers with ``s``, ``m`` or ``h``.
"""

from __future__ import annotations

import ast
import difflib
import math
import operator
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from wva_adapter.sim.evaluate import (
    Evaluate,
    Readings,
    Scope,
    applied,
    chosen,
    clamped,
    combined,
    defaulted,
    extreme,
    joined,
)

STEP_S = 5.0
"""Seconds between the moments at which an expression in a window is computed."""

_MOST_CHARACTERS = 2000
_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(?<![\w.])(\d+)([smh])\b")
_IMAGINARY = re.compile(r"(?<![\w])\d[\d_.]*(?:[eE][+-]?\d+)?[jJ]\b")

_BINARY: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_COMPARISON: Mapping[type[ast.cmpop], Callable[[float, float], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_WINDOWS: Mapping[str, Callable[[Sequence[float]], float]] = {
    "avg": lambda samples: math.fsum(samples) / len(samples),
    "max": max,
    "min": min,
}
_ROUNDING: Mapping[str, Callable[[float], float]] = {
    "ceil": math.ceil,
    "floor": math.floor,
    "abs": abs,
}
_FUNCTIONS = (*_WINDOWS, *_ROUNDING, "clamp", "default")


@dataclass(frozen=True, slots=True)
class Known:
    """The names that an expression may use.

    Attributes:
        series: Names that have a past.
        names: Names that have only a present.
        constants: Names that never change, so that a window may use them.
        scope: Whose a series is that is named without one.
    """

    series: Collection[str]
    names: Collection[str] = ()
    constants: Collection[str] = ()
    scope: Scope = "model"


@dataclass(frozen=True, slots=True)
class Expression:
    """A parsed expression.

    Attributes:
        text: As it was written.
    """

    text: str
    _evaluate: Evaluate

    def __call__(self, readings: Readings) -> float | None:
        """Return its value now; ``None`` where something that it needs is missing."""
        return self._evaluate(readings, 0.0)


def parse(text: str, known: Known) -> Expression:
    """Return the expression that ``text`` is.

    Raises:
        ValueError: It is not one; the message says at which position (from 1) and what is known.
    """
    if len(text) > _MOST_CHARACTERS:
        raise ValueError(f"{len(text)} characters, want at most {_MOST_CHARACTERS}")
    for position, character in enumerate(text, 1):
        if not character.isascii():
            raise ValueError(f"position {position}: {character!r}, want ASCII")
    imaginary = _IMAGINARY.search(text)
    if imaginary:
        raise ValueError(f"position {imaginary.start() + 1}: {imaginary[0]!r} is no number")
    # One line, so that columns are positions. Durations become imaginary numbers of the same
    # length, which Python can read; the unit is looked up in the text.
    flat = text.replace("\n", " ").replace("\r", " ").replace("\t", " ")
    offset = len(flat) - len(flat.lstrip())
    readable = _DURATION.sub(lambda found: f"{found[1]}j", flat)[offset:]
    try:
        tree = ast.parse(readable, mode="eval")
    except SyntaxError as error:
        # At the end of the text Python gives no column.
        position = (error.offset or len(readable.rstrip()) + 1) + offset
        raise ValueError(f"position {position}: {error.msg} in {text.strip()!r}") from None
    except (RecursionError, MemoryError):
        raise ValueError("nested too deep") from None
    return Expression(text, _Parser(flat, offset, known).compile(tree.body))


class _Parser:
    def __init__(self, text: str, offset: int, known: Known) -> None:
        self._text = text
        self._offset = offset
        self._known = known
        self._in_window = False

    def compile(self, node: ast.expr) -> Evaluate:
        match node:
            case ast.Constant(value=complex()):
                self._refuse(node, "a duration stands only as the second argument of a window")
            case ast.Constant(value=bool()) | ast.Constant(value=str() | bytes() | None):
                self._refuse(node, f"{ast.unparse(node)} is no number")
            case ast.Constant(value=int() | float() as number) if math.isfinite(number):
                fixed = float(number)
                return lambda readings, ago_s: fixed
            case ast.Name(id=name):
                return self._named(node, name, None)
            case ast.Attribute(value=ast.Name(id="model" | "variant" as scope), attr=name):
                return self._named(node, name, scope)
            case ast.UnaryOp(op=ast.USub(), operand=inner):
                return applied(self.compile(inner), operator.neg)
            case ast.UnaryOp(op=ast.Not(), operand=inner):
                return applied(self.compile(inner), lambda value: float(not value))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                return combined(self.compile(left), self.compile(right), _BINARY[type(op)])
            case ast.BoolOp(op=op, values=values):
                both = all if isinstance(op, ast.And) else any
                return joined([self.compile(value) for value in values], both)
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARISON:
                return combined(self.compile(left), self.compile(right), _COMPARISON[type(op)])
            case ast.IfExp(test=test, body=body, orelse=orelse):
                return chosen(self.compile(test), self.compile(body), self.compile(orelse))
            case ast.Call(func=ast.Name(id=function), args=args, keywords=[]):
                return self._call(node, function, args)
        self._refuse(node, f"{ast.unparse(node)!r} is not part of this language")

    def _named(self, node: ast.expr, name: str, scope: Scope | None) -> Evaluate:
        known = self._known
        if name in known.series:
            where: Scope = scope or known.scope
            return lambda readings, ago_s: readings.value(name, where, ago_s)
        if scope is None and name in known.constants:
            return lambda readings, ago_s: readings.name(name)
        if scope is None and name in known.names:
            if self._in_window:
                self._refuse(node, f"{name} has no past: a window takes series and constants")
            return lambda readings, ago_s: readings.name(name)
        everything = [*known.series, *known.names, *known.constants]
        near = difflib.get_close_matches(name, everything, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        others = [*known.names, *known.constants]
        beside = f"; beside them {', '.join(others)}" if others else ""
        self._refuse(
            node, f"unknown series {name!r}; {hint}Series are {', '.join(known.series)}{beside}"
        )

    def _call(self, node: ast.expr, function: str, args: Sequence[ast.expr]) -> Evaluate:
        if function not in _FUNCTIONS:
            near = difflib.get_close_matches(function, _FUNCTIONS, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            self._refuse(
                node, f"unknown function {function!r}; {hint}Functions are {', '.join(_FUNCTIONS)}"
            )
        if function in _WINDOWS and len(args) == 2:
            span_s = self._duration_s(args[1])
            if span_s is not None:
                return self._window(node, function, args[0], span_s)
        if function == "avg":
            self._refuse(node, "avg takes a series and a duration, such as avg(kv_usage, 45s)")
        values = [self.compile(arg) for arg in args]
        if function in _ROUNDING and len(values) == 1:
            return applied(values[0], _ROUNDING[function])
        if function in ("max", "min") and values:
            return extreme(values, max if function == "max" else min)
        if function == "clamp" and len(values) == 3:
            return clamped(*values)
        if function == "default" and len(values) == 2:
            return defaulted(*values)
        self._refuse(node, f"{function} got {len(values)} arguments")

    def _window(self, node: ast.expr, function: str, inner: ast.expr, span_s: float) -> Evaluate:
        if self._in_window:
            self._refuse(node, "a window inside a window")
        reduce = _WINDOWS[function]
        self._in_window = True
        evaluate = self.compile(inner)
        self._in_window = False
        plain = self._plain_series(inner)
        if plain is not None:
            series, scope = plain

            def of_samples(readings: Readings, ago_s: float) -> float | None:
                samples = readings.window(series, scope, span_s)
                return reduce(samples) if samples else None

            return of_samples
        moments = [STEP_S * step for step in range(math.ceil(span_s / STEP_S))]

        def of_moments(readings: Readings, ago_s: float) -> float | None:
            values = [evaluate(readings, moment) for moment in moments]
            samples = [value for value in values if value is not None]
            return reduce(samples) if samples else None

        return of_moments

    def _plain_series(self, node: ast.expr) -> tuple[str, Scope] | None:
        match node:
            case ast.Name(id=name) if name in self._known.series:
                return name, self._known.scope
            case ast.Attribute(value=ast.Name(id="model" | "variant" as scope), attr=name):
                return name, scope
        return None

    def _duration_s(self, node: ast.expr) -> float | None:
        """Return the seconds of a duration; ``None`` where the node is none."""
        match node:
            case ast.Constant(value=complex() as number):
                unit = self._text[self._offset + (node.end_col_offset or 0) - 1]
                span_s = number.imag * _UNITS_S[unit]
                if span_s <= 0:
                    self._refuse(node, "a window of no length")
                return span_s
        return None

    def _refuse(self, node: ast.expr, problem: str) -> NoReturn:
        position = self._offset + node.col_offset + 1
        raise ValueError(f"position {position}: {problem}")
