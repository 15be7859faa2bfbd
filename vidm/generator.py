"""A trained generator: videos from first frames or from nothing, in memory.

generator = load_generator("checkpoints/checkpoint_00000600.pt")
video = generator.animate(Image.open("first.png"), num_frames=16)  # uint8 (16, H, W, 3)
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vidm.checkpoint import Checkpoint, build_diffusion, build_model, check_generator, load_weights
from vidm.checkpoint_formats import load_any
from vidm.config import Config, SampleConfig
from vidm.datasets import fit_square, to_float, to_uint8
from vidm.model import ContentGenerator, MotionGenerator
from vidm.rollout import TruncatedStart, animate, check_num_frames, generate_first_frames, video_noise
from vidm.runtime import autocast, check_compiler
from vidm.samplers import SAMPLERS, sample_ddim
from vidm.video_io import rgb_from_image

FirstFrame = Image.Image | np.ndarray | Tensor


@dataclass(frozen=True)
class Generator:
    """A trained motion generator, perhaps with a content generator that draws its first frames.

    `model` and `content_model` have the averaged weights; `config` and `content_config` are what they were trained as,
    `path` and `content_path` where they were read from.
    """

    model: MotionGenerator
    config: Config
    device: torch.device
    path: Path
    content_model: ContentGenerator | None = None
    content_config: Config | None = None
    content_path: Path | None = None
    _networks: dict[tuple[str, bool, bool], Any] = field(default_factory=dict, repr=False, compare=False)

    def animate(
        self,
        first_frame: FirstFrame,
        num_frames: int | None = None,
        sampler: str = "dpm-solver++",
        steps: str | int = "20",
        eta: float = 0.0,
        psi: float = 1.0,
        start_noise: str = "video",
        seed: int = 0,
        index: int = 0,
        precision: str = "fp32",
        compile: bool = False,
        anchor_every: int = 0,
        condition_noise: float = 0.0,
    ) -> np.ndarray:
        """Continue one first frame to a video, uint8 (num_frames, H, W, 3), frame 0 the given one.

        `first_frame` is a PIL image, a uint8 array (H, W, 3) or a float tensor (3, H, W) in [-1, 1]; it is cropped to
        its central square and resized to the model's size. `num_frames` is by default what the model was trained on;
        the other settings are those of SampleConfig. Video `index` of a `seed` is always the same. Raises ValueError
        for settings that cannot be.
        """
        settings = SampleConfig(
            num_frames=num_frames,
            sampler=sampler,
            steps=str(steps),
            eta=eta,
            psi=psi,
            start_noise=start_noise,
            seed=seed,
            precision=precision,
            compile=compile,
            anchor_every=anchor_every,
            condition_noise=condition_noise,
        )
        return self.animate_batch([_as_uint8(first_frame)], [index], settings)[0]

    def generate(self, num_videos: int, first_index: int = 0, **settings: Any) -> np.ndarray:
        """Make videos from nothing: uint8 (num_videos, num_frames, H, W, 3), numbers first_index and up of the seed.

        First frames are drawn by the content generator, then continued. `settings` are fields of SampleConfig. Raises
        ValueError without a content generator and for settings that cannot be.
        """
        indices = range(first_index, first_index + num_videos)
        sample = SampleConfig(**settings)
        return self.animate_batch(list(self.draw_first_frames(indices, sample)), indices, sample)

    def check(self, settings: SampleConfig) -> None:
        """Raise ValueError for settings that cannot be, before any work is done."""
        settings.check()
        if settings.compile:
            check_compiler()
        check_num_frames(self.model, self.num_frames(settings), settings.anchor_every)
        TruncatedStart(self.config.train.start_seed, settings.psi)
        autocast(self.device, settings.precision)
        for steps in (settings.steps, settings.content_steps):
            build_diffusion(self.config, respacing=steps)
        _chain_of(settings)

    def _network(self, kind: str, model: Any, settings: SampleConfig) -> Any:
        """A network as the settings run it: itself, or a copy with rounded weights, perhaps compiled; made once."""
        rounded = settings.precision == "bf16-weights"
        key = (kind, rounded, settings.compile)
        if key not in self._networks:
            network = with_bf16_weights(model) if rounded else model
            self._networks[key] = torch.compile(network, dynamic=False) if settings.compile else network
        return self._networks[key]

    def num_frames(self, settings: SampleConfig) -> int:
        """How long videos get: as asked for, else as trained."""
        return self.model.video_timesteps if settings.num_frames is None else settings.num_frames

    def draw_first_frames(self, indices: Sequence[int], settings: SampleConfig) -> np.ndarray:
        """First frames of the videos `indices` of a seed, by the content generator: uint8 (B, H, W, 3).

        They come from the whole sampling space whatever psi: near the constant start, all videos would begin alike.
        """
        if self.content_model is None or self.content_config is None:
            raise ValueError("first frames are given (--content) or drawn by a content generator (--content-resume)")
        size = self.content_config.model.image_size
        with autocast(self.device, settings.precision):
            frames = generate_first_frames(
                self._network("content", self.content_model, settings),
                build_diffusion(self.content_config, respacing=settings.content_steps or settings.steps),
                (3, size, size),
                video_noise(settings.seed, indices, self.device),
                sampler=_chain_of(settings),
            )
        return to_uint8(frames)

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
        self.check(settings)
        size = self.config.model.image_size
        squares = np.stack([fit_square(frame[None], size)[0] for frame in first_frames])
        with autocast(self.device, settings.precision):
            clip = animate(
                self._network("motion", self.model, settings),
                build_diffusion(self.config, respacing=settings.steps),
                to_float(squares).to(self.device),
                self.num_frames(settings),
                video_noise(settings.seed, indices, self.device),
                sampler=_chain_of(settings),
                start=TruncatedStart(self.config.train.start_seed, settings.psi),
                start_noise=settings.start_noise,
                anchor_every=settings.anchor_every,
                condition_noise=settings.condition_noise,
                progress=progress,
            )
        return to_uint8(clip)


def with_bf16_weights(model: Any) -> Any:
    """A copy of a generator whose trunks have bfloat16 weights and compute in bfloat16; SPyNet stays as it is.

    Coordinates, and sums over groups and attention weights, are float32 whatever the weights are. Ours.
    """
    model = deepcopy(model)
    for trunk in (model.unet, getattr(model, "encoder", None)):
        if trunk is not None:
            trunk.to(torch.bfloat16)
    return model


def _chain_of(settings: SampleConfig) -> Callable[..., Tensor]:
    """The reverse chain that the settings name."""
    if settings.sampler not in SAMPLERS:
        raise ValueError(f"sampler {settings.sampler!r} is unknown: choose from {', '.join(SAMPLERS)}")
    return partial(sample_ddim, eta=settings.eta) if settings.sampler == "ddim" else SAMPLERS[settings.sampler]


def _as_uint8(frame: FirstFrame) -> np.ndarray:
    """A first frame as uint8 (H, W, 3). Raises ValueError for what is none."""
    if isinstance(frame, Image.Image):
        return rgb_from_image(frame)
    if isinstance(frame, Tensor):
        fits = frame.dim() == 3 and frame.shape[0] == 3 and frame.is_floating_point() and frame.numel()
        if not fits or not bool(((frame >= -1.01) & (frame <= 1.01)).all()):
            raise ValueError(
                f"a tensor as first frame is float (3, H, W) in [-1, 1]; this is {frame.dtype} {[*frame.shape]}"
            )
        return to_uint8(frame)
    if not isinstance(frame, np.ndarray):
        raise ValueError(f"a first frame is an image, an array or a tensor, not a {type(frame).__name__}")
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
        raise ValueError(f"an array as first frame is uint8 (H, W, 3); this is {frame.dtype} {[*frame.shape]}")
    return frame


def _load_averaged(checkpoint: Checkpoint, device: torch.device) -> Any:
    """The generator of a checkpoint with its averaged weights, on a device, for inference."""
    model = build_model(checkpoint.config)
    load_weights(model, checkpoint.ema_state_dict, checkpoint.source)
    return model.to(device).eval().requires_grad_(False)


def load_generator(
    path: str | Path,
    content_path: str | Path | None = None,
    video_timesteps: int | None = None,
    device: str | torch.device = "cpu",
) -> Generator:
    """Load a motion checkpoint's averaged weights for sampling, and a content checkpoint's where one is given.

    Takes our checkpoints, .safetensors and the authors' .pth.tar; `video_timesteps` is asked for where a file of the
    latter kind does not tell it. Raises FileNotFoundError or ValueError, naming the file, for one that is missing,
    damaged, of another network or of the other generator.
    """
    device = torch.device(device)
    motion = load_any(path, video_timesteps)
    check_generator(motion, "motion")
    if content_path is None:
        return Generator(_load_averaged(motion, device), motion.config, device, Path(path))
    content = load_any(content_path)
    check_generator(content, "content")
    return Generator(
        _load_averaged(motion, device),
        motion.config,
        device,
        Path(path),
        _load_averaged(content, device),
        content.config,
        Path(content_path),
    )
