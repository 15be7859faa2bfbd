"""Small pure penalties.

charbonnier(error).mean() is the paper's robustness penalty; normal_kl and discretized_gaussian_log_likelihood
are the two terms of the variational bound (Ho et al. 2020; Nichol and Dhariwal 2021), in nats.
"""

import math

import numpy as np
import torch
from torch import Tensor


def charbonnier(error: Tensor, eps: float = 1e-8) -> Tensor:
    """Robust penalty sqrt(error^2 + eps^2), elementwise in float32: |error| with a round foot.

    Value and gradient are finite everywhere, at 0 included, for eps from 1e-8 up. Source: the paper's robustness
    penalty (Charbonnier et al. 1994).
    """
    return torch.sqrt(error.float() ** 2 + eps**2)


def p2_weight(alphas_cumprod: np.ndarray, gamma: float, k: float) -> np.ndarray:
    """Weight 1 / (k + SNR_t)^gamma per step, same shape as `alphas_cumprod` (Choi et al. 2022); 1 for gamma = 0."""
    snr = alphas_cumprod / (1 - alphas_cumprod)
    return 1 / (k + snr) ** gamma


def normal_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL divergence N(mean1, exp(log_variance1)) || N(mean2, exp(log_variance2)), elementwise, in nats."""
    return 0.5 * (
        log_variance2
        - log_variance1
        - 1
        + torch.exp(log_variance1 - log_variance2)
        + (mean1 - mean2) ** 2 * torch.exp(-log_variance2)
    )


def _standard_normal_cdf(x: Tensor) -> Tensor:
    # The tanh approximation, which the published numbers were computed with.
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def discretized_gaussian_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log probability, elementwise in nats, of x in [-1, 1] in its bin of 2 / 255 under N(mean, exp(log_scale)^2).

    The outermost bins reach to infinity (Ho et al. 2020, equation 13).
    """
    inverse_scale = torch.exp(-log_scale)
    upper = _standard_normal_cdf(inverse_scale * (x - mean + 1 / 255))
    lower = _standard_normal_cdf(inverse_scale * (x - mean - 1 / 255))
    probability = torch.where(x < -0.999, upper, torch.where(x > 0.999, 1 - lower, upper - lower))
    return torch.log(probability.clamp(min=1e-12))
