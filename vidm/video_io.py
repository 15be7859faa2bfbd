"""mp4, gif, npy or a frame folder <-> uint8 (T, H, W, 3). Ours; PyAV decodes containers, Pillow the rest.

    frames = read_frames("clip.mp4", [0, 5, 7])        # (3, H, W, 3), the very pixels that read_video gives
    write_video("copy.gif", read_video("clip.mp4"), fps=25)

A file that cannot be read raises VideoError, which names it. One damage goes untold: a .mkv, .webm or .avi that
was cut short may read as a shorter video, for nothing in it tells how many frames were meant.
"""

import os
import re
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from PIL import Image, ImageOps

from vidm.atomic import atomic_dir, atomic_write

CONTAINER_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
ANIMATION_SUFFIXES = (".gif", ".webp")
VIDEO_SUFFIXES = (*CONTAINER_SUFFIXES, *ANIMATION_SUFFIXES, ".npy")
FRAME_SUFFIXES = (".png", ".jpg", ".jpeg")

# The same frames are to give the same bytes: x264's output depends on the number of threads, and its macroblock
# tree reads memory that it never set when frames are small.
X264_OPTIONS = {"crf": "12", "threads": "1", "x264-params": "mbtree=0"}
SMPTE170M = 6  # the number by which H.264 tags BT.601 in the 525-line form (ITU-T H.273, tables 2 to 4)

# Frames in order, each as a function that turns it to RGB: one that is passed over is never converted.
# A function is good until the next one is drawn.
FrameStream = Generator[Callable[[], np.ndarray], None, None]


class VideoError(ValueError):
    """A video or image that cannot be read; the message names the file."""


class VideoInfo(NamedTuple):
    """What a video holds; `fps` is None where no single rate is kept, which is in all but containers."""

    num_frames: int
    height: int
    width: int
    fps: float | None


@contextmanager
def _failures_named(path: Path) -> Iterator[None]:
    """Turn whatever a decoder throws into a VideoError that names the file."""
    try:
        if not path.exists():
            raise FileNotFoundError(f"no such file or folder: {path}")
        yield
    except (VideoError, FileNotFoundError):
        raise
    except Exception as error:  # damaged bytes make decoders raise SyntaxError, IndexError and nearly anything else
        reason = " ".join(str(error).split()) or type(error).__name__
        raise VideoError(f"{path}: cannot be read as a video or image ({reason})") from error


# Containers


def _refuse_cut_mp4(path: Path) -> None:
    """Raise VideoError if the file ends inside its index or media box (ISO/IEC 14496-12, 4.2); FFmpeg may not."""
    end, position = path.stat().st_size, 0
    with path.open("rb") as file:
        while position + 8 <= end:
            file.seek(position)
            header = file.read(16)
            size, kind = int.from_bytes(header[:4], "big"), header[4:8]
            if size == 1:
                size = int.from_bytes(header[8:], "big")
            if kind in (b"moov", b"mdat") and position + size > end:
                raise VideoError(f"{path}: truncated, {position + size - end} bytes are missing")
            if size < 8:  # 0 means "to the end of the file"; the rest is not a box
                return
            position += size


@contextmanager
def _open_container(path: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    # "file:" keeps FFmpeg from taking a name with a colon for a protocol.
    with av.open(f"file:{path}") as container:
        if not container.streams.video:
            raise VideoError(f"{path}: has no video stream")
        if "mp4" in container.format.name:
            _refuse_cut_mp4(path)
        stream = container.streams.video[0]
        stream.thread_type = "NONE"  # the data loader's workers are the parallelism
        yield container, stream


def _rgb_from_yuv(frame: av.VideoFrame, reformatter: VideoReformatter) -> np.ndarray:
    # By the file's own matrix and range; what is not tagged is BT.601, narrow range, as FFmpeg takes it.
    # All is said in full because PyAV's defaults differ between its versions.
    known = {int(colorspace) for colorspace in Colorspace}
    rgb = reformatter.reformat(
        frame,
        format="rgb24",
        src_colorspace=frame.colorspace if frame.colorspace in known else Colorspace.ITU601,
        src_color_range=ColorRange.JPEG if frame.color_range == ColorRange.JPEG else ColorRange.MPEG,
        dst_color_range=ColorRange.JPEG,
    )
    return rgb.to_ndarray()


def _container_frames(path: Path) -> FrameStream:
    reformatter = VideoReformatter()  # one for all frames: setting one up costs more than a conversion
    with _open_container(path) as (container, stream):
        for frame in container.decode(stream):
            yield partial(_rgb_from_yuv, frame, reformatter)


def _probe_container(path: Path) -> VideoInfo:
    with _open_container(path) as (container, stream):
        if "mp4" in container.format.name:
            # The header's count knows nothing of edit lists; listing the packets that are shown is as quick.
            num_frames = sum(1 for packet in container.demux(stream) if packet.size and not packet.is_discard)
        else:
            num_frames = sum(1 for _ in container.decode(stream))
        if num_frames == 0:
            raise VideoError(f"{path}: holds no frames")
        fps = float(stream.average_rate) if stream.average_rate else None
        return VideoInfo(num_frames, stream.height, stream.width, fps)


def _write_mp4(path: Path, frames: np.ndarray, fps: float) -> None:
    # 4:2:0 keeps one colour per 2 x 2 pixels, so sides are even: an odd one repeats its last row or column.
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    reformatter = VideoReformatter()
    with av.open(f"file:{path}", "w", format="mp4", options={"movflags": "+faststart"}) as container:
        rate = Fraction(fps).limit_denominator(1001)  # holds 24000/1001 and 30000/1001
        stream = container.add_stream("libx264", rate=rate, options=X264_OPTIONS)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = SMPTE170M
        context.color_range = ColorRange.MPEG
        for array in frames:
            frame = reformatter.reformat(
                av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24"),
                format="yuv420p",
                dst_colorspace=Colorspace.ITU601,
                dst_color_range=ColorRange.MPEG,
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


# Images, animations, frame folders, arrays


def rgb_from_image(image: Image.Image) -> np.ndarray:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion would clip at 255
        grey = (np.asarray(image).astype(np.int64) / 257).round().clip(0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.array(image.convert("RGB"))


def _animation_frames(path: Path) -> FrameStream:
    with Image.open(path) as image:
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            yield partial(rgb_from_image, image)


def _write_animation(path: Path, frames: np.ndarray, fps: float) -> None:
    first, *rest = [Image.fromarray(frame) for frame in frames]
    # `lossless` speaks to WebP alone.
    first.save(path, save_all=True, append_images=rest, duration=round(1000 / fps), loop=0, lossless=True)


def natural_key(path: str | Path) -> tuple[list[str | int], str]:
    """Return a sort key under which frame_2 stands before frame_10: digits compare as numbers. Ours."""
    parts = re.split(r"([0-9]+)", str(path))
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], str(path)


def frame_files(folder: Path) -> list[Path]:
    """Return the visible png and jpg files that lie directly in a folder, in natural order. Ours."""
    names = [name for name in os.listdir(folder) if name.lower().endswith(FRAME_SUFFIXES) and name[0] != "."]
    return [folder / name for name in sorted(names, key=natural_key)]


def _read_frame_file(path: Path, size: tuple[int, int], first: Path) -> np.ndarray:
    with _failures_named(path), Image.open(path) as image:
        if image.size != size:
            sizes = "{}x{} but {} is {}x{}".format(*image.size, first.name, *size)
            raise VideoError(f"{path}: is {sizes}; the frames of a folder are of one size")
        return rgb_from_image(image)


def _folder_frames(folder: Path) -> FrameStream:
    files = frame_files(folder)
    if not files:
        raise VideoError(f"{folder}: a folder without png or jpg frames")
    with _failures_named(files[0]), Image.open(files[0]) as image:
        size = image.size
    for file in files:
        yield partial(_read_frame_file, file, size, files[0])


def _array_frames(path: Path) -> FrameStream:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3 or 0 in array.shape:
        raise VideoError(f"{path}: holds {array.dtype} {array.shape}; a video is uint8 (T, H, W, 3)")
    for frame in array:
        yield partial(np.array, frame)


# Public names


def _frames_of(path: Path) -> FrameStream:
    suffix = path.suffix.lower()
    if path.is_dir():
        return _folder_frames(path)
    if suffix in CONTAINER_SUFFIXES:
        return _container_frames(path)
    if suffix in ANIMATION_SUFFIXES:
        return _animation_frames(path)
    if suffix == ".npy":
        return _array_frames(path)
    raise VideoError(f"{path}: not a video by its name; use {' '.join(VIDEO_SUFFIXES)} or a folder of frames")


def probe(path: str | Path) -> VideoInfo:
    """Return a video's number of frames (as many as read_video gives), height and width in px, and rate.

    Decodes nothing of an mp4 and only the first frame of a folder or npy; other containers and animations are
    gone through once. Raises VideoError, FileNotFoundError. Ours.
    """
    path = Path(path)
    with _failures_named(path):
        if path.is_file() and path.suffix.lower() in CONTAINER_SUFFIXES:
            return _probe_container(path)
        with closing(_frames_of(path)) as stream:
            height, width, _ = next(stream)().shape
            return VideoInfo(1 + sum(1 for _ in stream), height, width, None)


def read_frames(path: str | Path, indices: Iterable[int]) -> np.ndarray:
    """Read frames by number, in the order asked, repeats allowed: uint8 (len(indices), H, W, 3).

    Decodes from the start up to the last one wanted, so the pixels are those of read_video, bit for bit.
    Raises VideoError (also for a number that is not there), FileNotFoundError. Ours.
    """
    path, indices = Path(path), [int(index) for index in indices]
    wanted = set(indices)
    frames: dict[int, np.ndarray] = {}
    num_seen = 0
    with _failures_named(path), closing(_frames_of(path)) as stream:
        for index, to_rgb in enumerate(stream):
            num_seen += 1
            if index in wanted:
                frames[index] = to_rgb()
            if len(frames) == len(wanted):
                break
        missing = sorted(wanted - frames.keys())
        if missing:
            raise VideoError(f"{path}: frame {missing[0]} was asked for, but it has {num_seen}, counted from 0")
        return np.stack([frames[index] for index in indices])


def read_video(path: str | Path) -> np.ndarray:
    """Read all frames of a video: uint8 (T, H, W, 3). Raises VideoError, FileNotFoundError. Ours."""
    path = Path(path)
    with _failures_named(path), closing(_frames_of(path)) as stream:
        frames = [to_rgb() for to_rgb in stream]
        if not frames:
            raise VideoError(f"{path}: holds no frames")
        return np.stack(frames)


def read_image(path: str | Path) -> np.ndarray:
    """Read a still image (png, jpg, webp, bmp, ...): uint8 (H, W, 3).

    16-bit grey is scaled to 8 bits, palettes and CMYK become RGB, transparency is laid on white, a camera's turn
    is undone. Raises VideoError, FileNotFoundError. Ours.
    """
    path = Path(path)
    with _failures_named(path), Image.open(path) as image:
        return rgb_from_image(image)


def write_video(path: str | Path, frames: np.ndarray, fps: float = 25) -> None:
    """Write uint8 (T, H, W, 3) frames as the suffix says, whole or not at all; missing parents are made.

    .mp4: H.264, 4:2:0, near lossless, plays in any browser; an odd side grows by one repeated row or column.
    .gif (256 colours a frame), .webp (lossless): looping; neighbouring equal frames become one longer frame.
    .npy: the array. No suffix: a new or empty folder of 00000.png, 00001.png, ... `fps` > 0 is kept by the first
    three. Raises ValueError for another suffix, other frames or another rate. Ours.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise ValueError(f"{path}: cannot write {frames.dtype} {frames.shape}; a video is uint8 (T, H, W, 3)")
    if fps <= 0:
        raise ValueError(f"{path}: cannot be written at {fps} frames per second; give more than 0")
    if suffix == "":
        with atomic_dir(path) as folder:
            for index, frame in enumerate(frames):
                Image.fromarray(frame).save(folder / f"{index:05d}.png")
    elif suffix == ".npy":
        with atomic_write(path) as temporary:
            np.save(temporary, frames)
    elif suffix in (".mp4", *ANIMATION_SUFFIXES):
        with atomic_write(path) as temporary:
            (_write_mp4 if suffix == ".mp4" else _write_animation)(temporary, frames, fps)
    else:
        raise ValueError(f"{path}: cannot write {suffix}; use .mp4 .gif .webp .npy, or no suffix: a png folder")
