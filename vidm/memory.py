"""How much memory training takes, and what to do when there is not enough.

with out_of_memory_for_people("micro-batches of 8", "give --accum-steps 4"):
    step()
"""

import resource
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

GIB = 2**30


def num_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes that tensors hold together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def peak_bytes(device: torch.device) -> int:
    """The most bytes held at once so far: of a GPU's memory by this process's tensors, or of the CPU's, resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def out_of_memory_for_people(what: str, advice: str) -> Iterator[None]:
    """Turn an allocation that fails, on a GPU or the CPU, into a ValueError: `what` did not fit, and the advice."""
    try:
        yield
    except RuntimeError as error:
        on_cpu = "DefaultCPUAllocator" in str(error)
        if not (on_cpu or isinstance(error, torch.OutOfMemoryError)):
            raise
        raise ValueError(f"out of memory{' on the CPU' * on_cpu}: {what} do not fit; {advice}") from error
    except MemoryError as error:
        raise ValueError(f"out of memory on the CPU: {what} do not fit; {advice}") from error


def more_micro_batches(samples: int, accum_steps: int) -> int | None:
    """The next number of micro-batches above `accum_steps` into which a process's samples divide, None above all."""
    return next((n for n in range(accum_steps + 1, samples + 1) if samples % n == 0), None)
