"""The same code on one process or many. Only this module imports `torch.distributed`.

    print0("printed once, whatever the number of processes")
    paths = on_main(lambda: list_paths(folder))  # read by one process, known to all

What processes exchange is tensors and JSON, never pickles. Gradients go over nccl between GPUs. All else is on the CPU
and goes over gloo: if another process died or hangs, gloo raises an error, whereas nccl would end this process from
another thread, without a message of ours.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from inspect import signature
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vidm.exchange import decoded, encoded
from vidm.torchrun import is_one_node

BACKENDS = ("nccl", "gloo")
TIMEOUT_S = 1800.0
_FOREVER = timedelta(days=10_000)
# A step's gradients are sent before its flags. If both had the same limit, nccl's would end first.
_NCCL_WAITS_LONGER = timedelta(seconds=60)
# What errors of gloo, and of a wait that is too long, contain.
_LOSSES = ("gloo", "Connection", "Operation timed out")
# What errors of nccl contain if this process is their cause, and not another one.
_OWN_ERRORS = ("ncclUnhandledCudaError", "ncclInvalidArgument", "ncclInvalidUsage")
# How long this process waits for the others: Rendezvous.timeout.
_limit = timedelta(seconds=TIMEOUT_S)

T = TypeVar("T")


@dataclass(frozen=True)
class Rendezvous:
    """How processes connect: the address, the backend, and how long they wait for each other.

    The address is for the processes of several nodes; those of one node need none. `backend` None is nccl on GPUs and
    gloo on the CPU. Waiting for more than `timeout` seconds, at the start or later, ends the run.
    """

    url: str = "tcp://localhost:10001"
    backend: str | None = None
    timeout: float = TIMEOUT_S


def rank() -> int:
    """This process's index among all processes, 0 if there is only one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes, 1 without a group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that prints and writes."""
    return rank() == 0


def print0(*lines: str) -> None:
    """Print lines once, whatever the number of processes."""
    if is_main():
        print(*lines, sep="\n", flush=True)


def _store(url: str, rank: int, world_size: int, timeout: timedelta) -> dist.Store:
    """The store through which processes find each other.

    torchrun keeps one store over its restarts, in which a process would find the addresses of dead processes. So each
    restart on a single node uses its own keys. Nodes count their restarts separately, so several nodes need a new store
    for each restart (TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, set by scripts/train_multinode.sh).
    """
    store, _, _ = next(dist.rendezvous(url, rank, world_size, timeout=timeout))
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"restart_{restart}", store) if url == "env://" and is_one_node(os.environ) else store


def join(rank: int, world_size: int, rendezvous: Rendezvous, device: torch.device) -> None:
    """Join a group of `world_size` processes. Raises ValueError, naming the address, if it cannot be used."""
    global _limit
    url, backend = rendezvous.url, rendezvous.backend
    if device.type == "cpu" and backend == "nccl":
        print("no CUDA GPU here: using gloo instead of nccl")
    backend = "gloo" if device.type == "cpu" else backend or "nccl"
    if rank == 0:
        print(f"waiting for {world_size} processes to connect to {url}", flush=True)
    _limit = timedelta(seconds=rendezvous.timeout)
    options: dict[str, Any] = {"backend": backend, "timeout": _limit}
    if backend == "nccl":
        options = {"backend": "cpu:gloo,cuda:nccl", "timeout": _limit + _NCCL_WAITS_LONGER, "device_id": device}
    try:
        store = _store(url, rank, world_size, _limit)
        dist.init_process_group(**options, store=store, rank=rank, world_size=world_size)
    except dist.DistBackendError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"nccl cannot be started ({reason}); with NCCL_DEBUG=INFO it says more") from error
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"processes cannot connect to {url} ({reason}): give another --dist-url") from error
    print0(f"{world_size} processes over {backend}, the first on {device}")


def leave() -> None:
    """Leave the group, once all that it was joined for is done: NCCL may wait for the other processes here."""
    dist.destroy_process_group()


def loss_of_process(error: BaseException) -> str:
    """What happened to another process, if an error means that it died or hangs; otherwise an empty string."""
    text = str(error).strip()
    # torch has an error type for it only with nccl.
    of_nccl = isinstance(error, dist.DistBackendError) and not any(word in text for word in _OWN_ERRORS)
    lost = of_nccl or any(word in text for word in _LOSSES)
    if not (isinstance(error, RuntimeError) and lost):
        return ""
    reason = text.splitlines()[0]
    hangs = "imed out" in reason or "imeout" in reason
    silence = f"hangs: no answer for {_limit.total_seconds():g} s (--timeout)"
    return f"{silence if hangs else 'died; its error may be printed above'} [{reason.split('. ')[0]}]"


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenate the rows (n, ...) of all processes, n equal everywhere, in order of rank: (world_size * n, ...).

    The result is on the CPU.
    """
    rows = rows.cpu().contiguous()
    if world_size() == 1:
        return rows
    gathered = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(gathered, rows, async_op=True).wait(_limit)
    return torch.cat(gathered)


def _gather_bytes(message: bytes) -> list[bytes]:
    """The message of every process, in order of rank."""
    lengths = gather_rows(torch.tensor([len(message)])).tolist()
    padded = torch.frombuffer(bytearray(message.ljust(max(lengths))), dtype=torch.uint8)
    rows = gather_rows(padded[None]).numpy()
    return [row[:length].tobytes() for row, length in zip(rows, lengths, strict=True)]


def gather_results(work: Callable[[], T], *records: type) -> list[T]:
    """The results of work() in all processes, in order of rank; a ValueError or OSError in one is raised in all.

    They are exchanged as JSON (vidm.exchange): `records` are the dataclasses and NamedTuples in them.
    """
    outcome: T | Exception
    try:
        outcome = work()
    except (ValueError, OSError) as error:
        outcome = error
    outcomes = [outcome]
    if world_size() > 1:
        outcomes = [decoded(message, records) for message in _gather_bytes(encoded(outcome, records))]
        outcomes[rank()] = outcome
    for each in outcomes:
        if isinstance(each, Exception):
            raise each
    return outcomes  # type: ignore[return-value]


_on_main_already: ContextVar[bool] = ContextVar("_on_main_already", default=False)


def on_main(work: Callable[[], T], *records: type) -> T:
    """The result of work(), which only the main process calls; a ValueError or OSError in it is raised in all.

    All processes call this; `records` are those of gather_results. `work` may itself call on_main: the other processes
    are already waiting for the outer result, so the inner work runs directly.
    """
    if _on_main_already.get():
        return work()

    def alone() -> T:
        token = _on_main_already.set(True)
        try:
            return work()
        finally:
            _on_main_already.reset(token)

    return gather_results(lambda: alone() if is_main() else None, *records)[0]  # type: ignore[return-value]


def barrier() -> None:
    """Wait until every process calls this, however long that takes. Raises RuntimeError if one of them dies."""
    token, others = torch.zeros(1), [n for n in range(world_size()) if n != rank()]
    for work in [dist.isend(token, n) for n in others] + [dist.irecv(torch.zeros(1), n) for n in others]:
        assert work, "this process belongs to the group"
        work.wait(_FOREVER)


def data_parallel(model: nn.Module) -> nn.Module:
    """The model, wrapped such that backward averages its gradients over all processes."""
    if not dist.is_initialized():
        return model
    # Gradients are views of the buckets that are reduced, which saves a copy. The buffers, SPyNet's, are constants.
    parameters = signature(DistributedDataParallel).parameters
    of_buffers = next(name for name in ("forward_sync_buffers", "broadcast_buffers") if name in parameters)
    return DistributedDataParallel(model, gradient_as_bucket_view=True, **{of_buffers: False})  # type: ignore[arg-type]


@contextmanager
def gradients_kept_local(model: nn.Module, local: bool) -> Iterator[None]:
    """With `local`, backward only accumulates gradients; they are reduced with the last micro-batch of a step."""
    with model.no_sync() if local and isinstance(model, DistributedDataParallel) else nullcontext():
        yield


def any_process(flag: bool) -> bool:
    """Whether the flag is true in any process; all processes must call this."""
    return bool(gather_rows(torch.tensor([flag])).any())
