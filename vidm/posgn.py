"""Positional group normalisation: normalise by group, modulate by where and when.

VIDM replaces the usual timestep embedding of a diffusion U-Net by a group norm whose scale and shift are
an implicit function of the coordinates (diffusion step, frame index, y, x) of every pixel (paper, section
on positional group normalization).

    norm = PositionalGroupNorm(64, diffusion_timesteps=1000, video_timesteps=128)
    h = norm(h, t, frame_index)  # h: (B, 64, H, W); t, frame_index: (B,)
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidm.broadcast import distinct
from vidm.group_norm import group_norm
from vidm.recompute import maybe_recomputed

NUM_GROUPS = 32


class GroupNorm32(nn.GroupNorm):
    """Group norm of 32 groups computed in float32 whatever the precision around it; shape and dtype are kept."""

    def __init__(self, channels: int) -> None:
        super().__init__(NUM_GROUPS, channels, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


def zero_init(module: nn.Module) -> nn.Module:
    """Set all parameters of `module` to zero and return it, so that its branch starts as a no-op."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def unit_coordinate(index: Tensor, count: int) -> Tensor:
    """Map integers 0 .. count - 1 onto [-1, 1] in float32, as linspace(-1, 1, count)[index] does."""
    return index.float() * (2 / max(count - 1, 1)) - 1


def weight_dtype(module: nn.Module) -> torch.dtype:
    """The dtype of a module's weights, which its input must have."""
    return next(module.parameters()).dtype


def per_pixel(linear: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer over the channels of x (B, C, H, W) -> (B, D, H, W), both channels last in memory."""
    if x.is_cuda:
        return linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    # The same products; on a CPU convolutions come from oneDNN, whose float32 is up to 2.4 times that of linear's.
    return F.conv2d(x, linear.weight[:, :, None, None], linear.bias)


def silu_modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """SiLU(x * (1 + scale) + shift) for a fresh x (B, C, H, W); scale and shift broadcast over it. Ours."""
    if torch.is_grad_enabled():
        return F.silu(torch.addcmul(shift, x, 1 + scale))
    # Large memory comes page by page from the system, which takes several times as long as the arithmetic.
    return F.silu(x.mul_(1 + scale).add_(shift), inplace=True)


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
        t, frame_index = distinct(t), distinct(frame_index)
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
        return maybe_recomputed(self.recompute, self._modulated, h, t, frame_index)

    def _modulated(self, h: Tensor, t: Tensor, frame_index: Tensor) -> Tensor:
        scale, shift = self.scale_shift(t, frame_index, h.shape[2], h.shape[3])
        return self.out_rest[1](silu_modulated(self.out_norm(h), scale, shift))
