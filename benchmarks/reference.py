"""The published motion generator in plain PyTorch, a short statement of the method and the baseline for speed.

It works like the released code: it computes the flow in every denoising step, the MLP of the positional group norm for
every pixel of every sample from a stacked tensor of coordinates, and attention by einsum, in float32 and NCHW, without
fused operations or reuse. Modules have the names of the published code, so `load_state_dict` accepts the package's
weights; tests/test_reference.py checks that the outputs are then equal.

    reference = ReferenceMotionGenerator(UNetShape())
    reference.load_state_dict(MotionGenerator().state_dict())
    output = reference(x_t, t, frame_index, previous, first)
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidm.unet import UNetShape

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def group_norm(channels: int, shape: UNetShape) -> nn.GroupNorm:
    per_group = shape.channels_per_group
    return nn.GroupNorm(channels // per_group if per_group else 32, channels, eps=1e-5)


class ReferencePosGN(nn.Module):
    def __init__(self, channels: int, shape: UNetShape) -> None:
        super().__init__()
        self.counts = shape.diffusion_timesteps, shape.video_timesteps
        self.linear_0 = nn.Linear(4, channels)
        self.linear_1 = nn.Sequential(
            nn.Linear(channels, 2 * channels), nn.SiLU(), nn.Linear(2 * channels, 2 * channels)
        )
        self.out_norm = group_norm(channels, shape)
        self.out_rest = nn.Sequential(nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, h: Tensor, t: Tensor, frame_index: Tensor) -> Tensor:
        b, _, height, width = h.shape
        axes = [torch.linspace(-1, 1, count, device=h.device) for count in (*self.counts, height, width)]
        coordinates = torch.stack(
            [
                axes[0][t].view(b, 1, 1).expand(b, height, width),
                axes[1][frame_index].view(b, 1, 1).expand(b, height, width),
                axes[2].view(1, height, 1).expand(b, height, width),
                axes[3].view(1, 1, width).expand(b, height, width),
            ],
            dim=3,
        )
        modulation = self.linear_1(torch.sin(self.linear_0(coordinates))).permute(0, 3, 1, 2)
        scale, shift = torch.chunk(modulation, 2, dim=1)
        return self.out_rest(self.out_norm(h) * (1 + scale) + shift)


class ReferenceResBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, shape: UNetShape, resample: str = "") -> None:
        super().__init__()
        self.resample = resample
        self.in_layers = nn.Sequential(
            group_norm(in_channels, shape), nn.SiLU(), nn.Conv2d(in_channels, out_channels, 3, padding=1)
        )
        self.emb_layers = ReferencePosGN(out_channels, shape)
        self.skip_connection = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def resampled(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2, mode="nearest") if self.resample == "up" else x

    def forward(self, x: Tensor, t: Tensor, frame_index: Tensor) -> Tensor:
        h = self.in_layers[1](self.in_layers[0](x))
        h = self.in_layers[2](self.resampled(h))
        h = self.emb_layers(h, t, frame_index)
        return self.skip_connection(self.resampled(x)) + h


class ReferenceAttention(nn.Module):
    def __init__(self, channels: int, shape: UNetShape) -> None:
        super().__init__()
        self.num_heads = channels // shape.num_head_channels if shape.num_head_channels > 0 else shape.num_heads
        self.norm = group_norm(channels, shape)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, height, width = x.shape
        qkv = self.qkv(self.norm(x).reshape(b, c, -1)).reshape(b * self.num_heads, -1, height * width)
        q, k, v = qkv.chunk(3, dim=1)
        weight = torch.einsum("bct,bcs->bts", q, k) / math.sqrt(q.shape[1])
        attended = torch.einsum("bts,bcs->bct", weight.softmax(dim=2), v).reshape(b, c, -1)
        return x + self.proj_out(attended).reshape(x.shape)


class ReferenceBlocks(nn.Sequential):
    def forward(self, x: Tensor, t: Tensor, frame_index: Tensor) -> Tensor:  # type: ignore[override]
        for block in self:
            x = block(x, t, frame_index) if isinstance(block, ReferenceResBlock) else block(x)
        return x


def attention(channels: int, factor: int, shape: UNetShape) -> list[nn.Module]:
    return [ReferenceAttention(channels, shape)] if factor in shape.attention_resolutions else []


def input_blocks(in_channels: int, shape: UNetShape) -> tuple[nn.ModuleList, list[int]]:
    """The down path, with resampling inside residual blocks, and the channels of its blocks."""
    width = shape.model_channels * shape.channel_mult[0]
    blocks, channels = [ReferenceBlocks(nn.Conv2d(in_channels, width, 3, padding=1))], [width]
    for level, mult in enumerate(shape.channel_mult):
        for _ in range(shape.num_res_blocks):
            block = ReferenceResBlock(width, shape.model_channels * mult, shape)
            width = shape.model_channels * mult
            blocks.append(ReferenceBlocks(block, *attention(width, 2**level, shape)))
            channels.append(width)
        if level < len(shape.channel_mult) - 1:
            blocks.append(ReferenceBlocks(ReferenceResBlock(width, width, shape, "down")))
            channels.append(width)
    return nn.ModuleList(blocks), channels


class ReferenceTrunk(nn.Module):
    def __init__(self, in_channels: int, shape: UNetShape) -> None:
        super().__init__()
        self.input_blocks, skips = input_blocks(in_channels, shape)
        width = skips[-1]
        self.middle_block = ReferenceBlocks(
            ReferenceResBlock(width, width, shape),
            ReferenceAttention(width, shape),
            ReferenceResBlock(width, width, shape),
        )
        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(shape.channel_mult))):
            for i in range(shape.num_res_blocks + 1):
                layers: list[nn.Module] = [
                    ReferenceResBlock(width + skips.pop(), shape.model_channels * mult, shape),
                    *attention(shape.model_channels * mult, 2**level, shape),
                ]
                width = shape.model_channels * mult
                if level and i == shape.num_res_blocks:
                    layers.append(ReferenceResBlock(width, width, shape, "up"))
                self.output_blocks.append(ReferenceBlocks(*layers))
        self.out = nn.Sequential(group_norm(width, shape), nn.SiLU(), nn.Conv2d(width, 6, 3, padding=1))


class ReferenceEncoder(nn.Module):
    def __init__(self, in_channels: int, shape: UNetShape) -> None:
        super().__init__()
        self.input_blocks, _ = input_blocks(in_channels, shape)


class ReferenceConv(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class ReferenceLevel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        widths = (8, 32, 64, 32, 16, 2)
        self.basic_module = nn.Sequential(*[ReferenceConv(*pair) for pair in pairwise(widths)])

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.basic_module[:-1]:
            x = F.relu(conv(x))
        return self.basic_module[-1](x)


def backward_warp(image: Tensor, flow: Tensor) -> Tensor:
    height, width = image.shape[2:]
    rows, columns = torch.meshgrid(
        torch.arange(height, device=flow.device), torch.arange(width, device=flow.device), indexing="ij"
    )
    x = 2 * (columns + flow[:, 0]) / max(width - 1, 1) - 1
    y = 2 * (rows + flow[:, 1]) / max(height - 1, 1) - 1
    return F.grid_sample(image, torch.stack([x, y], dim=3), padding_mode="border", align_corners=True)


class ReferenceSPyNet(nn.Module):
    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.basic_module = nn.ModuleList(ReferenceLevel() for _ in range(6))
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))

    def forward(self, reference: Tensor, support: Tensor) -> Tensor:
        height, width = reference.shape[2:]
        full = [math.ceil(height / 32) * 32, math.ceil(width / 32) * 32]
        pyramids = []
        for image in (reference, support):
            levels = [(F.interpolate(image, full, mode="bilinear") - self.mean) / self.std]
            for _ in range(5):
                levels.insert(0, F.avg_pool2d(levels[0], 2))
            pyramids.append(levels)
        flow = torch.zeros_like(pyramids[0][0][:, :2])
        for level, ref, sup in zip(self.basic_module, *pyramids, strict=True):
            if ref.shape[2:] != flow.shape[2:]:
                flow = 2 * F.interpolate(flow, scale_factor=2, mode="bilinear", align_corners=True)
            flow = flow + level(torch.cat([ref, backward_warp(sup, flow), flow], dim=1))
        flow = F.interpolate(flow, (height, width), mode="bilinear")
        return flow * torch.tensor([width / full[1], height / full[0]], device=flow.device).view(1, 2, 1, 1)


class ReferenceMotionGenerator(nn.Module):
    """The published network for frames in [-1, 1] and for shapes that resample inside residual blocks.

    Shapes: forward(x_t (B, 3, H, W), t (B,), frame_index (B,), previous (B, 3, H, W), first (B, 3, H, W)) ->
    (B, 6, H, W). SPyNet gets frames in [0, 1], which is the package's "unit" flow range."""

    def __init__(self, shape: UNetShape) -> None:
        super().__init__()
        self.encoder = ReferenceEncoder(3, shape)
        self.unet = ReferenceTrunk(5, shape)
        self.spynet = ReferenceSPyNet()

    def forward(self, x_t: Tensor, t: Tensor, frame_index: Tensor, previous: Tensor, first: Tensor) -> Tensor:
        flow = self.spynet((first + 1) / 2, (previous + 1) / 2)
        h, r = torch.cat([x_t, flow], dim=1), first
        skips = []
        for encoder_block, unet_block in zip(self.encoder.input_blocks, self.unet.input_blocks, strict=True):
            r = encoder_block(r, t, frame_index)
            h = r + 0.2 * unet_block(h, t, frame_index)
            skips.append(h)
        h = self.unet.middle_block(h, t, frame_index)
        for block in self.unet.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), t, frame_index)
        return self.unet.out(h)


@torch.no_grad()
def update_average(shadow: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    """Move averaged weights towards a model's, one tensor at a time."""
    for name, tensor in model.state_dict().items():
        shadow[name].mul_(decay).add_(tensor, alpha=1 - decay)
