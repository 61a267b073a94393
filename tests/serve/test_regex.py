"""Expressions match as RE2's do, and none can hold the loop."""

from __future__ import annotations

import re
import time
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wva_adapter.serve.regex import Regex, RegexError

ATOMS = st.sampled_from(
    ["a", "b", "-", ".", "[ab]", "[^a]", "[a-c-]", r"\d", r"\W", r"[\w.]", r"\.", "^", "$", "(?:)"]
)
EXPRESSIONS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda options: f"(?:{'|'.join(options)})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "*?", "{2}", "{1,}", "{0,2}"])).map(
            lambda parts: f"({parts[0]}){parts[1]}"
        ),
        inner.map(lambda one: f"(?i:{one})"),
    ),
    max_leaves=8,
)


@given(EXPRESSIONS, st.lists(st.text("abAB-.1\n", max_size=6), max_size=8))
def test_it_matches_what_pythons_own_engine_matches_whole(
    expression: str, texts: list[str]
) -> None:
    # RE2's $ is the very end, which Python writes \Z.
    theirs = re.compile(expression.replace("$", r"\Z"))
    ours = Regex(expression)
    for text in texts:
        assert ours(text) == (theirs.fullmatch(text) is not None)


@pytest.mark.parametrize(
    ("expression", "matching", "other"),
    [
        ("llama", "llama", "llama-a100"),
        ("^llama-(a|h)100$", "llama-h100", "llama-100"),
        ("llama-.*|qwen", "qwen", "qwen2"),
        ("", "", "a"),
        ("a|", "", "b"),
        ("(?P<who>a)b", "ab", "b"),
        ("(?i)LLaMA", "llama", "lama"),
        ("(?i:a)b", "Ab", "AB"),
        ("(?i)a(?-i)b", "Ab", "AB"),
        ("a.b", "a/b", "a\nb"),
        ("(?s)a.b", "a\nb", "ab"),
        (r"\Aa\z", "a", "ab"),
        (r"[[:alpha:]_]+[[:digit:]]", "ab_1", "ab-1"),
        (r"[^\W_]+", "aB1", "a_"),
        (r"[]a]+", "]a", "b"),
        (r"\x41\x{1F600}", "A\U0001f600", "A"),
        (r"a{,2}", "a{,2}", "aa"),
        (r"a{2,3}", "aaa", "aaaa"),
        (r"\t\.\/", "\t./", "t./"),
    ],
)
def test_an_expression_matches_the_one_and_not_the_other(
    expression: str, matching: str, other: str
) -> None:
    regex = Regex(expression)
    assert regex(matching)
    assert not regex(other)


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("(?=a)", "lookaround is not supported: RE2 has none"),
        ("(?<!a)b", "lookaround is not supported: RE2 has none"),
        (r"(a)\1", r"backreference \1 is not supported: RE2 has none"),
        ("(?P=a)", "invalid or unsupported group: (?P="),
        ("(?m)a", "flag m is not supported; there are: i, s"),
        (r"\bword\b", r"invalid or unsupported escape sequence: \b"),
        (r"\pL", r"invalid or unsupported escape sequence: \p"),
        ("a\\", "trailing backslash"),
        ("(a", "missing closing )"),
        ("a)", "unexpected )"),
        ("[a", "missing closing ]"),
        ("[z-a]", "invalid character class range"),
        ("[[:nope:]]", "invalid or unsupported character class: [:nope:]"),
        ("*a", "missing argument to repetition operator: *"),
        ("a**", "invalid nested repetition operator: **"),
        ("a{2,1}", "invalid repeat count: {2,1}"),
        ("a{1001}", "invalid repeat count: {1001}"),
        ("(a{30}){30}", "too large: more than 500 positions"),
        ("(((((){1000}){1000}){1000}){1000}){1000}", "too large: it repeats too much"),
        ("(" * 40 + ")" * 40, "groups are nested deeper than 30"),
        ("a" * 1001, "has 1001 characters, want at most 1000"),
    ],
)
def test_what_is_refused_is_named(expression: str, why: str) -> None:
    with pytest.raises(RegexError, match=re.escape(why)):
        Regex(expression)


def test_an_expression_that_makes_others_backtrack_is_answered_at_once() -> None:
    began_s = time.perf_counter()
    for expression in ("(a*)*b", "(a|a)*b", "(.*)(.*)(.*)(.*)(.*)[b]", "(a?){60}a{60}b"):
        assert not Regex(expression)("a" * 250)
    assert time.perf_counter() - began_s < 2


def test_an_expression_that_never_repeats_a_state_is_given_up() -> None:
    # It has 2**200 of them: which of the last 200 characters were an a.
    regex = Regex("[ab]*a[ab]{200}")
    chance = Random(1)

    def match_ever_new_texts() -> None:
        for _ in range(1000):
            regex("".join(chance.choices("ab", k=250)))

    with pytest.raises(RegexError, match="costs too much on the values that there are"):
        match_ever_new_texts()
