"""Positional group normalisation: normalise by group, modulate by where and when.

VIDM replaces the usual timestep embedding of a diffusion U-Net by a group norm whose scale and shift are
an implicit function of the coordinates (diffusion step, frame index, y, x) of every pixel (paper, section
on positional group normalization).

    norm = PositionalGroupNorm(64, diffusion_timesteps=1000, video_timesteps=128)
    h = norm(h, t, frame_index)  # h: (B, 64, H, W); t, frame_index: (B,)

The plain alternative to positional group normalisation, for measuring what that is worth.

As in guided-diffusion, a group norm whose scale and shift are the same at every pixel: they come from sinusoidal
embeddings (Vaswani et al. 2017) of the diffusion step and of the frame index.

    norm = TimestepGroupNorm(64, diffusion_timesteps=1000, video_timesteps=128)
    h = norm(h, t, frame_index)  # h: (B, 64, H, W); t, frame_index: (B,)
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidm.layers import (
    GroupNorm32,
    checkpointed,
    collapsed,
    per_pixel,
    silu_modulated,
    unit_coordinate,
    weight_dtype,
    zero_init,
)


class PositionalGroupNorm(nn.Module):
    """Group norm, per-pixel scale and shift from coordinates, then SiLU and a zero-initialised 3x3 convolution.

    Shapes: forward(h (B, C, H, W), t (B,), frame_index (B,)) -> (B, C, H, W); t in [0, diffusion_timesteps),
    frame_index in [0, video_timesteps), both int64. Source: the published code; parameter names are those of
    the published checkpoints. Coordinates are derived, never stored. With `recompute`, a backward pass keeps h alone.
    """

    def __init__(self, channels: int, diffusion_timesteps: int, video_timesteps: int) -> None:
        super().__init__()
        self.diffusion_timesteps = diffusion_timesteps
        self.video_timesteps = video_timesteps
        self.linear_0 = nn.Linear(4, channels)
        self.linear_1 = nn.Sequential(
            nn.Linear(channels, 2 * channels), nn.SiLU(), nn.Linear(2 * channels, 2 * channels)
        )
        self.out_norm = GroupNorm32(channels)
        self.out_rest = nn.Sequential(nn.SiLU(), zero_init(nn.Conv2d(channels, channels, 3, padding=1)))
        self.recompute = False

    def angles(self, t: Tensor, frame_index: Tensor, height: int, width: int) -> Tensor:
        """linear_0 of every pixel's coordinates: float32 (B, height, width, C), of which sin is taken.

        With t and frame_index that all samples share, (1, height, width, C).
        """
        t, frame_index = collapsed(t), collapsed(frame_index)
        # linear_0 splits into one product per coordinate, so no (B, H, W, 4) tensor is built. Products and
        # sums are not autocast: in bfloat16 neighbouring t would share a coordinate.
        w_t, w_n, w_y, w_x = self.linear_0.weight.unbind(1)
        when = (
            unit_coordinate(t, self.diffusion_timesteps)[:, None] * w_t
            + unit_coordinate(frame_index, self.video_timesteps)[:, None] * w_n
            + self.linear_0.bias
        )
        y = torch.linspace(-1, 1, height, device=t.device)[:, None] * w_y
        x = torch.linspace(-1, 1, width, device=t.device)[:, None] * w_x
        return when[:, None, None] + y[:, None] + x

    def scale_shift(self, t: Tensor, frame_index: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Scale and shift, each (B or 1, C, height, width), at diffusion steps and frame indices (B,)."""
        first, second = (layer for layer in self.linear_1 if isinstance(layer, nn.Linear))
        waves = torch.sin(self.angles(t, frame_index, height, width)).type(weight_dtype(self))
        scale, shift = per_pixel(second, F.silu(per_pixel(first, waves.permute(0, 3, 1, 2)))).chunk(2, dim=1)
        return scale, shift

    def forward(self, h: Tensor, t: Tensor, frame_index: Tensor) -> Tensor:
        return checkpointed(self.recompute, self._modulated, h, t, frame_index)

    def _modulated(self, h: Tensor, t: Tensor, frame_index: Tensor) -> Tensor:
        scale, shift = self.scale_shift(t, frame_index, h.shape[2], h.shape[3])
        return self.out_rest[1](silu_modulated(self.out_norm(h), scale, shift))


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
        return checkpointed(self.recompute, self._modulated, h, t, frame_index)

    def _modulated(self, h: Tensor, t: Tensor, frame_index: Tensor) -> Tensor:
        embedding = torch.cat([sinusoidal_embedding(t), sinusoidal_embedding(frame_index)], dim=1)
        scale, shift = self.linear(embedding.type(weight_dtype(self)))[:, :, None, None].chunk(2, dim=1)
        return self.out_rest[1](silu_modulated(self.out_norm(h), scale, shift))
