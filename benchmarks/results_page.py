"""Which numbers does the page of results show?

    python benchmarks/results_page.py [--stats FILE] [--flow FILE] [--videos GENERATED REAL] [--long FOLDER]
                                      [--peers FOLDER ...]

It shows only the numbers of committed rows. This script writes the tables of docs/results/README.md, of peers.md beside
it and of the model card pretrained_models/world/README.md between their markers, and the curves as SVG. It reads the
rows from benchmarks/results/ablation.jsonl, content.jsonl, drift.jsonl and peers.jsonl, the training curve from
docs/results/motion.jsonl (--stats FILE replaces it with the stats.jsonl of another run) and the flow errors from
docs/results/flow.json (--flow FILE replaces it with another output of scripts/train_flow.py). With --videos GENERATED
REAL, two folders of videos, it also writes docs/results/world.gif, which shows twelve generated videos, each above the
real one; with --long FOLDER, long.gif, which shows eight videos of that folder; with --peers FOLDER ..., the film strip
peers.png, which shows every third frame of three videos of each folder.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import bench_ablation
import bench_content
import bench_drift
import bench_peers
import numpy as np
from ablation_table import PEERS_COLUMNS, by_name, differences_table, newest_rows, table
from PIL import Image

from vidm.files import atomic_write
from vidm.layouts import index_clips
from vidm.report import svg_file
from vidm.runtime import exit_on_user_error
from vidm.video_io import read_video, write_video

ROOT = Path(__file__).parent.parent
PAGE, CARD = ROOT / "docs" / "results", ROOT / "pretrained_models" / "world" / "README.md"
STATS, FLOW = PAGE / "motion.jsonl", PAGE / "flow.json"
SHOWN, LONG_SHOWN, PEERS_SHOWN = 12, 8, 3
SHIPPED = ("world", "world, 4 steps", "noise per frame")
HEADLINE = ("real", "still", *SHIPPED, "drawn")
CONTROL = "control"
STRATEGIES = tuple(name for name, row in bench_ablation.ROWS.items() if row.training)
# The name and seed of every row of a benchmark.
WANTED = {
    "ablation": [(name, seed) for name, row in bench_ablation.ROWS.items() for seed in range(row.seeds)],
    "content": bench_content.RUNS,
    "drift": [(name, 0) for name in bench_drift.ROWS],
    "peers": [(name, 0) for name in (*bench_peers.BASELINES, *bench_peers.ROWS)],
}
DRIFT_FRAMES, DRIFT_SHOWN = (15, 31, 47, 63), "anchor every 15"


def flow_table(errors: Sequence[dict[str, Any]]) -> str:
    lines = ["| displacement | point | share of pixels | zero flow, px | SPyNet, px |", "|---|---|--:|--:|--:|"]
    for row in errors:
        cells = f"{row['share']:.2%} | {row['zero_flow']:.2f} | {row['spynet']:.2f}"
        lines.append(f"| {row['displacement']} | {row['point']} | {cells} |")
    return "\n".join(lines)


def by_frame(rows: Sequence[dict[str, Any]], column: str) -> list[float]:
    """Means over the seeds that have the column, by frame index; without frame 0, which is given."""
    return [mean(values) for values in zip(*(row[column] for row in rows if column in row), strict=True)][1:]


def frames_table(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """A table of PSNR, SSIM and position errors by frame index."""
    groups, lines = by_name(rows), ["| | 1 | 5 | 10 | 15 |", "|---|--:|--:|--:|--:|"]
    columns = {"psnr_by_frame": "PSNR, dB", "ssim_by_frame": "SSIM", "centroid_error": "position error, px"}
    columns |= {"one_of_8_error": "position error, mean of 8, px", "best_of_8_error": "position error, best of 8, px"}
    for column, label in columns.items():
        for name in names:
            if any(column in row for row in groups.get(name, [])):
                values = by_frame(groups[name], column)
                lines.append(f"| {label}: {name} | {' | '.join(f'{values[n - 1]:.3g}' for n in (1, 5, 10, 15))} |")
    return "\n".join(lines)


def drift_table(rows: Sequence[dict[str, Any]]) -> str:
    """The shares of solids found and of colours kept in long videos, by frame."""
    lines = [f"| | {' | '.join(f'frame {n}' for n in DRIFT_FRAMES)} |", f"|---|{'--:|' * len(DRIFT_FRAMES)}"]
    for column, label in (("found", "found"), ("colour_kept", "colour kept")):
        for row in rows:
            values = [row[column][row["frames"].index(n)] for n in DRIFT_FRAMES]
            lines.append(f"| {label}: {row['row']} | {' | '.join(f'{value:.2f}' for value in values)} |")
    return "\n".join(lines)


def again(rows: Sequence[dict[str, Any]]) -> str:
    """The result of the commands in the model card, which measure the first of the three sets of first frames."""
    (row,) = [row for row in rows if (row["row"], row["seed"]) == ("world, 4 steps", 0)]
    values = f"a Frechet distance of {row['distance']:.3f} and a kernel distance of {row['kernel']:.5f}"
    return f"The last command prints {values}."


def parts_of(
    rows: Sequence[dict[str, Any]], content: Sequence[dict[str, Any]], errors: Sequence[dict[str, Any]]
) -> dict[Path, dict[str, str]]:
    """The tables of each page by marker."""
    others = [row for row in rows if row["row"] not in HEADLINE]
    # Rows with one seed use the first frames of seed 0.
    first = [{**row, "row": f"{row['row']}, seed 0"} for row in rows if row["row"] in SHIPPED and row["seed"] == 0]
    headline = table(rows, HEADLINE)
    page = {
        "headline": headline,
        "strategies": table(rows, (CONTROL, *STRATEGIES)),
        "differences": differences_table(rows, CONTROL, STRATEGIES),
        "sampling": table(first + [row for row in others if row["training"] is None]),
        "content": table(content),
        "frames": frames_table(rows, ("still", "world", "noise per frame")),
        "flow": flow_table(errors),
        "drift": drift_table(newest_rows("drift")),
    }
    peers = newest_rows("peers")
    drawn, continued = ([row for row in peers if column in row] for column in ("drawn_distance", "distance"))
    beside = {"peers": table(drawn, columns=PEERS_COLUMNS), "continued": table(continued)}
    return {PAGE / "README.md": page, PAGE / "peers.md": beside, CARD: {"headline": headline, "again": again(rows)}}


def filled(path: Path, parts: dict[str, str]) -> str:
    """The text of a page with new tables between the markers <!-- NAME --> and <!-- /NAME -->."""
    page = path.read_text()
    for name, text in parts.items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        if page.count(start) != 1 or end not in page.split(start)[1]:
            raise ValueError(f"{path}: {start.strip()} and {end} must each appear once, in this order")
        before, after = page.split(start)
        page = before + start + text + "\n" + end + after.split(end, 1)[1]
    return page


def curves_of(rows: Sequence[dict[str, Any]], stats: Sequence[dict[str, Any]]) -> dict[str, str]:
    """SVG texts by file name."""
    measured = [row for row in stats if "distance" in row]
    steps = measured[0]["step"], measured[-1]["step"]
    label = "Frechet distance of held-out videos by training steps"
    charts = {"distance.svg": svg_file([row["distance"] for row in measured], label, steps)}
    (drift,) = [row for row in newest_rows("drift") if row["row"] == DRIFT_SHOWN]
    label = f"Share of the solids that keep their colour, by frame ({DRIFT_SHOWN})"
    charts["drift.svg"] = svg_file(drift["colour_kept"], label, (drift["frames"][0], drift["frames"][-1]))
    world = by_name(rows)["world"]
    for column, label in (("psnr_by_frame", "PSNR, dB"), ("centroid_error", "position error, px")):
        values = by_frame(world, column)
        charts[f"{column}.svg"] = svg_file(values, f"{label}, by frame", (1, len(values)))
    return charts


def parsed(path: Path) -> Any:
    """The content of a .json file, or a list with the content of each line of a .jsonl file."""
    try:
        text = path.read_text()
        return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def check_rows() -> None:
    """Raise ValueError if a benchmark lacks a row: a mean of fewer seeds would look like any other."""
    for benchmark, wanted in WANTED.items():
        found = {(row["row"], row["seed"]) for row in newest_rows(benchmark)}
        for name, seed in wanted:
            if (name, seed) not in found:
                raise ValueError(
                    f"benchmarks/results/{benchmark}.jsonl has no row {name!r} of seed {seed}: "
                    f"run `python benchmarks/bench_{benchmark}.py`, which adds what is missing"
                )


def everything(stats_path: Path = STATS, flow_path: Path = FLOW) -> dict[Path, str]:
    """The text of every generated file, including the copies of the training statistics and flow errors."""
    check_rows()
    rows, stats, errors = newest_rows(), parsed(stats_path), parsed(flow_path)["errors"]
    parts = parts_of(rows, newest_rows("content"), errors)
    pages = {path: filled(path, tables) for path, tables in parts.items()}
    curves = {PAGE / name: svg for name, svg in curves_of(rows, stats).items()}
    return {STATS: stats_path.read_text(), FLOW: flow_path.read_text(), **pages, **curves}


def shown_videos(folder: Path, number: int) -> list[np.ndarray]:
    """The first `number` videos of a folder."""
    paths = index_clips(folder).paths[:number]
    if len(paths) < number:
        raise ValueError(f"{folder} has {len(paths)} videos; {number} are needed")
    return [read_video(path) for path in paths]


def write_mosaic(path: Path, videos: Sequence[np.ndarray]) -> None:
    """Write videos of equal size in two lines, at twice their size."""
    half = len(videos) // 2
    mosaic = np.concatenate([np.concatenate(videos[i : i + half], axis=2) for i in (0, half)], axis=1)
    write_video(path, mosaic.repeat(2, axis=1).repeat(2, axis=2), fps=8)


def write_strips(path: Path, folders: Sequence[Path]) -> None:
    """Write every third frame of the first videos of each folder as lines of pictures, with a gap between folders."""
    blocks = []
    for folder in folders:
        lines = [np.concatenate(list(video[::3]), axis=1) for video in shown_videos(folder, PEERS_SHOWN)]
        blocks.append(np.concatenate(lines).repeat(2, axis=0).repeat(2, axis=1))
    strips = np.concatenate([np.pad(block, ((0, 12), (0, 0), (0, 0)), constant_values=255) for block in blocks])
    with atomic_write(path) as temporary:
        Image.fromarray(strips[:-12]).save(temporary, format="png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stats", type=Path, default=STATS, metavar="FILE", help="stats.jsonl of the motion generator")
    parser.add_argument("--flow", type=Path, default=FLOW, metavar="FILE", help="the .json that train_flow.py wrote")
    parser.add_argument("--videos", nargs=2, type=Path, metavar=("GENERATED", "REAL"), help="two folders of videos")
    parser.add_argument("--long", type=Path, metavar="FOLDER", help="a folder of long videos of bench_drift.py")
    parser.add_argument("--peers", nargs="+", type=Path, metavar="FOLDER", help="folders of videos of bench_peers.py")
    options = parser.parse_args()
    with exit_on_user_error():
        texts = everything(options.stats, options.flow)
        if options.videos:
            pairs = zip(*(shown_videos(folder, SHOWN) for folder in options.videos), strict=True)
            write_mosaic(PAGE / "world.gif", [np.concatenate(pair, axis=1) for pair in pairs])
        if options.long:
            write_mosaic(PAGE / "long.gif", shown_videos(options.long, LONG_SHOWN))
        if options.peers:
            write_strips(PAGE / "peers.png", options.peers)
        for path, text in texts.items():
            with atomic_write(path) as temporary:
                temporary.write_text(text)
        print(f"wrote {PAGE / 'README.md'} from the rows in benchmarks/results/")


if __name__ == "__main__":
    main()
