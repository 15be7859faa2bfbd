"""Claims about group norm: torch's own values and gradients, whatever the layout, the width and the precision."""

import pytest
import torch
from torch.nn import functional as F

from vidm.group_norm import group_norm

# Below and above the sizes from which torch's own forward kernel is taken.
SHAPES = [(3, 32, 4, 6), (2, 96, 8, 8), (2, 64, 32, 32), (2, 512, 2, 2)]


def inputs(shape: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, gradient = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    weight, bias = torch.randn(2, shape[1], generator=generator, dtype=torch.float64)
    x, gradient = (tensor.to(dtype).contiguous(memory_format=torch.channels_last) for tensor in (3 + 2 * x, gradient))
    parameter_dtype = torch.float32 if dtype == torch.bfloat16 else dtype
    return [x, weight.to(parameter_dtype), bias.to(parameter_dtype), gradient]


def with_gradients(norm, x, weight, bias, gradient):
    leaves = [tensor.detach().requires_grad_() for tensor in (x, weight, bias)]
    y = norm(leaves[0], 32, leaves[1], leaves[2], 1e-5)
    y.backward(gradient)
    return [y.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_are_those_of_torch(shape):
    tensors = inputs(shape, torch.float64)
    found = with_gradients(group_norm, *tensors)
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    for ours, theirs in zip(found, with_gradients(F.group_norm, *tensors), strict=True):
        assert (ours - theirs).abs().max() <= 1e-10 * max(1, theirs.abs().max())


@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_sums_are_float32_where_x_is_bfloat16(shape):
    tensors = inputs(shape, torch.bfloat16)
    found = with_gradients(group_norm, *tensors)
    exact = with_gradients(F.group_norm, *(tensor.double() for tensor in tensors))
    assert [tensor.dtype for tensor in found] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    pairs = zip(found, exact, strict=True)
    y, dx, d_weight, d_bias = ((ours - theirs).norm() / theirs.norm() for ours, theirs in pairs)
    assert max(y, dx) < 4e-3  # one rounding
    assert d_bias < 1e-6  # thousands of terms, of which bfloat16 sums would keep two digits
    assert d_weight < 4e-3


def test_the_gradient_is_that_of_finite_differences():
    x, weight, bias, _ = inputs((2, 32, 2, 3), torch.float64)
    leaves = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    assert torch.autograd.gradcheck(lambda *tensors: group_norm(tensors[0], 32, *tensors[1:], 1e-5), leaves)


def test_frames_that_lie_otherwise_are_normalised_as_well():
    x, weight, bias, _ = inputs((2, 64, 8, 8), torch.float32)
    rows = group_norm(x.contiguous(), 32, weight, bias, 1e-5)
    assert (rows - group_norm(x, 32, weight, bias, 1e-5)).abs().max() <= 1e-5
