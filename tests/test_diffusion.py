"""Claims about the process; reference numbers are those of guided-diffusion's P2 fork."""

import math

import numpy as np
import pytest
import torch
from golden import load_npz
from scipy.stats import norm

from vidm.checkpoint import build_diffusion, build_model
from vidm.config import Config
from vidm.diffusion import (
    SCHEDULES,
    GaussianDiffusion,
    charbonnier,
    discretized_gaussian_log_likelihood,
    normal_kl,
    p2_weight,
)
from vidm.layers import constant_index
from vidm.schedules import linear_betas, respace, space_timesteps

TOLERANCE = 1e-4


def dummy_denoiser(x, t):
    """The reference's stand-in for a network; t is the original step."""
    t = t.view(-1, 1, 1, 1) / 1000
    eps = 0.5 * x + 0.1 * torch.sin(3 * x) + 0.2 * t
    return torch.cat([eps, torch.tanh(x) * (1 - t)], dim=1)


@pytest.fixture(scope="module")
def reference():
    return load_npz("diffusion")


def test_tables_are_float64_and_meet_their_reference(reference):
    diffusion = GaussianDiffusion()
    assert diffusion.betas.dtype == diffusion.alphas_cumprod.dtype == np.float64
    assert np.allclose(diffusion.posterior_variance, reference["posterior_variance"].numpy(), rtol=1e-9, atol=0)
    assert diffusion.num_timesteps == 1000


def test_q_sample_meets_its_reference(reference):
    x_t = GaussianDiffusion().q_sample(reference["x_start"], reference["t"], reference["noise"])
    assert (x_t - reference["x_t"]).abs().max() <= TOLERANCE


def test_q_sample_has_the_moments_of_the_forward_process():
    diffusion = GaussianDiffusion()
    n = 200_000
    t = torch.full((1,), 300)
    noise = torch.randn(1, n, generator=torch.Generator().manual_seed(0))
    x_t = diffusion.q_sample(torch.full((1, n), 0.7), t, noise)
    a = diffusion.alphas_cumprod[300]
    assert abs(x_t.mean().item() - 0.7 * math.sqrt(a)) < 4 * math.sqrt((1 - a) / n)
    assert abs(x_t.var().item() - (1 - a)) < 4 * (1 - a) * math.sqrt(2 / n)


def test_p_mean_variance_meets_its_reference(reference):
    p = GaussianDiffusion().p_mean_variance(dummy_denoiser, reference["x_t"], reference["t"])
    for name, value in p._asdict().items():
        assert (value - reference[f"p_{name}"]).abs().max() <= TOLERANCE, name


@pytest.mark.parametrize("gamma", ["0", "1", "0.5"])
def test_squared_error_losses_meet_their_reference(reference, gamma):
    diffusion = GaussianDiffusion(p2_gamma=float(gamma), loss="mse")
    losses = diffusion.training_losses(dummy_denoiser, reference["x_start"], reference["t"], noise=reference["noise"])
    for ours, theirs in (("penalty", "mse"), ("vb", "vb"), ("loss", "loss")):
        expected = reference[f"loss_gamma{gamma}_k1_{theirs}"]
        assert (losses[ours] - expected).abs().max() <= TOLERANCE, ours


def test_the_robust_loss_is_the_weighted_mean_of_charbonnier(reference):
    diffusion = GaussianDiffusion(penalty_eps=1e-3)
    x_start, t, noise = reference["x_start"], reference["t"], reference["noise"]
    losses = diffusion.training_losses(dummy_denoiser, x_start, t, noise=noise)
    error = noise - dummy_denoiser(diffusion.q_sample(x_start, t, noise), t).chunk(2, 1)[0]
    weight = torch.from_numpy(1 - diffusion.alphas_cumprod)[t]
    expected = torch.sqrt(error**2 + 1e-6).mean((1, 2, 3)) * weight
    assert torch.allclose(losses["penalty"], expected.float(), atol=1e-6)


def test_the_bound_trains_the_variance_alone():
    output = torch.randn(2, 6, 4, 4, requires_grad=True)
    diffusion = GaussianDiffusion()
    losses = diffusion.training_losses(lambda x, t: output, torch.rand(2, 3, 4, 4) * 2 - 1, torch.tensor([0, 500]))
    losses["vb"].sum().backward()
    assert output.grad[:, :3].abs().max() == 0
    assert output.grad[:, 3:].abs().min() > 0


def test_v_prediction_recovers_the_clean_frame_and_has_no_p2_weight():
    diffusion = GaussianDiffusion(prediction="v", loss="mse")
    x_start = torch.rand(3, 3, 4, 4) * 2 - 1
    noise = torch.randn(3, 3, 4, 4)
    t = torch.tensor([0, 400, 999])
    a = torch.from_numpy(diffusion.alphas_cumprod)[t].float().view(-1, 1, 1, 1)
    v = a.sqrt() * noise - (1 - a).sqrt() * x_start
    x_t = diffusion.q_sample(x_start, t, noise)
    assert torch.allclose(diffusion.predict_xstart(x_t, t, v), x_start, atol=1e-5)

    def wrong_by_two(x, t):
        return torch.cat([v + 2, torch.zeros_like(v)], dim=1)

    losses = diffusion.training_losses(wrong_by_two, x_start, t, noise=noise)
    assert torch.allclose(losses["penalty"], torch.full((3,), 4.0), atol=1e-5)


def test_the_denoiser_sees_original_steps():
    seen = []

    def spy(x, t):
        seen.append(t.tolist())
        return torch.cat([x, x], dim=1)

    diffusion = GaussianDiffusion(respacing="25")
    diffusion.p_mean_variance(spy, torch.zeros(3, 3, 2, 2), torch.tensor([0, 1, 24]))
    assert seen == [[0, diffusion.timestep_map[1], 999]]


def test_respacing_may_be_a_number():
    assert np.array_equal(GaussianDiffusion(respacing=50).betas, GaussianDiffusion(respacing="50").betas)
    for wrong in (0, 1001):
        with pytest.raises(ValueError, match=f"respacing '{wrong}'"):
            GaussianDiffusion(respacing=wrong)


def test_a_denoiser_without_channels_for_the_variance_is_told_so():
    x_t, t = torch.zeros(2, 3, 4, 4), torch.tensor([0, 5])
    diffusion = GaussianDiffusion()
    for call in (diffusion.p_mean_variance, diffusion.training_losses):
        with pytest.raises(ValueError, match=r"output has 3 channels and not 2 x 3.* append -1s"):
            call(lambda x, t: x, x_t, t)
    p = diffusion.p_mean_variance(lambda x, t: torch.cat([x, -torch.ones_like(x)], 1), x_t, t)
    expected = torch.from_numpy(np.exp(diffusion.posterior_log_variance[[0, 5]])).float()
    assert torch.allclose(p.variance[:, 0, 0, 0], expected)


@pytest.mark.parametrize("generator", ["motion", "content"])
def test_a_network_refuses_a_process_that_it_was_not_built_for(generator):
    config = Config.from_preset("tiny").replaced({"generator": generator, "image_size": 8, "schedule": "cosine"})
    model = build_model(config)
    x_t = torch.zeros(1, 3, 8, 8)
    step = constant_index(0, x_t)
    seen = {"frame_index": constant_index(1, x_t), "first": x_t, "previous": x_t} if generator == "motion" else {}
    assert build_diffusion(config, 10).p_mean_variance(model, x_t, step, seen).mean.shape == x_t.shape
    wrong = GaussianDiffusion(100)
    message = "diffusion_timesteps 1000 and not 100, schedule cosine and not linear, prediction v and not eps"
    for call in (wrong.p_mean_variance, wrong.training_losses):
        with pytest.raises(ValueError, match=f"the network is for {message}: .*generator.diffusion"):
            call(model, x_t, step, model_kwargs=seen)


def test_a_single_step_has_the_log_variance_of_beta():
    diffusion = GaussianDiffusion(respacing="1")
    assert np.allclose(diffusion.posterior_log_variance, np.log(diffusion.betas))


@pytest.mark.parametrize(
    "arguments", [{"schedule": "sqrt"}, {"prediction": "x"}, {"loss": "l1"}, {"respacing": "ddim300"}]
)
def test_unknown_names_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments.values()))):
        GaussianDiffusion(**arguments)


def test_the_linear_tables_meet_their_reference():
    reference = load_npz("diffusion")
    assert np.allclose(linear_betas(1000), reference["betas"], rtol=1e-12, atol=0)
    assert np.allclose(np.cumprod(1 - linear_betas(1000)), reference["alphas_cumprod"].numpy(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("spec", ["100", "ddim100", "25", "10,15,20"])
def test_respacing_meets_its_reference(spec):
    reference = load_npz("diffusion")
    kept = space_timesteps(1000, spec)
    assert kept == reference[f"respaced_{spec.replace(',', '_')}"].tolist()
    betas = reference[f"respaced_betas_{spec.replace(',', '_')}"].numpy()
    assert np.allclose(respace(linear_betas(1000), kept), betas, rtol=1e-9, atol=0)


@pytest.mark.parametrize("spec", ["", "1000", "ddim1000"])
def test_keeping_every_step_changes_nothing(spec):
    betas = linear_betas(1000)
    assert np.allclose(respace(betas, space_timesteps(1000, spec)), betas, rtol=1e-9, atol=0)


def test_a_single_step_is_the_last():
    assert space_timesteps(1000, "1") == [999]
    betas = respace(linear_betas(1000), [999])
    assert np.allclose(1 - betas, np.prod(1 - linear_betas(1000)), rtol=1e-9, atol=0)


@pytest.mark.parametrize("spec", ["0", "-5", "ten", "ddim", "10,,5", "ddim10,20", "1.5", "1001", "600,400"])
def test_a_spec_that_is_none_is_named(spec):
    with pytest.raises(ValueError, match=f"respacing '{spec}'"):
        space_timesteps(1000, spec)


def test_ddim_refuses_what_no_integer_stride_gives():
    with pytest.raises(ValueError, match="'ddim300': no integer stride over 1000 steps gives 300"):
        space_timesteps(1000, "ddim300")


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


def test_respacing_to_every_number_of_steps_follows_guided_diffusions_accumulated_stride():
    multiplied_differs = []
    for count in range(2, 1001):
        kept = space_timesteps(1000, str(count))
        strides = np.full(count, 999 / (count - 1))
        strides[0] = 0.0
        assert kept == [round(position) for position in np.cumsum(strides)]
        assert (kept[0], kept[-1], len(set(kept))) == (0, 999, count)
        # The former rule, which multiplied the stride.
        if kept != [round(i * 999 / (count - 1)) for i in range(count)]:
            multiplied_differs.append(count)
    assert len(multiplied_differs) == 283
    assert space_timesteps(1000, "27")[13] == 499
    assert round(13 * 999 / 26) == 500


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("num_timesteps", [1000, 250])
def test_every_schedule_begins_with_almost_no_noise_and_ends_with_almost_nothing_else(name, num_timesteps):
    betas = SCHEDULES[name](num_timesteps)
    alphas_cumprod = np.cumprod(1 - betas)
    assert (betas.dtype, betas.shape) == (np.float64, (num_timesteps,))
    assert 0 < betas.min() <= betas.max() < 1
    assert alphas_cumprod[0] > 0.99
    assert alphas_cumprod[-1] < 0.01


def test_the_cosine_schedule_follows_its_squared_cosine_up_to_the_largest_beta():
    diffusion = GaussianDiffusion(schedule="cosine")
    u = np.arange(1, 1001) / 1000
    expected = (np.cos((u + 0.008) / 1.008 * np.pi / 2) / np.cos(0.008 / 1.008 * np.pi / 2)) ** 2
    below = diffusion.betas < 0.999
    assert below[:-1].all()
    assert diffusion.betas[-1] == 0.999
    assert np.allclose(diffusion.alphas_cumprod[below], expected[below], rtol=1e-9, atol=0)
