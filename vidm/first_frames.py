"""Where videos begin: images, or the first frames of videos, found and read.

paths = list_content("data/CLEVRER")
frame = read_first_frame(paths[0])     # uint8 (H, W, 3)
"""

from pathlib import Path

import numpy as np
from PIL import Image

from vidm.distributed import print0
from vidm.layouts import index_clips
from vidm.packs import read_frames
from vidm.video_io import VIDEO_SUFFIXES, frame_files, read_image


def is_image(path: Path) -> bool:
    """Whether a first frame is a file of its own rather than the beginning of a video."""
    return path.is_file() and path.suffix.lower() not in VIDEO_SUFFIXES


def list_content(content: str | Path) -> list[Path]:
    """Where first frames come from: an image or a video, or a folder's images, or else its videos at any depth.

    Videos that cannot be read are named and left out. Raises FileNotFoundError or ValueError when there are none.
    """
    content = Path(content)
    if not content.exists():
        raise FileNotFoundError(f"no such file or folder of first frames: {content} (--content)")
    if content.is_file():
        return [content]
    images = frame_files(content)
    if images:
        return images
    index = index_clips(content, min_frames=1)
    if index.skipped:
        print0(index.skipped_message())
    return index.paths


def read_first_frame(path: Path) -> np.ndarray:
    """An image, or the first frame of a video: uint8 (H, W, 3). Raises VideoError."""
    return read_image(path) if is_image(path) else read_frames(path, [0])[0]


def conversion(path: Path) -> str:
    """What was done to an image to read it as 8-bit RGB, in words; empty where nothing was, or for a video."""
    if not is_image(path):
        return ""
    with Image.open(path) as image:
        if image.mode.startswith("I"):
            return "16 bits a channel come to 8"
        if image.has_transparency_data:
            return "transparency is laid on white"
        return "" if image.mode == "RGB" else f"{image.mode} becomes RGB"
