"""VIDM's two generators: content draws the first frame, motion denoises frame n given the first frame.

motion = MotionGenerator(image_size=128)
out = motion(x_t, t, frame_index, previous, first)  # (B, 6, H, W): noise, then variance
content = ContentGenerator(image_size=128)
out = content(x_t, t)
"""

from typing import Any

import torch
from torch import Tensor, nn

from vidm.layers import constant_index
from vidm.posgn import Position
from vidm.spynet import SPyNet
from vidm.unet import RGB, MotionEncoder, UNet, UNetShape

FLOW_RANGES = ("unit", "published", "none")


class ContentGenerator(nn.Module):
    """Denoises a first frame, unconditionally: the motion generator's trunk without its conditions.

    Shapes: forward(x_t (B, 3, H, W), t (B,)) -> (B, 6, H, W), three channels of noise (or v), then three of the
    variance's interpolation. `shape` are fields of UNetShape; every frame has frame_index 0. Raises ValueError for
    frames whose sides are not multiples of 2 ** (levels - 1). This form is ours.
    """

    def __init__(self, image_size: int = 128, **shape: Any) -> None:
        super().__init__()
        self.shape = UNetShape(video_timesteps=1, **shape)
        self.shape.check_sides(image_size, image_size)
        self.image_size = image_size
        self.unet = UNet(RGB, self.shape)
        self.to(memory_format=torch.channels_last)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        self.shape.check_sides(x_t.shape[2], x_t.shape[3])
        return self.unet(x_t, Position(t, constant_index(0, x_t)))


class MotionGenerator(nn.Module):
    """Denoises frame n given the first frame, the optical flow from it to the previous frame, and n.

    Shapes: forward(x_t (B, 3, H, W), t (B,), frame_index (B,), previous (B, 3, H, W), first (B, 3, H, W), flow)
    -> (B, 6, H, W): three channels of noise (or v), then three of the variance's interpolation. Frames are floats in
    [-1, 1], t and frame_index int64. If `flow` (B, 2, H, W) is given, SPyNet is not run.

    `shape` are fields of UNetShape. `image_size` is the size of training; the network takes any size whose sides are
    multiples of 2 ** (levels - 1). `flow_range` is what SPyNet sees: "unit", frames in [0, 1], as its normalization
    expects; "published", frames in [-1, 1], as the released checkpoints were trained; "none", no flow (zeros). Without
    `use_encoder` the first frame is concatenated to the noisy one, the baseline for the encoder. Raises ValueError for
    other sizes and, on the CPU, for a frame_index outside 0 .. video_timesteps - 1. Source: the published code.
    """

    def __init__(self, image_size: int = 128, flow_range: str = "unit", use_encoder: bool = True, **shape: Any) -> None:
        super().__init__()
        if flow_range not in FLOW_RANGES:
            raise ValueError(f"unknown flow_range {flow_range!r}: choose from {', '.join(FLOW_RANGES)}")
        self.shape = UNetShape(**shape)
        self.shape.check_sides(image_size, image_size)
        self.image_size = image_size
        self.flow_range = flow_range
        self.encoder = MotionEncoder(self.shape) if use_encoder else None
        self.unet = UNet(RGB + 2 + (0 if use_encoder else RGB), self.shape)
        self.spynet = SPyNet()
        self.to(memory_format=torch.channels_last)

    @property
    def video_timesteps(self) -> int:
        """Frames per video: frame_index runs from 0, the given frame, to video_timesteps - 1."""
        return self.shape.video_timesteps

    def flow(self, first: Tensor, previous: Tensor) -> Tensor:
        """Optical flow (B, 2, H, W) in pixels from the first to the previous frame, both (B, 3, H, W) in [-1, 1]."""
        if self.flow_range == "none":
            return torch.zeros_like(first[:, :2])
        if self.flow_range == "unit":
            first, previous = (first + 1) / 2, (previous + 1) / 2
        return self.spynet(first, previous)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        frame_index: Tensor,
        previous: Tensor,
        first: Tensor,
        flow: Tensor | None = None,
    ) -> Tensor:
        self.shape.check_sides(x_t.shape[2], x_t.shape[3])
        # Not on a GPU, where reading the values would wait for all queued work.
        if frame_index.device.type == "cpu" and not 0 <= frame_index.min() <= frame_index.max() < self.video_timesteps:
            raise ValueError(
                f"frame_index {frame_index.tolist()} is outside 0 to {self.video_timesteps - 1}, which the model was "
                "built for"
            )
        position = Position(t, frame_index)
        if flow is None:
            flow = self.flow(first, previous)
        if self.encoder is None:
            return self.unet(torch.cat([x_t, flow, first], dim=1), position)
        return self.unet(torch.cat([x_t, flow], dim=1), position, self.encoder(first, position))
