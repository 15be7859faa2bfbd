"""Building blocks of the networks that are not the method: embeddings, a group norm, and ways to save time and memory.

t = constant_index(999, x_t)  # int64 (B,), which PosGN recognizes as one step for the whole batch
h = GroupNorm(64)(h)
h = checkpointed(True, block, h)  # activation checkpointing
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

AnyModule = TypeVar("AnyModule", bound=nn.Module)

NUM_GROUPS = 32
LONGEST_PERIOD = 10_000
# The version of PyTorch whose group norms take channels last on GPUs.
CHANNELS_LAST_SINCE = "2.15"
# torch's forward kernel for channels last is the slower one for maps of fewer pixels with fewer channels per group.
FEW_PIXELS = 1024
FEW_CHANNELS = 16


def zero_init(module: AnyModule) -> AnyModule:
    """Set all parameters of `module` to zero and return it: its residual branch then starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def weight_dtype(module: nn.Module) -> torch.dtype:
    """The dtype of a module's weights, which its input must have."""
    return next(module.parameters()).dtype


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A CPU tensor on a device. The copy to a GPU is queued there from pinned memory, so that the CPU does not wait."""
    if torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


# Coordinates and embeddings


def unit_coordinate(index: Tensor, count: int) -> Tensor:
    """Map integers 0 .. count - 1 to [-1, 1] in float32, as linspace(-1, 1, count)[index] does."""
    return index.float() * (2 / max(count - 1, 1)) - 1


def sinusoidal_embedding(index: Tensor, channels: int) -> Tensor:
    """Cosines, then sines, of integers (B,) at geometrically spaced frequencies: float32 (B, channels).

    Source: guided-diffusion's timestep embedding (Dhariwal and Nichol 2021), after Vaswani et al. 2017.
    """
    half = channels // 2
    frequencies = torch.exp(-math.log(LONGEST_PERIOD) / half * torch.arange(half, device=index.device))
    angles = index.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


# An index shared by a whole batch. In sampling all videos are at one (t, frame_index), and PosGN's scale and shift, a
# fifth of a step's arithmetic, are then computed once. The index is one value expanded over the batch. Its stride of 0
# identifies it, so no value is read: reading one would make the CPU wait for the GPU.


def constant_index(value: int, batch: Tensor) -> Tensor:
    """`value` for every sample of `batch` (B, ...): int64 (B,) on its device, stored once."""
    return torch.full((1,), value, dtype=torch.int64, device=batch.device).expand(batch.shape[0])


def collapsed(index: Tensor) -> Tensor:
    """(1,) for an index (B,) made by constant_index, any other index unchanged; both broadcast over the batch."""
    return index[:1] if index.stride(0) == 0 else index


def checkpointed(enabled: bool, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """function(*inputs) with activation checkpointing if `enabled`: the backward pass computes activations again.

    The result and the gradients are the same, on a CPU bit for bit. The function must not draw random numbers.
    """
    if not (enabled and torch.is_grad_enabled()):
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


# Faster arithmetic for channels-last tensors


def conv1x1(layer: nn.Linear | nn.Conv1d, x: Tensor) -> Tensor:
    """Apply a layer to the channels of x (B, C, H, W) -> (B, D, H, W), both channels last in memory.

    The layer is linear, or a convolution of width 1, which is the same.
    """
    weight = layer.weight.flatten(1)
    if x.is_cuda:
        return F.linear(x.permute(0, 2, 3, 1), weight, layer.bias).permute(0, 3, 1, 2)
    # On a CPU, oneDNN's convolution is up to 2.4 times as fast as its linear layer in float32.
    return F.conv2d(x, weight[:, :, None, None], layer.bias)


def modulated_silu(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """SiLU(x * (1 + scale) + shift), scale and shift broadcast over x (B, C, H, W); x is overwritten in inference."""
    if torch.is_grad_enabled():
        return F.silu(torch.addcmul(shift, x, 1 + scale))
    # In place, since allocating a large tensor costs several times as much as this arithmetic.
    return F.silu(x.mul_(1 + scale).add_(shift), inplace=True)


def _per_channel(values: Tensor, channels: int) -> Tensor:
    """Values of groups (B, G) as (B, C, 1, 1)."""
    return values.repeat_interleave(channels // values.shape[1], dim=1)[:, :, None, None]


def _normalized(x: Tensor, weight: Tensor, bias: Tensor, num_groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """The group norm in x's dtype, with mean and 1 / deviation of the groups (B, G) in float32 or better."""
    b, c, height, width = x.shape
    dtype = torch.promote_types(x.dtype, torch.float32)
    if height * width >= FEW_PIXELS or c // num_groups >= FEW_CHANNELS:
        return torch.native_group_norm(x, weight, bias, b, c, height * width, num_groups, eps)
    count = c // num_groups * height * width
    mean = x.sum((2, 3), dtype=dtype).view(b, num_groups, -1).sum(2) / count
    centred = x - _per_channel(mean, c)
    variance = centred.square().sum((2, 3)).view(b, num_groups, -1).sum(2) / count
    rstd = torch.rsqrt(variance + eps)
    scale = _per_channel(rstd, c) * weight.to(dtype)[:, None, None]
    return torch.addcmul(bias.to(dtype)[:, None, None], centred, scale).to(x.dtype), mean, rstd


class _GroupNormChannelsLast(torch.autograd.Function):
    """With x^ = (x - mean) rstd, S the mean over a group and g the gradient times the weight, the gradient is
    dx = rstd (g - S[g] - x^ S[g x^]): a weighted sum of g, x and 1 with one weight per group or channel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, num_groups: int, eps: float) -> Tensor:
        y, mean, rstd = _normalized(x, weight, bias, num_groups, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight, mean, rstd = ctx.saved_tensors
        (gradient,) = gradients
        b, c, height, width = x.shape
        num_groups = mean.shape[1]
        dtype = torch.promote_types(x.dtype, torch.float32)
        mean, rstd, w = mean.to(dtype), rstd.to(dtype), weight.to(dtype)
        # Products of x itself would lose the digits that its mean takes in bfloat16. x is therefore centred at the
        # mean rounded to its dtype, and the rest of the mean is subtracted from the float32 sums.
        rounded = mean.to(x.dtype)
        rest = (mean - rounded.to(dtype)).repeat_interleave(c // num_groups, dim=1)
        centred = x - _per_channel(rounded, c)
        sum_g = gradient.sum((2, 3), dtype=dtype)
        sum_g_centred = (gradient * centred).sum((2, 3), dtype=dtype) - sum_g * rest
        count = c // num_groups * height * width
        of_x = -(sum_g_centred * w).view(b, num_groups, -1).sum(2) * rstd**3 / count
        of_one = -of_x * (mean - rounded.to(dtype)) - (sum_g * w).view(b, num_groups, -1).sum(2) * rstd / count
        of_gradient = _per_channel(rstd, c) * w[:, None, None]
        factors = (factor.to(x.dtype) for factor in (_per_channel(of_one, c), _per_channel(of_x, c), of_gradient))
        one, per_x, per_gradient = factors
        dx = torch.addcmul(one, centred, per_x).addcmul_(gradient, per_gradient)
        d_weight = (sum_g_centred * rstd.repeat_interleave(c // num_groups, dim=1)).sum(0)
        return dx, d_weight.to(weight.dtype), sum_g.sum(0).to(weight.dtype), None, None


def group_norm(x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """F.group_norm of x (B, C, H, W) with sums in float32; shape, dtype and memory format are x's.

    Autocast would run F.group_norm in float32, with float32 copies of x in memory, although the kernels take
    half-precision tensors and sum in float32. For channels last on a CPU, torch's kernels walk through the channels of
    one group at a time, in the forward pass for few channels per group and in the backward pass always, which takes up
    to eight times as long as a few sums over pixels. There this function uses its own kernel, elsewhere and under
    torch.compile torch's. Ours.
    """
    channels_last = x.is_contiguous(memory_format=torch.channels_last)
    if channels_last and x.device.type == "cpu" and not torch.compiler.is_compiling():
        return _GroupNormChannelsLast.apply(x, weight, bias, num_groups, eps)
    b, c, height, width = x.shape
    if not x.is_cuda:
        return torch.native_group_norm(x, weight, bias, b, c, height * width, num_groups, eps)[0]
    # The kernels for GPUs take a single dtype and, in older versions, no channels last.
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    copied = torch.__version__ < CHANNELS_LAST_SINCE
    y = torch.native_group_norm(x.contiguous() if copied else x, weight, bias, b, c, height * width, num_groups, eps)[0]
    return y.contiguous(memory_format=torch.channels_last) if copied and channels_last else y


class GroupNorm(nn.GroupNorm):
    """Group norm with float32 sums under any precision: (B, C, H, W) -> same shape and dtype.

    There are 32 groups (published), or groups of `channels_per_group` channels if that is not 0 (ours).
    """

    def __init__(self, channels: int, channels_per_group: int = 0) -> None:
        super().__init__(channels // channels_per_group if channels_per_group else NUM_GROUPS, channels, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
