from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from wva_adapter.collect.engines import vllm
from wva_adapter.collect.exposition import Page, Series, Wanted, scan
from wva_adapter.errors import CollectError

DATA = Path(__file__).parent.parent / "data"
PAGES = sorted(DATA.glob("*.txt"))
QUEUE = Wanted(["vllm:queue", "vllm:usage"])


def read(text: str) -> Page:
    return scan(text.encode(), QUEUE, "pod-0")


def only(text: str) -> Series:
    """Return the one series of ``vllm:queue`` on the page."""
    (series,) = read(text).of("vllm:queue")
    return series


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_captured_page_reads_as_prometheus_client_reads_it(path: Path) -> None:
    body = path.read_bytes()
    expected = [
        (sample.name, sample.labels, sample.value)
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
        if sample.name in vllm.WANTED.names
    ]
    page = scan(body, vllm.WANTED, path.name)
    found = [tuple(series) for name in page.series for series in page.of(name)]
    assert sorted(found, key=repr) == sorted(expected, key=repr)
    assert found


def test_a_line_may_be_written_in_all_ways_that_the_format_allows() -> None:
    for line in (
        'vllm:queue{a="b"} 3',
        'vllm:queue{a="b"} 3.0',
        'vllm:queue{a="b"} 3e0',
        'vllm:queue {a="b"} 3',
        'vllm:queue{a="b",} 3',
        'vllm:queue{ a = "b" , } 3',
        'vllm:queue{a="b"}\t3',
        'vllm:queue{a="b"}  3  ',
        '  \tvllm:queue{a="b"} 3',
        'vllm:queue{a="b"} 3 1795490917000',
        'vllm:queue{a="b"} 3\r',
        '{"vllm:queue",a="b"} 3',
        '{__name__="vllm:queue",a="b"} 3',
    ):
        assert only(line + "\n") == ("vllm:queue", {"a": "b"}, 3.0), line


def test_a_line_without_labels_reads_with_none() -> None:
    assert only("vllm:queue 7\n") == ("vllm:queue", {}, 7.0)
    assert only("vllm:queue{} 7\n") == ("vllm:queue", {}, 7.0)


def test_values_that_are_no_count_are_kept_for_the_reader_to_judge() -> None:
    assert math.isnan(only("vllm:queue NaN\n").value)
    assert only("vllm:queue +Inf\n").value == math.inf
    assert only("vllm:queue -Inf\n").value == -math.inf
    assert only("vllm:queue 1" + "0" * 400 + "\n").value == math.inf
    assert only("vllm:queue  1" + "0" * 400 + "\n").value == math.inf
    assert only("vllm:queue 1e-400\n").value == 0.0


def test_a_label_value_may_hold_anything() -> None:
    for value in ("", " ", "}", "} 5", "{", ",", 'say "hi"', "a\\b", "a\nb", "é", "# HELP", "\r"):
        escaped = value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
        assert only(f'vllm:queue{{a="{escaped}",b="c"}} 1\n').labels == {"a": value, "b": "c"}


@given(
    st.dictionaries(st.from_regex(r"\A(?!__)[a-zA-Z_][a-zA-Z0-9_]{0,8}\Z"), st.text(), max_size=4)
)
def test_a_series_written_as_text_reads_back_as_itself(labels: dict[str, str]) -> None:
    # Lone surrogates are no text, so no engine can send them.
    labels = {k: v.encode(errors="ignore").decode() for k, v in labels.items()}
    series = Series("vllm:queue", labels, 2.0)
    assert only(f"{series} 2\n") == series


def test_names_are_matched_whole() -> None:
    page = read(
        "vllm:queue_by_reason 1\n"
        "vllm:queue:x 1\n"
        "xvllm:queue 1\n"
        "vllm:queu 1\n"
        "# HELP vllm:queue vllm:queue 5\n"
        "# vllm:queue 5\n"
        "\u0085# vllm:queue 5\n"
        'other{a="\\nvllm:queue 5"} 1\n'
        "vllm:usage 0.5\n"
    )
    assert page.series == {"vllm:usage": (Series("vllm:usage", {}, 0.5),)}


def test_what_a_type_line_says_changes_nothing() -> None:
    # A parser that believes it renames the series to vllm:queue_total.
    assert only("# TYPE vllm:queue counter\nvllm:queue 3\n").value == 3
    assert only("# TYPE vllm:queue histogram\nvllm:queue 3\n").value == 3
    assert only("# TYPE\n# TYPE vllm:queue\nvllm:queue 3\n").value == 3


def test_a_series_that_stands_there_twice_comes_twice() -> None:
    assert [s.value for s in read("vllm:queue 3\nvllm:queue 4\n").of("vllm:queue")] == [3, 4]


def test_an_openmetrics_end_and_exemplars_elsewhere_do_no_harm() -> None:
    text = 'vllm:lat_bucket{le="1"} 3 # {trace="x"} 0.7 1.5\nvllm:queue 3\n# EOF\n'
    assert only(text).value == 3


def test_broken_lines_of_other_metrics_cost_nothing() -> None:
    text = ' HELP vllm:queue Lost its sign.\n  # TYPE vllm:queue\nother{a="} oops\n\n%%%\nother{a="b"\n{"other" 3\n\xff\xfe\n= 3\n'
    assert scan(text.encode("latin-1") + b"vllm:queue 3\n", QUEUE, "pod-0").of("vllm:queue")


@pytest.mark.parametrize(
    "line",
    [
        b"vllm:queue",
        b"vllm:queue ",
        b"vllm:queue three",
        b"vllm:queue 1_0",
        b"vllm:queue 0x10",
        b"vllm:queue 3 soon",
        b"vllm:queue 3 1" + b"0" * 400,
        b'vllm:queue{a="b" 3',
        b'vllm:queue{a="b} 3',
        b"vllm:queue{a=b} 3",
        b'vllm:queue{a="b",a="c"} 3',
        b'vllm:queue{a="b"}',
        b'vllm:queue{a="\xff"} 3',
        b'vllm:queue{"a"} 3',
        b"vllm:queue\xc2\xa03",
        b'{"vllm:queue" 3',
        b" vllm:queue three",
    ],
)
def test_a_broken_line_that_is_wanted_refuses_the_page(line: bytes) -> None:
    with pytest.raises(CollectError, match=r"^pod-0: broken line "):
        scan(b"vllm:usage 0.5\n" + line + b"\nvllm:usage 0.6\n", QUEUE, "pod-0")


@pytest.mark.parametrize(
    "odd", [b"vllm:queue\t" + b"9" * 20_000, (b"vllm:queue\t" + b" " * 15_000 + b"3\n") * 20]
)
def test_lines_too_long_for_any_engine_are_refused_before_they_are_read(odd: bytes) -> None:
    with pytest.raises(CollectError, match="a line too long to be one of an engine: 'vllm:queue"):
        scan(odd + b"\n", QUEUE, "pod-0")


def test_a_page_without_an_end_is_no_page() -> None:
    for body in (b"", b"\n\n", b"  "):
        with pytest.raises(CollectError, match="empty page"):
            scan(body, QUEUE, "pod-0")
    with pytest.raises(CollectError, match="cut in the middle: its last line has no end"):
        read("vllm:usage 0.5\nvllm:queue 1")  # of 12, perhaps
    with pytest.raises(CollectError, match="cut in the middle: its last line announces a metric"):
        read("vllm:queue 3\n# HELP vllm:usage Share of blocks.\n")
    with pytest.raises(CollectError, match="cut in the middle: its last histogram has no count"):
        read('vllm:queue 3\nvllm:lat_bucket{le="1"} 3\n')


def test_a_cut_inside_a_line_is_always_seen() -> None:
    body = (DATA / "vllm-0.32.0-running.txt").read_bytes()
    for size in range(1, len(body), 97):
        if not body[:size].endswith(b"\n"):
            with pytest.raises(CollectError, match="cut in the middle"):
                scan(body[:size], vllm.WANTED, "pod-0")
