"""A few numbers as a line, in SVG that stands inside a page. Ours.

svg = line_chart((31.0, 28.5, 27.9), label="PSNR by frame, dB")
"""

from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 640, 200
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 28


def line_chart(values: Sequence[float], label: str) -> str:
    """Finite values at 0, 1, 2, ... from left to right; its ends and its extremes are written at the axes."""
    low, high = min(values), max(values)
    spread = (high - low) or 1.0
    last = max(len(values) - 1, 1)

    def x(place: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * place / last

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / spread

    points = " ".join(f"{x(place):.1f},{y(value):.1f}" for place, value in enumerate(values))
    levels = "".join(
        f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.4g}</text>'
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
        for value in dict.fromkeys((high, low))
    )
    ends = "".join(
        f'<text x="{x(place):.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{place}</text>'
        for place, anchor in dict.fromkeys([(0, "start"), (len(values) - 1, "end")])
    )
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
        f'{levels}{ends}<polyline points="{points}"/></svg>'
    )


def svg_file(chart: str) -> str:
    """A chart as the text of a file of its own, which no page gives its colours."""
    style = (
        "<style>.chart{background:#fdfdfd}.chart polyline{fill:none;stroke:#2b6f8a;stroke-width:2}"
        ".chart line{stroke:#e1e5e9}.chart text{fill:#5b6570;font:13px sans-serif}</style>"
    )
    head, rest = chart.split(">", 1)
    return f'{head} xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}">{style}{rest}\n'
