"""Videos and numbers -> one HTML page that opens anywhere: every video inside it, no network, no other file.

Videos play in step, side by side, so that a generated one can be held against the real one. Ours.

    write_report("report.html", title="Colliding solids", intro="Sixteen frames from one.",
                 columns=["first frame", "generated", "real"],
                 rows=[VideoRow("video 0", ["first/0.png", "generated/0.mp4", "real/0.mp4"])],
                 distance_name=result.name, distances=[Distance("generated and real", result.value)])
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

import numpy as np

from vidm.atomic import atomic_write
from vidm.charts import line_chart
from vidm.video_io import probe, read_image

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

_PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; media-src data:; \
style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>$title</title>
<style>
$style</style>
</head>
<body>
<main>
<header>
<h1>$title</h1>
<p class="intro">$intro</p>
</header>
$sections
</main>
<script>
$script</script>
</body>
</html>
""")

_STYLE = """\
:root {
  --ground: #fdfdfd; --text: #1c2126; --quiet: #5b6570; --line: #e1e5e9; --well: #eef1f3; --accent: #2b6f8a;
  font: 17px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  color: var(--text); background: var(--ground); color-scheme: light dark;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #14171a; --text: #e7e9eb; --quiet: #9aa4ad; --line: #2c3238; --well: #1f2429; --accent: #7cbcd8;
  }
}
* { box-sizing: border-box; }
body { margin: 0; }
main { max-width: 68rem; margin: 0 auto; padding: clamp(1.5rem, 5vw, 4rem) clamp(1rem, 4vw, 2.5rem) 5rem; }
h1 { margin: 0; font-size: clamp(1.7rem, 4.5vw, 2.4rem); line-height: 1.15; text-wrap: balance; }
h2 { font-size: 1.15rem; margin: 0 0 0.75rem; }
p { max-width: 66ch; margin: 0 0 0.75rem; }
.intro { color: var(--quiet); font-size: 1.08rem; margin: 0.75rem 0 0; white-space: pre-line; }
section { margin-top: clamp(2.25rem, 6vw, 3.5rem); }
.quiet { color: var(--quiet); font-size: 0.92rem; }
.scroll { overflow-x: auto; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }

.videos [role=row] {
  display: grid; gap: 0.75rem; padding: 0.75rem 0; align-items: start;
  grid-template-columns: minmax(7rem, 11rem) repeat(var(--columns), minmax(0, 18rem));
}
.videos .headings { padding: 0.6rem 0; border-bottom: 1px solid var(--line); align-items: center; }
.videos:not(.scroll) .headings { position: sticky; top: 0; z-index: 1; background: var(--ground); }
.videos [role=columnheader] { font-weight: 600; font-size: 0.92rem; }
.videos [role=rowheader] { color: var(--quiet); font-size: 0.92rem; overflow-wrap: anywhere; }
.videos.scroll [role=row] { grid-template-columns: 8rem repeat(var(--columns), 9rem); width: max-content; }
video, img { display: block; width: 100%; height: auto; border-radius: 3px; background: var(--well); }
.pixels { image-rendering: pixelated; }
button {
  font: inherit; font-size: 0.88rem; color: var(--text); background: var(--well); border: 1px solid var(--line);
  border-radius: 6px; padding: 0.3rem 0.8rem; min-width: 5rem; cursor: pointer;
}
button:hover { border-color: var(--quiet); }
kbd { font: inherit; font-size: 0.8rem; color: var(--quiet); margin-left: 0.4rem; }
@media (hover: none) { kbd { display: none; } }

table { border-collapse: collapse; width: 100%; max-width: 46rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; font-weight: inherit; padding: 0.5rem 1.25rem 0.5rem 0; }
tbody > * > * { border-top: 1px solid var(--line); }
thead th { color: var(--quiet); font-size: 0.88rem; white-space: nowrap; }
tbody th { min-width: 9rem; }
.scroll + .quiet { margin-top: 0.75rem; }
.number { text-align: right; white-space: nowrap; }
.bar { width: 40%; min-width: 8rem; }
.bar div { height: 0.6rem; border-radius: 2px; background: var(--well); overflow: hidden; }
.bar div::before { content: ""; display: block; height: 100%; width: var(--share); background: var(--accent); }
.floor { color: var(--quiet); }
.floor .bar div::before { background: var(--quiet); }

.chart { display: block; width: 100%; max-width: 46rem; margin: 0 0 1rem; }
.chart polyline { fill: none; stroke: var(--accent); stroke-width: 2; }
.chart line { stroke: var(--line); }
.chart text { fill: var(--quiet); font-size: 13px; }

dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 0.3rem 1.5rem; margin: 1.25rem 0 0; }
dt { color: var(--quiet); }
dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
@media (max-width: 46rem) {
  .videos:not(.scroll) [role=row] { grid-template-columns: repeat(var(--columns), minmax(0, 1fr)); gap: 0.4rem; }
  .videos:not(.scroll) :is([role=rowheader], .corner) { grid-column: 1 / -1; }
  .videos [role=rowheader] { font-size: 0.85rem; }
}
@media (max-width: 30rem) {
  .bar { display: none; }
  thead th { white-space: normal; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: 0.6rem; }
}
"""

# Nothing loops by itself: when the last video has ended, all start together, so lengths may differ and none drifts.
_SCRIPT = """\
const videos = [...document.querySelectorAll("video")];
const button = document.querySelector("button");
const hold = 600;
let playing = !matchMedia("(prefers-reduced-motion: reduce)").matches;
let pending;
// A video that the browser refuses to play counts as done and does not hold up the others.
const start = video => video.play().catch(() => {});
const done = video => video.ended || video.paused || video.error;
function restart() {
  for (const video of videos) { video.currentTime = 0; start(video); }
}
function restartWhenAllEnded() {
  clearTimeout(pending);
  if (playing && videos.every(done)) pending = setTimeout(restart, hold);
}
function show() {
  button.textContent = playing ? "Pause" : "Play";
}
function toggle() {
  clearTimeout(pending);
  playing = !playing;
  const unfinished = videos.filter(video => !video.ended);
  if (!playing) videos.forEach(video => video.pause());
  else if (unfinished.length) unfinished.forEach(start);
  else restart();
  show();
}
if (videos.length) {
  videos.forEach(video => video.addEventListener("ended", restartWhenAllEnded));
  button.addEventListener("click", toggle);
  document.addEventListener("keydown", event => {
    if (event.key !== " " || event.repeat || event.target.closest("button")) return;
    event.preventDefault();
    toggle();
  });
  show();
  if (playing) restart();
}
"""


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
    page = _PAGE.substitute(
        title=escape(title), intro=escape(intro), style=_STYLE, script=_SCRIPT, sections="\n".join(sections)
    )
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
