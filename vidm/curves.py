"""The numbers of a training run as a page of charts, for which neither TensorBoard nor a network is needed. Ours.

write_curves("checkpoints/curves.html", "checkpoints", [b'{"step": 100, "loss": 0.5}', b'{"step": 200, "loss": 0.4}'])
"""

import json
import math
from collections.abc import Iterable
from html import escape
from pathlib import Path
from string import Template

import numpy as np

from vidm.files import atomic_write
from vidm.report import TEMPLATE, line_chart

# A chart has at most this many points, each the mean of neighbouring rows.
POINTS = 200
INTRO = (
    "Numbers of stats.jsonl by step. Of many rows, the line is a running mean over a tenth of the steps, and the "
    "numbers are faint; a heading has the last number itself."
)
# The line in a chart is a running mean over this part of the points, except for what is set and not measured.
SMOOTHED = 0.1
EXACT = ("lr", "loss_scale")
# What a name does not say.
MEANINGS = {"distance": "Frechet distance to held-out videos, which only compares steps of one run"}


def _points(steps: list[int], values: list[float]) -> list[float]:
    """Values at equally spaced steps, from the first to the last one: means over rows, lines where there are none."""
    count = min(len(steps), POINTS)
    edges = np.linspace(steps[0], steps[-1], count + 1)
    place = np.clip(np.searchsorted(edges, steps, side="right") - 1, 0, count - 1)
    rows = np.bincount(place, minlength=count)
    filled = rows > 0
    means = np.bincount(place, values, count)[filled] / rows[filled]
    return np.interp(np.arange(count), np.flatnonzero(filled), means).tolist()


def _running_mean(values: list[float]) -> list[float]:
    """Means over SMOOTHED of the values around each one; the values themselves if there are few.

    The first means are of fewer values, as many on both sides: a loss falls steeply there.
    """
    most = int(SMOOTHED * len(values)) // 2
    reaches = (min(i, most) for i in range(len(values)))
    return [float(np.mean(values[i - reach : i + reach + 1])) for i, reach in enumerate(reaches)]


def write_curves(path: str | Path, title: str, rows: Iterable[bytes]) -> None:
    """Write a page with a chart for each number of JSON rows with a "step", in the order of the steps.

    Of many rows, the line is a running mean and the numbers themselves are faint. What is not a finite number is left
    out.
    """
    series: dict[str, tuple[list[int], list[float]]] = {}
    for row in map(json.loads, rows):
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float) and math.isfinite(value):
                steps, values = series.setdefault(name, ([], []))
                steps.append(row["step"])
                values.append(value)
    charts = []
    for name, (steps, values) in series.items():
        meaning = f" ({MEANINGS[name]})" if name in MEANINGS else ""
        label = f"{name}{meaning}: {values[-1]:.4g} at step {steps[-1]}"
        points = _points(steps, values)
        line = points if name in EXACT else _running_mean(points)
        faint = points if line != points else ()
        chart = line_chart(line, label, (steps[0], steps[-1]), ("step", name), faint)
        charts.append(f"<section>\n<h2>{escape(label)}</h2>\n{chart}\n</section>")
    page = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(title), intro=INTRO, sections="\n".join(charts)
    )
    with atomic_write(path) as temporary:
        temporary.write_text(page, "utf-8", "backslashreplace")  # names of folders may not be UTF-8
