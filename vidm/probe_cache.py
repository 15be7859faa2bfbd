"""What was found out about videos, kept until their files change. Ours.

Knowing how long 20,000 videos are means opening every one; the numbers are kept in the user's cache folder
(XDG_CACHE_HOME, else ~/.cache), never beside the data, which may be read-only. Deleting vidm/index there is harmless.

    lengths = remembered("data/CLEVRER", paths, count_frames)
"""

import hashlib
import json
import os
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import av
from tqdm import tqdm

from vidm.files import atomic_write


def _cache_file(key: str) -> Path | None:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not os.path.isabs(base):  # without a home "~" stays as it is
        return None
    return Path(base, "vidm", "index", hashlib.sha256(os.fsencode(key)).hexdigest()[:32] + ".json")


def _times(state: os.stat_result) -> str:
    # The time of the last change (ctime) tells what a copy with kept times, or a change of permissions, would hide.
    return f"{state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}"


def _signature(path: Path) -> str:
    """A text that is another one once a file, or any file in a folder of frames, is another one; empty if unknown."""
    try:
        state = path.stat()
        if not stat.S_ISDIR(state.st_mode):
            return _times(state)
        with os.scandir(path) as entries:
            inside = sorted(f"{entry.name} {_times(entry.stat())}" for entry in entries)
        return hashlib.sha256(os.fsencode("\n".join(inside))).hexdigest()
    except OSError:
        return ""


def _readers() -> str:
    """What the numbers were found with: another version of this package or of PyAV may find others."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return f"PyAV {av.__version__} " + hashlib.sha256("".join(map(_signature, sources)).encode()).hexdigest()


def _read(file: Path | None, readers: str) -> dict[str, tuple[str, int]]:
    """What is kept: path -> signature and number; nothing when there is no such file, or it is damaged or outdated."""
    try:
        kept = json.loads(file.read_text()) if file else {}
        found = {path: (str(signature), int(number)) for path, (signature, number) in kept["found"].items()}
        return found if kept["readers"] == readers else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def remembered(
    key: str | Path, paths: Sequence[Path], find_out: Callable[[Path], int | str], progress: bool = False
) -> list[int | str]:
    """Return find_out(path) of each path, several at a time, without asking for a number that is known already.

    A number is kept under `key`, a folder or any other name, until its path's size or times change; a text, which is
    the reason why there is no number, is asked for again. Where nothing can be kept, all is asked every time. With
    `progress`, a bar is shown once it takes seconds. Ours.
    """
    file, readers = _cache_file(os.path.abspath(key)), _readers()
    kept = _read(file, readers)
    names = [os.path.abspath(path) for path in paths]
    # Taken before a file is opened: what changes meanwhile will look changed.
    signatures = [_signature(path) for path in paths]
    numbers: list[int | str | None] = []
    for name, signature in zip(names, signatures, strict=True):
        then, number = kept.get(name, ("", 0))
        numbers.append(number if signature and signature == then else None)
    unknown = [i for i, number in enumerate(numbers) if number is None]
    with (
        ThreadPoolExecutor() as pool,  # decoders let other threads run, and disks answer many at once
        tqdm(total=len(unknown), desc="looking at videos", unit="video", delay=3, disable=not progress) as bar,
    ):
        for i, found in zip(unknown, pool.map(lambda i: find_out(paths[i]), unknown), strict=True):
            numbers[i] = found
            bar.update()
    if file and unknown:
        entries = {
            name: (signature, number)
            for name, signature, number in zip(names, signatures, numbers, strict=True)
            if signature and isinstance(number, int)
        }
        # Where it cannot be kept, on a full disk or in a folder that may not be written to, the next time is as slow.
        with suppress(OSError, ValueError), atomic_write(file) as temporary:
            temporary.write_text(json.dumps({"readers": readers, "found": entries}))
    return [number for number in numbers if number is not None]
