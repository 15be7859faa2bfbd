"""Validation of a run on held-out videos: a loss, a preview video, and a distance.

    validator = Validator(config, index, samples, device)
    log.row(step, **validator.loss(model, batch_size=8))
    log.video("preview", validator.video(model), step)

Videos, diffusion steps and noise are fixed, so that results of two steps differ only because the weights differ.
"""

from functools import partial
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from vidm.checkpoint import build_diffusion
from vidm.config import Config
from vidm.datasets import Clips, FrameTriplets, SingleFrames, to_float, to_uint8
from vidm.detectors import STYLEGAN_V, features_of, load_detector
from vidm.distributed import gather_rows, rank, world_size
from vidm.frame_size import sides_of
from vidm.frechet import FeatureStats, frechet_of
from vidm.layouts import ClipIndex
from vidm.model import ContentGenerator, MotionGenerator
from vidm.randomness import keyed_normal
from vidm.rollout import BoundSampler, animate, generate_first_frames, shared_start, video_noise
from vidm.runtime import autocast, explain_out_of_memory
from vidm.samplers import sample_ddim, with_classes

NUM_SAMPLES = 64
NUM_PREVIEWS = 4
NUM_FRAMES = 16
STRIP_FRAMES = 8
STEPS = "10"


class Validator:
    """Evaluates a generator on the held-out videos of `index`; `samples` are samples of them, not mirrored.

    Every method expects the network to have its averaged weights. Ours.
    """

    def __init__(
        self, config: Config, index: ClipIndex, samples: FrameTriplets | SingleFrames, device: torch.device
    ) -> None:
        self.config, self.index, self.samples, self.device = config, index, samples, device
        self.diffusion = build_diffusion(config)
        self.sampler = partial(sample_ddim, build_diffusion(config, respacing=STEPS))
        self.num_frames = min(config.model.video_timesteps, NUM_FRAMES)

    @torch.no_grad()
    def loss(self, model: MotionGenerator | ContentGenerator, batch_size: int) -> dict[str, float]:
        """Mean losses, named held_out_*, of 64 fixed samples with fixed noise at evenly spaced diffusion steps."""
        videos, steps = len(self.samples), self.diffusion.num_timesteps
        sums: dict[str, float] = {}
        for start in range(0, NUM_SAMPLES, batch_size):
            places = range(start, min(start + batch_size, NUM_SAMPLES))
            batch = default_collate([self.samples[place // videos, place % videos] for place in places])
            batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
            x_start = batch.pop("frame")
            t = torch.tensor([(2 * place + 1) * steps // (2 * NUM_SAMPLES) for place in places])
            noise = torch.stack([keyed_normal((0, place), x_start.shape[1:]) for place in places])
            with autocast(self.device, self.config.train.precision):
                losses = self.diffusion.training_losses(model, x_start, t.to(self.device), noise.to(self.device), batch)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.sum().item()
        return {f"held_out_{name}": value / NUM_SAMPLES for name, value in sums.items()}

    def _clips(self, count: int) -> tuple[list[int], np.ndarray]:
        """The places in the index of up to `count` real clips, and the clips: uint8 (N, T, H, W, 3)."""
        size, data = self.config.model.image_size, self.config.data
        clips = Clips(self.index, self.num_frames, size, stride=data.frame_stride, fit=data.fit)
        places, read = zip(*islice(clips.readable(), count), strict=True)
        return list(places), np.stack(read)

    def _sampler(self, class_index: Tensor | None) -> BoundSampler:
        """The sampler for videos of classes (B,), if there are classes."""
        return self.sampler if class_index is None else with_classes(self.sampler, class_index.to(self.device))

    def _animated(self, model: MotionGenerator, first_u8: np.ndarray, start: int, places: list[int]) -> np.ndarray:
        """Videos that begin with frames (N, H, W, 3) of the videos at `places`: uint8 (N, T, H, W, 3).

        Their noise is that of the videos start, start + 1, ...
        """
        class_index = self.samples.labels.get("class_index")
        sampler = self._sampler(None if class_index is None else class_index[places])
        noise = video_noise(self.config.train.seed, range(start, start + len(places)), self.device)
        first = to_float(first_u8).to(self.device)
        with autocast(self.device, self.config.train.precision):
            return to_uint8(animate(model, sampler, first, self.num_frames, shared_start(noise)))

    @torch.no_grad()
    def video(self, model: MotionGenerator | ContentGenerator) -> np.ndarray:
        """A preview: videos side by side as one, uint8 (T, H', W', 3).

        A motion generator's preview shows videos generated from held-out first frames above the ground truth, a content
        generator's shows first frames (T = 1).
        """
        if isinstance(model, MotionGenerator):
            places, real = self._clips(NUM_PREVIEWS)
            rows = [self._animated(model, real[:, 0], 0, places), real]
        else:
            sides = sides_of(self.config.model.image_size)
            noise = video_noise(self.config.train.seed, range(NUM_PREVIEWS), self.device)
            num_classes = len(self.config.model.class_names)
            sampler = self._sampler(1 + torch.arange(NUM_PREVIEWS) % num_classes if num_classes else None)
            with autocast(self.device, self.config.train.precision):
                frames = generate_first_frames(model, sampler, (3, *sides), noise)
            rows = [to_uint8(frames)[:, None]]
        return np.concatenate([np.concatenate(list(row), axis=2) for row in rows], axis=1)

    def distance(self, model: MotionGenerator) -> float:
        """The Frechet distance between videos of 16 frames, generated from held-out first frames, and the ground truth.

        Features are the I3D's if its file is available, otherwise the random network's. The processes share the videos.
        """
        places, clips = self._clips(len(self.index.paths))
        share = len(clips) // world_size()
        mine = range(rank() * share, (rank() + 1) * share)
        detector = load_detector(None, self.device)
        real = clips[mine.start : mine.stop]
        generated = self._animated(model, real[:, 0], mine.start, places[mine.start : mine.stop])
        sides = FeatureStats(), FeatureStats()
        for stats, clips in zip(sides, (real, generated), strict=True):
            with explain_out_of_memory(f"{len(clips)} held-out videos in the detector", "give a smaller --held-out"):
                features = features_of(detector, clips, STYLEGAN_V, self.device)
            stats.update(gather_rows(features))
        return frechet_of(*sides)


def film_strip(frames: np.ndarray) -> np.ndarray:
    """Up to eight evenly spaced frames of (T, H, W, 3), one above the other: (n * H, W, 3)."""
    chosen = np.linspace(0, len(frames) - 1, min(STRIP_FRAMES, len(frames))).round().astype(int)
    return np.concatenate(list(frames[chosen]), axis=0)
