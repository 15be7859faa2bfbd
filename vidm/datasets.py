"""Training samples and evaluation clips from a clip index, and the order of samples in training. Ours.

    index = index_clips("data/CLEVRER", min_frames=128)
    triplets = FrameTriplets(index, resolution=128, num_frames=128, seed=0)
    sampler = ResumableSampler(len(triplets), batch_size=8, seed=0, start_step=0, num_steps=100)
    batches = DataLoader(triplets, batch_sampler=sampler)

A triplet (first frame, previous frame, frame to predict) has the key (epoch, index). Everything random in it is a
function of (seed, epoch, index), so workers, ranks and restarts do not change it. DataLoader(triplets, shuffle=True)
works too: its epochs are random ones, which torch.manual_seed repeats.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from vidm.frame_size import FITS, FrameSize, sides_of
from vidm.layouts import ClipIndex
from vidm.packs import read_frames
from vidm.video_io import VideoError

NO_LABELS: Mapping[str, Tensor] = {}


def _scaled(side: int, numerator: int, denominator: int) -> int:
    """side * numerator / denominator, rounded, at least 1."""
    return max((2 * side * numerator + denominator) // (2 * denominator), 1)


def _centred(outer: tuple[int, ...], inner: tuple[int, ...]) -> tuple[slice, ...]:
    """The part of frames (T, *outer) that is an inner rectangle in their middle."""
    starts = [(whole - part) // 2 for whole, part in zip(outer, inner, strict=True)]
    return slice(None), *(slice(start, start + part) for start, part in zip(starts, inner, strict=True))


def _resized(clip_u8: np.ndarray, sides: tuple[int, int]) -> np.ndarray:
    frames = np.ascontiguousarray(clip_u8)
    if frames.shape[1:3] == sides:
        return frames
    channels_first = torch.from_numpy(frames).permute(0, 3, 1, 2)
    resized = F.interpolate(channels_first, sides, mode="bicubic", antialias=True)
    return np.ascontiguousarray(resized.permute(0, 2, 3, 1).numpy())


def fit_frames(clip_u8: np.ndarray, size: FrameSize, fit: str = "crop") -> np.ndarray:
    """Bring frames to a size without stretching them: uint8 (T, H, W, 3) -> uint8 (T, height, width, 3).

    `size` is (height, width), or an int for a square. `fit` "crop" resizes the largest central part of that shape;
    "pad" resizes whole frames to fit inside, with black bars around them. Sides are rounded to whole pixels. The resize
    is bicubic with antialiasing on 8 bits, as in Pillow; frames of the right size are not changed. Raises ValueError
    for another `fit`. Ours.
    """
    if fit not in FITS:
        raise ValueError(f"fit is {fit!r}: choose from {', '.join(FITS)}")
    given, wanted = clip_u8.shape[1:3], sides_of(size)
    is_taller = given[0] * wanted[1] > given[1] * wanted[0]
    if fit == "pad":
        by_height = (wanted[0], _scaled(given[1], wanted[0], given[0]))
        inner = by_height if is_taller else (_scaled(given[0], wanted[1], given[1]), wanted[1])
        padded = np.zeros((len(clip_u8), *wanted, 3), np.uint8)
        padded[_centred(wanted, inner)] = _resized(clip_u8, inner)
        return padded
    by_width = (_scaled(given[1], wanted[0], wanted[1]), given[1])
    part = by_width if is_taller else (given[0], _scaled(given[0], wanted[1], wanted[0]))
    return _resized(clip_u8[_centred(given, part)], wanted)


def to_float(frames_u8: np.ndarray) -> Tensor:
    """Convert uint8 (..., H, W, 3) in 0 .. 255 to float32 (..., 3, H, W) in [-1, 1]. Ours."""
    channels_first = np.moveaxis(frames_u8, -1, -3)
    return torch.from_numpy(channels_first.astype(np.float32, order="C")) / 127.5 - 1


def to_uint8(frames: Tensor) -> np.ndarray:
    """Convert float (..., 3, H, W) in [-1, 1] to uint8 (..., H, W, 3), rounded and clamped: inverts to_float. Ours."""
    levels = ((frames.detach().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return levels.movedim(-3, -1).cpu().numpy()


def window_length(num_frames: int, stride: int) -> int:
    """Return how many frames of a video are spanned by `num_frames` frames that are `stride` apart. Ours."""
    return (num_frames - 1) * stride + 1


def class_of_each(index: ClipIndex) -> list[str]:
    """Return the class of each clip: that of a csv list, or the name of the folder that directly contains it. Ours."""
    return index.classes or [path.parent.name for path in index.paths]


class _TrainingVideos(Dataset[dict[str, Tensor]]):
    """A training set of one sample per video and epoch, with the key (epoch, index of the video).

    The index of a video alone, as a DataLoader's own samplers give it, draws an epoch from torch's random generator.
    `labels` has a value of each video by name, such as int64 `class_index`, its class; a sample has those of its video.
    """

    def __init__(
        self, index: ClipIndex, resolution: FrameSize, seed: int, flip: bool, labels: Mapping[str, Tensor], fit: str
    ) -> None:
        self.index, self.resolution, self.seed, self.flip, self.fit = index, resolution, seed, flip, fit
        self.labels = labels
        self._reported: set[Path] = set()

    def __len__(self) -> int:
        return len(self.index.paths)

    def _full_key(self, key: tuple[int, int] | int) -> tuple[int, int]:
        if isinstance(key, tuple):
            return key
        index = range(len(self))[key]  # IndexError ends a loop over the data set
        return int(torch.randint(1 << 31, ())), index

    def _read(self, index: int, choose: Callable[[int], list[int]], mirrored: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Read frames of a video, float (n, 3, R, R), and its conditions that are not frames, by name.

        `choose` returns the numbers of the frames, given how many there are. A video that has become unreadable is
        replaced by the next one, because a disk may fail during a long run.
        """
        for candidate in range(index, index + len(self)):
            video = candidate % len(self)
            path = self.index.paths[video]
            try:
                frames = read_frames(path, choose(self.index.num_frames[video]))
            except (VideoError, FileNotFoundError) as error:
                if path not in self._reported:
                    self._reported.add(path)
                    print(f"replaced by the next video: {error}", file=sys.stderr, flush=True)
                continue
            fitted = fit_frames(frames, self.resolution, self.fit)
            labels = {name: values[video] for name, values in self.labels.items()}
            return to_float(fitted[:, :, ::-1] if mirrored else fitted), labels
        raise VideoError(f"{self.index.root}: none of its {len(self)} videos can be read anymore")


class FrameTriplets(_TrainingVideos):
    """One frame to predict per video: it is drawn from a window of num_frames frames, which starts at a random frame.

    A sample's key is (epoch, index of the video), or the index alone for a random epoch. A sample is a dict of float32
    (3, H, W) in [-1, 1]: `first`, frame 0 of the window; `frame`, frame n, with n uniform in 1 .. num_frames - 1;
    `previous`, frame n - 1; and of int64 `frame_index`, n. Frames of a window are `stride` frames of the video apart.
    With `flip`, half of the triplets are mirrored. `resolution` is H x W and `fit` how frames of another shape are
    brought to it, as for fit_frames. `labels` are values of all videos by name, each (N, ...). The videos of `index`
    must have at least window_length(num_frames, stride) frames.
    """

    def __init__(
        self,
        index: ClipIndex,
        resolution: FrameSize,
        num_frames: int,
        seed: int,
        flip: bool = True,
        stride: int = 1,
        labels: Mapping[str, Tensor] = NO_LABELS,
        fit: str = "crop",
    ) -> None:
        assert min(index.num_frames) >= window_length(num_frames, stride), "pass min_frames to index_clips"
        assert num_frames >= 2
        super().__init__(index, resolution, seed, flip, labels, fit)
        self.num_frames, self.stride = num_frames, stride

    def __getitem__(self, key: tuple[int, int] | int) -> dict[str, Tensor]:
        """Return the sample of (epoch, index), or of a random epoch. Raises VideoError if no video can be read."""
        epoch, index = self._full_key(key)
        rng = np.random.default_rng([self.seed, epoch, index])
        where, coin = rng.random(2)
        frame_index = int(rng.integers(1, self.num_frames))

        def triplet(num_frames: int) -> list[int]:
            start = int(where * (num_frames - window_length(self.num_frames, self.stride) + 1))
            return [start + n * self.stride for n in (0, frame_index - 1, frame_index)]

        (first, previous, frame), labels = self._read(index, triplet, mirrored=self.flip and coin < 0.5)
        return {
            "first": first,
            "previous": previous,
            "frame": frame,
            "frame_index": torch.tensor(frame_index),
            **labels,
        }


class SingleFrames(_TrainingVideos):
    """One frame per video, for the content generator: the first or, with `anywhere`, a random one.

    The sample of key (epoch, index) is {`frame`: float32 (3, H, W) in [-1, 1]}; with `flip`, half are mirrored.
    `resolution`, `labels` and `fit` are those of FrameTriplets.
    """

    def __init__(
        self,
        index: ClipIndex,
        resolution: FrameSize,
        seed: int,
        anywhere: bool = False,
        flip: bool = True,
        labels: Mapping[str, Tensor] = NO_LABELS,
        fit: str = "crop",
    ) -> None:
        super().__init__(index, resolution, seed, flip, labels, fit)
        self.anywhere = anywhere

    def __getitem__(self, key: tuple[int, int] | int) -> dict[str, Tensor]:
        """Return the sample of (epoch, index), or of a random epoch. Raises VideoError if no video can be read."""
        epoch, index = self._full_key(key)
        rng = np.random.default_rng([self.seed, epoch, index])
        where, coin = rng.random(2)

        def single(num_frames: int) -> list[int]:
            return [int(where * num_frames) if self.anywhere else 0]

        (frame,), labels = self._read(index, single, mirrored=self.flip and coin < 0.5)
        return {"frame": frame, **labels}


class Clips(Dataset[tuple[np.ndarray, str]]):
    """Evaluation clips: sample i is (uint8 (num_frames, H, W, 3), path), every `stride`-th frame from starts[i].

    Without `starts` every clip starts at frame 0. With a `resolution`, frames are brought to it by fit_frames. A
    damaged video raises VideoError.
    """

    def __init__(
        self,
        index: ClipIndex,
        num_frames: int,
        resolution: FrameSize | None = None,
        starts: Sequence[int] | None = None,
        stride: int = 1,
        fit: str = "crop",
    ) -> None:
        self.index, self.num_frames, self.stride = index, num_frames, stride
        self.resolution, self.fit = resolution, fit
        self.starts = [0] * len(index.paths) if starts is None else list(starts)
        length = window_length(num_frames, stride)
        ends = [start + length for start in self.starts]
        assert all(end <= n for end, n in zip(ends, index.num_frames, strict=True)), "pass min_frames to index_clips"

    def __len__(self) -> int:
        return len(self.index.paths)

    def frames(self, index: int) -> range:
        """Return the numbers of the frames of sample `index` in its video."""
        start = self.starts[index]
        return range(start, start + window_length(self.num_frames, self.stride), self.stride)

    def __getitem__(self, index: int) -> tuple[np.ndarray, str]:
        path = self.index.paths[index]
        clip_u8 = read_frames(path, self.frames(index))
        fitted = clip_u8 if self.resolution is None else fit_frames(clip_u8, self.resolution, self.fit)
        return fitted, str(path)

    def readable(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the clips with their places in the index, in order, leaving out damaged ones."""
        for index in range(len(self)):
            try:
                yield index, self[index][0]
            except VideoError:
                continue


class ResumableSampler:
    """Batches of (epoch, index) keys: key i of the global batch of step s is a function of (seed, s, i).

    An epoch contains every sample once, in an order given by (seed, epoch); a last incomplete batch is dropped. A batch
    larger than the data contains several epochs, so that repeated videos differ in augmentation.

    Iterating yields this rank's `accum_steps` micro-batches for each of `num_steps` steps, starting at `start_step`.
    With `micro` keys each, micro-batch m of rank r starts at key (m * world_size + r) * micro of the global batch, so a
    step does not depend on the number of ranks and micro-batches. `batch_size` is global, a multiple of
    world_size * accum_steps.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        seed: int,
        start_step: int,
        num_steps: int,
        rank: int = 0,
        world_size: int = 1,
        accum_steps: int = 1,
    ) -> None:
        assert batch_size % (world_size * accum_steps) == 0
        self.num_samples, self.batch_size, self.seed = num_samples, batch_size, seed
        self.start_step, self.num_steps = start_step, num_steps
        self.rank, self.world_size, self.accum_steps = rank, world_size, accum_steps

    def __len__(self) -> int:
        return self.num_steps * self.accum_steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        micro = self.batch_size // (self.world_size * self.accum_steps)
        for step in range(self.start_step, self.start_step + self.num_steps):
            keys = self.global_batch(step)
            for micro_batch in range(self.accum_steps):
                place = (micro_batch * self.world_size + self.rank) * micro
                yield keys[place : place + micro]

    def global_batch(self, step: int) -> list[tuple[int, int]]:
        """Return the batch_size keys (epoch, index) of a step."""
        epochs_per_round = -(-self.batch_size // self.num_samples)  # 1 unless a batch is larger than the data
        steps_per_round = epochs_per_round * self.num_samples // self.batch_size
        current, step_in_round = divmod(step, steps_per_round)
        epochs = range(current * epochs_per_round, (current + 1) * epochs_per_round)
        order = np.concatenate([np.random.default_rng([self.seed, e]).permutation(self.num_samples) for e in epochs])
        places = range(step_in_round * self.batch_size, (step_in_round + 1) * self.batch_size)
        return [(epochs[place // self.num_samples], int(order[place])) for place in places]
