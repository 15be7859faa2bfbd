"""How much memory training takes, and what to do when there is not enough.

with out_of_memory_for_people("micro-batches of 8", "give --accum-steps 4"):
    step()
"""

import ctypes
import resource
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

GIB = 2**30
# Parameters of glibc's mallopt, and the values that its moving thresholds rise to by themselves.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_RISEN_TRIM_THRESHOLD, _RISEN_MMAP_THRESHOLD, _MMAP_MAX = 64 * 2**20, 32 * 2**20, 65536


def num_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes that tensors hold together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def peak_bytes(device: torch.device) -> int:
    """The most bytes held at once so far: of a GPU's memory by this process's tensors, or of the CPU's, resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def keep_freed_memory(kept: bool = True) -> bool:
    """Let this process keep the CPU memory it frees, for its next tensors; say whether that could be had.

    By default glibc returns blocks of 32 MiB and more at once and gets the next from the system page by page, zeroed,
    which takes several times as long as filling them: a third of a denoising step. With kept=False it is back to that.
    Other C libraries are left alone. Ours.
    """
    if not sys.platform.startswith("linux") or not hasattr(libc := ctypes.CDLL(None), "gnu_get_libc_version"):
        return False
    values = {
        _M_MMAP_MAX: 0 if kept else _MMAP_MAX,
        _M_TRIM_THRESHOLD: -1 if kept else _RISEN_TRIM_THRESHOLD,
        _M_MMAP_THRESHOLD: _RISEN_MMAP_THRESHOLD,
    }
    return all(libc.mallopt(parameter, value) for parameter, value in values.items())


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
