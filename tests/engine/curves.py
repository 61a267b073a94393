"""Curves over time as one SVG, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 900, 280, 40, 30
_COLOURS = ("#1f77b4", "#d95f02", "#2ca02c")


def drawn(times_s: Sequence[float], curves: Mapping[str, Sequence[float]]) -> str:
    """Return a picture of requests present over time.

    Args:
        times_s: Seconds, rising, at least two.
        curves: By name, one value at each of the times.
    """
    most = max(1.0, *(max(values) for values in curves.values()))
    wide, high = _WIDTH - _LEFT - 10, _HEIGHT - _BOTTOM - 20

    def x(at_s: float) -> float:
        return _LEFT + wide * (at_s - times_s[0]) / (times_s[-1] - times_s[0])

    def y(value: float) -> float:
        return 20 + high * (1 - value / most)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}">',
        "<style>text{font:12px sans-serif}</style>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
    ]
    for value in (0.0, most / 2, most):
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - 10}" y1="{y(value):.1f}" y2="{y(value):.1f}" '
            f'stroke="#ddd"/><text x="{_LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">'
            f"{value:.0f}</text>"
        )
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        at_s = times_s[0] + share * (times_s[-1] - times_s[0])
        parts.append(
            f'<text x="{x(at_s):.1f}" y="{_HEIGHT - 10}" text-anchor="middle">{at_s:.0f} s</text>'
        )
    for index, (name, values) in enumerate(curves.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        points = " ".join(f"{x(t):.1f},{y(v):.1f}" for t, v in zip(times_s, values, strict=True))
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
            f'<text x="{_LEFT + 10 + 110 * index}" y="14" fill="{colour}">{name}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])
