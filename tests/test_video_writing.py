"""Tests of writing a video frame by frame."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from vidm.video_io import write_video
from vidm.video_writing import FORMATS, video_writer

FRAMES = np.random.default_rng(0).integers(0, 256, (11, 15, 18, 3), dtype=np.uint8)


def content(path: Path) -> list[bytes]:
    return [part.read_bytes() for part in (sorted(path.iterdir()) if path.is_dir() else [path])]


@pytest.mark.parametrize("suffix", FORMATS)
def test_frames_one_by_one_give_the_bytes_of_an_array(tmp_path: Path, suffix: str) -> None:
    write_video(tmp_path / f"whole{suffix}", FRAMES)
    write_video(tmp_path / f"iterated{suffix}", iter(FRAMES))
    reused = np.empty_like(FRAMES[0])
    with video_writer(tmp_path / f"written{suffix}") as write:
        for frame in FRAMES:
            reused[:] = frame  # a frame may be overwritten afterwards
            write(reused)
    assert content(tmp_path / f"whole{suffix}") == content(tmp_path / f"iterated{suffix}")
    assert content(tmp_path / f"whole{suffix}") == content(tmp_path / f"written{suffix}")


@pytest.mark.parametrize("count", [1, 11, 1000])
def test_an_array_has_the_bytes_of_numpy(tmp_path: Path, count: int) -> None:
    frames = np.resize(FRAMES[:, ::4, ::4], (count, 4, 5, 3))
    expected = io.BytesIO()
    np.save(expected, frames)
    write_video(tmp_path / "a.npy", iter(frames))
    assert (tmp_path / "a.npy").read_bytes() == expected.getvalue()


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([FRAMES[0], FRAMES[0, 1:]], r"cannot write a frame of \(14, 18, 3\) after one of \(15, 18, 3\)"),
        ([FRAMES[0], FRAMES[0] / 255], "cannot write float64 .*; a frame is uint8"),
        ([], "cannot write a video without frames"),
    ],
)
def test_frames_that_do_not_fit_are_refused_and_leave_nothing(
    tmp_path: Path, suffix: str, frames: list[np.ndarray], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / f"a{suffix}", iter(frames))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_error_of_the_frames_leaves_nothing(tmp_path: Path, suffix: str) -> None:
    def stopped() -> Iterator[np.ndarray]:
        yield FRAMES[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(tmp_path / f"a{suffix}", stopped())
    assert not list(tmp_path.iterdir())
