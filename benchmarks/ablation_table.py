"""Tables of the rows of benchmarks with seeds. They use the newest row of each name and seed."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

RESULTS = Path(__file__).parent / "results"
# A column of a table: its value in a row, if the row has one.
Column = Callable[[Mapping[str, Any]], float | None]


def _mean_after_first(column: str) -> Column:
    """The mean over all frames except frame 0, which is given."""
    return lambda row: mean(row[column][1:]) if column in row else None


def _value(column: str) -> Column:
    return lambda row: row.get(column)


# A cell without a value is empty; a column without any value is omitted.
COLUMNS = {
    "Frechet distance": _value("distance"),
    "kernel distance": _value("kernel"),
    "Frechet, 32 x 32": _value("distance_at_32"),
    "kernel, 32 x 32": _value("kernel_at_32"),
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


# The columns of bench_peers.py: what a method costs, and its unconditional videos.
PEERS_COLUMNS = {
    "core-minutes": _value("core_minutes"),
    "parameters, M": lambda row: row["parameters"] / 1e6 if "parameters" in row else None,
    "steps": _value("steps"),
    "s per video": _value("seconds"),
    "peak memory, GiB": lambda row: row["peak_mib"] / 1024 if "peak_mib" in row else None,
    "Frechet distance": _value("drawn_distance"),
    "kernel distance": _value("drawn_kernel"),
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
    """A count as it is, other numbers with three significant digits."""
    if isinstance(value, int):
        return str(value)
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def _cell(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    deviation = f" ({_number(stdev(known))})" if len(known) > 1 else ""
    return _number(mean(known)) + deviation


def table(
    rows: Sequence[dict[str, Any]], names: Sequence[str] | None = None, columns: Mapping[str, Column] = COLUMNS
) -> str:
    """A Markdown table with one line per name: the mean over its seeds and, if there are several, the deviation."""
    groups = by_name(rows)
    names = list(groups) if names is None else names
    cells = {
        label: [_cell([column(row) for row in groups[name]]) for name in names] for label, column in columns.items()
    }
    cells = {label: column for label, column in cells.items() if any(column)}
    lines = [f"| | {' | '.join(cells)} |", f"|---|{'--:|' * len(cells)}"]
    return "\n".join(lines + [f"| {' | '.join(line)} |" for line in zip(names, *cells.values(), strict=True)])


def differences_table(rows: Sequence[dict[str, Any]], control: str, names: Sequence[str]) -> str:
    """A Markdown table of the differences to the row `control`: means over seeds and deviations.

    Differences are between runs of the same seed, which have the same first frames. `*` marks a mean of more than
    three deviations.
    """
    groups = by_name(rows)
    cells = {
        label: [_difference(column, groups[name], groups[control]) for name in names]
        for label, column in COLUMNS.items()
        if None not in map(column, groups[control])
    }
    lines = [f"| compared with {control} | {' | '.join(cells)} |", f"|---|{'--:|' * len(cells)}"]
    return "\n".join(lines + [f"| {' | '.join(line)} |" for line in zip(names, *cells.values(), strict=True)])


def _difference(column: Column, rows: Sequence[Mapping[str, Any]], control: Sequence[Mapping[str, Any]]) -> str:
    """The mean of the differences between rows of the same seed, and their deviation."""
    value, base = ({row["seed"]: column(row) or 0.0 for row in side} for side in (rows, control))
    differences = [value[seed] - base[seed] for seed in base]
    sign = "+" if mean(differences) >= 0 else ""
    return f"{sign}{_cell(differences)}{' *' if abs(mean(differences)) > 3 * stdev(differences) else ''}"
