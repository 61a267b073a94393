"""Objects are written byte for byte as a Go server writes them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.serve.fixture import AT_S, an_item
from wva_adapter.serve.wire import (
    ExternalMetricValueList,
    Refusal,
    encode,
    quantity,
    timestamp,
    unavailable,
    value_list,
)


@pytest.mark.parametrize(
    ("milli", "text"),
    [
        (0, "0"),
        (1, "1m"),
        (999, "999m"),
        (1000, "1"),
        (1500, "1500m"),
        (-1500, "-1500m"),
        (20_999, "20999m"),
        (12_000, "12"),
        (1_000_000, "1k"),
        (1_500_000, "1500"),
        (12_000_000, "12k"),
        (1_234_567, "1234567m"),
        (1_000_000_000, "1M"),
        # An HPA would read a larger one as a negative number.
        (10**30, "9223372036854775807m"),
    ],
)
def test_quantities_are_canonical(milli: int, text: str) -> None:
    assert quantity(milli) == text


@given(st.integers(min_value=-(2**63) + 1, max_value=2**63 - 1))
def test_a_quantity_says_exactly_the_number_with_the_largest_suffix(milli: int) -> None:
    text = quantity(milli)
    exponents = {"m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
    exponent = exponents.get(text[-1], 0)
    mantissa = int(text.rstrip("mkMGTPE"))
    assert mantissa * 10 ** (exponent + 3) == milli
    assert mantissa % 1000 != 0 or milli == 0


def test_times_are_whole_seconds_in_utc() -> None:
    assert timestamp(AT_S + 0.999) == "2025-01-02T03:04:05Z"


def test_json_is_escaped_as_go_escapes_it() -> None:
    assert encode({"a": '<&>\u2028\u2029é"\\\n'}) == (
        b'{"a":"\\u003c\\u0026\\u003e\\u2028\\u2029\xc3\xa9\\"\\\\\\n"}\n'
    )


@given(st.dictionaries(st.text(), st.text()))
def test_escaping_does_not_change_what_is_said(document: dict[str, str]) -> None:
    def sayable(text: str) -> bool:
        return not any("\ud800" <= c <= "\udfff" for c in text)

    document = {k: v for k, v in document.items() if sayable(k) and sayable(v)}
    assert json.loads(encode(document)) == document
    assert json.loads(encode(document, pretty=True)) == document


def test_a_list_has_its_fields_in_order_and_its_labels_sorted() -> None:
    body = encode(value_list([an_item("a", milli=1500, env="prod", Zone="x")]))
    assert body == (
        b'{"kind":"ExternalMetricValueList","apiVersion":"external.metrics.k8s.io/v1beta1",'
        b'"metadata":{},"items":[{"metricName":"m1","metricLabels":{"Zone":"x","app":"a",'
        b'"env":"prod"},"timestamp":"2025-01-02T03:04:05Z","value":"1500m"}]}\n'
    )
    ExternalMetricValueList.model_validate_json(body)  # the documented shape is the served one


def test_a_status_leaves_out_what_kubernetes_has_no_word_for() -> None:
    assert list(Refusal(500, "plain").document()) == [
        "kind",
        "apiVersion",
        "metadata",
        "status",
        "message",
        "code",
    ]
    assert unavailable("no plan yet").document()["reason"] == "ServiceUnavailable"
