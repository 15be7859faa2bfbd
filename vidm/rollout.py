"""A video from a first frame, frame by frame, and first frames from scratch, with any sampler.

noise = video_noise(seed=0, indices=[0, 1])
sampler = partial(sample_ddim, GaussianDiffusion(respacing="20"))
first = generate_first_frames(content, sampler, (3, 64, 64), noise)
clip = animate(motion, sampler, first, 16, shared_start(noise))
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import count

import torch
from torch import Tensor
from tqdm import tqdm

from vidm.diffusion import Denoiser
from vidm.layers import constant_index, to_device
from vidm.model import MotionGenerator
from vidm.randomness import keyed_normal

# noise(frame, step, shape) -> standard normals (B, *shape). Step 0 is x_T, where the frame's reverse chain starts.
VideoNoise = Callable[[int, int, Sequence[int]], Tensor]
START = 0
# A step beyond those of any chain, for the noise on the previous frame.
CONDITION = 1 << 31
# A sampler of vidm.samplers bound to its diffusion process: sampler(model, x_T, condition, noise=noise) -> x_0.
BoundSampler = Callable[..., Tensor]


def video_noise(seed: int, indices: Sequence[int], device: str | torch.device = "cpu") -> VideoNoise:
    """Noise for the videos `indices` of a seed, a function of (seed, video index, frame, step) only."""

    def noise(frame: int, step: int, shape: Sequence[int]) -> Tensor:
        return to_device(torch.stack([keyed_normal((seed, index, frame, step), shape) for index in indices]), device)

    return noise


def shared_start(noise: VideoNoise) -> VideoNoise:
    """The same noise, but all generated frames of a video start from one draw, that of frame 1. Ours.

    With a draw per frame, as published, a generator that is not fully trained changes the hue from frame to frame.
    """

    def shared(frame: int, step: int, shape: Sequence[int]) -> Tensor:
        return noise(min(frame, 1) if step == START else frame, step, shape)

    return shared


def truncated_start(noise: VideoNoise, seed: int, psi: float) -> VideoNoise:
    """The same noise, but chains start at sqrt(1 - psi^2) c + psi z, with c drawn once from N(0, I) by `seed`.

    c is shared by all videos and frames, z is the start in `noise`. psi in [0, 1]: 1 is plain sampling, 0 one constant
    start. For every psi, each element of the start is N(0, 1) over draws of c and z. This is ours. The
    paper's sampling space truncation is, as we read it, the content generator's constant input.
    """

    def truncated(frame: int, step: int, shape: Sequence[int]) -> Tensor:
        z = noise(frame, step, shape)
        if step != START:
            return z
        return math.sqrt(1 - psi**2) * to_device(keyed_normal((seed,), shape), z.device) + psi * z

    return truncated


def _generate(
    model: Denoiser, sampler: BoundSampler, noise: VideoNoise, frame: int, shape: Sequence[int], **condition: Tensor
) -> Tensor:
    """One frame (B, *shape), from the start and with the noise of its own steps."""

    def step_noise(step: int, like: Tensor) -> Tensor:
        return noise(frame, step + 1, like.shape[1:])

    return sampler(model, noise(frame, START, shape), condition, noise=step_noise)


def generate_first_frames(model: Denoiser, sampler: BoundSampler, shape: Sequence[int], noise: VideoNoise) -> Tensor:
    """First frames (B, *shape) in [-1, 1] by a content generator: frame 0 of the videos that `noise` is for."""
    return _generate(model, sampler, noise, 0, shape)


@torch.no_grad()
def roll_out(
    model: MotionGenerator,
    sampler: BoundSampler,
    first: Tensor,
    num_frames: int | None,
    noise: VideoNoise,
    anchor_every: int = 0,
    condition_noise: float = 0.0,
    progress: bool = False,
) -> Iterator[Tensor]:
    """Yield the frames (B, 3, H, W) of the clips that `animate` returns, as they are made; without end for None.

    Only the first frame or anchor and the previous frame are kept. A yielded frame must not be changed in place.
    """
    yield first
    anchor, start, previous = first, 0, first
    numbers = count(1) if num_frames is None else range(1, num_frames)
    for n in tqdm(numbers, disable=not progress, leave=False, desc="frames"):
        if anchor_every and n - start > anchor_every:
            anchor, start = previous, n - 1
        seen = previous
        if condition_noise:
            seen = seen + condition_noise * noise(n, CONDITION, first.shape[1:])
        condition = {
            "frame_index": constant_index(n - start, first),
            "previous": previous,
            "first": anchor,
            "flow": model.flow(anchor, seen),
        }
        previous = _generate(model, sampler, noise, n, first.shape[1:], **condition)
        yield previous


def animate(
    model: MotionGenerator,
    sampler: BoundSampler,
    first: Tensor,
    num_frames: int,
    noise: VideoNoise,
    anchor_every: int = 0,
    condition_noise: float = 0.0,
    progress: bool = False,
) -> Tensor:
    """Continue first frames (B, 3, H, W) in [-1, 1] to clips (B, num_frames, 3, H, W) in [-1, 1].

    Frame 0 is the given one. Frames 1 .. num_frames - 1 are denoised in order at frame_index 1 .. num_frames - 1, each
    with the flow to the frame before it, which is computed once per frame. With anchor_every=K, frames K, 2 K, ...
    replace the first frame for the K frames after them, whose frame_index counts from there, so that a video may have
    any length (ours). condition_noise is the level of the noise on the previous frame that SPyNet sees (ours).
    Source: the published sampler; ours in that frame 0 is the given frame, which it drops in favour of frame_index 0,
    which was never trained.
    """
    frames = roll_out(model, sampler, first, num_frames, noise, anchor_every, condition_noise, progress)
    return torch.stack(list(frames), dim=1)
