"""Tests of opening images: only pictures, and only within the budgets of pixels, frames and bytes."""

import os
import shutil
import struct
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from vidm import images, video_containers
from vidm.images import BUDGETS, open_image, rgb_from_image, upright_image_size
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
    if video.suffix == ".gif" and name == "VIDM_MAX_PIXELS":
        enough, too_little = 4 * enough, 4 * enough - 1
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


def test_a_large_animation_is_refused_before_a_frame_is_decoded(tmp_path):
    """Pillow took 1.7 GiB for 8,000 x 8,000 pixels, although each frame was within the budget."""
    path = tmp_path / "a.gif"
    write_video(path, CLIP[:2, :4, :4])
    data = bytearray(path.read_bytes())
    data[6:10] = (8_000).to_bytes(2, "little") * 2
    path.write_bytes(data)
    for read in (read_video, probe, lambda path: read_frames(path, [0])):
        with pytest.raises(VideoError, match=r"a\.gif: .* 16777216 in one of an animation.*VIDM_MAX_PIXELS"):
            read(path)


def test_a_small_animation_of_many_large_frames_is_refused_before_a_frame_is_decoded(tmp_path):
    """165 frames of one pixel on a canvas of 4096 x 4096, 4 KB, took 25 seconds."""
    path = tmp_path / "a.gif"
    restored = b"\x21\xf9\x04\x0c\4\0\0\0"  # the canvas before the frame is kept, and restored after it
    frame = restored + b"\x2c\0\0\0\0\1\0\1\0\0\2\2\x44\1\0"
    path.write_bytes(b"GIF89a" + struct.pack("<HHBBB6x", 4096, 4096, 0x80, 0, 0) + frame * 165 + b";")
    started = time.monotonic()
    for read in (read_video, probe, lambda path: read_frames(path, [164])):
        with pytest.raises(VideoError, match=r"a\.gif: .* 1073741824 in an animation.*VIDM_MAX_BYTES"):
            read(path)
    assert time.monotonic() - started < 2


def test_a_small_animation_of_a_still_scene_is_read(tmp_path):
    path = tmp_path / "a.gif"
    first = np.zeros((1080, 1920, 3), np.uint8)
    write_video(path, np.stack([first, first + 1, first + 2]))
    assert 1000 * path.stat().st_size < 3 * first.nbytes
    assert probe(path).num_frames == 3


@pytest.mark.parametrize("name", ["a.tif", "a.gif"])
def test_the_pages_of_a_tiff_are_not_counted(tmp_path, monkeypatch, name):
    """Pillow takes minutes for 200,000, and only the first is read."""
    first, *others = [Image.fromarray(frame) for frame in CLIP]
    first.save(tmp_path / name, format="TIFF", save_all=True, append_images=others)
    counted = property(lambda image: pytest.fail("the pages were counted"))
    monkeypatch.setattr(TiffImagePlugin.TiffImageFile, "n_frames", counted)
    frame = read_image(tmp_path / name) if name == "a.tif" else read_video(tmp_path / name)[0]
    assert (frame == CLIP[0]).all()


def progressive_jpeg(side: int, num_scans: int) -> bytes:
    """Return a grey JPEG with scans of ten bytes, each of which the decoder takes for all pixels."""

    def segment(marker: int, content: bytes) -> bytes:
        return struct.pack(">BBH", 255, marker, 2 + len(content)) + content

    one_code = bytes([1, *[0] * 15])
    tables = segment(0xC4, b"\0" + one_code + b"\0") + segment(0xC4, b"\x10" + one_code + b"\xe0")
    header = segment(0xDB, b"\0" + b"\1" * 64) + segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0")
    first = segment(0xDA, b"\1\1\0\0\0\0") + b"\0"
    return b"\xff\xd8" + header + tables + first + segment(0xDA, b"\1\1\0\1\x3f\0") * num_scans + b"\xff\xd9"


def test_a_jpeg_of_thousands_of_scans_is_refused_before_it_is_decoded(tmp_path):
    """20 KB took 33 seconds. A small image may have as many scans."""
    (tmp_path / "frames").mkdir()
    path = tmp_path / "frames" / "0.jpg"
    path.write_bytes(progressive_jpeg(8191, 2000))
    started = time.monotonic()
    for read in (read_image, lambda path: read_frames(path.parent, [0]), lambda path: probe(path.parent)):
        with pytest.raises(VideoError, match=r"0\.jpg: .*more than 100 scans of 8191x8191 pixels.*VIDM_MAX_PIXELS"):
            read(path)
    assert time.monotonic() - started < 5
    path.write_bytes(progressive_jpeg(64, 2000))
    assert read_image(path).shape == (64, 64, 3)


def test_the_scans_of_a_jpeg_are_counted_across_the_pieces_in_which_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "a.jpg"
    Image.fromarray(CLIP[0]).save(path, progressive=True)
    assert read_image(path).shape == CLIP[0].shape
    path.write_bytes(path.read_bytes() + bytes(2**20))
    data = path.read_bytes()
    path.write_bytes(data[: 2**20 - 1] + b"\xff\xda" * 3)
    monkeypatch.setattr(images, "MAX_SCANS", data.count(b"\xff\xda") + 3)
    monkeypatch.setenv("VIDM_MAX_PIXELS", "3072")
    assert read_image(path).shape == CLIP[0].shape
    monkeypatch.setattr(images, "MAX_SCANS", data.count(b"\xff\xda") + 2)
    with pytest.raises(VideoError, match="scans"):
        read_image(path)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def test_an_image_takes_little_more_memory_than_its_pixels(tmp_path):
    """A PNG of 16-bit RGBA and 67 million pixels took 2 GiB; four bytes a pixel are decoded and three returned."""
    side = 4096
    header = struct.pack(">IIBBBBB", side, side, 16, 6, 0, 0, 0)
    pixels = zlib.compress((b"\0" + b"\x80\0" * 4 * side) * side, 1)
    path = tmp_path / "deep.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))
    code = (
        "import resource, sys; from vidm.video_io import read_image\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "read_image(sys.argv[1])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 10 * side * side


@pytest.mark.parametrize("suffix", ["png", "mp4"])
def test_large_frames_are_decoded_by_one_thread_at_a_time(tmp_path, monkeypatch, suffix):
    """Six threads took 4.9 GB for images of 8192 x 8191 pixels."""
    monkeypatch.setattr(images, "PARALLEL_PIXELS", 48 * 64 - 1)
    running, most = [], []
    decode = video_containers._info if suffix == "mp4" else images._to_rgb

    def slow(*arguments):
        running.append(1)
        most.append(len(running))
        time.sleep(0.05)
        running.pop()
        return decode(*arguments)

    monkeypatch.setattr(*(video_containers, "_info") if suffix == "mp4" else (images, "_to_rgb"), slow)
    paths = []
    for number in range(4):
        paths.append(tmp_path / (f"{number}.mp4" if suffix == "mp4" else str(number)))
        write_video(paths[-1], CLIP)
    with ThreadPoolExecutor(4) as pool:
        assert {info.num_frames for info in pool.map(probe, paths)} == {5}
    assert len(most) == 4
    assert set(most) == {1}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_the_upright_size_is_known_without_converting_pixels(tmp_path, monkeypatch, suffix, orientation):
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[images.EXIF_ORIENTATION] = orientation
    Image.fromarray(CLIP[0]).save(path, exif=exif)
    size = read_image(path).shape[:2]
    monkeypatch.setattr(images, "_to_rgb", lambda image: pytest.fail("it was converted"))
    with open_image(path) as image:
        assert upright_image_size(image) == size == ((48, 64) if orientation < 5 else (64, 48))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "L", "P", "1", "CMYK", "YCbCr"])
def test_strips_of_an_image_are_converted_as_the_whole(monkeypatch, mode):
    image = Image.fromarray(np.concatenate([CLIP[0], CLIP[1, :, :, :1]], axis=2), "RGBA").convert(mode)
    if mode == "P":
        image.info["transparency"] = 7
    whole = image
    if image.has_transparency_data:
        whole = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    monkeypatch.setattr(images, "STRIP_PIXELS", 5 * 64 + 1)
    assert (rgb_from_image(image) == np.asarray(whole.convert("RGB"))).all()
