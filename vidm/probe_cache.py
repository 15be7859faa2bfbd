"""Cache each video's number of frames in the user's cache folder until the video changes. Ours.

    lengths = probe_all("data/CLEVRER", paths, lambda path: probe(path).num_frames)

Finding the lengths of 20,000 videos means opening every one. The cache is vidm/index in XDG_CACHE_HOME or ~/.cache,
never next to the data, which may be read-only. It can be deleted at any time.
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

from vidm.files import atomic_write, read_json
from vidm.images import budget
from vidm.segments import whole_path

# Increase this when the format of the cache changes, or when probing finds other numbers for the same files.
CACHE_VERSION = 2
LARGEST_CACHE = 1 << 30  # bytes, for millions of videos


def _cache_file(key: str) -> Path | None:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not os.path.isabs(base):  # without a home folder "~" is not expanded
        return None
    return Path(base, "vidm", "index", hashlib.sha256(os.fsencode(key)).hexdigest()[:32] + ".json")


def _readers() -> str:
    """Return the versions that the number for an unchanged file depends on."""
    return f"version {CACHE_VERSION}, PyAV {av.__version__}"


def _times(state: os.stat_result) -> str:
    # ctime also changes when a file is replaced by one with the same size and modification time.
    return f"{state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}"


def _signature(path: Path) -> str:
    """Return a string that changes with a file or any file in a folder of frames; empty if it cannot be read."""
    try:
        state = path.stat()
        if not stat.S_ISDIR(state.st_mode):
            return _times(state)
        with os.scandir(path) as entries:
            inside = sorted(f"{entry.name} {_times(entry.stat())}" for entry in entries)
        return hashlib.sha256(os.fsencode("\n".join(inside))).hexdigest()
    except OSError:
        return ""


def _read(file: Path | None) -> dict[str, tuple[str, int]]:
    """Return the cached {path: (signature, number)}; empty if the file is missing, damaged or from other versions.

    Numbers that no video within the budget has are left out.
    """
    try:
        cached = read_json(file, LARGEST_CACHE) if file else {}
        if cached["readers"] != _readers():
            return {}
        most = budget("VIDM_MAX_FRAMES")
        return {
            path: (signature, number)
            for path, (signature, number) in cached["found"].items()
            if type(number) is int and 0 < number <= most
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def probe_all(
    key: str | Path, paths: Sequence[Path], probe: Callable[[Path], int | str], progress: bool = False
) -> list[int | str]:
    """Return probe(path) for each path, calling it in several threads and only where the result is not cached.

    `probe` returns a number, or a string with the reason why there is none. Numbers are cached under `key`, a folder
    or any other name, until the size or times of a path change; reasons are not cached. If the cache cannot be
    written, every call probes every path. With `progress`, a bar is shown after three seconds. Ours.
    """
    file = _cache_file(os.path.abspath(key))
    cached = _read(file)
    names = [os.path.abspath(path) for path in paths]
    # Signatures are computed before opening, so that a file that changes meanwhile is probed again next time.
    signatures = [_signature(whole_path(path)) for path in paths]
    results: list[int | str | None] = []
    for name, signature in zip(names, signatures, strict=True):
        then, number = cached.get(name, ("", 0))
        results.append(number if signature and signature == then else None)
    unknown = [i for i, result in enumerate(results) if result is None]
    with (
        ThreadPoolExecutor() as pool,  # decoders release the GIL, and disks serve several reads at once
        tqdm(total=len(unknown), desc="opening videos", unit="video", delay=3, disable=not progress or None) as bar,
    ):
        for i, result in zip(unknown, pool.map(lambda i: probe(paths[i]), unknown), strict=True):
            results[i] = result
            bar.update()
    if file and unknown:
        entries = {
            name: (signature, result)
            for name, signature, result in zip(names, signatures, results, strict=True)
            if signature and isinstance(result, int)
        }
        # A full disk or a read-only folder only costs time: the next call probes again.
        with suppress(OSError, ValueError), atomic_write(file) as temporary:
            temporary.write_text(json.dumps({"readers": _readers(), "found": entries}))
    return [result for result in results if result is not None]
