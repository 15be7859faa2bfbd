"""The U-Net trunk: noise and variance from a noisy frame plus flow, joined with the motion encoder's latents.

Its input blocks take the encoder's latents in, one by one; without latents it is guided-diffusion's plain U-Net.

    unet = UNet(in_channels=5, out_channels=6, shape=UNetShape())
    out = unet(torch.cat([x_t, flow], 1), t, frame_index, latents)

Residual, attention and resampling blocks, and the down path that the U-Net and the motion encoder share.

The blocks are guided-diffusion's (Dhariwal and Nichol 2021) with positional group normalisation in place of
the timestep embedding. Module and parameter names are those of the published checkpoints.

    blocks, channels = down_blocks(3, UNetShape())
    h = blocks[0](frame, t, frame_index)

The motion latent encoder: the first frame -> one latent per level of the U-Net's down path.

The encoder sees the first frame alone; what of it matters at step t of frame n, PosGN's coordinates tell it.

    encoder = MotionEncoder(3, UNetShape())
    latents = encoder(first, t, frame_index)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidm.layers import NUM_GROUPS, GroupNorm32, checkpointed, weight_dtype, zero_init
from vidm.posgn import PositionalGroupNorm, TimestepGroupNorm

NORMS = {"posgn": PositionalGroupNorm, "timestep": TimestepGroupNorm}


@dataclass(frozen=True)
class UNetShape:
    """What fixes the shape of a trunk; the defaults are the published 128 x 128 model's.

    Where a level has but 32 channels, each is a group of the norm by itself, which leaves nothing of its mean: the
    network then cannot tell the brightness of a picture. `attention_resolutions` are down-sampling factors, not sizes.
    Heads have `num_head_channels` channels each; with -1 there are `num_heads` of them. `norm` is "posgn", the
    method's, or "timestep", the plain one it is measured against. Raises ValueError for widths that the group norm
    cannot split and for an unknown norm.
    """

    model_channels: int = 128
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (16,)
    channel_mult: tuple[int, ...] = (1, 1, 2, 2, 4, 4)
    num_heads: int = 4
    num_head_channels: int = 64
    resblock_updown: bool = True
    diffusion_timesteps: int = 1000
    video_timesteps: int = 128
    norm: str = "posgn"

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"norm {self.norm!r} is unknown: choose from {', '.join(NORMS)}")
        if self.model_channels % NUM_GROUPS:
            raise ValueError(
                f"model_channels {self.model_channels} is no multiple of {NUM_GROUPS}, the groups of the group norm"
            )

    @property
    def side_multiple(self) -> int:
        """Both sides of a frame must be multiples of this: one halving after every level but the last."""
        return 2 ** (len(self.channel_mult) - 1)

    def check_sides(self, height: int, width: int) -> None:
        """Raise ValueError unless a frame of height x width pixels can be halved at every level."""
        if height % self.side_multiple or width % self.side_multiple or not height or not width:
            raise ValueError(
                f"frames of {height}x{width} pixels do not fit: with {len(self.channel_mult)} levels both sides "
                f"must be multiples of {self.side_multiple}"
            )


class Upsample(nn.Module):
    """Double the size by nearest neighbour, then a 3x3 convolution: (B, C, H, W) -> (B, C, 2H, 2W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Downsample(nn.Module):
    """Halve the size by a 3x3 convolution of stride 2: (B, C, H, W) -> (B, C, H/2, W/2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class ResBlock(nn.Module):
    """Residual block modulated by (t, frame_index, y, x).

    Shapes: forward(x (B, in_channels, H, W), t (B,), frame_index (B,)) -> (B, out_channels, H', W'), where the
    size is halved by `resample="down"` (2x2 average), doubled by "up" (nearest) and kept by None. With `recompute` set,
    a backward pass keeps x alone.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        shape: UNetShape,
        resample: str | None = None,
    ) -> None:
        super().__init__()
        self.resample = resample
        self.in_layers = nn.Sequential(
            GroupNorm32(in_channels), nn.SiLU(), nn.Conv2d(in_channels, out_channels, 3, padding=1)
        )
        self.emb_layers = NORMS[shape.norm](out_channels, shape.diffusion_timesteps, shape.video_timesteps)
        self.skip_connection = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        self.recompute = False

    def _resample(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        if self.resample == "up":
            return F.interpolate(x, scale_factor=2, mode="nearest")
        return x

    def forward(self, x: Tensor, t: Tensor, frame_index: Tensor) -> Tensor:
        return checkpointed(self.recompute, self._residual, x, t, frame_index)

    def _residual(self, x: Tensor, t: Tensor, frame_index: Tensor) -> Tensor:
        norm, _, conv = self.in_layers
        h = F.silu(norm(x), inplace=not torch.is_grad_enabled())
        h = self.emb_layers(conv(self._resample(h)), t, frame_index)
        return h.add_(self.skip_connection(self._resample(x)))


def set_activation_checkpointing(model: nn.Module, what: str) -> None:
    """Let a network's backward pass compute again what it would else have kept.

    `what` is "none"; "posgn", the modulated group norms, whose per-pixel MLP holds most and costs little; or "full",
    whole residual blocks. Gradients stay the same. Ours.
    """
    for module in model.modules():
        if isinstance(module, ResBlock):
            module.recompute = what == "full"
        elif isinstance(module, (PositionalGroupNorm, TimestepGroupNorm)):
            module.recompute = what == "posgn"


class AttentionBlock(nn.Module):
    """Self-attention over the pixels of a feature map, with a zero-initialised residual: (B, C, H, W) -> same."""

    def __init__(self, channels: int, num_heads: int, num_head_channels: int) -> None:
        super().__init__()
        self.num_heads = num_heads if num_head_channels == -1 else channels // num_head_channels
        self.norm = GroupNorm32(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zero_init(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, height, width = x.shape
        qkv = self.qkv(self.norm(x).reshape(b, c, height * width))
        # Heads are split before q, k and v are: (B, heads, 3 * ch, HW).
        q, k, v = qkv.reshape(b, self.num_heads, -1, height * width).transpose(2, 3).chunk(3, dim=3)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(b, c, height * width)
        return x + self.proj_out(attended).reshape(b, c, height, width)


class BlockSequence(nn.Sequential):
    """Blocks in a row, of which the residual ones also see t (B,) and frame_index (B,)."""

    def forward(self, x: Tensor, t: Tensor, frame_index: Tensor) -> Tensor:  # type: ignore[override]
        for block in self:
            x = block(x, t, frame_index) if isinstance(block, ResBlock) else block(x)
        return x


def attention_if_wanted(channels: int, factor: int, shape: UNetShape) -> list[nn.Module]:
    """An attention block when the down-sampling factor so far is one that attends, else nothing."""
    if factor not in shape.attention_resolutions:
        return []
    return [AttentionBlock(channels, shape.num_heads, shape.num_head_channels)]


def down_blocks(in_channels: int, shape: UNetShape) -> tuple[nn.ModuleList, list[int]]:
    """Build the down path of a trunk over inputs (B, in_channels, H, W).

    Returns its blocks, to be called in order as block(h, t, frame_index), and the channels each puts out.
    Source: the published code; U-Net and motion latent encoder have one each.
    """
    width = shape.model_channels * shape.channel_mult[0]
    blocks = [BlockSequence(nn.Conv2d(in_channels, width, 3, padding=1))]
    channels = [width]
    for level, mult in enumerate(shape.channel_mult):
        for _ in range(shape.num_res_blocks):
            res_block = ResBlock(width, shape.model_channels * mult, shape)
            width = shape.model_channels * mult
            blocks.append(BlockSequence(res_block, *attention_if_wanted(width, 2**level, shape)))
            channels.append(width)
        if level < len(shape.channel_mult) - 1:
            down = ResBlock(width, width, shape, resample="down") if shape.resblock_updown else Downsample(width)
            blocks.append(BlockSequence(down))
            channels.append(width)
    return nn.ModuleList(blocks), channels


class MotionEncoder(nn.Module):
    """The down path of a U-Net over the first frame, with weights of its own.

    Shapes: forward(first (B, in_channels, H, W) in [-1, 1], t (B,), frame_index (B,)) -> a list of features, one
    per input block of the U-Net and of the same shapes. Source: the published code.
    """

    def __init__(self, in_channels: int, shape: UNetShape) -> None:
        super().__init__()
        blocks, _ = down_blocks(in_channels, shape)
        self.input_blocks: nn.ModuleList = blocks

    def forward(self, first: Tensor, t: Tensor, frame_index: Tensor) -> list[Tensor]:
        latents = []
        h = first.type(weight_dtype(self))
        for block in self.input_blocks:
            h = block(h, t, frame_index)
            latents.append(h)
        return latents


# Weight of the U-Net's own features where the encoder's latents join in (published code).
UNET_WEIGHT = 0.2


class UNet(nn.Module):
    """U-Net of residual blocks with positional group normalisation.

    Shapes: forward(x (B, in_channels, H, W), t (B,), frame_index (B,), latents) -> (B, out_channels, H, W).
    `latents` holds one tensor per input block, as MotionEncoder gives them; None leaves the joining out.
    A fresh network puts out zeros, since its last convolution starts at zero.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        shape: UNetShape,
    ) -> None:
        super().__init__()
        self.input_blocks, skip_channels = down_blocks(in_channels, shape)
        width = skip_channels[-1]
        self.middle_block = BlockSequence(
            ResBlock(width, width, shape),
            AttentionBlock(width, shape.num_heads, shape.num_head_channels),
            ResBlock(width, width, shape),
        )
        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(shape.channel_mult))):
            for i in range(shape.num_res_blocks + 1):
                layers: list[nn.Module] = [ResBlock(width + skip_channels.pop(), shape.model_channels * mult, shape)]
                width = shape.model_channels * mult
                layers += attention_if_wanted(width, 2**level, shape)
                if level and i == shape.num_res_blocks:
                    layers.append(
                        ResBlock(width, width, shape, resample="up") if shape.resblock_updown else Upsample(width)
                    )
                self.output_blocks.append(BlockSequence(*layers))
        self.out = nn.Sequential(GroupNorm32(width), nn.SiLU(), zero_init(nn.Conv2d(width, out_channels, 3, padding=1)))

    def forward(self, x: Tensor, t: Tensor, frame_index: Tensor, latents: Sequence[Tensor] | None = None) -> Tensor:
        h = x.type(weight_dtype(self))
        skips = []
        for i, block in enumerate(self.input_blocks):
            h = block(h, t, frame_index)
            if latents is not None:
                h = torch.add(latents[i], h, alpha=UNET_WEIGHT)
            skips.append(h)
        h = self.middle_block(h, t, frame_index)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), t, frame_index)
        return self.out(h)
