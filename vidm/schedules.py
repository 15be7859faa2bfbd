"""Noise schedules as float64 tables, and shorter ones by respacing.

betas = SCHEDULES["linear"](1000)
kept = space_timesteps(1000, 50)  # the original steps of a chain of 50
shorter = respace(betas, kept)
"""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np


def linear_betas(num_timesteps: int) -> np.ndarray:
    """Variances beta_t of the forward process, (num_timesteps,) float64.

    Linear from 1e-4 to 0.02 over 1000 steps (Ho et al. 2020), scaled by 1000 / num_timesteps for other lengths.
    """
    scale = 1000 / num_timesteps
    return np.linspace(scale * 1e-4, scale * 0.02, num_timesteps, dtype=np.float64)


def cosine_betas(num_timesteps: int) -> np.ndarray:
    """Variances beta_t, (num_timesteps,) float64, whose alphas_cumprod follow a squared cosine; at most 0.999.

    Source: Nichol and Dhariwal 2021, equation 17; guided-diffusion's second schedule.
    """
    u = np.arange(num_timesteps + 1, dtype=np.float64) / num_timesteps
    alphas_cumprod = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - alphas_cumprod[1:] / alphas_cumprod[:-1], 0.999)


SCHEDULES = {"linear": linear_betas, "cosine": cosine_betas}


def _fractional_stride(start: int, size: int, count: int) -> list[int]:
    """`count` of the steps start .. start + size - 1, the first and the last included; a single one is the last."""
    if count == 1:
        return [start + size - 1]
    # guided-diffusion adds the stride up in floating point; i * stride would be rounded to another step for some i.
    stride = (size - 1) / (count - 1)
    return [start + round(offset) for offset in accumulate([stride] * (count - 1), initial=0.0)]


def _integer_stride(num_timesteps: int, count: int, name: str) -> list[int]:
    for stride in range(1, num_timesteps + 1):
        kept = list(range(0, num_timesteps, stride))
        if len(kept) == count:
            return kept
    raise ValueError(f"{name} 'ddim{count}': no integer stride over {num_timesteps} steps gives {count} of them")


def step_counts(respacing: str, name: str = "respacing") -> list[int]:
    """The numbers in a respacing other than "". Raises ValueError, with its name, if it has none of the forms."""
    numbers = respacing.removeprefix("ddim").split(",")
    positive = all(n.isascii() and n.isdigit() and int(n) > 0 for n in numbers)
    if not positive or (respacing.startswith("ddim") and len(numbers) > 1):
        raise ValueError(
            f"{name} {respacing!r}: give a number of steps, as 100, ddim100 for steps at equal distances, or a number "
            "for each section of the schedule, as 10,15,20"
        )
    return [int(n) for n in numbers]


def space_timesteps(num_timesteps: int, respacing: str | int, name: str = "respacing") -> list[int]:
    """The original steps that a shorter chain keeps, ascending.

    `respacing` is "" (all steps), N or "N", "a,b,c" (the number of steps in each of as many equal sections, at a
    fractional stride) or "ddimN" (the integer stride that gives exactly N steps). Raises ValueError for anything else
    and for more steps than there are; `name` is what messages call the respacing. Source: guided-diffusion; ours in
    that a section of one step keeps its last step instead of its first, so that a chain of one step starts at full
    noise.
    """
    if isinstance(respacing, int):
        respacing = str(respacing)
    if not respacing:
        return list(range(num_timesteps))
    counts = step_counts(respacing, name)
    if respacing.startswith("ddim"):
        return _integer_stride(num_timesteps, counts[0], name)
    size, extra = divmod(num_timesteps, len(counts))
    kept = []
    start = 0
    for i, count in enumerate(counts):
        section = size + (i < extra)
        if count > section:
            part = f"a section of {section}" if len(counts) > 1 else f"a schedule of {num_timesteps}"
            raise ValueError(f"{name} {respacing!r}: {count} steps do not fit into {part}")
        kept += _fractional_stride(start, section, count)
        start += section
    return kept


def respace(betas: np.ndarray, kept: Sequence[int]) -> np.ndarray:
    """Betas (len(kept),) float64 of the chain whose alphas_cumprod are those of the kept steps of `betas`."""
    alphas_cumprod = np.cumprod(1 - betas)[list(kept)]
    return 1 - alphas_cumprod / np.append(1.0, alphas_cumprod[:-1])
