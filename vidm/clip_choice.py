"""Which clips of a folder are measured: a function of (seed, a video's name), not of the order of files. Ours.

clips = choose_clips("data/CLEVRER", num_frames=16, split="val", random_start=True)
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vidm.datasets import Clips, window_length
from vidm.layouts import index_clips


def check_counts(**counts: int | None) -> None:
    """Raise ValueError, with its name, for a count below 1; None is no count."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name} is {count}; it must be at least 1")


def _draw(seed: int, name: str) -> tuple[float, float]:
    """Two numbers in [0, 1) that follow from a seed and a video's name: its turn, and where its clip begins."""
    digest = hashlib.sha256(f"{seed} {name}".encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48, int.from_bytes(digest[6:12], "big") / 2**48


def choose_clips(
    folder: str | Path,
    num_frames: int,
    num_samples: int | None = None,
    *,
    stride: int = 1,
    resolution: int | None = None,
    split: str = "",
    seed: int = 0,
    random_start: bool = False,
    max_samples: int = 2048,
    damaged: Sequence[tuple[Path, str]] = (),
) -> Clips:
    """One clip of num_frames frames, `stride` apart, of each video that is measured of a folder or of its split.

    num_samples=None takes all videos that are long enough, but at most max_samples. Of more a part is drawn by the
    seed: the first ones by name would all be of the first classes. A clip begins at the first frame or, with
    random_start, anywhere. `damaged`, of which only reading told, are left out and listed as skipped.
    Raises FileNotFoundError for a missing folder, ValueError when there are fewer than 2 or than num_samples videos.
    """
    window = window_length(num_frames, stride)
    index = index_clips(folder, min_frames=window, split=split)
    known = {path for path, _ in damaged}
    good = [i for i, path in enumerate(index.paths) if path not in known]
    wanted = min(len(good), max_samples) if num_samples is None else num_samples
    if len(good) < max(wanted, 2):
        raise ValueError(
            f"{index.root / split} has {len(good)} video(s) of {window} frames or more and {max(wanted, 2)} are "
            "needed; add videos, ask for fewer samples (-ns) or for fewer frames (-n)"
        )
    if wanted < 2:
        raise ValueError(f"{wanted} sample(s) were asked for; at least 2 are needed")
    draws = {i: _draw(seed, index.paths[i].relative_to(index.root).as_posix()) for i in good}
    chosen = sorted(sorted(good, key=lambda i: draws[i])[:wanted])
    paths, lengths = [index.paths[i] for i in chosen], [index.num_frames[i] for i in chosen]
    starts = [int(draws[i][1] * (index.num_frames[i] - window + 1)) if random_start else 0 for i in chosen]
    index = replace(index, paths=paths, num_frames=lengths, skipped=[*index.skipped, *damaged])
    return Clips(index, num_frames, resolution, starts, stride)


def halves(clips: Clips, seed: int) -> tuple[list[int], list[int]]:
    """Two disjoint sets of places, of equal size, drawn by the seed."""
    root = clips.index.root
    draws = [_draw(seed, f"half {path.relative_to(root).as_posix()}") for path in clips.index.paths]
    order = sorted(range(len(clips)), key=lambda place: draws[place])
    half = len(clips) // 2
    return sorted(order[:half]), sorted(order[half : 2 * half])
