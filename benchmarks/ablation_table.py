"""Tables of the rows of benchmarks with seeds. They use the newest row of each name and seed."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

RESULTS = Path(__file__).parent / "results"


def _mean_after_first(column: str) -> Callable[[Mapping[str, Any]], float | None]:
    """The mean over all frames except frame 0, which is given."""
    return lambda row: mean(row[column][1:]) if column in row else None


def _value(column: str) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda row: row.get(column)


# A cell without a value is empty; a column without any value is omitted.
COLUMNS = {
    "Frechet distance": _value("distance"),
    "kernel distance": _value("kernel"),
    "FVD": _value("fvd"),
    "PSNR": _mean_after_first("psnr_by_frame"),
    "SSIM": _mean_after_first("ssim_by_frame"),
    "found": _value("still_there"),
    "colour kept": _value("colour_kept"),
    "outline IoU": _value("shape_overlap"),
    "speed, px": _value("mean_displacement"),
    "motion distance, px": _value("displacement"),
    "position error, px": _mean_after_first("centroid_error"),
    "mean of 8, px": _mean_after_first("one_of_8_error"),
    "best of 8, px": _mean_after_first("best_of_8_error"),
}


def newest_rows(benchmark: str = "ablation") -> list[dict[str, Any]]:
    """The newest row of each name and seed in results/BENCHMARK.jsonl, in the order in which they first appear."""
    path = RESULTS / f"{benchmark}.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for row in map(json.loads, lines):
        found[row["row"], row["seed"]] = row
    return list(found.values())


def by_name(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows grouped by name."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["row"], []).append(row)
    return groups


def _number(value: float) -> str:
    """A number with three significant digits."""
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def _cell(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    deviation = f" ({_number(stdev(known))})" if len(known) > 1 else ""
    return _number(mean(known)) + deviation


def table(rows: Sequence[dict[str, Any]], names: Sequence[str] | None = None) -> str:
    """A Markdown table with one line per name: the mean over its seeds and, if there are several, the deviation."""
    groups = by_name(rows)
    names = list(groups) if names is None else names
    cells = {
        label: [_cell([column(row) for row in groups[name]]) for name in names] for label, column in COLUMNS.items()
    }
    cells = {label: column for label, column in cells.items() if any(column)}
    lines = [f"| | {' | '.join(cells)} |", f"|---|{'--:|' * len(cells)}"]
    return "\n".join(lines + [f"| {' | '.join(line)} |" for line in zip(names, *cells.values(), strict=True)])
