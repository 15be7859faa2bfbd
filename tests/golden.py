"""The fixed weights with which the reference numbers in tests/data were computed (see tests/data/README.md)."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import nn

DATA = Path(__file__).parent / "data"


def fill_by_rule(module: nn.Module, prefix: str = "") -> nn.Module:
    """Fill each parameter with values that depend only on its name, since most gradients of a new model are zero."""
    with torch.no_grad():
        for name, parameter in module.named_parameters(prefix=prefix):
            shape = tuple(parameter.shape)
            z = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
            if name.endswith("bias"):
                value = 0.1 * z
            elif len(shape) == 1:
                value = 1 + 0.1 * z
            else:
                value = z * 0.5 / np.sqrt(np.prod(shape[1:]))
            if ".basic_module.4.conv." in name:
                value = value * 0.1
            if name == "input.input":
                value = z
            parameter.copy_(torch.from_numpy(value.astype(np.float32)))
    return module


def load_npz(name: str) -> dict[str, torch.Tensor]:
    """The arrays of tests/data/NAME.npz as tensors."""
    with np.load(DATA / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def _arguments(name: str) -> dict:
    config = json.loads((DATA / f"{name}.json").read_text())["config"]
    for fixed in ("use_scale_shift_norm", "in_channels", "out_channels"):
        config.pop(fixed)
    return {name: tuple(value) if isinstance(value, list) else value for name, value in config.items()}


def small_model_arguments() -> dict:
    """Keyword arguments of the small reference MotionGenerator (294 tensors, 32 x 32)."""
    return _arguments("motion_model_small")


def small_content_arguments() -> dict:
    """Keyword arguments of the small reference ContentGenerator (145 tensors, 32 x 32)."""
    return _arguments("content_model_small")
