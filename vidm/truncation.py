"""Where the reverse chain starts, instead of pure noise: sampling space truncation.

    start = TruncatedStart(seed=0, psi=0.5)
    x_T = start(torch.randn(4, 3, 64, 64))

The paper's abstract names the strategy, the released code has nothing of it; this form is ours. One fixed latent c is
shared by every video and frame, and psi says how far from it a chain may start: 1 is plain sampling, 0 the constant
start, in between a smaller sampling space. Whatever psi, each element of x_T is N(0, 1) over draws of c and z.
"""

import math

from torch import Tensor

from vidm.randomness import keyed_normal


class TruncatedStart:
    """x_T = sqrt(1 - psi^2) c + psi z, with c drawn once from N(0, I) by `seed`.

    Shapes: start(z (B, ...)) -> (B, ...), z standard normal. Raises ValueError for a psi outside [0, 1].
    """

    def __init__(self, seed: int, psi: float = 1.0) -> None:
        if not 0 <= psi <= 1:
            raise ValueError(f"psi {psi} is outside [0, 1]: 1 is plain sampling, 0 a constant start")
        self.seed = seed
        self.psi = psi

    def __call__(self, z: Tensor) -> Tensor:
        c = keyed_normal((self.seed,), z.shape[1:]).to(z)
        return math.sqrt(1 - self.psi**2) * c + self.psi * z
