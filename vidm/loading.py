"""Batches from data loading processes, which need no shared memory and are replaced if they die. Ours.

    for batch in load_batches(triplets, lambda done: list(sampler)[done:], workers=2, pin_memory=False):
        batch = on_device(batch, device)

A batch is handed over as a file in memory with 8-bit frames, which become float32 on the device. PyTorch uses float32
in /dev/shm, of which a container has 64 MB by default.
"""

import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import reduction
from multiprocessing.connection import wait
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vidm.stop_signals import stop_only_with_parent

_ATTEMPTS = 3  # to load the next batch
_DEATH_S = 1.0  # from the first sign of a process's death to its exit code

Batch = dict[str, Tensor]
Keys = Iterable[list[tuple[int, int]]]


class LoadingError(ValueError):
    """Processes that load data die again and again, or cannot be started."""


class _Packed:
    """A batch as arrays, frames as uint8 (B, 3, R, R). Between processes it is a file in memory."""

    def __init__(self, samples: list[Batch]) -> None:
        stacked = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
        levels = {name: ((x + 1) * 127.5).round().byte() for name, x in stacked.items() if x.is_floating_point()}
        self.arrays = {name: x.numpy() for name, x in (stacked | levels).items()}

    def __reduce__(self) -> tuple[Any, ...]:
        # A short message is written to the queue in one call, so a process that is killed leaves no half of it there.
        try:
            descriptor = os.memfd_create("vidm-batch")
            with open(descriptor, "wb") as file:
                pickle.dump(self.arrays, file)
                file.flush()
                return _received, (reduction.DupFd(descriptor),)
        except OSError:  # a limit on the size (ulimit -f) or number of files: through the queue instead
            return _packed, (self.arrays,)

    def tensors(self, pin_memory: bool) -> Batch:
        batch = {name: torch.from_numpy(array) for name, array in self.arrays.items()}
        return {name: x.pin_memory() if pin_memory else x for name, x in batch.items()}


def _packed(arrays: dict[str, np.ndarray]) -> _Packed:
    packed = _Packed.__new__(_Packed)
    packed.arrays = arrays
    return packed


def _received(descriptor: Any) -> _Packed:
    with open(descriptor.detach(), "rb") as file:
        file.seek(0)
        return _packed(pickle.load(file))


def _started(samples: Dataset, keys: Keys, workers: int) -> Iterator[_Packed]:
    loader = DataLoader(
        samples, batch_sampler=keys, num_workers=workers, collate_fn=_Packed, worker_init_fn=stop_only_with_parent
    )
    try:
        return iter(loader)
    except OSError as error:
        raise LoadingError(
            f"{workers} data loading processes cannot be started ({error}): give fewer --workers or --workers 0, or, "
            "in a container, more shared memory (`docker run --shm-size 1g`)"
        ) from error
    finally:
        # PyTorch's handler would raise an error anywhere, even in the middle of an update of the weights.
        if workers and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _cause_of_death(processes: Iterator[_Packed]) -> str:
    """How one of the processes ended; empty if all are alive."""
    workers = getattr(processes, "_workers", [])
    ended = wait([worker.sentinel for worker in workers], timeout=_DEATH_S) if workers else []
    for number, worker in enumerate(workers, start=1):
        if worker.sentinel in ended and (worker.join(_DEATH_S) or worker.exitcode):
            code = worker.exitcode
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
            return f"data loading process {number} of {len(workers)} (pid {worker.pid}) {how}"
    return ""


def on_device(batch: Batch, device: torch.device) -> Batch:
    """A batch with frames as float32 (B, 3, R, R) in [-1, 1], on a CPU exactly those of the samples. Ours."""
    moved = {name: x.to(device, non_blocking=True) for name, x in batch.items()}
    return moved | {name: x.float() / 127.5 - 1 for name, x in moved.items() if x.dtype == torch.uint8}


def load_batches(samples: Dataset, keys_from: Callable[[int], Keys], workers: int, pin_memory: bool) -> Iterator[Batch]:
    """Yield the batches of `samples` with the keys keys_from(0), frames in 8 bits; on_device gives their floats.

    They are loaded by `workers` processes or, with 0, by this one. If a process dies, all are replaced and continue
    with the keys of keys_from(number of batches so far), which is printed. Raises LoadingError if this happens three
    times without a batch, or if they cannot be started.
    """
    done = failures = 0
    while True:
        processes = _started(samples, keys_from(done), workers)
        try:
            for packed in processes:
                yield packed.tensors(pin_memory)
                done, failures = done + 1, 0
            return
        except (RuntimeError, OSError, EOFError):
            cause = _cause_of_death(processes)
            if not cause:
                raise
        failures += 1
        advice = "perhaps memory ran out: fewer --workers need less"
        if failures == _ATTEMPTS:
            raise LoadingError(f"{cause}, the third time without a batch; {advice}")
        print(f"warning: {cause}, {advice}; new processes continue", file=sys.stderr, flush=True)
        del processes  # ends the others
