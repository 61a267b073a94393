"""Charts as SVG: lines and steps over time, bars, a table of numbers, and words below."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH = 960
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_INK, _QUIET, _LINE = "#1d2430", "#5d6879", "#d9dee7"
_FONT = 'font-family="system-ui, sans-serif"'
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 30, 40


@dataclass(frozen=True, slots=True)
class Line:
    """A series over x; a value of ``None`` interrupts it."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float | None]
    color: str
    step: bool = False
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar with its name and what is written on it."""

    label: str
    value: float
    text: str
    color: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart; it has lines or bars."""

    title: str
    x_title: str = ""
    y_title: str = ""
    lines: Sequence[Line] = ()
    bars: Sequence[Bar] = ()
    height: int = 230


@dataclass(frozen=True, slots=True)
class Figure:
    """Panels in rows, a table, and sentences.

    Attributes:
        rows: Panels that stand side by side, row by row.
        table: Rows of cells, the first the head.
        words: Sentences below, each of at most two lines.
    """

    title: str
    rows: Sequence[Sequence[Panel]]
    table: Sequence[Sequence[str]] = ()
    words: Sequence[str] = field(default_factory=tuple)

    def svg(self) -> str:
        """Return the picture."""
        parts: list[str] = []
        y = 34.0
        parts.append(_text(16, 26, self.title, size=17, weight="600"))
        for row in self.rows:
            width = (WIDTH - 16) / len(row)
            for index, panel in enumerate(row):
                parts.append(_panel(panel, 8 + index * width, y, width))
            y += max(panel.height for panel in row) + 14
        y += 6
        if self.table:
            columns = len(self.table[0])
            first = 250.0
            step = (WIDTH - 32 - first) / max(1, columns - 1)
            for number, cells in enumerate(self.table):
                y += 19
                for column, cell in enumerate(cells):
                    x, anchor = (
                        (16.0, "start") if not column else (16 + first + step * column, "end")
                    )
                    weight = "600" if not number else "400"
                    parts.append(_text(x, y, cell, size=13, anchor=anchor, weight=weight))
                parts.append(
                    f'<line x1="16" x2="{WIDTH - 16}" y1="{y + 5:.1f}" y2="{y + 5:.1f}" '
                    f'stroke="{_LINE}"/>'
                )
            y += 12
        for words in self.words:
            for line in _wrapped(words, 140):
                y += 18
                parts.append(_text(16, y, line, size=13, color=_QUIET))
            y += 4
        height = y + 14
        drawn = "".join(parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" '
            f'width="{WIDTH}" height="{height:.0f}" role="img" aria-label="{escape(self.title)}">'
            f'<rect width="{WIDTH}" height="{height:.0f}" fill="#ffffff"/>{drawn}</svg>\n'
        )


def _wrapped(words: str, most: int) -> list[str]:
    lines = [""]
    for word in words.split():
        if lines[-1] and len(lines[-1]) + len(word) >= most:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def _text(
    x: float,
    y: float,
    text: str,
    *,
    size: int = 12,
    anchor: str = "start",
    weight: str = "400",
    color: str = _INK,
    more: str = "",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" '
        f'font-weight="{weight}" fill="{color}" {_FONT} {more}>{escape(text)}</text>'
    )


def _nice(span: float) -> float:
    """Return a step of 1, 2 or 5 times a power of ten that cuts a span into four to ten."""
    if span <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    return max(power * factor for factor in (1, 2, 5) if power * factor <= span / 4)


def _panel(panel: Panel, x0: float, y0: float, width: float) -> str:
    left, right = x0 + _LEFT, x0 + width - _RIGHT
    labelled = [line for line in panel.lines if line.label]
    top, bottom = y0 + _TOP + (14 if labelled else 0), y0 + panel.height - _BOTTOM
    parts = [_text(left, y0 + 16, panel.title, size=13, weight="600")]
    if panel.bars:
        parts += _bars(panel, left, right, top, bottom)
        return "".join(parts)
    xs = [x for line in panel.lines for x in line.xs]
    ys = [y for line in panel.lines for y in line.ys if y is not None]
    x_high, y_high = max(xs), 1.06 * max(ys) or 1.0

    def px(x: float) -> float:
        return left + x / x_high * (right - left)

    def py(y: float) -> float:
        return bottom - y / y_high * (bottom - top)

    for high, is_x in ((x_high, True), (y_high, False)):
        step, tick = _nice(high), 0.0
        while tick <= high:
            if is_x:
                parts.append(_text(px(tick), bottom + 15, f"{tick:g}", size=11, anchor="middle"))
            else:
                y = py(tick)
                parts.append(
                    f'<line x1="{left:.1f}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}" '
                    f'stroke="{_LINE}"/>'
                )
                parts.append(_text(left - 6, y + 4, f"{tick:g}", size=11, anchor="end"))
            tick += step
    parts.append(
        _text((left + right) / 2, bottom + 31, panel.x_title, anchor="middle", color=_QUIET)
    )
    middle = (top + bottom) / 2
    turned = f'transform="rotate(-90 {x0 + 12:.1f} {middle:.1f})"'
    parts.append(_text(x0 + 12, middle, panel.y_title, anchor="middle", color=_QUIET, more=turned))
    for line in panel.lines:
        parts.append(_path(line, px, py))
    x = left
    for line in labelled:
        y = y0 + 30
        parts.append(
            f'<line x1="{x:.1f}" x2="{x + 18:.1f}" y1="{y:.1f}" y2="{y:.1f}" '
            f'stroke="{line.color}" stroke-width="2.5"{_dash(line)}/>'
        )
        parts.append(_text(x + 23, y + 4, line.label, size=11))
        x += 40 + 6.2 * len(line.label)
    return "".join(parts)


def _path(line: Line, px: Callable[[float], float], py: Callable[[float], float]) -> str:
    steps: list[str] = []
    pen_up, last = True, 0.0
    for x, y in zip(line.xs, line.ys, strict=True):
        if y is None:
            pen_up = True
            continue
        at_x, at_y = px(x), py(y)
        if pen_up:
            steps.append(f"M{at_x:.1f} {at_y:.1f}")
        elif line.step:
            steps.append(f"L{at_x:.1f} {last:.1f}L{at_x:.1f} {at_y:.1f}")
        else:
            steps.append(f"L{at_x:.1f} {at_y:.1f}")
        pen_up, last = False, at_y
    drawn = "".join(steps)
    color = f'fill="none" stroke="{line.color}" stroke-width="1.8"'
    return f'<path d="{drawn}" {color}{_dash(line)}/>'


def _dash(line: Line) -> str:
    return ' stroke-dasharray="4 3"' if line.dashed else ""


def _bars(panel: Panel, left: float, right: float, top: float, bottom: float) -> list[str]:
    most = max(bar.value for bar in panel.bars) or 1.0
    height = (bottom - top + 20) / len(panel.bars)
    names = 150.0
    parts = []
    for index, bar in enumerate(panel.bars):
        y = top + index * height
        length = (right - left - names - 105) * bar.value / most
        parts.append(
            f'<rect x="{left + names:.1f}" y="{y + 3:.1f}" width="{max(1.0, length):.1f}" '
            f'height="{height - 6:.1f}" fill="{bar.color}"/>'
        )
        middle = y + height / 2 + 4
        parts.append(_text(left + names - 8, middle, bar.label, anchor="end"))
        parts.append(_text(left + names + length + 6, middle, bar.text))
    return parts
