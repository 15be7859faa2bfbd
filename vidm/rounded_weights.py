"""Copies of a generator whose weights are rounded once instead of at every step.

fast = with_bf16_weights(generator.model)
"""

from copy import deepcopy
from typing import Any

import torch
from torch import nn

from vidm.model import MotionGenerator


def _denoising_parts(model: nn.Module) -> list[nn.Module]:
    """A generator without SPyNet, whose weights are never rounded."""
    parts = (model.unet, model.encoder) if isinstance(model, MotionGenerator) else (model,)
    return [part for part in parts if part is not None]


def with_autocast_weights(model: Any, dtype: torch.dtype) -> Any:
    """A copy of a generator with the weights that autocast to `dtype` casts, at every step, already cast.

    Under autocast, its outputs are those of the generator bit for bit. Ours.
    """
    model = deepcopy(model)
    for part in _denoising_parts(model):
        for name, layer in part.named_modules():
            # PosGN computes the products of linear_0 in float32.
            if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear) and not name.endswith("linear_0"):
                layer.to(dtype)
    return model


def with_bf16_weights(model: Any) -> Any:
    """A copy of a generator whose U-Net and encoder have bfloat16 weights and compute in bfloat16; SPyNet is unchanged.

    Coordinates and the sums of norms and attention are float32 for any dtype of the weights. Ours.
    """
    model = deepcopy(model)
    for part in _denoising_parts(model):
        part.to(torch.bfloat16)
    return model
