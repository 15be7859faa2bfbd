"""How far a generated video is from what really happened, frame by frame: PSNR and SSIM over time. Ours.

    result = compute_frame_metrics("real", "continued", num_frames=16)
    print(result.psnr, result.psnr_by_frame)

They are for videos that continue given first frames, each held against the real video that its frame is from. They come
from torchmetrics, an extra (`pip install 'vidm[metrics]'`).
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial, reduce
from pathlib import Path
from statistics import mean

import numpy as np
import torch

from vidm.clip_choice import check_counts
from vidm.datasets import Clips, window_length
from vidm.distributed import gather_results, is_main, rank, world_size
from vidm.layouts import ClipIndex, index_clips
from vidm.video_io import VideoError

# Frames that are equal bit for bit have an infinite PSNR, which no mean survives.
MOST_PSNR = 100.0
SSIM_WINDOW = 11


@dataclass(frozen=True)
class FrameMetrics:
    """Means over all pairs, in dB and in [-1, 1]; by frame, and over all frames but the first, which is given.

    `pairing` says how real and generated videos were put together, `skipped` has (path, reason) of pairs left out.
    """

    psnr: float
    ssim: float
    psnr_by_frame: tuple[float, ...]
    ssim_by_frame: tuple[float, ...]
    num_pairs: int
    pairing: str
    skipped: tuple[tuple[Path, str], ...]


def _name(path: Path, root: Path) -> str:
    """A video's place in its folder, whatever its format."""
    return path.relative_to(root).with_suffix("").as_posix()


def _paired(real: ClipIndex, made: ClipIndex) -> tuple[ClipIndex, ClipIndex, str]:
    """The same videos in the same order: by name if generated ones have real ones' names, else by order."""
    places = {_name(path, real.root): place for place, path in enumerate(real.paths)}
    names = [_name(path, made.root) for path in made.paths]
    if all(name in places for name in names):
        chosen, pairing = [places[name] for name in names], "by name"
    elif len(real.paths) >= len(made.paths) and not real.skipped:
        chosen, pairing = list(range(len(made.paths))), "by order"
    else:
        raise ValueError(
            f"the {len(made.paths)} videos of {made.root} do not pair with {len(real.paths)} of {real.root}, where "
            f"{len(real.skipped)} were skipped: for PSNR and SSIM each needs a real one of its name or place"
        )
    paths, lengths = [real.paths[i] for i in chosen], [real.num_frames[i] for i in chosen]
    return replace(real, paths=paths, num_frames=lengths), made, pairing


def _compared(real_u8: np.ndarray, made_u8: np.ndarray, device: torch.device | str) -> tuple[np.ndarray, np.ndarray]:
    """PSNR and SSIM of every frame of two clips (T, H, W, 3): float64 (T,) each."""
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    real, made = (torch.from_numpy(clip).to(device).movedim(-1, 1).float() / 255 for clip in (real_u8, made_u8))
    psnr = peak_signal_noise_ratio(made, real, data_range=1.0, reduction="none", dim=(1, 2, 3)).clamp(max=MOST_PSNR)
    ssim = structural_similarity_index_measure(made, real, data_range=1.0, reduction="none")
    assert isinstance(ssim, torch.Tensor)
    return psnr.double().cpu().numpy(), ssim.double().cpu().numpy()


_Sums = tuple[np.ndarray, int, list[tuple[Path, str]]]


def _sums(real: Clips, made: Clips, places: Iterable[int], device: torch.device | str) -> _Sums:
    """Of some pairs: sums (2, T) of PSNR and SSIM, how many they are of, and (path, reason) of unreadable ones."""
    sums, count, damaged = np.zeros((2, made.num_frames)), 0, []
    for place in places:
        try:
            (real_u8, real_path), (made_u8, made_path) = real[place], made[place]
        except VideoError as error:
            damaged.append((made.index.paths[place], str(error)))
            continue
        if real_u8.shape != made_u8.shape:
            sizes = [
                f"{path} is {c.shape[2]} x {c.shape[1]}" for path, c in ((made_path, made_u8), (real_path, real_u8))
            ]
            raise ValueError(f"{' and '.join(sizes)}; give a resolution (-r) to bring all videos to one size")
        if min(made_u8.shape[1:3]) < SSIM_WINDOW:
            raise ValueError(
                f"{made_path} is {made_u8.shape[2]} x {made_u8.shape[1]}: SSIM needs frames of {SSIM_WINDOW} x "
                f"{SSIM_WINDOW} pixels or more"
            )
        sums += _compared(real_u8, made_u8, device)
        count += 1
    return sums, count, damaged


def _added(one: _Sums, two: _Sums) -> _Sums:
    return one[0] + two[0], one[1] + two[1], one[2] + two[2]


def compute_frame_metrics(
    dir1: str | Path,
    dir2: str | Path,
    num_frames: int = 128,
    num_samples: int | None = None,
    resolution: int | None = None,
    *,
    frame_stride: int = 1,
    real_stride: int = 1,
    split: str = "",
    device: torch.device | str = "cpu",
) -> FrameMetrics:
    """PSNR and SSIM of the generated videos of dir2 to the real ones of dir1 that they continue, frame by frame.

    Both clips begin at the first frame; folders, strides, split and resolution are those of compute_fvd. Pairs go by
    name where every generated video has a real one's name (without its ending), else by order. num_samples=None takes
    all pairs, else the first of them. PSNR counts up to 100 dB. Means leave frame 0 out where there are others.
    Raises ValueError where torchmetrics is not installed, where videos do not pair, or differ in size; naming them.
    """
    try:
        import torchmetrics  # noqa: F401
    except ImportError as error:
        raise ValueError("PSNR and SSIM need torchmetrics: pip install 'vidm[metrics]', or leave them out") from error
    check_counts(num_frames=num_frames, resolution=resolution, frame_stride=frame_stride, real_stride=real_stride)
    strides = (frame_stride * real_stride, frame_stride)
    indices = [
        index_clips(folder, min_frames=window_length(num_frames, stride), split=part)
        for folder, stride, part in ((dir1, strides[0], split), (dir2, strides[1], ""))
    ]
    real_index, made_index, pairing = _paired(*indices)
    real = Clips(real_index, num_frames, resolution, stride=strides[0])
    made = Clips(made_index, num_frames, resolution, stride=strides[1])
    if num_samples is not None and not 1 <= num_samples <= len(made):
        raise ValueError(f"{num_samples} pairs were asked for; there are {len(made)}")
    total = len(made) if num_samples is None else num_samples
    mine = range(rank(), total, world_size())
    sums, count, damaged = reduce(_added, gather_results(partial(_sums, real, made, mine, device)))
    if count == 0:
        raise ValueError(f"none of the {total} pairs of {dir1} and {dir2} can be read; the first: {damaged[0][1]}")
    psnr, ssim = (sums / count).tolist()
    skipped = [*real_index.skipped, *made_index.skipped, *damaged]
    if is_main() and skipped:
        print(replace(made_index, skipped=skipped).skipped_message(), file=sys.stderr)
    return FrameMetrics(
        psnr=mean(psnr[1:] or psnr),
        ssim=mean(ssim[1:] or ssim),
        psnr_by_frame=tuple(psnr),
        ssim_by_frame=tuple(ssim),
        num_pairs=count,
        pairing=pairing,
        skipped=tuple(skipped),
    )
