"""Choose the clips of a folder to measure, by the seed and the videos' names and not by the order of files. Ours.

real = ClipSelection("data/CLEVRER", num_frames=16, split="val", random_start=True)
clips = choose_clips(real)
generated = choose_clips(real.generated("results/samples"))
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vidm.datasets import Clips, window_length
from vidm.layouts import index_clips


def check_counts(**counts: int | None) -> None:
    """Raise ValueError, naming the count, for one that is below 1; None is accepted."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name} is {count}; it must be at least 1")


@dataclass(frozen=True)
class ClipSelection:
    """The clips of a folder to measure: one clip of `num_frames` frames from each selected video.

    num_samples=None selects all videos that are long enough, but at most max_samples. If not all are selected, the seed
    draws them.
    `split` is a subfolder or one of UCF-101's lists. The frames of a clip are frame_stride * real_stride apart:
    real_stride is for real videos, when the model was trained on every real_stride-th frame. A clip begins at the first
    frame or, with `random_start`, at one drawn by the seed. With a `window`, only this range of each clip's frames is
    read. With a `resolution` (px), frames are cropped to the central square and resized; None keeps them as stored.
    Raises ValueError, naming the field, for a count below 1.
    """

    folder: str | Path
    num_frames: int
    num_samples: int | None = None
    resolution: int | None = None
    frame_stride: int = 1
    real_stride: int = 1
    split: str = ""
    seed: int = 0
    random_start: bool = False
    max_samples: int = 2048
    window: range | None = None

    def __post_init__(self) -> None:
        check_counts(
            num_frames=self.num_frames,
            resolution=self.resolution,
            frame_stride=self.frame_stride,
            real_stride=self.real_stride,
        )

    @property
    def stride(self) -> int:
        """The distance of two neighbouring frames of a clip, in frames of the video."""
        return self.frame_stride * self.real_stride

    @property
    def length(self) -> int:
        """The number of frames that a video needs."""
        return window_length(self.num_frames, self.stride)

    def generated(self, folder: str | Path) -> "ClipSelection":
        """Return the generated clips to compare with these: without real_stride and split, from the first frame."""
        return replace(self, folder=folder, real_stride=1, split="", random_start=False)


def _draw(seed: int, name: str) -> tuple[float, float]:
    """Return two numbers in [0, 1) for a seed and a video's name: its rank in the draw and its clip's start."""
    digest = hashlib.sha256(f"{seed} {name}".encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48, int.from_bytes(digest[6:12], "big") / 2**48


def choose_clips(selection: ClipSelection, damaged: Sequence[tuple[Path, str]] = ()) -> Clips:
    """Return the clips of a selection, in the order of the videos' names.

    If there are more videos than wanted, the seed draws some of them, because the first ones by name would all belong
    to the first classes. `damaged` has (path, reason) of videos that turned out to be unreadable; they are left out and
    listed as skipped. Raises FileNotFoundError for a missing folder, ValueError for fewer than 2 or num_samples videos.
    """
    index = index_clips(selection.folder, min_frames=selection.length, split=selection.split)
    known = {path for path, _ in damaged}
    good = [i for i, path in enumerate(index.paths) if path not in known]
    wanted = min(len(good), selection.max_samples) if selection.num_samples is None else selection.num_samples
    if len(good) < max(wanted, 2):
        raise ValueError(
            f"{index.root / selection.split} has {len(good)} video(s) of {selection.length} frames or more and "
            f"{max(wanted, 2)} are needed; add videos, ask for fewer samples (-ns) or for fewer frames (-n)"
        )
    if wanted < 2:
        raise ValueError(f"{wanted} sample(s) were asked for; at least 2 are needed")
    draws = {i: _draw(selection.seed, index.paths[i].relative_to(index.root).as_posix()) for i in good}
    chosen = sorted(sorted(good, key=lambda i: draws[i])[:wanted])
    paths, lengths = [index.paths[i] for i in chosen], [index.num_frames[i] for i in chosen]
    window = selection.window or range(selection.num_frames)
    starts = [window.start * selection.stride] * len(chosen)
    if selection.random_start:
        starts = [starts[0] + int(draws[i][1] * (index.num_frames[i] - selection.length + 1)) for i in chosen]
    index = replace(index, paths=paths, num_frames=lengths, skipped=[*index.skipped, *damaged])
    return Clips(index, len(window), selection.resolution, starts, selection.stride)


def halves(clips: Clips, seed: int) -> tuple[list[int], list[int]]:
    """Return two disjoint sets of positions in `clips`, of equal size, drawn by the seed; an odd clip is in neither."""
    root = clips.index.root
    draws = [_draw(seed, f"half {path.relative_to(root).as_posix()}") for path in clips.index.paths]
    order = sorted(range(len(clips)), key=lambda place: draws[place])
    half = len(clips) // 2
    return sorted(order[:half]), sorted(order[half : 2 * half])
