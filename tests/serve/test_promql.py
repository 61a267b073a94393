"""What is read of PromQL, and what a query is about."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wva_adapter.serve.promql import (
    Aggregation,
    Negation,
    Number,
    Operation,
    Selector,
    parse,
    query_reads,
)
from wva_adapter.serve.promql_tokens import PromqlError

SIGNS = "{}()=,><-+*^[]@#\n"
WORDS = ("x", "a", "=~", '"b"', "'(b'", "sum", "max", "by", "without", "bool", "==", "1", "5m")
PIECES = st.sampled_from((*SIGNS, *WORDS))


@given(st.one_of(st.lists(PIECES, max_size=20).map(" ".join), st.text(max_size=30)))
def test_every_text_is_a_query_or_is_refused_in_a_sentence(query: str) -> None:
    refused = ""
    try:
        parse(query)
    except PromqlError as error:
        refused = str(error)
    assert not refused or (": parse error: " in refused and query_reads(query) == ())


def test_operators_bind_as_there() -> None:
    x = parse("x")
    assert isinstance(x, Selector)
    assert parse("1 + 2 * 3 ^ 2 ^ 0") == Operation(
        "+",
        Number(1),
        Operation("*", Number(2), Operation("^", Number(3), Operation("^", Number(2), Number(0)))),
    )
    assert parse("-x ^ 2") == Negation(Operation("^", x, Number(2)))
    assert parse("-x * 2") == Operation("*", Negation(x), Number(2))
    assert parse("x - 1 - 2") == Operation("-", Operation("-", x, Number(1)), Number(2))
    assert parse("1 < bool 2 * 3") == Operation("<", Number(1), parse("2 * 3"), boolean=True)


def test_the_grouping_stands_before_or_after() -> None:
    wanted = Aggregation("sum", parse("x"), ("a", "b"), without=True)
    assert parse("sum without (a, b) (x)") == wanted
    assert parse("sum (x) WITHOUT (a, b,)") == wanted


@pytest.mark.parametrize(
    ("query", "reads"),
    [
        ('x{variant_name="a",exported_namespace="chat"}', [("chat", "x")]),
        ("sum(x{namespace='chat'}) > bool 1", [("chat", "x")]),
        ('{__name__="x",namespace="chat"}', [("chat", "x")]),
        ("-max by (a) (x) * 2", [("", "x")]),
        ('x{namespace=~"chat"}', [("", "x")]),
        ('x{namespace!="chat"}', [("", "x")]),
        ('x{namespace=""}', [("", "x")]),
        # Of two that contradict each other, the one that is looked into.
        ('x{exported_namespace="b",namespace="a"}', [("a", "x")]),
        ('{__name__=~"x|y",namespace="chat"}', [("chat", "*")]),
        ("1 + 1", []),
        ("x offset 5m", []),
    ],
)
def test_a_query_reads_what_it_is_about(query: str, reads: list[tuple[str, str]]) -> None:
    assert list(query_reads(query)) == reads


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("x{\n  a='b' c}", '2:9: parse error: unexpected name c in label matching, expected "}"'),
        ('x{a="\\q"}', "1:5: parse error: invalid escape sequence \\q in a string"),
        ("x{a=~'('}", "1:6: parse error: error parsing regexp '(': missing closing )"),
        ("x{a}", "1:4: parse error: unexpected operator } in label matching, expected one of: ="),
        ("x{a=1}", "1:5: parse error: unexpected number 1 in label matching, expected string"),
        ("x * x", "1:3: parse error: * between two vectors is not supported: only a number can"),
        ("rate(x[5m])", "1:1: parse error: functions are not supported: rate()"),
        ("x and on (a) x", "1:3: parse error: the operator and is not supported"),
        ("(" * 31 + "x", "1:31: parse error: the query is nested deeper than 30"),
        ("+".join("1" * 300), "1:501: parse error: the query is longer than 500 words and signs"),
        ("x" * 8001, "1:1: parse error: the query has 8001 characters, want at most 8000"),
        ("x % bool 2", "1:3: parse error: bool modifier can only be used on comparison operators"),
    ],
)
def test_a_refusal_says_where_and_what(query: str, why: str) -> None:
    with pytest.raises(PromqlError, match=re.escape(why)):
        parse(query)


def test_as_many_signs_as_are_allowed_are_worked_on() -> None:
    assert isinstance(parse("+".join("1" * 250)), Operation)
