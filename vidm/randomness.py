"""Random numbers as a function of a key.

The numbers drawn for (seed, step, place) or (seed, video, frame, step) do not depend on the number of processes, their
order or earlier draws. Runs that are resumed or split over processes therefore draw the same numbers.

    noise = keyed_normal((0, step, place), (3, 64, 64))
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vidm.layers import to_device


def keyed_generator(key: Sequence[int]) -> torch.Generator:
    """A CPU generator seeded by a sequence of integers >= 0; different keys give independent streams. Ours."""
    # The length is part of the key, since a seed sequence does not distinguish (1, 2) from (1, 2, 0).
    state = np.random.SeedSequence([len(key), *key]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))


def keyed_normal(key: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Standard normals of `shape`, float32 on the CPU, that depend only on `key`."""
    return torch.randn(list(shape), generator=keyed_generator(key))


def draw_noise(
    seed: int, step: int, places: Sequence[int], frame: Tensor, num_timesteps: int, offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Diffusion steps t (B,) and noise like `frame` (B, 3, H, W) for the given places in a step's global batch.

    The noise is N(0, 1) for each element plus, for each whole channel, N(0, offset^2). Source of the offset: Guttenberg
    2023, "Diffusion with offset noise".
    """
    t, noise = [], []
    for place in places:
        generator = keyed_generator((seed, step, place))
        t.append(torch.randint(num_timesteps, (), generator=generator))
        noise.append(torch.randn(frame.shape[1:], generator=generator))
        if offset:
            noise[-1] += offset * torch.randn((frame.shape[1], 1, 1), generator=generator)
    return to_device(torch.stack(t), frame.device), to_device(torch.stack(noise), frame.device)


def drop_classes(seed: int, step: int, places: Sequence[int], class_index: Tensor, probability: float) -> Tensor:
    """A step's classes (B,), each replaced by 0, no class, with a probability. Ours."""
    drawn = [torch.rand((), generator=keyed_generator((seed, step, place, 2))) for place in places]
    return class_index * to_device(torch.stack(drawn) >= probability, class_index.device)


def draw_condition_noise(seed: int, step: int, places: Sequence[int], frame: Tensor, level: float) -> Tensor:
    """Noise like `frame` (B, 3, H, W) for a step's previous frames, each scaled by a draw from [0, level]. Ours."""
    noise = []
    for place in places:
        generator = keyed_generator((seed, step, place, 1))
        drawn = level * torch.rand((), generator=generator)
        noise.append(drawn * torch.randn(frame.shape[1:], generator=generator))
    return to_device(torch.stack(noise), frame.device)
