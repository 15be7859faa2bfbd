"""VIDM's two generators: content draws the first frame, motion denoises frame n given the first frame.

motion = MotionGenerator(image_size=128)
out = motion(x_t, t, frame_index, previous, first)  # (B, 6, H, W): noise, then variance
content = ContentGenerator(image_size=128)
out = content(x_t, t)
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidm.diffusion import Process
from vidm.layers import sinusoidal_embedding, weight_dtype
from vidm.posgn import Position, class_embedding, class_rows
from vidm.spynet import SPyNet
from vidm.unet import EMBEDDING_MULT, RGB, MotionEncoder, ScaleShiftResBlock, UNet, UNetShape

# The last part of the names of tensors with a row for each class, and its end in those of any condition.
CLASS_EMBEDDING, EMBEDDING = "class_embedding", "_embedding"
FLOW_RANGES = ("unit", "published", "none")

# An int for a square, or (height, width).
Size = int | tuple[int, int]


def _sides(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


class ConstantInput(nn.Module):
    """A learned image (1, 3, H, W), repeated over a batch (B, ...) -> (B, 3, H, W).

    Our reading of the paper's sampling space truncation (docs/fidelity.md), after StyleGAN's constant input. Source:
    the authors' first public commit (9e4924b).
    """

    def __init__(self, image_size: Size) -> None:
        super().__init__()
        self.input = nn.Parameter(torch.randn(1, RGB, *_sides(image_size)))

    def forward(self, batch: Tensor) -> Tensor:
        return self.input.expand(batch.shape[0], -1, -1, -1)


def resized_constant(state: Mapping[str, Tensor], image_size: Size) -> Mapping[str, Tensor]:
    """A content generator's weights for frames of another size: only the constant depends on it. Ours."""
    constant = state.get("input.input")
    if constant is None or constant.shape[-2:] == _sides(image_size):
        return state
    resized = F.interpolate(constant.float(), _sides(image_size), mode="bilinear", align_corners=False)
    return {**state, "input.input": resized}


def relabelled(
    state: Mapping[str, Tensor], known: Sequence[str], wanted: Sequence[str], own: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """The weights of a network for the classes `known` in a network for the classes `wanted`, whose tensors are `own`.

    Classes of both keep their embedding, new ones start at zero, and so does "no class" if none were known. Embeddings
    of other conditions (`..._embedding`) that the weights lack start at zero; those that the network lacks are dropped.
    Ours.
    """
    rows = {1 + wanted.index(name): 1 + known.index(name) for name in wanted if name in known} | {0: 0}
    adapted = {
        name: tensor
        for name, tensor in state.items()
        if name.split(".")[-1] != CLASS_EMBEDDING and (name in own or not name.endswith(EMBEDDING))
    }
    for name in (name for name in own if name.endswith(EMBEDDING) and name not in adapted):
        adapted[name] = torch.zeros(own[name].shape)
        if name in state:
            adapted[name][list(rows)] = state[name][list(rows.values())].to(adapted[name])
    return adapted


def _check_classes(shape: UNetShape, class_index: Tensor | None) -> None:
    """Raise ValueError for classes (B,) if the network has none and, on the CPU, for numbers out of range."""
    if class_index is None:
        return
    last = len(shape.class_names)
    # Not on a GPU, where reading the values would wait for all queued work.
    if not last or (class_index.device.type == "cpu" and not 0 <= class_index.min() <= class_index.max() <= last):
        raise ValueError(
            f"class_index {class_index.tolist()}: the network has {last} classes, numbered from 1; 0 means no class"
        )


class ContentGenerator(UNet):
    """Denoises a first frame, perhaps of a given class; its trunk sees a learned constant image beside the noisy frame.

    Shapes: forward(x_t (B, 3, H, W), t (B,), class_index (B,) or None) -> (B, 6, H, W), three channels of noise (or v),
    then three of the variance's interpolation; `image_size` is (H, W), or an int for a square. With `class_names`, an
    embedding of the class is added to that of t, as in guided-diffusion. `shape` are fields of UNetShape; there is no
    positional norm, so its `video_timesteps` and `norm` have no meaning. Without `constant` the trunk sees the noisy
    frame alone, the baseline for the truncation. Raises ValueError for frames of another size. Source: the authors'
    first public commit (9e4924b), with its parameter names; the switch is ours.
    """

    process: Process | None = None  # what build_model built it for; a GaussianDiffusion refuses another

    def __init__(self, image_size: Size = 128, constant: bool = True, **shape: Any) -> None:
        network = UNetShape(**shape)
        network.check_sides(*_sides(image_size))
        super().__init__(2 * RGB if constant else RGB, network, ScaleShiftResBlock)
        self.shape = network
        self.image_size = image_size
        width, embedded = network.model_channels, EMBEDDING_MULT * network.model_channels
        self.dt_embed = nn.Sequential(nn.Linear(width, embedded), nn.SiLU(), nn.Linear(embedded, embedded))
        self.class_embedding = class_embedding(len(network.class_names), embedded)
        self.input = ConstantInput(image_size) if constant else None
        self.to(memory_format=torch.channels_last)

    def forward(self, x_t: Tensor, t: Tensor, class_index: Tensor | None = None) -> Tensor:  # type: ignore[override]
        made_for, given = _sides(self.image_size), x_t.shape[2:]
        if given != made_for:
            given_text, own_text = (f"{height}x{width}" for height, width in (given, made_for))
            raise ValueError(f"frames of {given_text} pixels do not fit this network, made for {own_text}")
        _check_classes(self.shape, class_index)
        embedding = self.dt_embed(sinusoidal_embedding(t, self.shape.model_channels).type(weight_dtype(self.dt_embed)))
        if self.class_embedding is not None:
            embedding = embedding + class_rows(self.class_embedding, class_index)
        x = x_t if self.input is None else torch.cat([x_t, self.input(x_t)], dim=1)
        return super().forward(x, embedding)


class MotionGenerator(nn.Module):
    """Denoises frame n given the first frame, the optical flow from it to the previous frame, and n.

    Shapes: forward(x_t (B, 3, H, W), t (B,), frame_index (B,), previous (B, 3, H, W), first (B, 3, H, W), flow,
    class_index) -> (B, 6, H, W): three channels of noise (or v), then three of the variance's interpolation. Frames are
    floats in [-1, 1], t, frame_index and class_index (B,) int64. If `flow` (B, 2, H, W) is given, SPyNet is not run.
    Without `class_index`, videos have no class.

    `shape` are fields of UNetShape. `image_size` is the size of training, (height, width) or an int for a square; the
    network takes any size whose sides are multiples of 2 ** (levels - 1). `flow_range` is what SPyNet sees: "unit",
    frames in [0, 1], as its normalization expects; "published", frames in [-1, 1], as in the authors' training; "none",
    no flow (zeros). Without `use_encoder` the first frame is concatenated to the noisy one, the baseline for the
    encoder; with `use_previous` the previous frame is as well, besides its flow. Raises ValueError for other sizes and,
    on the CPU, for a frame_index outside 0 .. video_timesteps - 1. Source: the published code; the baselines are ours.
    """

    process: Process | None = None  # as the content generator's

    def __init__(
        self,
        image_size: Size = 128,
        flow_range: str = "unit",
        use_encoder: bool = True,
        use_previous: bool = False,
        **shape: Any,
    ) -> None:
        super().__init__()
        if flow_range not in FLOW_RANGES:
            raise ValueError(f"unknown flow_range {flow_range!r}: choose from {', '.join(FLOW_RANGES)}")
        self.shape = UNetShape(**shape)
        self.shape.check_sides(*_sides(image_size))
        self.image_size = image_size
        self.flow_range = flow_range
        self.use_previous = use_previous
        self.encoder = MotionEncoder(self.shape) if use_encoder else None
        self.unet = UNet(RGB + 2 + RGB * (use_previous + (not use_encoder)), self.shape)
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
        class_index: Tensor | None = None,
    ) -> Tensor:
        self.shape.check_sides(x_t.shape[2], x_t.shape[3])
        # Not on a GPU, where reading the values would wait for all queued work.
        if frame_index.device.type == "cpu" and not 0 <= frame_index.min() <= frame_index.max() < self.video_timesteps:
            raise ValueError(
                f"frame_index {frame_index.tolist()} is outside 0 to {self.video_timesteps - 1}, which the model was "
                "built for"
            )
        _check_classes(self.shape, class_index)
        position = Position(t, frame_index, class_index)
        if self.shape.norm == "posgn":
            # Before the blocks: the compiler breaks its graph where a recomputed block would keep something.
            position.in_time(self.shape.diffusion_timesteps, self.shape.video_timesteps)
            for level in range(len(self.shape.channel_mult)):
                position.in_space(x_t.shape[2] >> level, x_t.shape[3] >> level)
        if flow is None:
            flow = self.flow(first, previous)
        seen = [x_t, flow]
        if self.use_previous:
            seen.append(previous)
        if self.encoder is None:
            return self.unet(torch.cat([*seen, first], dim=1), position)
        return self.unet(torch.cat(seen, dim=1), position, self.encoder(first, position))
