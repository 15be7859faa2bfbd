"""How far generated videos move away from real ones as they go on: a distance for each window of frames. Ours.

curve = drift("data/CLEVRER", "results/samples", num_frames=16, window=4)     # of frames 0 to 3, 4 to 7, ...
"""

from contextlib import closing
from functools import partial
from pathlib import Path

import torch

from vidm.clip_choice import choose_clips
from vidm.datasets import Clips
from vidm.detectors import load_detector
from vidm.distributed import on_main
from vidm.feature_table import FeatureTable
from vidm.features import Damaged, Features, measure
from vidm.frechet import frechet_distance
from vidm.protocols import STYLEGAN_V


def _window(
    folder: str | Path,
    num_frames: int,
    first: int,
    window: int,
    stride: int,
    num_samples: int | None,
    resolution: int,
    damaged: Damaged,
) -> Clips:
    """Frames first .. first + window - 1 of the videos that have num_frames."""
    whole = choose_clips(folder, num_frames, num_samples, stride=stride, damaged=damaged)
    return Clips(whole.index, window, resolution, [first * stride] * len(whole), stride)


def _distance(real: Features, made: Features) -> float:
    one, two = real.stats(), made.stats()
    return frechet_distance(one.mean(), one.covariance(), two.mean(), two.covariance())


def drift(
    dir1: str | Path,
    dir2: str | Path,
    num_frames: int,
    window: int,
    resolution: int,
    num_samples: int | None = None,
    real_stride: int = 1,
    device: torch.device | str = "cpu",
) -> tuple[float, ...]:
    """The distance of the generated videos of dir2 to the real ones of dir1 within each whole window of frames.

    In the features of the random detector, which needs but two frames of 16 x 16 pixels. Real videos are taken from
    their first frame on, every real_stride-th frame. Raises ValueError as compute_fvd does.
    """
    detector = load_detector("random", device)
    distances = []
    with closing(FeatureTable(None)) as table:
        for first in range(0, num_frames - window + 1, window):
            sides = [
                measure(
                    partial(_window, folder, num_frames, first, window, stride, num_samples, resolution),
                    detector,
                    STYLEGAN_V,
                    table,
                    device=device,
                )
                for folder, stride in ((dir1, real_stride), (dir2, 1))
            ]
            distances.append(on_main(partial(_distance, *sides)))
    return tuple(distances)
