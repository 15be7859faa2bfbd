"""Open images with Pillow, within a budget, and convert them to RGB. Ours.

    with open_image("frame.png") as image:
        frame = rgb_from_image(image)  # uint8 (H, W, 3)

Pillow opens more than pictures: for PostScript, it runs another program. Only the formats listed here are opened.
"""

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile

from vidm.files import regular_file

EXIF_ORIENTATION, TRANSPOSED = 0x0112, (5, 6, 7, 8)
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "DIB", "TIFF")
# Formats of several images are animations, or else, as in TIFF, only the first image is read.
ANIMATIONS = ("GIF", "WEBP", "PNG")
# Pillow keeps about this many images in memory for the current frame of an animation, such as the one to restore.
CANVASES = 4
# Drawing a frame takes time for the whole canvas, also if the file changes one pixel. Files of animations whose pixels
# take more bytes than this multiple of the file have this fraction of the budget of bytes.
SMALL_FILE, SMALL_FILE_DIVISOR = 1000, 8
STRIP_PIXELS = 2**20
# Larger frames are decoded by one thread at a time: one of 67 million pixels takes up to a gigabyte.
PARALLEL_PIXELS = 2**24
_large_frame_lock = threading.Lock()
# Pillow allocates images in blocks. The C library keeps freed blocks of less than 32 MiB, for each thread.
Image.core.set_block_size(2**26)
# Each scan of a progressive JPEG goes through all pixels, also one of ten bytes. Encoders write about ten scans.
START_OF_SCAN, MAX_SCANS = b"\xff\xda", 100
# White in grey images of more than 8 bits, by the first letter of Pillow's mode: 16-bit integers, and floats.
LARGEST_GREY = {"I": 65535, "F": 1}
# Small files can claim sizes that fill the memory. Environment variables of these names raise the budgets: pixels of a
# frame, frames of a file, and bytes of a video that is read whole.
BUDGETS = {"VIDM_MAX_PIXELS": 2**26, "VIDM_MAX_FRAMES": 1_000_000, "VIDM_MAX_BYTES": 2**33}
# Frames that are made, by resizing or rendering, are no larger than a square of the default budget of pixels.
LARGEST_SIDE = 2**13


def budget(name: str) -> int:
    """Return the budget of a name in BUDGETS. Ours."""
    return int(os.environ.get(name, BUDGETS[name]))


def check_budget(name: str, value: int) -> None:
    """Raise ValueError, naming the variable that raises it, if a file has more than a budget allows. Ours."""
    if value > budget(name):
        frame = f"pixels in a frame, or {budget(name) // CANVASES} in one of an animation"
        size = f"bytes, or {budget(name) // SMALL_FILE_DIVISOR} in an animation of {SMALL_FILE} times fewer bytes"
        unit = {"VIDM_MAX_PIXELS": frame, "VIDM_MAX_FRAMES": "frames", "VIDM_MAX_BYTES": size}[name]
        raise ValueError(f"it has more than {budget(name)} {unit}; to read it, set the environment variable {name}")


def _check_scans(image: Image.Image, path: str | Path) -> None:
    """Raise ValueError if a JPEG has so many scans that decoding it takes minutes."""
    limit = MAX_SCANS * budget("VIDM_MAX_PIXELS") // (image.width * image.height)
    num_scans, last = 0, b""
    with open(path, "rb") as file:
        while num_scans <= limit and (chunk := file.read(1 << 20)):
            num_scans += (last + chunk).count(START_OF_SCAN)
            last = chunk[-1:]
    if num_scans > limit:
        size = f"{image.width}x{image.height}"
        raise ValueError(f"it has more than {limit} scans of {size} pixels; to read it, raise VIDM_MAX_PIXELS")


def open_image(path: str | Path) -> Image.Image:
    """Open an image or animation, without decoding it. Raises Pillow's errors, and ValueError over budget. Ours."""
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # the budget refuses the image
    try:
        image = Image.open(regular_file(path), formats=FORMATS)
    except Image.DecompressionBombError:  # at twice this number, whatever the budget is
        check_budget("VIDM_MAX_PIXELS", 2 * (Image.MAX_IMAGE_PIXELS or 0))
        raise
    try:
        check_budget("VIDM_MAX_PIXELS", image.width * image.height)
        if isinstance(image, JpegImageFile):
            _check_scans(image, path)
    except (ValueError, OSError):
        image.close()
        raise
    return image


def count_frames(image: Image.Image) -> int:
    """Count the frames of an opened animation, 1 for a still image. Raises Pillow's errors, and ValueError over budget.

    Ours.
    """
    count = getattr(image, "n_frames", 1) if image.format in ANIMATIONS else 1
    check_budget("VIDM_MAX_FRAMES", count)
    if count > 1:
        check_budget("VIDM_MAX_PIXELS", CANVASES * image.width * image.height)
    return count


def check_work(num_frames: int, image: Image.Image, file_bytes: int) -> None:
    """Raise ValueError if all frames of an opened animation take too many bytes for a file of its size. Ours."""
    num_bytes = num_frames * image.width * image.height * 3
    is_small = num_bytes > SMALL_FILE * file_bytes
    check_budget("VIDM_MAX_BYTES", num_bytes * SMALL_FILE_DIVISOR if is_small else num_bytes)


def check_png(image: Image.Image, path: str | Path) -> None:
    """Raise SyntaxError if an opened image is a PNG with a chunk that does not match its checksum.

    Pillow does not compare the checksum of pixels when it decodes them: the zeros that a crash leaves at the end of a
    file become pixels. Ours.
    """
    if image.format == "PNG":
        with Image.open(path, formats=("PNG",)) as unread:
            unread.verify()


def limit_parallel(size: tuple[int, int]) -> AbstractContextManager[object]:
    """Return a context in which no other thread decodes large frames, if frames of this size are large. Ours."""
    return _large_frame_lock if size[0] * size[1] > PARALLEL_PIXELS else nullcontext()


def upright_image_size(image: Image.Image) -> tuple[int, int]:
    """Return the height and width (px) of an opened image as rgb_from_image returns it. Raises Pillow's errors.

    Ours.
    """
    with limit_parallel(image.size):  # a PNG is decoded, because EXIF may come after its pixels
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    if orientation in TRANSPOSED and image.format != "TIFF":  # in a TIFF, Pillow has exchanged the sides already
        return image.width, image.height
    return image.height, image.width


def _strips(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    """Yield the rows of an image, some at a time, so that converting them takes little memory."""
    num_rows = max(STRIP_PIXELS // image.width, 1)
    for top in range(0, image.height, num_rows):
        bottom = min(top + num_rows, image.height)
        yield slice(top, bottom), image.crop((0, top, image.width, bottom))


def _grey_from(image: Image.Image) -> np.ndarray:
    """Convert a grey image of more than 8 bits: uint8 (H, W). Pillow's own conversion clips at 255."""
    grey, largest = np.empty((image.height, image.width), np.uint8), LARGEST_GREY[image.mode[0]]
    arrays = ((rows, np.asarray(strip)) for rows, strip in _strips(image))
    extremes = np.array([(values.min(), values.max()) for _, values in arrays])
    low, high = extremes.min(), extremes.max()
    if not 0 <= low <= high <= largest:
        raise ValueError(f"its {extremes.dtype} pixels are from {low:g} to {high:g}; 0 to {largest} can be converted")
    for rows, strip in _strips(image):
        grey[rows] = (np.asarray(strip) * (255 / largest)).round()
    return grey


def _to_rgb(image: Image.Image) -> np.ndarray:
    image.load()  # for EXIF, which a PNG may have after its pixels
    if image.getexif().get(EXIF_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    rgb = np.empty((image.height, image.width, 3), np.uint8)
    if image.mode[0] in LARGEST_GREY:
        rgb[...] = _grey_from(image)[:, :, None]
        return rgb
    for rows, strip in _strips(image):
        if strip.has_transparency_data:
            white = Image.new("RGBA", strip.size, "white")
            strip = Image.alpha_composite(white, strip.convert("RGBA"))
        rgb[rows] = np.asarray(strip.convert("RGB"))
    return rgb


def rgb_from_image(image: Image.Image) -> np.ndarray:
    """Convert any image to RGB: uint8 (H, W, 3). Raises ValueError. See read_image. Ours."""
    with limit_parallel(image.size):
        return _to_rgb(image)
