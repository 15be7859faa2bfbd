"""In which arithmetic the networks run; weights, coordinates, norms and the process stay float32.

with autocast(device, "bf16"):
    losses = diffusion.training_losses(model, x_start, t)
"""

import torch

PRECISIONS = ("fp32", "bf16")


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """A context in which matrix products run in `precision`. Raises ValueError for one that is none."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is unknown: choose from {', '.join(PRECISIONS)}")
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
