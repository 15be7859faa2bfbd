"""The plain alternative to positional group normalisation, for measuring what that is worth.

As in guided-diffusion, a group norm whose scale and shift are the same at every pixel: they come from sinusoidal
embeddings (Vaswani et al. 2017) of the diffusion step and of the frame index.

    norm = TimestepGroupNorm(64, diffusion_timesteps=1000, video_timesteps=128)
    h = norm(h, t, frame_index)  # h: (B, 64, H, W); t, frame_index: (B,)
"""

import math

import torch
from torch import Tensor, nn

from vidm.posgn import GroupNorm32, silu_modulated, weight_dtype, zero_init
from vidm.recompute import maybe_recomputed

EMBEDDING_CHANNELS = 64
LONGEST_PERIOD = 10_000


def sinusoidal_embedding(index: Tensor, channels: int = EMBEDDING_CHANNELS) -> Tensor:
    """Cosines and sines of integers (B,) at geometrically spaced frequencies -> (B, channels) float32."""
    half = channels // 2
    frequencies = torch.exp(-math.log(LONGEST_PERIOD) / half * torch.arange(half, device=index.device))
    angles = index.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimestepGroupNorm(nn.Module):
    """Group norm, scale and shift from embeddings of (t, frame_index), then SiLU and a zero-initialised convolution.

    Shapes: forward(h (B, C, H, W), t (B,), frame_index (B,)) -> (B, C, H, W). It takes the place of PositionalGroupNorm
    and its arguments; sinusoids need no lengths.
    """

    def __init__(self, channels: int, diffusion_timesteps: int, video_timesteps: int) -> None:
        super().__init__()
        self.linear = nn.Sequential(
            nn.Linear(2 * EMBEDDING_CHANNELS, 2 * channels), nn.SiLU(), nn.Linear(2 * channels, 2 * channels)
        )
        self.out_norm = GroupNorm32(channels)
        self.out_rest = nn.Sequential(nn.SiLU(), zero_init(nn.Conv2d(channels, channels, 3, padding=1)))
        self.recompute = False

    def forward(self, h: Tensor, t: Tensor, frame_index: Tensor) -> Tensor:
        return maybe_recomputed(self.recompute, self._modulated, h, t, frame_index)

    def _modulated(self, h: Tensor, t: Tensor, frame_index: Tensor) -> Tensor:
        embedding = torch.cat([sinusoidal_embedding(t), sinusoidal_embedding(frame_index)], dim=1)
        scale, shift = self.linear(embedding.type(weight_dtype(self)))[:, :, None, None].chunk(2, dim=1)
        return self.out_rest[1](silu_modulated(self.out_norm(h), scale, shift))
