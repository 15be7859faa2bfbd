"""The motion latent encoder: the first frame -> one latent per level of the U-Net's down path.

The encoder sees the first frame alone; what of it matters at step t of frame n, PosGN's coordinates tell it.

    encoder = MotionEncoder(3, UNetShape())
    latents = encoder(first, t, frame_index)
"""

from torch import Tensor, nn

from vidm.blocks import UNetShape, down_blocks
from vidm.posgn import weight_dtype


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
