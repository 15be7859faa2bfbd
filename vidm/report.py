"""Write videos and numbers as one HTML page that embeds every video and loads no other file. Ours.

The videos play in sync, side by side, so that a generated one can be compared with the real one.

    write_report("report.html", Report(
        title="Colliding solids", intro="Sixteen generated frames.", columns=["first frame", "generated", "real"],
        rows=[VideoRow("video 0", ["first/0.png", "generated/0.mp4", "real/0.mp4"])],
        distance_name=result.name, distances=[Distance("generated and real", result.value)]))

report.html is the template with the page's style and script. The functions below fill it, one section at a time.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from string import Template

import numpy as np

from vidm.files import atomic_write
from vidm.floor import FLOORS
from vidm.video_io import probe, read_image

TEMPLATE = Path(__file__).with_name("report.html")
MEDIA_TYPES = {
    ".mp4": "video/mp4",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
}
# Videos narrower than this (px) are enlarged without smoothing, which would hide the pixels that the model generated.
PIXEL_ART_WIDTH = 128
# With more columns the videos would be too small on a phone, so the table scrolls sideways instead.
FITTING_COLUMNS = 4
# The heading of the distances of each kind.
TITLES = {"Frechet": "Distances", "kernel": "Kernel distances"}

# The line chart, in SVG units: its size, its margins, and the space for a title in a standalone file.
WIDTH, HEIGHT = 640, 200
LEFT, RIGHT, TOP, BOTTOM = 80, 12, 12, 28
TITLE_HEIGHT = 24


@dataclass(frozen=True)
class VideoRow:
    """A caption and one mp4, png, jpg or gif file for each column of the report."""

    caption: str
    media: Sequence[str | Path]


@dataclass(frozen=True)
class Distance:
    """A distance and the two sets it compares.

    `floor` marks the distance between two sets of real videos. `note` says how to read the number, in a few words.
    """

    label: str
    value: float
    floor: bool = False
    note: str = ""


@dataclass(frozen=True)
class Report:
    """The content of a page. All text is plain text; a section without content is left out.

    title, intro: the heading and the text below it.
    columns, rows: the table of videos; each row has one file per column.
    distance_name, distances: the name of the distances (that of their detector), and the distances.
    notes: paragraphs below the distances, or, without any, above the settings.
    settings: name-value pairs that say how the videos were made.
    curves: a sequence of finite numbers for each label; at least one number each.
    x_ranges: the x values of the first and the last number of a curve, by label; by default their indices.
    axes: the names of the x and the y axis of a curve, by label.
    kernel_distances: kernel distances in the features of the distances.
    """

    title: str
    intro: str
    columns: Sequence[str] = ()
    rows: Sequence[VideoRow] = ()
    distance_name: str = ""
    distances: Sequence[Distance] = ()
    notes: Sequence[str] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)
    x_ranges: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    axes: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    kernel_distances: Sequence[Distance] = ()


def data_url(path: Path) -> str:
    """Return a file of a type in MEDIA_TYPES as a URL that contains it, so that a page needs no other file. Ours."""
    return f"data:{MEDIA_TYPES[path.suffix.lower()]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _media(path: Path, label: str) -> str:
    suffix = path.suffix.lower()
    if suffix not in MEDIA_TYPES:
        raise ValueError(f"{path}: a report shows only {', '.join(MEDIA_TYPES)}")
    if suffix == ".mp4":
        _, height, width, _ = probe(path)
    else:
        height, width, _ = read_image(path).shape
    attributes = f'width="{width}" height="{height}" src="{data_url(path)}"'
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


def decimal(value: float, digits: int) -> str:
    """Format `value` with that many significant digits and no exponent: 0.4669, 598.4. Ours."""
    return np.format_float_positional(value, precision=digits, fractional=False, trim="-")


def _sentence(text: str) -> str:
    """A line of a terminal as a sentence of a page."""
    return escape(text[:1].upper() + text[1:] + "." * (not text.endswith(".")))


def _distance_section(kind: str, name: str, distances: Sequence[Distance], notes: Sequence[str]) -> str:
    largest = max(0.0, *(distance.value for distance in distances)) or 1.0
    head = '<th scope="col">between</th><th scope="col" class="number">distance</th>'
    with_notes = any(distance.note for distance in distances)
    if with_notes:
        head += '<th scope="col" class="number">compared with the floor</th>'
    if any(distance.floor for distance in distances):
        notes = [FLOORS[kind], *notes]
    lines = []
    for distance in distances:
        cells = f'<th scope="row">{escape(distance.label)}</th><td class="number">{decimal(distance.value, 4)}</td>'
        if with_notes:
            cells += f'<td class="number">{escape(distance.note)}</td>'
        bar = f'<div style="--share: {max(100 * distance.value / largest, 0):.2f}%"></div>'
        style = ' class="floor"' if distance.floor else ""
        lines.append(f'<tr{style}>{cells}<td class="bar" aria-hidden="true">{bar}</td></tr>')
    return (
        f'<section aria-labelledby="{kind}">\n<h2 id="{kind}">{TITLES[kind]}</h2>\n'
        f"<p>{_sentence(name)} Lower is closer.</p>\n"
        f'<div class="scroll" tabindex="0" role="region" aria-labelledby="{kind}">\n<table>\n'
        f'<thead><tr>{head}<td class="bar"></td></tr></thead>\n<tbody>\n'
        + "\n".join(lines)
        + "\n</tbody>\n</table>\n</div>\n"
        + "".join(f'<p class="muted">{_sentence(note)}</p>\n' for note in notes)
        + "</section>"
    )


def _line_and_axes(
    values: Sequence[float],
    x_range: tuple[int, int] | None,
    axes: tuple[str, str] = ("", ""),
    faint: Sequence[float] = (),
) -> str:
    low, high = min([*values, *faint]), max([*values, *faint])
    spread = (high - low) or 1.0
    last = max(len(values) - 1, 1)

    def x(i: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * i / last

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / spread

    def line(values: Sequence[float], attributes: str = "") -> str:
        points = " ".join(f"{x(i):.1f},{y(value):.1f}" for i, value in enumerate(values))
        return f'<polyline{attributes} points="{points}"/>'

    levels = "".join(
        f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.4g}</text>'
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
        for value in dict.fromkeys((high, low))
    )
    first_text, last_text = x_range or (0, len(values) - 1)
    x_labels = [(0, "start", first_text), (len(values) - 1, "end", last_text)][: len(values)]
    below = "".join(
        f'<text x="{x(i):.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{text}</text>' for i, anchor, text in x_labels
    )
    middle_x, middle_y = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    places = f'x="{middle_x:g}" y="{HEIGHT - 8}"', f'x="16" y="{middle_y:g}" transform="rotate(-90 16 {middle_y:g})"'
    names = "".join(
        f'<text {place} text-anchor="middle">{escape(name)}</text>'
        for place, name in zip(places, axes, strict=True)
        if name
    )
    raw = line(faint, ' class="faint"') if faint else ""
    return f"{levels}{below}{names}{raw}{line(values)}"


def line_chart(
    values: Sequence[float],
    label: str,
    x_range: tuple[int, int] | None = None,
    axes: tuple[str, str] = ("", ""),
    faint: Sequence[float] = (),
) -> str:
    """Return a line chart as an SVG element for a page, whose style sheet sets its colours.

    values: at least one finite number, at equal distances from left to right. The y axis shows the smallest and the
    largest. label: a description of the values for screen readers. x_range: the x values of the first and the last
    point; by default their indices. axes: the names of the x and the y axis. faint: as many other values, for a faint
    line behind. Ours.
    """
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
        f"{_line_and_axes(values, x_range, axes, faint)}</svg>"
    )


def svg_file(values: Sequence[float], label: str, x_range: tuple[int, int] | None = None) -> str:
    """Return the text of a standalone SVG file: the same chart with colours, and with the label as its title. Ours."""
    height = HEIGHT + TITLE_HEIGHT
    return (
        f'<svg class="chart" viewBox="0 {-TITLE_HEIGHT} {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(label)}" xmlns="http://www.w3.org/2000/svg">'
        "<style>.chart{background:#fdfdfd}.chart polyline{fill:none;stroke:#2b6f8a;stroke-width:2}"
        ".chart line{stroke:#e1e5e9}.chart text{fill:#5b6570;font:13px sans-serif}</style>"
        f'<text x="{LEFT}" y="0">{escape(label)}</text>{_line_and_axes(values, x_range)}</svg>\n'
    )


def _curve_section(report: Report) -> str:
    charts = "".join(
        f"<p>{escape(label)}</p>\n"
        f"{line_chart(values, label, report.x_ranges.get(label), report.axes.get(label, ('', '')))}\n"
        for label, values in report.curves.items()
    )
    return f'<section aria-labelledby="curves">\n<h2 id="curves">Over time</h2>\n{charts}</section>'


def _settings_section(notes: Sequence[str], settings: Mapping[str, object]) -> str:
    paragraphs = "".join(f"<p>{_sentence(note)}</p>\n" for note in notes)
    items = "".join(f"<dt>{escape(key)}</dt><dd>{escape(str(value))}</dd>\n" for key, value in settings.items())
    return (
        '<section aria-labelledby="settings">\n<h2 id="settings">How it was made</h2>\n'
        f"{paragraphs}<dl>\n{items}</dl>\n</section>"
    )


def write_report(path: str | Path, report: Report) -> None:
    """Write a report as one HTML file. If anything fails, no file is written and an existing one stays unchanged.

    Raises FileNotFoundError or VideoError for a video or image that cannot be read, and ValueError for a file of
    another type or a row without exactly one file per column. Ours.
    """
    sections = []
    if report.distances:
        sections.append(_distance_section("Frechet", report.distance_name, report.distances, report.notes))
    if report.kernel_distances:
        name = "squared maximum mean discrepancy in the same features"
        sections.append(_distance_section("kernel", name, report.kernel_distances, ()))
    if report.curves:
        sections.append(_curve_section(report))
    if report.rows:
        sections.append(_video_section(report.columns, report.rows))
    notes = () if report.distances else report.notes
    if notes or report.settings:
        sections.append(_settings_section(notes, report.settings))
    page = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(report.title), intro=escape(report.intro), sections="\n".join(sections)
    )
    with atomic_write(path) as temporary:
        temporary.write_text(page, "utf-8", "backslashreplace")  # names of files may not be UTF-8
