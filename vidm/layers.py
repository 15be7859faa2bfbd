"""An index that all samples of a batch share: made as one value expanded, and known again by its stride.

Sampling has a whole batch at one step t of one frame; what depends on these alone is then computed once. Nobody need
look at the values for that, which on a GPU would wait for all that is queued.

    t = constant_index(999, x_t)  # (B,)
    collapsed(t).shape  # (1,)

Group norm of frames that lie channels last on a CPU: what F.group_norm computes, sooner.

torch's kernels for that layout go through the channels of one group at a time: with few channels to a group, and always
in the backward pass, they take up to eight times as long as a few sums over pixels do.

    y = group_norm(x, num_groups=32, weight=weight, bias=bias, eps=1e-5)

Memory for time: what a module keeps for its backward pass is its input alone, and the rest is computed again.

h = checkpointed(self.recompute, self.modulated, h, t, frame_index)
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


def constant_index(index: int, batch: Tensor) -> Tensor:
    """The index for every sample of `batch` (B, ...): int64 (B,) on its device, one value in memory."""
    return torch.full((1,), index, dtype=torch.int64, device=batch.device).expand(batch.shape[0])


def collapsed(index: Tensor) -> Tensor:
    """(1,) of an index (B,) that all samples share, else the index itself; both broadcast over the batch."""
    return index[:1] if index.stride(0) == 0 else index


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


def checkpointed(recompute: bool, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """function(*inputs); with `recompute`, what its backward pass needs is computed again then, bit for bit.

    The function draws no random numbers. Where no gradient is wanted nothing is kept anyway.
    """
    if not (recompute and torch.is_grad_enabled()):
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


NUM_GROUPS = 32


class GroupNorm32(nn.GroupNorm):
    """Group norm of 32 groups computed in float32 whatever the precision around it; shape and dtype are kept."""

    def __init__(self, channels: int) -> None:
        super().__init__(NUM_GROUPS, channels, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


def zero_init(module: nn.Module) -> nn.Module:
    """Set all parameters of `module` to zero and return it, so that its branch starts as a no-op."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def unit_coordinate(index: Tensor, count: int) -> Tensor:
    """Map integers 0 .. count - 1 onto [-1, 1] in float32, as linspace(-1, 1, count)[index] does."""
    return index.float() * (2 / max(count - 1, 1)) - 1


def weight_dtype(module: nn.Module) -> torch.dtype:
    """The dtype of a module's weights, which its input must have."""
    return next(module.parameters()).dtype


def per_pixel(linear: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer over the channels of x (B, C, H, W) -> (B, D, H, W), both channels last in memory."""
    if x.is_cuda:
        return linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    # The same products; on a CPU convolutions come from oneDNN, whose float32 is up to 2.4 times that of linear's.
    return F.conv2d(x, linear.weight[:, :, None, None], linear.bias)


def silu_modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """SiLU(x * (1 + scale) + shift) for a fresh x (B, C, H, W); scale and shift broadcast over it. Ours."""
    if torch.is_grad_enabled():
        return F.silu(torch.addcmul(shift, x, 1 + scale))
    # Large memory comes page by page from the system, which takes several times as long as the arithmetic.
    return F.silu(x.mul_(1 + scale).add_(shift), inplace=True)
