"""Choose the clips of a folder to measure, by the seed and the videos' names and not by the order of files. Ours.

real = ClipSelection("data/CLEVRER", num_frames=16, split="val", random_start=True)
clips = choose_clips(real)
generated = choose_clips(real.generated("results/samples"))
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median_low
from typing import NamedTuple

from vidm.datasets import Clips, window_length
from vidm.files import LARGEST
from vidm.folder_walk import count_of
from vidm.frame_size import FrameSize, plain_size, sides_of, size_text
from vidm.images import LARGEST_SIDE
from vidm.layouts import ClipIndex, index_clips
from vidm.packs import is_pack, read_frames
from vidm.segments import whole_path
from vidm.video_io import VIDEO_SUFFIXES, VideoError, frame_files

# The frames of a clip of longer videos, if no number is given.
NUM_FRAMES = 128


def check_counts(most: int = LARGEST, **counts: int | None) -> None:
    """Raise ValueError, naming the count, for one that is below 1 or above `most`; None is accepted."""
    for name, count in counts.items():
        if count is not None and not 1 <= count <= most:
            raise ValueError(f"{name} is {count}; it must be from 1 to {most}")


@dataclass(frozen=True)
class ClipSelection:
    """The clips of a folder to measure: one clip of `num_frames` frames from each selected video.

    num_samples=None selects all videos that are long enough, but at most max_samples. If not all are selected, the seed
    draws them. `folder` may be a csv list. `split` is a subfolder, or one of UCF-101's lists or in a csv list; `layout`
    is one of vidm.layouts.LAYOUTS. The frames of a clip are frame_stride * real_stride apart: real_stride is for real
    videos, when the model was trained on every real_stride-th frame. A clip begins at the first frame or, with
    `random_start`, at one drawn by the seed. With a `window`, only this range of each clip's frames is read. `others`
    more videos are added, if there are so many. With a `resolution` (px), frames are brought to it as `fit` says,
    "crop" or "pad" (see fit_frames); None keeps them as stored.
    Raises ValueError, naming the field, for a count below 1 or too large.
    """

    folder: str | Path
    num_frames: int
    num_samples: int | None = None
    resolution: FrameSize | None = None
    frame_stride: int = 1
    real_stride: int = 1
    split: str = ""
    seed: int = 0
    random_start: bool = False
    max_samples: int = 2048
    window: range | None = None
    layout: str = "auto"
    others: int = 0
    fit: str = "crop"

    def __post_init__(self) -> None:
        if self.resolution is not None:
            object.__setattr__(self, "resolution", plain_size(self.resolution))
            for side in sides_of(self.resolution):
                check_counts(most=LARGEST_SIDE, resolution=side)
        check_counts(
            num_frames=self.num_frames,
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
        """Return the generated clips to compare with these: from the first frame; no real_stride, split or layout."""
        return replace(self, folder=folder, real_stride=1, split="", layout="auto", random_start=False)


def _draw(seed: int, name: str) -> tuple[float, float]:
    """Return two numbers in [0, 1) for a seed and a video's name: its rank in the draw and its clip's start."""
    digest = hashlib.sha256(f"{seed} {name}".encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48, int.from_bytes(digest[6:12], "big") / 2**48


def index_of(selection: ClipSelection) -> ClipIndex:
    """Return all clips of the selection's folder that are long enough. Raises what index_clips raises."""
    return index_clips(selection.folder, selection.length, selection.layout, selection.split)


def usual_num_frames(*sides: ClipSelection) -> tuple[int, str | Path]:
    """Return how many frames a clip has by default, and the folder that decides it.

    They are as many as most videos of each folder have at the selections' strides, at most NUM_FRAMES. Ours.
    """
    most = [median_low((length - 1) // side.stride + 1 for length in index_of(side).num_frames) for side in sides]
    return min(NUM_FRAMES, *most), sides[most.index(min(most))].folder


def choose_clips(selection: ClipSelection, damaged: Sequence[tuple[Path, str]] = ()) -> Clips:
    """Return the clips of a selection, in the order of the videos' names.

    If there are more videos than wanted, the seed draws some of them, because the first ones by name would all belong
    to the first classes. `damaged` has (path, reason) of videos that turned out to be unreadable; they are left out and
    listed as skipped. Raises FileNotFoundError for a missing folder, ValueError for fewer than 2 or num_samples videos.
    """
    index = index_of(selection)
    known = {path for path, _ in damaged}
    good = [i for i, path in enumerate(index.paths) if path not in known]
    wanted = min(len(good), selection.max_samples) if selection.num_samples is None else selection.num_samples
    if len(good) < max(wanted, 2):
        ways = ["add videos"] + ["ask for fewer samples (-ns)"] * (wanted > 2 and len(good) >= 2)
        ways += ["ask for fewer frames (-n)"] * bool(index.skipped)
        raise ValueError(
            f"{index.root / selection.split} has {count_of(len(good), 'video')} of {selection.length} frames or more "
            f"and {max(wanted, 2)} are needed: {' or '.join(ways)}"
        )
    if wanted < 2:
        raise ValueError(f"num_samples is {wanted}: a distance needs 2 videos of each folder or more")
    draws = {i: _draw(selection.seed, index.name_of(index.paths[i]).as_posix()) for i in good}
    chosen = sorted(sorted(good, key=lambda i: draws[i])[: wanted + selection.others])
    window = selection.window or range(selection.num_frames)
    starts = [window.start * selection.stride] * len(chosen)
    if selection.random_start:
        starts = [starts[0] + int(draws[i][1] * (index.num_frames[i] - selection.length + 1)) for i in chosen]
    index = replace(index.at(chosen), skipped=[*index.skipped, *damaged])
    return Clips(index, len(window), selection.resolution, starts, selection.stride, selection.fit)


def draw_order(clips: Clips, seed: int, by_video: bool = False) -> list[int]:
    """Return the places of chosen clips in the order in which the seed draws them.

    With `by_video`, parts of one video, which look alike, follow each other.
    """

    def draw(path: Path) -> tuple[float, float]:
        return _draw(seed, clips.index.name_of(path).as_posix())

    draws = [(draw(whole_path(path) if by_video else path), draw(path)) for path in clips.index.paths]
    return sorted(range(len(clips)), key=lambda place: draws[place])


def taken(clips: Clips, places: Sequence[int]) -> Clips:
    """Return the clips at some places."""
    starts = [clips.starts[i] for i in places]
    return Clips(clips.index.at(places), clips.num_frames, clips.resolution, starts, clips.stride, clips.fit)


# What a folder contains


class FolderContents(NamedTuple):
    """What was found in a folder: its description, the shortest and longest usable clip in frames, how many clips have
    each size and are of each kind, and (path, reason) of clips that are skipped."""

    found: str
    frames: tuple[int, int]
    sizes: dict[str, int]
    kinds: dict[str, int]
    skipped: list[tuple[str, str]]

    def __str__(self) -> str:
        sizes, kinds = (", ".join(f"{n} ({count})" for n, count in each.items()) for each in (self.sizes, self.kinds))
        return f"{self.found}; {self.frames[0]} to {self.frames[1]} frames; height x width {sizes}; {kinds}"


def _kind(path: Path) -> str:
    path = whole_path(path)
    if path.suffix.lower() in VIDEO_SUFFIXES and not path.is_dir():
        return path.suffix.lower()[1:]
    if path.is_dir() and not is_pack(path):
        return f"{frame_files(path)[0].suffix.lower()[1:]} frames"
    return "frames"  # those of a pack


def _size(path: Path) -> str:
    try:
        height, width, _ = read_frames(path, [0])[0].shape
    except (VideoError, FileNotFoundError):
        return "unreadable"
    return size_text((height, width))


def kinds_of(index: ClipIndex) -> dict[str, int]:
    """Return how many clips are of each kind of file (mp4, gif, png frames, ...), the most frequent first. Ours."""
    return dict(Counter(map(_kind, index.paths)).most_common())


def contents_of(index: ClipIndex) -> FolderContents:
    """Summarize the clips of a folder; the first frame of each is read for its size. Ours."""
    with ThreadPoolExecutor() as pool:
        sizes = Counter(pool.map(_size, index.paths))
    frames = min(index.num_frames, default=0), max(index.num_frames, default=0)
    skipped = [(str(path), reason) for path, reason in index.skipped]
    return FolderContents(index.found, frames, dict(sizes.most_common()), kinds_of(index), skipped)


def warn_of_kinds(real: ClipIndex, made: ClipIndex) -> list[str]:
    """Return a warning if two folders are of different kinds of files: metrics measure their compression too. Ours."""
    kinds = [sorted(kinds_of(index)) for index in (real, made)]
    if kinds[0] == kinds[1]:
        return []
    names = [f"{' and '.join(names)} in {index.root}" for names, index in zip(kinds, (real, made), strict=True)]
    return [f"{', '.join(names)}: numbers include the difference of the formats; convert both folders to one format"]
