"""Positional group normalization (PosGN), VIDM's replacement for the timestep embedding of a diffusion U-Net.

A group norm whose scale and shift are an implicit function of where the denoiser is (diffusion step t, frame index n)
and of the pixel (y, x), all four mapped to [-1, 1]; in a rectangle, y and x each span [-1, 1], as in a square:

    (scale, shift) = linear_1(sin(linear_0(t, n, y, x)))
    PosGN(h) = conv3x3(SiLU(GroupNorm(h) * (1 + scale) + shift))

    norm = PositionalGroupNorm(64, diffusion_timesteps=1000, video_timesteps=128)
    h = norm(h, Position(t, frame_index))  # h: (B, 64, H, W); t, frame_index: (B,)
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidm.layers import (
    GroupNorm,
    collapsed,
    conv1x1,
    modulated_silu,
    sinusoidal_embedding,
    unit_coordinate,
    weight_dtype,
    zero_init,
)

EMBEDDING_CHANNELS = 64


@dataclass(frozen=True)
class Position:
    """Where a denoiser is in the diffusion process and in the video: t and frame_index, both int64 (B,).

    `class_index`, int64 (B,), is the number of the video's class, from 1; 0, and for all samples None, is no class.
    Coordinates are kept, because a network has dozens of norms of few sizes: at small batch sizes, starting the kernels
    of a denoising step takes a GPU longer than running them.
    """

    t: Tensor
    frame_index: Tensor
    class_index: Tensor | None = None
    _kept: dict[tuple[str, int, int], tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False, compare=False)

    def in_time(self, diffusion_timesteps: int, video_timesteps: int) -> tuple[Tensor, Tensor]:
        """Coordinates of t and frame_index, float32 (B, 1), or (1, 1) where all samples share one."""
        key = "time", diffusion_timesteps, video_timesteps
        if key not in self._kept:
            t = unit_coordinate(collapsed(self.t), diffusion_timesteps)
            self._kept[key] = t[:, None], unit_coordinate(collapsed(self.frame_index), video_timesteps)[:, None]
        return self._kept[key]

    def in_space(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Coordinates of rows and columns, float32 (height, 1) and (width, 1)."""
        key = "space", height, width
        if key not in self._kept:
            y, x = (torch.linspace(-1, 1, side, device=self.t.device)[:, None] for side in (height, width))
            self._kept[key] = y, x
        return self._kept[key]


def class_embedding(num_classes: int, channels: int) -> nn.Parameter | None:
    """An embedding (1 + num_classes, channels) of no class and of each class; None if there are no classes.

    It starts at zero, and draws no random numbers: a network begins as the one without classes. Ours.
    """
    return nn.Parameter(torch.zeros(1 + num_classes, channels)) if num_classes else None


def class_rows(embedding: nn.Parameter, class_index: Tensor | None) -> Tensor:
    """The rows (B, E) of classes (B,) in an embedding (1 + num_classes, E), or (1, E) where all samples share one."""
    return embedding[:1] if class_index is None else embedding[collapsed(class_index)]


class PositionalGroupNorm(nn.Module):
    """Group norm with per-pixel scale and shift from coordinates, then SiLU and a zero-initialized 3x3 convolution.

    Shapes: forward(h (B, C, H, W), Position of (B,)) -> (B, C, H, W), with t in [0, diffusion_timesteps) and
    frame_index in [0, video_timesteps). `channels_per_group` is layers.GroupNorm's. Source: the paper's third strategy,
    in the form and with the parameter names of the published code. Coordinates are computed, not stored. With
    `num_classes`, each class adds its own vector to the linear map of the coordinates (ours).
    """

    def __init__(
        self,
        channels: int,
        diffusion_timesteps: int,
        video_timesteps: int,
        channels_per_group: int = 0,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        self.diffusion_timesteps = diffusion_timesteps
        self.video_timesteps = video_timesteps
        self.linear_0 = nn.Linear(4, channels)
        self.class_embedding = class_embedding(num_classes, channels)
        self.linear_1 = nn.Sequential(
            nn.Linear(channels, 2 * channels), nn.SiLU(), nn.Linear(2 * channels, 2 * channels)
        )
        self.out_norm = GroupNorm(channels, channels_per_group)
        # out_rest[0] is never called: modulated_silu applies the SiLU together with scale and shift. The module keeps
        # the convolution's published name, out_rest.1.
        self.out_rest = nn.Sequential(nn.SiLU(), zero_init(nn.Conv2d(channels, channels, 3, padding=1)))

    def forward(self, h: Tensor, position: Position) -> Tensor:
        scale, shift = self.scale_shift(position, h.shape[2], h.shape[3])
        return self.out_rest[1](modulated_silu(self.out_norm(h), scale, shift))

    def scale_shift(self, position: Position, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Scale and shift, each (B, C, height, width), or (1, C, height, width) if all samples share one position."""
        waves = torch.sin(self.angles(position, height, width)).type(weight_dtype(self))
        first, second = (layer for layer in self.linear_1 if isinstance(layer, nn.Linear))
        scale, shift = conv1x1(second, F.silu(conv1x1(first, waves.permute(0, 3, 1, 2)))).chunk(2, dim=1)
        return scale, shift

    def angles(self, position: Position, height: int, width: int) -> Tensor:
        """linear_0 of every pixel's coordinates, float32 (B or 1, height, width, C)."""
        t, frame_index = position.in_time(self.diffusion_timesteps, self.video_timesteps)
        y, x = position.in_space(height, width)
        # A linear layer is a sum of one product per coordinate, so no (B, H, W, 4) tensor is needed. Products and
        # sums are not autocast: in bfloat16 neighbouring diffusion steps would have the same coordinate.
        w_t, w_n, w_y, w_x = self.linear_0.weight.unbind(1)
        when = t * w_t + frame_index * w_n + self.linear_0.bias
        if self.class_embedding is not None:
            when = when + class_rows(self.class_embedding, position.class_index)
        return when[:, None, None] + (y * w_y)[:, None] + x * w_x


class TimestepGroupNorm(nn.Module):
    """The baseline that PosGN is measured against: one scale and shift for all pixels, from embeddings of (t, n).

    Shapes, arguments and the order of operations are PositionalGroupNorm's; sinusoidal embeddings do not need the two
    lengths. Source: guided-diffusion's scale-shift norm (Dhariwal and Nichol 2021), extended by the frame index and by
    an embedding of the class, added to theirs (ours).
    """

    def __init__(
        self,
        channels: int,
        diffusion_timesteps: int,
        video_timesteps: int,
        channels_per_group: int = 0,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        self.linear = nn.Sequential(
            nn.Linear(2 * EMBEDDING_CHANNELS, 2 * channels), nn.SiLU(), nn.Linear(2 * channels, 2 * channels)
        )
        self.class_embedding = class_embedding(num_classes, 2 * EMBEDDING_CHANNELS)
        self.out_norm = GroupNorm(channels, channels_per_group)
        # As in PositionalGroupNorm, modulated_silu replaces out_rest[0].
        self.out_rest = nn.Sequential(nn.SiLU(), zero_init(nn.Conv2d(channels, channels, 3, padding=1)))

    def forward(self, h: Tensor, position: Position) -> Tensor:
        indices = position.t, position.frame_index
        embedding = torch.cat([sinusoidal_embedding(index, EMBEDDING_CHANNELS) for index in indices], dim=1)
        if self.class_embedding is not None:
            embedding = embedding + class_rows(self.class_embedding, position.class_index)
        scale, shift = self.linear(embedding.type(weight_dtype(self)))[:, :, None, None].chunk(2, dim=1)
        return self.out_rest[1](modulated_silu(self.out_norm(h), scale, shift))
