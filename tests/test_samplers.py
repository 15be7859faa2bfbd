"""Tests of the samplers; reference numbers are those of guided-diffusion."""

import numpy as np
import pytest
import torch
from golden import load_npz
from test_diffusion import dummy_denoiser

from vidm.diffusion import GaussianDiffusion
from vidm.samplers import SAMPLERS, sample_ddim, sample_ddpm, sample_dpm_solver


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
        raise AssertionError("noise was requested")

    x_T = torch.randn(2, 3, 4, 4)
    diffusion = GaussianDiffusion(respacing="5")
    first, second = (sample_ddim(diffusion, dummy_denoiser, x_T, noise=forbidden) for _ in range(2))
    assert torch.equal(first, second)


def test_noise_is_requested_in_sampling_order_and_not_at_the_last_step():
    steps = []

    def noise(step, like):
        steps.append(step)
        return torch.zeros_like(like)

    sample_ddpm(GaussianDiffusion(respacing="5"), dummy_denoiser, torch.randn(1, 3, 4, 4), noise=noise)
    assert steps == [0, 1, 2, 3]


def test_with_the_exact_denoiser_of_a_point_one_or_many_steps_reach_the_point():
    target = torch.rand(1, 3, 4, 4) * 2 - 1
    for spec in ("1", "20"):
        diffusion = GaussianDiffusion(respacing=spec)

        def exact(x, t):
            a = torch.from_numpy(np.cumprod(1 - GaussianDiffusion().betas))[t].float().view(-1, 1, 1, 1)
            return torch.cat([(x - a.sqrt() * target) / (1 - a).sqrt(), torch.zeros_like(x)], dim=1)

        for sampler in SAMPLERS.values():
            assert (sampler(diffusion, exact, torch.randn(1, 3, 4, 4)) - target).abs().max() < 1e-3


def gaussian_denoiser(deviation):
    """The exact eps of normal data with this standard deviation; the variance output is zero."""
    alphas_cumprod = torch.from_numpy(GaussianDiffusion().alphas_cumprod)

    def eps(x, t):
        a = alphas_cumprod[t].view(-1, 1).to(x)
        pred_xstart = a.sqrt() * deviation**2 / (a * deviation**2 + 1 - a) * x
        return torch.cat([(x - a.sqrt() * pred_xstart) / (1 - a).sqrt(), torch.zeros_like(x)], dim=1)

    return eps


def error_on_a_gaussian(sampler, steps, **options):
    """The error against the exact probability flow, whose standard deviation at a is sqrt(a d^2 + 1 - a)."""
    d, x_T = 1.0, torch.ones(1, 1)
    a = GaussianDiffusion().alphas_cumprod[[0, -1]]
    at_first, at_last = np.sqrt(a * d**2 + 1 - a)
    # In the last step, from the lowest noise level to zero, every solver returns the denoiser's clean value.
    expected = np.sqrt(a[0]) * d**2 / at_first**2 * at_first / at_last
    x = sampler(
        GaussianDiffusion(respacing=str(steps)), gaussian_denoiser(d), x_T.double(), clip_denoised=False, **options
    )
    return abs(x.item() - expected)


def test_dpm_solver_converges_to_the_exact_solution_of_a_gaussian_at_second_order():
    """The order is measured over three doublings, since rounded steps make single doublings uneven."""
    second, first = ([error_on_a_gaussian(sample_dpm_solver, n, order=order) for n in (50, 400)] for order in (2, 1))
    assert 1.7 < np.log2(second[0] / second[1]) / 3 < 2.3, second
    assert 0.8 < np.log2(first[0] / first[1]) / 3 < 1.2, first


@pytest.mark.parametrize("steps", [5, 10, 14, 15, 20, 25, 50])
def test_with_few_steps_dpm_solver_is_closer_to_the_exact_solution_than_ddim(steps):
    ddim, ours = (error_on_a_gaussian(sampler, steps) for sampler in (sample_ddim, sample_dpm_solver))
    assert ours < ddim
    if steps >= 10:
        assert ours < ddim / 2


def test_dpm_solver_of_first_order_is_ddim():
    diffusion, x_T = GaussianDiffusion(respacing="7"), torch.randn(2, 3, 4, 4)
    one, two = (
        sampler(diffusion, dummy_denoiser, x_T, **options)
        for sampler, options in ((sample_dpm_solver, {"order": 1}), (sample_ddim, {}))
    )
    assert (one - two).abs().max() < 1e-5


@pytest.mark.parametrize("steps", ["1", "2", "3", "14", "15", "ddim25", "5,5", "1000"])
def test_dpm_solver_takes_any_number_of_steps(steps):
    diffusion = GaussianDiffusion(respacing=steps)
    calls = []

    def counted(x, t):
        calls.append(t)
        return dummy_denoiser(x, t)

    x = sample_dpm_solver(diffusion, counted, torch.randn(1, 3, 4, 4))
    assert x.isfinite().all()
    assert x.abs().max() <= 1
    assert len(calls) == diffusion.num_timesteps


def test_an_unknown_order_is_refused():
    with pytest.raises(ValueError, match="order 3"):
        sample_dpm_solver(GaussianDiffusion(respacing="5"), dummy_denoiser, torch.zeros(1, 3, 4, 4), order=3)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers", "ignore:__array__ implementation")
@pytest.mark.parametrize("steps", [5, 10, 25])
@pytest.mark.parametrize("order", [1, 2])
def test_dpm_solver_agrees_with_diffusers(steps, order):
    """All states agree, except the last two for order 2: diffusers takes the step before them in second order."""
    pytest.importorskip("diffusers")
    from diffusers import DPMSolverMultistepScheduler

    diffusion = GaussianDiffusion(respacing=str(steps))
    scheduler = DPMSolverMultistepScheduler(
        trained_betas=GaussianDiffusion().betas, solver_order=order, final_sigmas_type="zero"
    )
    scheduler.set_timesteps(timesteps=list(reversed(diffusion.timestep_map)))
    x_T = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    x, theirs = x_T, []
    for t in scheduler.timesteps:
        theirs.append(x)
        eps, _ = dummy_denoiser(x, t.expand(len(x))).chunk(2, dim=1)
        x = scheduler.step(eps, t, x).prev_sample
    ours = []

    def watched(x, t):
        ours.append(x)
        return dummy_denoiser(x, t)

    ours.append(sample_dpm_solver(diffusion, watched, x_T, clip_denoised=False, order=order))
    theirs.append(x)
    compared = slice(None) if order == 1 else slice(0, steps - 1)
    gaps = [(one - two).abs().max().item() for one, two in zip(ours[compared], theirs[compared], strict=True)]
    assert len(gaps) == (steps + 1 if order == 1 else steps - 1)
    assert max(gaps) < 1e-4
