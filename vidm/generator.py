"""A trained generator: videos from given or generated first frames, in memory.

generator = load_generator("checkpoints/checkpoint_00000600.pt")
video = generator.animate(Image.open("first.png"), num_frames=16)  # uint8 (16, H, W, 3)
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vidm.checkpoint import Checkpoint, build_diffusion, check_generator, load_model
from vidm.checkpoint_formats import load_any
from vidm.config import Config, SampleConfig
from vidm.datasets import fit_frames, to_float, to_uint8
from vidm.frame_size import sides_of
from vidm.images import rgb_from_image
from vidm.layers import to_device
from vidm.model import ContentGenerator, MotionGenerator
from vidm.rollout import BoundSampler, animate, generate_first_frames, shared_start, truncated_start, video_noise
from vidm.runtime import AUTOCAST_DTYPES, autocast, check_bfloat16, check_compiler, chosen_precision
from vidm.samplers import SAMPLERS

FirstFrame = Image.Image | np.ndarray | Tensor


@dataclass(frozen=True)
class Generator:
    """A trained motion generator, and optionally a content generator for its first frames.

    `model` and `content_model` have the averaged weights; `config` and `content_config` are the configurations they
    were trained with, `path` and `content_path` their files.
    """

    model: MotionGenerator
    config: Config
    device: torch.device
    path: Path
    content_model: ContentGenerator | None = None
    content_config: Config | None = None
    content_path: Path | None = None
    _networks: dict[tuple[str, str, bool], Any] = field(default_factory=dict, repr=False, compare=False)

    def animate(
        self, first_frame: FirstFrame, num_frames: int | None = None, index: int = 0, **settings: Any
    ) -> np.ndarray:
        """Continue one first frame to a video, uint8 (num_frames, H, W, 3), whose frame 0 is the given one.

        `first_frame` is a PIL image, a uint8 array (H, W, 3) or a float tensor (3, H, W) in [-1, 1]; it is fitted
        to the model's size as frames were in training (--fit). `num_frames` defaults to the number that the model was
        trained on. `settings` are fields of SampleConfig: sampler, steps, seed, ... Video `index` of a seed is always
        the same. Raises ValueError for invalid settings or first frames and TypeError for unknown settings.
        """
        sample = SampleConfig(num_frames=num_frames, **settings)
        self.check(sample)
        return self.animate_batch([_as_uint8(first_frame)], [index], sample)[0]

    def generate(self, num_videos: int, first_index: int = 0, **settings: Any) -> np.ndarray:
        """Generate videos unconditionally, uint8 (num_videos, num_frames, H, W, 3), numbered from first_index.

        The content generator makes the first frames, which are then continued. `settings` are fields of SampleConfig.
        Raises ValueError without a content generator or for invalid settings and TypeError for unknown settings.
        """
        sample = SampleConfig(**settings)
        self.check(sample)
        indices = range(first_index, first_index + num_videos)
        return self.animate_batch(list(self.draw_first_frames(indices, sample)), indices, sample)

    def check(self, settings: SampleConfig) -> None:
        """Raise ValueError for settings that this generator cannot follow; the methods below trust theirs."""
        settings.check_for(self.config, self.content_config)
        check_bfloat16(self.device, settings.precision)
        if settings.compile:
            check_compiler(self.device)

    def num_frames(self, settings: SampleConfig) -> int:
        """Frames per video: the number in the settings, or the one the model was trained on."""
        return settings.num_frames or self.model.video_timesteps

    def precision(self, settings: SampleConfig) -> str:
        """The precision of the settings, or the one that "auto" is on this generator's device."""
        return chosen_precision(settings.precision, self.device)

    def _network(self, kind: str, model: Any, settings: SampleConfig) -> Any:
        """The network that the settings need: itself or a copy with rounded weights, perhaps compiled; cached."""
        precision = self.precision(settings)
        key = (kind, precision, settings.compile)
        if key not in self._networks:
            network = model
            if precision == "bf16-weights":
                network = with_bf16_weights(model)
            elif precision in AUTOCAST_DTYPES:
                network = with_autocast_weights(model, AUTOCAST_DTYPES[precision])
            if settings.compile:
                # On a GPU, this mode makes a CUDA graph of a step, whose kernels are started by one call. Its output is
                # overwritten by the next step; the samplers keep only what they compute from it.
                network = torch.compile(network, dynamic=False, mode="reduce-overhead")
            self._networks[key] = network
        return self._networks[key]

    def draw_first_frames(self, indices: Sequence[int], settings: SampleConfig) -> np.ndarray:
        """First frames of the videos `indices` of a seed, by the content generator: uint8 (B, H, W, 3).

        They are never truncated (psi): near the constant start, all videos would begin alike. Raises ValueError without
        a content generator.
        """
        if self.content_model is None or self.content_config is None:
            raise ValueError("give first frames (--content) or a content generator for them (--content-resume)")
        sides = sides_of(self.content_config.model.image_size)
        with autocast(self.device, settings.precision):
            frames = generate_first_frames(
                self._network("content", self.content_model, settings),
                _bound_sampler(settings, self.content_config, settings.content_steps or settings.steps),
                (3, *sides),
                video_noise(settings.seed, indices, self.device),
            )
        return to_uint8(frames)

    def animate_batch(
        self,
        first_frames: Sequence[np.ndarray],
        indices: Sequence[int],
        settings: SampleConfig,
        progress: bool = False,
    ) -> np.ndarray:
        """Continue first frames, uint8 (H, W, 3) each, to videos, uint8 (B, num_frames, height, width, 3).

        The noise of each video is a function of (seed, its index, frame, step) only.
        """
        size, fit = self.config.model.image_size, self.config.data.fit
        fitted = np.stack([fit_frames(frame[None], size, fit)[0] for frame in first_frames])
        noise = video_noise(settings.seed, indices, self.device)
        if settings.start_noise == "video":
            noise = shared_start(noise)
        if settings.psi < 1:
            noise = truncated_start(noise, self.config.train.start_seed, settings.psi)
        with autocast(self.device, settings.precision):
            clip = animate(
                self._network("motion", self.model, settings),
                _bound_sampler(settings, self.config, settings.steps),
                to_device(to_float(fitted), self.device),
                self.num_frames(settings),
                noise,
                anchor_every=settings.anchor_every,
                condition_noise=settings.condition_noise,
                progress=progress,
            )
        return to_uint8(clip)


def _denoising_parts(model: nn.Module) -> list[nn.Module]:
    """A generator without SPyNet, whose weights are never rounded."""
    parts = (model.unet, model.encoder) if isinstance(model, MotionGenerator) else (model,)
    return [part for part in parts if part is not None]


def with_autocast_weights(model: Any, dtype: torch.dtype) -> Any:
    """A copy of a generator with the weights that autocast to `dtype` casts, at every step, already cast.

    Under autocast, its outputs are those of the generator bit for bit. Ours.
    """
    model = deepcopy(model)
    for part in _denoising_parts(model):
        for name, layer in part.named_modules():
            # PosGN computes the products of linear_0 in float32.
            if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear) and not name.endswith("linear_0"):
                layer.to(dtype)
    return model


def with_bf16_weights(model: Any) -> Any:
    """A copy of a generator whose U-Net and encoder have bfloat16 weights and compute in bfloat16; SPyNet is unchanged.

    Coordinates and the sums of norms and attention are float32 for any dtype of the weights. Ours.
    """
    model = deepcopy(model)
    for part in _denoising_parts(model):
        part.to(torch.bfloat16)
    return model


def _bound_sampler(settings: SampleConfig, config: Config, steps: str) -> BoundSampler:
    """The sampler that the settings name, for the shortened process of a generator trained with `config`."""
    sampler = partial(SAMPLERS[settings.sampler], build_diffusion(config, respacing=steps))
    return partial(sampler, eta=settings.eta) if settings.sampler == "ddim" else sampler


def _as_uint8(frame: FirstFrame) -> np.ndarray:
    """A first frame as uint8 (H, W, 3). Raises ValueError for other types, shapes and values."""
    if isinstance(frame, Image.Image):
        return rgb_from_image(frame)
    if isinstance(frame, Tensor):
        fits = frame.dim() == 3 and frame.shape[0] == 3 and frame.is_floating_point() and frame.numel()
        if not fits or not bool(((frame >= -1.01) & (frame <= 1.01)).all()):
            raise ValueError(
                f"a first frame as a tensor must be float (3, H, W) in [-1, 1]; got {frame.dtype} {[*frame.shape]}"
            )
        return to_uint8(frame)
    if not isinstance(frame, np.ndarray):
        raise ValueError(f"a first frame must be an image, an array or a tensor; got {type(frame).__name__}")
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
        raise ValueError(f"a first frame as an array must be uint8 (H, W, 3); got {frame.dtype} {[*frame.shape]}")
    return frame


def _load_averaged(checkpoint: Checkpoint, device: torch.device) -> Any:
    """The generator of a checkpoint with its averaged weights, for inference."""
    for name, tensor in checkpoint.ema_state_dict.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(
                f"{checkpoint.source} has weights that are not finite, in {name}: use an earlier checkpoint"
            )
    model = load_model(checkpoint.config, checkpoint.ema_state_dict, checkpoint.source)
    return model.to(device).eval().requires_grad_(False)


def load_generator(
    path: str | Path,
    content_path: str | Path | None = None,
    video_timesteps: int | None = None,
    device: str | torch.device | None = None,
) -> Generator:
    """Load the averaged weights of a motion checkpoint, and optionally of a content checkpoint, for sampling.

    Takes checkpoints of this package, .safetensors and the authors' .pth.tar; `video_timesteps` is needed for a file of
    the latter kind that does not store it. `device` defaults to a GPU if there is one, else the CPU. Raises
    FileNotFoundError or ValueError, naming the file, if it is missing, damaged, of another network or of the other
    generator.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    motion = load_any(path, video_timesteps)
    check_generator(motion, "motion")
    generator = Generator(_load_averaged(motion, device), motion.config, device, Path(path))
    if content_path is None:
        return generator
    content = load_any(content_path)
    check_generator(content, "content")
    return replace(
        generator,
        content_model=_load_averaged(content, device),
        content_config=content.config,
        content_path=Path(content_path),
    )
