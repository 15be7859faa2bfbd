"""A trained generator: videos from given or generated first frames, in memory.

generator = load_generator("checkpoints/checkpoint_00000600.pt")
video = generator.animate("first.png", num_frames=16)  # uint8 (16, H, W, 3)
frames = generator.stream("first.png", anchor_every=8)  # an iterator over uint8 (H, W, 3), without end
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidm.checkpoint import Checkpoint, build_diffusion, check_generator, load_model
from vidm.checkpoint_formats import load_any
from vidm.class_choice import check_class, class_of, class_of_given, common_classes, of_classes
from vidm.config import Config
from vidm.datasets import fit_frames, to_float, to_uint8
from vidm.diffusion import GaussianDiffusion
from vidm.first_frames import FirstFrame, as_first_frame
from vidm.frame_size import sides_of
from vidm.layers import to_device
from vidm.model import ContentGenerator, MotionGenerator
from vidm.rollout import BoundSampler, generate_first_frames, roll_out, shared_start, truncated_start, video_noise
from vidm.rounded_weights import with_autocast_weights, with_bf16_weights
from vidm.runtime import AUTOCAST_DTYPES, autocast, check_bfloat16, check_compiler, chosen_precision
from vidm.sample_config import SampleConfig
from vidm.samplers import SAMPLERS, Sampler, checked, sample_ddim
from vidm.settings import arguments_named

# Weights of a checkpoint: averaged over the training, or as the last step left them.
WEIGHTS = ("ema", "raw")


@dataclass(frozen=True)
class Generator:
    """A trained motion generator, and optionally a content generator for its first frames.

    `model` and `content_model` have the averaged weights, or if `weights` is "raw" the trained ones; `config` and
    `content_config` are the configurations they were trained with, `path` and `content_path` their files.
    """

    model: MotionGenerator = field(repr=False)
    config: Config = field(repr=False)
    device: torch.device
    path: Path
    content_model: ContentGenerator | None = field(default=None, repr=False)
    content_config: Config | None = field(default=None, repr=False)
    content_path: Path | None = None
    weights: str = "ema"
    _networks: dict[tuple[str, str, bool], Any] = field(default_factory=dict, repr=False, compare=False)

    @arguments_named(SampleConfig)
    def animate(
        self,
        first_frame: FirstFrame,
        num_frames: int | None = None,
        index: int = 0,
        *,
        sampler: str | Sampler = SampleConfig.sampler,
        progress: bool = False,
        **settings: Any,
    ) -> np.ndarray:
        """Continue one first frame to a video, uint8 (num_frames, H, W, 3), whose frame 0 is the given one.

        `first_frame` is a PIL image, a uint8 array (H, W, 3), a float tensor (3, H, W) in [-1, 1], or the path of an
        image or video; it is fitted to the model's size as frames were in training (--fit). `num_frames` defaults to
        the number the model was trained on. `sampler` is a name or a function with the signature of those in
        vidm.samplers: it is called as sampler(diffusion, model, x_T, model_kwargs, noise=noise) and returns x_0. With
        `progress`, a bar shows the frames. `settings` are fields of SampleConfig: steps, seed, ... Video `index` of a
        seed is always the same. Raises ValueError for invalid settings or first frames, VideoError or FileNotFoundError
        for a file, and TypeError for unknown settings.
        """
        sample, function = self._settings(sampler, settings | {"num_frames": num_frames})
        classes = class_of_given(self.class_names, index, sample, first_frame)
        return self.animate_batch([as_first_frame(first_frame)], [index], sample, progress, function, classes)[0]

    @arguments_named(SampleConfig)
    def stream(
        self,
        first_frame: FirstFrame,
        num_frames: int | None = None,
        index: int = 0,
        *,
        sampler: str | Sampler = SampleConfig.sampler,
        progress: bool = False,
        **settings: Any,
    ) -> Iterator[np.ndarray]:
        """Return an iterator over the frames of the video that `animate` returns, uint8 (H, W, 3), as they are made.

        Memory does not grow with the number of frames. With anchor_every and without num_frames, the video has no end.
        """
        sample, function = self._settings(sampler, settings | {"num_frames": num_frames})
        given = [as_first_frame(first_frame)]
        length = None if sample.anchor_every and num_frames is None else self.num_frames(sample)
        classes = class_of_given(self.class_names, index, sample, first_frame)
        frames = self._frames(given, [index], sample, length, progress, function, classes)
        return (to_uint8(frame[0]) for frame in frames)

    @arguments_named(SampleConfig)
    def generate(
        self,
        num_videos: int,
        first_index: int = 0,
        *,
        sampler: str | Sampler = SampleConfig.sampler,
        progress: bool = False,
        **settings: Any,
    ) -> np.ndarray:
        """Generate videos unconditionally, uint8 (num_videos, num_frames, H, W, 3), numbered from first_index.

        The content generator makes the first frames, which are then continued. The arguments are those of `animate`.
        Raises ValueError without a content generator or for invalid settings and TypeError for unknown settings.
        """
        sample, function = self._settings(sampler, settings)
        sample = replace(sample, num_samples=num_videos)
        indices = range(first_index, first_index + num_videos)
        first_frames = list(self.draw_first_frames(indices, sample, function))
        classes = [self.class_of(i, sample) for i in indices]
        return self.animate_batch(first_frames, indices, sample, progress, function, classes)

    @arguments_named(SampleConfig)
    def diffusion(self, steps: str | int = "", content: bool = False) -> GaussianDiffusion:
        """The diffusion process of the motion (or content) checkpoint, shortened to `steps`; not shortened by default.

        `steps` is a number or a form of --steps. Raises ValueError for others, and without a content generator.
        """
        config = self.content_config if content else self.config
        if config is None:
            raise ValueError("there is no content generator: give load_generator its checkpoint as content_path")
        return build_diffusion(config, steps)

    def _settings(self, sampler: str | Sampler, values: dict[str, Any]) -> tuple[SampleConfig, Sampler | None]:
        """Checked settings, and the sampler if it is a function."""
        function = checked(sampler) if callable(sampler) else None
        if function and values.get("eta"):
            raise ValueError("eta is for sampler='ddim': bind it to a function, as in partial(sample_ddim, eta=0.5)")
        sample = SampleConfig.in_memory(values if function else values | {"sampler": sampler})
        self.check(sample)
        return sample, function

    @arguments_named(SampleConfig)
    def check(self, settings: SampleConfig) -> None:
        """Raise ValueError for settings that this generator cannot follow; the methods below trust theirs."""
        settings.check_for(self.config, self.content_config)
        check_class(self.class_names, settings, self.path)
        check_bfloat16(self.device, settings.precision)
        if settings.compile:
            check_compiler(self.device)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes that all class-conditional generators have; see common_classes."""
        return common_classes(self.config, self.content_config)

    def class_of(self, index: int, settings: SampleConfig, first_frame: Path | None = None, listed: str = "") -> str:
        """The class of video `index`, whose first frame is drawn or from a file; see vidm.class_choice.class_of."""
        return class_of(self.class_names, index, settings, first_frame, listed)

    def num_frames(self, settings: SampleConfig) -> int:
        """Frames per video: the number in the settings, or the one the model was trained on."""
        return settings.num_frames or self.model.video_timesteps

    def condition_noise(self, settings: SampleConfig) -> float:
        """The level of noise on the previous frame: that of the settings, or the largest one of the training."""
        given = settings.condition_noise
        return self.config.train.condition_noise if given is None else given

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

    def draw_first_frames(
        self, indices: Sequence[int], settings: SampleConfig, sampler: Sampler | None = None
    ) -> np.ndarray:
        """First frames of the videos `indices` of a seed, by the content generator: uint8 (B, H, W, 3).

        They are never truncated (psi): near the constant start, all videos would begin alike. Raises ValueError without
        a content generator.
        """
        diffusion = self.diffusion(settings.content_steps or settings.steps, content=True)
        assert self.content_config is not None, "diffusion refuses this"
        sides = sides_of(self.content_config.model.image_size)
        bound = _bound_sampler(settings, sampler, diffusion)
        classes = [self.class_of(i, settings) for i in indices]
        with autocast(self.device, settings.precision):
            frames = generate_first_frames(
                self._network("content", self.content_model, settings),
                of_classes(bound, self.content_config, classes, settings.guidance, self.device),
                (3, *sides),
                video_noise(settings.seed, indices, self.device),
            )
        return to_uint8(frames)

    def _frames(
        self,
        first_frames: Sequence[np.ndarray],
        indices: Sequence[int],
        settings: SampleConfig,
        num_frames: int | None,
        progress: bool,
        sampler: Sampler | None,
        classes: Sequence[str],
    ) -> Iterator[Tensor]:
        """The frames of a batch of videos, float (B, 3, H, W) on the device; None frames are without end."""
        size, fit = self.config.model.image_size, self.config.data.fit
        fitted = np.stack([fit_frames(frame[None], size, fit)[0] for frame in first_frames])
        noise = video_noise(settings.seed, indices, self.device)
        if settings.start_noise == "video":
            noise = shared_start(noise)
        if settings.psi < 1:
            noise = truncated_start(noise, self.config.train.start_seed, settings.psi)
        network, first = self._network("motion", self.model, settings), to_device(to_float(fitted), self.device)
        bound = _bound_sampler(settings, sampler, self.diffusion(settings.steps))
        bound = of_classes(bound, self.config, classes, settings.guidance, self.device)
        level = self.condition_noise(settings)
        frames = roll_out(network, bound, first, num_frames, noise, settings.anchor_every, level, progress)
        while True:
            with autocast(self.device, settings.precision):  # not around the caller's work between two frames
                frame = next(frames, None)
            if frame is None:
                return
            yield frame

    def stream_batch(
        self,
        first_frames: Sequence[np.ndarray],
        indices: Sequence[int],
        settings: SampleConfig,
        progress: bool = False,
        classes: Sequence[str] = (),
    ) -> Iterator[np.ndarray]:
        """Yield the frames of the videos of animate_batch, uint8 (B, H, W, 3), with a wait for each on a GPU."""
        length = self.num_frames(settings)
        return map(to_uint8, self._frames(first_frames, indices, settings, length, progress, None, classes))

    def animate_batch(
        self,
        first_frames: Sequence[np.ndarray],
        indices: Sequence[int],
        settings: SampleConfig,
        progress: bool = False,
        sampler: Sampler | None = None,
        classes: Sequence[str] = (),
    ) -> np.ndarray:
        """Continue first frames, uint8 (H, W, 3) each, to videos, uint8 (B, num_frames, height, width, 3).

        The noise of each video is a function of (seed, its index, frame, step) only. `classes` are the names of the
        videos' classes; without them, videos have none.
        """
        length = self.num_frames(settings)
        frames = self._frames(first_frames, indices, settings, length, progress, sampler, classes)
        return to_uint8(torch.stack(list(frames), dim=1))


def _bound_sampler(settings: SampleConfig, sampler: Sampler | None, diffusion: GaussianDiffusion) -> BoundSampler:
    """The given sampler, or the one that the settings name, for a shortened process."""
    if sampler or settings.sampler != "ddim":
        return partial(sampler or SAMPLERS[settings.sampler], diffusion)
    return partial(sample_ddim, diffusion, eta=settings.eta)


def _load_network(checkpoint: Checkpoint, device: torch.device, weights: str) -> Any:
    """The generator of a checkpoint with one of its kinds of weights, for inference."""
    state = checkpoint.weights(weights)
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(
                f"{checkpoint.source} has weights that are not finite, in {name}: use an earlier checkpoint"
            )
    model = load_model(checkpoint.config, state, checkpoint.source)
    return model.to(device).eval().requires_grad_(False)


@arguments_named(resume="path", content_resume="content_path")
def load_generator(
    path: str | Path,
    content_path: str | Path | None = None,
    video_timesteps: int | None = None,
    device: str | torch.device | None = None,
    weights: str = "ema",
) -> Generator:
    """Load the averaged weights of a motion checkpoint, and optionally of a content checkpoint, for sampling.

    With weights="raw", these are the trained weights, not averaged. Takes checkpoints of this package, the folder of a
    run, .safetensors, the authors' .pth.tar, and "hf:owner/name" or "hf:owner/name@revision", a repository on the
    Hugging Face Hub; `video_timesteps` is needed for a .pth.tar that does not store it. `device` defaults to a GPU if
    there is one, else the CPU. Raises FileNotFoundError or ValueError, naming the file, if it is missing, damaged, of
    another network or of the other generator, or has no weights of that kind.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"weights {weights!r}: choose from {', '.join(WEIGHTS)}")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    motion = load_any(path, video_timesteps)
    check_generator(motion, "motion")
    generator = Generator(
        _load_network(motion, device, weights), motion.config, device, Path(motion.source), weights=weights
    )
    if content_path is None:
        return generator
    content = load_any(content_path, generator="content")
    check_generator(content, "content")
    return replace(
        generator,
        content_model=_load_network(content, device, weights),
        content_config=content.config,
        content_path=Path(content.source),
    )
