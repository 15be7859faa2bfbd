"""Run on one process or many with the same code. Only this module imports `torch.distributed`.

    launch(worker, (config,), multiprocessing=True)  # calls worker(device, config) in each process
    print0("printed once, whatever the number of processes")

Processes of one machine meet through a file in a private folder and listen on the loopback interface only. Those of
several machines need a network that can be trusted. What they exchange is tensors and JSON, never pickles.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import timedelta
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vidm.console import console
from vidm.exchange import decoded, encoded
from vidm.torchrun import is_one_node, torchrun_place

BACKENDS = ("nccl", "gloo")
TIMEOUT_S = 1800.0
# After a process has failed, the others get this time to end, and again after SIGTERM.
_GRACE_S = 10.0
_LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"

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


LOCALHOST = Rendezvous()


def rank() -> int:
    """This process's index among all processes, 0 if there is only one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes, 1 without a group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that prints and writes."""
    return rank() == 0


def print0(message: str) -> None:
    """Print a line once, whatever the number of processes."""
    if is_main():
        print(message, flush=True)


def pick_device(local_rank: int = 0) -> torch.device:
    """The `local_rank`-th CUDA device, or the CPU if there is no GPU."""
    return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")


def _store(url: str, rank: int, world_size: int, timeout: timedelta) -> dist.Store:
    """The store through which processes find each other.

    torchrun keeps one store over its restarts, in which a process would find the addresses of dead processes. So each
    restart on a single node uses its own keys. Nodes count their restarts separately, so several nodes need a new store
    for each restart (TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, set by scripts/train_multinode.sh).
    """
    store, _, _ = next(dist.rendezvous(url, rank, world_size, timeout=timeout))
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"restart_{restart}", store) if url == "env://" and is_one_node(os.environ) else store


def init(rank: int, world_size: int, rendezvous: Rendezvous, device: torch.device) -> None:
    """Join a group of `world_size` processes. Raises ValueError, naming the address, if it cannot be used."""
    url, backend = rendezvous.url, rendezvous.backend
    if device.type == "cpu" and backend == "nccl":
        print("no CUDA GPU here: using gloo instead of nccl")
    backend = "gloo" if device.type == "cpu" else backend or "nccl"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if rank == 0:
        print(f"waiting for {world_size} processes to connect to {url}", flush=True)
    try:
        limit = timedelta(seconds=rendezvous.timeout)
        store = _store(url, rank, world_size, limit)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=limit)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"processes cannot connect to {url} ({reason}): give another --dist-url") from error
    print0(f"{world_size} processes over {backend}, the first on {device}")


def _is_connection_error(error: RuntimeError) -> bool:
    """Whether an error means that another process died or hangs: torch has an error type for it only with nccl."""
    return isinstance(error, dist.DistBackendError) or "gloo" in str(error) or "Connection" in str(error)


def _give_up(error: RuntimeError, timeout: float) -> None:
    """Print that another process died or hangs, and exit. Whoever started the processes ends those that hang."""
    reason = str(error).strip().splitlines()[0]
    hangs = "imed out" in reason or "imeout" in reason
    what = f"hangs: no answer for {timeout:g} s (--timeout)" if hangs else "died; its error may be printed above"
    print(f"[process {rank()}] error: another process {what} [{reason}]", file=sys.stderr, flush=True)
    # A regular exit would destroy the process group, which waits for the other processes.
    os._exit(2)


@console()
def _run(
    local_rank: int,
    worker: Callable[..., None],
    arguments: Sequence[Any],
    first_rank: int,
    world_size: int,
    rendezvous: Rendezvous,
    one_node: bool,
) -> None:
    """Join a group of processes, call the worker, and leave the group; a single process is not a group."""
    device = pick_device(local_rank)
    if world_size == 1:
        worker(device, *arguments)
        return
    if one_node:
        os.environ.update(GLOO_SOCKET_IFNAME=_LOOPBACK, NCCL_SOCKET_IFNAME=_LOOPBACK)
    init(first_rank + local_rank, world_size, rendezvous, device)
    try:
        worker(device, *arguments)
    except RuntimeError as error:
        if _is_connection_error(error):
            _give_up(error, rendezvous.timeout)
        raise
    finally:
        dist.destroy_process_group()


def _spawn(group: tuple[Any, ...], processes: int) -> None:
    """Call _run(local_rank, *group) in `processes` new processes; SIGTERM and SIGINT are passed on to all of them.

    If one fails, the others are ended, if need be by SIGKILL.
    """
    context = mp.spawn(_run, group, nprocs=processes, join=False)

    def pass_on(number: int, frame: object) -> None:
        for pid in context.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        while not context.join(grace_period=_GRACE_S):
            pass
    except mp.ProcessExitedException as error:
        # The process has printed its error; its exit code becomes that of the run.
        sys.exit(error.exit_code)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def launch(
    worker: Callable[..., None],
    arguments: Sequence[Any],
    multiprocessing: bool = False,
    num_nodes: int = 1,
    node_rank: int = 0,
    gpu: int | None = None,
    rendezvous: Rendezvous = LOCALHOST,
) -> None:
    """Call worker(device, *arguments) in this process, or in one process per GPU.

    Under torchrun, its environment variables define the processes. With `multiprocessing`, one process per GPU (a
    single process without GPUs) runs on this node, number `node_rank` of `num_nodes`. Otherwise, only this process
    runs, on GPU number `gpu`, the first GPU or the CPU. If a process dies or makes the others wait for too long, all
    end with a message and exit code 2. Raises ValueError for an unknown GPU or node, and as torchrun_place does.

    The environment variables of this process are not changed, except under torchrun with several processes on one node:
    there, as in the processes that this one starts, gloo and nccl are told to use the loopback interface.
    """
    if not 0 < rendezvous.timeout < float("inf"):
        raise ValueError(f"--timeout {rendezvous.timeout:g}: give a number of seconds above 0")
    by_flags = multiprocessing and "TORCHELASTIC_RUN_ID" not in os.environ
    place = None if by_flags else torchrun_place(os.environ)
    if place:
        rank, local_rank, world_size = place
        by_torchrun = replace(rendezvous, url="env://")
        _run(local_rank, worker, arguments, rank - local_rank, world_size, by_torchrun, is_one_node(os.environ))
    elif multiprocessing:
        per_node = max(torch.cuda.device_count(), 1)
        if not 0 <= node_rank < num_nodes:
            raise ValueError(
                f"--rank {node_rank} is not among {num_nodes} nodes: --world-size N takes ranks 0 to N - 1"
            )
        with TemporaryDirectory(prefix="vidm-") as private:  # only this user can open it
            if num_nodes == 1:
                rendezvous = replace(rendezvous, url=f"file://{private}/meeting")
            group = (worker, arguments, node_rank * per_node, num_nodes * per_node, rendezvous, num_nodes == 1)
            if per_node == 1:
                _run(0, *group)
            else:
                _spawn(group, per_node)
    else:
        if num_nodes != 1 or node_rank != 0:
            raise ValueError("--world-size and --rank count nodes: they need --multiprocessing-distributed")
        if gpu is not None and not 0 <= gpu < torch.cuda.device_count():
            raise ValueError(f"--gpu {gpu}: this machine has {torch.cuda.device_count()} CUDA GPUs")
        worker(pick_device(gpu or 0), *arguments)


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenate every process's rows (n, ...), n equal everywhere, in order of rank -> (world_size * n, ...)."""
    if world_size() == 1:
        return rows
    gathered = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(gathered, rows.contiguous())
    return torch.cat(gathered)


def _gather_bytes(message: bytes) -> list[bytes]:
    """The message of every process, in order of rank."""
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    lengths = gather_rows(torch.tensor([len(message)], device=device)).tolist()
    padded = torch.frombuffer(bytearray(message.ljust(max(lengths))), dtype=torch.uint8)
    rows = gather_rows(padded[None].to(device)).cpu().numpy()
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
    """Wait until every process calls this."""
    if dist.is_initialized():
        dist.barrier()


def data_parallel(model: nn.Module) -> nn.Module:
    """The model, wrapped such that backward averages its gradients over all processes."""
    if not dist.is_initialized():
        return model
    # Gradients are views of the buckets that are reduced, which saves a copy. The buffers, SPyNet's, are constants.
    return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)


@contextmanager
def gradients_kept_local(model: nn.Module, local: bool) -> Iterator[None]:
    """With `local`, backward only accumulates gradients; they are reduced with the last micro-batch of a step."""
    with model.no_sync() if local and isinstance(model, DistributedDataParallel) else nullcontext():
        yield


def any_process(flags: Sequence[bool | Tensor], device: torch.device) -> list[bool]:
    """For each flag, whether it is true in any process; all processes must call this."""
    joined = torch.tensor([float(flag) for flag in flags], device=device)
    if world_size() > 1:
        dist.all_reduce(joined, op=dist.ReduceOp.MAX)
    return [value > 0 for value in joined.tolist()]
