"""Videos and numbers -> one HTML page that opens anywhere: every video inside it, no network, no other file.

Videos play in step, side by side, so that a generated one can be held against the real one. Ours.

    write_report("report.html", title="Colliding solids", intro="Sixteen frames from one.",
                 columns=["first frame", "generated", "real"],
                 rows=[VideoRow("video 0", ["first/0.png", "generated/0.mp4", "real/0.mp4"])],
                 distance_name=result.name, distances=[Distance("generated and real", result.value)])

A few numbers as a line, in SVG that stands inside a page. Ours.

svg = line_chart((31.0, 28.5, 27.9), label="PSNR by frame, dB")
file = svg_file((0.14, 0.12, 0.1), label="distance by step", ends=(2000, 6000))
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

import numpy as np

from vidm.files import atomic_write
from vidm.video_io import probe, read_image

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


MEDIA_TYPES = {
    ".mp4": "video/mp4",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
}
# Below this width (px) a video is shown as the squares it is made of: smoothing would hide what the model drew.
PIXEL_ART_WIDTH = 128
# With more columns than this the videos would be too small on a phone, so they scroll sideways instead.
FITTING_COLUMNS = 4
PAGE = Path(__file__).with_name("report.html")


@dataclass(frozen=True)
class VideoRow:
    """A caption and one mp4, png, jpg or gif for each column of the report."""

    caption: str
    media: Sequence[str | Path]


@dataclass(frozen=True)
class Distance:
    """A distance and what it is between; `floor` marks the one between real and other real videos."""

    label: str
    value: float
    floor: bool = False


def _media(path: Path, label: str) -> str:
    suffix = path.suffix.lower()
    if suffix not in MEDIA_TYPES:
        raise ValueError(f"{path}: a report shows {', '.join(MEDIA_TYPES)}")
    if suffix == ".mp4":
        _, height, width, _ = probe(path)
    else:
        height, width, _ = read_image(path).shape
    source = f"data:{MEDIA_TYPES[suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"
    attributes = f'width="{width}" height="{height}" src="{source}"'
    if width < PIXEL_ART_WIDTH:
        attributes += ' class="pixels"'
    if suffix == ".mp4":
        return f'<video muted playsinline preload="auto" aria-label="{escape(label)}" {attributes}></video>'
    return f'<img alt="{escape(label)}" {attributes}>'


def _video_section(columns: Sequence[str], rows: Sequence[VideoRow]) -> str:
    headings = "".join(f'<span role="columnheader">{escape(column)}</span>' for column in columns)
    lines = []
    for row in rows:
        if len(row.media) != len(columns):
            raise ValueError(f"row {row.caption!r} has {len(row.media)} videos for {len(columns)} columns")
        cells = "".join(
            f'<span role="cell">{_media(Path(path), f"{column}: {row.caption}")}</span>'
            for column, path in zip(columns, row.media, strict=True)
        )
        lines.append(f'<div role="row"><span role="rowheader">{escape(row.caption)}</span>{cells}</div>')
    layout = 'class="videos"' if len(columns) <= FITTING_COLUMNS else 'class="videos scroll" tabindex="0"'
    button = '<button type="button" aria-keyshortcuts="Space">Pause</button><kbd>space</kbd>'
    return (
        '<section aria-labelledby="videos">\n<h2 id="videos">Videos</h2>\n'
        f'<div {layout} role="table" aria-labelledby="videos" style="--columns: {len(columns)}">\n'
        f'<div class="headings" role="row"><span class="corner" role="cell">{button}</span>{headings}</div>\n'
        + "\n".join(lines)
        + "\n</div>\n</section>"
    )


def _plain(value: float, digits: int) -> str:
    """Significant digits and no exponent: 0.4669, 598.4."""
    return np.format_float_positional(value, precision=digits, fractional=False, trim="-")


def _distance_section(name: str, distances: Sequence[Distance]) -> str:
    largest = max(distance.value for distance in distances) or 1.0
    floor = next((distance.value for distance in distances if distance.floor), None)
    head = '<th scope="col">between</th><th scope="col" class="number">distance</th>'
    note = ""
    if floor:
        head += '<th scope="col" class="number">times the floor</th>'
        note = (
            '<p class="quiet">The floor is the distance between two sets of real videos: a perfect model comes to it, '
            "and only chance goes below it.</p>\n"
        )
    lines = []
    for distance in distances:
        cells = f'<th scope="row">{escape(distance.label)}</th><td class="number">{_plain(distance.value, 4)}</td>'
        if floor:
            cells += f'<td class="number">{_plain(distance.value / floor, 2)} &times;</td>'
        bar = f'<div style="--share: {100 * distance.value / largest:.2f}%"></div>'
        kind = ' class="floor"' if distance.floor else ""
        lines.append(f'<tr{kind}>{cells}<td class="bar" aria-hidden="true">{bar}</td></tr>')
    return (
        '<section aria-labelledby="distances">\n<h2 id="distances">Distances</h2>\n'
        f"<p>{escape(name[:1].upper() + name[1:])}. Lower is closer.</p>\n"
        '<div class="scroll" tabindex="0" role="region" aria-labelledby="distances">\n<table>\n'
        f'<thead><tr>{head}<td class="bar"></td></tr></thead>\n<tbody>\n'
        + "\n".join(lines)
        + f"\n</tbody>\n</table>\n</div>\n{note}</section>"
    )


def _curve_section(curves: Mapping[str, Sequence[float]]) -> str:
    charts = "".join(f"<p>{escape(label)}</p>\n{line_chart(values, label)}\n" for label, values in curves.items())
    return f'<section aria-labelledby="curves">\n<h2 id="curves">Over time</h2>\n{charts}</section>'


def _making_section(notes: Sequence[str], settings: Mapping[str, object]) -> str:
    paragraphs = "".join(f"<p>{escape(note)}</p>\n" for note in notes)
    items = "".join(f"<dt>{escape(key)}</dt><dd>{escape(str(value))}</dd>\n" for key, value in settings.items())
    return (
        '<section aria-labelledby="making">\n<h2 id="making">How it was made</h2>\n'
        f"{paragraphs}<dl>\n{items}</dl>\n</section>"
    )


def write_report(
    path: str | Path,
    title: str,
    intro: str,
    columns: Sequence[str] = (),
    rows: Sequence[VideoRow] = (),
    distance_name: str = "",
    distances: Sequence[Distance] = (),
    notes: Sequence[str] = (),
    settings: Mapping[str, object] | None = None,
    curves: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """Write the page: videos side by side and in step, distances above their floor, curves, and how it was made.

    One row's media stand under the columns' headings. distance_name says what the numbers are (a detector's name).
    `curves` are numbers by frame under what they are, finite and at least one.
    All text is plain and is escaped; a part that is not given is left out. The page is whole or not there at all.
    Raises VideoError or FileNotFoundError for a video or image that cannot be read, ValueError for one of another
    kind or a row that does not fill the columns. Ours.
    """
    sections = []
    if rows:
        sections.append(_video_section(columns, rows))
    if distances:
        sections.append(_distance_section(distance_name, distances))
    if curves:
        sections.append(_curve_section(curves))
    if notes or settings:
        sections.append(_making_section(notes, settings or {}))
    template = Template(PAGE.read_text(encoding="utf-8"))
    page = template.substitute(title=escape(title), intro=escape(intro), sections="\n".join(sections))
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
