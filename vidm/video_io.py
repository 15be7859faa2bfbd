"""mp4, gif, npy or a frame folder <-> uint8 (T, H, W, 3). Ours; PyAV decodes containers, Pillow the rest.

    frames = read_frames("clip.mp4", [0, 5, 7])        # (3, H, W, 3), the very pixels that read_video gives
    write_video("copy.gif", read_video("clip.mp4"), fps=25)

A file that cannot be read raises VideoError, which names it.
"""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from vidm.files import atomic_dir, atomic_write
from vidm.video_containers import (
    CONTAINER_SUFFIXES,
    FrameStream,
    VideoError,
    VideoInfo,
    frames_by_seeking,
    frames_in_order,
    missing_bytes,
    probe_container,
    write_mp4,
)

ANIMATION_SUFFIXES = (".gif", ".webp")
VIDEO_SUFFIXES = (*CONTAINER_SUFFIXES, *ANIMATION_SUFFIXES, ".npy")
FRAME_SUFFIXES = (".png", ".jpg", ".jpeg")


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


def _is_container(path: Path) -> bool:
    """Tell whether PyAV is to read it. Raises VideoError if so but the file was cut short: FFmpeg may not notice."""
    if path.is_dir() or path.suffix.lower() not in CONTAINER_SUFFIXES:
        return False
    if missing := missing_bytes(path):
        raise VideoError(f"{path}: truncated, {missing} bytes are missing")
    return True


def _frames_of(path: Path) -> FrameStream:
    suffix = path.suffix.lower()
    if path.is_dir():
        return _folder_frames(path)
    if _is_container(path):
        return frames_in_order(path)
    if suffix in ANIMATION_SUFFIXES:
        return _animation_frames(path)
    if suffix == ".npy":
        return _array_frames(path)
    raise VideoError(f"{path}: not a video by its name; use {' '.join(VIDEO_SUFFIXES)} or a folder of frames")


def probe(path: str | Path) -> VideoInfo:
    """Return a video's number of frames (as many as read_video gives), height and width in px, and rate.

    Decodes nothing of an mp4, mkv or webm as they are usually made, and only the first frame of a folder or npy;
    other containers and animations are gone through once. Raises VideoError, FileNotFoundError. Ours.
    """
    path = Path(path)
    with _failures_named(path):
        if _is_container(path):
            return probe_container(path)
        with closing(_frames_of(path)) as stream:
            height, width, _ = next(stream)().shape
            return VideoInfo(1 + sum(1 for _ in stream), height, width, None)


def _frames_from_start(path: Path, wanted: set[int]) -> dict[int, np.ndarray]:
    """Go through a video up to the last frame wanted. Raises VideoError if one is not there."""
    frames: dict[int, np.ndarray] = {}
    num_seen = 0
    with closing(_frames_of(path)) as stream:
        for index, to_rgb in enumerate(stream):
            num_seen += 1
            if index in wanted:
                frames[index] = to_rgb()
            if len(frames) == len(wanted):
                return frames
    missing = min(wanted - frames.keys())
    raise VideoError(f"{path}: frame {missing} was asked for, but it has {num_seen}, counted from 0")


def read_frames(path: str | Path, indices: Iterable[int]) -> np.ndarray:
    """Read frames by number, in the order asked, repeats allowed: uint8 (len(indices), H, W, 3).

    The pixels are those of read_video, bit for bit. From a container they are decoded from the keyframe before on
    where that is certain to be the same, else from the start; a frame behind a damaged one may so still be read.
    Raises VideoError (also for a number that is not there), FileNotFoundError. Ours.
    """
    path, indices = Path(path), [int(index) for index in indices]
    wanted = set(indices)
    with _failures_named(path):
        frames = frames_by_seeking(path, wanted) if _is_container(path) else {}
        if len(frames) < len(wanted):
            frames = _frames_from_start(path, wanted)
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
            (write_mp4 if suffix == ".mp4" else _write_animation)(temporary, frames, fps)
    else:
        raise ValueError(f"{path}: cannot write {suffix}; use .mp4 .gif .webp .npy, or no suffix: a png folder")
