"""The Frechet video distance between two folders of videos: videos -> features -> statistics -> number.

Unterthiner et al. 2018; the protocol is that of StyleGAN-V (Skorokhodov et al. 2022): one clip a video, at most 2048
videos a folder, covariances over n.

    result = compute_fvd("real", "generated", load_detector(), num_frames=16, resolution=128)
    print(result.name, result.value)
"""

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from vidm.datasets import Clips
from vidm.detectors import Detector
from vidm.frechet import FeatureStats, frechet_distance
from vidm.layouts import ClipIndex, index_clips
from vidm.video_io import VideoError

MAX_SAMPLES = 2048


@dataclass(frozen=True)
class FVDResult:
    """A distance and all it depends on; `num_samples` counts each folder's videos, `skipped` has (path, reason)."""

    value: float
    name: str
    num_samples: tuple[int, int]
    feature_dim: int
    num_frames: int
    resolution: int | None
    skipped: tuple[tuple[Path, str], ...]


def _stack(samples: list[tuple[np.ndarray, str]]) -> tuple[np.ndarray, list[str]]:
    clips = [clip for clip, _ in samples]
    paths = [path for _, path in samples]
    for clip, path in zip(clips, paths, strict=True):
        if clip.shape != clips[0].shape:
            sizes = [f"{c.shape[2]} x {c.shape[1]}" for c in (clip, clips[0])]
            raise ValueError(
                f"{path} is {sizes[0]} and {paths[0]} is {sizes[1]}; give a resolution to bring all videos to one size"
            )
    return np.stack(clips), paths


def _batches(
    clips: Clips, batch_size: int, workers: int, damaged: list[tuple[Path, str]]
) -> Iterator[tuple[np.ndarray, list[str]]]:
    """Every clip once, the last batch as large as what is left; those that cannot be read go to `damaged`.

    Threads rather than processes: decoders let each other run.
    """

    def read(index: int) -> tuple[np.ndarray, str] | None:
        try:
            return clips[index]
        except VideoError as error:
            damaged.append((clips.index.paths[index], str(error)))
            return None

    with ThreadPoolExecutor(max(workers, 1)) as pool:
        for start in range(0, len(clips), batch_size):
            found = pool.map(read, range(start, min(start + batch_size, len(clips))))
            samples = [sample for sample in found if sample is not None]
            if samples:
                yield _stack(samples)


def choose_videos(
    folder: str | Path, num_frames: int, num_samples: int | None = None, damaged: Sequence[tuple[Path, str]] = ()
) -> ClipIndex:
    """The videos of a folder that are measured: those of num_frames or more, and num_samples of them.

    num_samples=None takes all, but at most 2048. Of more videos a fixed pseudo-random part is taken: the first ones
    by name would all be of the first classes. `damaged`, of which only reading told, are left out and listed as
    skipped. Raises FileNotFoundError for a missing folder, ValueError when there are fewer than 2 or than num_samples
    videos.
    """
    index = index_clips(folder, min_frames=num_frames)
    known = {path for path, _ in damaged}
    good = [i for i, path in enumerate(index.paths) if path not in known]
    available = len(good)
    wanted = min(available, MAX_SAMPLES) if num_samples is None else num_samples
    if available < max(wanted, 2):
        raise ValueError(
            f"{folder} has {available} video(s) of {num_frames} frames or more and {max(wanted, 2)} are needed; "
            "add videos, ask for fewer samples (-ns) or for fewer frames (-n)"
        )
    if wanted < 2:
        raise ValueError(f"{wanted} sample(s) were asked for; a distance needs at least 2")
    chosen = sorted(good[i] for i in np.random.default_rng(0).permutation(available)[:wanted])
    paths, lengths = [index.paths[i] for i in chosen], [index.num_frames[i] for i in chosen]
    return replace(index, paths=paths, num_frames=lengths, skipped=[*index.skipped, *damaged])


def folder_stats(
    index: ClipIndex,
    detector: Detector,
    num_frames: int,
    resolution: int | None = None,
    batch_size: int = 32,
    workers: int = 0,
    progress: bool = False,
) -> tuple[FeatureStats, list[tuple[Path, str]]]:
    """Mean and covariance of the features of each video's first num_frames frames, every video of the index once.

    Also returns (path, reason) of videos that turn out damaged further in. Raises ValueError for videos of different
    sizes without a resolution, and, naming the video, for NaN features.
    """
    clips = Clips(index, num_frames, resolution)
    stats = FeatureStats()
    damaged: list[tuple[Path, str]] = []
    with tqdm(total=len(clips), desc=str(index.root), unit="video", disable=not progress) as bar:
        for clips_u8, paths in _batches(clips, batch_size, workers, damaged):
            features = detector(clips_u8)
            finite = torch.isfinite(features).all(dim=1)
            if not finite.all():
                bad = paths[int(finite.logical_not().nonzero()[0])]
                raise ValueError(f"{bad}: its features hold NaN or inf; look at the video and at the detector")
            stats.update(features)
            bar.update(len(paths))
    return stats, damaged


def _measured(
    folder: str | Path, detector: Detector, num_frames: int, num_samples: int | None, *how: Any
) -> tuple[FeatureStats, ClipIndex]:
    """Statistics of a folder, and the index of what they are of, with all that was skipped; it is named on stderr.

    Videos that turn out damaged are replaced by others where that many were asked for.
    """
    damaged: list[tuple[Path, str]] = []
    while True:
        index = choose_videos(folder, num_frames, num_samples, damaged)
        stats, found = folder_stats(index, detector, num_frames, *how)
        damaged += found
        if not found:
            break
    if index.skipped:
        print(index.skipped_message(), file=sys.stderr)
    return stats, index


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
) -> FVDResult:
    """The Frechet distance between the videos of two folders, in the detector's features; symmetric in the two.

    Each folder holds videos or folders of frames, and of each the first num_frames frames are taken; shorter and
    unreadable ones are named on stderr, skipped, and listed in the result. num_samples=None takes all videos of either
    folder, at most 2048 each. With a resolution (px), frames are cropped to the central square and resized first.
    batch_size bounds memory and changes nothing else; `workers` threads read. The distance shrinks as samples are
    added, so compare numbers of equal num_samples only.
    Raises FileNotFoundError for a missing folder and ValueError, naming folder or video, for what cannot be measured.
    """
    for name, count in (("num_frames", num_frames), ("batch_size", batch_size)):
        if count < 1:
            raise ValueError(f"{name} is {count}; it must be at least 1")
    if Path(dir1).resolve() == Path(dir2).resolve():
        print(f"warning: both folders are {dir1}; the distance of a folder to itself is 0", file=sys.stderr)
    (one, index1), (two, index2) = (
        _measured(folder, detector, num_frames, num_samples, resolution, batch_size, workers, progress)
        for folder in (dir1, dir2)
    )
    return FVDResult(
        value=frechet_distance(one.mean(), one.covariance(), two.mean(), two.covariance()),
        name=detector.name,
        num_samples=(one.count, two.count),
        feature_dim=len(one.mean()),
        num_frames=num_frames,
        resolution=resolution,
        skipped=(*index1.skipped, *index2.skipped),
    )
