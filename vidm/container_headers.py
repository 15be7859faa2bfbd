"""Sizes and counts in the headers of containers, read before FFmpeg opens a file. Ours.

    missing_bytes(Path("clip.mp4"))      # 0, or the number of bytes that a truncated file lacks
    check_claims(Path("clip.mp4"))       # raises ValueError if its headers claim samples that the file cannot have

FFmpeg reads a truncated file as a shorter video, and takes memory for every sample that a header claims.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from vidm.images import budget

EBML, SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"
# The kinds of the first box of an mp4. FFmpeg recognizes more, but a file with another first box is not read as an mp4.
FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot", b"uuid", b"udta")
# Boxes in which FFmpeg looks for no boxes. It finds tables in all others, also where they do not belong.
CLOSED_BOXES = (b"mdat", b"uuid", b"skip")
# Tables that claim samples, and the place of the number in them; each entry of an edit list repeats a track.
SAMPLE_TABLES, EDIT_LIST, COUNT_OF_EDITS = {b"stsz": 8, b"stz2": 8, b"trun": 4}, b"elst", 4
COMPRESSED = re.compile(rb"cmov.{4,12}dcom", re.DOTALL)
MAX_HEADERS = 2**28  # bytes


# mp4 and mov (ISO/IEC 14496-12, 4.2)


def _boxes(file: BinaryIO, position: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield (kind, start, end) of the content of each box; the last may end after `end`."""
    while position + 8 <= end:
        file.seek(position)
        header = file.read(16)
        size, kind, start = int.from_bytes(header[:4], "big"), header[4:8], position + 8
        if size == 1:
            size, start = int.from_bytes(header[8:], "big"), position + 16
        if size == 0:  # to the end
            size = end - position
        if position + size < start:
            return
        position += size
        yield kind, start, position


def _end_of_boxes(file: BinaryIO, size_on_disk: int) -> int:
    """Return the position where the last index or media box of an mp4 ends; other boxes may be truncated."""
    return max((end for kind, _, end in _boxes(file, 0, size_on_disk) if kind in (b"moov", b"mdat")), default=0)


def _counts(headers: bytearray, kind: bytes, place: int) -> Iterator[int]:
    """Yield the number in each table of a kind, at any depth."""
    position = headers.find(kind)
    while position >= 0:
        has_long_size = headers[position - 4 : position] == b"\0\0\0\1"
        start = position + len(kind) + place + 8 * has_long_size
        yield int.from_bytes(headers[start : start + 4], "big")
        position = headers.find(kind, position + 1)


def _num_samples(headers: bytearray) -> int:
    """Return how many samples all tracks have, each counted once for each entry of the longest edit list."""
    if COMPRESSED.search(headers):
        raise ValueError("its header is compressed: copy it with `ffmpeg -i FILE -c copy NEW.mp4`")
    num_samples = sum(sum(_counts(headers, kind, place)) for kind, place in SAMPLE_TABLES.items())
    return num_samples * max([1, *_counts(headers, EDIT_LIST, COUNT_OF_EDITS)])


def _fragments(box: bytearray, end: int) -> list[int]:
    """Return the positions that an index of fragments leads to (8.16.3); `end` is where its box ends."""
    if box[:4] == b"\0\0\0\1":  # a long size
        box = box[8:]
    first = 40 if box[8:9] != b"\0" else 32
    position = end + int.from_bytes(box[28 if first == 40 else 24 : first - 4], "big")
    num_fragments = int.from_bytes(box[first - 2 : first], "big")
    if len(box) < first + 12 * num_fragments:
        raise ValueError("its index is truncated")
    positions = []
    for start in range(first, first + 12 * num_fragments, 12):
        positions.append(position)
        position += int.from_bytes(box[start : start + 4], "big") & (2**31 - 1)
    return positions


# mkv and webm (RFC 8794, 4 and 6), avi (RIFF chunks and the "OpenDML AVI File Format Extensions")


def _element_size(file: BinaryIO) -> int:
    """Read the size of an mkv element: a zero bit for each byte after the first, then a one, then the number."""
    first = file.read(1)
    length = 9 - int.from_bytes(first, "big").bit_length()
    data_bits = (1 << 7 * length) - 1
    size = int.from_bytes(first + file.read(length - 1), "big") & data_bits
    return 0 if size == data_bits else size  # all ones: a stream of unknown length


def _end_of_segment(file: BinaryIO) -> int:
    """Return the position where the element that contains all of an mkv ends."""
    file.seek(len(EBML))
    file.seek(_element_size(file), 1)
    if file.read(len(SEGMENT)) != SEGMENT:
        return 0
    size = _element_size(file)
    return file.tell() + size


def _end_of_riff(file: BinaryIO, size_on_disk: int) -> int:
    """Return the position where the last RIFF chunk of an avi ends; a long video has several."""
    end = position = 0
    while position + 8 <= size_on_disk:
        file.seek(position)
        header = file.read(8)
        if header[:4] != b"RIFF":
            break
        size = int.from_bytes(header[4:], "little")
        end = position + size  # without the 8 bytes of the header, which some writers wrongly include in the size
        position += 8 + size + size % 2
    return end


# Public names


def missing_bytes(path: Path) -> int:
    """Return how many bytes are missing at the end of a container file; 0 if its headers do not say.

    Detects mp4, mov and 3gp truncated in the index or media, mkv and webm not written as a stream, and avi truncated by
    more than 8 bytes. The headers of the other containers do not contain a size. Raises OSError. Ours.
    """
    size_on_disk = path.stat().st_size
    with path.open("rb") as file:
        magic = file.read(4)
        if magic == EBML:
            end = _end_of_segment(file)
        elif magic == b"RIFF":
            end = _end_of_riff(file, size_on_disk)
        else:
            end = _end_of_boxes(file, size_on_disk)
    return max(0, end - size_on_disk)


def is_mp4(path: Path) -> bool:
    """Return whether a file begins like an mp4, mov or 3gp; others must not be opened as one. Raises OSError. Ours."""
    with path.open("rb") as file:
        return file.read(8)[4:] in FIRST_BOXES


def check_claims(path: Path) -> None:
    """Raise ValueError if the headers of an mp4 claim more samples than it has bytes, and than the budget of frames.

    Raises OSError. Ours.
    """
    if not is_mp4(path):
        return
    size_on_disk = path.stat().st_size
    headers = bytearray()
    boxes, fragments, num_indices = {size_on_disk}, [], 0
    with path.open("rb") as file:
        position = 0
        for kind, _, end in _boxes(file, 0, size_on_disk):
            boxes.add(position)
            if kind not in CLOSED_BOXES:
                num_bytes = min(end, size_on_disk) - position
                if len(headers) + num_bytes > MAX_HEADERS:
                    raise ValueError(f"its headers have more than {MAX_HEADERS} bytes")
                file.seek(position)
                headers += file.read(num_bytes)
            if kind == b"sidx":
                fragments += _fragments(headers[-num_bytes:], end)
                num_indices += 1
            position = end
    leads_inside = any(place < size_on_disk and place not in boxes for place in fragments)
    if leads_inside or headers.count(b"sidx") > num_indices:  # FFmpeg would read boxes there that are not counted
        raise ValueError("its index leads into a box: copy it with `ffmpeg -i FILE -c copy NEW.mp4`")
    num_samples = _num_samples(headers)
    if num_samples > max(budget("VIDM_MAX_FRAMES"), size_on_disk):
        raise ValueError(f"its headers claim {num_samples} samples, but it has {size_on_disk} bytes")
