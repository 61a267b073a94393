"""The scanner against ``prometheus_client`` on damaged pages.

WVA_FUZZ_PAGES sets how many, 10,000 by default, and WVA_FUZZ_SEED which ones:
``WVA_FUZZ_PAGES=200000 WVA_FUZZ_SEED=7 pytest tests/collect/test_exposition_fuzz.py``.
"""

from __future__ import annotations

import math
import os
import random
import re
from collections.abc import Callable
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from wva_adapter.collect.engines import vllm
from wva_adapter.collect.exposition import scan
from wva_adapter.errors import CollectError

PAGES = int(os.environ.get("WVA_FUZZ_PAGES", "10000"))
SEED = int(os.environ.get("WVA_FUZZ_SEED", "4"))
WHOLE = 100
"""Every so many pages a whole one is damaged; the others are excerpts, to be fast."""

DATA = Path(__file__).parent.parent / "data"
NAMES = sorted(vllm.WANTED.names)
MENTION = re.compile(rf"(?<![\w:])(?:{'|'.join(NAMES)})(?![\w:])", re.ASCII)
NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")

Sample = tuple[str, tuple[tuple[str, str], ...], str]


def oracle(lines: list[str]) -> list[Sample]:
    """Return the wanted samples that ``prometheus_client`` reads from these lines."""
    samples = []
    for family in text_string_to_metric_families("".join(lines)):
        for name, labels, value, *_ in family.samples:
            if name in vllm.WANTED.names:
                try:
                    number = float(value)
                except OverflowError:
                    number = math.inf if value > 0 else -math.inf
                samples.append((name, tuple(sorted(labels.items())), repr(number + 0.0)))
    return sorted(samples)


def expected(body: bytes) -> list[Sample] | None:
    """Return what the page says; ``None`` if it has to be refused.

    Comment lines are taken away first: they may rename a series, which the scanner does not do.
    Lines that the oracle cannot read are taken away too, unless a wanted name stands where their
    name should be.
    """
    last = body.rstrip(b"\n").rpartition(b"\n")[2] if body.strip() else b""
    if (
        not body.strip()
        or not body.endswith(b"\n")
        or (body[:-1].endswith(last) and re.match(rb"# HELP |[^{]*_bucket(\{|$)", last))
    ):
        return None
    readable = []
    for raw in body.split(b"\n"):
        try:
            line, unreadable = raw.decode() + "\n", False
        except UnicodeDecodeError:
            line, unreadable = raw.decode(errors="replace") + "\n", True
        text = line.strip()
        if text.startswith("#") or not text:
            continue
        if not unreadable:
            try:
                oracle([line])
            except (ValueError, IndexError, OverflowError):
                unreadable = True
        if not unreadable:
            readable.append(line)
            continue
        name = NAME.match(text)
        if name is None and MENTION.search(text):
            return None
        if name is not None and name[0] in vllm.WANTED.names:
            return None
    return oracle(readable)


def found(body: bytes) -> list[Sample] | None:
    try:
        page = scan(body, vllm.WANTED, "page")
    except CollectError:
        return None
    return sorted(
        (name, tuple(sorted(labels.items())), repr(value + 0.0))
        for series in page.series.values()
        for name, labels, value in series
    )


BYTES = [bytes([b]) for b in b' \t\n\r\x0b\x0c\x1c\x00"\\{}=,#_:.eE+-09aNnIif'] + [
    b"\xff",
    b"\xc2\x85",
    b"\xc2\xa0",
    b"\xe2\x80\xa8",
    b"\xd9\xa3",
    b"\\n",
    b'\\"',
    b"\\\\",
    b" # ",
    b"# EOF\n",
    b"__name__=",
    b"vllm:num_requests_waiting",
    b'{engine="0"}',
]
VALUES = [
    b"NaN", b"nan", b"+Inf", b"-inf", b"Infinity", b"1_0", b"0x1F", b"1e400", b"-0", b"1" * 400,
    b"3 1795490917000", b"3 # {trace=\"x\"} 1.0", b"", b"3,5", b"1e", b".5", b"5.", b"+5", b"--5",
]  # fmt: skip


def at(rng: random.Random, body: bytes) -> int:
    return rng.randrange(len(body) + 1)


def insert(rng: random.Random, body: bytes) -> bytes:
    i = at(rng, body)
    return body[:i] + rng.choice(BYTES) + body[i:]


def delete(rng: random.Random, body: bytes) -> bytes:
    i = at(rng, body)
    return body[:i] + body[i + rng.choice((1, 1, 1, 2, 30)) :]


def overwrite(rng: random.Random, body: bytes) -> bytes:
    i = at(rng, body)
    return body[:i] + rng.choice(BYTES) + body[i + 1 :]


def cut(rng: random.Random, body: bytes) -> bytes:
    i = at(rng, body)
    return body[: body.rfind(b"\n", 0, i) + 1] if rng.random() < 0.5 else body[:i]


def one_line(change: Callable[[random.Random, bytes], bytes]) -> Callable[..., bytes]:
    def mutate(rng: random.Random, body: bytes) -> bytes:
        lines = body.split(b"\n")
        i = rng.randrange(len(lines))
        lines[i] = change(rng, lines[i])
        return b"\n".join(lines)

    return mutate


def another_value(rng: random.Random, line: bytes) -> bytes:
    return line.rpartition(b" ")[0] + b" " + rng.choice(VALUES)


def another_blank(rng: random.Random, line: bytes) -> bytes:
    before, _, value = line.rpartition(b" ")
    return before + rng.choice((b"\t", b"  ", b"", b"\xc2\xa0", b"\x0b")) + value


def name_in_braces(rng: random.Random, line: bytes) -> bytes:
    name, _, rest = line.partition(b"{")
    return rng.choice((b'{"%b",%b', b'{__name__="%b",%b', b"{%b,%b")) % (name, rest)


def twice(rng: random.Random, line: bytes) -> bytes:
    return line + b"\n" + line


def indent(rng: random.Random, line: bytes) -> bytes:
    return rng.choice((b" ", b"\t", b"\r", b"\xc2\x85", b"#", b"# ", b"x")) + line


def trailing_comma(rng: random.Random, line: bytes) -> bytes:
    return line.replace(b"}", rng.choice((b",}", b",,}", b" }", b', a="b"}', b',engine="1"}')), 1)


def longer_name(rng: random.Random, line: bytes) -> bytes:
    return line.replace(b"{", rng.choice((b"_total{", b"_by_reason{", b" {", b":{", b"\xc3\xa9{")))


def windows_lines(rng: random.Random, body: bytes) -> bytes:
    return body.replace(b"\n", b"\r\n")


MUTATIONS = [
    insert, insert, insert, delete, delete, overwrite, overwrite, cut, windows_lines,
    *map(one_line, (another_value, another_value, another_blank, name_in_braces, twice, indent,
                    trailing_comma, longer_name)),
]  # fmt: skip


def damaged(rng: random.Random, index: int, pages: list[bytes]) -> bytes:
    """Return a real page, or a dozen lines of one and as many wanted ones, damaged 1 to 4 times."""
    body = rng.choice(pages)
    if index % WHOLE:
        lines = body.splitlines(keepends=True)
        wanted = [i for i, line in enumerate(lines) if MENTION.match(line.decode())]
        kept = {*rng.sample(range(len(lines)), min(8, len(lines)))}
        kept |= {*rng.sample(wanted, min(10, len(wanted)))}
        # Any other last line could be that of a page that was cut.
        body = b"".join(lines[i] for i in sorted(kept)) + b"process_open_fds 72.0\n"
    for _ in range(rng.randint(1, 4)):
        body = rng.choice(MUTATIONS)(rng, body)
    return body


def test_damaged_pages_read_as_prometheus_client_reads_them_or_are_refused() -> None:
    pages = [path.read_bytes() for path in sorted(DATA.glob("*.txt"))]
    rng = random.Random(SEED)
    refused = 0
    for index in range(PAGES):
        body = damaged(rng, index, pages)
        want = expected(body)
        assert found(body) == want, f"page {index}: {body!r}"
        refused += want is None
    # Both outcomes are really exercised.
    assert PAGES * 0.1 < refused < PAGES * 0.9
