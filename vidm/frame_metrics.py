"""Compare generated videos with real ones over time: by frame (PSNR, SSIM) and by window of frames (drift). Ours.

    result = compute_frame_metrics("real", "continued", num_frames=16)
    print(result.psnr, result.psnr_by_frame)
    curve = drift("real", "continued", num_frames=16, window=4, resolution=64)     # of frames 0 to 3, 4 to 7, ...

PSNR and SSIM are for videos that continue given first frames: each generated video is compared with the real video
that its first frame is from. They need torchmetrics, an optional dependency (`pip install 'vidm[metrics]'`). Drift is a
Frechet distance of two sets of videos and needs no pairs.
"""

import sys
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial, reduce
from pathlib import Path
from statistics import mean

import numpy as np
import torch

from vidm.clip_choice import ClipSelection, index_of, warn_of_kinds
from vidm.datasets import Clips
from vidm.detectors import STYLEGAN_V, load_detector
from vidm.distributed import gather_results, is_main, on_main, rank, world_size
from vidm.feature_table import FeatureTable
from vidm.features import Features, MeasureSettings, measure
from vidm.frame_size import FrameSize, size_text
from vidm.frechet import frechet_of
from vidm.layouts import ClipIndex
from vidm.pairing import Pairs, pair_videos
from vidm.runtime import autocast
from vidm.settings import arguments_named
from vidm.video_io import VideoError

# Identical frames have an infinite PSNR, which would make every mean infinite.
MAX_PSNR = 100.0
# A lower PSNR of the first frames, in dB, is not a matter of compression: they are other frames.
SAME_FRAME = 30.0
SSIM_WINDOW = 11


@dataclass(frozen=True)
class FrameMetrics:
    """PSNR in dB and SSIM in [-1, 1], averaged over all pairs: by frame, and over all frames after the given first.

    `pairing` says how videos were paired ("by first frame", "by name" or "by order"), `pairs` has (generated, real) of
    those compared, `skipped` (path, reason) of videos left out, and `warnings` say why the numbers may be misleading.
    `frame_strides` are those of real and generated videos, `sizes` the (height, width) that frames were compared at.
    """

    psnr: float
    ssim: float
    psnr_by_frame: tuple[float, ...]
    ssim_by_frame: tuple[float, ...]
    num_pairs: int
    pairing: str
    frame_strides: tuple[int, int]
    sizes: tuple[tuple[int, int], ...]
    pairs: tuple[tuple[Path, Path], ...]
    skipped: tuple[tuple[Path, str], ...]
    warnings: tuple[str, ...]


def _compared(real_u8: np.ndarray, made_u8: np.ndarray, device: torch.device | str) -> tuple[np.ndarray, np.ndarray]:
    """Return PSNR and SSIM of every frame of two clips (T, H, W, 3): float64 (T,) each."""
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    real, made = (torch.from_numpy(clip).to(device).movedim(-1, 1).float() / 255 for clip in (real_u8, made_u8))
    # TF32 would make a GPU's numbers differ from a CPU's.
    with autocast(torch.device(device), "fp32"):
        psnr = peak_signal_noise_ratio(made, real, data_range=1.0, reduction="none", dim=(1, 2, 3)).clamp(max=MAX_PSNR)
        ssim = structural_similarity_index_measure(made, real, data_range=1.0, reduction="none")
    assert isinstance(ssim, torch.Tensor)
    return psnr.double().cpu().numpy(), ssim.double().cpu().numpy()


_Sums = tuple[np.ndarray, int, list[tuple[Path, str]], set[tuple[int, int]]]


def _sums(real: Clips, made: Clips, places: Iterable[int], device: torch.device | str) -> _Sums:
    """Return sums (2, T) of PSNR and SSIM over pairs, their number, (path, reason) of unreadable ones, and sizes."""
    sums, count, damaged = np.zeros((2, made.num_frames)), 0, []
    sizes: set[tuple[int, int]] = set()
    for place in places:
        try:
            (real_u8, real_path), (made_u8, made_path) = real[place], made[place]
        except VideoError as error:
            damaged.append((made.index.paths[place], str(error)))
            continue
        if real_u8.shape != made_u8.shape:
            found = [f"{path} is {size_text(c.shape[1:3])}" for path, c in ((made_path, made_u8), (real_path, real_u8))]
            raise ValueError(f"{' and '.join(found)} (height x width); give a --resolution for all videos")
        if min(made_u8.shape[1:3]) < SSIM_WINDOW:
            raise ValueError(
                f"{made_path} is {size_text(made_u8.shape[1:3])} (height x width): SSIM needs frames of "
                f"{SSIM_WINDOW} x {SSIM_WINDOW} pixels (--resolution) or more"
            )
        sums += _compared(real_u8, made_u8, device)
        count += 1
        sizes.add((made_u8.shape[1], made_u8.shape[2]))
    return sums, count, damaged, sizes


def _added(one: _Sums, two: _Sums) -> _Sums:
    return one[0] + two[0], one[1] + two[1], one[2] + two[2], one[3] | two[3]


def frame_metrics_of(real: ClipSelection, made: ClipSelection, device: torch.device | str = "cpu") -> FrameMetrics:
    """Like compute_frame_metrics, for clips that have been selected. Clips begin at frame 0."""
    try:
        import torchmetrics  # noqa: F401
    except ImportError as error:
        raise ValueError("PSNR and SSIM need torchmetrics: pip install 'vidm[metrics]', or leave them out") from error
    real_index, made_index = (index_of(selection) for selection in (real, made))
    paired = on_main(partial(pair_videos, real_index, made_index, real.split), Pairs, ClipIndex)
    real_clips = Clips(paired.real, real.num_frames, real.resolution, stride=real.stride, fit=real.fit)
    made_clips = Clips(paired.made, made.num_frames, made.resolution, stride=made.stride, fit=made.fit)
    total = len(made_clips) if made.num_samples is None else made.num_samples
    if not 1 <= total <= len(made_clips):
        raise ValueError(f"{total} pairs were asked for (-ns); there are {len(made_clips)}")
    mine = range(rank(), total, world_size())
    sums, count, damaged, sizes = reduce(_added, gather_results(partial(_sums, real_clips, made_clips, mine, device)))
    if count == 0:
        raise ValueError(
            f"none of the {total} pairs of {real.folder} and {made.folder} can be read; the first: {damaged[0][1]}"
        )
    psnr, ssim = (sums / count).tolist()
    skipped = [*real_index.skipped, *made_index.skipped, *paired.unpaired, *damaged]
    bad = {path for path, _ in damaged}
    compared = [pair for pair in zip(paired.made.paths, paired.real.paths, strict=True) if pair[0] not in bad][:count]
    if is_main() and skipped:
        print(*replace(made_index, skipped=skipped).skipped_message().splitlines(), sep="\n", file=sys.stderr)
    warnings = []
    if paired.how == "by order":
        warnings.append("videos are paired by order: no first frames are recorded, and names differ")
    if paired.how != "by first frame" and psnr[0] < SAME_FRAME:
        warnings.append(
            f"videos are paired {paired.how}, but their first frames differ (PSNR {psnr[0]:.1f} dB): PSNR and SSIM are "
            "for videos that continue the first frames of real ones"
        )
    return FrameMetrics(
        psnr=mean(psnr[1:] or psnr),
        ssim=mean(ssim[1:] or ssim),
        psnr_by_frame=tuple(psnr),
        ssim_by_frame=tuple(ssim),
        num_pairs=count,
        pairing=paired.how,
        frame_strides=(real.stride, made.stride),
        sizes=tuple(sorted(sizes)),
        pairs=tuple(compared),
        skipped=tuple(skipped),
        warnings=(*warnings, *warn_of_kinds(paired.real, paired.made)),
    )


@arguments_named()
def compute_frame_metrics(
    dir1: str | Path,
    dir2: str | Path,
    num_frames: int = 128,
    num_samples: int | None = None,
    resolution: FrameSize | None = None,
    *,
    frame_stride: int = 1,
    real_stride: int = 1,
    split: str = "",
    fit: str = "crop",
    device: torch.device | str = "cpu",
) -> FrameMetrics:
    """Return PSNR and SSIM of the generated videos of dir2 to the real ones of dir1 that they continue, frame by frame.

    Both clips begin at the first frame; the arguments num_frames to fit are those of ClipSelection. Videos are paired
    as pair_videos does: by the first frame that sampling recorded, else by name, else by order. If num_samples is
    given, only that many pairs are used, the first in order. PSNR is limited to 100 dB. Means leave out frame 0, which
    is given, unless it is the only one. Raises ValueError if torchmetrics is not installed, and for videos that cannot
    be paired or differ in size, naming them.
    """
    real = ClipSelection(dir1, num_frames, num_samples, resolution, frame_stride, real_stride, split, fit=fit)
    return frame_metrics_of(real, real.generated(dir2), device)


def _distance(real: Features, made: Features) -> float:
    return frechet_of(real.stats(), made.stats())


def drift(
    dir1: str | Path,
    dir2: str | Path,
    num_frames: int,
    window: int,
    resolution: FrameSize,
    num_samples: int | None = None,
    real_stride: int = 1,
    split: str = "",
    layout: str = "auto",
    fit: str = "crop",
    device: torch.device | str = "cpu",
) -> tuple[float, ...]:
    """Return the Frechet distance of the generated videos of dir2 to the real ones of dir1 in each window of frames.

    Windows have `window` frames (2 or more) and do not overlap; a last incomplete one is left out. Features are those
    of the random detector. Clips begin at the first frame; the other arguments are those of ClipSelection. Raises
    ValueError as compute_fvd does.
    """
    choice = (dir1, num_frames, num_samples, resolution)
    real = ClipSelection(*choice, real_stride=real_stride, split=split, layout=layout, fit=fit)
    settings = MeasureSettings(load_detector("random", device), STYLEGAN_V, device=device)
    distances = []
    with closing(FeatureTable(None)) as table:
        for start in range(0, num_frames - window + 1, window):
            frames = range(start, start + window)
            pair = (replace(selection, window=frames) for selection in (real, real.generated(dir2)))
            distances.append(on_main(partial(_distance, *(measure(selection, settings, table) for selection in pair))))
    return tuple(distances)
