"""What a run shows of itself on videos it does not learn from: loss, pictures, distance.

held_out = HeldOut(config, index, samples, device)
log.row(step, **held_out.loss(model))
log.video("preview", held_out.video(model), step)

Videos, diffusion steps and noise are fixed, so that numbers and pictures of two steps differ by the weights alone.
"""

from collections.abc import Sequence
from itertools import islice

import numpy as np
import torch
from torch.utils.data import default_collate

from vidm.checkpoint import build_diffusion
from vidm.config import Config
from vidm.datasets import Clips, FrameTriplets, SingleFrames, to_float, to_uint8
from vidm.detectors import STYLEGAN_V, features_of, load_detector
from vidm.distributed import gather_rows, rank, world_size
from vidm.frechet import FeatureStats, frechet_of
from vidm.layouts import ClipIndex
from vidm.model import ContentGenerator, MotionGenerator
from vidm.randomness import keyed_normal
from vidm.rollout import animate, generate_first_frames, video_noise
from vidm.runtime import autocast
from vidm.samplers import sample_ddim

NUM_SAMPLES = 64
NUM_SHOWN = 4
NUM_FRAMES = 16
STRIP_FRAMES = 8
STEPS = "10"


class HeldOut:
    """Looks at a generator through held-out videos. `samples` are training samples of `index`, without mirroring.

    Every method takes the network as it is to be judged: with averaged weights. Ours.
    """

    def __init__(
        self, config: Config, index: ClipIndex, samples: FrameTriplets | SingleFrames, device: torch.device
    ) -> None:
        self.config, self.index, self.samples, self.device = config, index, samples, device
        self.diffusion = build_diffusion(config)
        self.short_diffusion = build_diffusion(config, respacing=STEPS)
        self.num_frames = min(config.model.video_timesteps, NUM_FRAMES)

    @torch.no_grad()
    def loss(self, model: MotionGenerator | ContentGenerator, batch_size: int) -> dict[str, float]:
        """Mean losses of 64 fixed samples at fixed noise and at diffusion steps spread evenly over the schedule."""
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

    def _clips(self, count: int) -> np.ndarray:
        """Up to `count` real clips: uint8 (N, T, R, R, 3)."""
        size, stride = self.config.model.image_size, self.config.data.frame_stride
        clips = Clips(self.index, self.num_frames, size, stride=stride)
        return np.stack(list(islice(clips.readable(), count)))

    def _continued(self, model: MotionGenerator, first_u8: np.ndarray, indices: Sequence[int]) -> np.ndarray:
        """Continue frames (N, R, R, 3), as videos `indices` of the run's seed: clips uint8 (N, T, R, R, 3)."""
        noise = video_noise(self.config.train.seed, indices, self.device)
        first = to_float(first_u8).to(self.device)
        with autocast(self.device, self.config.train.precision):
            return to_uint8(animate(model, self.short_diffusion, first, self.num_frames, noise, sampler=sample_ddim))

    @torch.no_grad()
    def video(self, model: MotionGenerator | ContentGenerator) -> np.ndarray:
        """What the generator makes: uint8 (T, H', W', 3).

        A motion generator continues held-out first frames, above what really happened; a content generator draws some
        (T = 1).
        """
        if isinstance(model, MotionGenerator):
            real = self._clips(NUM_SHOWN)
            rows = [self._continued(model, real[:, 0], range(len(real))), real]
        else:
            size = self.config.model.image_size
            noise = video_noise(self.config.train.seed, range(NUM_SHOWN), self.device)
            shape = (3, size, size)
            with autocast(self.device, self.config.train.precision):
                frames = generate_first_frames(model, self.short_diffusion, shape, noise, sampler=sample_ddim)
            rows = [to_uint8(frames)[:, None]]
        return np.concatenate([np.concatenate(list(row), axis=2) for row in rows], axis=1)

    def distance(self, model: MotionGenerator) -> float:
        """The Frechet distance of continued held-out first frames to what really happened, 16 frames each.

        In the I3D's features where its file is there, else in the random network's; made by all processes together, a
        share of the videos each.
        """
        clips = self._clips(len(self.index.paths))
        share = len(clips) // world_size()
        mine = range(rank() * share, (rank() + 1) * share)
        detector = load_detector(None, self.device)
        real = clips[mine.start : mine.stop]
        made = self._continued(model, real[:, 0], mine)
        sides = FeatureStats(), FeatureStats()
        for stats, clips in zip(sides, (real, made), strict=True):
            stats.update(gather_rows(features_of(detector, clips, STYLEGAN_V, self.device)))
        return frechet_of(*sides)


def film_strip(frames: np.ndarray) -> np.ndarray:
    """Up to eight evenly spaced frames of (T, H, W, 3), one above the other: (n * H, W, 3)."""
    chosen = np.linspace(0, len(frames) - 1, min(STRIP_FRAMES, len(frames))).round().astype(int)
    return np.concatenate(list(frames[chosen]), axis=0)
