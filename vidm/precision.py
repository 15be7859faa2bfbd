"""In which arithmetic the networks run; weights, coordinates, norms and the process stay float32.

scaler = loss_scaler(device, "fp16")
with autocast(device, "fp16"):
    losses = diffusion.training_losses(model, x_start, t)
scaler.scale(losses["loss"].mean()).backward()
"""

import torch

from vidm.config import SAMPLING_PRECISIONS

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """A context in which matrix products and convolutions run in `precision`; "bf16-weights": as the weights are.

    It also lets a GPU round their fp32 inputs to tf32, or forbids it: convolutions would otherwise do so unasked. On
    the CPU tf32 is fp32. Raises ValueError for a precision that is none.
    """
    if precision not in SAMPLING_PRECISIONS:
        raise ValueError(f"precision {precision!r} is unknown: choose from {', '.join(SAMPLING_PRECISIONS)}")
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    return torch.autocast(device.type, _AUTOCAST.get(precision, torch.bfloat16), enabled=precision in _AUTOCAST)


def loss_scaler(device: torch.device, precision: str) -> torch.amp.GradScaler:
    """Scales losses so that fp16 gradients do not vanish; in any other precision it does nothing."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")
