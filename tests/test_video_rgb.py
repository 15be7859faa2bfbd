"""Tests of the conversion of decoded frames: the pixels are those that ffmpeg's command line shows."""

import gc
import runpy
import struct
from collections.abc import Callable
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image, ImageOps
from test_video_io import encode, moving_pattern

from vidm import packs
from vidm.sampling import read_first_frame
from vidm.video_io import VideoError, probe, read_frames, read_video

DATA = Path(__file__).parent / "data"
EXTRACT = runpy.run_path(str(DATA.parent.parent / "scripts" / "preprocess_dataset.py"))["extract"]
PIXEL_CROP_TOP = b"\x54\xbb\x81\x08"  # an element of mkv, 8 px
# Counterclockwise rotation in degrees, then a horizontal and a vertical flip, and the same with NumPy.
TURNS: dict[tuple[int, bool, bool], Callable[[np.ndarray], np.ndarray]] = {
    (90, False, False): lambda video: np.rot90(video, 1, (1, 2)),
    (180, False, False): lambda video: video[:, ::-1, ::-1],
    (270, False, False): lambda video: np.rot90(video, 3, (1, 2)),
    (0, True, False): lambda video: video[:, :, ::-1],
    (0, False, True): lambda video: video[:, ::-1],
    (90, True, False): lambda video: np.rot90(video, 1, (1, 2))[:, :, ::-1],
    (90, False, True): lambda video: np.rot90(video, 1, (1, 2))[:, ::-1],
}


def turn(source: Path, target: Path, degrees: float, hflip: bool = False, vflip: bool = False) -> None:
    """Copy the packets and write a display matrix, as a phone does."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        copy.set_display_rotation(degrees, hflip=hflip, vflip=vflip)
        for packet in old.demux(stream):
            if packet.size:
                packet.stream = copy
                new.mux(packet)


@pytest.fixture(scope="module")
def level(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video that is stored upright, with two groups of pictures."""
    path = tmp_path_factory.mktemp("level") / "level.mp4"
    encode(path, moving_pattern(12), "libx264", gop_size=6, max_b_frames=2)
    return path


# Pixels


@pytest.mark.parametrize("name", ["bt2020.mp4", "hlg_portrait.mov", "size_changes.mkv", "theora.ogv"])
def test_pixels_are_those_of_ffmpeg_within_one_level(name: str) -> None:
    video = read_video(DATA / name)
    expected = np.load(DATA / "ffmpeg_pixels.npz")[name].astype(int)
    assert np.abs(video[[0, -1]] - expected).max() <= 1
    assert probe(DATA / name)[:3] == video.shape[:3]
    for index in range(len(video)):
        np.testing.assert_array_equal(read_frames(DATA / name, [index])[0], video[index])


def test_a_colour_matrix_without_a_conversion_is_named(tmp_path: Path) -> None:
    encode(tmp_path / "ycgco.mp4", moving_pattern(3), "libx264", colorspace=8)
    for read in (probe, read_video):
        with pytest.raises(VideoError, match=r"ycgco\.mp4: .*its colour matrix, number 8 of ITU-T H\.273"):
            read(tmp_path / "ycgco.mp4")


def test_pixels_that_are_not_square_are_not_stretched(tmp_path: Path) -> None:
    encode(tmp_path / "wide.mp4", moving_pattern(3), "libx264", sample_aspect_ratio=Fraction(4, 3))
    with av.open(str(tmp_path / "wide.mp4")) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(4, 3)
    assert read_video(tmp_path / "wide.mp4").shape == (3, 32, 48, 3)


def crop_in_mkv(data: bytes) -> bytes:
    """Replace an element, DisplayUnit, by PixelCropTop."""
    return data.replace(b"\x54\xb2\x81\x04", PIXEL_CROP_TOP)


def crop_in_mp4(data: bytes) -> bytes:
    """Add a box that crops the frames to 48x16."""
    crop = struct.pack(">I4s8I", 40, b"clap", 48, 1, 16, 1, 0, 1, 0, 1)
    end = data.rindex(b"avc1") - 4
    end += int.from_bytes(data[end : end + 4], "big")
    data = data[:end] + crop + data[end:]
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"):
        at = data.rindex(kind) - 4
        data = data[:at] + struct.pack(">I", int.from_bytes(data[at : at + 4], "big") + len(crop)) + data[at + 4 :]
    return data


@pytest.mark.parametrize(("suffix", "crop"), [(".mkv", crop_in_mkv), (".mp4", crop_in_mp4)])
def test_cropping_in_a_header_is_not_applied(tmp_path: Path, suffix: str, crop: Callable[[bytes], bytes]) -> None:
    whole, cropped = tmp_path / f"whole{suffix}", tmp_path / f"cropped{suffix}"
    encode(whole, moving_pattern(3), "libx264")
    cropped.write_bytes(crop(whole.read_bytes()))
    turn(cropped, tmp_path / "copy.mkv", 0)
    assert PIXEL_CROP_TOP in (tmp_path / "copy.mkv").read_bytes()  # FFmpeg knows it, but no frame of PyAV has it
    np.testing.assert_array_equal(read_video(cropped), read_video(whole))


# Display matrices


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("how", TURNS)
def test_a_rotated_or_flipped_video_is_read_upright(
    level: Path, tmp_path: Path, suffix: str, how: tuple[int, bool, bool]
) -> None:
    path = tmp_path / f"turned{suffix}"
    turn(level, path, *how)
    expected = TURNS[how](read_video(level))
    np.testing.assert_array_equal(read_video(path), expected)
    np.testing.assert_array_equal(read_frames(path, [11, 7]), expected[[11, 7]])
    assert probe(path)[:3] == expected.shape[:3]


def test_a_rotated_video_is_upright_in_packs_as_a_first_frame_and_extracted(level: Path, tmp_path: Path) -> None:
    path = tmp_path / "turned.mp4"
    turn(level, path, 90)
    expected = np.rot90(read_video(level), 1, (1, 2))
    with packs.write_pack(tmp_path / "pack") as pack:
        pack.add_encoded("turned.mp4", path)
    assert packs.probe(tmp_path / "pack" / "turned.mp4")[:3] == expected.shape[:3]
    np.testing.assert_array_equal(packs.read_frames(tmp_path / "pack" / "turned.mp4", range(12)), expected)
    np.testing.assert_array_equal(read_first_frame(path), expected[0])
    assert EXTRACT((path, 12, tmp_path / "frames")) == ""
    np.testing.assert_array_equal(read_video(tmp_path / "frames"), expected)


def test_decoded_frames_are_not_kept(level: Path) -> None:
    gc.collect()
    gc.disable()
    try:
        read_video(level)
        kept = sum(type(thing) is av.VideoFrame for thing in gc.get_objects())
    finally:
        gc.enable()
    assert kept <= 2  # those whose display matrix was read: one when the file was opened, one when it was decoded


def test_an_angle_that_is_not_right_is_named(level: Path, tmp_path: Path) -> None:
    turn(level, tmp_path / "tilted.mp4", 30)
    for read in (probe, read_video):
        with pytest.raises(VideoError, match=r"tilted\.mp4: .*turns it by -30 degrees; only right angles"):
            read(tmp_path / "tilted.mp4")


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_exif_orientation_in_motion_jpeg_is_applied(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = BytesIO()
    Image.fromarray(moving_pattern(1)[0]).save(encoded, "jpeg", exif=exif)
    with av.open(str(tmp_path / "camera.mov"), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuvj420p"
        for index in range(3):
            packet = av.Packet(encoded.getvalue())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, index, index, Fraction(1, 25)
            container.mux(packet)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(encoded)))
    video = read_video(tmp_path / "camera.mov")
    assert video[0].shape == expected.shape
    assert np.abs(video - expected.astype(int)).mean() < 3  # 43 if it is turned the other way


# Streams


def test_of_two_default_streams_the_best_is_read() -> None:
    with av.open(str(DATA / "nasa_13013.mp4")) as container:
        streams = [(stream.height, stream.disposition & Disposition.default) for stream in container.streams.video]
    assert streams == [(180, Disposition.default), (270, Disposition.default)]
    assert probe(DATA / "nasa_13013.mp4")[:3] == (390, 270, 480)


@pytest.mark.parametrize("default", [0, 1])
def test_of_two_streams_the_default_is_read(tmp_path: Path, default: int) -> None:
    rng = np.random.default_rng(0)
    with av.open(str(tmp_path / "two.mkv"), "w") as container:
        streams = []
        for index, (height, width) in enumerate([(16, 24), (32, 48)]):
            stream = container.add_stream("ffv1", rate=25)
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            stream.disposition = Disposition.default if index == default else Disposition(0)
            streams.append(stream)
        for _ in range(5):
            for stream in streams:
                pixels = rng.integers(0, 256, (stream.height, stream.width, 3), np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        for stream in streams:
            container.mux(stream.encode(None))
    expected = (5, 16, 24) if default == 0 else (5, 32, 48)
    assert probe(tmp_path / "two.mkv")[:3] == read_video(tmp_path / "two.mkv").shape[:3] == expected


def write_with_cover(path: Path, with_video: bool) -> None:
    """Write sound, a cover of 64x64, and five frames of 48x32 with FFmpeg's disposition `visual_impaired`."""
    cover = BytesIO()
    Image.new("RGB", (64, 64)).save(cover, "png")
    with av.open(str(path), "w") as container:
        container.add_attachment("cover.png", "image/png", cover.getvalue())
        sound = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        if with_video:
            stream = container.add_stream("ffv1", rate=25)
            stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
            stream.disposition = Disposition.visual_impaired
            for pixels in moving_pattern(5):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode(None))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.int16), layout="mono")
        silence.sample_rate = 8000
        container.mux(sound.encode(silence))


def test_a_cover_is_not_taken_for_the_video(tmp_path: Path) -> None:
    write_with_cover(tmp_path / "film.mkv", with_video=True)
    with av.open(str(tmp_path / "film.mkv")) as container:
        best = container.streams.best("video")  # what was read before
        assert best is not None
        assert best.disposition == Disposition.attached_pic
    assert probe(tmp_path / "film.mkv")[:3] == read_video(tmp_path / "film.mkv").shape[:3] == (5, 32, 48)


def test_a_file_with_only_sound_and_a_cover_is_named(tmp_path: Path) -> None:
    write_with_cover(tmp_path / "song.mkv", with_video=False)
    for read in (probe, read_video):
        with pytest.raises(VideoError, match=r"song\.mkv: has no video stream, only a cover"):
            read(tmp_path / "song.mkv")
