"""python scripts/preprocess_dataset.py --data data/CLEVRER --out data/CLEVRER_frames --frames

Converts every video below DATA, in all splits, to a folder of png frames at the same place below OUT: train/a/7.mp4
becomes train/a/7/00000.png and so on. Training reads both. A clip's folder appears completely or not at all, so running
an interrupted command again continues it. Each folder records the sha256 of its video, and a video that was replaced is
extracted anew. Unreadable videos are reported, counted and skipped.
"""

import errno
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from vidm.interrupts import in_processes, one_line_on_interrupt

if __name__ == "__main__":
    one_line_on_interrupt()  # before imports that take seconds

from PIL import Image
from tqdm import tqdm

from vidm.console import CommandParser, console, given_path
from vidm.files import atomic_dir, read_json, sha256_of
from vidm.video_io import VideoError, read_frames

CHUNK = 128  # frames in memory at a time
RECORD = ".source.json"  # hidden, so that it is no part of the clip


def choose_folders(data: Path, out: Path, paths: Sequence[Path]) -> list[Path]:
    """Return the folder of each video's frames: its path below `out`, without the suffix unless that is ambiguous."""
    plain = [out / path.relative_to(data).with_suffix("") for path in paths]
    used = Counter(plain) + Counter({parent for folder in plain for parent in folder.parents})
    return [
        folder if used[folder] == 1 else folder.with_name(path.name) for folder, path in zip(plain, paths, strict=True)
    ]


def recorded_sha256(folder: Path) -> str:
    """Return the sha256 of the video whose frames a folder contains; empty if it contains none or was not recorded."""
    try:
        return str(read_json(folder / RECORD)["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def extract(job: tuple[Path, int, Path]) -> str:
    """Write a video's frames; return the reason if that fails, else an empty string. Earlier frames are replaced."""
    path, num_frames, folder = job
    try:
        sha256 = sha256_of([path])
        if recorded_sha256(folder):
            for frame in folder.glob("*.png"):  # the record last: if this is interrupted, it still differs
                frame.unlink()
            shutil.rmtree(folder)
        with atomic_dir(folder) as temporary:
            for start in range(0, num_frames, CHUNK):
                chunk = range(start, min(start + CHUNK, num_frames))
                for index, frame in zip(chunk, read_frames(path, chunk), strict=True):
                    Image.fromarray(frame).save(temporary / f"{index:05d}.png")
            (temporary / RECORD).write_text(json.dumps({"file": path.name, "sha256": sha256}))
    except (VideoError, FileNotFoundError) as error:
        return str(error)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # a full disk stops the run
            raise
        return f"{path}: its name is too long for a folder of frames; rename it"
    return ""


def update(job: tuple[Path, int, Path]) -> str | None:
    """Extract a video unless its frames exist already; return None if they do, else what extract returns.

    Frames without a record, which were not written by this script, are kept.
    """
    path, _, folder = job
    names = os.listdir(folder) if folder.is_dir() else []
    recorded = recorded_sha256(folder)
    if any(name != RECORD for name in names) and (not recorded or recorded == sha256_of([path])):
        return None
    return extract(job)


def extract_all(data: Path, out: Path, workers: int) -> None:
    """Extract the frames of every video below `data`, with `workers` processes."""
    from vidm.layouts import index_clips  # loads PyTorch; worker processes import this file without it

    if out.resolve() == data.resolve():
        raise ValueError(f"--out {out} is the folder of the videos: choose another")
    index = index_clips(data, layout="videos", progress=True)
    print(f"{data}: {index.found}")
    jobs = zip(index.paths, index.num_frames, choose_folders(data, out, index.paths), strict=True)
    warn = partial(tqdm.write, file=sys.stderr)
    for _, reason in index.skipped:
        warn(f"skipped: {reason}")
    results = []
    made = in_processes(update, jobs, max(workers, 1))
    for result in tqdm(made, total=len(index.paths), unit="video", disable=None):
        results.append(result)
        if result:
            warn(f"skipped: {result}")
    written, existing = results.count(""), results.count(None)
    skipped = len(index.skipped) + len(results) - written - existing
    print(f"{out}: {written} videos extracted, {existing} existed already, {skipped} skipped")


def main() -> int:
    parser = CommandParser(description=__doc__.split("\n\n", 1)[1])
    parser.add_argument("--data", type=given_path, required=True, metavar="DIR", help="folder of videos, at any depth")
    parser.add_argument("--out", type=given_path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("--frames", action="store_true", required=True, help="extract png frames")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (one per core)"
    )
    options = parser.parse_args()
    with console():
        try:
            extract_all(options.data, options.out, options.workers)
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
