"""Tests of runs with several processes: every documented way to start them, and what happens if a process is lost."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path

import pytest
import torch
from test_preemption import assert_identical, final_state, finish, started, stderr_of, wait_for_step

from vidm.config import Config
from vidm.distributed import Rendezvous
from vidm.launch import launch
from vidm.torchrun import torchrun_place

ROOT = Path(__file__).parent.parent
SCRIPT = str(ROOT / "diffusion_ddp_accum_constant_cu.py")


@pytest.fixture
def config(tiny: Config) -> Config:
    """Twelve steps, a checkpoint after each."""
    return tiny.replaced({"total_iters": 12, "save_freq": 1})


def flags_of(config: Config) -> list[str]:
    """The command line of the `tiny` fixture's run."""
    data, train = config.data, config.train
    line = "--preset tiny --resolution 16 --batch-size 4 --workers 0 --test-freq 0 --print-freq 1 --save-freq 1"
    return [*line.split(), "--total-iters", str(train.total_iters), "--data", data.data, "--out", train.out]


@contextmanager
def running(
    command: list[str], printed: Path, environment: Mapping[str, str] = os.environ
) -> Iterator[subprocess.Popen[bytes]]:
    """A running command whose output goes to `printed`; it and its children are killed at the end."""
    with printed.open("wb") as output:
        run = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**environment, "OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield run
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
            run.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def training_processes() -> list[int]:
    """Processes that run the training script: children of a launcher, not launchers."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if len(words) > 2 and words[2] == SCRIPT and words[1] == "-u":
            found.append(int(folder.name))
    return sorted(found)


def of_run(config: Config) -> list[int]:
    """Training processes that write to this run's folder."""
    out = config.train.out.encode()
    return [pid for pid in training_processes() if out in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.slow
def test_an_elastic_run_that_loses_workers_ends_like_an_undisturbed_one(config, tmp_path):
    config = config.replaced({"total_iters": 30})
    undisturbed = config.replaced({"out": str(tmp_path / "undisturbed")})
    finish(started(undisturbed, tmp_path / "store", processes=2))
    torchrun = [sys.executable, *"-m torch.distributed.run --standalone --nproc-per-node 2 --max-restarts 3".split()]
    with running([*torchrun, SCRIPT, "--resume", "auto", *flags_of(config)], tmp_path / "printed.txt") as run:
        for step in (5, 12):
            wait_for_step(config, step)
            os.kill(of_run(config)[-1], signal.SIGKILL)
        assert run.wait(timeout=120) == 0
    assert (tmp_path / "printed.txt").read_text().count("resuming from") == 2
    assert_identical(final_state(config), final_state(undisturbed))


@pytest.mark.slow
def test_two_nodes_started_by_the_script_train_like_two_processes(config, tmp_path):
    undisturbed = config.replaced({"out": str(tmp_path / "undisturbed")})
    finish(started(undisturbed, tmp_path / "store", processes=2))
    command = ["bash", "scripts/train_multinode.sh", "2", f"localhost:{free_port()}", *flags_of(config)]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    printed = [tmp_path / f"printed{node}.txt" for node in range(2)]
    with running(command, printed[0], environment) as one, running(command, printed[1], environment) as two:
        assert [one.wait(timeout=120), two.wait(timeout=120)] == [0, 0]
    assert_identical(final_state(config), final_state(undisturbed))


def test_the_script_for_several_nodes_names_the_arguments_it_needs():
    done = subprocess.run(["bash", "scripts/train_multinode.sh"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: give the number of nodes and the address of one of them")


def launching_two(config: Config, tmp_path: Path, timeout: float = 60, grace: float = 10) -> list[str]:
    """A command whose process starts two, as on a machine with two GPUs; its flags are the original code's."""
    line = ["--multiprocessing-distributed", "--dist-url", "tcp://localhost:10001", "--timeout", str(timeout)]
    program = f"""
import torch
from vidm import cli, launch

if __name__ == "__main__":
    torch.cuda.device_count = lambda: 2
    launch._GRACE_S = {grace}
    cli.train_main({[*line, *flags_of(config)]!r})
"""
    (tmp_path / "main.py").write_text(program)
    return [sys.executable, str(tmp_path / "main.py")]


def of_launcher(pid: int) -> list[int]:
    """The training processes that a process started, in order of rank."""
    children = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return sorted(child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes())


@pytest.mark.parametrize(("timeout", "grace"), [(15, 1), pytest.param(30, 10, marks=pytest.mark.slow)])
@pytest.mark.parametrize("stopped", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_suspended_process_ends_the_run(config, tmp_path, timeout, grace, stopped):
    config = config.replaced({"total_iters": 100_000})
    with running(launching_two(config, tmp_path, timeout, grace), tmp_path / "printed.txt") as run:
        wait_for_step(config, 2)
        group = of_launcher(run.pid)
        assert len(group) == 2
        os.kill(group[stopped], signal.SIGSTOP)
        assert run.wait(timeout + 30) == 2
        assert not any(Path(f"/proc/{pid}").exists() for pid in group)
    printed = (tmp_path / "printed.txt").read_text()
    assert f"another process hangs: no answer for {timeout} s (--timeout)" in printed


def test_a_process_never_kills_one_that_it_did_not_start(config, tmp_path):
    group = started(config.replaced({"total_iters": 100_000}), tmp_path / "store", 2, timeout=15)
    wait_for_step(config, 2)
    os.kill(group[1].pid, signal.SIGSTOP)
    group[0].join(45)
    alive = group[1].is_alive()
    group[1].kill()
    assert (group[0].exitcode, alive) == (2, True)
    printed = stderr_of(0, tmp_path / "store").read_text()
    assert "another process hangs: no answer for 15 s (--timeout)" in printed


def test_when_a_process_dies_the_other_ends_with_a_message(config, tmp_path):
    group = started(config.replaced({"total_iters": 100_000}), tmp_path / "store", 2)
    wait_for_step(config, 2)
    group[1].kill()
    group[0].join(30)
    assert group[0].exitcode == 2
    printed = stderr_of(0, tmp_path / "store").read_text()
    assert "[process 0] error: another process died; its error may be printed above" in printed


@pytest.mark.slow
def test_a_signal_to_the_launcher_stops_all_of_its_processes_after_saving(config, tmp_path):
    config = config.replaced({"total_iters": 100_000})
    with running(launching_two(config, tmp_path), tmp_path / "printed.txt") as run:
        wait_for_step(config, 3)
        run.send_signal(signal.SIGTERM)
        assert run.wait(timeout=60) == 0
    printed = (tmp_path / "printed.txt").read_text()
    assert "2 processes over gloo" in printed
    assert re.search(r"stopped and saved after step \d+: repeat the command with --resume auto", printed)


def do_nothing(device: torch.device) -> None:
    pass


LAUNCHER = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_PORT": "29777", "MASTER_ADDR": "localhost"}
SUBSETS = [dict(chosen) for count in range(6) for chosen in combinations(LAUNCHER.items(), count)]


@pytest.mark.parametrize("left", SUBSETS, ids="-".join)
def test_with_variables_left_by_a_launcher_a_process_runs_alone_or_they_are_named(left):
    if "WORLD_SIZE" in left:
        with pytest.raises(ValueError, match=f"WORLD_SIZE is 2 without torchrun: .* unset {' '.join(left)}$"):
            torchrun_place(left)
    else:
        assert torchrun_place(left) is None
    assert torchrun_place({**left, "WORLD_SIZE": "1"}) is None


@pytest.mark.parametrize("left", SUBSETS, ids="-".join)
def test_incomplete_variables_of_torchrun_are_named(left):
    environment = {"TORCHELASTIC_RUN_ID": "none", **left}
    if len(left) == len(LAUNCHER):
        assert torchrun_place(environment) == (1, 1, 2)
        return
    with pytest.raises(ValueError, match=f"incomplete or .* unset {' '.join(environment)}$") as refused:
        torchrun_place(environment)
    assert all(name in str(refused.value) for name in LAUNCHER)


@pytest.mark.parametrize("wrong", [{"RANK": "2"}, {"RANK": "-1"}, {"WORLD_SIZE": "x"}, {"LOCAL_RANK": ""}])
def test_variables_of_torchrun_that_contradict_each_other_are_named(wrong):
    with pytest.raises(ValueError, match=r"contradict each other \(RANK=.*\): .* unset TORCHELASTIC_RUN_ID RANK"):
        torchrun_place({"TORCHELASTIC_RUN_ID": "none", **LAUNCHER, **wrong})


@pytest.mark.parametrize(
    ("left", "code", "message"),
    [
        ({"RANK": "1", "LOCAL_RANK": "1"}, 0, "memory: weights"),
        (LAUNCHER, 2, "error: WORLD_SIZE is 2 without torchrun"),
        (
            {**LAUNCHER, "TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_USE_AGENT_STORE": "True"},
            2,
            "torchrun does not answer",
        ),
    ],
)
def test_one_process_started_by_hand_does_not_wait_for_others(config, tmp_path, left, code, message):
    left = {**left, "MASTER_PORT": str(free_port())}
    command = [sys.executable, SCRIPT, "--dry-run", *flags_of(config)]
    with running(command, tmp_path / "printed.txt", {**os.environ, **left}) as run:
        assert run.wait(timeout=60) == code
    printed = (tmp_path / "printed.txt").read_text()
    assert message in printed
    assert "Traceback" not in printed


def test_an_evaluation_started_by_hand_does_not_wait_for_others(tmp_path):
    command = [sys.executable, str(ROOT / "evaluate_FVD.py"), "-dir1", str(tmp_path), "-dir2", str(tmp_path)]
    with running(command, tmp_path / "printed.txt", {**os.environ, **LAUNCHER}) as run:
        assert run.wait(timeout=60) == 2
    assert "unset RANK WORLD_SIZE LOCAL_RANK MASTER_PORT MASTER_ADDR" in (tmp_path / "printed.txt").read_text()


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), 1e308])
def test_an_invalid_timeout_is_named(timeout):
    with pytest.raises(ValueError, match=r"--timeout .*: give a number of seconds above 0"):
        launch(do_nothing, (), rendezvous=Rendezvous(timeout=timeout))


def test_an_absurd_number_of_nodes_is_refused():
    with pytest.raises(ValueError, match="--world-size 1000000000000: give at most 1000000 nodes"):
        launch(do_nothing, (), multiprocessing=True, num_nodes=10**12)
