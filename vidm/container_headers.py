"""Sizes and counts in the headers of containers, read before FFmpeg opens a file. Ours.

    missing_bytes(Path("clip.mp4"))      # 0, or the number of bytes that a truncated file lacks
    check_claims(Path("clip.mp4"))       # raises ValueError if its headers claim samples that the file cannot have

FFmpeg reads a truncated file as a shorter video, and takes memory for every sample that a header claims.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from vidm.images import budget

EBML, SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"
# Boxes that contain boxes, and the place of the count in those that have one.
PARENTS = (b"moov", b"trak", b"edts", b"mdia", b"minf", b"stbl", b"udta", b"moof", b"traf")
COUNTS = {b"stsz": 8, b"stz2": 8, b"trun": 4, b"elst": 4}
# Samples of sound count as well: a file has several for each frame.
SAMPLES_PER_FRAME = 10


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


def _num_samples(file: BinaryIO, start: int, end: int) -> int:
    """Return how many samples the tracks in a box have, counting a track once for each entry of its edit list."""
    num_samples = num_edits = 0
    for kind, box_start, box_end in _boxes(file, start, end):
        if kind in PARENTS:
            found = _num_samples(file, box_start, min(box_end, end))
            if kind == b"edts":
                num_edits += found
            else:
                num_samples += found
        elif kind in COUNTS:
            file.seek(box_start + COUNTS[kind])
            num_samples += int.from_bytes(file.read(4), "big")
        elif kind == b"cmov":
            raise ValueError("its header is compressed: copy it with `ffmpeg -i FILE -c copy NEW.mp4`")
    return num_samples * max(num_edits, 1)


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


def check_claims(path: Path) -> None:
    """Raise ValueError if the headers of an mp4 claim more samples than it has bytes, and than the budget allows.

    Raises OSError. Ours.
    """
    size_on_disk = path.stat().st_size
    with path.open("rb") as file:
        num_samples = _num_samples(file, 0, size_on_disk)
    if num_samples > max(SAMPLES_PER_FRAME * budget("VIDM_MAX_FRAMES"), size_on_disk):
        raise ValueError(f"its headers claim {num_samples} samples, but it has {size_on_disk} bytes")
