"""Tests of opening images: only pictures, and only within the budgets of pixels, frames and bytes."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vidm.images import BUDGETS, open_image
from vidm.video_io import VideoError, probe, read_frames, read_image, read_video, write_video

CLIP = np.random.default_rng(0).integers(0, 256, (5, 48, 64, 3), np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif"])
def test_postscript_is_not_opened(tmp_path, monkeypatch, suffix):
    """Pillow opens PostScript by its content, whatever the name is, and decodes it with Ghostscript."""
    path = tmp_path / f"picture{suffix}"
    Image.fromarray(CLIP[0]).save(path, format="EPS")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *arguments, **named: pytest.fail("it was run"))
    with pytest.raises(VideoError, match=rf"picture\{suffix}: cannot be read"):
        read_image(path)


@pytest.fixture(params=["mp4", "gif", "npy", "frames"])
def video(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Five frames of 64 x 48 pixels."""
    path = tmp_path / ("frames" if request.param == "frames" else f"clip.{request.param}")
    write_video(path, CLIP)
    return path


@pytest.mark.parametrize(
    ("name", "enough", "too_little"),
    [("VIDM_MAX_PIXELS", 3072, 3071), ("VIDM_MAX_FRAMES", 5, 4), ("VIDM_MAX_BYTES", 46080, 46079)],
)
def test_a_file_over_a_budget_is_named_with_the_variable_that_raises_it(video, monkeypatch, name, enough, too_little):
    monkeypatch.setenv(name, str(enough))
    assert read_video(video).shape == CLIP.shape
    monkeypatch.setenv(name, str(too_little))
    copy = video.with_name(f"copy{video.suffix}")  # lengths of known files are cached
    (shutil.copytree if video.is_dir() else shutil.copy)(video, copy)
    with pytest.raises(VideoError, match=rf"copy.*: .*more than {too_little} .*{name}"):
        read_video(copy)


def test_the_size_is_checked_before_pixels_are_decoded(tmp_path):
    """A PNG of 40,000 x 40,000 pixels takes 200 kB as a file and 4.8 GB as RGB."""
    path = tmp_path / "large.png"
    Image.new("1", (40_000, 40_000)).save(path)
    for read in (read_image, lambda path: read_frames(path.parent, [0]), lambda path: probe(path.parent)):
        with pytest.raises(VideoError, match="VIDM_MAX_PIXELS"):
            read(path)


def test_the_budgets_admit_8k_video_and_an_hour_of_it():
    assert BUDGETS["VIDM_MAX_PIXELS"] >= 7680 * 4320
    assert BUDGETS["VIDM_MAX_FRAMES"] >= 60 * 3600


def test_a_pipe_is_not_opened_as_an_image(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match=r"pipe\.png is a pipe or a device"):
        open_image(tmp_path / "pipe.png")


@pytest.mark.parametrize("side", [9_000, 13_300])
def test_a_frame_that_is_larger_than_the_canvas_of_its_gif_is_refused_before_it_is_decoded(tmp_path, side):
    """Pillow enlarges the canvas, to 2.9 GiB for 13,300 x 13,300 pixels."""
    path = tmp_path / "a.gif"
    write_video(path, CLIP[:2, :4, :4])
    data = bytearray(path.read_bytes())
    second = data.rindex(b"\x2c\0\0\0\0\4\0\4\0") + 5
    data[second : second + 4] = side.to_bytes(2, "little") * 2
    path.write_bytes(data)
    for read in (read_video, probe, lambda path: read_frames(path, [1])):
        with pytest.raises(VideoError, match=r"a\.gif: frame 1 is larger than the canvas, 4x4"):
            read(path)


def test_a_png_of_more_pixels_than_the_budget_is_refused_without_a_warning(tmp_path, recwarn):
    path = tmp_path / "a.png"
    Image.new("1", (13_300, 13_300)).save(path)
    with pytest.raises(VideoError, match="VIDM_MAX_PIXELS"):
        read_image(path)
    assert not recwarn.list
