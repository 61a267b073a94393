"""The text format in which engines write metrics, read for the series that are wanted."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby, takewhile
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from wva_adapter.errors import CollectError

_ODD_LINE_BYTES = 16 * 2**10
_ODD_PAGE_BYTES = 256 * 2**10
"""How much of a page may be written in other ways than engines write: reading it is slow."""
_PLAIN_LABELS_BYTES = 4 * 2**10
"""Longer ones count as odd, so that what is remembered of labels stays small."""

_VALUE = rb"[-+]?[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?|NaN|[-+]Inf"
# Reserved names (__name__ among them) and other escapes than these three are left to the library.
_LABEL = r'((?!__)[a-zA-Z_][a-zA-Z0-9_]*)="([^"\\\n]*(?:\\[\\n"][^"\\\n]*)*)"'
_LABELS = re.compile(f"{_LABEL}(?:,{_LABEL})*")
_EACH_LABEL = re.compile(_LABEL)
_ESCAPE = re.compile(r'\\([\\n"])')
_ESCAPED = {"\\": "\\", "n": "\n", '"': '"'}

# A line that starts with neither a name nor a comment: indented, or its name stands in the braces.
_ODD_START = re.compile(rb"\n([^a-zA-Z_:#\n][^\n]*)")
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")


class Series(NamedTuple):
    """One line of a page; the value may be NaN or infinite."""

    name: str
    labels: Mapping[str, str]
    value: float

    def __str__(self) -> str:
        if not self.labels:
            return self.name
        return f"{self.name}{{{','.join(f'{k}={_quote(v)}' for k, v in self.labels.items())}}}"


def _quote(text: str) -> str:
    escaped = text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return f'"{escaped}"'


@dataclass(frozen=True, slots=True)
class Page:
    """The wanted series of one page.

    Attributes:
        source: Who wrote it: a URL or a file's name.
        series: By name; a name without series is missing.
    """

    source: str
    series: Mapping[str, tuple[Series, ...]]

    def of(self, name: str) -> tuple[Series, ...]:
        """Return the series of this name; empty where the page has none."""
        return self.series.get(name, ())


@dataclass(frozen=True)
class Wanted:
    """The names of the series that a reader wants, all with one prefix.

    A name is that of a line, so a histogram's sum and count are two names, and its buckets are
    not read when only these two are wanted.
    """

    names: frozenset[str]
    line: re.Pattern[bytes] = field(init=False, repr=False)
    mention: re.Pattern[bytes] = field(init=False, repr=False)

    def __init__(self, names: Iterable[str]) -> None:
        object.__setattr__(self, "names", frozenset(names))
        name = rb"%b(?![a-zA-Z0-9_:])" % _one_of(self.names).encode()
        line = rb"\n(%b)(?:(?:\{([^\n]*)\})? (%b)(?=\n)|([^\n]*))" % (name, _VALUE)
        object.__setattr__(self, "line", re.compile(line))
        object.__setattr__(self, "mention", re.compile(rb"(?<![a-zA-Z0-9_:])" + name))


def _one_of(names: Iterable[str]) -> str:
    """Return a pattern for these names that tries what they share only once.

    The prefix of all comes first, so that a search can leap from one place with it to the next.
    """
    ordered = sorted(names)
    pairs = zip(ordered[0], ordered[-1], strict=False)
    shared = "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    rest = [name.removeprefix(shared) for name in ordered]
    if len(rest) == 1:
        return re.escape(shared)
    branches = [_one_of(group) for start, group in groupby(rest, lambda n: n[:1]) if start]
    return f"{re.escape(shared)}(?:{'|'.join(branches)}){'?' if '' in rest else ''}"


def scan(body: bytes, wanted: Wanted, source: str) -> Page:
    """Return the wanted series of a page, exactly as ``prometheus_client`` reads them.

    A line counts if its name is wanted. It must be one that ``prometheus_client`` accepts, or the
    page is refused: a broken number is no number, and half a page is not a smaller load. Lines
    with other names are not looked at, so nothing that is wrong with them does harm. Comment
    lines are not looked at either: what ``# TYPE`` says of a series changes neither its name nor
    its value. Series that stand on the page twice come twice.

    A page that was cut shows it here only where a line, a histogram or a comment on what follows
    is left unfinished. A cut between two families looks like a shorter page; it is for the HTTP
    client to see that less came than was announced.

    Raises:
        CollectError: The page is empty or cut, or a line that is wanted is broken.
    """
    _refuse_cut(body, source)
    text = b"\n" + body
    found: dict[str, list[Series]] = {}
    odd_bytes = 0
    for name, labels, value, rest in wanted.line.findall(text):
        if value:
            parsed = _parse_labels(labels)
            if parsed is not None:
                key = name.decode()
                found.setdefault(key, []).append(Series(key, parsed, float(value)))
                continue
            rest = b"{%b} %b" % (labels, value)
        odd_bytes += len(rest)
        _add_odd(name + rest, odd_bytes, found, wanted, source)
    for line in _ODD_START.findall(text):
        if wanted.mention.search(line) and _may_be_wanted(line, wanted):
            odd_bytes += len(line)
            _add_odd(line, odd_bytes, found, wanted, source)
    return Page(source, {name: tuple(series) for name, series in found.items()})


def _refuse_cut(body: bytes, source: str) -> None:
    if not body.strip():
        raise CollectError(source, "empty page")
    if not body.endswith(b"\n"):
        raise CollectError(source, "page cut in the middle: its last line has no end")
    last = body[body.rfind(b"\n", 0, -1) + 1 : -1]
    if last.startswith(b"# HELP "):
        raise CollectError(source, "page cut in the middle: its last line announces a metric")
    if last.partition(b"{")[0].endswith(b"_bucket"):
        raise CollectError(source, "page cut in the middle: its last histogram has no count")


@lru_cache(maxsize=4096)
def _parse_labels(text: bytes) -> Mapping[str, str] | None:
    """Return the labels between two braces; ``None`` unless they are plainly written.

    Remembered, since a page has the same labels on many lines and in every scrape.
    """
    if not text:
        return {}
    if len(text) > _PLAIN_LABELS_BYTES:
        return None
    try:
        written = text.decode()
    except UnicodeDecodeError:
        return None
    if not _LABELS.fullmatch(written):
        return None
    pairs = _EACH_LABEL.findall(written)
    labels = dict(pairs)
    if len(labels) < len(pairs):
        return None
    if "\\" in written:
        return {k: _ESCAPE.sub(lambda m: _ESCAPED[m[1]], v) for k, v in labels.items()}
    return labels


def _may_be_wanted(line: bytes, wanted: Wanted) -> bool:
    """Return whether a line with an odd start could be one of a wanted series."""
    text = line.decode(errors="replace").strip()
    name = _NAME.match(text)
    return not text.startswith("#") if name is None else name[0] in wanted.names


def _add_odd(
    line: bytes, odd_bytes: int, found: dict[str, list[Series]], wanted: Wanted, source: str
) -> None:
    """Add the series of a line that is written as no engine writes: with tabs, with a timestamp.

    ``prometheus_client`` reads it, at a hundred times the cost, so how much of it is bounded.
    """
    if len(line) > _ODD_LINE_BYTES or odd_bytes > _ODD_PAGE_BYTES:
        raise CollectError(source, f"a line too long to be one of an engine: {_excerpt(line)}")
    try:
        families = list(text_string_to_metric_families(line.decode()))
    # The library indexes and divides what it did not check: all three say that it cannot read it.
    except (ValueError, IndexError, OverflowError) as error:
        raise CollectError(source, f"broken line {_excerpt(line)}") from error
    for sample in (sample for family in families for sample in family.samples):
        if sample.name in wanted.names:
            try:
                value = float(sample.value)
            except OverflowError:  # a whole number beyond what a float holds
                value = math.inf if sample.value > 0 else -math.inf
            found.setdefault(sample.name, []).append(Series(sample.name, sample.labels, value))


def _excerpt(line: bytes) -> str:
    text = line[:120].decode(errors="backslashreplace").strip()
    return repr(text + ("…" if len(line) > 120 else ""))
