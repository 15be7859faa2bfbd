"""Tests of runs that are killed, asked to stop, or fill the disk: nothing is lost, and results stay the same."""

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from vidm import files
from vidm.checkpoint import checkpoint_path, list_checkpoints, load_checkpoint
from vidm.config import Config
from vidm.distributed import Rendezvous
from vidm.launch import launch
from vidm.resume import newest_that_verifies
from vidm.trainer import Trainer
from vidm.training_run import fit

CPU = torch.device("cpu")
# Starts processes in milliseconds: they are forked from a process that has imported everything.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["vidm.training_run"])


def run_in_two(target: Callable[..., None], arguments: Sequence[Any]) -> None:
    """Call target(0, *arguments) and target(1, *arguments) in two processes, and wait until both have succeeded."""
    group = [CONTEXT.Process(target=target, args=(number, *arguments)) for number in range(2)]
    for process in group:
        process.start()
    for process in group:
        process.join(120)
        assert process.exitcode == 0


def train_or_resume(device: torch.device, config: Config) -> None:
    """Like the command line with `--resume auto`."""
    fit(Trainer(config, device, newest_that_verifies(config.train.out)))


def stderr_of(node_rank: int, store: Path) -> Path:
    """The file with the stderr of a process of a group."""
    return store.with_name(f"{store.name}.stderr{node_rank}")


def one_of(node_rank: int, num_nodes: int, config: Config, store: Path, timeout: float) -> None:
    sys.stderr.flush()
    os.dup2(os.open(stderr_of(node_rank, store), os.O_WRONLY | os.O_CREAT), 2)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # the default of a process that was not forked
    if num_nodes == 1:
        train_or_resume(CPU, config)
    else:
        nodes = {"num_nodes": num_nodes, "node_rank": node_rank}
        rendezvous = Rendezvous(f"file://{store}", timeout=timeout)
        launch(train_or_resume, (config,), multiprocessing=True, **nodes, rendezvous=rendezvous)


def started(config: Config, store: Path, processes: int = 1, timeout: float = 60) -> list[BaseProcess]:
    arguments = (processes, config, store, timeout)
    group = [CONTEXT.Process(target=one_of, args=(rank, *arguments)) for rank in range(processes)]
    for process in group:
        process.start()
    return group


def finish(group: list[BaseProcess]) -> None:
    for process in group:
        process.join(180)
        assert process.exitcode == 0


def final_state(config: Config) -> dict[str, torch.Tensor]:
    """Weights, averaged weights and moments of the last step."""
    found = load_checkpoint(list_checkpoints(config.train.out)[-1])
    assert found.step == config.train.total_iters
    state = {f"weights.{k}": v for k, v in found.state_dict.items()}
    state |= {f"ema.{k}": v for k, v in found.ema_state_dict.items()}
    for i, moments in found.optimizer["state"].items():
        state |= {f"optimizer.{i}.{k}": v for k, v in moments.items()}
    return state


def assert_identical(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def kill_repeatedly(config: Config, store: Path, kills: int, processes: int = 1) -> None:
    """Run to the end, with all processes SIGKILLed `kills` times at random moments; every checkpoint then loads.

    The first, third, ... kill happens while a checkpoint is being written, the others at any time.
    """
    out, rng = Path(config.train.out), random.Random(0)
    for attempt in range(kills):
        group = started(config, store.with_name(f"{store.name}{attempt}"), processes)
        began, writing = time.monotonic(), attempt % 2 == 0
        wait = rng.uniform(0, 1)
        while time.monotonic() - began < (30 if writing else wait) and group[0].is_alive():
            if writing and any(out.glob(".checkpoint_*")):
                time.sleep(rng.uniform(0, 0.004))
                break
            time.sleep(0.0005)
        for process in rng.sample(group, len(group)):
            process.kill()
        for process in group:
            process.join()
            assert process.exitcode == -signal.SIGKILL, "the run ended before it was killed"
        for path in list_checkpoints(out):
            load_checkpoint(path)
    finish(started(config, store.with_name(f"{store.name}-last"), processes))
    assert not list(out.glob(".checkpoint_*"))


@pytest.fixture
def config(tiny: Config) -> Config:
    """Twelve steps, a checkpoint after each."""
    return tiny.replaced({"total_iters": 12, "save_freq": 1})


def compare_with_an_undisturbed_run(config: Config, tmp_path: Path, kills: int, processes: int = 1) -> None:
    undisturbed = config.replaced({"out": str(tmp_path / "undisturbed"), "workers": 0})
    finish(started(undisturbed, tmp_path / "store-undisturbed", processes))
    kill_repeatedly(config, tmp_path / "store", kills, processes)
    assert_identical(final_state(config), final_state(undisturbed))


@pytest.mark.slow
def test_killed_three_times_a_run_ends_bit_for_bit_as_if_undisturbed(config, tmp_path):
    compare_with_an_undisturbed_run(config.replaced({"total_iters": 20}), tmp_path, kills=3)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "workers"), [(1, 0), (1, 2), (2, 0), (2, 2)])
def test_a_run_killed_twenty_times_ends_bit_for_bit_as_if_undisturbed(config, tmp_path, processes, workers):
    config = config.replaced({"total_iters": 100, "workers": workers})
    compare_with_an_undisturbed_run(config, tmp_path, kills=20, processes=processes)


def wait_for_step(config: Config, step: int) -> None:
    deadline = time.monotonic() + 120
    while not any(int(path.stem[-8:]) >= step for path in list_checkpoints(config.train.out)):
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("processes", [1, 2])
def test_after_a_signal_a_run_saves_within_two_steps_and_exits_with_0(config, tmp_path, number, processes):
    config = config.replaced({"total_iters": 100_000, "keep": 0})
    group = started(config, tmp_path / "store", processes)
    wait_for_step(config, 3)
    os.kill(group[-1].pid, number)
    at_signal = len(list_checkpoints(config.train.out))
    finish(group)
    steps = [load_checkpoint(path).step for path in list_checkpoints(config.train.out)]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) <= at_signal + 3  # the current step, one more, and one saved between the signal and counting


def test_data_loading_processes_ignore_signals_that_their_parent_did_not_send(config, tmp_path):
    config = config.replaced({"total_iters": 100_000, "workers": 2})
    group = started(config, tmp_path / "store")
    wait_for_step(config, 1)
    children = Path(f"/proc/{group[0].pid}/task/{group[0].pid}/children").read_text().split()
    assert children
    for child in children:
        os.kill(int(child), signal.SIGTERM)
    wait_for_step(config, load_checkpoint(list_checkpoints(config.train.out)[-1]).step + 3)
    os.kill(group[0].pid, signal.SIGTERM)
    finish(group)


def test_a_second_run_in_the_same_folder_is_refused_until_the_first_is_dead(config, tmp_path):
    config = config.replaced({"total_iters": 100_000, "workers": 2})
    group = started(config, tmp_path / "store")
    wait_for_step(config, 1)
    children = Path(f"/proc/{group[0].pid}/task/{group[0].pid}/children").read_text().split()
    with pytest.raises(ValueError, match=f"{config.train.out} is in use by another run: wait until it ends, or give"):
        train_or_resume(CPU, config)
    assert group[0].is_alive()
    group[0].kill()
    group[0].join()
    assert any(Path(f"/proc/{child}").exists() for child in children)  # its data loading processes end later
    step = load_checkpoint(list_checkpoints(config.train.out)[-1]).step
    train_or_resume(CPU, config.replaced({"total_iters": step + 1}))


def flip_a_byte(path: Path, where: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 0x10
    path.write_bytes(content)


def test_if_the_newest_checkpoint_has_a_flipped_byte_the_one_before_is_used(config, capsys):
    fit(Trainer(config.replaced({"total_iters": 3}), CPU))
    *_, before, newest = list_checkpoints(config.train.out)
    flip_a_byte(newest, 0.5)
    found = newest_that_verifies(config.train.out)
    assert found is not None
    assert found.step == 2
    printed = capsys.readouterr().out
    assert f"skipped: {newest} is truncated, damaged" in printed
    assert f"resuming from {before}" in printed


def test_if_every_checkpoint_is_damaged_no_new_run_starts_in_their_folder(config):
    fit(Trainer(config.replaced({"total_iters": 2}), CPU))
    for path in list_checkpoints(config.train.out):
        flip_a_byte(path, 0.3)
    with pytest.raises(ValueError, match=r"all 2 checkpoints in .* are damaged: move them away"):
        newest_that_verifies(config.train.out)


def full_disk(monkeypatch: pytest.MonkeyPatch, when) -> None:
    """Write the files for which `when(path)` is true to a device that is always full."""
    hidden = files._hidden_sibling

    def on_a_full_disk(path: Path) -> Path:
        temporary = hidden(path)
        if when(path):
            temporary.symlink_to("/dev/full")
        return temporary

    monkeypatch.setattr(files, "_hidden_sibling", on_a_full_disk)


def test_on_a_full_disk_only_the_checkpoint_is_lost_and_the_run_continues(config, tmp_path, monkeypatch, capsys):
    undisturbed = config.replaced({"out": str(tmp_path / "undisturbed")})
    fit(Trainer(undisturbed, CPU))
    full_disk(monkeypatch, lambda path: path.name in [f"checkpoint_{step:08d}.pt" for step in range(5, 12)])
    fit(Trainer(config.replaced({"keep": 20}), CPU))
    assert [load_checkpoint(path).step for path in list_checkpoints(config.train.out)] == [1, 2, 3, 4, 12]
    assert_identical(final_state(config), final_state(undisturbed))
    printed = capsys.readouterr().err
    assert printed.count("was not written: No space left on device; the run continues") == 7
    assert f"warning: {checkpoint_path(config.train.out, 5)} was not written" in printed


def test_a_full_disk_at_the_end_is_an_error_and_earlier_checkpoints_are_kept(config, monkeypatch):
    full_disk(monkeypatch, lambda path: path.name == "checkpoint_00000012.pt")
    with pytest.raises(OSError, match="No space left"):
        fit(Trainer(config, CPU))
    assert [load_checkpoint(path).step for path in list_checkpoints(config.train.out)] == [9, 10, 11]


def test_on_a_full_disk_only_rows_of_the_log_are_lost_and_the_run_continues(config, capsys, monkeypatch):
    def opened(path, flags):
        return os.open("/dev/full" if path.endswith("stats.jsonl") else path, flags, 0o666)

    monkeypatch.setattr(files, "_open_to_write", lambda path, flags: opened(os.fspath(path), flags))
    fit(Trainer(config.replaced({"total_iters": 2}), CPU))
    assert capsys.readouterr().err.count("stats.jsonl was not written: No space left on device; the run continues") == 2


def test_stats_have_each_step_once_after_any_number_of_stops(config):
    for total in (5, 8, 12):
        fit(Trainer(config.replaced({"total_iters": total}), CPU, newest_that_verifies(config.train.out)))
        list_checkpoints(config.train.out)[-1].unlink() if total < 12 else None
    rows = [json.loads(line) for line in (Path(config.train.out) / "stats.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 13))
