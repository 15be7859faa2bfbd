"""Exponential moving average of the weights, which sampling uses.

ema = EMA(model, decay=0.999)
ema.update(model)  # after every optimizer step
torch.save(ema.state_dict(), path)
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """Exponential moving average of a model's parameters and buffers in float32, under its state-dict keys.

    The n-th update decays by min(decay, n / (n + 9)), so that the random initial weights do not dominate a short run.
    Raises ValueError for a decay outside [0, 1). The warm-up is ours.
    """

    def __init__(self, model: nn.Module, decay: float, num_updates: int = 0) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"EMA decay {decay} is outside [0, 1)")
        self.decay = decay
        self.num_updates = num_updates
        self.shadow = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's current weights."""
        self.num_updates += 1
        decay = min(self.decay, self.num_updates / (self.num_updates + 9))
        current = list(model.state_dict().values())
        torch._foreach_lerp_(list(self.shadow.values()), current, 1 - decay)

    @contextmanager
    def swapped_into(self, model: nn.Module) -> Iterator[None]:
        """A context in which the model has the averaged weights; at its end, its own are restored bit for bit."""
        self._swap(model)
        try:
            yield
        finally:
            self._swap(model)

    @torch.no_grad()
    def _swap(self, model: nn.Module) -> None:
        for name, tensor in model.state_dict().items():
            own = tensor.clone()
            tensor.copy_(self.shadow[name])
            self.shadow[name].copy_(own)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights under the model's keys."""
        return self.shadow

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy averaged weights of the same keys and shapes."""
        for name, tensor in self.shadow.items():
            tensor.copy_(state[name])
