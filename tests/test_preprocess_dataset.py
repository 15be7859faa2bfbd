"""Tests of scripts/preprocess_dataset.py: the extracted frames equal those of the videos, in one run or several."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vidm.video_io import read_video, write_video

ROOT = Path(__file__).parent.parent
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "preprocess_dataset.py"))
NAMES = ("train/video_00000-01000/video_00000.mp4", "train/a b.gif", "val/x.mp4", "val/x.npy", "val/x/deep.npy")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Write five videos in two splits, of which three would become val/x, an unreadable video and a json file."""
    for number, name in enumerate(NAMES):
        frames = np.random.default_rng(number).integers(0, 256, (5 + number, 16, 16, 3), np.uint8)
        write_video(tmp_path / "data" / name, frames)
    (tmp_path / "data" / "test").mkdir()
    (tmp_path / "data" / "test" / "zero.mp4").write_bytes(b"")
    (tmp_path / "data" / "val" / "labels.json").write_text("{}")
    return tmp_path / "data"


def preprocess(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "scripts" / "preprocess_dataset.py", *words, "--workers", "1"]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


def test_frames_equal_the_videos_and_a_second_run_extracts_only_what_is_missing(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = preprocess("--data", data, "--out", out, "--frames")
    assert first.returncode == 0, first.stderr
    assert f"{out}: 5 videos extracted, 0 existed already, 1 skipped" in first.stdout
    assert "skipped: " in first.stderr
    assert "zero.mp4" in first.stderr
    folders = ("train/video_00000-01000/video_00000", "train/a b", "val/x.mp4", "val/x.npy", "val/x/deep")
    for name, folder in zip(NAMES, folders, strict=True):
        np.testing.assert_array_equal(read_video(out / folder), read_video(data / name))
    assert {path.parent for path in out.rglob("*.png")} == {out / folder for folder in folders}

    kept = (out / folders[0] / "00000.png").stat().st_mtime_ns
    for frame in (out / folders[1]).iterdir():  # as if an interrupted run had not written it
        frame.unlink()
    again = preprocess("--data", data, "--out", out, "--frames")
    assert "1 videos extracted, 4 existed already, 1 skipped" in again.stdout
    np.testing.assert_array_equal(read_video(out / folders[1]), read_video(data / NAMES[1]))
    assert (out / folders[0] / "00000.png").stat().st_mtime_ns == kept


def test_a_replaced_video_is_extracted_anew_even_with_equal_size_and_time(tmp_path: Path) -> None:
    clips = [np.full((3, 16, 16, 3), level, np.uint8) for level in (50, 90)]
    video, frames = tmp_path / "a.npy", tmp_path / "out" / "a"
    write_video(video, clips[0])
    job = (video, 3, frames)
    state = video.stat()
    assert [SCRIPT["update"](job), SCRIPT["update"](job)] == ["", None]
    write_video(video, clips[1])
    os.utime(video, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert (video.stat().st_size, video.stat().st_mtime_ns) == (state.st_size, state.st_mtime_ns)
    assert SCRIPT["update"](job) == ""
    np.testing.assert_array_equal(read_video(frames), clips[1])
    write_video(video, clips[0][:2])  # fewer frames: none of the earlier ones is left
    assert SCRIPT["update"]((video, 2, frames)) == ""
    np.testing.assert_array_equal(read_video(frames), clips[0][:2])


def test_frames_without_a_record_are_kept(tmp_path: Path) -> None:
    write_video(tmp_path / "a.npy", np.zeros((3, 16, 16, 3), np.uint8))
    write_video(tmp_path / "out" / "a", np.ones((2, 16, 16, 3), np.uint8))
    assert SCRIPT["update"]((tmp_path / "a.npy", 3, tmp_path / "out" / "a")) is None
    assert len(read_video(tmp_path / "out" / "a")) == 2


def test_a_file_name_of_255_bytes_stops_no_other_video(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_video(tmp_path / "data" / f"{name}.npy", np.zeros((2, 8, 8, 3), np.uint8))
    (tmp_path / "data" / "a.npy").rename(tmp_path / "data" / f"{'a' * 251}.npy")
    done = preprocess("--data", tmp_path / "data", "--out", tmp_path / "out", "--frames")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "b" / "00001.png").exists()
    assert "a.npy: its name is too long for a folder of frames" in done.stderr


def test_a_long_video_is_extracted_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), np.uint8)
    write_video(tmp_path / "a.npy", frames)
    monkeypatch.setitem(SCRIPT["extract"].__globals__, "CHUNK", 3)
    assert SCRIPT["extract"]((tmp_path / "a.npy", 7, tmp_path / "frames")) == ""
    np.testing.assert_array_equal(read_video(tmp_path / "frames"), frames)


def test_a_truncated_video_leaves_no_folder_and_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "a.npy", np.zeros((5, 8, 8, 3), np.uint8))
    monkeypatch.setitem(SCRIPT["extract"].__globals__, "CHUNK", 3)
    assert "a.npy: frame 5 was requested" in SCRIPT["extract"]((tmp_path / "a.npy", 9, tmp_path / "frames"))
    assert os.listdir(tmp_path) == ["a.npy"]


def test_an_invalid_command_prints_one_line_and_exits_with_code_2(data: Path, tmp_path: Path) -> None:
    same = preprocess("--data", data, "--out", data, "--frames")
    assert (same.returncode, same.stderr) == (
        2,
        f"error: --out {data} is the folder of the videos: choose another\n",
    )
    nowhere = preprocess("--data", tmp_path / "nowhere", "--out", tmp_path / "out", "--frames")
    assert nowhere.returncode == 2
    assert nowhere.stderr.startswith(f"error: no such folder: {tmp_path / 'nowhere'}")
    assert preprocess("--data", data, "--out", tmp_path / "out").returncode == 2
    assert not (tmp_path / "out").exists()
