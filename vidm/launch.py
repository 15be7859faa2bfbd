"""Starts the processes of a command, and ends them when one fails.

    launch(worker, (options,), multiprocessing=True)  # calls worker(device, options) in each process

Processes of one machine meet through a file in a private folder and listen on the loopback interface only. Those of
several machines need a network that can be trusted.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import torch
import torch.multiprocessing as mp

from vidm.console import console
from vidm.distributed import Rendezvous, join, leave, loss_of_process, rank
from vidm.files import LARGEST
from vidm.runtime import exit_on_user_error
from vidm.torchrun import is_one_node, torchrun_place

LOCALHOST = Rendezvous()
MOST_NODES = 10**6
# After a process has failed, the others get this time to end, and again after SIGTERM.
_GRACE_S = 10.0
_LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"


def _selected_device(number: int) -> torch.device:
    """The GPU of that number, or the CPU if there is no GPU.

    The GPU becomes the current one, so that whatever names no device, a CUDA context included, does not use the first.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if number >= (count := torch.cuda.device_count()):
        raise ValueError(f"process {number + 1} of this machine has no GPU: start at most {count}, one for each GPU")
    device = torch.device("cuda", number)
    torch.cuda.set_device(device)
    return device


def _end(error: BaseException) -> NoReturn:
    """Print what ended the worker, and end this process.

    A regular exit would destroy the process group. NCCL then waits for the other processes, which wait for this one.
    """
    code = 1
    if isinstance(error, SystemExit):  # its message has been printed
        code = error.code if isinstance(error.code, int) else 1
    elif lost := loss_of_process(error):
        print(f"[process {rank()}] error: another process {lost}", file=sys.stderr)
        code = 2
    else:
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


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
    device = _selected_device(local_rank)
    if world_size == 1:
        worker(device, *arguments)
        return
    if one_node:
        os.environ.update(GLOO_SOCKET_IFNAME=_LOOPBACK, NCCL_SOCKET_IFNAME=_LOOPBACK)
    join(first_rank + local_rank, world_size, rendezvous, device)
    try:
        worker(device, *arguments)
    except BaseException as error:
        _end(error)
    leave()


def _run_spawned(local_rank: int, *group: Any) -> None:
    with exit_on_user_error():
        _run(local_rank, *group)


def _spawn(group: tuple[Any, ...], processes: int) -> None:
    """Call _run(local_rank, *group) in `processes` new processes; SIGTERM and SIGINT are passed on to all of them.

    If one fails, the others are ended, if need be by SIGKILL.
    """
    context = mp.spawn(_run_spawned, group, nprocs=processes, join=False)

    def pass_on(number: int, frame: object) -> None:
        for pid in context.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        while not context.join(grace_period=_GRACE_S):
            pass
    except mp.ProcessExitedException as error:
        # A process that failed has printed its error, and its exit code becomes that of the run.
        if error.exit_code > 0:
            sys.exit(error.exit_code)
        print(f"error: process {error.error_index} was killed by {error.signal_name}", file=sys.stderr)
        sys.exit(2)
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
    runs, on GPU number `gpu`, the first GPU or the CPU. If one of several processes fails, it ends at once, without
    returning to the caller. If a process dies or makes the others wait for too long, all end with a message and exit
    code 2. Raises ValueError for an unknown GPU or node, and as torchrun_place does.

    The environment variables of this process are not changed, except under torchrun with several processes on one node:
    there, as in the processes that this one starts, gloo and nccl are told to use the loopback interface.
    """
    if not 0 < rendezvous.timeout <= LARGEST:
        raise ValueError(f"--timeout {rendezvous.timeout:g}: give a number of seconds above 0, at most {LARGEST}")
    if num_nodes > MOST_NODES:
        raise ValueError(f"--world-size {num_nodes}: give at most {MOST_NODES} nodes")
    by_flags = multiprocessing and "TORCHELASTIC_RUN_ID" not in os.environ
    place = None if by_flags else torchrun_place(os.environ)
    if place:
        rank, local_rank, world_size = place
        by_torchrun = replace(rendezvous, url="env://")
        _run(local_rank, worker, arguments, rank - local_rank, world_size, by_torchrun, is_one_node(os.environ))
    elif multiprocessing:
        if not 0 <= node_rank < num_nodes:
            raise ValueError(
                f"--rank {node_rank} is not among {num_nodes} nodes: --world-size N takes ranks 0 to N - 1"
            )
        per_node = max(torch.cuda.device_count(), 1)
        if per_node == 1:
            _run(0, worker, arguments, node_rank, num_nodes, rendezvous, one_node=False)
            return
        with TemporaryDirectory(prefix="vidm-") as private:  # only this user can open it
            if num_nodes == 1:
                rendezvous = replace(rendezvous, url=f"file://{private}/meeting")
            group = (worker, arguments, node_rank * per_node, num_nodes * per_node, rendezvous, num_nodes == 1)
            _spawn(group, per_node)
    else:
        if num_nodes != 1 or node_rank != 0:
            raise ValueError("--world-size and --rank count nodes: they need --multiprocessing-distributed")
        if gpu is not None and not 0 <= gpu < torch.cuda.device_count():
            raise ValueError(f"--gpu {gpu}: this machine has {torch.cuda.device_count()} CUDA GPUs")
        worker(_selected_device(gpu or 0), *arguments)
