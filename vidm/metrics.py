"""Numbers for folders of videos: videos -> features -> statistics -> number, with all that the number depends on.

The Frechet video distance (Unterthiner et al. 2018) and the kernel video distance between two folders, and the video
inception score (Saito et al. 2020) of one. What sets published numbers apart has a name: vidm.protocols.

    result = compute_fvd("real", "generated", load_detector(), num_frames=16, resolution=128)
    print(result.name, result.value, "floor", result.floor)

The real video that is nearest to each generated one: the worst, the best, and what may have been learned by heart.

for neighbour in nearest_real(real, made): print(neighbour.path, neighbour.nearest, neighbour.distance)
"""

import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import numpy as np
import torch
from scipy.spatial.distance import cdist
from scipy.special import softmax

from vidm.clip_choice import check_counts, choose_clips, halves
from vidm.detectors import C3D, STYLEGAN_V, Detector, Protocol, name_of
from vidm.distributed import is_main, on_main
from vidm.features import Features, FeatureTable, measure
from vidm.frechet import FeatureStats, frechet_distance, inception_score, kernel_distance


@dataclass(frozen=True)
class Neighbour:
    """A generated video, the real one whose features are nearest to its own, and the distance of the two.

    `start` is the frame of the real video at which its clip begins.
    """

    path: Path
    nearest: Path
    start: int
    distance: float


def nearest_real(real: Features, made: Features) -> tuple[Neighbour, ...]:
    """Return each generated clip's nearest real one, the nearest first; by the Euclidean distance of features. Ours.

    Blocks of rows are held against blocks of rows, so that memory does not grow with either set.
    """
    found: list[Neighbour] = []
    real_paths, made_paths = real.clips.index.paths, made.clips.index.paths
    for block in made.blocks():
        distances = np.full(len(block), np.inf)
        places = np.zeros(len(block), dtype=int)
        seen = 0
        for others in real.blocks():
            gaps = cdist(block, others)
            closer = gaps.min(axis=1) < distances
            places = np.where(closer, seen + gaps.argmin(axis=1), places)
            distances = np.minimum(distances, gaps.min(axis=1))
            seen += len(others)
        for path, place, distance in zip(made_paths[len(found) :], places, distances, strict=False):
            found.append(Neighbour(path, real_paths[place], real.clips.starts[place], float(distance)))
    return tuple(sorted(found, key=lambda neighbour: neighbour.distance))


# A covariance in d dimensions from fewer samples than this many times d is mostly chance.
SAMPLES_PER_DIMENSION = 4
SPLITS = 10

Skipped = tuple[tuple[Path, str], ...]


@dataclass(frozen=True)
class FVDResult:
    """A distance and all it depends on.

    `values` are the distances of all repeats, `value` is their mean; likewise `kernel_values` and `kernel`, empty and
    None unless asked for. `floor` is the distance between disjoint halves of the real videos, and so of half as many;
    None below 4 videos. `num_samples` counts each folder's videos, `size` is the (height, width) of their clips,
    `skipped` has (path, reason), `warnings` say what the number may not be taken for. `neighbours` are those of the
    first repeat, the nearest first; empty unless asked for.
    """

    value: float
    values: tuple[float, ...]
    kernel: float | None
    kernel_values: tuple[float, ...]
    floor: float | None
    name: str
    protocol: str
    num_samples: tuple[int, int]
    feature_dim: int
    num_frames: int
    frame_strides: tuple[int, int]
    resolution: int | None
    size: tuple[int, int]
    seed: int
    skipped: Skipped
    warnings: tuple[str, ...]
    neighbours: tuple[Neighbour, ...]

    @property
    def deviation(self) -> float | None:
        """The standard deviation of `values` over the repeats (n - 1); None for a single one."""
        return stdev(self.values) if len(self.values) > 1 else None

    @property
    def kernel_deviation(self) -> float | None:
        """The same of `kernel_values`."""
        return stdev(self.kernel_values) if len(self.kernel_values) > 1 else None


@dataclass(frozen=True)
class VISResult:
    """A video inception score, its deviation over the splits, and all they depend on."""

    value: float
    deviation: float
    name: str
    num_samples: int
    num_classes: int
    num_frames: int
    resolution: int | None
    size: tuple[int, int]
    splits: int
    seed: int
    softmax: bool
    skipped: Skipped


def _distance(one: FeatureStats, two: FeatureStats, protocol: Protocol) -> float:
    moments = (one.mean(), one.covariance(protocol.ddof), two.mean(), two.covariance(protocol.ddof))
    return frechet_distance(*moments)


def _floor(real: Features, protocol: Protocol, seed: int) -> float | None:
    one, two = halves(real.clips, seed)
    return _distance(real.stats(one), real.stats(two), protocol) if len(one) > 1 else None


class _Numbers(NamedTuple):
    """What one draw of clips gives."""

    value: float
    kernel: float | None
    floor: float | None
    neighbours: tuple[Neighbour, ...]
    feature_dim: int
    size: tuple[int, int]


def _numbers(real: Features, made: Features, protocol: Protocol, seed: int, kernel: bool, neighbours: bool) -> _Numbers:
    if real.size != made.size:
        sizes = [f"{f.size[1]} x {f.size[0]} in {f.clips.index.root}" for f in (real, made)]
        raise ValueError(f"videos are {' and '.join(sizes)}; give a resolution (-r) to bring all to one size")
    one, two = real.stats(), made.stats()
    return _Numbers(
        value=_distance(one, two, protocol),
        kernel=kernel_distance(real.rows(), made.rows()) if kernel else None,
        floor=_floor(real, protocol, seed),
        neighbours=nearest_real(real, made) if neighbours else (),
        feature_dim=len(one.mean()),
        size=real.size,
    )


def _warnings_of(sides: Sequence[Features], feature_dim: int) -> list[str]:
    num_samples = min(len(side.keys) for side in sides)
    enough = SAMPLES_PER_DIMENSION * feature_dim
    if num_samples >= enough:
        return []
    return [
        f"{num_samples} videos are few for {feature_dim} features: the distance comes out too large, the more so the "
        f"fewer they are; have {enough} or more, or compare only with numbers of as many videos"
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def _skipped_of(sides: Sequence[Features]) -> Skipped:
    """All that was skipped, once, said on stderr."""
    for side in sides:
        if is_main() and side.clips.index.skipped:
            print(side.clips.index.skipped_message(), file=sys.stderr)
    return tuple(item for side in sides for item in side.clips.index.skipped)


def compute_fvd(
    dir1: str | Path,
    dir2: str | Path,
    detector: Detector,
    num_frames: int = 128,
    num_samples: int | None = None,
    resolution: int | None = None,
    batch_size: int = 32,
    workers: int = 0,
    progress: bool = False,
    *,
    protocol: Protocol = STYLEGAN_V,
    frame_stride: int = 1,
    real_stride: int = 1,
    split: str = "",
    seed: int = 0,
    repeats: int = 1,
    kernel: bool = False,
    neighbours: bool = False,
    cache: str | Path | None = None,
    device: torch.device | str = "cpu",
) -> FVDResult:
    """The Frechet distance between the real videos of dir1 and the generated ones of dir2, in a detector's features.

    Each folder holds videos, folders of frames or a pack, and of each video one clip of num_frames frames counts,
    frame_stride apart: in generated videos the first one, in real ones that or, where the protocol says so, one at a
    random start. Shorter and unreadable videos are named on stderr, skipped, and listed in the result. Where every
    video is as long as a clip, the folders may change places.

    num_samples=None takes all videos of either folder, at most 2048 each. With a resolution (px), frames are cropped to
    the central square and resized first; without, they are as stored, and all of one size. real_stride thins the real
    videos by that factor more, for a model that was trained on every K-th frame. `split` is one of dir1. `repeats`
    draws clips again with the next seeds. `kernel` computes the kernel distance as well, which takes all features into
    memory, `neighbours` each generated video's nearest real one. `cache` is a folder where features are kept by content
    and protocol. batch_size bounds memory, `workers` threads read, and neither changes the result; nor do several
    processes, each of which takes a share and returns all. The distance shrinks as samples are added: compare numbers
    of equal num_samples only.

    Raises FileNotFoundError for a missing folder and ValueError, naming folder or video, for what cannot be measured.
    """
    check_counts(
        num_frames=num_frames,
        batch_size=batch_size,
        resolution=resolution,
        frame_stride=frame_stride,
        real_stride=real_stride,
        repeats=repeats,
    )
    strides = (frame_stride * real_stride, frame_stride)
    turns: list[_Numbers] = []
    drawn = []
    with closing(FeatureTable(cache)) as table:
        for turn_seed in range(seed, seed + repeats):
            choose = partial(
                choose_clips,
                num_frames=num_frames,
                num_samples=num_samples,
                resolution=resolution,
                seed=turn_seed,
                max_samples=protocol.max_videos,
            )
            choices = (
                partial(choose, dir1, stride=strides[0], split=split, random_start=protocol.random_start),
                partial(choose, dir2, stride=strides[1]),
            )
            how = (detector, protocol, table, batch_size, workers, device, progress)
            sides = [measure(choice, *how) for choice in choices]
            with_neighbours = neighbours and not turns
            turns.append(on_main(partial(_numbers, sides[0], sides[1], protocol, turn_seed, kernel, with_neighbours)))
            drawn.append([(side.clips.index.paths, side.clips.starts) for side in sides])
    warnings = _warnings_of(sides, turns[0].feature_dim)
    if Path(dir1, split).resolve() == Path(dir2).resolve():
        warnings.append(f"both folders are {dir2}: the distance of a folder to itself says nothing of a generator")
    if repeats > 1 and all(draw == drawn[0] for draw in drawn):
        warnings.append("every repeat drew the same clips: all videos are taken, and there is one clip in each")
    return FVDResult(
        value=mean(turn.value for turn in turns),
        values=tuple(turn.value for turn in turns),
        kernel=_mean([turn.kernel for turn in turns]),
        kernel_values=tuple(turn.kernel for turn in turns if turn.kernel is not None),
        floor=_mean([turn.floor for turn in turns]),
        name=name_of(detector),
        protocol=protocol.name,
        num_samples=(len(sides[0].keys), len(sides[1].keys)),
        feature_dim=turns[0].feature_dim,
        num_frames=num_frames,
        frame_strides=strides,
        resolution=resolution,
        size=turns[0].size,
        seed=seed,
        skipped=_skipped_of(sides),
        warnings=tuple(warnings),
        neighbours=turns[0].neighbours,
    )


def _score(features: Features, splits: int, seed: int) -> tuple[float, float, int, bool, tuple[int, int]]:
    rows = features.rows()
    scores = rows.min() < 0 or np.abs(rows.sum(axis=1) - 1).max() > 1e-3
    value, deviation = inception_score(softmax(rows, axis=1) if scores else rows, splits, seed)
    return value, deviation, rows.shape[1], bool(scores), features.size


def compute_vis(
    folder: str | Path,
    classifier: Detector,
    num_frames: int = 16,
    num_samples: int | None = None,
    resolution: int | None = None,
    batch_size: int = 32,
    workers: int = 0,
    progress: bool = False,
    *,
    splits: int = SPLITS,
    seed: int = 42,
    cache: str | Path | None = None,
    device: torch.device | str = "cpu",
) -> VISResult:
    """The video inception score of a folder of generated videos: how sure a classifier is, and of how many classes.

    Saito et al. 2020, as StyleGAN-V computes it: the first num_frames frames of each video as uint8, shuffled by the
    seed, mean and deviation over the splits. Real videos have no part in it. Where the classifier gives scores rather
    than probabilities, a softmax is taken, and the result says so. All else is as in compute_fvd. Raises ValueError as
    it does, and for fewer videos than splits.
    """
    check_counts(num_frames=num_frames, batch_size=batch_size, resolution=resolution, splits=splits)
    choice = partial(
        choose_clips, folder, num_frames=num_frames, num_samples=num_samples, resolution=resolution, seed=seed
    )
    with closing(FeatureTable(cache)) as table:
        features = measure(choice, classifier, C3D, table, batch_size, workers, device, progress)
        value, deviation, num_classes, took_softmax, size = on_main(partial(_score, features, splits, seed))
    return VISResult(
        value=value,
        deviation=deviation,
        name=name_of(classifier),
        num_samples=len(features.keys),
        num_classes=num_classes,
        num_frames=num_frames,
        resolution=resolution,
        size=size,
        splits=splits,
        seed=seed,
        softmax=took_softmax,
        skipped=_skipped_of([features]),
    )
