"""A folder of videos from a checkpoint: load, split, generate, write.

generator = load_generator("checkpoints/checkpoint_00000600.pt")
video = generator.animate(Image.open("first.png"), num_frames=16)  # uint8 (16, H, W, 3)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from vidm.checkpoint import build_diffusion, build_model, load_checkpoint, load_weights
from vidm.config import Config, SampleConfig
from vidm.datasets import fit_square, to_float, to_uint8
from vidm.distributed import is_main, rank, world_size
from vidm.layouts import index_clips
from vidm.model import MotionGenerator
from vidm.precision import autocast
from vidm.rollout import animate, video_noise
from vidm.samplers import SAMPLERS, sample_ddim
from vidm.video_io import VIDEO_SUFFIXES, VideoError, frame_files, read_frames, read_image, write_video

FirstFrame = Image.Image | np.ndarray | Tensor


@dataclass(frozen=True)
class Generator:
    """A trained motion generator with the process it was trained for; `model` has the averaged weights."""

    model: MotionGenerator
    config: Config
    device: torch.device

    def animate(
        self,
        first_frame: FirstFrame,
        num_frames: int | None = None,
        sampler: str = "ddpm",
        steps: str | int = "100",
        eta: float = 0.0,
        seed: int = 0,
        index: int = 0,
        precision: str = "fp32",
    ) -> np.ndarray:
        """Continue one first frame to a video, uint8 (num_frames, H, W, 3), frame 0 the given one.

        `first_frame` is a PIL image, a uint8 array (H, W, 3) or a float tensor (3, H, W) in [-1, 1]; it is cropped to
        its central square and resized to the model's size. `num_frames` is by default what the model was trained on,
        `precision` fp32 or bf16. Video `index` of a `seed` is always the same. Raises ValueError for settings that
        cannot be.
        """
        settings = SampleConfig(
            num_frames=num_frames, sampler=sampler, steps=str(steps), eta=eta, seed=seed, precision=precision
        )
        return self.animate_batch([_as_uint8(first_frame)], [index], settings)[0]

    def animate_batch(
        self,
        first_frames: Sequence[np.ndarray],
        indices: Sequence[int],
        settings: SampleConfig,
        progress: bool = False,
    ) -> np.ndarray:
        """Continue first frames, uint8 (H, W, 3) each, to videos, uint8 (B, num_frames, size, size, 3).

        The noise of each video is a function of (seed, its index, frame, step) alone. Otherwise as `animate`.
        """
        if settings.sampler not in SAMPLERS:
            raise ValueError(f"sampler {settings.sampler!r} is unknown: choose from {', '.join(SAMPLERS)}")
        ddim = settings.sampler == "ddim"
        size = self.config.model.image_size
        squares = np.stack([fit_square(frame[None], size)[0] for frame in first_frames])
        with autocast(self.device, settings.precision):
            clip = animate(
                self.model,
                build_diffusion(self.config, respacing=settings.steps),
                to_float(squares).to(self.device),
                self.model.video_timesteps if settings.num_frames is None else settings.num_frames,
                video_noise(settings.seed, indices),
                sampler=partial(sample_ddim, eta=settings.eta) if ddim else SAMPLERS[settings.sampler],
                progress=progress,
            )
        return to_uint8(clip)


def _as_uint8(frame: FirstFrame) -> np.ndarray:
    """A first frame as uint8 (H, W, 3)."""
    if isinstance(frame, Image.Image):
        return np.asarray(frame.convert("RGB"))
    return to_uint8(frame) if isinstance(frame, Tensor) else frame


def load_generator(path: str | Path, device: str | torch.device = "cpu") -> Generator:
    """Load a checkpoint's averaged weights for sampling.

    Raises FileNotFoundError or ValueError, naming the file, for one that is missing, damaged or of another network.
    """
    checkpoint = load_checkpoint(path)
    model = build_model(checkpoint.config)
    load_weights(model, checkpoint.ema_state_dict, path)
    device = torch.device(device)
    return Generator(model.to(device).eval().requires_grad_(False), checkpoint.config, device)


def list_content(content: str | Path) -> list[Path]:
    """Where first frames come from: an image or a video, or a folder's images, or else its videos at any depth.

    Raises FileNotFoundError or ValueError when there are none.
    """
    content = Path(content)
    if not content.exists():
        raise FileNotFoundError(f"no such file or folder of first frames: {content} (--content)")
    if content.is_file():
        return [content]
    return frame_files(content) or index_clips(content, min_frames=1).paths


def read_first_frame(path: Path) -> np.ndarray:
    """An image, or the first frame of a video: uint8 (H, W, 3). Raises VideoError."""
    is_video = path.is_dir() or path.suffix.lower() in VIDEO_SUFFIXES
    return read_frames(path, [0])[0] if is_video else read_image(path)


def _read_first_frames(paths: Sequence[Path], indices: Sequence[int]) -> dict[int, np.ndarray]:
    """First frames by index; an unreadable file is named and left out."""
    frames = {}
    for i in indices:
        try:
            frames[i] = read_first_frame(paths[i])
        except VideoError as error:
            tqdm.write(f"skipped: {error}")
    return frames


def _refuse_used_folder(out: Path) -> None:
    if out.is_dir() and any(out.glob("*.mp4")):
        raise ValueError(f"{out} already holds videos: remove them or give another --out")


def sample_folder(generator: Generator, settings: SampleConfig) -> None:
    """Continue the first frames in settings.content to out/video_%05d.mp4, numbered in natural order of their files.

    The content is an image, a video (its first frame counts), or a folder of them; a file that cannot be read is named
    and its number left out. The work is split over processes by batches of consecutive videos; a video does not
    depend on the split. Raises ValueError or FileNotFoundError, before anything is written, when the content is
    missing or scarce, or `out` already holds videos.
    """
    out = Path(settings.out)
    paths = list_content(settings.content)
    if settings.num_samples is not None and settings.num_samples > len(paths):
        raise ValueError(f"--num-samples {settings.num_samples}: {settings.content} has {len(paths)} first frames")
    paths = paths[: settings.num_samples]
    _refuse_used_folder(out)
    size = max(settings.batch_size // world_size(), 1)
    batches = [range(i, min(i + size, len(paths))) for i in range(0, len(paths), size)]
    mine = batches[rank() :: world_size()]
    num_written = 0
    with tqdm(total=sum(map(len, mine)), desc="sample", unit="video", disable=not is_main()) as bar:
        for batch in mine:
            frames = _read_first_frames(paths, batch)
            if frames:
                videos = generator.animate_batch(list(frames.values()), list(frames), settings, progress=is_main())
                for i, video in zip(frames, videos, strict=True):
                    write_video(out / f"video_{i:05d}.mp4", video, fps=settings.fps)
                num_written += len(videos)
            bar.update(len(batch))
    if mine and not num_written:
        raise ValueError(f"none of the first frames in {settings.content} can be read")
