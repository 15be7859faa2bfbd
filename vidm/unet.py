"""The U-Net trunk: noise and variance from a noisy frame plus flow, joined with the motion encoder's latents.

Its input blocks take the encoder's latents in, one by one; without latents it is guided-diffusion's plain U-Net.

    unet = UNet(in_channels=5, out_channels=6, shape=UNetShape())
    out = unet(torch.cat([x_t, flow], 1), t, frame_index, latents)
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vidm.blocks import (
    AttentionBlock,
    BlockSequence,
    ResBlock,
    UNetShape,
    Upsample,
    attention_if_wanted,
    down_blocks,
)
from vidm.posgn import GroupNorm32, weight_dtype, zero_init

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
