"""First frames of any kind as uint8 (H, W, 3): images in memory, arrays, tensors, and files, which are listed here.

frame = as_first_frame("first.png")
paths = list_content("data/CLEVRER", split="val")
"""

from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from vidm.csv_list import is_list
from vidm.datasets import to_uint8
from vidm.distributed import on_main, print0
from vidm.files import regular_file
from vidm.folder_walk import Listing, find_images
from vidm.images import open_image, rgb_from_image
from vidm.layouts import index_clips, refuse_archive
from vidm.packs import read_frames
from vidm.video_io import VIDEO_SUFFIXES, read_image

FirstFrame = Image.Image | np.ndarray | Tensor | str | Path


def is_image(path: Path) -> bool:
    """Return whether a first frame is an image file rather than the beginning of a video."""
    return path.is_file() and path.suffix.lower() not in VIDEO_SUFFIXES


def read_first_frame(path: Path) -> np.ndarray:
    """Read an image, or the first frame of a video: uint8 (H, W, 3). Raises VideoError, FileNotFoundError."""
    return read_image(path) if is_image(path) else read_frames(path, [0])[0]


def conversion(path: Path) -> str:
    """Describe how read_first_frame converts an image to 8-bit RGB; empty without a conversion or for a video."""
    if not is_image(path):
        return ""
    with open_image(path) as image:
        if image.mode.startswith("I"):
            return "16 bits per channel are reduced to 8"
        if image.has_transparency_data:
            return "transparency is blended with white"
        return "" if image.mode == "RGB" else f"{image.mode} is converted to RGB"


def as_first_frame(frame: FirstFrame) -> np.ndarray:
    """Return a first frame as uint8 (H, W, 3).

    It is a PIL image, a uint8 array (H, W, 3), a float tensor (3, H, W) in [-1, 1], or the path of an image or video.
    Raises ValueError for other types, shapes and values, and VideoError or FileNotFoundError for a file.
    """
    if isinstance(frame, str | Path):
        return read_first_frame(Path(frame))
    if isinstance(frame, Image.Image):
        return rgb_from_image(frame)
    if isinstance(frame, Tensor):
        fits = frame.dim() == 3 and frame.shape[0] == 3 and frame.is_floating_point() and frame.numel()
        found = f"{frame.dtype} {[*frame.shape]}"
        if fits and not bool(((frame >= -1.01) & (frame <= 1.01)).all()):
            found = f"values from {frame.min():.4g} to {frame.max():.4g}"
            fits = False
        if not fits:
            raise ValueError(f"a first frame as a tensor must be float (3, H, W) in [-1, 1]; got {found}")
        return to_uint8(frame)
    if not isinstance(frame, np.ndarray):
        several = "; call animate for each of several, with index 0, 1, ..." if isinstance(frame, list | tuple) else ""
        raise ValueError(
            f"a first frame must be an image, an array, a tensor or a path; got {type(frame).__name__}{several}"
        )
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
        raise ValueError(f"a first frame as an array must be uint8 (H, W, 3); got {frame.dtype} {[*frame.shape]}")
    return frame


def list_content(content: str | Path, layout: str = "auto", split: str = "") -> list[Path]:
    """Return the files of first frames: one image or video, a folder's clips or images, at any depth, or a csv list's.

    `layout` and `split` are those of training. In layout "auto", a folder without videos, packs and frames of videos
    contains images, and each is a first frame. What is found and what is passed over is printed. Unreadable videos are
    reported and left out. Raises FileNotFoundError or ValueError if nothing is left.
    """
    content = Path(content)
    if not content.exists():
        raise FileNotFoundError(f"no such file or folder of first frames: {content} (--content)")
    if regular_file(content).is_file() and not is_list(content):
        if split or layout != "auto":
            flag = f"--split {split}" if split else f"--layout {layout}"
            raise ValueError(f"{flag} has no effect: {content} is one file (--content)")
        refuse_archive(content)
        return [content]
    may_be_images = layout == "auto" and not is_list(content)
    images = on_main(partial(find_images, content / split), Listing) if may_be_images else None
    if images:
        print0(f"{content / split}: {images.found}; each image is a first frame")
        return images.clips
    index = index_clips(content, layout=layout, split=split)
    print0(f"{content}: {index.found}; videos begin with the first frame of each")
    if index.skipped:
        print0(*index.skipped_message().splitlines())
    return index.paths


def listed_classes(content: str, layout: str = "auto", split: str = "") -> dict[Path | None, str]:
    """Return the class of each clip of a csv list that has classes."""
    index = index_clips(content, layout=layout, split=split) if is_list(content) or layout == "csv" else None
    return dict(zip(index.paths, index.classes, strict=True)) if index and index.classes else {}
