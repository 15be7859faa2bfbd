"""Whether a GPU may round the factors of float32 products to TF32, whose mantissa has 10 bits instead of 23.

with tf32_products(False):
    flow = spynet(first, previous)  # exact, also in a run with --precision tf32

By default, PyTorch lets convolutions round but not matrix products. Its older switches (allow_tf32) raise an error
once anything else uses the current ones, so only these are used.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_OPERATIONS = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]


def _set(*precisions: str) -> None:
    for operation, precision in zip(_OPERATIONS, precisions, strict=True):
        operation.fp32_precision = precision


@contextmanager
def tf32_products(allowed: bool) -> Iterator[None]:
    """A context in which a GPU's matrix products and convolutions of float32 tensors use TF32, or do not.

    The setting is the process's. Backward passes use the one of the moment at which they run.
    """
    before = [operation.fp32_precision for operation in _OPERATIONS]
    _set(*["tf32" if allowed else "ieee"] * len(_OPERATIONS))
    try:
        yield
    finally:
        _set(*before)


def without_tf32_in_backward(output: Tensor) -> Tensor:
    """The tensor, whose gradient switches TF32 off for the rest of a backward pass.

    Autograd runs nodes in reverse order of creation, so these are the nodes that were created before `output`. The
    backward pass must run in a context of tf32_products, which ends this.
    """
    if output.requires_grad:
        output.register_hook(lambda gradient: _set(*["ieee"] * len(_OPERATIONS)))
    return output
