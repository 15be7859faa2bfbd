"""Tests of reading and writing videos: exact frames, errors that name the file, correct colours, atomic writes."""

import gc
import hashlib
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from PIL import Image

from vidm import video_containers as containers
from vidm import video_io
from vidm.layouts import index_clips, survey_clips
from vidm.video_containers import frames_by_seeking
from vidm.video_io import VideoError, VideoInfo, natural_key, probe, read_frames, read_image, read_video, write_video

FORMATS = ["b_frames.mp4", "copy.mkv", "vp9.webm", "vp8.webm", "divx.avi", "a.gif", "a.webp", "a.npy", "folder"]
# Files that are read by seeking. All have several groups of pictures; the frame rate of some changes.
SEEKABLE = ["groups.mp4", "groups.mkv", "changing_rate.mp4", "changing_rate.mkv", "no_count.mp4", "av1.mp4"]
SEEKABLE += ["groups.webm", "edit_list_in_group.mp4"]
# Files that are decoded from the start, because decoding cannot start elsewhere or packets do not number the frames.
NOT_SEEKABLE = ["open_groups.mp4", "refreshed.mp4", "divx.mp4", "divx.avi", "vp8.webm"]
REAL = Path(__file__).parent / "data" / "nasa_13013.mp4"


def moving_pattern(num_frames: int, height: int = 32, width: int = 48) -> np.ndarray:
    t, y, x = np.mgrid[:num_frames, :height, :width]
    return np.stack([4 * x + 9 * t, 6 * y + 5 * t, 2 * (x + y) + 7 * t], axis=-1).astype(np.uint8)


def encode(
    path: Path,
    frames: np.ndarray,
    codec: str,
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
    times_ms: np.ndarray | None = None,
    **tags: object,
) -> None:
    """Write with PyAV directly, so that reading is not only tested on files of write_video."""
    matrix = Colorspace.ITU709 if tags.get("colorspace") == 1 else Colorspace.ITU601
    range_ = ColorRange.JPEG if tags.get("color_range") == 2 else ColorRange.MPEG
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25 if times_ms is None else 1000, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        reformatter = VideoReformatter()
        for index, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame = reformatter.reformat(frame, format=pixels, dst_colorspace=matrix, dst_color_range=range_)
            if times_ms is not None:
                frame.pts, frame.time_base = int(times_ms[index]), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def remux(source: Path, target: Path, skip: int = 0, **options: str) -> None:
    """Copy the packets; an edit list removes the first `skip` frames, but some of their packets remain."""
    with av.open(str(source)) as old, av.open(str(target), "w", options=options) as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        for packet in old.demux(stream):
            if packet.size:
                shift = round(skip / 25 / packet.time_base)
                packet.stream, packet.pts, packet.dts = copy, packet.pts - shift, packet.dts - shift
                new.mux(packet)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same twenty frames in every format."""
    folder, frames = tmp_path_factory.mktemp("videos"), moving_pattern(20)
    for name in ("b_frames.mp4", "a.gif", "a.webp", "a.npy", "folder"):
        write_video(folder / name, frames)
    remux(folder / "b_frames.mp4", folder / "copy.mkv")
    remux(folder / "b_frames.mp4", folder / "index_last.mp4")
    remux(folder / "b_frames.mp4", folder / "edit_list.mp4", skip=7)
    encode(folder / "vp9.webm", frames, "libvpx-vp9")
    encode(folder / "vp8.webm", frames, "libvpx")
    encode(folder / "divx.avi", frames, "mpeg4", bit_rate=4_000_000)
    groups = {"gop_size": 6, "max_b_frames": 3}
    encode(folder / "groups.mp4", frames, "libx264", **groups)
    times_ms = np.cumsum(np.random.default_rng(0).integers(5, 90, size=20))
    encode(folder / "changing_rate.mp4", frames, "libx264", times_ms=times_ms, **groups)
    for name in ("groups", "changing_rate"):
        remux(folder / f"{name}.mp4", folder / f"{name}.mkv")
    remux(folder / "groups.mp4", folder / "no_count.mp4", movflags="frag_keyframe+empty_moov")
    remux(folder / "groups.mp4", folder / "edit_list_in_group.mp4", skip=3)
    encode(folder / "av1.mp4", moving_pattern(20, 64, 96), "libsvtav1", gop_size=6)  # the encoder's smallest frames
    encode(folder / "groups.webm", frames, "libvpx-vp9", gop_size=6)
    encode(folder / "divx.mp4", frames, "mpeg4", bit_rate=4_000_000, **groups)
    encode(folder / "open_groups.mp4", frames, "libx264", options={"x264-params": "open-gop=1:b-adapt=0"}, **groups)
    encode(folder / "refreshed.mp4", frames, "libx264", options={"x264-params": "intra-refresh=1"}, **groups)
    return folder


# Reading


@pytest.mark.parametrize("name", [*FORMATS, *SEEKABLE, *NOT_SEEKABLE[:3], "edit_list.mp4"])
def test_every_frame_read_alone_equals_the_frame_of_read_video(videos: Path, name: str) -> None:
    video = read_video(videos / name)
    assert len(video) == {"edit_list.mp4": 13, "edit_list_in_group.mp4": 17}.get(name, 20)
    assert video.shape[1:] == ((64, 96, 3) if name == "av1.mp4" else (32, 48, 3))
    assert video.dtype == np.uint8
    for index in range(len(video)):
        np.testing.assert_array_equal(read_frames(videos / name, [index])[0], video[index])


@pytest.mark.parametrize("name", SEEKABLE)
def test_three_frames_are_read_without_sequential_decoding(
    videos: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = read_video(videos / name)
    monkeypatch.delattr(video_io, "frames_in_order")
    for indices in ([0, 12, 13], [5, 6, 7], [16, 2], list(range(17))):
        np.testing.assert_array_equal(read_frames(videos / name, indices), video[indices])


@pytest.mark.parametrize("name", NOT_SEEKABLE)
def test_seeking_is_not_used_if_it_may_be_inexact(videos: Path, name: str) -> None:
    in_the_first_group = frames_by_seeking(videos / name, {0})
    assert len(in_the_first_group) == (name in ("open_groups.mp4", "refreshed.mp4"))
    video = read_video(videos / name)
    np.testing.assert_array_equal(read_frames(videos / name, [0, 19]), video[[0, 19]])


def test_a_frame_after_a_damaged_one_is_read(videos: Path, tmp_path: Path) -> None:
    with av.open(str(videos / "groups.mp4")) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray((videos / "groups.mp4").read_bytes())
    position, size = packets[2]
    content[position : position + size] = bytes(size)
    (tmp_path / "damaged.mp4").write_bytes(content)
    with pytest.raises(VideoError, match=r"damaged\.mp4"):
        read_video(tmp_path / "damaged.mp4")
    whole = read_video(videos / "groups.mp4")
    np.testing.assert_array_equal(read_frames(tmp_path / "damaged.mp4", [6, 19]), whole[[6, 19]])


def test_a_frame_that_the_decoder_drops_does_not_shift_others(videos: Path, tmp_path: Path) -> None:
    with av.open(str(videos / "av1.mp4")) as container:
        packets = sorted((packet.pts, packet.pos, packet.size) for packet in container.demux(video=0) if packet.size)
    _, position, size = packets[3]
    content = bytearray((videos / "av1.mp4").read_bytes())
    # A padding unit, whose length is a two-byte number, seven bits each (AV1 specification, 4.10.5 and 5.7).
    content[position : position + size] = bytes([0x7A, (size - 3) % 128 + 128, (size - 3) // 128]) + bytes(size - 3)
    (tmp_path / "lost.mp4").write_bytes(content)
    with av.open(str(tmp_path / "lost.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 19  # without an error
    whole = read_video(videos / "av1.mp4")
    np.testing.assert_array_equal(read_frames(tmp_path / "lost.mp4", [0, 12, 19]), whole[[0, 12, 19]])
    for read in (read_video, lambda path: read_frames(path, [3]), lambda path: read_frames(path, [5])):
        with pytest.raises(VideoError, match=r"lost\.mp4: damaged, frame 3 cannot be decoded"):
            read(tmp_path / "lost.mp4")


def test_the_pixels_of_a_damaged_frame_do_not_depend_on_where_decoding_started(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 40, size=(64, 96, 1))
    groups = {"gop_size": 12, "max_b_frames": 3}
    encode(tmp_path / "good.mp4", (moving_pattern(36, 64, 96) + noise).astype(np.uint8), "libx264", **groups)
    with av.open(str(tmp_path / "good.mp4")) as container:
        packets = sorted((packet.pts, packet.pos, packet.size) for packet in container.demux(video=0) if packet.size)
    whole = (tmp_path / "good.mp4").read_bytes()
    for number in range(13, 23):
        _, position, size = packets[number]
        for place in range(position + 12, position + size, size // 4):
            content = bytearray(whole)
            content[place] ^= 0xFF
            path = tmp_path / f"{place}.mp4"
            path.write_bytes(content)
            try:
                video = read_video(path)
            except VideoError:
                continue
            for index in range(12, 24):
                np.testing.assert_array_equal(read_frames(path, [index])[0], video[index])


def test_decoding_starts_where_no_frame_needs_an_earlier_one() -> None:
    # In order of decoding: a closed group; a group whose second frame is shown before its keyframe; a group with a
    # hidden frame; a closed group.
    times = np.array([0, 3, 1, 2, 5, 4, 6, 7, 8, 9, 10, 11, 13, 12])
    keys = np.isin(times, [0, 5, 7, 11])
    shown = times != 9
    table = containers._table(VideoInfo(13, 8, 8, 25.0), times, keys, shown)
    assert table is not None
    assert table.times.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13]
    assert table.starts.tolist() == [0, 10]
    assert table.last_before.tolist() == [0, 3, 3, 3, 5, 5, 6, 7, 8, 9, 10, 12, 12]


def test_a_replaced_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, moving_pattern(5))
    assert probe(path).num_frames == 5
    write_video(path, moving_pattern(9)[::-1])
    assert probe(path).num_frames == 9
    np.testing.assert_array_equal(read_frames(path, [8])[0], read_video(path)[8])


def test_frames_of_a_real_film_read_alone_equal_those_of_read_video() -> None:
    video = read_video(REAL)
    assert probe(REAL)[:3] == video.shape[:3] == (390, 270, 480)
    for indices in ([0, 239, 240], [241], [110, 111], [389], [300, 3]):
        np.testing.assert_array_equal(read_frames(REAL, indices), video[indices])


@pytest.mark.slow
def test_every_frame_of_a_real_film_read_alone_equals_the_frame_of_read_video() -> None:
    video = read_video(REAL)
    for index in range(len(video)):
        np.testing.assert_array_equal(read_frames(REAL, [index])[0], video[index])


def test_the_mp4_of_these_tests_has_b_frames(videos: Path) -> None:
    with av.open(str(videos / "b_frames.mp4")) as container:
        assert any(frame.pict_type == av.video.frame.PictureType.B for frame in container.decode(video=0))


@pytest.mark.parametrize("name", FORMATS)
def test_frames_are_returned_in_the_requested_order_with_repeats(videos: Path, name: str) -> None:
    video = read_video(videos / name)
    np.testing.assert_array_equal(read_frames(videos / name, [11, 3, 3, 0]), video[[11, 3, 3, 0]])


@pytest.mark.parametrize("name", FORMATS)
def test_frames_read_equal_those_written(videos: Path, name: str) -> None:
    error = np.abs(read_video(videos / name).astype(int) - moving_pattern(20)).mean()
    lossless = name in ("a.webp", "a.npy", "folder")
    assert error == 0 if lossless else error < 8


@pytest.mark.parametrize("name", [*FORMATS, *SEEKABLE, *NOT_SEEKABLE[:3], "index_last.mp4", "edit_list.mp4"])
def test_probe_counts_the_frames_that_reading_returns(videos: Path, name: str) -> None:
    info = probe(videos / name)
    assert (info.num_frames, info.height, info.width) == read_video(videos / name).shape[:3]
    is_container = name.endswith((".mp4", ".mkv", ".webm", ".avi"))
    if not name.startswith("changing_rate"):
        assert info.fps == (25.0 if is_container else None)


def test_the_count_in_an_mp4_header_is_wrong_under_an_edit_list(videos: Path) -> None:
    with av.open(str(videos / "edit_list.mp4")) as container:
        assert container.streams.video[0].frames == 20  # so probe must not use it
    assert probe(videos / "edit_list.mp4").num_frames == 13


def test_frames_of_a_folder_are_in_natural_order(tmp_path: Path) -> None:
    for number in (10, 9, 1, 0, 2):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"frame_{number}.png")
    Image.new("RGB", (9, 9)).save(tmp_path / ".thumbnail.png")
    (tmp_path / "labels.json").write_text("{}")
    assert read_video(tmp_path)[:, 0, 0, 0].tolist() == [0, 1, 2, 9, 10]
    assert sorted(["b1", "a10", "a9", "a09"], key=natural_key) == ["a09", "a9", "a10", "b1"]


def test_a_name_with_a_colon_is_a_file_and_not_a_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_video("http:clip.mp4", moving_pattern(3))
    assert read_video("http:clip.mp4").shape == (3, 32, 48, 3)


OLDER_CONTAINERS = {
    "a.3gp": ("libx264", "3gp"),
    "a.mpg": ("mpeg1video", "mpeg"),
    "a.mpeg": ("mpeg2video", "mpeg"),
    "a.ts": ("libx264", "mpegts"),
    "a.m2ts": ("libx264", "mpegts"),
    "a.mts": ("mpeg2video", "mpegts"),
    "a.wmv": ("wmv2", "asf"),
    "a.flv": ("flv", "flv"),
}


@pytest.mark.parametrize("name", OLDER_CONTAINERS)
def test_older_containers_are_read(tmp_path: Path, name: str) -> None:
    codec, container = OLDER_CONTAINERS[name]
    encode(tmp_path / name, moving_pattern(12), codec, gop_size=6)
    with av.open(str(tmp_path / name)) as opened:
        assert container in opened.format.name.split(",")
    video = read_video(tmp_path / name)
    assert np.abs(video.astype(int) - moving_pattern(12)).mean() < 8
    assert probe(tmp_path / name) == (12, 32, 48, 25.0)
    for index in range(12):
        np.testing.assert_array_equal(read_frames(tmp_path / name, [index])[0], video[index])
    assert survey_clips(tmp_path).paths == [tmp_path / name]


def test_an_mpeg_stream_is_decoded_from_its_start_because_a_packet_can_be_a_field(tmp_path: Path) -> None:
    encode(tmp_path / "a.ts", moving_pattern(5), "libx264")
    assert frames_by_seeking(tmp_path / "a.ts", {0}) == {}


def test_an_animated_png_is_a_video(tmp_path: Path) -> None:
    first, *rest = [Image.fromarray(frame) for frame in moving_pattern(5)]
    first.save(tmp_path / "a.apng", save_all=True, append_images=rest)
    np.testing.assert_array_equal(read_video(tmp_path / "a.apng"), moving_pattern(5))
    assert index_clips(tmp_path).num_frames == [5]


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "tiff", "webp"])
def test_a_folder_of_images_is_a_clip(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "clip").mkdir()
    for index, frame in enumerate(moving_pattern(5)):
        Image.fromarray(frame).save(tmp_path / "clip" / f"{index}.{suffix}", lossless=True)
    np.testing.assert_array_equal(read_video(tmp_path / "clip"), moving_pattern(5))
    index = index_clips(tmp_path, min_frames=5)
    assert (index.paths, index.num_frames, index.skipped) == ([tmp_path / "clip"], [5], [])


def test_animated_webp_files_are_videos_and_not_frames(tmp_path: Path) -> None:
    for name in ("a.webp", "b.webp"):
        write_video(tmp_path / name, moving_pattern(4))
    write_video(tmp_path / "still.webp", moving_pattern(1))
    assert index_clips(tmp_path).num_frames == [4, 4, 1]


# Errors


def assert_refused(path: Path) -> None:
    for read in (probe, read_video, lambda p: read_frames(p, [0])):
        with pytest.raises(VideoError) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["b_frames.mp4", "index_last.mp4", "groups.mkv", "groups.webm", "divx.avi"])
def test_a_container_truncated_anywhere_is_named_in_the_error(videos: Path, tmp_path: Path, name: str) -> None:
    whole = (videos / name).read_bytes()
    undetected = 8 if name == "divx.avi" else 0  # bytes at the end
    ends = np.linspace(1, len(whole) - 1 - undetected, 40).astype(int)
    for end in {*ends, *range(len(whole) - undetected - 9, len(whole) - undetected)}:
        cut = tmp_path / f"cut_at_{end}{Path(name).suffix}"
        cut.write_bytes(whole[:end])
        assert_refused(cut)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.npy"])
def test_a_truncated_animation_or_array_is_named_in_the_error(videos: Path, tmp_path: Path, name: str) -> None:
    whole = (videos / name).read_bytes()
    # The last two bytes of a gif only mark its end.
    for end in np.linspace(1, len(whole) - 3, 30).astype(int):
        cut = tmp_path / f"cut_at_{end}{Path(name).suffix}"
        cut.write_bytes(whole[:end])
        with pytest.raises(VideoError, match=cut.name):
            read_video(cut)


@pytest.mark.parametrize("rest", ["truncated", "zeros", "one bit flipped"])
def test_a_png_damaged_anywhere_is_named_in_the_error(videos: Path, tmp_path: Path, rest: str) -> None:
    """Decoded without a look at the checksums, zeros at the end of a file would be pixels."""
    whole = (videos / "folder" / "00007.png").read_bytes()
    write_video(tmp_path / "clip", moving_pattern(8))
    for end in np.linspace(0, len(whole) - 13, 30).astype(int):  # the closing chunk, of 12 bytes, has no pixels
        after = {"truncated": b"", "zeros": bytes(len(whole) - end), "one bit flipped": whole[end + 1 :]}[rest]
        changed = bytes([whole[end] ^ 4]) if rest == "one bit flipped" else b""
        (tmp_path / "clip" / "00007.png").write_bytes(whole[:end] + changed + after)
        with pytest.raises(VideoError, match=r"00007\.png"):
            read_video(tmp_path / "clip")
        with pytest.raises(VideoError, match=r"00007\.png"):
            read_image(tmp_path / "clip" / "00007.png")


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".avi", ".gif", ".webp", ".npy"])
@pytest.mark.parametrize("content", [b"", b"this is a text\n" * 100, bytes(5000)], ids=["empty", "text", "zeros"])
def test_a_file_that_is_not_a_video_is_named_in_the_error(tmp_path: Path, suffix: str, content: bytes) -> None:
    (tmp_path / f"fake{suffix}").write_bytes(content)
    assert_refused(tmp_path / f"fake{suffix}")


def test_a_file_with_only_sound_is_named_in_the_error(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert_refused(tmp_path / "sound.mp4")


def test_other_arrays_other_suffixes_and_empty_folders_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "features.npy", np.zeros((5, 400), np.float32))
    (tmp_path / "notes.txt").write_text("not a video")
    (tmp_path / "empty").mkdir()
    for name in ("features.npy", "notes.txt", "empty"):
        assert_refused(tmp_path / name)


def test_a_file_without_read_permission_is_named_in_the_error(videos: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked.mp4"
    locked.write_bytes((videos / "b_frames.mp4").read_bytes())
    locked.chmod(0)
    user = os.geteuid()
    if user == 0:  # root can read any file, so become another user
        os.seteuid(65534)
    try:
        assert_refused(locked)
    finally:
        os.seteuid(user)


def test_a_missing_file_raises_file_not_found(tmp_path: Path) -> None:
    for read in (probe, read_video, read_image, lambda p: read_frames(p, [0])):
        with pytest.raises(FileNotFoundError, match=r"no such file or folder: .*gone\.mp4"):
            read(tmp_path / "gone.mp4")


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("index", [20, -1])
def test_a_frame_number_out_of_range_is_named_with_the_number_of_frames(videos: Path, name: str, index: int) -> None:
    with pytest.raises(VideoError, match=rf"{name}: frame {index} was requested, but it has 20 frames"):
        read_frames(videos / name, [0, index])


def test_a_frame_of_another_size_is_named_in_the_error(tmp_path: Path) -> None:
    write_video(tmp_path / "clip", moving_pattern(5))
    Image.new("RGB", (10, 20)).save(tmp_path / "clip" / "00003.png")
    with pytest.raises(VideoError, match=r"00003\.png: is 10x20 but 00000\.png is 48x32"):
        read_video(tmp_path / "clip")


@pytest.mark.parametrize("turned", [[2], range(5)])
def test_frames_turned_by_exif_have_one_upright_size_or_are_named(tmp_path: Path, turned: list[int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    for suffix in ("jpg", "png", "tif"):
        folder = tmp_path / suffix
        folder.mkdir()
        for index, frame in enumerate(moving_pattern(5)):
            Image.fromarray(frame).save(folder / f"{index}.{suffix}", exif=exif if index in turned else Image.Exif())
        if len(turned) == 5:
            assert probe(folder)[:3] == read_video(folder).shape[:3] == (5, 48, 32)
        else:
            for read in (read_video, lambda path: read_frames(path, [2])):
                with pytest.raises(VideoError, match=rf"2\.{suffix}: is 32x48 but 0\.{suffix} is 48x32; all frames"):
                    read(folder)


@pytest.mark.parametrize("name", ["pipe.mp4", "pipe.webp", "pipe.npy", "clip/0.png"])
def test_a_pipe_is_named_and_not_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / "clip").mkdir()
    os.mkfifo(tmp_path / name)
    # In another process, since opening a pipe that nobody writes to takes forever.
    code = "import sys; from vidm.layouts import survey_clips; print(survey_clips(sys.argv[1]).skipped_message())"
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, timeout=60)
    assert done.stdout == f"skipped: {tmp_path / name}: is a pipe or a device and not a file\n"


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files where the system lists them")
def test_no_file_stays_open(videos: Path, tmp_path: Path) -> None:
    whole = (videos / "b_frames.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[:-50])
    (tmp_path / "not_utf8.mp4").write_bytes(whole.replace(b"isom", b"is\x97m"))  # metadata
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for name in FORMATS:
        read_frames(videos / name, [1])
    read_frames(tmp_path / "not_utf8.mp4", [1])
    errors = []  # kept, because a traceback can keep a file open
    for path, index in ((tmp_path / "cut.mp4", 0), (videos / "b_frames.mp4", 99), (videos / "a.gif", 99)):
        with pytest.raises(VideoError) as error:
            read_frames(path, [index])
        errors.append(error)
    assert len(os.listdir("/proc/self/fd")) == before


# Colours

FLAT_COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128), (255, 255, 255), (0, 0, 0), (30, 200, 90)]


def flat_frames() -> np.ndarray:
    return np.array(FLAT_COLOURS, np.uint8)[:, None, None].repeat(64, 1).repeat(64, 2)


def worst_mean_colour_error(path: Path) -> float:
    return float(np.abs(read_video(path).mean((1, 2)) - FLAT_COLOURS).max())


@pytest.mark.parametrize("name", ["flat.mp4", "flat.gif", "flat.webp", "flat.npy", "flat"])
def test_flat_colours_survive_a_round_trip(tmp_path: Path, name: str) -> None:
    write_video(tmp_path / name, flat_frames())
    assert worst_mean_colour_error(tmp_path / name) < 3


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "tags"),
    [
        ("untagged.mp4", "libx264", "yuv420p", {}),
        ("bt709.mp4", "libx264", "yuv420p", {"colorspace": 1, "color_range": 1}),
        ("full_range.mp4", "libx264", "yuv420p", {"colorspace": 5, "color_range": 2}),
        ("rgb.mp4", "libx264rgb", "rgb24", {}),
        ("ten_bits.mkv", "ffv1", "yuv420p10le", {}),
    ],
)
def test_colours_follow_the_matrix_and_range_in_the_file(
    tmp_path: Path, name: str, codec: str, pixels: str, tags: dict[str, int]
) -> None:
    encode(tmp_path / name, flat_frames(), codec, pixels, **tags)
    assert worst_mean_colour_error(tmp_path / name) <= 4


def test_a_written_mp4_has_its_matrix_and_range(videos: Path) -> None:
    with av.open(str(videos / "b_frames.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.pix_fmt, int(context.colorspace), int(context.color_range)) == ("yuv420p", 6, 1)


# Writing


def test_odd_sides_grow_by_one_repeated_row_and_column(tmp_path: Path) -> None:
    frames = moving_pattern(4, 31, 45)
    write_video(tmp_path / "odd.mp4", frames)
    video = read_video(tmp_path / "odd.mp4").astype(int)
    assert video.shape == (4, 32, 46, 3)
    assert np.abs(video - np.pad(frames, ((0, 0), (0, 1), (0, 1), (0, 0)), mode="edge")).mean() < 8


@pytest.mark.parametrize("fps", [0.1, 8, 25, 30000 / 1001])
def test_the_frame_rate_is_stored(tmp_path: Path, fps: float) -> None:
    write_video(tmp_path / "a.mp4", moving_pattern(5), fps=fps)
    assert probe(tmp_path / "a.mp4").fps == pytest.approx(fps, rel=1e-6)
    write_video(tmp_path / "a.gif", moving_pattern(5), fps=fps)
    with Image.open(tmp_path / "a.gif") as image:
        assert image.info["duration"] == pytest.approx(1000 / fps, abs=10)  # gif counts hundredths of a second
        assert image.info["loop"] == 0


def test_a_browser_can_play_an_mp4_before_it_is_completely_loaded(videos: Path) -> None:
    content = (videos / "b_frames.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


def test_the_same_frames_give_the_same_mp4_bytes_in_any_process(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np; from vidm.video_io import write_video;"
        "t, y, x = np.mgrid[:20, :38, :52];"
        "write_video(sys.argv[1], np.stack([4 * x + 3 * t, 5 * y + 2 * t, x + y + t], -1).astype(np.uint8))"
    )
    hashes = set()
    for fill in ("0", "17", "200"):  # glibc fills uninitialized memory with this
        path = tmp_path / f"{fill}.mp4"
        subprocess.run([sys.executable, "-c", code, path], env={**os.environ, "MALLOC_PERTURB_": fill}, check=True)
        hashes.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(hashes) == 1


def test_frames_that_are_not_a_video_are_not_written(tmp_path: Path) -> None:
    for frames in (np.zeros((5, 8, 8), np.uint8), np.zeros((5, 8, 8, 3)), np.zeros((0, 8, 8, 3), np.uint8)):
        with pytest.raises(ValueError, match=r"a\.mp4: cannot write"):
            write_video(tmp_path / "a.mp4", frames)
    with pytest.raises(ValueError, match=r"a\.gif: cannot be written at 0 frames per second"):
        write_video(tmp_path / "a.gif", moving_pattern(2), fps=0)
    with pytest.raises(ValueError, match=r"cannot write \.wmv"):
        write_video(tmp_path / "a.wmv", moving_pattern(2))
    assert list(tmp_path.iterdir()) == []


# Still images


def test_images_of_every_mode_are_converted_to_rgb(tmp_path: Path) -> None:
    half_clear = Image.new("RGBA", (4, 2), (255, 0, 0, 0))
    half_clear.putpixel((0, 0), (255, 0, 0, 255))
    half_clear.save(tmp_path / "alpha.png")
    Image.fromarray(np.full((2, 4), 128 * 257, np.uint16)).save(tmp_path / "grey16.png")
    Image.new("CMYK", (4, 2), (0, 0, 0, 0)).save(tmp_path / "cmyk.jpg")
    Image.new("P", (4, 2), 0).save(tmp_path / "palette.bmp")
    Image.new("RGB", (4, 2), (1, 2, 3)).save(tmp_path / "plain.webp", lossless=True)
    expected = {
        "alpha.png": (255, 255, 255),
        "grey16.png": (128, 128, 128),
        "cmyk.jpg": (255, 255, 255),
        "palette.bmp": (0, 0, 0),
        "plain.webp": (1, 2, 3),
    }
    for name, colour in expected.items():
        image = read_image(tmp_path / name)
        assert image.shape == (2, 4, 3), name
        assert image.dtype == np.uint8, name
        assert tuple(image[1, 3]) == colour, name
    assert tuple(read_image(tmp_path / "alpha.png")[0, 0]) == (255, 0, 0)


@pytest.mark.parametrize("name", ["grey.tif", "grey.png"])
def test_grey_of_more_than_8_bits_is_scaled(tmp_path: Path, name: str) -> None:
    levels = np.array([[0, 1, 128, 255]], np.uint8)
    deep = levels.astype(np.float32) / 255 if name == "grey.tif" else levels.astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / name)
    np.testing.assert_array_equal(read_image(tmp_path / name), levels[:, :, None].repeat(3, 2))


@pytest.mark.parametrize(
    ("pixels", "why"),
    [
        (np.array([[0, 255]], np.float32), "float32 pixels are from 0 to 255; 0 to 1 can be converted"),
        (np.array([[-1, 1]], np.float32), "float32 pixels are from -1 to 1; 0 to 1 can be converted"),
        (np.array([[0, np.nan]], np.float32), "float32 pixels are from nan to nan; 0 to 1 can be converted"),
        (np.array([[0, 65536]], np.int32), "int32 pixels are from 0 to 65536; 0 to 65535 can be converted"),
    ],
)
def test_grey_of_an_unknown_range_is_refused(tmp_path: Path, pixels: np.ndarray, why: str) -> None:
    Image.fromarray(pixels).save(tmp_path / "deep.tif")
    with pytest.raises(VideoError, match=f"deep.tif: .*its {why}"):
        read_image(tmp_path / "deep.tif")


def test_the_first_page_of_a_tiff_is_read(tmp_path: Path) -> None:
    pages = [Image.new("RGB", (4, 2), (level, 0, 0)) for level in (10, 20)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    assert read_image(tmp_path / "pages.tif")[0, 0, 0] == 10


def test_the_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    Image.new("RGB", (40, 20)).save(tmp_path / "photo.jpg", exif=exif)
    assert read_image(tmp_path / "photo.jpg").shape == (40, 20, 3)


# Errors that a second try does not show


@pytest.mark.parametrize("error", [SystemError, OSError, MemoryError])
@pytest.mark.parametrize("name", ["b_frames.mp4", "a.gif", "a.npy", "folder"])
def test_a_reading_error_that_a_second_try_does_not_show_is_not_damage(
    videos: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: type[Exception]
) -> None:
    expected, errors = read_video(videos / name), [error("under load")]
    frames_of = video_io._frames_of

    def fail_once(path: Path) -> Any:
        if errors:
            raise errors.pop()
        return frames_of(path)

    monkeypatch.setattr(video_io, "_frames_of", fail_once)
    np.testing.assert_array_equal(read_video(videos / name), expected)
    assert not errors
    errors = [error("again"), error("under load")]
    with pytest.raises(VideoError, match=rf"{name}: cannot be read .*again"):
        read_video(videos / name)


@pytest.mark.parametrize("name", ["b_frames.mp4", "divx.avi", "a.gif", "a.webp", "a.npy", "folder"])
def test_no_reader_uses_the_parser_of_python(videos: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """In several threads, it may fail (github.com/python/cpython/issues/106905)."""
    monkeypatch.setattr("ast.parse", lambda *args, **options: pytest.fail("Python's parser was called"))
    assert probe(videos / name).num_frames == len(read_video(videos / name)) == 20
