"""Read and write videos (mp4, gif, npy, a folder of frames, ...) as uint8 (T, H, W, 3). Ours.

    frames = read_frames("clip.mp4", [0, 5, 7])        # (3, H, W, 3), the same pixels as from read_video
    write_video("copy.gif", read_video("clip.mp4"), fps=25)

PyAV reads containers, Pillow animations and images. A file that cannot be read raises VideoError, which names it.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from vidm.array_file import open_array
from vidm.container_headers import missing_bytes
from vidm.frame_names import choose_frames
from vidm.images import (
    check_budget,
    check_png,
    check_work,
    count_frames,
    open_image,
    rgb_from_image,
    upright_image_size,
)
from vidm.video_containers import (
    CONTAINER_SUFFIXES,
    FrameStream,
    VideoError,
    VideoInfo,
    frames_by_seeking,
    frames_in_order,
    probe_container,
    tried_twice,
)
from vidm.video_writing import video_writer

ANIMATION_SUFFIXES = (".gif", ".webp", ".apng")
VIDEO_SUFFIXES = (*CONTAINER_SUFFIXES, *ANIMATION_SUFFIXES, ".npy")
FRAME_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


@contextmanager
def _decoder_errors_named(path: Path) -> Iterator[None]:
    """Turn any error of a decoder into a VideoError that names the file."""
    try:
        if not path.exists():
            raise FileNotFoundError(f"no such file or folder: {path}")
        if not path.is_file() and not path.is_dir():
            raise VideoError(f"{path}: is a pipe or a device and not a file")  # opening one could wait forever
        yield
    except (VideoError, FileNotFoundError):
        raise
    except Exception as error:  # damaged files make decoders raise SyntaxError, IndexError and many other types
        reason = " ".join(str(error).split()) or type(error).__name__
        raise VideoError(f"{path}: cannot be read as a video or image ({reason})") from error


# Images, animations, folders of frames, arrays


def _read_image(path: Path) -> np.ndarray:
    with _decoder_errors_named(path), open_image(path) as image:
        check_png(image, path)
        return rgb_from_image(image)


def read_image(path: str | Path) -> np.ndarray:
    """Read a still image (png, jpg, webp, bmp, tiff, ...): uint8 (H, W, 3).

    16-bit grey and float grey in [0, 1] are scaled to 8 bits, and other ranges are refused. Palettes and CMYK are
    converted to RGB, transparency is blended with white, and the EXIF orientation is applied. Raises VideoError,
    FileNotFoundError. Ours.
    """
    return tried_twice(partial(_read_image, Path(path)))


def _animation_frames(path: Path) -> FrameStream:
    with open_image(path) as image:
        check_png(image, path)
        num_frames, size = count_frames(image), image.size
        check_work(num_frames, image, path.stat().st_size)  # it is always decoded from its start
        for index in range(num_frames):
            image.seek(index)
            if image.size != size:  # Pillow enlarges the canvas of a gif
                raise VideoError(f"{path}: frame {index} is larger than the canvas, {size[0]}x{size[1]}")
            yield partial(rgb_from_image, image)


def natural_key(path: str | Path) -> tuple[list[str | int], str]:
    """Return a sort key that orders frame_2 before frame_10: digits compare as numbers. Ours."""
    parts = re.split(r"([0-9]+)", str(path))
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], str(path)


def frame_files(folder: Path) -> list[Path]:
    """Return the image files of the clip directly in a folder, in order. See choose_frames. Ours."""
    names = [name for name in os.listdir(folder) if name.lower().endswith(FRAME_SUFFIXES) and name[0] != "."]
    return [folder / name for name in choose_frames(folder, names).names]


# Finding the orientation in a png means decoding it. The time in the key changes when a file is replaced.
@lru_cache(maxsize=65536)
def _upright_size(path: Path, modified_ns: int) -> tuple[int, int]:
    """Return the height and width of an image as read_image returns it."""
    with _decoder_errors_named(path), open_image(path) as image:
        return upright_image_size(image)


def _read_frame_file(path: Path, size: tuple[int, int], first: Path) -> np.ndarray:
    frame = _read_image(path)
    if frame.shape[:2] != size:
        (height, width), (first_height, first_width) = frame.shape[:2], size
        sizes = f"{width}x{height} but {first.name} is {first_width}x{first_height}"
        raise VideoError(f"{path}: is {sizes}; all frames of a folder must have the same size")
    return frame


def _folder_frames(folder: Path) -> FrameStream:
    files = frame_files(folder)
    if not files:
        raise VideoError(f"{folder}: contains no frames ({' '.join(FRAME_SUFFIXES)})")
    check_budget("VIDM_MAX_FRAMES", len(files))
    size = _upright_size(files[0], files[0].stat().st_mtime_ns)
    for file in files:
        yield partial(_read_frame_file, file, size, files[0])


def _is_animated_webp(path: Path) -> bool:
    """Return whether the header of a webp file says that it is an animation (RFC 9649, 2.7)."""
    if not path.is_file() or not os.access(path, os.R_OK):
        return True  # reading it as a video names the reason
    with path.open("rb") as file:
        header = file.read(21)
    return header[12:16] == b"VP8X" and len(header) == 21 and bool(header[20] & 2)


def videos_among(folder: Path, names: Sequence[str]) -> list[Path]:
    """Return the video files among the names in a folder; webp files are frames if none of them is animated. Ours."""
    videos = [folder / name for name in names if name.lower().endswith(VIDEO_SUFFIXES)]
    webp = [path for path in videos if path.suffix.lower() == ".webp"]
    return videos if any(map(_is_animated_webp, webp)) else [path for path in videos if path not in set(webp)]


def _is_clip(frames: np.ndarray) -> bool:
    return frames.dtype == np.uint8 and frames.ndim == 4 and frames.shape[3] == 3 and 0 not in frames.shape


def _array_frames(path: Path) -> FrameStream:
    try:
        array = open_array(path)
    except ValueError as error:
        raise VideoError(f"{path}: {error}") from error
    if not _is_clip(array):
        raise VideoError(f"{path}: contains {array.dtype} {array.shape}; a video is uint8 (T, H, W, 3)")
    check_budget("VIDM_MAX_FRAMES", len(array))
    check_budget("VIDM_MAX_PIXELS", array.shape[1] * array.shape[2])
    for frame in array:
        yield partial(np.array, frame)


# Reading


def _is_container(path: Path) -> bool:
    """Return whether PyAV reads the file. Raises VideoError if it is truncated, which FFmpeg may not detect."""
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
    raise VideoError(f"{path}: unknown video format; use {' '.join(VIDEO_SUFFIXES)} or a folder of frames")


def _probe(path: Path) -> VideoInfo:
    with _decoder_errors_named(path):
        if _is_container(path):
            return probe_container(path)
        with closing(_frames_of(path)) as stream:
            height, width, _ = next(stream)().shape
            return VideoInfo(1 + sum(1 for _ in stream), height, width, None)


def probe(path: str | Path) -> VideoInfo:
    """Return a video's number of frames (as many as read_video returns), height and width in px, and frame rate.

    Of an mp4, mkv or webm usually only the first frame is decoded, and of a folder or npy as well; other containers and
    animations are decoded once. Raises VideoError, FileNotFoundError. Ours.
    """
    return tried_twice(partial(_probe, Path(path)))


def _frames_from_start(path: Path, wanted: set[int]) -> dict[int, np.ndarray]:
    """Decode a video up to the last wanted frame. Raises VideoError if one does not exist."""
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
    raise VideoError(f"{path}: frame {missing} was requested, but it has {num_seen} frames, counted from 0")


def _read_frames(path: Path, indices: list[int]) -> np.ndarray:
    wanted = set(indices)
    with _decoder_errors_named(path):
        frames = frames_by_seeking(path, wanted) if _is_container(path) else {}
        if len(frames) < len(wanted):
            frames = _frames_from_start(path, wanted)
        return np.stack([frames[index] for index in indices])


def read_frames(path: str | Path, indices: Iterable[int]) -> np.ndarray:
    """Read frames by number, in the given order, repeats allowed: uint8 (len(indices), H, W, 3).

    The pixels equal those of read_video bit for bit. A container is decoded from the keyframe before a frame if that is
    certain to give the same pixels, else from its start, so a frame after a damaged one may still be readable. Raises
    VideoError (also for a number that does not exist), FileNotFoundError. Ours.
    """
    return tried_twice(partial(_read_frames, Path(path), [int(index) for index in indices]))


def _read_video(path: Path) -> np.ndarray:
    with _decoder_errors_named(path), closing(_frames_of(path)) as stream:
        frames: list[np.ndarray] = []
        for to_rgb in stream:
            frames.append(to_rgb())
            check_budget("VIDM_MAX_BYTES", len(frames) * frames[0].nbytes)
        if not frames:
            raise VideoError(f"{path}: contains no frames")
        return np.stack(frames)


def read_video(path: str | Path) -> np.ndarray:
    """Read all frames of a video: uint8 (T, H, W, 3). Raises VideoError, FileNotFoundError. Ours."""
    return tried_twice(partial(_read_video, Path(path)))


# Writing


def write_video(path: str | Path, frames: np.ndarray | Iterable[np.ndarray], fps: float = 25) -> None:
    """Write frames, uint8 (T, H, W, 3) or (H, W, 3) one by one, in the suffix's format, completely or not at all.

    .mp4: H.264, 4:2:0, near lossless, plays in any browser; an odd side grows by one repeated row or column.
    .gif (256 colours per frame), .webp (lossless): looping; consecutive equal frames become one longer frame.
    .npy: the array. No suffix: a new or empty folder of 00000.png, 00001.png, ... Only the first three store `fps`,
    from 0.1 to 1000. Missing parent folders are created. Raises ValueError for another suffix, other frames or
    another rate, WriteError on a full disk. Ours.
    """
    if isinstance(frames, np.ndarray) and not _is_clip(frames):
        raise ValueError(f"{path}: cannot write {frames.dtype} {frames.shape}; a video is uint8 (T, H, W, 3)")
    with video_writer(path, fps) as write:
        for frame in frames:
            write(frame)
