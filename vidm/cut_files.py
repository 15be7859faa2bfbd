"""How many bytes a container file lacks: a copy that was cut short tells by the sizes in its own headers. Ours.

    missing_bytes(Path("whole.mkv"))    # 0
    missing_bytes(Path("half.mkv"))     # as many as the other half has

FFmpeg reads a cut file as a shorter video. mp4 and mov: ISO/IEC 14496-12, 4.2; mkv and webm: RFC 8794, 4 and 6;
avi: RIFF chunks, the "OpenDML AVI File Format Extensions" among them.
"""

from pathlib import Path
from typing import BinaryIO

EBML, SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"


def _end_of_boxes(file: BinaryIO, size_on_disk: int) -> int:
    """Where the index or media box that reaches farthest would end; other boxes may be cut without harm."""
    position = farthest = 0
    while position + 8 <= size_on_disk:
        file.seek(position)
        header = file.read(16)
        size, kind = int.from_bytes(header[:4], "big"), header[4:8]
        if size == 1:
            size = int.from_bytes(header[8:], "big")
        if size < 8:  # 0 means "to the end of the file"; the rest is not a box
            break
        position += size
        if kind in (b"moov", b"mdat"):
            farthest = position
    return farthest


def _element_size(file: BinaryIO) -> int:
    """Read an element's size: as many leading zero bits as bytes follow, then a one, then the number."""
    first = file.read(1)
    length = 9 - int.from_bytes(first, "big").bit_length()
    data_bits = (1 << 7 * length) - 1
    size = int.from_bytes(first + file.read(length - 1), "big") & data_bits
    return 0 if size == data_bits else size  # all ones: written to a stream, whose length was not known


def _end_of_segment(file: BinaryIO) -> int:
    """Where the element that holds everything would end."""
    file.seek(len(EBML))
    file.seek(_element_size(file), 1)
    if file.read(len(SEGMENT)) != SEGMENT:
        return 0
    size = _element_size(file)
    return file.tell() + size


def _end_of_riff(file: BinaryIO, size_on_disk: int) -> int:
    """Where the last of the chunks that hold everything would end; a long video has several."""
    end = position = 0
    while position + 8 <= size_on_disk:
        file.seek(position)
        header = file.read(8)
        if header[:4] != b"RIFF":
            break
        size = int.from_bytes(header[4:], "little")
        end = position + size  # without the header's 8 bytes: some writers count them in, wrongly
        position += 8 + size + size % 2
    return end


def missing_bytes(path: Path) -> int:
    """Return how many bytes are missing at the end of a container file; 0 also where nothing in it tells.

    Told are mp4 and mov (index or media cut), mkv and webm (unless written to a stream) and avi (8 bytes or fewer go
    unnoticed). Raises OSError. Ours.
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
