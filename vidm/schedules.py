"""float64 tables of a noise schedule, and shorter ones by respacing.

betas = linear_betas(1000)
kept = space_timesteps(1000, "ddim100")
short = respace(betas, kept)  # 100 betas whose alphas_cumprod are those of the kept steps
"""

from collections.abc import Sequence

import numpy as np


def linear_betas(num_timesteps: int) -> np.ndarray:
    """Variances beta_t of the forward process, (num_timesteps,) float64.

    Linear from 1e-4 to 0.02 over 1000 steps (Ho et al. 2020), scaled by 1000 / num_timesteps for other lengths.
    """
    scale = 1000 / num_timesteps
    return np.linspace(scale * 1e-4, scale * 0.02, num_timesteps, dtype=np.float64)


def _fractional_stride(start: int, size: int, count: int) -> list[int]:
    """`count` steps of start .. start + size - 1, first and last kept; a lone one is the last (ours)."""
    if count == 1:
        return [start + size - 1]
    return [start + round(i * (size - 1) / (count - 1)) for i in range(count)]


def _integer_stride(num_timesteps: int, count: int) -> list[int]:
    for stride in range(1, num_timesteps + 1):
        kept = list(range(0, num_timesteps, stride))
        if len(kept) == count:
            return kept
    raise ValueError(f"respacing 'ddim{count}': no integer stride over {num_timesteps} steps gives {count} of them")


def space_timesteps(num_timesteps: int, respacing: str) -> list[int]:
    """The original steps that a shorter chain keeps, ascending.

    `respacing` is "" (all), "N", "a,b,c" (so many in each of as many equal sections, strided fractionally) or
    "ddimN" (the one integer stride that gives exactly N). Raises ValueError for anything else or more than there
    are. Source: guided-diffusion's convention; a section of one keeps its last step rather than its first, so that
    a one-step chain starts where noise is.
    """
    if not respacing:
        return list(range(num_timesteps))
    numbers = respacing.removeprefix("ddim").split(",")
    if not all(n.isascii() and n.isdigit() and int(n) > 0 for n in numbers) or (
        respacing.startswith("ddim") and len(numbers) > 1
    ):
        raise ValueError(f"respacing {respacing!r} is none: give steps as 100, ddim100 or 10,15,20")
    counts = [int(n) for n in numbers]
    if respacing.startswith("ddim"):
        return _integer_stride(num_timesteps, counts[0])
    size, extra = divmod(num_timesteps, len(counts))
    kept = []
    start = 0
    for i, count in enumerate(counts):
        section = size + (i < extra)
        if count > section:
            raise ValueError(f"respacing {respacing!r}: {count} steps do not fit into a section of {section}")
        kept += _fractional_stride(start, section, count)
        start += section
    return kept


def respace(betas: np.ndarray, kept: Sequence[int]) -> np.ndarray:
    """Betas (len(kept),) float64 of the chain whose alphas_cumprod are those of the kept steps of `betas`."""
    alphas_cumprod = np.cumprod(1 - betas)[list(kept)]
    return 1 - alphas_cumprod / np.append(1.0, alphas_cumprod[:-1])
