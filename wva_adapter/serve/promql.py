"""The part of PromQL that is answered: one selector, ``sum`` or ``max`` of it, and numbers.

Whatever else Prometheus has is refused by its name. A selector is the only thing with labels, and
numbers are all that it can be put together with, so a query reads at most one of them.

References:
    https://prometheus.io/docs/prometheus/latest/querying/basics/ and operators/.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from wva_adapter.serve.promql_tokens import PromqlError, Token, tokens
from wva_adapter.serve.regex import Regex, RegexError

NAME: Final = "__name__"
COMPARISONS: Final = frozenset(("==", "!=", "<=", "<", ">=", ">"))
AGGREGATIONS: Final = ("sum", "max")
_OTHER_AGGREGATION: Final = re.compile(
    "avg|bottomk|count|count_values|group|limit_ratio|limitk|min|quantile|stddev|stdvar|topk"
)
_BINDING: Final[Mapping[str, int]] = {
    **dict.fromkeys(COMPARISONS, 1),
    "+": 2,
    "-": 2,
    "*": 3,
    "/": 3,
    "%": 3,
    "^": 4,
}
_POWER: Final = 4
_SET_OPERATORS: Final = frozenset(("and", "or", "unless", "atan2"))
_MATCHINGS: Final = frozenset(("on", "ignoring", "group_left", "group_right"))
_MATCH_OPERATORS: Final = frozenset(("=", "!=", "=~", "!~"))
_NAMESPACES: Final = ("namespace", "exported_namespace")
_LABEL: Final = re.compile("[a-zA-Z_][a-zA-Z0-9_]*")
_MOST_NESTED: Final = 30
_NUMBERS_ONLY: Final = (
    "between two vectors is not supported: only a number can stand on the other side"
)


@dataclass(frozen=True, slots=True)
class LabelMatcher:
    """One condition on one label, which is empty where a series does not have it."""

    label: str
    operator: str
    value: str
    regex: Regex | None = None

    def __call__(self, labels: Mapping[str, str]) -> bool:
        """Return whether a set of labels satisfies it."""
        found = labels.get(self.label, "")
        same = found == self.value if self.regex is None else self.regex(found)
        return same == (self.operator in ("=", "=~"))

    def __str__(self) -> str:
        return f"{self.label}{self.operator}{json.dumps(self.value, ensure_ascii=False)}"


@dataclass(frozen=True, slots=True)
class Selector:
    """Series by their labels.

    Attributes:
        names: Conditions on the metric's name, at least one.
        requirements: Conditions on the other labels.
    """

    names: tuple[LabelMatcher, ...]
    requirements: tuple[LabelMatcher, ...]

    def __call__(self, labels: Mapping[str, str]) -> bool:
        """Return whether labels other than the name satisfy every condition on them."""
        return all(requirement(labels) for requirement in self.requirements)

    def __str__(self) -> str:
        return f"{{{','.join(map(str, self.requirements))}}}"

    @property
    def metric(self) -> str | None:
        """The name that is asked for; ``None`` where it is described and not said."""
        said = (matcher.value for matcher in self.names if matcher.operator == "=")
        return next(said, None)

    @property
    def namespace(self) -> str | None:
        """The one namespace whose series can match; ``None`` where that is not said."""
        said = (
            matcher.value
            for label in _NAMESPACES
            for matcher in self.requirements
            if matcher.label == label and matcher.operator == "=" and matcher.value
        )
        return next(said, None)


@dataclass(frozen=True, slots=True)
class Number:
    """A scalar."""

    value: float


@dataclass(frozen=True, slots=True)
class Negation:
    """The same with the other sign."""

    of: Expression


@dataclass(frozen=True, slots=True)
class Aggregation:
    """One value for each group of series.

    Attributes:
        operator: One of ``AGGREGATIONS``.
        labels: What tells the groups apart, or with ``without`` what does not.
    """

    operator: str
    of: Expression
    labels: tuple[str, ...] = ()
    without: bool = False


@dataclass(frozen=True, slots=True)
class Operation:
    """Arithmetic or a comparison of which at most one side is a vector.

    Attributes:
        boolean: A comparison gives 1 and 0, and does not choose among series.
    """

    operator: str
    left: Expression
    right: Expression
    boolean: bool = False


Expression = Selector | Number | Negation | Aggregation | Operation


def is_scalar(expression: Expression) -> bool:
    """Return whether it is one number without labels."""
    match expression:
        case Number():
            return True
        case Negation(of):
            return is_scalar(of)
        case Operation(_, left, right):
            return is_scalar(left) and is_scalar(right)
    return False


def selector_of(expression: Expression) -> Selector | None:
    """Return the one selector of a query; ``None`` where there are only numbers."""
    match expression:
        case Selector():
            return expression
        case Negation(of) | Aggregation(_, of):
            return selector_of(of)
        case Operation(_, left, right):
            return selector_of(left) or selector_of(right)
    return None


@lru_cache(maxsize=256)
def parse(query: str) -> Expression:
    """Return what a query asks for.

    Raises:
        PromqlError: It is not PromQL, or not of the part that is answered; the message has the
            position and says which.
    """
    return _Parser(query).parse()


def query_reads(query: str) -> tuple[tuple[str, str], ...]:
    """Return the (namespace, metric) pairs that a query reads, as access to them is granted.

    The namespace is empty where it names none, the metric ``*`` where it describes several. There
    is no pair where it reads no series, or cannot be parsed and will be refused.
    """
    try:
        selector = selector_of(parse(query))
    except PromqlError:
        return ()
    if selector is None:
        return ()
    return ((selector.namespace or "", selector.metric or "*"),)


class _Parser:
    def __init__(self, query: str) -> None:
        self._tokens = tokens(query)
        self._next = 0
        self._nested = 0

    def parse(self) -> Expression:
        if self._token.kind == "end":
            raise PromqlError("unknown position: parse error: no expression found in input")
        expression = self._expression(1)
        if self._token.kind != "end":
            raise self._unexpected("")
        return expression

    @property
    def _token(self) -> Token:
        return self._tokens[self._next]

    def _take(self) -> Token:
        token = self._token
        self._next += 1
        return token

    def _takes(self, *texts: str) -> bool:
        if self._token.kind == "operator" and self._token.text in texts:
            self._next += 1
            return True
        return False

    def _takes_word(self, *words: str) -> bool:
        if self._token.kind == "name" and self._token.text.lower() in words:
            self._next += 1
            return True
        return False

    def _want(self, text: str, where: str) -> Token:
        token = self._token
        if not self._takes(text):
            raise self._unexpected(f"in {where}, expected {json.dumps(text)}")
        return token

    def _unexpected(self, where: str) -> PromqlError:
        token = self._token
        self._refuse_by_name(token)
        return token.error(f"unexpected {token.described}{where and f' {where}'}")

    def _refuse_by_name(self, token: Token) -> None:
        word = token.text.lower()
        match token.kind, token.text:
            case "operator", "[":
                raise token.error("range selectors and subqueries are not supported")
            case "operator", "@":
                raise token.error("the @ modifier is not supported")
            case "duration", _:
                raise token.error(f"durations are not supported: {token.text}")
            case "string", _:
                raise token.error("string literals are not supported outside of label matchers")
        if token.kind != "name":
            return
        if word == "offset":
            raise token.error("the offset modifier is not supported")
        if word in _SET_OPERATORS:
            raise token.error(f"the operator {word} is not supported")
        if word in _MATCHINGS:
            raise token.error(f"vector matching is not supported: {word}")

    def _expression(self, weakest: int) -> Expression:
        self._nested += 1
        if self._nested > _MOST_NESTED:
            raise self._token.error(f"the query is nested deeper than {_MOST_NESTED}")
        left = self._unary()
        while (
            self._token.kind == "operator"
            and (binding := _BINDING.get(self._token.text, 0)) >= weakest
        ):
            operator = self._take()
            boolean = self._takes_word("bool")
            if boolean and operator.text not in COMPARISONS:
                raise operator.error("bool modifier can only be used on comparison operators")
            if self._token.kind == "name" and self._token.text.lower() in _MATCHINGS:
                raise self._unexpected("")
            right = self._expression(binding if binding == _POWER else binding + 1)
            left = self._operation(operator, left, right, boolean)
        self._nested -= 1
        return left

    def _operation(
        self, operator: Token, left: Expression, right: Expression, boolean: bool
    ) -> Operation:
        if not is_scalar(left) and not is_scalar(right):
            raise operator.error(f"{operator.text} {_NUMBERS_ONLY}")
        scalars = is_scalar(left) and is_scalar(right)
        if scalars and operator.text in COMPARISONS and not boolean:
            raise operator.error("comparisons between scalars must use BOOL modifier")
        return Operation(operator.text, left, right, boolean)

    def _unary(self) -> Expression:
        if self._takes("+"):
            return self._expression(_BINDING["*"] + 1)
        if self._takes("-"):
            of = self._expression(_BINDING["*"] + 1)
            return Number(-of.value) if isinstance(of, Number) else Negation(of)
        return self._operand()

    def _operand(self) -> Expression:
        expression = self._bare_operand()
        if self._token.text in ("[", "@") or self._token.text.lower() == "offset":
            self._refuse_by_name(self._token)
        return expression

    def _bare_operand(self) -> Expression:
        token = self._token
        if self._takes("("):
            expression = self._expression(1)
            self._want(")", "a parenthesis")
            return expression
        if self._takes("{"):
            return self._selector(token, None)
        if token.kind == "number":
            self._next += 1
            return Number(token.number)
        if token.kind != "name":
            raise self._unexpected("")
        return self._named()

    def _named(self) -> Expression:
        token = self._take()
        word = token.text.lower()
        following = self._token
        called = following.kind == "operator" and following.text == "("
        grouped = following.kind == "name" and following.text.lower() in ("by", "without")
        if word in AGGREGATIONS and (called or grouped):
            return self._aggregation(word, token)
        if _OTHER_AGGREGATION.fullmatch(word) and (called or grouped):
            known = ", ".join(AGGREGATIONS)
            raise token.error(f"the aggregation {word} is not supported; there are: {known}")
        if called:
            raise token.error(f"functions are not supported: {token.text}()")
        if word in ("inf", "nan"):
            return Number(float(word))
        self._refuse_by_name(token)
        if self._takes("{"):
            return self._selector(token, token.text)
        return self._selected(token, [LabelMatcher(NAME, "=", token.text)])

    def _aggregation(self, operator: str, at: Token) -> Aggregation:
        grouping = self._grouping()
        self._want("(", "an aggregation")
        of = self._expression(1)
        if self._token.text == ",":
            raise at.error(f"{operator} takes one expression")
        self._want(")", "an aggregation")
        if is_scalar(of):
            raise at.error("expected type instant vector in aggregation expression, got scalar")
        if grouping is None:
            grouping = self._grouping()
        labels, without = grouping or ((), False)
        return Aggregation(operator, of, labels, without)

    def _grouping(self) -> tuple[tuple[str, ...], bool] | None:
        without = self._token.text.lower() == "without"
        if not self._takes_word("by", "without"):
            return None
        self._want("(", "a grouping")
        labels = []
        while not self._takes(")"):
            labels.append(self._label("a grouping"))
            if not self._takes(","):
                self._want(")", "a grouping")
                break
        return tuple(labels), without

    def _label(self, where: str) -> str:
        token = self._token
        if token.kind != "name" or not _LABEL.fullmatch(token.text):
            raise self._unexpected(f"in {where}, expected a label's name")
        self._next += 1
        return token.text

    def _selector(self, at: Token, name: str | None) -> Selector:
        """Return the selector whose opening brace was taken."""
        matchers = [] if name is None else [LabelMatcher(NAME, "=", name)]
        while not self._takes("}"):
            matcher = self._matcher()
            if matcher.label == NAME and name is not None:
                raise at.error(
                    f"metric name must not be set twice: {json.dumps(name)} "
                    f"or {json.dumps(matcher.value)}"
                )
            matchers.append(matcher)
            if not self._takes(","):
                self._want("}", "label matching")
                break
        return self._selected(at, matchers)

    def _matcher(self) -> LabelMatcher:
        label = self._label("label matching")
        operator = self._take()
        if operator.kind != "operator" or operator.text not in _MATCH_OPERATORS:
            raise operator.error(
                f"unexpected {operator.described} in label matching, expected one of: =, !=, =~, !~"
            )
        value = self._take()
        if value.kind != "string":
            raise value.error(f"unexpected {value.described} in label matching, expected string")
        if not operator.text.endswith("~"):
            return LabelMatcher(label, operator.text, value.string)
        try:
            return LabelMatcher(label, operator.text, value.string, Regex(value.string))
        except RegexError as error:
            raise value.error(f"error parsing regexp {value.text}: {error}") from error

    def _selected(self, at: Token, matchers: list[LabelMatcher]) -> Selector:
        if all(matcher({}) for matcher in matchers):
            raise at.error("vector selector must contain at least one non-empty matcher")
        names = tuple(matcher for matcher in matchers if matcher.label == NAME)
        if not names:
            raise at.error("a selector without the metric's name is not supported: name one")
        return Selector(names, tuple(matcher for matcher in matchers if matcher.label != NAME))
