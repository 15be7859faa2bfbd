"""Open images with Pillow, within a budget, and convert them to RGB. Ours.

    with open_image("frame.png") as image:
        frame = rgb_from_image(image)  # uint8 (H, W, 3)

Pillow opens more than pictures: for PostScript, it runs another program. Only the formats listed here are opened.
"""

import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from vidm.files import regular_file

EXIF_ORIENTATION = 0x0112
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "DIB", "TIFF")
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
        unit = {"VIDM_MAX_PIXELS": "pixels in a frame", "VIDM_MAX_FRAMES": "frames", "VIDM_MAX_BYTES": "bytes"}[name]
        raise ValueError(f"it has more than {budget(name)} {unit}; to read it, set the environment variable {name}")


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
        check_budget("VIDM_MAX_FRAMES", getattr(image, "n_frames", 1))
    except Exception:  # counting the frames of a damaged animation raises errors of many types
        image.close()
        raise
    return image


def check_png(image: Image.Image, path: str | Path) -> None:
    """Raise SyntaxError if an opened image is a PNG with a chunk that does not match its checksum.

    Pillow does not compare the checksum of pixels when it decodes them: the zeros that a crash leaves at the end of a
    file become pixels. Ours.
    """
    if image.format == "PNG":
        with Image.open(path, formats=("PNG",)) as unread:
            unread.verify()


def upright_image_size(image: Image.Image) -> tuple[int, int]:
    """Return the height and width (px) of an opened image as rgb_from_image returns it. Raises Pillow's errors. Ours.

    An image that EXIF turns is decoded: in a TIFF, Pillow has exchanged the sides already.
    """
    if image.getexif().get(EXIF_ORIENTATION, 1) == 1:
        return image.height, image.width
    height, width, _ = rgb_from_image(image).shape
    return height, width


def rgb_from_image(image: Image.Image) -> np.ndarray:
    """Convert any image to RGB: uint8 (H, W, 3). Raises ValueError. See read_image. Ours."""
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in LARGEST_GREY:  # Pillow's own conversion clips at 255
        values, largest = np.asarray(image), LARGEST_GREY[image.mode[0]]
        low, high = values.min(), values.max()
        if not 0 <= low <= high <= largest:
            raise ValueError(f"its {values.dtype} pixels are from {low:g} to {high:g}; 0 to {largest} can be converted")
        grey = (values * (255 / largest)).round().astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.array(image.convert("RGB"))
