"""Tests of data loading processes: nothing is lost if they are killed or if shared memory is small."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from test_preemption import CONTEXT, assert_identical, final_state, finish, started, stderr_of, wait_for_step
from torch import Tensor
from torch.utils.data import Dataset

from vidm import loading
from vidm.checkpoint import list_checkpoints, load_checkpoint
from vidm.config import Config
from vidm.datasets import to_float
from vidm.loading import LoadingError, load_batches, on_device
from vidm.trainer import Trainer
from vidm.training_run import fit

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")


class Levels(Dataset):
    """Sample (epoch, index) has frames of the 8-bit level `index`; the process that loads `deadly` is killed."""

    def __init__(self, deadly: int = -1) -> None:
        self.deadly = deadly

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        _, index = key
        if index == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"frame": to_float(np.full((4, 4, 3), index, np.uint8)), "frame_index": torch.tensor(index)}


def pairs_from(done: int) -> list[list[tuple[int, int]]]:
    return [[(0, i), (0, i + 1)] for i in range(0, 256, 2)][done:]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_are_the_same_from_any_number_of_processes_for_every_level(workers):
    batches = [on_device(batch, CPU) for batch in load_batches(Levels(), pairs_from, workers, pin_memory=False)]
    levels = torch.cat([batch["frame"] for batch in batches])
    assert torch.equal(levels, torch.stack([Levels()[0, i]["frame"] for i in range(256)]))
    assert torch.cat([batch["frame_index"] for batch in batches]).tolist() == list(range(256))


def load_with_a_limit_on_file_sizes() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    test_batches_are_the_same_from_any_number_of_processes_for_every_level(workers=2)


def test_a_limit_on_file_sizes_does_not_stop_batches():
    process = CONTEXT.Process(target=load_with_a_limit_on_file_sizes)
    process.start()
    process.join(60)
    assert process.exitcode == 0


def test_processes_that_die_three_times_in_a_row_end_the_run_in_one_line(capsys):
    batches = load_batches(Levels(deadly=9), pairs_from, workers=2, pin_memory=False)
    found: list[Tensor] = []
    with pytest.raises(LoadingError, match=r"of 2 \(pid \d+\) was killed by SIGKILL, the third time .* --workers need"):
        found.extend(batch["frame_index"] for batch in batches)
    # Processes load ahead, so batches before the deadly one may be lost with it.
    assert [pair.tolist() for pair in found] == [[2 * i, 2 * i + 1] for i in range(4)][: len(found)]
    assert capsys.readouterr().err.count("; new processes continue") >= 2


@pytest.mark.slow
def test_a_run_whose_loading_processes_are_killed_continues_bit_for_bit(tiny: Config, tmp_path: Path):
    config = tiny.replaced({"total_iters": 12, "save_freq": 1, "workers": 2, "accum_steps": 2})
    undisturbed = config.replaced({"out": str(tmp_path / "undisturbed"), "workers": 0})
    finish(started(undisturbed, tmp_path / "store-undisturbed"))
    group = started(config, tmp_path / "store")
    for step in (2, 6):
        wait_for_step(config, step)
        children = Path(f"/proc/{group[0].pid}/task/{group[0].pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
    finish(group)
    printed = stderr_of(0, tmp_path / "store").read_text()
    assert "was killed by SIGKILL, perhaps memory ran out: fewer --workers need less; new processes continue" in printed
    assert_identical(final_state(config), final_state(undisturbed))


def test_a_run_without_loading_processes_saves_before_it_ends(tiny: Config):
    trainer = Trainer(tiny, CPU)
    batches = trainer.batches()

    def dying() -> Iterator[dict[str, Tensor]]:
        yield from (next(batches) for _ in range(3))
        raise LoadingError("data loading process 1 (pid 7) was killed by SIGKILL")

    trainer.batches = dying
    with pytest.raises(LoadingError):
        fit(trainer)
    assert load_checkpoint(list_checkpoints(tiny.train.out)[-1]).step == 3


def test_shared_memory_that_is_full_is_named_with_what_to_do(monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(loading.DataLoader, "__iter__", full)
    with pytest.raises(LoadingError, match=r"No space left .* --workers 0, or, .* \(`docker run --shm-size 1g`\)"):
        next(load_batches(Levels(), pairs_from, workers=2, pin_memory=False))


@pytest.mark.skipif(
    not shutil.which("unshare") or bool(subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode),
    reason="needs user namespaces",
)
def test_batches_need_no_shared_memory(tmp_path: Path):
    lines = """
    import numpy, torch
    from vidm.loading import load_batches
    class Frames(torch.utils.data.Dataset):
        def __getitem__(self, key):
            return {"frame": torch.full((3, 256, 256), -1.0)}
    keys = [[(0, 0)] * 8] * 4
    assert len(list(load_batches(Frames(), lambda done: keys[done:], workers=2, pin_memory=False))) == 4
    """
    script = tmp_path / "load.py"
    script.write_text("\n".join(line.removeprefix("    ") for line in lines.splitlines()))
    command = f"mount -t tmpfs -o size=64k tmpfs /dev/shm && {sys.executable} {script}"
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", command],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
