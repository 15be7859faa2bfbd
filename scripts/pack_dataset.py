"""python scripts/pack_dataset.py --data data/CLEVRER --out packs/clevrer

Packs a folder of videos or of frame folders into a few large tar files with an index. Training reads the same samples
from the pack (--data PACK) as from the folder. Encoded files are copied byte for byte; with --raw R or HxW, frames are
decoded and brought to that size as in training, which is much faster to read. An interrupted run leaves no pack.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from vidm.interrupts import one_line_on_interrupt

if __name__ == "__main__":
    one_line_on_interrupt()  # before imports that take seconds

import numpy as np
from tqdm import tqdm

from vidm.console import CommandParser, given_path
from vidm.csv_list import is_list
from vidm.datasets import fit_frames
from vidm.files import LARGEST, WriteError
from vidm.frame_size import FITS, FrameSize, check_size, frame_size
from vidm.images import LARGEST_SIDE
from vidm.layouts import LAYOUTS, ClipIndex, index_clips
from vidm.packs import PackWriter, probe, read_frames, write_pack
from vidm.runtime import exit_on_user_error

FRAMES_AT_ONCE = 128  # frames of a video in memory at full size


def raw_frames(path: Path, num_frames: int, size: FrameSize, fit: str) -> np.ndarray | OSError | ValueError:
    """Return all frames of a video, fitted to a size, uint8 (T, H, W, 3), or the error if they cannot be read."""
    starts = range(0, num_frames, FRAMES_AT_ONCE)
    try:
        parts = [read_frames(path, range(start, min(start + FRAMES_AT_ONCE, num_frames))) for start in starts]
        return np.concatenate([fit_frames(part, size, fit) for part in parts])
    except (OSError, ValueError) as error:
        return error


def all_raw_frames(index: ClipIndex, size: FrameSize, fit: str) -> Iterator[np.ndarray | OSError | ValueError]:
    """Yield raw_frames of each video in order, decoded in parallel; at most one video per core is in memory."""
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(index.paths), workers):
            group = slice(start, start + workers)
            counts = index.num_frames[group]
            yield from pool.map(partial(raw_frames, size=size, fit=fit), index.paths[group], counts)


def add(pack: PackWriter, index: ClipIndex, size: FrameSize | None, fit: str) -> int:
    """Add every readable clip, in the index's order, and report the others; return how many could not be read."""
    num_bad = 0
    raw = all_raw_frames(index, size, fit) if size else None
    for path in tqdm(index.paths, unit="video", disable=None):
        name = path.relative_to(index.root).as_posix()
        try:
            if raw is None:
                pack.add_encoded(name, path)
            elif isinstance(frames := next(raw), np.ndarray):
                pack.add_raw(name, frames, probe(path).fps)
            else:
                raise frames
        except WriteError:
            raise  # the pack cannot be written; the clip is not bad
        except (OSError, ValueError) as error:
            num_bad += 1
            tqdm.write(f"skipped: {error}", file=sys.stderr)
    return num_bad


def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(description=__doc__.split("\n\n", 1)[1])
    parser.add_argument(
        "--data", type=given_path, required=True, metavar="DIR", help="folder of videos or of frame folders"
    )
    parser.add_argument("--out", type=given_path, required=True, metavar="PACK", help="folder to create")
    parser.add_argument(
        "--raw", type=frame_size, metavar="R", help="store decoded R x R or HxW frames, not encoded files"
    )
    parser.add_argument("--fit", choices=FITS, help="with --raw: crop frames to its shape, or pad them (crop)")
    parser.add_argument("--layout", choices=LAYOUTS, default="auto", help="layout of the folder, as in training (auto)")
    parser.add_argument(
        "--shard-size", type=int, default=1024, metavar="MB", help="maximum size of a tar file in MiB (1024)"
    )
    options = parser.parse_args(argv)
    with exit_on_user_error():
        if options.raw is not None:
            check_size("--raw", options.raw, LARGEST_SIDE)
        elif options.fit:
            raise ValueError("--fit has no effect without --raw: encoded files are copied")
        if not 1 <= options.shard_size <= LARGEST:
            raise ValueError(f"--shard-size {options.shard_size}: give 1 to {LARGEST}")
        if options.layout == "csv" or is_list(options.data):
            raise ValueError(
                "a pack cannot be made from a csv list: pack the folder, and list paths in the pack in a csv file"
            )
        with write_pack(options.out, options.shard_size << 20) as pack:
            index = index_clips(options.data, layout=options.layout)
            print(f"{options.data}: {index.found}")
            if index.skipped:
                print(*index.skipped_message().splitlines(), sep="\n", file=sys.stderr)
            num_bad = len(index.skipped) + add(pack, index, options.raw, options.fit or "crop")
        shards = list(options.out.glob("*.tar"))
        size = sum(shard.stat().st_size for shard in shards)
        num_clips = len(index.paths) + len(index.skipped) - num_bad
        print(f"{options.out}: {num_clips} clips in {len(shards)} tar files, {size / 2**20:.1f} MiB; {num_bad} skipped")


if __name__ == "__main__":
    main()
