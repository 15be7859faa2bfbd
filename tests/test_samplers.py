"""Claims about the reverse chains; reference numbers are those of guided-diffusion."""

import numpy as np
import pytest
import torch
from golden import load_npz
from test_diffusion import dummy_denoiser

from vidm.diffusion import GaussianDiffusion
from vidm.samplers import sample_ddim, sample_ddpm


@pytest.mark.parametrize("spec", ["10", "ddim10"])
@pytest.mark.parametrize("name", ["ddpm", "ddim_eta0", "ddim_eta1"])
def test_whole_chains_meet_their_reference(spec, name):
    reference = load_npz("diffusion")
    noise = reference[f"chain_{spec}_noise"]
    diffusion = GaussianDiffusion(respacing=spec)
    sampler, options = {
        "ddpm": (sample_ddpm, {}),
        "ddim_eta0": (sample_ddim, {"eta": 0.0}),
        "ddim_eta1": (sample_ddim, {"eta": 1.0}),
    }[name]
    x = sampler(diffusion, dummy_denoiser, noise[0], noise=lambda step, like: noise[1 + step], **options)
    assert (x - reference[f"chain_{spec}_{name}"]).abs().max() <= 1e-4


def test_ddim_with_eta_one_has_the_posterior_variance_of_ddpm():
    diffusion = GaussianDiffusion(respacing="50")
    a, a_prev = diffusion.alphas_cumprod, diffusion.alphas_cumprod_prev
    variance = (1 - a_prev) / (1 - a) * (1 - a / a_prev)
    assert np.allclose(variance, diffusion.posterior_variance, rtol=1e-9, atol=0)


def test_ddim_with_eta_zero_draws_no_noise():
    def forbidden(step, like):
        raise AssertionError("noise was asked for")

    x_T = torch.randn(2, 3, 4, 4)
    diffusion = GaussianDiffusion(respacing="5")
    first, second = (sample_ddim(diffusion, dummy_denoiser, x_T, noise=forbidden) for _ in range(2))
    assert torch.equal(first, second)


def test_noise_is_asked_for_in_sampling_order_and_not_at_the_last_step():
    steps = []

    def noise(step, like):
        steps.append(step)
        return torch.zeros_like(like)

    sample_ddpm(GaussianDiffusion(respacing="5"), dummy_denoiser, torch.randn(1, 3, 4, 4), noise=noise)
    assert steps == [0, 1, 2, 3]


def test_the_exact_denoiser_of_a_point_reaches_it_in_one_step_and_in_many():
    target = torch.rand(1, 3, 4, 4) * 2 - 1
    for spec in ("1", "20"):
        diffusion = GaussianDiffusion(respacing=spec)

        def exact(x, t):
            a = torch.from_numpy(np.cumprod(1 - GaussianDiffusion().betas))[t].float().view(-1, 1, 1, 1)
            return torch.cat([(x - a.sqrt() * target) / (1 - a).sqrt(), torch.zeros_like(x)], dim=1)

        for sampler in (sample_ddpm, sample_ddim):
            assert (sampler(diffusion, exact, torch.randn(1, 3, 4, 4)) - target).abs().max() < 1e-3
