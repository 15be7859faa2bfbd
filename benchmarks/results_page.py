"""python benchmarks/results_page.py [--stats FILE] [--flow FILE] [--videos DIR DIR]

Which numbers stand on the page of results? Those of the committed rows, and no others: writes the tables of
docs/results/README.md and of the shipped weights' card, between their markers, and the curves as SVG, from
benchmarks/results/ablation.jsonl, docs/results/motion.jsonl (a training's stats.jsonl; --stats FILE takes a new one)
and docs/results/flow.json (what scripts/train_flow.py wrote; --flow FILE likewise). With --videos, a folder of
continued videos and one of what happened, also docs/results/world.gif: twelve of them, each above the real one.
"""

import argparse
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from ablation_table import by_name, newest_rows, table

from vidm.atomic import atomic_write
from vidm.charts import line_chart, svg_file
from vidm.layouts import index_clips
from vidm.video_io import read_video, write_video

ROOT = Path(__file__).parent.parent
PAGE, CARD = ROOT / "docs" / "results", ROOT / "pretrained_models" / "world" / "README.md"
SHOWN = 12
HEADLINE = ("real", "still", "world")
SAMPLING = ("noise per frame", "psi", "DPM", "DDIM", "ancestral")


def flow_table(errors: Sequence[dict[str, Any]]) -> str:
    lines = ["| displacement | point | share of pixels | zero flow, px | SPyNet, px |", "|---|---|--:|--:|--:|"]
    for row in errors:
        cells = f"{row['share']:.2%} | {row['zero_flow']:.2f} | {row['spynet']:.2f}"
        lines.append(f"| {row['displacement']} | {row['point']} | {cells} |")
    return "\n".join(lines)


def by_frame(rows: Sequence[dict[str, Any]], column: str) -> list[float]:
    """Means over the seeds that have the column, by frame index; frame 0 is given."""
    return [mean(values) for values in zip(*(row[column] for row in rows if column in row), strict=True)][1:]


def frames_table(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """PSNR, SSIM and the error of places by frame index."""
    groups, lines = by_name(rows), ["| | 1 | 5 | 10 | 15 |", "|---|--:|--:|--:|--:|"]
    columns = {"psnr_by_frame": "PSNR, dB", "ssim_by_frame": "SSIM", "centroid_error": "place, px"}
    columns["best_centroid_error"] = "place, best of 8, px"
    for column, label in columns.items():
        for name in names:
            if any(column in row for row in groups.get(name, [])):
                values = by_frame(groups[name], column)
                lines.append(f"| {label}: {name} | {' | '.join(f'{values[n - 1]:.3g}' for n in (1, 5, 10, 15))} |")
    return "\n".join(lines)


def parts_of(rows: Sequence[dict[str, Any]], errors: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The tables by the name of their marker."""
    names = list(by_name(rows))
    sampling = [name for name in names if name.startswith(SAMPLING)]
    short = [name for name in names if name not in (*HEADLINE, *sampling)]
    return {
        "headline": table(rows, [name for name in HEADLINE if name in names]),
        "strategies": table(rows, short) if short else "No row yet.",
        "sampling": table(rows, ["world", *sampling] if "world" in names else []),
        "frames": frames_table(rows, HEADLINE[1:]),
        "flow": flow_table(errors),
    }


def filled(page: str, parts: dict[str, str]) -> str:
    """The page with its tables between the markers <!-- NAME --> and <!-- /NAME -->."""
    for name, text in parts.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        page = pattern.sub(lambda found, text=text: f"{found[1]}{text}\n{found[2]}", page)  # type: ignore[misc]
    return page


def curves_of(rows: Sequence[dict[str, Any]], stats: Sequence[dict[str, Any]]) -> dict[str, str]:
    """SVG by the name of its file."""
    distances = [row["distance"] for row in stats if "distance" in row and row["step"] > 1000]
    charts = {"distance": line_chart(distances, "distance of held-out videos at 2,000, 3,000, ... steps")}
    world = by_name(rows).get("world", [])
    for column, label in (("psnr_by_frame", "PSNR by frame index, dB"), ("centroid_error", "error of places, px")):
        if world:
            charts[column] = line_chart(by_frame(world, column), f"{label}, from 1")
    return {f"{name}.svg": svg_file(chart) for name, chart in charts.items()}


def everything() -> dict[Path, str]:
    """The text of every file that follows from the rows."""
    errors = json.loads((PAGE / "flow.json").read_text())["errors"]
    stats = [json.loads(line) for line in (PAGE / "motion.jsonl").read_text().splitlines()]
    rows = newest_rows()
    parts = parts_of(rows, errors)
    pages = {path: filled(path.read_text(), parts) for path in (PAGE / "README.md", CARD)}
    return pages | {PAGE / name: svg for name, svg in curves_of(rows, stats).items()}


def write_gif(made: Path, real: Path) -> None:
    """Twelve videos in two lines of six, each above what really happened."""
    sides = [[read_video(path) for path in index_clips(folder).paths[:SHOWN]] for folder in (made, real)]
    columns = [np.concatenate(pair, axis=1) for pair in zip(*sides, strict=True)]
    half = SHOWN // 2
    mosaic = np.concatenate([np.concatenate(columns[i : i + half], axis=2) for i in (0, half)], axis=1)
    write_video(PAGE / "world.gif", mosaic.repeat(2, axis=1).repeat(2, axis=2), fps=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stats", type=Path, metavar="FILE", help="stats.jsonl of the motion generator's training")
    parser.add_argument("--flow", type=Path, metavar="FILE", help="the .json that scripts/train_flow.py wrote")
    parser.add_argument("--videos", nargs=2, type=Path, metavar="DIR", help="continued videos, and what happened")
    options = parser.parse_args()
    if options.videos:
        write_gif(*options.videos)
    for source, target in ((options.stats, "motion.jsonl"), (options.flow, "flow.json")):
        if source:
            shutil.copyfile(source, PAGE / target)
    for path, text in everything().items():
        with atomic_write(path) as temporary:
            temporary.write_text(text)
    print(f"{PAGE / 'README.md'} is of the rows in benchmarks/results/")


if __name__ == "__main__":
    main()
