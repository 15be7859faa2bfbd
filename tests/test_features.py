"""Tests of features: they are computed once, kept when a run stops, and independent of batches and processes."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import warnings
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from vidm.feature_table import FILE_NAME
from vidm.metrics import compute_fvd
from vidm.video_io import write_video

ROOT = Path(__file__).parent.parent


def write_folder(folder: Path, count: int, seed: int, size: int = 16) -> Path:
    rng = np.random.default_rng(seed)
    for i in range(count):
        write_video(folder / f"{i:03d}.npy", rng.integers(0, 256, (8, size, size, 3), dtype=np.uint8))
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return write_folder(tmp_path / "real", 11, seed=0), write_folder(tmp_path / "made", 7, seed=1)


class Means:
    """A detector that returns mean colours and some columns, in float64, and counts the clips of all calls."""

    name = "means"
    sha256 = "means 1"

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, video: torch.Tensor, **switches: bool) -> torch.Tensor:
        self.seen += len(video)
        clips = [clip.double() / 255 for clip in video]
        return torch.stack([torch.cat([clip.mean(dim=(1, 2, 3)), clip[0].mean(dim=(0, 1))[:4]]) for clip in clips])


def test_with_a_cache_no_clip_is_computed_twice_and_the_number_is_the_same(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    without, first, second = Means(), Means(), Means()
    expected = compute_fvd(*folders, without, num_frames=6)
    assert compute_fvd(*folders, first, num_frames=6, cache=tmp_path / "cache").value == expected.value
    assert compute_fvd(*folders, second, num_frames=6, cache=tmp_path / "cache").value == expected.value
    assert (without.seen, first.seen, second.seen) == (18, 18, 0)


@pytest.mark.parametrize(
    "change", [{"num_frames": 5}, {"frame_stride": 2, "num_frames": 4}, {"resolution": 8}, {"seed": 3}, "detector"]
)
def test_everything_that_features_depend_on_is_part_of_their_key(
    folders: tuple[Path, Path], tmp_path: Path, change: dict | str
) -> None:
    compute_fvd(*folders, Means(), num_frames=6, cache=tmp_path / "cache")
    other = Means()
    if change == "detector":
        other.sha256 = "means 2"
    arguments = {"num_frames": 6, **(change if isinstance(change, dict) else {})}
    cached = compute_fvd(*folders, other, **arguments, cache=tmp_path / "cache")
    assert other.seen > 0
    assert cached.value == compute_fvd(*folders, Means(), **arguments).value


def test_the_cache_identifies_a_video_by_its_bytes_and_not_by_its_name_or_dates(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    compute_fvd(*folders, Means(), num_frames=8, cache=tmp_path / "cache")
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in folders[0].iterdir():
        shutil.copy(path, moved / f"other-{path.name}")
    again = Means()
    compute_fvd(moved, folders[1], again, num_frames=8, cache=tmp_path / "cache")
    assert again.seen == 0
    changed = moved / "other-003.npy"
    states = os.stat(changed)
    clip = np.load(changed)
    clip[0, 0, 0, 0] ^= 1
    np.save(changed, clip)
    os.utime(changed, ns=(states.st_atime_ns, states.st_mtime_ns))
    compute_fvd(moved, folders[1], again, num_frames=8, cache=tmp_path / "cache")
    assert again.seen == 1


def test_a_stopped_run_continues_from_the_cache(folders: tuple[Path, Path], tmp_path: Path) -> None:
    class Stops(Means):
        def __call__(self, video: torch.Tensor, **switches: bool) -> torch.Tensor:
            if self.seen >= 9:
                raise KeyboardInterrupt
            return super().__call__(video, **switches)

    with pytest.raises(KeyboardInterrupt):
        compute_fvd(*folders, Stops(), num_frames=6, batch_size=3, cache=tmp_path / "cache")
    rest = Means()
    result = compute_fvd(*folders, rest, num_frames=6, batch_size=3, cache=tmp_path / "cache")
    assert 0 < rest.seen <= 18 - 6
    assert result.value == compute_fvd(*folders, Means(), num_frames=6).value


def test_features_of_a_detector_without_a_sha256_cannot_be_cached(folders: tuple[Path, Path], tmp_path: Path) -> None:
    def nameless(video: torch.Tensor, **switches: bool) -> torch.Tensor:
        return video.double().mean(dim=(2, 3, 4))

    with pytest.raises(ValueError, match=r"features of nameless cannot be kept \(cache\)"):
        compute_fvd(*folders, nameless, num_frames=6, cache=tmp_path / "cache")


@pytest.mark.parametrize("batch_size", [1, 3, 32])
@pytest.mark.parametrize("workers", [0, 3])
def test_the_result_is_bit_identical_for_any_batch_size_and_number_of_threads(
    folders: tuple[Path, Path], batch_size: int, workers: int
) -> None:
    expected = compute_fvd(*folders, Means(), num_frames=6).value
    assert compute_fvd(*folders, Means(), 6, batch_size=batch_size, workers=workers).value == expected


def test_sizes_are_also_compared_with_those_in_the_cache(folders: tuple[Path, Path], tmp_path: Path) -> None:
    compute_fvd(*folders, Means(), num_frames=8, cache=tmp_path / "cache")
    write_folder(tmp_path / "large", 1, seed=2, size=32)
    shutil.copy(tmp_path / "large" / "000.npy", folders[0] / "large.npy")
    with pytest.raises(
        ValueError, match=r"large\.npy is 32x32 and .*000\.npy is 16x16 \(height x width\); give a resolution"
    ):
        compute_fvd(*folders, Means(), num_frames=8, cache=tmp_path / "cache")


class ScriptedMeans(torch.nn.Module):
    def forward(
        self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> torch.Tensor:
        features = [torch.cat([clip.double().mean(dim=[1, 2, 3]), clip[0, 0, 0, :4].double()]) for clip in x]
        return torch.stack(features)


def evaluate(*flags: object, processes: int = 1) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), ROOT / "evaluate_FVD.py", *flags]
    return list(map(str, command))


@pytest.mark.slow
def test_one_and_two_processes_give_the_same_number(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(ScriptedMeans()), tmp_path / "means.pt")
    shutil.copytree(folders[0], tmp_path / "frames")
    records = {}
    for processes in (1, 2):
        record = tmp_path / f"{processes}.json"
        flags = ["-dir1", folders[0], "-dir2", folders[1], "-n", 6, "-b", 2, "--metrics", "fvd,kvd,psnr"]
        done = subprocess.run(
            evaluate(*flags, "-i3d", tmp_path / "means.pt", "--json", record, processes=processes),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        records[processes] = json.loads(record.read_text())
        assert done.stdout.count("FVD (I3D means.pt)") == 1
    one, two = (records[n]["results"]["FVD6"] for n in (1, 2))
    for name in ("value", "floor", "kernel", "kernel_matched", "kernel_floor"):
        assert two[name] == pytest.approx(one[name], rel=1e-9)
    assert one["num_samples"] == two["num_samples"] == [11, 7]
    for name in ("psnr", "ssim"):
        assert records[2]["frame_metrics"][name] == pytest.approx(records[1]["frame_metrics"][name], rel=1e-9)


def rows_kept(cache: Path) -> int:
    try:
        connection = sqlite3.connect(f"file:{cache / FILE_NAME}?mode=ro", uri=True)
        return connection.execute("SELECT count(*) FROM features").fetchone()[0]
    except sqlite3.OperationalError:  # it does not exist yet
        return 0


@pytest.mark.slow
def test_a_killed_run_of_two_processes_with_the_random_detector_continues(tmp_path: Path) -> None:
    folders = [write_folder(tmp_path / name, 100, seed, size=96) for seed, name in enumerate(("real", "made"))]
    flags = ["-dir1", folders[0], "-dir2", folders[1], "-n", 8, "-b", 2, "-i3d", "random"]
    whole = evaluate(*flags, "--json", tmp_path / "whole.json")
    assert subprocess.run(whole, capture_output=True).returncode == 0
    cache = tmp_path / "cache"
    command = evaluate(*flags, "--cache", cache, "--json", tmp_path / "killed.json", processes=2)
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    while rows_kept(cache) < 10:
        assert first.poll() is None
        time.sleep(0.02)
    workers = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
    assert len(workers) == 2
    for pid in (first.pid, *map(int, workers)):
        os.kill(pid, signal.SIGKILL)
    first.wait()
    assert 10 <= rows_kept(cache) < 200
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert rows_kept(cache) == 200
    whole, killed = (json.loads((tmp_path / f"{name}.json").read_text())["results"] for name in ("whole", "killed"))
    assert killed["random Frechet8"]["value"] == pytest.approx(whole["random Frechet8"]["value"], rel=1e-4)


@pytest.mark.parametrize("processes", [pytest.param(2, marks=pytest.mark.slow), 1])
def test_an_error_in_one_process_ends_all_processes_and_is_printed(
    folders: tuple[Path, Path], tmp_path: Path, processes: int
) -> None:
    write_video(folders[0] / "005.npy", np.zeros((8, 32, 32, 3), np.uint8))
    command = evaluate("-dir1", folders[0], "-dir2", folders[1], "-n", 6, "-b", 1, processes=processes)
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "005.npy is 32x32" in done.stderr or "is 16x16 and" in done.stderr
    assert "Error: " not in done.stderr.replace("ChildFailedError: ", "")


def test_a_cache_of_zeros_is_computed_again_and_gives_the_same_number(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    first, second = Means(), Means()
    expected = compute_fvd(*folders, first, num_frames=6, cache=tmp_path / "cache").value
    with closing(sqlite3.connect(tmp_path / "cache" / FILE_NAME)) as connection, connection:
        connection.execute("UPDATE features SET row = zeroblob(length(row))")
    assert compute_fvd(*folders, second, num_frames=6, cache=tmp_path / "cache").value == expected
    assert second.seen == first.seen == 18
