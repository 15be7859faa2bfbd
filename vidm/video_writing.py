"""Writes a video frame by frame, in memory that does not grow with it where the format allows. Ours.

with video_writer("clip.mp4", fps=25) as write:
    for frame in frames:  # uint8 (H, W, 3)
        write(frame)
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from numpy.lib.format import write_array_header_1_0
from PIL import Image

from vidm.files import atomic_dir, atomic_write

WriteFrame = Callable[[np.ndarray], None]

# The same frames must give the same bytes. The output of x264 depends on the number of threads, and its macroblock
# tree reads uninitialized memory when frames are small.
X264_OPTIONS = {"crf": "12", "threads": "1", "x264-params": "mbtree=0"}
SMPTE170M = 6  # H.264's number for BT.601 in its 525-line form (ITU-T H.273, tables 2 to 4)


@contextmanager
def _mp4(path: Path, fps: float) -> Iterator[WriteFrame]:
    reformatter = VideoReformatter()
    with av.open(f"file:{path}", "w", format="mp4", options={"movflags": "+faststart"}) as container:
        rate = Fraction(fps).limit_denominator(1001)  # represents 24000/1001 and 30000/1001 exactly
        stream = container.add_stream("libx264", rate=rate, options=X264_OPTIONS)
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = SMPTE170M
        context.color_range = ColorRange.MPEG

        def write(frame: np.ndarray) -> None:
            # 4:2:0 stores one colour per 2 x 2 pixels, so an odd side repeats its last row or column.
            height, width = frame.shape[:2]
            even = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            if not context.is_open:
                stream.height, stream.width = even.shape[:2]
            picture = reformatter.reformat(
                av.VideoFrame.from_ndarray(even, format="rgb24"),
                format="yuv420p",
                dst_colorspace=Colorspace.ITU601,
                dst_color_range=ColorRange.MPEG,
            )
            container.mux(stream.encode(picture))

        yield write
        container.mux(stream.encode(None))


@contextmanager
def _animation(path: Path, fps: float) -> Iterator[WriteFrame]:
    frames: list[Image.Image] = []  # Pillow needs all of them
    yield lambda frame: frames.append(Image.fromarray(frame.copy()))
    # `lossless` affects only WebP.
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=round(1000 / fps), loop=0, lossless=True)


@contextmanager
def _array(path: Path, fps: float) -> Iterator[WriteFrame]:
    with path.open("wb") as file:
        shape = [0, 0, 0, 0]

        def write_header() -> int:
            # numpy pads the header, so that it has the same length for any number of frames.
            write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": tuple(shape)})
            return file.tell()

        def write(frame: np.ndarray) -> None:
            if not shape[0]:
                shape[1:] = frame.shape
                write_header()
            file.write(np.ascontiguousarray(frame).data)
            shape[0] += 1

        yield write
        file.seek(0)
        write_header()


@contextmanager
def _images(folder: Path, fps: float) -> Iterator[WriteFrame]:
    count = 0

    def write(frame: np.ndarray) -> None:
        nonlocal count
        Image.fromarray(frame).save(folder / f"{count:05d}.png")
        count += 1

    yield write


FORMATS = {".mp4": _mp4, ".gif": _animation, ".webp": _animation, ".apng": _animation, ".npy": _array, "": _images}


@contextmanager
def video_writer(path: str | Path, fps: float = 25) -> Iterator[WriteFrame]:
    """Yield a function that writes a frame, uint8 (H, W, 3), to a file that is complete or absent after the block.

    The formats, `fps` and errors are those of vidm.video_io.write_video. Frames of .gif and .webp are kept in memory
    until the end, all others are not. ValueError is also raised for frames of two sizes, and for none.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if not 0.1 <= fps <= 1000:
        raise ValueError(f"{path}: cannot be written at {fps} frames per second; give 0.1 to 1000")
    if suffix not in FORMATS:
        raise ValueError(f"{path}: cannot write {suffix}; use .mp4 .gif .webp .npy, or no suffix for a folder of png")
    size: tuple[int, ...] = ()
    with (atomic_write if suffix else atomic_dir)(path) as temporary, FORMATS[suffix](temporary, fps) as write:

        def checked(frame: np.ndarray) -> None:
            nonlocal size
            if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
                raise ValueError(f"{path}: cannot write {frame.dtype} {frame.shape}; a frame is uint8 (H, W, 3)")
            if size and frame.shape != size:
                raise ValueError(f"{path}: cannot write a frame of {frame.shape} after one of {size}")
            size = frame.shape
            write(frame)

        yield checked
        if not size:
            raise ValueError(f"{path}: cannot write a video without frames")
