"""The diffusion process and its training loss, for any denoiser `model(x_t, t, **model_kwargs)`.

The process is guided-diffusion's: a learned variance between two bounds, and a hybrid loss of a weighted penalty on the
noise and the variational bound (Ho et al. 2020; Nichol and Dhariwal 2021; Choi et al. 2022).

    diffusion = GaussianDiffusion(respacing=100)
    losses = diffusion.training_losses(model, x_start, t, model_kwargs=condition)
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vidm.layers import collapsed, to_device
from vidm.schedules import SCHEDULES, respace, space_timesteps

# Terms of the loss


def charbonnier(error: Tensor, eps: float = 1e-8) -> Tensor:
    """Charbonnier penalty sqrt(error^2 + eps^2), elementwise in float32: |error|, but smooth within eps of 0.

    Value and gradient are finite everywhere, at 0 included, for eps >= 1e-8. Source: Charbonnier et al. 1994, which a
    secondary source names as the paper's robustness penalty; the default of eps is ours.
    """
    return torch.sqrt(error.float() ** 2 + eps**2)


def p2_weight(alphas_cumprod: np.ndarray, gamma: float, k: float) -> np.ndarray:
    """P2 weight 1 / (k + SNR_t)^gamma of each step, of the shape of `alphas_cumprod`; 1 for gamma = 0.

    Source: Choi et al. 2022.
    """
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
    # The tanh approximation is guided-diffusion's.
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def discretized_gaussian_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log probability, elementwise in nats, of the bin of width 2 / 255 around x under N(mean, exp(log_scale)^2).

    x is in [-1, 1]; the outermost bins extend to infinity. Source: Ho et al. 2020, equation 13.
    """
    inverse_scale = torch.exp(-log_scale)
    upper = _standard_normal_cdf(inverse_scale * (x - mean + 1 / 255))
    lower = _standard_normal_cdf(inverse_scale * (x - mean - 1 / 255))
    probability = torch.where(x < -0.999, upper, torch.where(x > 0.999, 1 - lower, upper - lower))
    return torch.log(probability.clamp(min=1e-12))


# The process

Denoiser = Callable[..., Tensor]
Condition = Mapping[str, Any]

PREDICTIONS = ("eps", "v")
LOSSES = ("charbonnier", "mse")


class Process(NamedTuple):
    """What a denoiser and its process must agree on. A network built for a configuration has its own as `process`."""

    diffusion_timesteps: int
    schedule: str
    prediction: str


class PMeanVariance(NamedTuple):
    """The Gaussian of a reverse step and the predicted clean frame, all of x_t's shape."""

    mean: Tensor
    variance: Tensor
    log_variance: Tensor
    pred_xstart: Tensor


def _choose(name: str, value: str, choices: Iterable[str]) -> str:
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}: choose from {', '.join(choices)}")
    return value


class GaussianDiffusion:
    """Forward process, reverse process and loss over frames of any shape (B, C, ...).

    The denoiser outputs 2 C channels: the prediction ("eps", the noise, as published, or "v" of Salimans and Ho 2022),
    then the variance's interpolation. Steps t are indices 0 .. num_timesteps - 1 of this process, which may be
    respaced: `respacing` is the number of steps, or one of the forms of space_timesteps. The denoiser receives the
    original step timestep_map[t]. `loss` is "charbonnier" (for the paper's robustness penalty) or "mse" (the authors'
    code). The P2 weight 1 / (p2_k + SNR)^p2_gamma applies to "eps" only. The tables `betas` and `alphas_cumprod` are
    numpy float64. Raises ValueError for unknown names, for a denoiser without channels for the variance, and for a
    network that was built for another `process`: Generator.diffusion returns the process of a checkpoint.
    """

    def __init__(
        self,
        diffusion_timesteps: int = 1000,
        schedule: str = "linear",
        respacing: str | int = "",
        prediction: str = "eps",
        p2_gamma: float = 1.0,
        p2_k: float = 1.0,
        loss: str = "charbonnier",
        penalty_eps: float = 1e-8,
    ) -> None:
        _choose("schedule", schedule, SCHEDULES)
        self.prediction = _choose("prediction", prediction, PREDICTIONS)
        self.process = Process(diffusion_timesteps, schedule, prediction)
        self.loss = _choose("loss", loss, LOSSES)
        self.penalty_eps = penalty_eps
        kept = space_timesteps(diffusion_timesteps, respacing)
        self.timestep_map = np.array(kept, dtype=np.int64)
        self.betas = respace(SCHEDULES[schedule](diffusion_timesteps), kept)
        self.num_timesteps = len(kept)
        alphas = 1 - self.betas
        self.alphas_cumprod = np.cumprod(alphas)
        self.alphas_cumprod_prev = np.append(1.0, self.alphas_cumprod[:-1])
        # The posterior q(x_{t-1} | x_t, x_0): Ho et al. 2020, equations 6 and 7.
        self.posterior_variance = self.betas * (1 - self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)
        # Its first entry is 0 and has no logarithm. The second replaces it, or beta if there is only one step (ours).
        second = self.posterior_variance[1] if self.num_timesteps > 1 else self.betas[0]
        self.posterior_log_variance = np.log(np.append(second, self.posterior_variance[1:]))
        self.posterior_x_start = self.betas * np.sqrt(self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)
        self.posterior_x_t = (1 - self.alphas_cumprod_prev) * np.sqrt(alphas) / (1 - self.alphas_cumprod)
        weighted = prediction == "eps"
        self.loss_weight = p2_weight(self.alphas_cumprod, p2_gamma if weighted else 0.0, p2_k)
        self._device_tables: dict[torch.device, dict[str, Tensor]] = {}

    def _tables(self, device: torch.device) -> dict[str, Tensor]:
        """The process's tables on a device, made once: float32 (num_timesteps,), and the int64 timestep_map."""
        if device not in self._device_tables:
            a = self.alphas_cumprod
            tables = {
                "signal": np.sqrt(a),
                "noise": np.sqrt(1 - a),
                "x_t_to_x_start": np.sqrt(1 / a),
                "eps_to_x_start": np.sqrt(1 / a - 1),
                "posterior_x_start": self.posterior_x_start,
                "posterior_x_t": self.posterior_x_t,
                "posterior_log_variance": self.posterior_log_variance,
                "log_beta": np.log(self.betas),
                "loss_weight": self.loss_weight,
            }
            # Tensors made in inference mode could not be used in training later.
            with torch.inference_mode(False):
                rows = to_device(torch.from_numpy(np.stack(list(tables.values()))).float(), device)
                found = dict(zip(tables, rows, strict=True))
                found["timestep_map"] = to_device(torch.from_numpy(self.timestep_map), device)
            self._device_tables[device] = found
        return self._device_tables[device]

    def _at(self, name: str, t: Tensor, like: Tensor) -> Tensor:
        """Entries of a table at t (B,), shaped to broadcast over `like` (B, ...)."""
        return self._tables(t.device)[name][t].view(-1, *[1] * (like.dim() - 1))

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Noise x_start (B, ...) to step t (B,): sqrt(a) x_start + sqrt(1 - a) noise."""
        signal = self._at("signal", t, x_start)
        return signal * x_start + self._at("noise", t, x_start) * noise

    def q_posterior_mean(self, x_start: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Mean of q(x_{t-1} | x_t, x_start), of x_t's shape."""
        return self._at("posterior_x_start", t, x_t) * x_start + self._at("posterior_x_t", t, x_t) * x_t

    def predict_xstart(self, x_t: Tensor, t: Tensor, prediction: Tensor) -> Tensor:
        """The clean frame that follows from a predicted eps or v of x_t's shape, not clamped."""
        if self.prediction == "v":
            return self._at("signal", t, x_t) * x_t - self._at("noise", t, x_t) * prediction
        return self._at("x_t_to_x_start", t, x_t) * x_t - self._at("eps_to_x_start", t, x_t) * prediction

    def predict_eps(self, x_t: Tensor, t: Tensor, x_start: Tensor) -> Tensor:
        """The noise that leads from x_start to x_t, of their shape."""
        return (self._at("x_t_to_x_start", t, x_t) * x_t - x_start) / self._at("eps_to_x_start", t, x_t)

    def _call(self, model: Denoiser, x_t: Tensor, t: Tensor, model_kwargs: Condition | None) -> Tensor:
        """The denoiser's output (B, 2 C, ...) in float32, checked."""
        trained = getattr(model, "process", None)
        if isinstance(trained, Process) and trained != self.process:
            pairs = zip(Process._fields, trained, self.process, strict=True)
            different = ", ".join(f"{name} {theirs} and not {ours}" for name, theirs, ours in pairs if theirs != ours)
            raise ValueError(
                f"the network is for {different}: take the process of its checkpoint, generator.diffusion()"
            )
        original = self._tables(t.device)["timestep_map"][collapsed(t)].expand(t.shape)
        output = model(x_t, original, **(model_kwargs or {})).float()
        if output.shape[1] != 2 * x_t.shape[1]:
            raise ValueError(
                f"the denoiser's output has {output.shape[1]} channels and not 2 x {x_t.shape[1]}, the prediction and "
                "then the variance's interpolation: without a learned variance append -1s, the posterior's variance"
            )
        return output

    def _reverse(self, output: Tensor, x_t: Tensor, t: Tensor, clip_denoised: bool) -> PMeanVariance:
        """The Gaussian of a reverse step from the denoiser's output (B, 2 C, ...)."""
        prediction, v = output.chunk(2, dim=1)
        f = (v + 1) / 2
        log_beta = self._at("log_beta", t, x_t)
        log_variance = f * log_beta + (1 - f) * self._at("posterior_log_variance", t, x_t)
        pred_xstart = self.predict_xstart(x_t, t, prediction)
        if clip_denoised:
            pred_xstart = pred_xstart.clamp(-1, 1)
        mean = self.q_posterior_mean(pred_xstart, x_t, t)
        return PMeanVariance(mean, log_variance.exp(), log_variance, pred_xstart)

    def p_mean_variance(
        self,
        model: Denoiser,
        x_t: Tensor,
        t: Tensor,
        model_kwargs: Condition | None = None,
        clip_denoised: bool = True,
    ) -> PMeanVariance:
        """The denoiser's p(x_{t-1} | x_t) for x_t (B, C, ...) and t (B,).

        log variance = f log beta_t + (1 - f) log posterior variance, with f = (v + 1) / 2 from the denoiser's second
        half (Nichol and Dhariwal 2021, equation 15). pred_xstart is clamped to [-1, 1] when clip_denoised.
        """
        return self._reverse(self._call(model, x_t, t, model_kwargs), x_t, t, clip_denoised)

    def _variational_bound(self, output: Tensor, x_start: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The step's term of the variational bound, (B,) in bits per dimension; at t = 0 the likelihood of x_start."""
        p = self._reverse(output, x_t, t, clip_denoised=False)
        true_mean = self.q_posterior_mean(x_start, x_t, t)
        true_log_variance = self._at("posterior_log_variance", t, x_t)
        kl = normal_kl(true_mean, true_log_variance, p.mean, p.log_variance)
        nll = -discretized_gaussian_log_likelihood(x_start, p.mean, 0.5 * p.log_variance)
        return torch.where(t == 0, nll.flatten(1).mean(1), kl.flatten(1).mean(1)) / math.log(2)

    def training_losses(
        self,
        model: Denoiser,
        x_start: Tensor,
        t: Tensor,
        noise: Tensor | None = None,
        model_kwargs: Condition | None = None,
    ) -> dict[str, Tensor]:
        """The hybrid loss per sample: a dict of (B,) tensors `loss` = `penalty` (after its P2 weight) + `vb`.

        x_start (B, C, ...) in [-1, 1], t (B,), noise of x_start's shape (drawn if None). The bound trains the variance
        only, since its mean is detached.
        """
        if noise is None:
            noise = torch.randn_like(x_start)
        x_t = self.q_sample(x_start, t, noise)
        output = self._call(model, x_t, t, model_kwargs)
        prediction, v = output.chunk(2, dim=1)
        vb = self._variational_bound(torch.cat([prediction.detach(), v], dim=1), x_start, x_t, t)
        target = noise
        if self.prediction == "v":
            target = self._at("signal", t, noise) * noise - self._at("noise", t, noise) * x_start
        error = target - prediction
        each = error**2 if self.loss == "mse" else charbonnier(error, self.penalty_eps)
        penalty = each.flatten(1).mean(1) * self._at("loss_weight", t, t)
        return {"loss": penalty + vb, "penalty": penalty, "vb": vb}
