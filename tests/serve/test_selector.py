"""Selectors are read, matched and refused as every Kubernetes API does it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wva_adapter.serve.selector import Selector, SelectorError, parse_selector

A = {"app": "a", "env": "prod", "size": "7"}
NAME_RULE = (
    "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an "
    "alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for "
    "validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)
VALUE_RULE = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or "
    "'.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value', "
    " or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \t",
        "app",
        "app=a",
        "app==a",
        "app!=b",
        "!gone",
        "app in (a,b)",
        "app in ( b , a )",
        "app notin (b)",
        "gone!=x",
        "gone notin (x)",
        "size>6",
        "size<8",
        "env=prod,app!=b",
        "env = prod , app",
    ],
)
def test_matches_what_it_should(text: str) -> None:
    assert parse_selector(text)(A)


@pytest.mark.parametrize(
    "text",
    [
        "gone",
        "!app",
        "app=b",
        "app=",
        "app!=a",
        "app in (b,c)",
        "app in ()",
        "app notin (a)",
        "gone=x",
        "gone>1",
        "app>1",
        "size>7",
        "size<7",
        "env=prod,app=b",
    ],
)
def test_does_not_match_what_it_should_not(text: str) -> None:
    assert not parse_selector(text)(A)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("x.io/y in (z), !w", "!w,x.io/y in (z)"),
        ("b==2,a=1", "a=1,b==2"),
        ("a notin (z,b,z)", "a notin (b,z)"),
        ("a in (b,)", "a in (,b)"),
        ("a in (b,,c)", "a in (,b,c)"),
        ("a in (,b)", "a in (,b)"),
        ("in=in,notin", "in=in,notin"),
        ("a>1, b", "a>1,b"),
        ("a!=", "a!="),
    ],
)
def test_is_written_in_one_way(text: str, canonical: str) -> None:
    assert str(parse_selector(text)) == canonical


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a=b=c", "found '=', expected: ',' or 'end of string'"),
        ("app=a b", "found 'b', expected: ',' or 'end of string'"),
        ("app=a,", "found '', expected: identifier after ','"),
        ("a=b,,c=d", "found ',', expected: identifier after ','"),
        (",", "found ',', expected: !, identifier, or 'end of string'"),
        ("==", "found '==', expected: !, identifier, or 'end of string'"),
        ("app in", "unable to parse requirement: found '' expected: '('"),
        ("a in b", "unable to parse requirement: found 'b' expected: '('"),
        (
            "a b",
            "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt",
        ),
        ("!", "unable to parse requirement: found '', expected: identifier"),
        ("!!a", "unable to parse requirement: found '!', expected: identifier"),
        ("!a=b", "found '=', expected: ',' or 'end of string'"),
        ("a==(", "unable to parse requirement: found '(', expected: identifier"),
        ("a in (b", "unable to parse requirement: found '', expected: ',' or ')'"),
        ("a in (b,", "unable to parse requirement: found '', expected: ',', or identifier"),
        ("a in (=", "unable to parse requirement: found '=', expected: ',', ')' or identifier"),
        (
            "app>x",
            (
                'unable to parse requirement: values[0]: Invalid value: "x": '
                "for 'Gt', 'Lt' operators, the value must be an integer"
            ),
        ),
        (
            "-bad=z",
            'unable to parse requirement: <nil>: Invalid value: "-bad": name part ' + NAME_RULE,
        ),
        (
            "a='b'",
            f"unable to parse requirement: values[0][a]: Invalid value: \"'b'\": {VALUE_RULE}",
        ),
        (
            "model=meta/llama",
            (
                f'unable to parse requirement: values[0][model]: Invalid value: "meta/llama": '
                f"{VALUE_RULE}"
            ),
        ),
        (
            "/a=b",
            (
                'unable to parse requirement: <nil>: Invalid value: "/a": '
                "prefix part must be non-empty"
            ),
        ),
        (
            "a" * 64,
            (
                f'unable to parse requirement: <nil>: Invalid value: "{"a" * 64}": '
                "name part must be no more than 63 bytes"
            ),
        ),
        (
            f"a={'b' * 64}",
            (
                f'unable to parse requirement: values[0][a]: Invalid value: "{"b" * 64}": '
                "must be no more than 63 bytes"
            ),
        ),
    ],
)
def test_refuses_in_the_words_of_kubernetes(text: str, message: str) -> None:
    with pytest.raises(SelectorError) as refused:
        parse_selector(text)
    assert str(refused.value) == message


def test_two_bad_values_are_both_named() -> None:
    with pytest.raises(SelectorError, match=r'\[values\[0\]\[a\].*"-x".*, values\[1\]\[a\].*"-y"'):
        parse_selector("a in (-y,-x)")


def test_a_key_with_a_bad_or_a_second_prefix_is_refused() -> None:
    with pytest.raises(SelectorError, match="prefix part a lowercase RFC 1123 subdomain must"):
        parse_selector("UP/a")
    with pytest.raises(SelectorError, match="with an optional DNS subdomain prefix and '/'"):
        parse_selector("a/b/c")
    with pytest.raises(SelectorError, match="prefix part must be no more than 253 bytes"):
        parse_selector("a" * 254 + "/b")


def test_a_number_beyond_int64_is_none() -> None:
    with pytest.raises(SelectorError, match="must be an integer"):
        parse_selector(f"a>{2**63}")


@given(st.text(alphabet="ab-=!(),<> in", max_size=12))
def test_what_is_read_is_written_and_read_again_alike(text: str) -> None:
    try:
        selector = parse_selector(text)
    except SelectorError:
        return
    assert parse_selector(str(selector)) == selector


@given(
    st.dictionaries(st.sampled_from("abc"), st.sampled_from(["", "1", "x"])),
    st.sampled_from(["a=1", "a in (1,x)", "a", "a="]),
)
def test_the_negation_of_a_requirement_matches_the_rest(labels: dict[str, str], text: str) -> None:
    negation = {"a=1": "a!=1", "a in (1,x)": "a notin (1,x)", "a": "!a", "a=": "a!="}[text]
    assert parse_selector(text)(labels) != parse_selector(negation)(labels)


def test_no_requirement_matches_everything() -> None:
    assert parse_selector("") == Selector()
    assert Selector()({})
