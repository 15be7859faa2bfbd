"""The size of frames in pixels: an int for a square, or (height, width). Ours.

frame_size("48x64"), frame_size("64")  # (48, 64), 64
sides_of(64)                           # (64, 64)
"""

import argparse
import re
from typing import Any

FrameSize = int | tuple[int, int]
# How frames of another shape are brought to a size: by cropping their centre, or whole, with black bars.
FITS = ("crop", "pad")


def sides_of(size: FrameSize) -> tuple[int, int]:
    """Height and width."""
    return (size, size) if isinstance(size, int) else size


def plain_size(size: Any) -> FrameSize:
    """The one form of a size: an int for every square. Raises ValueError for anything but one or two whole numbers."""
    sides = (size, size) if type(size) is int else size
    if not (isinstance(sides, tuple) and len(sides) == 2 and all(type(side) is int for side in sides)):
        raise ValueError(f"the size of frames is {size!r:.80}: give a side, or height and width, as whole numbers")
    height, width = sides
    return height if height == width else (height, width)


def frame_size(text: str) -> FrameSize:
    """A size from text, 64 or 48x64: the type of a command's argument."""
    found = re.fullmatch(r"(\d{1,9})(?:x(\d{1,9}))?", text, re.ASCII)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r}: give the side of squares as 64, or height x width as 48x64")
    return plain_size((int(found[1]), int(found[2] or found[1])))


def check_size(flag: str, size: FrameSize, largest: int) -> None:
    """Raise ValueError, naming the flag, for a side that is 0 or larger than `largest`."""
    if not all(1 <= side <= largest for side in sides_of(size)):
        raise ValueError(f"{flag} {size_text(size)}: give sides from 1 to {largest}")


def size_text(size: FrameSize) -> str:
    """Height x width as text: 48x64."""
    return "{}x{}".format(*sides_of(size))
