"""How a video becomes what a detector sees, and features a number: the choices that set published FVDs apart.

    protocol = PROTOCOLS["stylegan-v"]
    features = detector(protocol.prepare(clips), **protocol.switches)     # clips uint8 (B, 3, T, H, W)

A detector is called as the I3D of StyleGAN-V is: detector(video, rescale, resize, return_features). Where `rescale` is
on it brings 0 .. 255 to [-1, 1] itself, where `resize` is on it brings frames to 224 x 224 itself.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

I3D_SIZE = 224


@dataclass(frozen=True)
class Protocol:
    """`prepare` turns uint8 (B, 3, T, H, W) into the detector's input, `switches` are its keyword arguments.

    `ddof` is what is taken off n in the covariance, `random_start` says whether the clip of a real video begins at a
    seeded random frame rather than the first, `max_videos` how many of a folder count unless a number is asked for.
    """

    name: str
    prepare: Callable[[Tensor], Tensor]
    switches: Mapping[str, bool]
    ddof: int
    random_start: bool
    max_videos: int = 2048


def _as_stored(clips: Tensor) -> Tensor:
    return clips


def _unit_range(clips: Tensor) -> Tensor:
    return clips.float() / 255


def _i3d_frames(clips: Tensor) -> Tensor:
    """Short side to 224, bilinear without antialiasing, the central square, [-1, 1]: float32 (B, 3, T, 224, 224)."""
    batch, _, num_frames, height, width = clips.shape
    scale = I3D_SIZE / min(height, width)
    new_height, new_width = max(round(height * scale), I3D_SIZE), max(round(width * scale), I3D_SIZE)
    frames = clips.float().div(127.5).sub(1).transpose(1, 2).flatten(0, 1)
    frames = F.interpolate(frames, (new_height, new_width), mode="bilinear", align_corners=False)
    top, left = (new_height - I3D_SIZE) // 2, (new_width - I3D_SIZE) // 2
    square = frames[..., top : top + I3D_SIZE, left : left + I3D_SIZE]
    return square.unflatten(0, (batch, num_frames)).transpose(1, 2)


def _switches(rescale: bool, resize: bool) -> dict[str, bool]:
    return {"rescale": rescale, "resize": resize, "return_features": True}


STYLEGAN_V = Protocol("stylegan-v", _as_stored, _switches(rescale=True, resize=True), ddof=0, random_start=True)
VIDM_RELEASED = Protocol(
    "vidm-released", _unit_range, _switches(rescale=False, resize=True), ddof=1, random_start=False
)
VIDEOGPT = Protocol("videogpt", _i3d_frames, _switches(rescale=False, resize=False), ddof=1, random_start=False)
# StyleGAN-V's inception score: the C3D takes uint8 frames and no switches, and gives class probabilities.
C3D = Protocol("c3d", _as_stored, {}, ddof=0, random_start=False)

PROTOCOLS = {protocol.name: protocol for protocol in (STYLEGAN_V, VIDM_RELEASED, VIDEOGPT)}
