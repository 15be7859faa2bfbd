"""Tests of writing under a real limit on file sizes, which the system enforces as it does a full disk.

The limit is set in a child process only. Whatever a library makes of the error, a file is whole, or the error names it
and nothing is left.
"""

import contextlib
import errno
import resource
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_preemption import CONTEXT, train_or_resume

from vidm.checkpoint import Checkpoint, list_checkpoints, load_checkpoint, save_checkpoint
from vidm.config import Config
from vidm.files import WriteError, append
from vidm.packs import write_pack
from vidm.runtime import exit_on_user_error
from vidm.video_io import write_video

PACK_SCRIPT = Path(__file__).parent.parent / "scripts" / "pack_dataset.py"
FRAMES = np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3), dtype=np.uint8)
WEIGHTS = {f"layer{i}": torch.full((40 * i + 1, 37), float(i)) for i in range(20)}


def write_checkpoint(path: Path) -> None:
    save_checkpoint(path, Checkpoint(1, Config.from_preset("tiny"), WEIGHTS, WEIGHTS, {"moments": WEIGHTS}))


def write_frames(path: Path) -> None:
    write_video(path, FRAMES)


def write_packed(path: Path) -> None:
    with write_pack(path) as pack:
        pack.add_raw("clip", FRAMES)


WRITERS: dict[str, Callable[[Path], None]] = {
    "checkpoint.pt": write_checkpoint,
    "video.mp4": write_frames,
    "video.gif": write_frames,
    "video.webp": write_frames,
    "video.npy": write_frames,
    "frames": write_frames,
    "pack": write_packed,
}


def limited(limit: int, work: Callable[..., None], printed: Path, arguments: tuple[object, ...]) -> None:
    """Run work(*arguments) as a command whose files may have `limit` bytes; `printed` gets its output."""
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = printed.open("w", buffering=1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    with exit_on_user_error():
        work(*arguments)


def run_limited(limit: int, work: Callable[..., None], printed: Path, *arguments: object) -> int | None:
    """The exit code of `limited` in a child process."""
    process = CONTEXT.Process(target=limited, args=(limit, work, printed, arguments))
    process.start()
    process.join(120)
    return process.exitcode


def everything(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refuse_at_every_size(name: str, folder: Path, whole: int) -> None:
    """Write a file with limits up to its size; raises AssertionError unless each attempt is refused with its name."""
    for limit in (0, 1, *range(whole // 7, whole, whole // 7), whole - 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        with pytest.raises(WriteError, match=f"{name} was not written: File too large"):
            WRITERS[name](folder / name)
        assert not list(folder.iterdir())


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_that_does_not_fit_is_named_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / "whole").mkdir()
    WRITERS[name](tmp_path / "whole" / name)
    largest = max(map(len, everything(tmp_path / "whole").values()))
    (tmp_path / "full").mkdir()
    process = CONTEXT.Process(target=refuse_at_every_size, args=(name, tmp_path / "full", largest))
    process.start()
    process.join(60)
    assert process.exitcode == 0


def append_rows(path: Path) -> None:
    for row in ("aaa\n", "bbb\n", "ccccccccc\n", "d\n"):
        with contextlib.suppress(WriteError):
            append(path, row.encode())


def test_an_appended_row_is_complete_or_absent(tmp_path: Path) -> None:
    assert run_limited(12, append_rows, tmp_path / "printed", tmp_path / "rows") == 0
    assert (tmp_path / "rows").read_text() == "aaa\nbbb\nd\n"


def test_a_pack_that_does_not_fit_is_an_error_and_not_a_pack_of_fewer_clips(
    tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = sum(path.stat().st_size for path in world.rglob("*.mp4")) // 2
    monkeypatch.setattr("vidm.packs.append", _append_on_a_disk_of(half))
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(PACK_SCRIPT))["main"](["--data", str(world), "--out", str(tmp_path / "pack")])
    assert not list(tmp_path.iterdir())


def _append_on_a_disk_of(limit: int) -> Callable[[Path, bytes], None]:
    def limited_append(path: Path, data: bytes) -> None:
        if path.exists() and path.stat().st_size + len(data) > limit:
            raise WriteError(errno.ENOSPC, "No space left on device", str(path))
        append(path, data)

    return limited_append


def train(config: Config) -> None:
    train_or_resume(torch.device("cpu"), config)


@pytest.mark.parametrize("limit", [20_000, pytest.param(30_000_000, marks=pytest.mark.slow)])
def test_on_a_full_disk_a_run_goes_on_and_ends_with_one_line(tiny: Config, tmp_path: Path, limit: int) -> None:
    config = tiny.replaced({"total_iters": 3, "save_freq": 2, "test_freq": 2, "video_timesteps": 4})
    code = run_limited(limit, train, tmp_path / "printed", config)
    out, printed = Path(config.train.out), (tmp_path / "printed").read_text()
    assert "Traceback" not in printed
    assert f"warning: {out}/checkpoint_00000002.pt was not written: File too large; the run continues" in printed
    assert printed.splitlines()[-1] == f"error: {out}/checkpoint_00000003.pt was not written: File too large"
    assert code == 2
    left = everything(out)
    assert not [path for path in left if path.name != ".lock" and (path.name[0] == "." or path.suffix == ".pt")]
    for path, content in left.items():
        assert path.name != "stats.jsonl" or content.endswith(b"\n")
    if limit > 100_000:
        rows = EventAccumulator(str(out), size_guidance={"images": 0}).Reload()
        assert [event.step for event in rows.Scalars("loss")] == [1, 2, 3]
        assert [event.step for event in rows.Images("preview")] == [2]


def test_a_list_of_bad_videos_that_does_not_fit_is_an_error_in_one_line(tiny: Config, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for number in range(50):
        (tmp_path / "data" / f"bad_{number}.mp4").write_bytes(b"")
    config = tiny.replaced({"data": str(tmp_path / "data")})
    code = run_limited(1000, train, tmp_path / "printed", config)
    printed, out = (tmp_path / "printed").read_text(), Path(config.train.out)
    assert "Traceback" not in printed
    assert printed.splitlines()[-1] == f"error: {out}/bad_videos.txt was not written: File too large"
    assert code == 2
    assert not everything(out)


def fill_until_the_last_step(config: Config) -> None:
    """Train with a limit that is lifted after the first checkpoint, as if someone had freed some space."""
    import vidm.trainer

    def save(path: Path, checkpoint: Checkpoint) -> None:
        try:
            save_checkpoint(path, checkpoint)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    vidm.trainer.save_checkpoint = save
    train(config)


def test_a_run_whose_last_checkpoint_fits_exits_with_0_even_if_the_console_is_on_the_full_disk(
    tiny: Config, tmp_path: Path
) -> None:
    config = tiny.replaced({"total_iters": 4, "save_freq": 2, "test_freq": 0})
    assert run_limited(600, fill_until_the_last_step, Path("/dev/full"), config) == 0
    assert [load_checkpoint(path).step for path in list_checkpoints(config.train.out)] == [4]
