"""Pictures drawn from runs: whole, and with the numbers that they were given."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from tests.figures import headline, paper
from tests.figures.svg import Bar, Figure, Line, Panel
from wva_adapter.sim.workers import Job, work

_SVG = "{http://www.w3.org/2000/svg}"


def texts(figure: Figure) -> list[str]:
    return [
        element.text or "" for element in ElementTree.fromstring(figure.svg()).iter(f"{_SVG}text")
    ]


def test_a_picture_is_xml_whatever_names_are_in_it() -> None:
    lines = [Line("<a> & b", [0, 1], [1, None], "#000000")]
    figure = Figure('a "b" <c>', [[Panel("p & q", lines=lines)]], [["<", ">"]], ["& so on"])
    assert {"<a> & b", 'a "b" <c>', "p & q", "<", "& so on"} <= set(texts(figure))


def test_axes_have_round_numbers_that_cover_what_is_drawn() -> None:
    figure = Figure("t", [[Panel("p", lines=[Line("", [0, 37], [0, 4.4], "#000000")])]])
    assert [t for t in texts(figure) if t.isdigit()] == [
        "0",
        "5",
        "10",
        "15",
        "20",
        "25",
        "30",
        "35",
        "0",
        "1",
        "2",
        "3",
        "4",
    ]


def test_a_bar_is_as_long_as_its_value() -> None:
    bars = [Bar("a", 2.0, "2 kWh", "#111111"), Bar("b", 1.0, "1 kWh", "#222222")]
    root = ElementTree.fromstring(Figure("t", [[Panel("p", bars=bars)]]).svg())
    widths = [float(r.attrib["width"]) for r in root.iter(f"{_SVG}rect")][1:]
    assert widths[0] == pytest.approx(2 * widths[1], abs=0.1)


def test_the_headline_is_the_mean_over_seeds_and_leaves_out_who_served_too_few() -> None:
    runs = [
        {
            "scenario": scenario,
            "policy": policy,
            "seed": seed,
            "in_slo_pct": share,
            "usd": 2.0 + seed,
        }
        for scenario in headline.SCENARIOS
        for policy in headline.POLICIES
        for seed, share in ((0, 99.0), (1, 98.0 if policy != "guard" else 1.0))
    ]
    of = headline.means(runs)
    assert headline.table(of).splitlines()[2].startswith("| **demand-frugal** | 98.5 / 2.5 |")
    shown = texts(headline.picture(of, "2 seeds"))
    assert shown.count("2.5 $, 98.5 %") == 4 * (len(headline.POLICIES) - 1)
    assert "guard" not in shown


def test_the_figures_of_the_paper_have_its_claims_and_both_rivals_beside_ours() -> None:
    of = {policy: work(Job("S1c", policy, 0)).outcome for policy in paper.POLICIES}
    runs = {
        (scenario, policy): [outcome]
        for scenario in paper.SCENARIOS
        for policy, outcome in of.items()
    }
    drawn = paper.figures(runs, 1)
    assert sorted(drawn) == ["fig2", "fig3", "fig4", "fig5", "fig6"]
    ours, theirs = of[paper.OURS], of[paper.THEIRS]
    gain = f"{100 * (ours.goodput_tokens_per_s / theirs.goodput_tokens_per_s - 1):+.0f} %"
    shown = texts(drawn["fig2"])
    assert any("+37 % effective throughput and 10x fewer failed requests" in t for t in shown)
    assert gain in shown
    assert {f"S1c {policy}" for policy in paper.POLICIES} <= set(shown)
