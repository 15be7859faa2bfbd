"""A few numbers as a line, in SVG that stands inside a page. Ours.

svg = line_chart((31.0, 28.5, 27.9), label="PSNR by frame, dB")
file = svg_file((0.14, 0.12, 0.1), label="distance by step", ends=(2000, 6000))
"""

from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 640, 200
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 28
TITLE = 24  # above the chart in a file of its own


def line_chart(values: Sequence[float], label: str, ends: tuple[int, int] | None = None) -> str:
    """Finite values at even distances from left to right; their extremes are written at the axis, and below the first
    and the last value what they are of: `ends`, or 0 and the last one's place."""
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
    first_text, last_text = ends or (0, len(values) - 1)
    below = "".join(
        f'<text x="{x(place):.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{text}</text>'
        for place, anchor, text in [(0, "start", first_text), (len(values) - 1, "end", last_text)][: len(values)]
    )
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
        f'{levels}{below}<polyline points="{points}"/></svg>'
    )


def svg_file(values: Sequence[float], label: str, ends: tuple[int, int] | None = None) -> str:
    """A chart below its label as the text of a file of its own, which no page gives its colours."""
    style = (
        "<style>.chart{background:#fdfdfd}.chart polyline{fill:none;stroke:#2b6f8a;stroke-width:2}"
        ".chart line{stroke:#e1e5e9}.chart text{fill:#5b6570;font:13px sans-serif}</style>"
    )
    box = f'viewBox="0 {-TITLE} {WIDTH} {HEIGHT + TITLE}" width="{WIDTH}" height="{HEIGHT + TITLE}"'
    chart = line_chart(values, label, ends).replace(f'viewBox="0 0 {WIDTH} {HEIGHT}"', box, 1)
    head, rest = chart.split(">", 1)
    title = f'<text x="{LEFT}" y="0">{escape(label)}</text>'
    return f'{head} xmlns="http://www.w3.org/2000/svg">{style}{title}{rest}\n'
