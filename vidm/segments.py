"""A part of a video as a clip of its own, with a path: a.mp4[10:26] has frames 10 to 25 of a.mp4. Ours.

    path = segment_path(Path("data/a.mp4"), 10, 26)
    segment_of(path)                                     # Segment(path=Path("data/a.mp4"), start=10, stop=26)

vidm.packs reads such a path as that of any video, so that everything that tells clips apart by their paths (caches,
pairs, draws, messages) tells the parts of a video apart.
"""

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vidm.video_containers import VideoError, VideoInfo

NAME = re.compile(r"(.+)\[([0-9]{1,9}):([0-9]{1,9})\]", re.DOTALL)


class Segment(NamedTuple):
    """Frames `start` to `stop` - 1 of the video at `path`."""

    path: Path
    start: int
    stop: int

    def numbers(self, indices: Iterable[int]) -> list[int]:
        """Return the numbers in the whole video of frames of the segment. Raises VideoError if it has no such frame."""
        numbers = [self.start + index for index in indices]
        for number in numbers:
            if not self.start <= number < self.stop:
                wrong, length = number - self.start, self.stop - self.start
                raise VideoError(
                    f"{segment_path(*self)}: frame {wrong} was requested, but it has {length} frames, counted from 0"
                )
        return numbers

    def probed(self, video: VideoInfo) -> VideoInfo:
        """Return the properties of the segment, given those of its video. Raises VideoError if it lacks the frames."""
        if not self.start < self.stop <= video.num_frames:
            raise VideoError(f"{segment_path(*self)}: the video has {video.num_frames} frames, counted from 0")
        return video._replace(num_frames=self.stop - self.start)

    def read(self, read_frames: Callable[[Path, list[int]], np.ndarray], indices: Iterable[int]) -> np.ndarray:
        """Return frames of the segment, read from the whole video. Raises VideoError, which names the segment."""
        numbers = self.numbers(indices)
        try:
            return read_frames(self.path, numbers)
        except VideoError as error:
            raise VideoError(f"{segment_path(*self)}: {error}") from error


def segment_path(path: Path, start: int, stop: int) -> Path:
    """Return the path of a part of a video. Ours."""
    return path.with_name(f"{path.name}[{start}:{stop}]")


def segment_of(path: Path) -> Segment | None:
    """Return the part of a video that a path means; None for any other path, and for that of an existing file. Ours."""
    match = NAME.fullmatch(path.name)
    if not match or os.path.lexists(path):
        return None
    return Segment(path.with_name(match[1]), int(match[2]), int(match[3]))


def whole_path(path: Path) -> Path:
    """Return the path of the video that a clip is a part of, or its own. Ours."""
    segment = segment_of(path)
    return segment.path if segment else path
