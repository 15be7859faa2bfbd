"""Open .npy files without Python's parser, which numpy.load uses for their headers. Ours.

    frames = open_array(Path("clip.npy"))         # uint8 (T, H, W, 3), mapped from the file

In several threads at once, Python's parser may raise SystemError, RecursionError or MemoryError for a good header
(github.com/python/cpython/issues/106905), also if only one of the threads reads an array.
"""

import math
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

MAGIC = b"\x93NUMPY"
LONGEST_HEADER = 10_000  # bytes, numpy's limit
# Bytes of the field with the header's length, and its encoding, by version (numpy.lib.format).
VERSIONS = {b"\1\0": (2, "latin1"), b"\2\0": (4, "latin1"), b"\3\0": (4, "utf-8")}
# One entry of the header, a dict of Python literals. Python 2 wrote numbers as 5L.
ENTRY = re.compile(
    r"""\s*(['"])(?P<name>descr|fortran_order|shape)\1\s*:\s*"""
    r"""(?:(['"])(?P<text>[^'"]*)\3|(?P<flag>True|False)|\((?P<numbers>(?:\s*[0-9]{1,18}L?\s*(?:,|(?=\))))*)\s*\))"""
    r"""\s*(?:,|(?=\}))"""
)
PLAIN_TYPE = re.compile(r"[<>|=]?[a-zA-Z][0-9]*")


class Header(NamedTuple):
    """Where an array is in its file: its type as text, its shape, the order of its axes, its first byte."""

    type: str
    shape: tuple[int, ...]
    is_fortran: bool
    offset: int


def _entries(text: str) -> dict[str, re.Match[str]]:
    """Return the entries of a header. Raises ValueError unless it consists of the three entries of a plain array."""
    entries: dict[str, re.Match[str]] = {}
    text = text.strip()
    place = 1
    while entry := ENTRY.match(text, place):
        entries[entry["name"]] = entry
        place = entry.end()
    kinds = {name: entry.lastgroup for name, entry in entries.items()}
    is_whole = text[:1] == "{" and text[place:].strip() == "}"
    if not is_whole or kinds != {"descr": "text", "fortran_order": "flag", "shape": "numbers"}:
        raise ValueError("the header of the array is damaged, or its elements have several fields")
    return entries


def read_header(path: Path) -> Header:
    """Read the header of an .npy file of version 1.0, 2.0 or 3.0.

    Raises ValueError, without the name of the file, for another format or a structured type, and OSError.
    """
    with path.open("rb") as file:
        start = file.read(8)
        version = VERSIONS.get(start[6:])
        if start[:6] != MAGIC or version is None:
            raise ValueError("it does not begin as an array of numpy does")
        width, encoding = version
        length = int.from_bytes(file.read(width), "little")
        if length > LONGEST_HEADER:
            raise ValueError(f"the header of the array has {length} bytes, more than {LONGEST_HEADER}")
        header = file.read(length)
    entries = _entries(header.decode(encoding))
    shape = tuple(map(int, re.findall("[0-9]+", entries["shape"]["numbers"])))
    return Header(entries["descr"]["text"], shape, entries["fortran_order"]["flag"] == "True", 8 + width + length)


def open_array(path: Path) -> np.ndarray:
    """Map the uint8 array of an .npy file into memory, read-only.

    Raises ValueError, which does not name the file, if its elements are not uint8 or bytes are missing; OSError.
    """
    header = read_header(path)
    dtype = np.dtype(header.type) if PLAIN_TYPE.fullmatch(header.type) else None
    if dtype != np.uint8:  # nothing else is mapped: an object would be an address in memory
        raise ValueError(f"contains {dtype or 'unknown'} {header.shape}; a video is uint8 (T, H, W, 3)")
    missing = header.offset + math.prod(header.shape) - path.stat().st_size
    if missing > 0:
        raise ValueError(f"truncated, {missing} bytes are missing")
    if 0 in header.shape:  # nothing can be mapped
        return np.empty(header.shape, np.uint8)
    return np.memmap(path, np.uint8, "r", header.offset, header.shape, "F" if header.is_fortran else "C")
