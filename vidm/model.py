"""The two generators of VIDM: content draws the first frame, motion denoises frame n given the first.

motion = MotionGenerator(image_size=128)
out = motion(x_t, t, frame_index, previous, first)  # (B, 6, H, W): noise, then variance
content = ContentGenerator(image_size=128)
out = content(x_t, t)
"""

import torch
from torch import Tensor, nn

from vidm.layers import constant_index
from vidm.spynet import SPyNet
from vidm.unet import MotionEncoder, UNet, UNetShape

FLOW_RANGES = ("unit", "published", "none")


class ContentGenerator(nn.Module):
    """Denoises a first frame, unconditionally: the motion generator's trunk without its conditions.

    Shapes: forward(x_t (B, 3, H, W), t (B,)) -> (B, out_channels, H, W), three channels of noise (or v) and three of
    the variance's interpolation. Every frame has frame_index 0. The sides of a frame are multiples of
    2 ** (levels - 1), others raise ValueError. Source: the paper names it, the released code has none; this form is
    ours.
    """

    def __init__(
        self,
        image_size: int = 128,
        in_channels: int = 3,
        model_channels: int = 128,
        out_channels: int = 6,
        num_res_blocks: int = 2,
        attention_resolutions: tuple[int, ...] = (16,),
        channel_mult: tuple[int, ...] = (1, 1, 2, 2, 4, 4),
        num_heads: int = 4,
        num_head_channels: int = 64,
        resblock_updown: bool = True,
        diffusion_timesteps: int = 1000,
        norm: str = "posgn",
    ) -> None:
        super().__init__()
        self.shape = UNetShape(
            model_channels=model_channels,
            num_res_blocks=num_res_blocks,
            attention_resolutions=tuple(attention_resolutions),
            channel_mult=tuple(channel_mult),
            num_heads=num_heads,
            num_head_channels=num_head_channels,
            resblock_updown=resblock_updown,
            diffusion_timesteps=diffusion_timesteps,
            video_timesteps=1,
            norm=norm,
        )
        self.shape.check_sides(image_size, image_size)
        self.image_size = image_size
        self.unet = UNet(in_channels, out_channels, self.shape)
        self.to(memory_format=torch.channels_last)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        self.shape.check_sides(x_t.shape[2], x_t.shape[3])
        return self.unet(x_t, t, constant_index(0, x_t))


class MotionGenerator(nn.Module):
    """Denoises frame n given the first frame, the flow from it to the previous frame, and n.

    Shapes: forward(x_t (B, 3, H, W), t (B,), frame_index (B,), previous (B, 3, H, W), first (B, 3, H, W), flow)
    -> (B, out_channels, H, W): three channels of noise (or v), three of the variance's interpolation. Frames are
    floats in [-1, 1]; t and frame_index int64. `flow` (B, 2, H, W), given, spares SPyNet's run.

    `image_size` is recorded and checked when a checkpoint is loaded; the network itself takes any sides that are
    multiples of 2 ** (levels - 1) and raises ValueError for others, and for a frame_index (on the CPU) outside
    0 .. video_timesteps - 1. `flow_range` says what SPyNet sees: "unit"
    frames in [0, 1], as its normalisation expects; "published" frames in [-1, 1], as the released checkpoints were
    trained; "none" nothing: the flow is zero. Without `use_encoder` the first frame enters beside the noisy one
    instead, which is what the encoder is measured against. Source: the published code; defaults are its 128 x 128
    model's.
    """

    def __init__(
        self,
        image_size: int = 128,
        in_channels: int = 3,
        model_channels: int = 128,
        out_channels: int = 6,
        num_res_blocks: int = 2,
        attention_resolutions: tuple[int, ...] = (16,),
        channel_mult: tuple[int, ...] = (1, 1, 2, 2, 4, 4),
        num_heads: int = 4,
        num_head_channels: int = 64,
        resblock_updown: bool = True,
        diffusion_timesteps: int = 1000,
        video_timesteps: int = 128,
        flow_range: str = "unit",
        norm: str = "posgn",
        use_encoder: bool = True,
    ) -> None:
        super().__init__()
        if flow_range not in FLOW_RANGES:
            raise ValueError(f"flow_range {flow_range!r} is unknown: choose from {', '.join(FLOW_RANGES)}")
        self.shape = UNetShape(
            model_channels=model_channels,
            num_res_blocks=num_res_blocks,
            attention_resolutions=tuple(attention_resolutions),
            channel_mult=tuple(channel_mult),
            num_heads=num_heads,
            num_head_channels=num_head_channels,
            resblock_updown=resblock_updown,
            diffusion_timesteps=diffusion_timesteps,
            video_timesteps=video_timesteps,
            norm=norm,
        )
        self.shape.check_sides(image_size, image_size)
        self.image_size = image_size
        self.flow_range = flow_range
        self.encoder = MotionEncoder(in_channels, self.shape) if use_encoder else None
        first_channels = 0 if use_encoder else in_channels
        self.unet = UNet(in_channels + 2 + first_channels, out_channels, self.shape)
        self.spynet = SPyNet()
        self.to(memory_format=torch.channels_last)

    @property
    def video_timesteps(self) -> int:
        """Frames per video: frame_index runs from 0, the given frame, to this less one."""
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
        # On a GPU, looking would stall its queue.
        if frame_index.device.type == "cpu" and not 0 <= frame_index.min() <= frame_index.max() < self.video_timesteps:
            raise ValueError(
                f"frame_index {frame_index.tolist()} goes beyond the {self.video_timesteps} frames trained on"
            )
        if flow is None:
            flow = self.flow(first, previous)
        if self.encoder is None:
            return self.unet(torch.cat([x_t, flow, first], dim=1), t, frame_index)
        latents = self.encoder(first, t, frame_index)
        return self.unet(torch.cat([x_t, flow], dim=1), t, frame_index, latents)
