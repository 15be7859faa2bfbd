"""An index that all samples of a batch share: made as one value expanded, and known again by its stride.

Sampling has a whole batch at one step t of one frame; what depends on these alone is then computed once. Nobody need
look at the values for that, which on a GPU would wait for all that is queued.

    t = shared(999, x_t)  # (B,)
    distinct(t).shape  # (1,)
"""

import torch
from torch import Tensor


def shared(index: int, batch: Tensor) -> Tensor:
    """The index for every sample of `batch` (B, ...): int64 (B,) on its device, one value in memory."""
    return torch.full((1,), index, dtype=torch.int64, device=batch.device).expand(batch.shape[0])


def distinct(index: Tensor) -> Tensor:
    """(1,) of an index (B,) that all samples share, else the index itself; both broadcast over the batch."""
    return index[:1] if index.stride(0) == 0 else index
