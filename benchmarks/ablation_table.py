"""The rows of bench_ablation.py as a table: the newest of each row and seed, mean and deviation over the seeds.

print(table(newest_rows()))
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

RESULTS = Path(__file__).parent / "results" / "ablation.jsonl"
HEADLINE_SEEDS = 3
# Frame 0 is given: means are over the others.
COLUMNS: dict[str, Callable[[Mapping[str, Any]], float | None]] = {
    "distance": lambda row: row["distance"],
    "kernel": lambda row: row["kernel"],
    "PSNR": lambda row: mean(row["psnr_by_frame"][1:]) if "psnr_by_frame" in row else None,
    "SSIM": lambda row: mean(row["ssim_by_frame"][1:]) if "ssim_by_frame" in row else None,
    "there": lambda row: row["still_there"],
    "colour": lambda row: row["colour_kept"],
    "outline": lambda row: row["shape_overlap"],
    "moves": lambda row: row["displacement"],
    "place": lambda row: mean(row["centroid_error"][1:]),
    "best of 8": lambda row: mean(row["best_centroid_error"][1:]) if "best_centroid_error" in row else None,
}


def newest_rows() -> list[dict[str, Any]]:
    """The last row of each name and seed, in the order in which names first came."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for row in map(json.loads, lines):
        found[row["row"], row["seed"]] = row
    return list(found.values())


def by_name(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["row"], []).append(row)
    return groups


def _number(value: float) -> str:
    """Three digits that count."""
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def _cell(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    deviation = f" ({_number(stdev(known))})" if len(known) > 1 else ""
    return _number(mean(known)) + deviation


def table(rows: Sequence[dict[str, Any]], names: Sequence[str] | None = None) -> str:
    """Markdown: a line a name, the mean over its seeds and, of several, the deviation in brackets."""
    groups = by_name(rows)
    lines = [f"| | {' | '.join(COLUMNS)} |", f"|---|{'--:|' * len(COLUMNS)}"]
    for name in groups if names is None else names:
        cells = [_cell([column(row) for row in groups[name]]) for column in COLUMNS.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)
