"""What a list request may ask for in its query, and what is refused as other API servers refuse it.

References:
    ``k8s.io/apimachinery``: meta/v1 and meta/internalversion ListOptions, pkg/fields for the field
    selector, and Go's time.ParseDuration and strconv.ParseInt for the words of their errors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs

from wva_adapter.serve.selector import Selector, SelectorError, parse_selector
from wva_adapter.serve.wire import NO_WATCH, Refusal, bad_request, invalid

LONGEST_S: Final = 10.0
"""How long a read may take; a caller may ask for less."""

_INTEGER: Final = re.compile(r"[+-]?[0-9]+")
_UNIT_S: Final = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "μs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}
_PART: Final = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_DURATION: Final = re.compile(rf"([+-]?)(0|(?:{_PART.pattern})+)")
_MOST_S: Final = 2**63 / 1e9
_FALSE: Final = ("false", "0")
_KNOWN_FIELDS: Final = ("metadata.name", "metadata.namespace")
_TERM: Final = re.compile(r"((?:[^\\!=]|\\.|!(?!=))*?)(!=|==|=)(.*)", re.DOTALL)
_BREAK: Final = re.compile(r"(?<!\\)((?:\\\\)*),")


EVERYTHING: Final = Selector()


@dataclass(frozen=True, slots=True)
class ListOptions:
    """A list request as it was understood.

    Attributes:
        selector: Which items.
        timeout_s: How long the answer may take.
    """

    selector: Selector = EVERYTHING
    timeout_s: float = LONGEST_S


def read_options(query: str) -> ListOptions | Refusal:
    """Return what the query asks for; of a repeated parameter the first value counts.

    Paging and versions are read and change nothing: every list is whole and of now.
    """
    if not query:
        return ListOptions()
    first = {name: values[0] for name, values in parse_qs(query, keep_blank_values=True).items()}
    timeout_s = _timeout_s(first.get("timeout", ""))
    if isinstance(timeout_s, Refusal):
        return timeout_s
    for name in ("timeoutSeconds", "limit"):
        if (problem := _integer_problem(first.get(name, "0"))) is not None:
            return bad_request(problem)
    try:
        selector = parse_selector(first.get("labelSelector", ""))
    except SelectorError as error:
        return bad_request(str(error))
    if (problem := _field_problem(first.get("fieldSelector", ""))) is not None:
        return bad_request(problem)
    if first.get("watch", "false") not in _FALSE:
        return NO_WATCH
    if causes := _version_problems(first):
        return invalid("ListOptions", "meta.k8s.io", causes)
    return ListOptions(selector, timeout_s)


def _timeout_s(text: str) -> float | Refusal:
    found = _DURATION.fullmatch(text)
    seconds = 0.0
    if found is not None:
        seconds = sum(float(number) * _UNIT_S[unit] for number, unit in _PART.findall(text))
    if text and (found is None or seconds >= _MOST_S):
        return bad_request(
            f'invalid timeout specified in the request URL - time: invalid duration "{text}"'
        )
    negative = found is not None and found[1] == "-"
    return LONGEST_S if negative or seconds == 0 else min(seconds, LONGEST_S)


def _integer_problem(text: str) -> str | None:
    if not _INTEGER.fullmatch(text):
        return f'strconv.ParseInt: parsing "{text}": invalid syntax'
    # A number of over 20 digits is not even counted: Python refuses to read very long ones.
    digits = text.lstrip("+-0")
    if len(digits) > 19 or not -(2**63) <= int(text) < 2**63:
        return f'strconv.ParseInt: parsing "{text}": value out of range'
    return None


def _field_problem(selector: str) -> str | None:
    """Return what is wrong with a field selector; a good one selects nothing away."""
    terms = sorted(_BREAK.sub("\\1\0", selector).split("\0"))
    for term in terms:
        if not term:
            continue
        parts = _TERM.fullmatch(term)
        if parts is None:
            return f"invalid selector: '{selector}'; can't understand '{term}'"
        field, _, value = parts.groups()
        if (problem := _escape_problem(value)) is not None:
            return f"invalid field selector: {problem}"
        if field not in _KNOWN_FIELDS:
            known = ", ".join(f'"{name}"' for name in _KNOWN_FIELDS)
            return f'"{field}" is not a known field selector: only {known}'
    return None


def _escape_problem(value: str) -> str | None:
    at = 0
    while at < len(value):
        sign = value[at]
        if sign == "\\":
            escaped = value[at + 1 : at + 2]
            if escaped not in ("\\", ",", "="):
                return f"invalid escape sequence: {value[at : at + 2]}"
            at += 1
        elif sign in ",=":
            return f"unescaped character in value: {ord(sign)}"
        at += 1
    return None


def _version_problems(first: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Return what is wrong with the versions asked for: field, reason and sentence of each."""
    field, forbidden = "resourceVersionMatch", "FieldValueForbidden"
    match, version = first.get(field, ""), first.get("resourceVersion", "")
    problems = []
    if match:
        if not version:
            why = f"Forbidden: {field} is forbidden unless resourceVersion is provided"
            problems.append((field, forbidden, why))
        if first.get("continue"):
            why = f"Forbidden: {field} is forbidden when continue is provided"
            problems.append((field, forbidden, why))
        if match not in ("Exact", "NotOlderThan"):
            why = f'Unsupported value: "{match}": supported values: "Exact", "NotOlderThan", ""'
            problems.append((field, "FieldValueNotSupported", why))
        if match == "Exact" and version == "0":
            why = f'Forbidden: {field} "exact" is forbidden for resourceVersion "0"'
            problems.append((field, forbidden, why))
    if "sendInitialEvents" in first:
        why = "Forbidden: sendInitialEvents is forbidden for list"
        problems.append(("sendInitialEvents", forbidden, why))
    return problems
