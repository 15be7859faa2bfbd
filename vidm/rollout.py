"""A video, frame by frame, from a first frame, by any motion generator and any sampler.

clip = animate(model, diffusion, first, num_frames=16, noise=video_noise(seed=0, indices=[0, 1]))
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from vidm.diffusion import GaussianDiffusion
from vidm.model import MotionGenerator
from vidm.randomness import keyed_normal
from vidm.samplers import sample_ddpm

# noise(frame_index, step, like) -> standard normals of like's shape; step 0 is the chain's start x_T.
VideoNoise = Callable[[int, int, Tensor], Tensor]


def video_noise(seed: int, indices: Sequence[int]) -> VideoNoise:
    """Noise for the videos `indices` of a seed, a function of (seed, video index, frame, step) alone."""

    def noise(frame_index: int, step: int, like: Tensor) -> Tensor:
        rows = [keyed_normal((seed, index, frame_index, step), like.shape[1:]) for index in indices]
        return torch.stack(rows).to(like.device)

    return noise


@torch.no_grad()
def animate(
    model: MotionGenerator,
    diffusion: GaussianDiffusion,
    first: Tensor,
    num_frames: int,
    noise: VideoNoise,
    sampler: Callable[..., Tensor] = sample_ddpm,
    progress: bool = False,
) -> Tensor:
    """Continue first frames (B, 3, H, W) in [-1, 1] to clips (B, num_frames, 3, H, W) in [-1, 1].

    Frame 0 is the given one, as it is; frames 1 .. num_frames - 1 are denoised in order at frame_index 1 ..
    num_frames - 1, each on the flow to the frame before it, which is computed once per frame. Raises ValueError for
    more frames than the model's video_timesteps. Source: the paper; the released sampler starts at frame_index 0,
    which was never trained, and drops the given frame.
    """
    if not 1 <= num_frames <= model.video_timesteps:
        raise ValueError(
            f"{num_frames} frames asked of a model trained on {model.video_timesteps}: ask for at most that"
        )
    frames = [first]
    for n in tqdm(range(1, num_frames), disable=not progress, leave=False, desc="frames"):
        condition = {
            "frame_index": torch.full((first.shape[0],), n, dtype=torch.int64, device=first.device),
            "previous": frames[-1],
            "first": first,
            "flow": model.flow(first, frames[-1]),
        }

        def step_noise(step: int, like: Tensor, n: int = n) -> Tensor:
            return noise(n, step + 1, like)

        frames.append(sampler(diffusion, model, noise(n, 0, first), condition, noise=step_noise))
    return torch.stack(frames, dim=1)
