"""Tests with damaged videos: reading returns the frames of sequential decoding, or an error names the file."""

import contextlib
import gc
import os
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from test_video_io import encode, moving_pattern, remux

from vidm.video_io import VideoError, probe, read_frames, read_video, write_video

NUM_FRAMES = 26
NAMES = ["gop12.mp4", "copy.mkv", "vp9.webm", "divx.avi", "a.gif", "a.webp", "a.npy", "folder"]
HANG_SECONDS = 10


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same frames in every format, with several groups of pictures if the format has them."""
    folder, frames = tmp_path_factory.mktemp("good"), moving_pattern(NUM_FRAMES)
    encode(folder / "gop12.mp4", frames, "libx264", gop_size=12, max_b_frames=2)
    remux(folder / "gop12.mp4", folder / "copy.mkv")
    encode(folder / "vp9.webm", frames, "libvpx-vp9", gop_size=12)
    encode(folder / "divx.avi", frames, "mpeg4", gop_size=12, max_b_frames=2)
    for name in ("a.gif", "a.webp", "a.npy", "folder"):
        write_video(folder / name, frames)
    return folder


def damaged(whole: bytes, rng: np.random.Generator) -> bytes:
    """Truncate a file, or change up to five bytes: anywhere, or near its start or end, where indices are stored."""
    if rng.random() < 0.25:
        return whole[: rng.integers(len(whole))]
    low, high = [(0, len(whole)), (0, min(600, len(whole))), (max(0, len(whole) - 600), len(whole))][rng.integers(3)]
    content = bytearray(whole)
    for place in rng.integers(low, high, size=rng.integers(1, 6)):
        content[place] ^= int(rng.integers(1, 256))
    return bytes(content)


def write_damaged(source: Path, target: Path, rng: np.random.Generator) -> None:
    """Write a damaged copy of a file, or of a folder, in which one frame is damaged."""
    if source.is_dir():
        target.mkdir()
        for file in source.iterdir():
            (target / file.name).write_bytes(file.read_bytes())
        source = source / f"{rng.integers(NUM_FRAMES):05d}.png"
        target = target / source.name
    target.write_bytes(damaged(source.read_bytes(), rng))


def read_or_none(path: Path, read: Callable[[], np.ndarray]) -> np.ndarray | None:
    try:
        return read()
    except VideoError as error:
        message = str(error)
    assert str(path) in message
    assert "\n" not in message
    return None


def decode_despite_errors(path: Path) -> tuple[list[np.ndarray], list[np.ndarray | None]]:
    """Decode with PyAV, ignoring errors; return the frames as output, and in the order of the packets' times."""
    frames: list[tuple[int | None, np.ndarray]] = []
    times: list[int | None] = []
    with av.open(str(path), metadata_errors="replace") as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        with contextlib.suppress(av.FFmpegError):
            for packet in container.demux(stream):
                times += [packet.pts] if packet.size and not packet.is_discard else []
                with contextlib.suppress(av.FFmpegError):
                    frames += [(frame.pts, frame.to_ndarray(format="rgb24")) for frame in packet.decode()]
    by_time = dict(frames)
    ordered = [] if None in times else [by_time.get(time) for time in sorted(times)]
    return [frame for _, frame in frames], ordered


def check(path: Path, rng: np.random.Generator) -> str:
    """Read a damaged video in every way; return how much of it was readable."""
    wanted = sorted(rng.choice(NUM_FRAMES, size=5, replace=False).tolist())
    alone = {index: read_or_none(path, lambda i=index: read_frames(path, [i])) for index in wanted}
    video = read_or_none(path, lambda: read_video(path))
    if video is not None:
        assert probe(path).num_frames == len(video)
        for index, frames in alone.items():
            assert (frames is None) == (index >= len(video))
            assert frames is None or np.array_equal(frames[0], video[index]), f"{path.name}: frame {index}"
        together = [index for index in wanted if index < len(video)]
        assert not together or np.array_equal(read_frames(path, together), video[together])
        return "whole"
    # Some frames may still be good.
    found = {index: frames[0] for index, frames in alone.items() if frames is not None}
    if found and path.suffix in (".mp4", ".mkv", ".webm", ".avi"):
        truths = decode_despite_errors(path)
        for index, frame in found.items():
            same = [index < len(truth) and np.array_equal(frame, truth[index]) for truth in truths]
            assert any(same), f"{path.name}: frame {index}"
    return "partly" if found else "refused"


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files where the system lists them")
@pytest.mark.parametrize("num_files", [60, pytest.param(400, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_video_gives_the_frames_of_sequential_decoding_or_an_error_naming_it(
    good: Path, tmp_path: Path, name: str, num_files: int
) -> None:
    gc.collect()  # files that earlier tests left in reference cycles
    before = len(os.listdir("/proc/self/fd"))
    outcomes = set()
    for number in range(num_files):
        rng = np.random.default_rng([NAMES.index(name), number])
        path = tmp_path / f"{number}_{name}"
        write_damaged(good / name, path, rng)
        start = time.monotonic()
        outcomes.add(check(path, rng))
        assert time.monotonic() - start < HANG_SECONDS, path.name
        assert len(os.listdir("/proc/self/fd")) == before, f"{path.name} is still open"
    assert "whole" in outcomes, "no damaged file was readable"
    assert outcomes & {"refused", "partly"}, "no damaged file was unreadable"
