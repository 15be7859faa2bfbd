"""A decayed copy of the weights, which is what one samples from.

ema = EMA(model, decay=0.999)
ema.update(model)  # after every optimizer step
torch.save(ema.state_dict(), path)
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """Exponential moving average of a model's parameters in float32, by its own state-dict keys.

    The n-th update decays by min(decay, n / (n + 9)), so that a short run is not an average with its random
    start. Buffers are copied. Raises ValueError for a decay outside [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float, num_updates: int = 0) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"EMA decay {decay} is outside [0, 1)")
        self.decay = decay
        self.num_updates = num_updates
        self.shadow = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the copy towards the model's present weights."""
        self.num_updates += 1
        decay = min(self.decay, self.num_updates / (self.num_updates + 9))
        current = list(model.state_dict().values())
        torch._foreach_lerp_(list(self.shadow.values()), current, 1 - decay)

    @contextmanager
    def swapped_into(self, model: nn.Module) -> Iterator[None]:
        """While open, the model has the averaged weights; then its own again, bit for bit."""
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
        """The averaged weights, keyed as the model's."""
        return self.shadow

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over averaged weights of the same keys and shapes."""
        for name, tensor in self.shadow.items():
            tensor.copy_(state[name])
