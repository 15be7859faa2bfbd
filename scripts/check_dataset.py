"""python scripts/check_dataset.py data/CLEVRER --min-frames 128

Prints what training finds in a folder: layout, counts, lengths, sizes, codecs, and which clips are skipped and why.
Writes a contact sheet with one row of frames per clip, cropped as in training. Every clip is opened; only those of the
contact sheet are decoded. The exit code is 0 if any clip is usable, 1 if none is, and 2 for an invalid command.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from vidm import video_containers
from vidm.datasets import fit_square
from vidm.files import atomic_write
from vidm.layouts import LAYOUTS, ClipIndex, survey_clips
from vidm.packs import probe, read_frames
from vidm.runtime import exit_on_user_error
from vidm.video_io import CONTAINER_SUFFIXES, VideoError, frame_files

SHEET_CLIPS = 12
SHEET_FRAMES = 8
SHEET_SIDE = 96
KINDS_SHOWN = 8


class Kind(NamedTuple):
    """Size, codec and frame rate of a clip, as text."""

    size: str
    codec: str
    rate: str


def codec_of(path: Path) -> str:
    """Return the codec of a container, else the file type."""
    if not path.exists():
        return "in a pack"
    if path.is_dir():
        return f"{frame_files(path)[0].suffix.lower()[1:]} frames"
    if path.suffix.lower() not in CONTAINER_SUFFIXES:
        return path.suffix.lower()[1:]
    return video_containers.codec_of(path)


def kind_of(path: Path) -> Kind:
    info = probe(path)
    return Kind(f"{info.width}x{info.height}", codec_of(path), f"{info.fps:.4g}" if info.fps else "none stored")


def tally(title: str, values: Iterable[str]) -> str:
    """Return one line with each value and its count, the most frequent first."""
    counts = Counter(values).most_common()
    shown = ", ".join(f"{value} ({count})" for value, count in counts[:KINDS_SHOWN])
    return f"{title}: {shown}" + (f" and {len(counts) - KINDS_SHOWN} more" if len(counts) > KINDS_SHOWN else "")


def contact_sheet(index: ClipIndex) -> tuple[np.ndarray | None, list[str]]:
    """Return rows of frames of clips spread over the index, uint8 (H, W, 3), and the errors of other clips."""
    chosen = np.unique(np.linspace(0, len(index.paths) - 1, SHEET_CLIPS).round().astype(int))
    rows, reasons = [], []
    for i in chosen:
        moments = np.linspace(0, index.num_frames[i] - 1, SHEET_FRAMES).round().astype(int)
        try:
            frames = fit_square(read_frames(index.paths[i], moments), SHEET_SIDE)
            rows.append(np.concatenate(list(frames), axis=1))
        except VideoError as error:
            reasons.append(str(error))
    return (np.concatenate(rows) if rows else None), reasons


def report(index: ClipIndex, out: Path) -> None:
    """Print the statistics of an index and write the contact sheet."""
    for _, reason in index.skipped:
        print(f"skipped: {reason}".encode(errors="backslashreplace").decode())
    total = len(index.paths) + len(index.skipped)
    short = len(index.skipped) - len(index.bad)
    print(f"usable: {len(index.paths)} of {total} clips; {len(index.bad)} unreadable or missing, {short} too short")
    if not index.paths:
        return
    lengths = np.array(index.num_frames)
    print(f"frames: {lengths.min()} to {lengths.max()}, median {np.median(lengths):g}, {lengths.sum()} in total")
    with ThreadPoolExecutor() as pool:
        found = pool.map(kind_of, index.paths)
        kinds = list(tqdm(found, desc="opening videos", total=len(index.paths), unit="video", delay=3))
    print(tally("sizes", (kind.size for kind in kinds)))
    print(tally("codecs", (kind.codec for kind in kinds)))
    print(tally("frames per second", (kind.rate for kind in kinds)))
    sheet, reasons = contact_sheet(index)
    for reason in reasons:
        print(f"cannot be decoded: {reason}".encode(errors="backslashreplace").decode())
    if sheet is not None:
        with atomic_write(out) as temporary:
            Image.fromarray(sheet).save(temporary, format="png")
        print(f"contact sheet: {out}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[1])
    parser.add_argument("data", type=Path, metavar="DIR", help="folder of videos or of frame folders, at any depth")
    parser.add_argument("--min-frames", type=int, default=1, metavar="N", help="frames that a clip must have (1)")
    parser.add_argument("--layout", choices=LAYOUTS, default="auto", help="layout of the folder, as in training (auto)")
    parser.add_argument("--split", default="", help="a subfolder or one of UCF-101's lists, as in training (all)")
    parser.add_argument(
        "--out", type=Path, default=Path("contact_sheet.png"), metavar="FILE", help="png file of the contact sheet"
    )
    options = parser.parse_args()
    with exit_on_user_error():
        index = survey_clips(options.data, options.min_frames, options.layout, options.split, progress=True)
        print(f"{options.data}: {index.found or 'no videos and no folders of frames'}")
        report(index, options.out)
    return 0 if index.paths else 1


if __name__ == "__main__":
    sys.exit(main())
