"""Memory for time: what a module keeps for its backward pass is its input alone, and the rest is computed again.

h = maybe_recomputed(self.recompute, self.modulated, h, t, frame_index)
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def maybe_recomputed(recompute: bool, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """function(*inputs); with `recompute`, what its backward pass needs is computed again then, bit for bit.

    The function draws no random numbers. Where no gradient is wanted nothing is kept anyway.
    """
    if not (recompute and torch.is_grad_enabled()):
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
