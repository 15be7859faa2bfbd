"""python scripts/preprocess_dataset.py --data data/CLEVRER --out data/CLEVRER_frames --frames

Converts every video below DATA, in all splits, to a folder of png frames at the same place below OUT: train/a/7.mp4
becomes train/a/7/00000.png and so on. Training reads both. A clip's folder appears completely or not at all, so running
an interrupted command again continues it. Unreadable videos are reported, counted and skipped.
"""

import argparse
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from vidm.files import atomic_dir
from vidm.video_io import VideoError, read_frames

CHUNK = 128  # frames in memory at a time


def choose_folders(data: Path, out: Path, paths: Sequence[Path]) -> list[Path]:
    """Return the folder of each video's frames: its path below `out`, without the suffix unless that is ambiguous."""
    plain = [out / path.relative_to(data).with_suffix("") for path in paths]
    used = Counter(plain) + Counter({parent for folder in plain for parent in folder.parents})
    return [
        folder if used[folder] == 1 else folder.with_name(path.name) for folder, path in zip(plain, paths, strict=True)
    ]


def extract(job: tuple[Path, int, Path]) -> str:
    """Write a video's frames; return the reason if that fails, else an empty string."""
    path, num_frames, folder = job
    try:
        with atomic_dir(folder) as temporary:
            for start in range(0, num_frames, CHUNK):
                chunk = range(start, min(start + CHUNK, num_frames))
                for index, frame in zip(chunk, read_frames(path, chunk), strict=True):
                    Image.fromarray(frame).save(temporary / f"{index:05d}.png")
    except (VideoError, FileNotFoundError) as error:
        return str(error)
    return ""


def extract_all(data: Path, out: Path, workers: int) -> None:
    """Extract the frames of every video below `data`, with `workers` processes."""
    from vidm.layouts import index_clips  # loads PyTorch; worker processes import this file without it

    if out.resolve() == data.resolve():
        raise ValueError(f"--out {out} is the folder of the videos: choose another")
    index = index_clips(data, layout="videos", progress=True)
    print(f"{data}: {index.found}")
    folders = choose_folders(data, out, index.paths)
    jobs = [
        (path, num_frames, folder)
        for path, num_frames, folder in zip(index.paths, index.num_frames, folders, strict=True)
        if not (folder.is_dir() and any(folder.iterdir()))
    ]
    failed = [reason for _, reason in index.skipped]
    warn = partial(tqdm.write, file=sys.stderr)
    for reason in failed:
        warn(f"skipped: {reason}")
    with (
        tqdm(total=len(index.paths), initial=len(index.paths) - len(jobs), unit="video") as bar,
        ProcessPoolExecutor(max(workers, 1), multiprocessing.get_context("spawn")) as pool,
    ):
        for reason in pool.map(extract, jobs):
            if reason:
                warn(f"skipped: {reason}")
                failed.append(reason)
            bar.update()
    existing = len(index.paths) - len(jobs)
    written = len(index.paths) + len(index.skipped) - existing - len(failed)
    print(f"{out}: {written} videos extracted, {existing} existed already, {len(failed)} skipped")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[1])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of videos, at any depth")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("--frames", action="store_true", required=True, help="extract png frames")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (one per core)"
    )
    options = parser.parse_args()
    try:
        extract_all(options.data, options.out, options.workers)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
