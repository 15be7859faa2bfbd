"""Claims about the penalties."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from vidm.losses import charbonnier, discretized_gaussian_log_likelihood, normal_kl, p2_weight
from vidm.schedules import linear_betas


@pytest.mark.parametrize("eps", [1e-8, 1e-6, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_charbonnier_tends_to_the_absolute_value_and_is_smooth_at_zero(eps, dtype):
    error = torch.tensor([-2.0, -0.5, 0.0, 1e-3, 3.0], dtype=dtype, requires_grad=True)
    value = charbonnier(error, eps)
    assert (value - error.float().abs()).abs().max() <= eps
    value.sum().backward()
    assert torch.isfinite(error.grad).all()
    assert error.grad[2] == 0
    assert torch.equal(error.grad[[0, 1, 4]].sign(), error[[0, 1, 4]].detach().sign())


def test_p2_with_gamma_and_k_one_is_one_minus_alphas_cumprod():
    alphas_cumprod = np.cumprod(1 - linear_betas(1000))
    assert np.allclose(p2_weight(alphas_cumprod, 1.0, 1.0), 1 - alphas_cumprod)
    assert np.array_equal(p2_weight(alphas_cumprod, 0.0, 1.0), np.ones(1000))


def test_kl_of_equal_gaussians_is_zero_and_of_shifted_ones_half_the_squared_distance():
    mean, log_variance = torch.randn(5), torch.randn(5)
    assert normal_kl(mean, log_variance, mean, log_variance).abs().max() < 1e-6
    zero = torch.zeros(5)
    assert torch.allclose(normal_kl(mean, zero, zero, zero), mean**2 / 2)


def test_bins_cover_the_line_and_agree_with_the_normal_distribution():
    x = torch.linspace(-1, 1, 256)
    mean, log_scale = torch.tensor(0.1), torch.tensor(math.log(0.2))
    probability = discretized_gaussian_log_likelihood(x, mean, log_scale).exp()
    assert abs(probability.sum().item() - 1) < 1e-4
    edges = torch.cat([x[:-1] + 1 / 255, torch.tensor([float("inf")])]).numpy()
    exact = np.diff(norm.cdf(edges, 0.1, 0.2), prepend=0.0)
    assert np.abs(probability.numpy() - exact).max() < 1e-4
