"""Group norm of frames that lie channels last on a CPU: what F.group_norm computes, sooner.

torch's kernels for that layout go through the channels of one group at a time: with few channels to a group, and always
in the backward pass, they take up to eight times as long as a few sums over pixels do.

    y = group_norm(x, num_groups=32, weight=weight, bias=bias, eps=1e-5)
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# Where torch's forward kernel is the slower one: on maps of fewer pixels, with fewer channels to a group.
FEW_PIXELS = 1024
FEW_CHANNELS = 16


def _per_channel(values: Tensor, channels: int) -> Tensor:
    """Values of groups (B, G) as (B, C, 1, 1)."""
    return values.repeat_interleave(channels // values.shape[1], dim=1)[:, :, None, None]


def _normalised(x: Tensor, weight: Tensor, bias: Tensor, num_groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """The result in x's dtype, and mean and 1 / deviation of the groups (B, G), at least in float32."""
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


class _GroupNorm(torch.autograd.Function):
    """With x^ = (x - mean) rstd, S the mean over a group and g the gradient times the weight:
    dx = rstd (g - S[g] - x^ S[g x^]), which is a sum of g, x and 1 with factors by channel and by group."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, num_groups: int, eps: float) -> Tensor:
        y, mean, rstd = _normalised(x, weight, bias, num_groups, eps)
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
        by_one = gradient.sum((2, 3), dtype=dtype)
        by_x = (gradient * x).sum((2, 3), dtype=dtype)
        by_centred = by_x - by_one * _per_channel(mean, c)[:, :, 0, 0]
        count = c // num_groups * height * width
        of_x = -(by_centred * w).view(b, num_groups, -1).sum(2) * rstd**3 / count
        of_one = -of_x * mean - (by_one * w).view(b, num_groups, -1).sum(2) * rstd / count
        of_gradient = _per_channel(rstd, c) * w[:, None, None]
        factors = (factor.to(x.dtype) for factor in (_per_channel(of_one, c), _per_channel(of_x, c), of_gradient))
        one, per_x, per_gradient = factors
        dx = torch.addcmul(one, x, per_x).addcmul_(gradient, per_gradient)
        d_weight = (by_centred * _per_channel(rstd, c)[:, :, 0, 0]).sum(0)
        return dx, d_weight.to(weight.dtype), by_one.sum(0).to(weight.dtype), None, None


def group_norm(x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """F.group_norm of x (B, C, H, W), its sums in float32 whatever x is; shape, dtype and layout are x's.

    In bfloat16 the products that the weight's gradient sums are rounded first: where a mean is ten deviations from 0,
    that gradient errs by two percent.

    Elsewhere than channels last on a CPU, and where the compiler makes kernels of its own, it is F.group_norm. Ours.
    """
    ours = x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last)
    if not ours or torch.compiler.is_compiling():
        return F.group_norm(x, num_groups, weight, bias, eps).type(x.dtype)
    return _GroupNorm.apply(x, weight, bias, num_groups, eps)
