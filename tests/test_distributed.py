"""Tests of running as one process or many."""

import multiprocessing
import os
import re
import socket
import subprocess
import sys
import time
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.multiprocessing import ProcessExitedException

from vidm import distributed
from vidm.distributed import (
    Rendezvous,
    any_process,
    barrier,
    gather_results,
    gather_rows,
    join,
    loss_of_process,
    on_main,
    rank,
    world_size,
)
from vidm.launch import launch
from vidm.runtime import exit_on_user_error
from vidm.video_io import VideoError

# Starts processes in milliseconds: they are forked from a process that has imported everything.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["vidm.distributed", "vidm.video_io"])


def record(device, seen):
    seen.append((device.type, rank(), world_size()))


def test_a_single_process_runs_without_a_group():
    seen = []
    launch(record, (seen,))
    assert seen == [("cpu", 0, 1)]
    rows = torch.arange(3)
    assert gather_rows(rows) is rows


def test_the_original_spawn_flags_run_one_process_on_a_cpu(capsys):
    seen = []
    launch(record, (seen,), multiprocessing=True, rendezvous=Rendezvous(backend="nccl"))
    assert seen == [("cpu", 0, 1)]
    assert capsys.readouterr().out == ""


def test_the_message_that_another_process_died_is_escaped(monkeypatch, capsys):
    def worker(device):
        raise RuntimeError("Connection to \x1b[2J\udce4 closed")

    monkeypatch.setattr("vidm.launch.join", lambda *_: None)
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit, match="2"):
        launch(worker, (), multiprocessing=True, num_nodes=2)
    assert "another process died" in (printed := capsys.readouterr().err)
    assert printed.endswith(r"[Connection to \x1b[2J\udce4 closed]" + "\n")


def on_one_of_two(node_rank, folder, results, act, timeout):
    """Put (rank, act()) into the queue, and errors into a file."""

    def worker(device):
        results.put((rank(), act()))

    rendezvous = Rendezvous(f"file://{folder / 'store'}", timeout=timeout)
    sys.stderr = (folder / f"stderr{node_rank}").open("w")
    launch(worker, (), multiprocessing=True, num_nodes=2, node_rank=node_rank, rendezvous=rendezvous)


def started(tmp_path, act, timeout=60.0):
    """Two processes that call act(), and the queue of their results."""
    results = CONTEXT.Queue()
    arguments = (tmp_path, results, act, timeout)
    processes = [CONTEXT.Process(target=on_one_of_two, args=(node_rank, *arguments)) for node_rank in (0, 1)]
    for process in processes:
        process.start()
    return processes, results


def on_two(tmp_path, act, timeout=60.0):
    """What act() returns in two processes, in order of rank."""
    processes, results = started(tmp_path, act, timeout)
    found = sorted(results.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
    return [result for _, result in found]


def ends_of_two(tmp_path, act):
    """The exit codes of two processes that call act(), and their errors."""
    processes, _ = started(tmp_path, act)
    for process in processes:
        process.join(30)
    return [process.exitcode for process in processes], [(tmp_path / f"stderr{n}").read_text() for n in (0, 1)]


def exchange():
    def fail(error, where):
        if rank() in where:
            raise error
        return "result"

    def message_of(work):
        try:
            return work()
        except (ValueError, OSError) as error:
            return type(error).__name__, str(error)

    return [
        world_size(),
        gather_rows(torch.tensor([rank(), 10 + rank()])).tolist(),
        gather_results(lambda: {"rank": rank(), "path": Path("a" * (1 + 1000 * rank()))}),
        on_main(lambda: [(Path("only main"), rank())]),
        on_main(lambda: on_main(lambda: 1 / 3)),
        message_of(lambda: on_main(lambda: fail(FileNotFoundError("no such file: x"), [0]))),
        message_of(lambda: gather_results(lambda: fail(ValueError("bad clip"), [1]))),
        on_main(lambda: "still in step"),
    ]


def test_two_nodes_form_one_group_and_get_the_same_results(tmp_path):
    expected = [
        2,
        [0, 10, 1, 11],
        [{"rank": 0, "path": Path("a")}, {"rank": 1, "path": Path("a" * 1001)}],
        [(Path("only main"), 0)],
        1 / 3,
        ("FileNotFoundError", "no such file: x"),
        ("ValueError", "bad clip"),
        "still in step",
    ]
    assert on_two(tmp_path, exchange) == [expected, expected]


def refuse_a_video():
    def read():
        raise VideoError("a.mp4 is damaged")

    try:
        on_main(read)
    except ValueError as error:
        return isinstance(error, VideoError), str(error)


def test_an_error_keeps_its_type_where_it_was_raised(tmp_path):
    assert on_two(tmp_path, refuse_a_video) == [(True, "a.mp4 is damaged"), (False, "a.mp4 is damaged")]


class Program:
    """A pickle of this is a program: loading it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def send_pickles(path):
    if rank() == 1:
        with suppress(Exception):
            torch.distributed.all_gather_object([None, None], Program(path))
        return None
    try:
        return on_main(lambda: "result")
    except ValueError as error:
        return str(error)


def test_a_pickle_that_a_process_sends_is_not_run(tmp_path):
    refused, _ = on_two(tmp_path, partial(send_pickles, tmp_path / "written"))
    assert refused == "another process sent what this one cannot read: run one version of vidm in all"
    assert not (tmp_path / "written").exists()


def fail_in_one(error):
    # As with nccl: it waits for the other process, which waits for this one.
    torch.distributed.destroy_process_group = partial(time.sleep, 3600)
    torch.distributed.barrier()  # both have joined: one that dies before is an address that cannot be used
    if rank() == 1:
        with exit_on_user_error():
            raise error
    gather_rows(torch.zeros(1))


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [(ValueError("bad clip"), 2, "error: bad clip"), (KeyError("a bug"), 1, "KeyError: 'a ")],
)
def test_a_process_that_fails_prints_its_error_and_ends_without_waiting_for_the_others(tmp_path, error, code, message):
    codes, errors = ends_of_two(tmp_path, partial(fail_in_one, error))
    assert codes == [2, code]
    assert message in errors[1]
    assert errors[0].startswith("[process 0] error: another process died; its error may be printed above [")
    assert errors[0].isascii()  # without gloo's advice, which ends in an emoji


@pytest.mark.slow
def test_a_started_process_that_cannot_connect_ends_with_one_line(tmp_path):
    with socket.create_server(("localhost", 0)) as taken:
        url = f"tcp://localhost:{taken.getsockname()[1]}"
        code = (
            "from vidm.distributed import Rendezvous; from vidm.launch import _spawn\n"
            f"if __name__ == '__main__': _spawn((print, (), 0, 2, Rendezvous('{url}', timeout=5), True), 2)"
        )
        (tmp_path / "script.py").write_text(code)
        done = subprocess.run(
            [sys.executable, str(tmp_path / "script.py")], capture_output=True, text=True, timeout=120
        )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert re.search(rf"^error: processes cannot connect to {url} \(.*\): give another --dist-url$", done.stderr, re.M)


def test_an_error_of_nccl_at_the_start_is_shown_whole(monkeypatch, tmp_path):
    def fail(**_):
        raise torch.distributed.DistBackendError("NCCL error in: NCCLUtils.cpp:94\nCuda failure 2 'out of memory'")

    monkeypatch.setattr(torch.distributed, "init_process_group", fail)
    message = (
        r"nccl cannot be started \(NCCL error in: NCCLUtils.cpp:94 Cuda failure 2 'out of memory'\); with NCCL_DEBUG"
    )
    with pytest.raises(ValueError, match=message):
        join(0, 2, Rendezvous(f"file://{tmp_path}/store"), torch.device("cpu"))


def test_an_error_of_nccl_means_a_lost_process_unless_this_process_caused_it():
    def lost(kind):
        return loss_of_process(torch.distributed.DistBackendError(f"NCCL error in: NCCLUtils.cpp:94\n{kind}: reason"))

    assert lost("ncclRemoteError").startswith("died")
    assert lost("ncclSystemError").startswith("died")
    assert lost("ncclUnhandledCudaError") == lost("ncclInvalidUsage") == ""


def test_a_process_that_a_signal_ended_is_named_and_the_exit_code_is_2(monkeypatch, capsys):
    def join(grace_period):
        raise ProcessExitedException("", error_index=1, error_pid=7, exit_code=-6, signal_name="SIGABRT")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr("torch.multiprocessing.spawn", lambda *_, **__: SimpleNamespace(join=join, pids=list))
    with pytest.raises(SystemExit, match="2"):
        launch(record, ([],), multiprocessing=True)
    assert capsys.readouterr().err == "error: process 1 was killed by SIGABRT\n"


def come_late():
    if rank() == 1:
        time.sleep(5)
    barrier()
    return "done"


def test_a_barrier_waits_for_longer_than_the_timeout(tmp_path):
    assert on_two(tmp_path, come_late, timeout=3.0) == ["done", "done"]


def hang_before_the_flags():
    distributed._limit = timedelta(seconds=1)  # that of the group is longer, as with nccl
    if rank() == 1:
        time.sleep(600)
    any_process(False)


def test_a_process_that_hangs_is_noticed_before_the_limit_of_the_gradients(tmp_path):
    processes, _ = started(tmp_path, hang_before_the_flags)
    processes[0].join(30)
    assert processes[0].exitcode == 2
    assert (tmp_path / "stderr0").read_text().startswith("[process 0] error: another process hangs: no answer for ")


def test_on_gpus_only_gradients_go_over_nccl_and_it_waits_longer_than_gloo(monkeypatch):
    given = {}
    monkeypatch.setattr(distributed, "_store", lambda *_: None)
    monkeypatch.setattr(distributed, "_limit", None)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda **options: given.update(options))
    distributed.join(1, 2, Rendezvous(timeout=30), torch.device("cuda", 1))
    assert (given["backend"], given["device_id"]) == ("cpu:gloo,cuda:nccl", torch.device("cuda", 1))
    assert given["timeout"] > distributed._limit == timedelta(seconds=30)


@pytest.mark.parametrize("options", [{"gpu": 1}, {"multiprocessing": True, "node_rank": 0}])
def test_a_gpu_is_selected_before_the_worker_runs(monkeypatch, options):
    seen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2 if "gpu" in options else 1)
    monkeypatch.setattr(torch.cuda, "set_device", seen.append)
    launch(seen.append, (), **options)
    assert seen == 2 * [torch.device("cuda", options.get("gpu", 0))]


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr("vidm.launch.torchrun_place", lambda _: (4, 4, 8))
    with pytest.raises(ValueError, match="process 5 of this machine has no GPU: start at most 4"):
        launch(record, ([],))


# Writes what each process of a run listens on, and the permissions of what the run keeps in the temporary folder.
PROGRAM = """
import os
import tempfile
from pathlib import Path

import torch

from vidm.distributed import barrier, rank
from vidm.launch import launch


def listening():
    links = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if os.path.islink(link)]
    for name in ("tcp", "tcp6"):
        for row in Path("/proc/net", name).read_text().splitlines()[1:]:
            words = row.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in links:
                yield words[1].split(":")[0]


def worker(device):
    barrier()
    folder = Path(tempfile.gettempdir())
    modes = [oct(path.stat().st_mode & 0o777) for path in folder.glob("vidm-*")]
    (folder / f"process{rank()}").write_text(f"{sorted(set(listening()))} {modes}")
    barrier()


if __name__ == "__main__":
    torch.cuda.device_count = lambda: 2
    before = dict(os.environ)
    launch(worker, (), multiprocessing=True)
    print(f"listening: {list(listening())}, environment unchanged: {dict(os.environ) == before}")
"""


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads Linux's list of sockets")
@pytest.mark.parametrize("torchrun", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_processes_of_one_machine_listen_on_the_loopback_interface_only(tmp_path, torchrun):
    program, temporary = tmp_path / "program.py", tmp_path / "temporary"
    program.write_text(PROGRAM.replace(", multiprocessing=True", "") if torchrun else PROGRAM)
    temporary.mkdir()
    launcher = "-m torch.distributed.run --standalone --nproc-per-node 2".split() if torchrun else []
    # What a user of several machines may have set: an interface that others can reach.
    names = [name for _, name in socket.if_nameindex() if name != "lo"] or ["lo"]
    environment = {**os.environ, "TMPDIR": str(temporary), "GLOO_SOCKET_IFNAME": names[-1], "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(program)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    modes = [] if torchrun else ["0o700"]
    for number in (0, 1):
        assert (temporary / f"process{number}").read_text() == f"['0100007F'] {modes}"  # 127.0.0.1
    if not torchrun:
        assert "listening: [], environment unchanged: True" in done.stdout
        assert not list(temporary.glob("vidm-*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gpu": 99}, "--gpu 99"),
        ({"multiprocessing": True, "num_nodes": 2, "node_rank": 2}, "--rank 2 is not among 2 nodes"),
        (
            {"multiprocessing": True, "num_nodes": 2, "rendezvous": Rendezvous("not-a-url")},
            "not-a-url .* another --dist-url",
        ),
    ],
)
def test_invalid_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        launch(record, ([],), **arguments)
