"""The index of a pack: where the bytes of each clip are. A pack may come from anyone, so every value is checked. Ours.

    index = PackIndex(Path("packs/clevrer"))
    clip = index.clip("train/video_00000.mp4")           # its name, kind, first piece and VideoInfo
    index.pieces(clip.first_piece, clip.num_pieces)      # int64 (num_pieces, 4): shard, offset, bytes, crc32

A *piece* is a video file, an image file or one raw frame. vidm-pack.table contains little-endian int64 (shard, offset,
bytes, crc32) for each piece, and vidm-pack.json a row for each clip, whose pieces follow those of the clip before it.
Only the names and a few numbers of each clip are kept in memory: a million clips take 0.3 GB.
"""

import errno
import json
import os
import stat
import zlib
from array import array
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from posixpath import normpath
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from vidm.files import LARGEST
from vidm.images import check_budget
from vidm.video_io import VideoError, VideoInfo

INDEX_NAME = "vidm-pack.json"
TABLE_NAME = "vidm-pack.table"
FORMAT = "vidm pack 1"
KINDS = ("video", "images", "raw")
KEYS = {"format", "shards", "shards_crc32", "table_crc32", "clips", "crc32"}
CRC32 = ', "crc32": '  # before the checksum of all the rest, at the end of the index
PIECE_BYTES = 32
CHUNK = PIECE_BYTES << 16
MAX_INDEX_BYTES = 1 << 29  # six million clips
LONGEST_NAME = 255  # bytes of each part of a path, on most disks


class Clip(NamedTuple):
    """A clip in the index; `kind` is video (one piece), images or raw (one piece per frame)."""

    name: str
    kind: str
    first_piece: int
    info: VideoInfo

    @property
    def num_pieces(self) -> int:
        return 1 if self.kind == "video" else self.info.num_frames


def open_file(path: Path) -> BinaryIO:
    """Open a file of a pack. Raises OSError, also for a link, which may lead out of the pack, and for a pipe. Ours."""
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise OSError(errno.EINVAL, "it is a link, a pipe or a device and not a file", str(path))
    return path.open("rb")


def _size_of(path: Path) -> int:
    """Return the size of a shard in bytes; 0 if it is missing, or is not a file."""
    try:
        state = os.lstat(path)
    except OSError:
        return 0
    return state.st_size if stat.S_ISREG(state.st_mode) else 0


# Checks


def check_name(name: str) -> None:
    """Raise ValueError unless the name of a clip is a relative path inside the pack, in its shortest form. Ours."""
    is_inside = not name.startswith(("/", "../")) and name != ".." and name == normpath(name)
    if not is_inside or "\0" in name or max(map(len, os.fsencode(name).split(b"/"))) > LONGEST_NAME:
        raise ValueError(f"{name[:80]!r} is not a name inside the pack")


def _check_types(what: str, values: Sequence[Any], *types: type) -> None:
    if others := set(map(type, values)) - set(types):
        raise ValueError(f"{what} is of the type {others.pop().__name__}")


def _checked_counts(what: str, values: Sequence[Any]) -> np.ndarray:
    """Return values as int64 if all are whole numbers from 1 on."""
    _check_types(what, values, int)
    counts = np.array(values, np.int64)
    if counts.min() < 1:
        raise ValueError(f"{what} is {counts.min()}")
    return counts


def _check_shards(names: Any, crc32: Any) -> None:
    _check_types("the list of shards", [names], list)
    _check_types("the name of a shard", names, str)
    for name in names:
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise ValueError(f"the shard {name[:80]!r} is not in the folder of the pack")
    os.fsencode("".join(names))
    if crc32 is not None:
        _check_types("the list of checksums", [crc32], list)
        _check_types("a checksum", crc32, int)
        if len(crc32) != len(names):
            raise ValueError(f"it has {len(names)} shards and {len(crc32)} checksums of shards")


def _parsed(data: bytes) -> dict[str, Any]:
    """Return the content of an index file whose checksum is right, or that has none, as those of version 0.1.0."""
    index = json.loads(data)
    _check_types("the index", [index], dict)
    if index.get("format") != FORMAT or set(index) - KEYS:
        raise ValueError("it is damaged or of another version")
    end = data.rfind(CRC32.encode())
    if "crc32" in index and zlib.crc32(b"}", zlib.crc32(memoryview(data)[:end])) != index["crc32"]:
        raise ValueError("it is damaged: its checksum is another one")
    return index


# Public names


def write_index(folder: Path, shards: dict[str, int], clips: Sequence[Clip], table: array) -> None:
    """Write an index: `shards` has the crc32 of all bytes of each, `table` four numbers for each piece. Ours."""
    pieces = np.array(table, "<i8").tobytes()
    index = {
        "format": FORMAT,
        "shards": list(shards),
        "shards_crc32": list(shards.values()),
        "table_crc32": zlib.crc32(pieces),
        "clips": [[clip.name, clip.kind, clip.first_piece, *clip.info] for clip in clips],
    }
    text = json.dumps(index)
    (folder / TABLE_NAME).write_bytes(pieces)
    (folder / INDEX_NAME).write_text(f"{text[:-1]}{CRC32}{zlib.crc32(text.encode())}}}")


class PackIndex:
    """A pack's index. Raises VideoError in one line, naming the index, if it is malformed or does not fit its files.

    `numbers` has the place of each clip by name, and `num_frames` the lengths, int64 (clips,). A shard may be missing
    or truncated: `is_complete` says whether all pieces are there.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            with open_file(root / INDEX_NAME) as file:
                if os.fstat(file.fileno()).st_size > MAX_INDEX_BYTES:
                    raise ValueError(f"it has more than {MAX_INDEX_BYTES} bytes")
                index = _parsed(file.read())
            _check_shards(index["shards"], index.get("shards_crc32"))
            self.shards = [root / name for name in index["shards"]]
            self.shards_crc32: list[int] = index.get("shards_crc32") or []  # earlier packs have none
            self.shard_sizes = np.array([_size_of(shard) for shard in self.shards], np.int64)
            self._set_clips(index.pop("clips"))
            self.is_complete = self._check_table(index["table_crc32"])
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else error
            raise VideoError(f"{root / INDEX_NAME}: not a readable pack index ({reason}); pack again") from error

    def _set_clips(self, rows: list[list[Any]]) -> None:
        names, kinds, first_pieces, num_frames, heights, widths, rates = zip(*rows, strict=True)
        _check_types("the name of a clip", names, str)
        for name in names:
            check_name(name)
        self.numbers = {name: number for number, name in enumerate(names)}
        if len(self.numbers) < len(names):
            raise ValueError("two clips have the same name")
        _check_types("the kind of a clip", kinds, str)
        if others := set(kinds) - set(KINDS):
            raise ValueError(f"the kind of a clip is {others.pop()[:80]!r}")
        self._kinds = bytes(map(KINDS.index, kinds))
        self.num_frames = _checked_counts("a number of frames", num_frames)
        self._sizes = np.stack([_checked_counts("a height", heights), _checked_counts("a width", widths)])
        check_budget("VIDM_MAX_FRAMES", self.num_frames.max())
        check_budget("VIDM_MAX_PIXELS", int(self._sizes.astype(np.float64).prod(axis=0).max()))
        _check_types("a frame rate", rates, float, int, type(None))
        if not all(0 < rate <= LARGEST for rate in rates if rate is not None):
            raise ValueError("a frame rate is not a positive number, or too large")
        self._rates = rates
        counts = np.where(np.frombuffer(self._kinds, np.uint8) == KINDS.index("video"), 1, self.num_frames)
        ends = list(accumulate(counts.tolist(), initial=0))
        _check_types("the first piece of a clip", first_pieces, int)
        if list(first_pieces) != ends[:-1]:
            raise ValueError("the pieces of a clip do not follow those of the clip before it")
        self._first_pieces = np.array(first_pieces, np.int64)
        self._num_pieces = ends[-1]

    def _check_table(self, crc32: int) -> bool:
        """Check every row of the table, and return whether every piece is in its shard."""
        found, is_complete = 0, True
        with open_file(self.root / TABLE_NAME) as file:
            if os.fstat(file.fileno()).st_size != PIECE_BYTES * self._num_pieces:
                raise ValueError(f"{TABLE_NAME} does not have the size of {self._num_pieces} pieces")
            while data := file.read(CHUNK):
                found = zlib.crc32(data, found)
                shard, offset, size, _ = self._rows(data).T
                is_complete &= bool((offset <= self.shard_sizes[shard] - size).all())
        if found != crc32:
            raise ValueError(f"{TABLE_NAME} is damaged: its checksum is another one")
        return is_complete

    def _rows(self, data: bytes) -> np.ndarray:
        rows = np.frombuffer(data, "<i8").reshape(-1, 4)
        if (rows < 0).any() or (rows[:, 0] >= len(self.shards)).any():
            raise ValueError(f"{TABLE_NAME} has a piece that is in no shard")
        return rows

    def clip(self, name: str) -> Clip:
        """Return a clip by name. Raises KeyError."""
        number = self.numbers[name]
        height, width = self._sizes[:, number].tolist()
        info = VideoInfo(int(self.num_frames[number]), height, width, self._rates[number])
        return Clip(name, KINDS[self._kinds[number]], int(self._first_pieces[number]), info)

    def pieces(self, first: int, count: int) -> np.ndarray:
        """Read rows of the table: int64 (count, 4). Raises VideoError if it was changed."""
        try:
            with open_file(self.root / TABLE_NAME) as file:
                file.seek(first * PIECE_BYTES)
                rows = self._rows(file.read(count * PIECE_BYTES))
            if len(rows) < count:
                raise ValueError("it is truncated")
        except (OSError, ValueError) as error:
            raise VideoError(f"{self.root / TABLE_NAME}: cannot be read ({error})") from error
        return rows
