"""How a Kubernetes label selector is written, what it matches, and what its errors say.

The messages are part of the wire contract: a person who mistypes a selector reads the same
sentence from this server as from any other Kubernetes API.

References:
    Kubernetes, "Labels and Selectors"; ``k8s.io/apimachinery/pkg/labels`` for the grammar.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from wva_adapter.serve.label_syntax import key_problems, quoted, value_problems

_TOKEN = re.compile(r"==|!=|[=!(),<>]|[^ \t\r\n=!(),<>]+")
_INT64 = re.compile(r"[+-]?[0-9]+")
_SYMBOLS = frozenset(("==", "!=", "=", "!", "(", ")", ",", "<", ">"))


class SelectorError(ValueError):
    """A selector cannot be read; the message is the one that the Kubernetes API gives."""


class Operator(Enum):
    """How a requirement compares, as it is written."""

    EXISTS = "exists"
    ABSENT = "!"
    EQUALS = "="
    DOUBLE_EQUALS = "=="
    NOT_EQUALS = "!="
    IN = "in"
    NOT_IN = "notin"
    ABOVE = ">"
    BELOW = "<"


_BINARY = {
    operator.value: operator
    for operator in Operator
    if operator not in (Operator.EXISTS, Operator.ABSENT)
}
_BINARY_NAMES = "in, notin, =, ==, !=, gt, lt"
_EXACT = frozenset((Operator.EQUALS, Operator.DOUBLE_EQUALS, Operator.NOT_EQUALS))
_ORDER = frozenset((Operator.ABOVE, Operator.BELOW))


@dataclass(frozen=True, slots=True)
class LabelRequirement:
    """One condition on one label.

    Attributes:
        values: Sorted and unique; exactly one but for ``in`` and ``notin``, none for existence.
    """

    label: str
    operator: Operator
    values: tuple[str, ...] = ()

    def __call__(self, labels: Mapping[str, str]) -> bool:
        """Return whether the labels satisfy it; an absent label satisfies what excludes values."""
        found = labels.get(self.label)
        match self.operator:
            case Operator.EXISTS:
                return found is not None
            case Operator.ABSENT:
                return found is None
            case Operator.NOT_EQUALS | Operator.NOT_IN:
                return found is None or found not in self.values
            case Operator.ABOVE | Operator.BELOW:
                number = None if found is None else _int64(found)
                bound = _int64(self.values[0])
                if number is None or bound is None:
                    return False
                return number > bound if self.operator is Operator.ABOVE else number < bound
            case _:
                return found is not None and found in self.values

    def __str__(self) -> str:
        if self.operator is Operator.EXISTS:
            return self.label
        if self.operator is Operator.ABSENT:
            return f"!{self.label}"
        if self.operator in (Operator.IN, Operator.NOT_IN):
            return f"{self.label} {self.operator.value} ({','.join(self.values)})"
        return f"{self.label}{self.operator.value}{self.values[0]}"


@dataclass(frozen=True, slots=True)
class Selector:
    """Conditions that must all hold, sorted by label; none of them matches everything."""

    requirements: tuple[LabelRequirement, ...] = ()

    def __call__(self, labels: Mapping[str, str]) -> bool:
        """Return whether the labels satisfy every condition."""
        return all(requirement(labels) for requirement in self.requirements)

    def __str__(self) -> str:
        return ",".join(str(requirement) for requirement in self.requirements)


def parse_selector(text: str) -> Selector:
    """Return the selector that ``text`` writes; the empty text matches everything.

    Raises:
        SelectorError: The text is not a selector.
    """
    tokens = _Tokens(_TOKEN.findall(text))
    if tokens.next == "":
        return Selector()
    requirements = []
    while True:
        if tokens.next != "!" and tokens.next in _SYMBOLS:
            raise SelectorError(
                f"found '{tokens.next}', expected: !, identifier, or 'end of string'"
            )
        try:
            requirements.append(_requirement(tokens))
        except SelectorError as error:
            raise SelectorError(f"unable to parse requirement: {error}") from None
        separator = tokens.take()
        if separator == "":
            return Selector(tuple(sorted(requirements, key=lambda r: r.label)))
        if separator != ",":
            raise SelectorError(f"found '{separator}', expected: ',' or 'end of string'")
        if tokens.next == "" or (tokens.next != "!" and tokens.next in _SYMBOLS):
            raise SelectorError(f"found '{tokens.next}', expected: identifier after ','")


class _Tokens:
    """The words and signs of a selector, read from left to right; "" is the end."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._at = 0

    @property
    def next(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    @property
    def at_word(self) -> bool:
        return self.next != "" and self.next not in _SYMBOLS

    def take(self) -> str:
        token = self.next
        self._at += 1
        return token


def _requirement(tokens: _Tokens) -> LabelRequirement:
    absent = tokens.next == "!"
    if absent:
        tokens.take()
    if not tokens.at_word:
        raise SelectorError(f"found '{tokens.next}', expected: identifier")
    label = tokens.take()
    if problems := key_problems(label):
        raise SelectorError(f"<nil>: Invalid value: {quoted(label)}: {'; '.join(problems)}")
    if absent:
        return LabelRequirement(label, Operator.ABSENT)
    if tokens.next in ("", ","):
        return LabelRequirement(label, Operator.EXISTS)
    sign = tokens.take()
    if sign not in _BINARY:
        raise SelectorError(f"found '{sign}', expected: {_BINARY_NAMES}")
    operator = _BINARY[sign]
    values = {_value(tokens)} if operator in _EXACT | _ORDER else _values(tokens)
    _check_values(label, operator, tuple(sorted(values)))
    return LabelRequirement(label, operator, tuple(sorted(values)))


def _value(tokens: _Tokens) -> str:
    if tokens.next in ("", ","):
        return ""
    if not tokens.at_word:
        raise SelectorError(f"found '{tokens.next}', expected: identifier")
    return tokens.take()


def _values(tokens: _Tokens) -> set[str]:
    """Return the values of a list in parentheses; a gap between commas is the empty value."""
    opening = tokens.take()
    if opening != "(":
        raise SelectorError(f"found '{opening}' expected: '('")
    if tokens.next != ")" and tokens.next != "," and not tokens.at_word:
        raise SelectorError(f"found '{tokens.next}', expected: ',', ')' or identifier")
    values = set()
    while True:
        values.add(tokens.take() if tokens.at_word else "")
        if tokens.next == ")":
            tokens.take()
            return values
        if tokens.next != ",":
            raise SelectorError(f"found '{tokens.next}', expected: ',' or ')'")
        tokens.take()
        if tokens.next not in (")", ",") and not tokens.at_word:
            raise SelectorError(f"found '{tokens.next}', expected: ',', or identifier")


def _check_values(label: str, operator: Operator, values: tuple[str, ...]) -> None:
    problems = []
    for index, value in enumerate(values):
        if operator in _ORDER and _int64(value) is None:
            problems.append(
                f"values[{index}]: Invalid value: {quoted(value)}: "
                "for 'Gt', 'Lt' operators, the value must be an integer"
            )
        if wrong := value_problems(value):
            problems.append(
                f"values[{index}][{label}]: Invalid value: {quoted(value)}: {'; '.join(wrong)}"
            )
    if problems:
        raise SelectorError(problems[0] if len(problems) == 1 else f"[{', '.join(problems)}]")


def _int64(text: str) -> int | None:
    if not _INT64.fullmatch(text):
        return None
    number = int(text)
    return number if -(2**63) <= number < 2**63 else None
