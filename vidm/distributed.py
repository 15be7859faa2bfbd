"""Run on one process or many with the same code. Only this module imports `torch.distributed`.

launch(worker, (config,), multiprocessing=True)  # calls worker(device, config) in each process
print0("printed once, whatever the number of processes")
"""

import os
import signal
import socket
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

BACKENDS = ("nccl", "gloo")
TIMEOUT_S = 1800.0
_TORCHRUN_ANSWERS_S = 20.0

T = TypeVar("T")


@dataclass(frozen=True)
class Rendezvous:
    """How processes connect: the address, the backend, and how long they wait for each other.

    `backend` None is nccl on GPUs and gloo on the CPU. Waiting for more than `timeout` seconds, at the start or later,
    ends the run.
    """

    url: str = "tcp://localhost:10001"
    backend: str | None = None
    timeout: float = TIMEOUT_S


LOCALHOST = Rendezvous()


# Set by torchrun, and by users and other programs in whose shell they may have remained.
_NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
_LAUNCHER = (*_NUMBERS, "MASTER_ADDR")


def torchrun_place(environment: Mapping[str, str]) -> tuple[int, int, int] | None:
    """This process's (rank, local rank, world size) if torchrun started it, None if it was started by hand.

    torchrun is recognised by TORCHELASTIC_RUN_ID. Raises ValueError, naming the variables to unset, if others ask for
    several processes, if torchrun's are incomplete, or if it does not answer. Ours.
    """
    given = [name for name in ("TORCHELASTIC_RUN_ID", *_LAUNCHER) if name in environment]
    advice = f"start the command with torchrun, or run: unset {' '.join(given)}"
    if "TORCHELASTIC_RUN_ID" not in environment:
        if environment.get("WORLD_SIZE", "1") not in ("", "1"):
            raise ValueError(f"WORLD_SIZE is {environment['WORLD_SIZE']} without torchrun: {advice}")
        return None
    values = ", ".join(f"{name}={environment.get(name, 'missing')}" for name in _LAUNCHER)
    try:
        rank, world_size, local_rank, port = (int(environment[name]) for name in _NUMBERS)
        address = environment["MASTER_ADDR"], port
        if not 0 <= local_rank <= rank < world_size:
            raise ValueError
        if environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # torchrun listens before it starts processes
            socket.create_connection(address, _TORCHRUN_ANSWERS_S).close()
    except OSError as error:
        raise ValueError(f"torchrun does not answer ({values}: {error}): {advice}") from error
    except (KeyError, ValueError):
        raise ValueError(f"torchrun's variables are incomplete or contradict each other ({values}): {advice}") from None
    return rank, local_rank, world_size


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
    single_node = url == "env://" and os.environ.get("GROUP_WORLD_SIZE") == "1"
    return dist.PrefixStore(f"restart_{restart}", store) if single_node else store


def init(rank: int, world_size: int, rendezvous: Rendezvous, device: torch.device) -> None:
    """Join a group of `world_size` processes. Raises ValueError, naming the address, if it cannot be used."""
    url, backend = rendezvous.url, rendezvous.backend
    if device.type == "cpu" and backend == "nccl":
        print("no CUDA GPU here: using gloo instead of nccl")
    backend = "gloo" if device.type == "cpu" else backend or "nccl"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if rank == 0 and world_size > 1:
        print(f"waiting for {world_size} processes to connect to {url}", flush=True)
    try:
        limit = timedelta(seconds=rendezvous.timeout)
        store = _store(url, rank, world_size, limit)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=limit)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"processes cannot connect to {url} ({reason}): give another --dist-url") from error
    print0(f"{world_size} process{'es' * (world_size > 1)} over {backend}, the first on {device}")


def _is_connection_error(error: RuntimeError) -> bool:
    """Whether an error means that another process died or hangs: torch has an error type for it only with nccl."""
    return isinstance(error, dist.DistBackendError) or "gloo" in str(error) or "Connection" in str(error)


def _give_up(error: RuntimeError, peers: Tensor, timeout: float) -> None:
    """Print that another process died or hangs, and exit.

    If one hangs, the run's other processes on this host are killed first: a launcher would wait for long.
    """
    reason = str(error).strip().splitlines()[0]
    hangs = "imed out" in reason or "imeout" in reason
    what = f"hangs: no answer for {timeout:g} s (--timeout)" if hangs else "died; its error may be printed above"
    print(f"[process {rank()}] error: another process {what} [{reason}]", file=sys.stderr, flush=True)
    if hangs:
        own_host, own_pid = peers[rank()].tolist()
        for host, pid in peers.tolist():
            if host == own_host and pid != own_pid:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    # A regular exit would destroy the process group, which waits for the other processes.
    os._exit(2)


def _run(
    local_rank: int,
    worker: Callable[..., None],
    arguments: Sequence[Any],
    first_rank: int,
    world_size: int,
    rendezvous: Rendezvous,
) -> None:
    """Join a group of processes, call the worker, and leave the group."""
    device = pick_device(local_rank)
    init(first_rank + local_rank, world_size, rendezvous, device)
    host = zlib.crc32(socket.gethostname().encode())
    peers = gather_rows(torch.tensor([[host, os.getpid()]], device=device)).cpu()
    try:
        worker(device, *arguments)
    except RuntimeError as error:
        if world_size > 1 and _is_connection_error(error):
            _give_up(error, peers, rendezvous.timeout)
        raise
    finally:
        dist.destroy_process_group()


def _spawn(group: tuple[Any, ...], processes: int) -> None:
    """Call _run(local_rank, *group) in `processes` new processes; SIGTERM and SIGINT are passed on to all of them."""
    context = mp.spawn(_run, group, nprocs=processes, join=False)

    def pass_on(number: int, frame: object) -> None:
        for pid in context.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        while not context.join():
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
    end with a message and exit code 2. Environment variables are not changed. Raises ValueError for an unknown GPU or
    node, and as torchrun_place does.
    """
    if not 0 < rendezvous.timeout < float("inf"):
        raise ValueError(f"--timeout {rendezvous.timeout:g}: give a number of seconds above 0")
    by_flags = multiprocessing and "TORCHELASTIC_RUN_ID" not in os.environ
    place = None if by_flags else torchrun_place(os.environ)
    if place:
        rank, local_rank, world_size = place
        _run(local_rank, worker, arguments, rank - local_rank, world_size, replace(rendezvous, url="env://"))
    elif multiprocessing:
        per_node = max(torch.cuda.device_count(), 1)
        if not 0 <= node_rank < num_nodes:
            raise ValueError(
                f"--rank {node_rank} is not among {num_nodes} nodes: --world-size N takes ranks 0 to N - 1"
            )
        group = (worker, arguments, node_rank * per_node, num_nodes * per_node, rendezvous)
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


def gather_objects(thing: T) -> list[T]:
    """The `thing` (any picklable object) of every process, in order of rank."""
    if world_size() == 1:
        return [thing]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, thing)
    return gathered


def gather_results(work: Callable[[], T]) -> list[T]:
    """The results of work() in all processes, in order of rank; a ValueError or OSError in one is raised in all."""
    try:
        outcome: tuple[Any, Exception | None] = (work(), None)
    except (ValueError, OSError) as error:
        outcome = (None, error)
    gathered = gather_objects(outcome)
    for _, failure in gathered:
        if failure is not None:
            raise failure
    return [result for result, _ in gathered]


_on_main_already: ContextVar[bool] = ContextVar("_on_main_already", default=False)


def on_main(work: Callable[[], T]) -> T:
    """The result of work(), which only the main process calls; a ValueError or OSError in it is raised in all.

    All processes call this. `work` may itself call on_main: the other processes are already waiting for the outer
    result, so the inner work runs directly.
    """
    if _on_main_already.get():
        return work()

    def alone() -> T:
        token = _on_main_already.set(True)
        try:
            return work()
        finally:
            _on_main_already.reset(token)

    return gather_results(lambda: alone() if is_main() else None)[0]  # type: ignore[return-value]


def barrier() -> None:
    """Wait until every process calls this."""
    if dist.is_initialized():
        dist.barrier()


def data_parallel(model: nn.Module) -> nn.Module:
    """The model, wrapped such that backward averages its gradients over all processes."""
    if not dist.is_initialized():
        return model
    return DistributedDataParallel(model)


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
