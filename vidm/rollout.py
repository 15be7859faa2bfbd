"""A video, frame by frame, from a first frame, by any motion generator and any sampler.

first = generate_first_frames(content, content_diffusion, (3, 64, 64), noise=video_noise(seed=0, indices=[0, 1]))
clip = animate(motion, diffusion, first, num_frames=16, noise=video_noise(seed=0, indices=[0, 1]))

Where the reverse chain starts, instead of pure noise: sampling space truncation.

    start = TruncatedStart(seed=0, psi=0.5)
    x_T = start(torch.randn(4, 3, 64, 64))

The paper's abstract names the strategy, the released code has nothing of it; this form is ours. One fixed latent c is
shared by every video and frame, and psi says how far from it a chain may start: 1 is plain sampling, 0 the constant
start, in between a smaller sampling space. Whatever psi, each element of x_T is N(0, 1) over draws of c and z.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from vidm.diffusion import Denoiser, GaussianDiffusion
from vidm.layers import constant_index
from vidm.model import MotionGenerator
from vidm.randomness import keyed_normal
from vidm.samplers import sample_ddpm


class TruncatedStart:
    """x_T = sqrt(1 - psi^2) c + psi z, with c drawn once from N(0, I) by `seed`.

    Shapes: start(z (B, ...)) -> (B, ...), z standard normal. Raises ValueError for a psi outside [0, 1].
    """

    def __init__(self, seed: int, psi: float = 1.0) -> None:
        if not 0 <= psi <= 1:
            raise ValueError(f"psi {psi} is outside [0, 1]: 1 is plain sampling, 0 a constant start")
        self.seed = seed
        self.psi = psi

    def __call__(self, z: Tensor) -> Tensor:
        c = keyed_normal((self.seed,), z.shape[1:]).to(z)
        return math.sqrt(1 - self.psi**2) * c + self.psi * z


# noise(frame, step, shape) -> standard normals (B, *shape); step 0 is the chain's start.
VideoNoise = Callable[[int, int, Sequence[int]], Tensor]
# Beyond every step of a chain: the noise on the previous frame.
CONDITION = 1 << 31


def video_noise(seed: int, indices: Sequence[int], device: str | torch.device = "cpu") -> VideoNoise:
    """Noise for the videos `indices` of a seed, a function of (seed, video index, frame, step) alone."""

    def noise(frame_index: int, step: int, shape: Sequence[int]) -> Tensor:
        return torch.stack([keyed_normal((seed, index, frame_index, step), shape) for index in indices]).to(device)

    return noise


def _chain(
    model: Denoiser,
    diffusion: GaussianDiffusion,
    sampler: Callable[..., Tensor],
    noise: VideoNoise,
    frame_index: int,
    x_T: Tensor,
    condition: dict[str, Tensor] | None = None,
) -> Tensor:
    """One frame: x_T (B, 3, H, W) -> x_0, with the noise of that frame's steps."""

    def step_noise(step: int, like: Tensor) -> Tensor:
        return noise(frame_index, step + 1, like.shape[1:])

    return sampler(diffusion, model, x_T, condition, noise=step_noise)


def generate_first_frames(
    model: Denoiser,
    diffusion: GaussianDiffusion,
    shape: Sequence[int],
    noise: VideoNoise,
    sampler: Callable[..., Tensor] = sample_ddpm,
) -> Tensor:
    """Draw first frames (B, *shape) in [-1, 1] by a content generator, as frame 0 of the videos that `noise` is for."""
    return _chain(model, diffusion, sampler, noise, 0, noise(0, 0, shape))


def check_num_frames(model: MotionGenerator, num_frames: int, anchor_every: int = 0) -> None:
    """Raise ValueError unless the model knows every frame_index of a video of that many frames, anchored so often."""
    most = model.video_timesteps
    if not 0 <= anchor_every < most:
        raise ValueError(f"--anchor-every {anchor_every}: the model was trained on {most} frames, give 1 to {most - 1}")
    if num_frames < 1 or (num_frames > most and not anchor_every):
        raise ValueError(
            f"{num_frames} frames asked of a model trained on {most}: ask for at most that, or for --anchor-every K"
        )


@torch.no_grad()
def animate(
    model: MotionGenerator,
    diffusion: GaussianDiffusion,
    first: Tensor,
    num_frames: int,
    noise: VideoNoise,
    sampler: Callable[..., Tensor] = sample_ddpm,
    start: Callable[[Tensor], Tensor] = lambda z: z,
    start_noise: str = "video",
    anchor_every: int = 0,
    condition_noise: float = 0.0,
    progress: bool = False,
) -> Tensor:
    """Continue first frames (B, 3, H, W) in [-1, 1] to clips (B, num_frames, 3, H, W) in [-1, 1].

    Frame 0 is the given one, as it is; frames 1 .. num_frames - 1 are denoised in order at frame_index 1 ..
    num_frames - 1, each on the flow to the frame before it, which is computed once per frame. A chain starts at
    start(z), a TruncatedStart perhaps, z drawn once for a "video" (ours) or for each "frame". With anchor_every=K,
    frames K, 2 K, ... take the first frame's place for the K frames after them, whose frame_index counts from there: a
    video may then be of any length (ours). condition_noise is the level of the noise on the previous frame that SPyNet
    sees.
    Raises ValueError for more frames than the model's video_timesteps without anchors, or anchors too far apart.
    Source: the paper; the released sampler starts at frame_index 0, which was never trained, and drops the given frame.
    """
    check_num_frames(model, num_frames, anchor_every)
    frames = [first]
    for n in tqdm(range(1, num_frames), disable=not progress, leave=False, desc="frames"):
        anchor = (n - 1) // anchor_every * anchor_every if anchor_every else 0
        seen = frames[-1]
        if condition_noise:
            seen = seen + condition_noise * noise(n, CONDITION, first.shape[1:])
        condition = {
            "frame_index": constant_index(n - anchor, first),
            "previous": frames[-1],
            "first": frames[anchor],
            "flow": model.flow(frames[anchor], seen),
        }
        z = noise(n if start_noise == "frame" else 1, 0, first.shape[1:])
        frames.append(_chain(model, diffusion, sampler, noise, n, start(z), condition))
    return torch.stack(frames, dim=1)
