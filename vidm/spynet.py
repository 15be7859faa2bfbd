"""SPyNet: optical flow between two frames by a pyramid of small convolutional networks.

Source: Ranjan and Black 2017, "Optical flow estimation using a spatial pyramid network". Parameter names and details
are those of the weights used in video restoration, which VIDM's checkpoints contain.

    flow = SPyNet()(reference, support)  # (B, 2, H, W): the offset of each pixel of reference in support
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidm.layers import zero_init
from vidm.tf32 import tf32_products, without_tf32_in_backward

NUM_LEVELS = 6
SIDE_MULTIPLE = 2 ** (NUM_LEVELS - 1)
# Channel statistics of ImageNet for images in [0, 1].
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def warp(frame: Tensor, flow: Tensor) -> Tensor:
    """Sample `frame` where `flow` points: out[y, x] = frame[y + flow_y, x + flow_x].

    Shapes: frame (B, C, H, W), flow (B, 2, H, W) in pixels, x then y -> (B, C, H, W). Bilinear; positions outside the
    frame take the value at the border.
    """
    height, width = frame.shape[2:]
    y = torch.arange(height, device=flow.device, dtype=flow.dtype)[:, None]
    x = torch.arange(width, device=flow.device, dtype=flow.dtype)
    grid_x = 2 * (x + flow[:, 0]) / max(width - 1, 1) - 1
    grid_y = 2 * (y + flow[:, 1]) / max(height - 1, 1) - 1
    # grid_sample would convert NaN to an invalid memory address.
    grid = torch.stack([grid_x, grid_y], dim=3).nan_to_num()
    return F.grid_sample(frame, grid, mode="bilinear", padding_mode="border", align_corners=True)


class ConvLayer(nn.Module):
    """A 7x7 convolution, followed by ReLU except in the last layer of a level."""

    def __init__(self, in_channels: int, out_channels: int, relu: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 7, padding=3)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return F.relu(x) if self.relu else x


class PyramidLevel(nn.Module):
    """The correction of the flow at one level: (B, 8, H, W) of reference, warped support and flow -> (B, 2, H, W).

    The last convolution is zero-initialized, so that a new SPyNet outputs zero flow; random weights would output tens
    of pixels everywhere (ours).
    """

    def __init__(self) -> None:
        super().__init__()
        channels = (8, 32, 64, 32, 16, 2)
        layers = [ConvLayer(channels[k], channels[k + 1], relu=k < 4) for k in range(5)]
        zero_init(layers[-1])
        self.basic_module = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.basic_module(x)


class SPyNet(nn.Module):
    """Six-level optical flow.

    Shapes: forward(reference (B, 3, H, W), support (B, 3, H, W)) -> flow (B, 2, H, W) in pixels, x then y, such that
    warp(support, flow) resembles reference. The normalization expects frames in [0, 1]. Frames of any size are resized
    up to multiples of 32, and the flow is resized and scaled back. Computed in float32 without TF32 in any precision.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.basic_module = nn.ModuleList(PyramidLevel() for _ in range(NUM_LEVELS))
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))

    def _pyramid(self, frame: Tensor) -> list[Tensor]:
        """The normalized frame at every level, coarsest first."""
        levels = [(frame - self.mean) / self.std]
        for _ in range(NUM_LEVELS - 1):
            levels.append(F.avg_pool2d(levels[-1], 2))
        return levels[::-1]

    def pyramid_flows(self, reference: Tensor, support: Tensor) -> list[Tensor]:
        """The flow at every level, (B, 2, H / 2^k, W / 2^k) in pixels of that level, coarsest first.

        Both sides of the frames must be multiples of 32. The last flow is the result; the others are for training.
        """
        b, _, height, width = reference.shape
        flow = reference.new_zeros(b, 2, height // SIDE_MULTIPLE, width // SIDE_MULTIPLE)
        flows: list[Tensor] = []
        levels = zip(self.basic_module, self._pyramid(reference), self._pyramid(support), strict=True)
        for level, ref, sup in levels:
            if flows:
                flow = 2 * F.interpolate(flow, scale_factor=2, mode="bilinear", align_corners=True)
            flow = flow + level(torch.cat([ref, warp(sup, flow), flow], dim=1))
            flows.append(flow)
        return flows

    def forward(self, reference: Tensor, support: Tensor) -> Tensor:
        height, width = reference.shape[2:]
        padded = [-(-side // SIDE_MULTIPLE) * SIDE_MULTIPLE for side in (height, width)]
        # Flow is in pixels, which half precision would round to a quarter of a pixel or worse.
        with torch.autocast(reference.device.type, enabled=False), tf32_products(False):
            reference, support = (
                F.interpolate(frame.float(), padded, mode="bilinear", align_corners=False)
                for frame in (reference, support)
            )
            flow = self.pyramid_flows(reference, support)[-1]
            flow = F.interpolate(flow, (height, width), mode="bilinear", align_corners=False)
            x, y = flow.split(1, dim=1)
            flow = torch.cat([x * (width / padded[1]), y * (height / padded[0])], dim=1)
        return without_tf32_in_backward(flow)
