"""Compute metrics of folders of videos, and return them with all settings that they depend on.

The Frechet video distance (Unterthiner et al. 2018) and the kernel video distance of two folders, with the real video
that is nearest to each generated one; and the video inception score (Saito et al. 2020) of one folder. The choices that
make published numbers differ are a Protocol of vidm.detectors.

    result = compute_fvd("real", "generated", load_detector(), num_frames=16, resolution=128)
    print(result.name, result.value, "floor", result.floor)
"""

import sys
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import softmax

from vidm.clip_choice import ClipSelection, check_counts, draw_order, usual_num_frames, warn_of_kinds
from vidm.detectors import C3D, STYLEGAN_V, Detector, Protocol, load_detector, name_of, protocol_named
from vidm.distributed import is_main, on_main
from vidm.feature_table import FeatureTable
from vidm.features import Features, MeasureSettings, measure
from vidm.floor import Matched, matched_distances
from vidm.frame_size import FrameSize, size_text
from vidm.frechet import frechet_of, inception_score, kernel_distance
from vidm.metric_results import FVDResult, Skipped, VISResult, deviation_of
from vidm.neighbours import Neighbour, nearest_real
from vidm.settings import arguments_named

SPLITS = 10


def _report_skipped(sides: Sequence[Features]) -> Skipped:
    """Return all skipped videos; the main process also prints them to stderr."""
    for side in sides:
        if is_main() and side.clips.index.skipped:
            print(*side.clips.index.skipped_message().splitlines(), sep="\n", file=sys.stderr)
    return tuple(item for side in sides for item in side.clips.index.skipped)


class _Numbers(NamedTuple):
    """The results of one draw of clips."""

    value: float
    kernel: float | None
    matched: Matched | None
    neighbours: tuple[Neighbour, ...]
    feature_dim: int
    size: tuple[int, int]


def _numbers(
    real: Features, drawn: Features, made: Features, ddof: int, seed: int, kernel: bool, neighbours: bool
) -> _Numbers:
    """`drawn` are the real videos of the distance, and `real` also has others for its floor."""
    if real.size != made.size:
        sizes = [f"{size_text(f.size)} in {f.clips.index.root}" for f in (real, made)]
        raise ValueError(f"videos are {' and '.join(sizes)} (height x width); give a --resolution for all")
    stats = drawn.stats()
    return _Numbers(
        value=frechet_of(stats, made.stats(), ddof),
        kernel=kernel_distance(drawn.rows(), made.rows()) if kernel else None,
        matched=matched_distances(real, made, len(drawn.keys), seed, ddof, kernel),
        neighbours=nearest_real(drawn, made) if neighbours else (),
        feature_dim=len(stats.mean()),
        size=real.size,
    )


def _warnings(real: ClipSelection, made: ClipSelection, result: FVDResult) -> list[str]:
    warnings = [
        f"the {kind} distance says nothing ({found.says_nothing}): "
        + (f"use {found.needed} videos of each folder or more; with fewer, " if found.needed else "")
        + "compare it only with others of the same numbers of videos"
        for kind, found in result.measures.items()
        if found.says_nothing
    ]
    if Path(real.folder, real.split).resolve() == Path(made.folder).resolve():
        warnings.append(f"both folders are {made.folder}: the real videos are compared with themselves")
    return warnings


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _mean(values: Iterable[float | None]) -> float | None:
    known = _known(values)
    return mean(known) if known else None


def _deviation(values: Iterable[float | None]) -> float | None:
    return deviation_of(_known(values))


def fvd_of(
    real: ClipSelection,
    made: ClipSelection,
    settings: MeasureSettings,
    repeats: int = 1,
    kernel: bool = False,
    neighbours: bool = False,
) -> FVDResult:
    """Like compute_fvd, for clips that have been selected: `made` is real.generated(folder)."""
    check_counts(repeats=repeats)
    draws: list[_Numbers] = []
    clips = []
    with closing(FeatureTable(settings.cache)) as table:
        for seed in range(real.seed, real.seed + repeats):
            made_side = measure(replace(made, seed=seed), settings, table)
            real_side = measure(replace(real, seed=seed, others=len(made_side.keys)), settings, table)
            drawn = real_side.at(sorted(draw_order(real_side.clips, seed)[: real.num_samples or real.max_samples]))
            sides = [drawn, made_side]
            first = neighbours and not draws
            numbers = partial(_numbers, real_side, drawn, made_side, settings.protocol.ddof, seed, kernel, first)
            draws.append(on_main(numbers, _Numbers, Matched, Neighbour))
            clips.append([(side.clips.index.paths, side.clips.starts) for side in sides])
    warnings = warn_of_kinds(sides[0].clips.index, sides[1].clips.index)
    if repeats > 1 and all(chosen == clips[0] for chosen in clips):
        warnings.append("every repeat drew the same clips: all videos are used, and each has only one possible clip")
    kernels = tuple(draw.kernel for draw in draws if draw.kernel is not None)
    matched = [draw.matched for draw in draws if draw.matched is not None]
    result = FVDResult(
        value=mean(draw.value for draw in draws),
        values=tuple(draw.value for draw in draws),
        kernel=_mean(kernels),
        kernel_values=kernels,
        matched=_mean(each.value for each in matched),
        matched_deviation=_deviation(each.value for each in matched),
        floor=_mean(each.floor for each in matched),
        floor_deviation=_deviation(each.floor for each in matched),
        matched_samples=matched[0].num_samples if matched else None,
        kernel_matched=_mean(each.kernel for each in matched),
        kernel_matched_deviation=_deviation(each.kernel for each in matched),
        kernel_floor=_mean(each.kernel_floor for each in matched),
        kernel_floor_deviation=_deviation(each.kernel_floor for each in matched),
        name=name_of(settings.detector),
        protocol=settings.protocol.name,
        num_samples=(len(sides[0].keys), len(sides[1].keys)),
        feature_dim=draws[0].feature_dim,
        num_frames=real.num_frames,
        frame_strides=(real.stride, made.stride),
        resolution=real.resolution,
        fit=real.fit,
        size=draws[0].size,
        seed=real.seed,
        skipped=_report_skipped(sides),
        warnings=tuple(warnings),
        neighbours=draws[0].neighbours,
    )
    return replace(result, warnings=(*_warnings(real, made, result), *warnings))


@arguments_named(batch="batch_size")
def compute_fvd(
    dir1: str | Path,
    dir2: str | Path,
    detector: Detector | None = None,
    num_frames: int | None = None,
    num_samples: int | None = None,
    resolution: FrameSize | None = None,
    batch_size: int = 32,
    workers: int = 0,
    progress: bool = False,
    *,
    protocol: Protocol | str = STYLEGAN_V,
    frame_stride: int = 1,
    real_stride: int = 1,
    split: str = "",
    layout: str = "auto",
    fit: str = "crop",
    seed: int = 0,
    repeats: int = 1,
    kernel: bool = False,
    neighbours: bool = False,
    cache: str | Path | None = None,
    device: torch.device | str = "cpu",
) -> FVDResult:
    """Return the Frechet distance of the generated videos of dir2 to the real ones of dir1, in a detector's features.

    Without a detector, it is that of load_detector: a downloaded I3D if there is one, else the random network.
    A folder contains videos, folders of frames or a pack. ClipSelection describes which clips are measured (num_frames,
    by default what most videos have, num_samples, resolution, frame_stride, real_stride, split, layout, fit, seed); the
    protocol decides where real clips begin, and may be given by name. MeasureSettings describes batch_size, workers,
    progress, cache and device, which do not change the result. With several processes each one computes a share, and
    all return the same result. Videos that are too short or unreadable are skipped, printed to stderr and listed in the
    result.

    The result's `floor` is what other real videos measure in place of the generated ones: compare `matched` with it,
    which is `value` if there are enough real videos. The measurement is repeated `repeats` times, with seeds seed,
    seed + 1, ... `kernel` also computes the kernel distance, which needs all features in memory, and `neighbours` each
    generated video's nearest real one. The distance decreases with the number of samples: compare only numbers with the
    same num_samples. Raises FileNotFoundError for a missing folder and ValueError, naming the folder, video or setting,
    for anything that cannot be measured.
    """
    detector, protocol = detector or load_detector(device=device), protocol_named(protocol)
    choice = (1 if num_frames is None else num_frames, num_samples, resolution, frame_stride, real_stride, split, seed)
    rules = (protocol.random_start, protocol.max_videos)
    real = ClipSelection(dir1, *choice, *rules, layout=layout, fit=fit)
    if num_frames is None:
        real = replace(real, num_frames=usual_num_frames(real, real.generated(dir2))[0])
    settings = MeasureSettings(detector, protocol, batch_size, workers, device, progress, cache)
    return fvd_of(real, real.generated(dir2), settings, repeats, kernel, neighbours)


def _score(features: Features, splits: int, seed: int) -> tuple[float, float, int, bool, tuple[int, int]]:
    rows = features.rows()
    scores = rows.min() < 0 or np.abs(rows.sum(axis=1) - 1).max() > 1e-3
    value, deviation = inception_score(softmax(rows, axis=1) if scores else rows, splits, seed)
    return value, deviation, rows.shape[1], bool(scores), features.size


@arguments_named(batch="batch_size")
def compute_vis(
    folder: str | Path,
    classifier: Detector,
    num_frames: int = 16,
    num_samples: int | None = None,
    resolution: FrameSize | None = None,
    batch_size: int = 32,
    workers: int = 0,
    progress: bool = False,
    *,
    splits: int = SPLITS,
    fit: str = "crop",
    seed: int = 42,
    cache: str | Path | None = None,
    device: torch.device | str = "cpu",
) -> VISResult:
    """Return the video inception score of generated videos: how confident and varied a classifier's output is.

    The score of Saito et al. 2020 is computed as in StyleGAN-V: the input is the first num_frames frames of each video
    as uint8, the outputs are shuffled by the seed, and mean and standard deviation are taken over the splits. If the
    classifier returns scores rather than probabilities, a softmax is applied, and the result says so. The other
    arguments and the errors are those of compute_fvd; ValueError is also raised for fewer videos than splits.
    """
    check_counts(splits=splits)
    selection = ClipSelection(folder, num_frames, num_samples, resolution, seed=seed, fit=fit)
    settings = MeasureSettings(classifier, C3D, batch_size, workers, device, progress, cache)
    with closing(FeatureTable(cache)) as table:
        features = measure(selection, settings, table)
        value, deviation, num_classes, took_softmax, size = on_main(partial(_score, features, splits, seed))
    return VISResult(
        value=value,
        deviation=deviation,
        name=name_of(classifier),
        num_samples=len(features.keys),
        num_classes=num_classes,
        num_frames=num_frames,
        resolution=selection.resolution,
        fit=fit,
        size=size,
        splits=splits,
        seed=seed,
        softmax=took_softmax,
        skipped=_report_skipped([features]),
    )
