"""One process or many without the caller knowing. `torch.distributed` is imported here alone.

launch(worker, (config,), multiprocessing=True)  # calls worker(device, config) in each process
print0("said once, whatever the number of processes")
"""

import os
import signal
import socket
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

BACKENDS = ("nccl", "gloo")
TIMEOUT_S = 1800.0

T = TypeVar("T")


def rank() -> int:
    """This process's place among all, 0 when alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes work together, 1 when alone."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process is the one that prints and writes."""
    return rank() == 0


def print0(message: str) -> None:
    """Print a line once, whatever the number of processes."""
    if is_main():
        print(message, flush=True)


def pick_device(local_rank: int = 0) -> torch.device:
    """The `local_rank`-th CUDA device, or the CPU where there is none."""
    return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")


def _meeting_place(dist_url: str, rank: int, world_size: int, timeout: timedelta) -> dist.Store:
    """The store through which processes find each other.

    torchrun keeps one store over its restarts, in which a process would find the addresses of those that died. So each
    restart of a single node has keys of its own; nodes count their restarts apart, and several of them need new stores
    (TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, as scripts/train_multinode.sh has it).
    """
    store, _, _ = next(dist.rendezvous(dist_url, rank, world_size, timeout=timeout))
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    alone = dist_url == "env://" and os.environ.get("GROUP_WORLD_SIZE") == "1"
    return dist.PrefixStore(f"restart_{restart}", store) if alone else store


def init(
    rank: int,
    world_size: int,
    dist_url: str,
    backend: str | None,
    device: torch.device,
    timeout: float = TIMEOUT_S,
) -> None:
    """Join a group of processes that meet at `dist_url`; nccl on GPUs, gloo on the CPU.

    Who waits for another for more than `timeout` seconds, to meet or later, gives up. Raises ValueError when the
    address cannot be used, naming it.
    """
    if device.type == "cpu" and backend == "nccl":
        print("no CUDA GPU here: using gloo instead of nccl")
    backend = "gloo" if device.type == "cpu" else backend or "nccl"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if rank == 0 and world_size > 1:
        print(f"waiting for {world_size} processes to meet at {dist_url}", flush=True)
    try:
        limit = timedelta(seconds=timeout)
        store = _meeting_place(dist_url, rank, world_size, limit)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=limit)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"processes cannot meet at {dist_url} ({reason}): give another --dist-url") from error
    print0(f"{world_size} process{'es' * (world_size > 1)} over {backend}, the first on {device}")


def _is_of_a_lost_process(error: RuntimeError) -> bool:
    """Whether an error is what talking to a process that died, or hangs, raises: torch has a type for nccl's alone."""
    return isinstance(error, dist.DistBackendError) or "gloo" in str(error) or "Connection" in str(error)


def _give_up(error: RuntimeError, peers: Tensor, timeout: float) -> None:
    """Say that another process is lost and leave; those that hang on this host are ended first.

    A launcher asks a hung process to end, and waits long for it to do so: it may be one that is stopped.
    """
    reason = str(error).strip().splitlines()[0]
    hangs = "imed out" in reason or "imeout" in reason
    what = f"hangs: nothing came from it for {timeout:g} s (--timeout)" if hangs else "died; it may have said why above"
    print(f"[process {rank()}] error: another process {what} [{reason}]", file=sys.stderr, flush=True)
    if hangs:
        own_host, own_pid = peers[rank()].tolist()
        for host, pid in peers.tolist():
            if host == own_host and pid != own_pid:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    # Leaving the group in order would wait for the others.
    os._exit(2)


def _run(
    local_rank: int,
    worker: Callable[..., None],
    arguments: Sequence[Any],
    first_rank: int,
    world_size: int,
    dist_url: str,
    backend: str | None,
    timeout: float,
) -> None:
    """One process of a group: join, work, leave."""
    device = pick_device(local_rank)
    init(first_rank + local_rank, world_size, dist_url, backend, device, timeout)
    host = zlib.crc32(socket.gethostname().encode())
    peers = gather_rows(torch.tensor([[host, os.getpid()]], device=device)).cpu()
    try:
        worker(device, *arguments)
    except RuntimeError as error:
        if world_size > 1 and _is_of_a_lost_process(error):
            _give_up(error, peers, timeout)
        raise
    finally:
        dist.destroy_process_group()


def _spawn(group: tuple[Any, ...], processes: int) -> None:
    """Run `processes` times _run(local_rank, *group) side by side; signals to stop go to all of them."""
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
        # The process has said why; its exit code is the whole run's.
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
    dist_url: str = "tcp://localhost:10001",
    backend: str | None = None,
    gpu: int | None = None,
    timeout: float = TIMEOUT_S,
) -> None:
    """Call worker(device, *arguments) in this process, or in one process per GPU.

    Under torchrun its environment decides. With `multiprocessing`, one process per GPU (one in all on a CPU) runs on
    this node, which is number `node_rank` of `num_nodes`; they meet at `dist_url`. Otherwise `gpu`, the first GPU or
    the CPU is used, alone. A process that dies, or lets the others wait for more than `timeout` seconds, ends them all
    with a message and exit code 2. No environment variable is changed. Raises ValueError for a GPU that is not there.
    """
    if not 0 < timeout < float("inf"):
        raise ValueError(f"--timeout {timeout:g}: give a number of seconds above 0")
    if "RANK" in os.environ and "LOCAL_RANK" in os.environ:
        local, first = int(os.environ["LOCAL_RANK"]), int(os.environ["RANK"]) - int(os.environ["LOCAL_RANK"])
        _run(local, worker, arguments, first, int(os.environ["WORLD_SIZE"]), "env://", backend, timeout)
    elif multiprocessing:
        per_node = max(torch.cuda.device_count(), 1)
        if not 0 <= node_rank < num_nodes:
            raise ValueError(
                f"--rank {node_rank} is not among {num_nodes} nodes: --world-size N takes ranks 0 to N - 1"
            )
        group = (worker, arguments, node_rank * per_node, num_nodes * per_node, dist_url, backend, timeout)
        if per_node == 1:
            _run(0, *group)
        else:
            _spawn(group, per_node)
    else:
        if num_nodes != 1 or node_rank != 0:
            raise ValueError("--world-size and --rank count nodes: they need --multiprocessing-distributed")
        if gpu is not None and not 0 <= gpu < torch.cuda.device_count():
            raise ValueError(f"--gpu {gpu}: there are {torch.cuda.device_count()} CUDA GPUs here")
        worker(pick_device(gpu or 0), *arguments)


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenate every process's rows (n, ...), n equal everywhere, in order of rank -> (world_size * n, ...)."""
    if world_size() == 1:
        return rows
    gathered = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(gathered, rows.contiguous())
    return torch.cat(gathered)


def gather_objects(thing: T) -> list[T]:
    """Every process's thing (anything that pickles), in order of rank, in every process."""
    if world_size() == 1:
        return [thing]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, thing)
    return gathered


def gather_results(work: Callable[[], T]) -> list[T]:
    """What work() returns in every process, in order of rank; an error of the user's in one is raised in all."""
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
    """What work() returns, run by the main process alone; where it raises an error of the user's, all processes do.

    All processes call this. Work that runs this way may itself call on_main: the other processes are waiting for the
    outer result, so the inner work just runs.
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
    """Wait until every process has come here."""
    if dist.is_initialized():
        dist.barrier()


def data_parallel(model: nn.Module) -> nn.Module:
    """The model, such that backward averages its gradients over all processes."""
    if not dist.is_initialized():
        return model
    return DistributedDataParallel(model)


@contextmanager
def gradients_kept_local(model: nn.Module, local: bool) -> Iterator[None]:
    """While `local`, backward only adds up: the all-reduce waits for the last micro-batch of a step."""
    with model.no_sync() if local and isinstance(model, DistributedDataParallel) else nullcontext():
        yield


def any_process(flags: Sequence[bool | Tensor], device: torch.device) -> list[bool]:
    """For each flag, whether it is true in any process; all must ask."""
    joined = torch.tensor([float(flag) for flag in flags], device=device)
    if world_size() > 1:
        dist.all_reduce(joined, op=dist.ReduceOp.MAX)
    return [value > 0 for value in joined.tolist()]
