"""The conditional U-Net: residual and attention blocks, the motion latent encoder, and the trunk that joins both.

The blocks are guided-diffusion's (Dhariwal and Nichol 2021), in the motion generator with positional group
normalization in place of the timestep embedding. Module and parameter names are those of the published code.

    shape = UNetShape()
    latents = MotionEncoder(shape)(first, Position(t, frame_index))
    out = UNet(in_channels=5, shape=shape)(torch.cat([x_t, flow], 1), Position(t, frame_index), latents)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidm.layers import NUM_GROUPS, GroupNorm, checkpointed, conv1x1, modulated_silu, weight_dtype, zero_init
from vidm.posgn import Position, PositionalGroupNorm, TimestepGroupNorm

RGB = 3
# Three channels of the prediction (noise or v), then three of the variance's interpolation.
OUT_CHANNELS = 2 * RGB
# Weight of the U-Net's own features where the encoder's latents are added (published code).
UNET_WEIGHT = 0.2
# Channels of the content generator's timestep embedding over model_channels (guided-diffusion).
EMBEDDING_MULT = 4

# Largest values of a shape's settings, far above any network that fits into memory; a file may contain others.
LARGEST = {
    "model_channels": 4096,
    "num_res_blocks": 16,
    "num_heads": 4096,
    "diffusion_timesteps": 1_000_000,
    "video_timesteps": 1_000_000,
}
MOST_LEVELS, LARGEST_MULT = 10, 256

# What the scale and shift of residual blocks depend on: a Position, or an embedding (B, E).
Condition = Position | Tensor

# A norm of the motion generator is a module norm(channels, diffusion_timesteps, video_timesteps, channels_per_group,
# num_classes) with forward(h, position), h (B, C, H, W) and a Position of (B,) -> (B, C, H, W). It is the second half
# of a residual block: group norm, scale and shift from the position, SiLU, and a zero-initialized 3x3 convolution. It
# does not modify h and draws no random numbers, so that set_activation_checkpointing can compute it again.
NORMS = {"posgn": PositionalGroupNorm, "timestep": TimestepGroupNorm}


@dataclass(frozen=True)
class UNetShape:
    """The settings that determine a network's parameters; the defaults are the published 128 x 128 model's.

    `attention_resolutions` are down-sampling factors, not sizes. Attention has heads of `num_head_channels` channels,
    or `num_heads` heads if that is -1. `resblock_updown` resamples inside residual blocks. t is in
    [0, diffusion_timesteps) and frame_index in [0, video_timesteps). `norm` is a key of NORMS. Group norms have 32
    groups, or groups of `channels_per_group` channels if that is not 0 (ours). In a level of 32 channels, 32 groups
    remove the mean of every channel, and with it brightness and hue; narrow networks therefore need 4 to 8 channels per
    group. `class_names` are the classes of a conditional network (ours): class i has the number i + 1, no class 0.
    Raises ValueError for a width that the groups do not divide, an unknown norm, and values out of range.
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
    channels_per_group: int = 0
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"unknown norm {self.norm!r}: choose from {', '.join(NORMS)}")
        for name, largest in LARGEST.items():
            if not 1 <= getattr(self, name) <= largest:
                raise ValueError(f"{name} is {getattr(self, name)}: give 1 to {largest}")
        if not (0 < len(self.channel_mult) <= MOST_LEVELS and all(0 < m <= LARGEST_MULT for m in self.channel_mult)):
            raise ValueError(
                f"channel_mult is {self.channel_mult}: give 1 to {MOST_LEVELS} levels, each from 1 to {LARGEST_MULT}"
            )
        if self.channels_per_group < 0 or (self.num_head_channels < 1 and self.num_head_channels != -1):
            raise ValueError("channels_per_group must be 0 or more, and num_head_channels 1 or more, or -1")
        unit = self.channels_per_group or NUM_GROUPS
        if self.model_channels % unit:
            raise ValueError(f"model_channels {self.model_channels} must be a multiple of {unit} for the group norm")

    def group_norm(self, channels: int) -> GroupNorm:
        """The network's group norm of a feature map with that many channels."""
        return GroupNorm(channels, self.channels_per_group)

    @property
    def side_multiple(self) -> int:
        """Both sides of a frame must be multiples of this, since every level but the last halves them."""
        return 2 ** (len(self.channel_mult) - 1)

    def check_sides(self, height: int, width: int) -> None:
        """Raise ValueError unless frames of height x width pixels can be halved at every level but the last."""
        if height % self.side_multiple or width % self.side_multiple or not height or not width:
            raise ValueError(
                f"frames of {height}x{width} pixels do not fit this network: with {len(self.channel_mult)} levels both "
                f"sides must be multiples of {self.side_multiple}"
            )


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a 3x3 convolution: (B, C, H, W) -> (B, C, 2H, 2W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2: (B, C, H, W) -> (B, C, H/2, W/2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class ResBlock(nn.Module):
    """Residual block: group norm, SiLU, 3x3 convolution, then a norm of NORMS, plus the skip connection.

    Shapes: forward(x (B, in_channels, H, W), Position of (B,)) -> (B, out_channels, H', W'). `resample="down"` halves
    the size by 2x2 averages, "up" doubles it by nearest neighbour. `checkpointing` is set by
    set_activation_checkpointing.
    """

    def __init__(self, in_channels: int, out_channels: int, shape: UNetShape, resample: str | None = None) -> None:
        super().__init__()
        self.resample = resample
        self.in_layers = nn.Sequential(
            shape.group_norm(in_channels),
            nn.SiLU(),
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
        )
        self._add_norm(out_channels, shape)
        self.skip_connection = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        self.checkpointing = "none"

    def _add_norm(self, channels: int, shape: UNetShape) -> None:
        lengths = shape.diffusion_timesteps, shape.video_timesteps
        self.emb_layers = NORMS[shape.norm](channels, *lengths, shape.channels_per_group, len(shape.class_names))

    def _norm(self, h: Tensor, condition: Condition) -> Tensor:
        return self.emb_layers(h, condition)

    def forward(self, x: Tensor, condition: Condition) -> Tensor:
        return checkpointed(self.checkpointing == "full", self._forward, x, condition)

    def _forward(self, x: Tensor, condition: Condition) -> Tensor:
        norm, _, conv = self.in_layers
        h = F.silu(norm(x), inplace=not torch.is_grad_enabled())
        h = conv(self._resample(h))
        h = checkpointed(self.checkpointing == "posgn", self._norm, h, condition)
        return h.add_(self.skip_connection(self._resample(x)))

    def _resample(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        if self.resample == "up":
            return F.interpolate(x, scale_factor=2, mode="nearest")
        return x


class ScaleShiftResBlock(ResBlock):
    """The content generator's block: its norm takes scale and shift, equal for all pixels, from an embedding of t.

    Shapes: forward(x (B, in_channels, H, W), embedding (B, 4 * model_channels)) -> (B, out_channels, H', W'). Source:
    guided-diffusion's block with scale-shift norm, without dropout; the norm's layers are the block's own under their
    published names.
    """

    def _add_norm(self, channels: int, shape: UNetShape) -> None:
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(EMBEDDING_MULT * shape.model_channels, 2 * channels))
        conv = zero_init(nn.Conv2d(channels, channels, 3, padding=1))
        # out_layers[1], SiLU, is never called, as in PositionalGroupNorm; out_layers[2] keeps the convolution's name.
        self.out_layers = nn.Sequential(shape.group_norm(channels), nn.SiLU(), nn.Dropout(0.0), conv)

    def _norm(self, h: Tensor, condition: Condition) -> Tensor:
        scale, shift = self.emb_layers(condition)[:, :, None, None].chunk(2, dim=1)
        norm, _, _, conv = self.out_layers
        return conv(modulated_silu(norm(h), scale, shift))


def set_activation_checkpointing(model: nn.Module, mode: str) -> None:
    """Choose which activations a network's backward pass computes again instead of keeping them.

    `mode` is "none"; "posgn", the norms of all residual blocks, whose per-pixel MLP takes most of the memory and little
    of the time; or "full", whole residual blocks. Gradients do not change. Ours.
    """
    for module in model.modules():
        if isinstance(module, ResBlock):
            module.checkpointing = mode


class AttentionBlock(nn.Module):
    """Self-attention over the pixels of a feature map with a zero-initialized residual: (B, C, H, W) -> same shape."""

    def __init__(self, channels: int, shape: UNetShape) -> None:
        super().__init__()
        per_head = shape.num_head_channels
        self.num_heads = shape.num_heads if per_head == -1 else channels // per_head
        if not self.num_heads or channels % self.num_heads or per_head not in (-1, channels // self.num_heads):
            raise ValueError(f"attention over {channels} channels does not divide into the heads of this network")
        self.norm = shape.group_norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zero_init(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, height, width = x.shape
        qkv = conv1x1(self.qkv, self.norm(x)).permute(0, 2, 3, 1)
        # The published layout splits heads first, then q, k and v. The channels of a head stay adjacent in memory,
        # which fused kernels require: (B, heads, HW, ch) each.
        q, k, v = qkv.reshape(b, height * width, self.num_heads, 3, -1).permute(3, 0, 2, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, height, width, c)
        return x + conv1x1(self.proj_out, attended.permute(0, 3, 1, 2))


class BlockSequence(nn.Sequential):
    """Blocks in sequence, of which only the residual ones receive the condition."""

    def forward(self, x: Tensor, condition: Condition) -> Tensor:  # type: ignore[override]
        for block in self:
            x = block(x, condition) if isinstance(block, ResBlock) else block(x)
        return x


def _attention(channels: int, factor: int, shape: UNetShape) -> list[nn.Module]:
    """The attention block of a level, if its down-sampling factor is one of shape.attention_resolutions."""
    return [AttentionBlock(channels, shape)] if factor in shape.attention_resolutions else []


def down_blocks(in_channels: int, shape: UNetShape, res_block: type[ResBlock]) -> tuple[nn.ModuleList, list[int]]:
    """The down path over inputs (B, in_channels, H, W): its blocks, and the number of channels each of them outputs.

    U-Net and motion latent encoder have one each. Source: the published code.
    """
    width = shape.model_channels * shape.channel_mult[0]
    blocks = [BlockSequence(nn.Conv2d(in_channels, width, 3, padding=1))]
    channels = [width]
    for level, mult in enumerate(shape.channel_mult):
        for _ in range(shape.num_res_blocks):
            residual = res_block(width, shape.model_channels * mult, shape)
            width = shape.model_channels * mult
            blocks.append(BlockSequence(residual, *_attention(width, 2**level, shape)))
            channels.append(width)
        if level < len(shape.channel_mult) - 1:
            down = res_block(width, width, shape, resample="down") if shape.resblock_updown else Downsample(width)
            blocks.append(BlockSequence(down))
            channels.append(width)
    return nn.ModuleList(blocks), channels


class MotionEncoder(nn.Module):
    """The motion latent encoder: the down path of a U-Net over the first frame, with its own weights.

    Shapes: forward(first (B, 3, H, W) in [-1, 1], Position of (B,)) -> a list of latents, one for each input block of
    the U-Net and of its shape. Source: the published code.
    """

    def __init__(self, shape: UNetShape) -> None:
        super().__init__()
        self.input_blocks, _ = down_blocks(RGB, shape, ResBlock)

    def forward(self, first: Tensor, position: Position) -> list[Tensor]:
        latents = []
        h = first.type(weight_dtype(self))
        for block in self.input_blocks:
            h = block(h, position)
            latents.append(h)
        return latents


class UNet(nn.Module):
    """The trunk: prediction and variance of a frame from a noisy frame and its conditions.

    Shapes: forward(x (B, in_channels, H, W), condition, latents) -> (B, 6, H, W). `condition` is what `res_block`
    receives: a Position of (B,), or an embedding for ScaleShiftResBlock. `latents` are MotionEncoder's, one per input
    block; without them it is guided-diffusion's U-Net. The last convolution is zero-initialized, so a new network
    outputs zeros. Source: the published code.
    """

    def __init__(self, in_channels: int, shape: UNetShape, res_block: type[ResBlock] = ResBlock) -> None:
        super().__init__()
        self.input_blocks, skip_channels = down_blocks(in_channels, shape, res_block)
        width = skip_channels[-1]
        self.middle_block = BlockSequence(
            res_block(width, width, shape), AttentionBlock(width, shape), res_block(width, width, shape)
        )
        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(shape.channel_mult))):
            for i in range(shape.num_res_blocks + 1):
                layers: list[nn.Module] = [res_block(width + skip_channels.pop(), shape.model_channels * mult, shape)]
                width = shape.model_channels * mult
                layers += _attention(width, 2**level, shape)
                if level and i == shape.num_res_blocks:
                    up = res_block(width, width, shape, resample="up") if shape.resblock_updown else Upsample(width)
                    layers.append(up)
                self.output_blocks.append(BlockSequence(*layers))
        self.out = nn.Sequential(
            shape.group_norm(width),
            nn.SiLU(),
            zero_init(nn.Conv2d(width, OUT_CHANNELS, 3, padding=1)),
        )

    def forward(self, x: Tensor, condition: Condition, latents: Sequence[Tensor] | None = None) -> Tensor:
        h = x.type(weight_dtype(self))
        skips = []
        for i, block in enumerate(self.input_blocks):
            h = block(h, condition)
            if latents is not None:
                h = torch.add(latents[i], h, alpha=UNET_WEIGHT)
            skips.append(h)
        h = self.middle_block(h, condition)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), condition)
        return self.out(h)
