"""python scripts/check_dataset.py data/CLEVRER --min-frames 128

Prints what training finds in a folder: layout, counts, lengths, sizes, codecs, which clips are skipped and why, and
which are damaged. Writes a contact sheet with one row of frames per clip, cropped or padded as in training. The first,
the middle and the last frame of every clip are decoded; with --verify, every byte is read: every frame of videos and
images, and the checksums of packs. The exit code is 0 if any clip is usable, 1 if none is or --verify finds damage, and
2 for an invalid command.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from vidm.interrupts import one_line_on_interrupt

if __name__ == "__main__":
    one_line_on_interrupt()  # before imports that take seconds

import numpy as np
from PIL import Image
from tqdm import tqdm

from vidm import video_containers
from vidm.config import DataConfig
from vidm.console import CommandParser, given_path
from vidm.datasets import fit_frames
from vidm.evaluation import ready_to_write
from vidm.files import atomic_write
from vidm.frame_size import FITS, FrameSize, check_size, frame_size, sides_of, size_text
from vidm.images import LARGEST_SIDE
from vidm.layouts import LAYOUTS, ClipIndex, survey_clips
from vidm.packs import pack_of, probe, read_frames
from vidm.runtime import exit_on_user_error
from vidm.segments import whole_path
from vidm.verify import damaged_clip, verify
from vidm.video_io import CONTAINER_SUFFIXES, VideoError, frame_files

SHEET_CLIPS = 12
SHEET_FRAMES = 8
SHEET_SIDE = 96  # the longer side of a frame
SHEET_PIXELS = 2**25  # in memory at a time, before they are resized
KINDS_SHOWN = 8


class Kind(NamedTuple):
    """Size, codec and frame rate of a clip, as text."""

    size: str
    codec: str
    rate: str


def codec_of(path: Path) -> str:
    """Return the codec of a container, else the file type."""
    path = whole_path(path)
    if pack_of(path):
        return "in a pack"
    if path.is_dir():
        return f"{frame_files(path)[0].suffix.lower()[1:]} frames"
    if path.suffix.lower() not in CONTAINER_SUFFIXES:
        return path.suffix.lower()[1:]
    return video_containers.codec_of(path)


def kind_of(path: Path) -> Kind:
    info = probe(path)
    return Kind(size_text((info.height, info.width)), codec_of(path), f"{info.fps:.4g}" if info.fps else "none stored")


def tally(title: str, values: Iterable[str]) -> str:
    """Return one line with each value and its count, the most frequent first."""
    counts = Counter(values).most_common()
    shown = ", ".join(f"{value} ({count})" for value, count in counts[:KINDS_SHOWN])
    return f"{title}: {shown}" + (f" and {len(counts) - KINDS_SHOWN} more" if len(counts) > KINDS_SHOWN else "")


def thumbnails(path: Path, moments: np.ndarray, fit: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return frames of a clip, made small by `fit`, uint8 (len(moments), H, W, 3); each is decoded once."""
    numbers, places = np.unique(moments, return_inverse=True)
    first = read_frames(path, numbers[:1])
    at_once = max(1, SHEET_PIXELS // (first.shape[1] * first.shape[2]))
    small = [fit(first)]
    for start in range(1, len(numbers), at_once):
        small.append(fit(read_frames(path, numbers[start : start + at_once])))
    return np.concatenate(small)[places]


def contact_sheet(index: ClipIndex, resolution: FrameSize = 1, fit: str = "crop") -> np.ndarray | None:
    """Return rows of frames of readable clips spread over the index, uint8 (H, W, 3); None without any."""
    sides = sides_of(resolution)
    height, width = (max(SHEET_SIDE * side // max(sides), 1) for side in sides)
    small = partial(fit_frames, size=(height, width), fit=fit)
    chosen = np.unique(np.linspace(0, len(index.paths) - 1, SHEET_CLIPS).round().astype(int))
    rows = []
    for i in chosen:
        moments = np.linspace(0, index.num_frames[i] - 1, SHEET_FRAMES).round().astype(int)
        with suppress(VideoError):
            rows.append(np.concatenate(list(thumbnails(index.paths[i], moments, small)), axis=1))
    return np.concatenate(rows) if rows else None


def find_damage(index: ClipIndex, every_byte: bool) -> list[tuple[Path, str]]:
    """Return (path, reason) of clips of the index with frames that cannot be used."""
    if every_byte:
        known = {path for path, _ in index.bad}
        return [(path, reason) for path, reason in verify(index.paths, index.num_frames) if path not in known]
    with ThreadPoolExecutor() as pool:
        found = pool.map(damaged_clip, index.paths, index.num_frames)
        reasons = list(tqdm(found, desc="decoding frames", total=len(index.paths), unit="video", delay=3, disable=None))
    return [(path, reason) for path, reason in zip(index.paths, reasons, strict=True) if reason]


def report(index: ClipIndex, out: Path, every_byte: bool, resolution: FrameSize, fit: str) -> bool:
    """Print the statistics of an index and write the contact sheet; return whether no clip is damaged."""
    for _, reason in index.skipped:
        print(f"skipped: {reason}")
    total = len(index.paths) + len(index.skipped)
    short = len(index.skipped) - len(index.bad)
    print(f"usable: {len(index.paths)} of {total} clips; {len(index.bad)} unreadable or missing, {short} too short")
    limit = DataConfig().max_bad_fraction
    if len(index.bad) > limit * total:
        print(f"training refuses more than {limit:g} of unreadable clips, unless --max-bad-fraction allows them")
    if not index.paths:
        return not index.bad
    lengths = np.array(index.num_frames)
    print(f"frames: {lengths.min()} to {lengths.max()}, median {np.median(lengths):g}, {lengths.sum()} in total")
    with ThreadPoolExecutor() as pool:
        found = pool.map(kind_of, index.paths)
        kinds = list(tqdm(found, desc="opening videos", total=len(index.paths), unit="video", delay=3, disable=None))
    print(tally("sizes, height x width", (kind.size for kind in kinds)))
    print(tally("codecs", (kind.codec for kind in kinds)))
    print(tally("frames per second", (kind.rate for kind in kinds)))
    damaged = find_damage(index, every_byte)
    for _, reason in damaged:
        print(f"cannot be decoded: {reason}")
    read = "every byte" if every_byte else "the first, middle and last frames"
    others = ", which training replaces by the next ones" if damaged else ""
    print(f"damage: {len(damaged)} found in {read}{others}")
    sheet = contact_sheet(index, resolution, fit)
    if sheet is not None:
        with atomic_write(out) as temporary:
            Image.fromarray(sheet).save(temporary, format="png")
        print(f"contact sheet: {out}")
    return not damaged and not index.bad


def main() -> int:
    parser = CommandParser(description=__doc__.split("\n\n", 1)[1])
    parser.add_argument(
        "data", type=given_path, metavar="DIR", help="folder of videos or of frame folders, at any depth, or a csv list"
    )
    parser.add_argument("--min-frames", type=int, default=1, metavar="N", help="frames that a clip must have (1)")
    parser.add_argument("--layout", choices=LAYOUTS, default="auto", help="layout of the folder, as in training (auto)")
    parser.add_argument(
        "--split", default="", help="a subfolder, or a split of UCF-101 or a csv list, as in training (all)"
    )
    parser.add_argument(
        "--resolution", type=frame_size, default=1, metavar="SIZE", help="show frames in the shape of HxW (squares)"
    )
    parser.add_argument("--fit", choices=FITS, default="crop", help="as in training (crop)")
    parser.add_argument(
        "--out",
        type=given_path,
        default=Path("contact_sheet.png"),
        metavar="FILE",
        help="png of the contact sheet (contact_sheet.png in the current folder)",
    )
    parser.add_argument("--verify", action="store_true", help="read every byte of every clip once")
    options = parser.parse_args()
    with exit_on_user_error(), ready_to_write(options.out):
        check_size("--resolution", options.resolution, LARGEST_SIDE)
        index = survey_clips(options.data, options.min_frames, options.layout, options.split, progress=True)
        print(f"{options.data}: {index.found}")
        is_whole = report(index, options.out, options.verify, options.resolution, options.fit)
    return 0 if index.paths and (is_whole or not options.verify) else 1


if __name__ == "__main__":
    sys.exit(main())
