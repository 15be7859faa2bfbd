"""Samplers DDPM, DDIM and DPM-Solver++: the reverse chain from x_T to a clean frame, for any denoiser.

x = sample_ddim(GaussianDiffusion(respacing=50), model, torch.randn(4, 3, 64, 64))
"""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vidm.diffusion import Condition, Denoiser, GaussianDiffusion
from vidm.layers import constant_index

# noise(step, like) -> standard normals of like's shape; step counts 0, 1, ... in sampling order.
Noise = Callable[[int, Tensor], Tensor]
# A sampler: sampler(diffusion, model, x_T, model_kwargs, noise=noise) -> x_0, as those below.
Sampler = Callable[..., Tensor]


def _randn(step: int, like: Tensor) -> Tensor:
    return torch.randn_like(like)


def _descend(diffusion: GaussianDiffusion, batch: Tensor, progress: bool) -> Iterator[tuple[int, int, Tensor]]:
    """Yield (step, its index in the process's tables, t (B,) of that index) in sampling order."""
    num_timesteps = diffusion.num_timesteps
    for step in tqdm(range(num_timesteps), disable=not progress, leave=False, desc="denoise"):
        index = num_timesteps - 1 - step
        yield step, index, constant_index(index, batch)


@torch.no_grad()
def sample_ddpm(
    diffusion: GaussianDiffusion,
    model: Denoiser,
    x_T: Tensor,
    model_kwargs: Condition | None = None,
    noise: Noise | None = None,
    clip_denoised: bool = True,
    progress: bool = False,
) -> Tensor:
    """Ancestral sampling (Ho et al. 2020, algorithm 2): x_T (B, C, ...) of standard normals -> x_0, same shape.

    `noise(step, like)` returns the noise of a step, by default from torch's generator; the last step adds none.
    """
    noise = noise or _randn
    x = x_T
    for step, i, t in _descend(diffusion, x, progress):
        p = diffusion.p_mean_variance(model, x, t, model_kwargs, clip_denoised)
        x = p.mean if i == 0 else p.mean + torch.exp(0.5 * p.log_variance) * noise(step, x)
    return x


@torch.no_grad()
def sample_ddim(
    diffusion: GaussianDiffusion,
    model: Denoiser,
    x_T: Tensor,
    model_kwargs: Condition | None = None,
    noise: Noise | None = None,
    clip_denoised: bool = True,
    progress: bool = False,
    eta: float = 0.0,
) -> Tensor:
    """DDIM (Song et al. 2021, equations 12 and 16): x_T (B, C, ...) -> x_0, same shape.

    eta = 0 is deterministic and does not call `noise`; eta = 1 has DDPM's posterior variance. eps is computed again
    from the clamped pred_xstart.
    """
    noise = noise or _randn
    a, a_prev = diffusion.alphas_cumprod, diffusion.alphas_cumprod_prev
    sigma = eta * np.sqrt((1 - a_prev) / (1 - a)) * np.sqrt(1 - a / a_prev)
    x = x_T
    for step, i, t in _descend(diffusion, x, progress):
        pred_xstart = diffusion.p_mean_variance(model, x, t, model_kwargs, clip_denoised).pred_xstart
        eps = diffusion.predict_eps(x, t, pred_xstart)
        x = np.sqrt(a_prev[i]) * pred_xstart + np.sqrt(1 - a_prev[i] - sigma[i] ** 2) * eps
        if i and eta:
            x = x + sigma[i] * noise(step, x)
    return x


@torch.no_grad()
def sample_dpm_solver(
    diffusion: GaussianDiffusion,
    model: Denoiser,
    x_T: Tensor,
    model_kwargs: Condition | None = None,
    noise: Noise | None = None,
    clip_denoised: bool = True,
    progress: bool = False,
    order: int = 2,
) -> Tensor:
    """DPM-Solver++ multistep (Lu et al. 2022, algorithm 2, 2M): x_T (B, C, ...) -> x_0, same shape.

    Deterministic: `noise` is not called. order=1 is DDIM at eta = 0. The last two steps are of first order: the last
    one because the half log SNR is infinite at its end; the one before because the half log SNR of evenly spaced steps
    changes several times as much in it as in the step before (ours; on a Gaussian of standard deviation 0.5 with 20
    steps, the error is 0.05 instead of 0.24). Raises ValueError for another order.
    """
    if order not in (1, 2):
        raise ValueError(f"unknown order {order}: DPM-Solver++ has orders 1 and 2")
    a, a_prev = diffusion.alphas_cumprod, diffusion.alphas_cumprod_prev
    half_log_snr = 0.5 * np.log(a / (1 - a))
    x = x_T
    before: Tensor | None = None
    for _, i, t in _descend(diffusion, x, progress):
        pred_xstart = diffusion.p_mean_variance(model, x, t, model_kwargs, clip_denoised).pred_xstart
        if i == 0:
            return pred_xstart
        h = half_log_snr[i - 1] - half_log_snr[i]
        target = pred_xstart
        if before is not None and order == 2 and i > 1:
            r = (half_log_snr[i] - half_log_snr[i + 1]) / h
            target = (1 + 1 / (2 * r)) * pred_xstart - 1 / (2 * r) * before
        x = np.sqrt((1 - a_prev[i]) / (1 - a[i])) * x - np.sqrt(a_prev[i]) * np.expm1(-h) * target
        before = pred_xstart
    return x


def guided(model: Denoiser, scale: float) -> Denoiser:
    """A class-conditional denoiser with classifier-free guidance (Ho and Salimans 2022): u + scale (c - u).

    c is the prediction for `class_index`, u the one without class, both in the network's own space. eps and v are
    affine in each other and in x_0 with weights that depend on x_t and t alone, so the space makes no difference. The
    variance is that of c. A scale of 1 is the denoiser itself.
    """
    if scale == 1:
        return model

    def denoise(x_t: Tensor, t: Tensor, class_index: Tensor, **condition: Tensor) -> Tensor:
        # Copied, since a compiled network overwrites its output when it is called again.
        without = model(x_t, t, class_index=constant_index(0, x_t), **condition).float().clone()
        output = model(x_t, t, class_index=class_index, **condition).float()
        prediction, variance = output.chunk(2, dim=1)
        return torch.cat([torch.lerp(without.chunk(2, dim=1)[0], prediction, scale), variance], dim=1)

    return denoise


def with_classes(sampler: Callable[..., Tensor], class_index: Tensor, guidance: float = 1.0) -> Callable[..., Tensor]:
    """A sampler, bound to its process, whose videos have the classes (B,), with classifier-free guidance."""

    def sample(model: Denoiser, x_T: Tensor, model_kwargs: Condition | None = None, **options: Any) -> Tensor:
        condition = {**(model_kwargs or {}), "class_index": class_index}
        return sampler(guided(model, guidance), x_T, condition, **options)

    return sample


def _described(x: object) -> str:
    return f"{x.dtype} {[*x.shape]} on {x.device}" if isinstance(x, Tensor) else type(x).__name__


def checked(sampler: Sampler) -> Sampler:
    """A user's sampler, with an error in one line where it does not follow the signature of those above.

    Raises ValueError if it does not take these arguments and, when it is called, if it does not return a tensor like
    x_T. Ours.
    """
    name = getattr(sampler, "__name__", type(sampler).__name__)
    try:
        inspect.signature(sampler).bind(None, None, None, None, noise=None)
    except TypeError as error:
        call = "sampler(diffusion, model, x_T, model_kwargs, noise=noise)"
        raise ValueError(f"the sampler {name} cannot be called as {call}: {error}") from error

    def sample(
        diffusion: GaussianDiffusion, model: Denoiser, x_T: Tensor, model_kwargs: Condition, noise: Noise
    ) -> Tensor:
        x = sampler(diffusion, model, x_T, model_kwargs, noise=noise)
        if _described(x) != _described(x_T):
            raise ValueError(
                f"the sampler {name} must return a tensor like x_T, {_described(x_T)}: got {_described(x)}"
            )
        return x

    return sample


SAMPLERS = {"ddpm": sample_ddpm, "ddim": sample_ddim, "dpm-solver++": sample_dpm_solver}
