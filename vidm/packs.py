"""Store many clips in a few uncompressed tar shards, with an index from which any frame is read directly. Ours.

    with write_pack("packs/clevrer") as pack:
        pack.add_encoded("train/video_00000.mp4", Path("data/CLEVRER/train/video_00000.mp4"))
    frames = read_frames("packs/clevrer/train/video_00000.mp4", [0, 5, 7])  # (3, H, W, 3), as from the file

A clip's path is PACK/name, as if the pack were the folder that was packed. In the shards, clip number 7 is stored as
00000007.json (its name), followed by 00000007.mp4, or by the frames 00000007.00000000.png, 00000007.00000001.png, ...,
or by 00000007.npy with all frames uncompressed. `tar` unpacks them, and WebDataset, whose sample key is the part of a
name before the first dot, reads each clip as one sample.

The unit of reading is a *piece*: a video file, an image file or one raw frame; vidm.pack_index says where each is. No
file stays open between two reads, so data loader processes share no file handles.
"""

import hashlib
import json
import os
import tarfile
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from io import BytesIO
from pathlib import Path
from shlex import quote
from tempfile import NamedTemporaryFile
from typing import TypeVar

import numpy as np

from vidm import video_io
from vidm.files import append, atomic_dir
from vidm.images import check_budget
from vidm.pack_index import INDEX_NAME, Clip, PackIndex, check_name, open_file, write_index
from vidm.segments import segment_of
from vidm.video_containers import tried_twice
from vidm.video_io import VIDEO_SUFFIXES, VideoError, VideoInfo, frame_files

SHARD_BYTES = 1 << 30
BLOCK = 512  # bytes of a tar block

T = TypeVar("T")


# Writing


def _tar_member(name: str, data: bytes) -> tuple[bytes, bytes]:
    """Return the header and padding of a tar member, without dates or users, so that equal data give equal shards."""
    header = tarfile.TarInfo(name)
    header.size = len(data)
    return header.tobuf(tarfile.PAX_FORMAT), bytes(-len(data) % BLOCK)


class PackWriter:
    """Adds clips to a pack, in the order of calls; created by `write_pack`.

    Raises ValueError for a name that is not a relative path inside the pack, or that is there already.
    """

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        self._folder, self._shard_bytes = folder, shard_bytes
        self._shards: list[Path] = []
        self._crc32: list[int] = []  # of all bytes of each shard
        self._clips: list[Clip] = []
        self._names: set[str] = set()
        self._table = array("q")

    def add_encoded(self, name: str, path: Path) -> None:
        """Add a video file or a folder of frames, byte for byte. Adds nothing if it raises VideoError or OSError."""
        info = video_io.probe(path)
        if path.is_dir():
            files = frame_files(path)
            contents = [file.read_bytes() for file in files]
            suffixes = [f".{number:08d}{file.suffix.lower()}" for number, file in enumerate(files)]
        else:
            contents, suffixes = [path.read_bytes()], [path.suffix.lower()]
        shard, offsets = self._append(name, list(zip(suffixes, contents, strict=True)))
        self._clips.append(Clip(name, "images" if path.is_dir() else "video", len(self._table) // 4, info))
        for offset, data in zip(offsets, contents, strict=True):
            self._table.extend((shard, offset, len(data), zlib.crc32(data)))

    def add_raw(self, name: str, frames: np.ndarray, fps: float | None = None) -> None:
        """Add uint8 (T, H, W, 3) frames without compression."""
        buffer = BytesIO()
        np.save(buffer, frames)
        data = buffer.getvalue()
        shard, (offset,) = self._append(name, [(".npy", data)])
        num_frames, height, width, _ = frames.shape
        self._clips.append(Clip(name, "raw", len(self._table) // 4, VideoInfo(num_frames, height, width, fps)))
        size = frames[0].nbytes
        for start in range(len(data) - frames.nbytes, len(data), size):  # after the npy header
            self._table.extend((shard, offset + start, size, zlib.crc32(data[start : start + size])))

    def _append(self, name: str, files: list[tuple[str, bytes]]) -> tuple[int, list[int]]:
        """Append a clip's (suffix, data) to the last shard or a new one; return its number and the data's offsets."""
        check_name(name)
        if name in self._names:
            raise ValueError(f"{name}: the pack has a clip of that name already")
        self._names.add(name)
        files = [(".json", json.dumps({"name": name}).encode()), *files]
        size = 2 * BLOCK + sum(len(data) + 2 * BLOCK for _, data in files)
        if not self._shards or self._shards[-1].stat().st_size + size > self._shard_bytes:
            self._end_shard()
            self._shards.append(self._folder / f"shard-{len(self._shards):06d}.tar")
            self._crc32.append(0)
        parts, offsets = [], []
        end = self._shards[-1].stat().st_size if self._shards[-1].exists() else 0
        for suffix, data in files:
            before, after = _tar_member(f"{len(self._clips):08d}{suffix}", data)
            parts += [before, data, after]
            offsets.append(end + len(before))
            end = offsets[-1] + len(data) + len(after)
        self._write(b"".join(parts))
        return len(self._shards) - 1, offsets[1:]

    def _write(self, data: bytes) -> None:
        append(self._shards[-1], data)
        self._crc32[-1] = zlib.crc32(data, self._crc32[-1])

    def _end_shard(self) -> None:
        if self._shards:
            self._write(bytes(2 * BLOCK))  # a tar file ends with two empty blocks

    def finish(self) -> None:
        """End the last shard and write the index. Raises ValueError if no clip was added."""
        if not self._clips:
            raise ValueError("no clip could be packed; no pack was written")
        self._end_shard()
        shards = {shard.name: crc32 for shard, crc32 in zip(self._shards, self._crc32, strict=True)}
        write_index(self._folder, shards, self._clips, self._table)


@contextmanager
def write_pack(out: str | Path, shard_bytes: int = SHARD_BYTES) -> Iterator[PackWriter]:
    """Write a pack: it appears when the block ends, and not at all if the block raises.

    A shard has at most `shard_bytes` bytes, or one larger clip. Raises ValueError if `out` exists and is not an empty
    folder, or if no clip was added. Ours.
    """
    with atomic_dir(out) as folder:
        writer = PackWriter(folder, shard_bytes)
        yield writer
        writer.finish()


# Reading


def _read_as_file(data: bytes, suffix: str, read: Callable[[str], T], name: str) -> T:
    """Return read(a temporary file with these bytes), so that video_io decodes them; errors refer to `name`."""
    with NamedTemporaryFile(prefix="vidm-", suffix=suffix) as file:
        file.write(data)
        file.flush()
        try:
            return read(file.name)
        except VideoError as error:
            raise VideoError(str(error).replace(file.name, name)) from error


class Pack:
    """Reads clips of a pack. Raises VideoError, naming the file, if its index is malformed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.index = PackIndex(root)

    def clip_at(self, path: Path) -> Clip:
        try:
            return self.index.clip(path.relative_to(self.root).as_posix())
        except KeyError:
            raise VideoError(f"{path}: the pack {self.root} has no clip of that name") from None

    def probe(self, path: Path) -> VideoInfo:
        clip = self.clip_at(path)
        if not self.index.is_complete:
            (last,) = self.index.pieces(clip.first_piece + clip.num_pieces - 1, 1).tolist()
            self._check_place(clip, *last)
        return clip.info

    def find(self, path: Path, indices: Iterable[int]) -> tuple[Clip, tuple[int, ...]]:
        """Return a clip and the numbers of its pieces that contain these frames. Raises VideoError without them."""
        clip = self.clip_at(path)
        if clip.kind == "video":
            return clip, (0,)
        wanted = sorted(set(indices))
        for index in wanted:
            if not 0 <= index < clip.info.num_frames:
                existing = f"it has {clip.info.num_frames} frames, counted from 0"
                raise VideoError(f"{path}: frame {index} was requested, but {existing}")
        return clip, tuple(wanted)

    def _check_place(self, clip: Clip, shard: int, offset: int, size: int, _: int) -> None:
        """Raise VideoError if a piece of a clip cannot be at a place, a row of the table."""
        path = self.index.shards[shard]
        if offset + size > self.index.shard_sizes[shard]:
            raise VideoError(f"{path}: missing or truncated before the end of {clip.name}")
        if clip.kind == "raw" and size != clip.info.height * clip.info.width * 3:
            raise VideoError(f"{path}: {size} bytes cannot be a frame of {clip.name}")

    def pieces(self, clip: Clip, numbers: Sequence[int]) -> Iterator[bytes]:
        """Yield the bytes of pieces of a clip by number. Raises VideoError if they are missing or changed."""
        for place in self.places(clip, numbers):
            yield b"".join(self.blocks(clip, place))

    def places(self, clip: Clip, numbers: Sequence[int]) -> np.ndarray:
        """Return the places of pieces of a clip by number, int64 (n, 4): shard, offset, bytes, crc32."""
        first = min(numbers)
        places = self.index.pieces(clip.first_piece + first, max(numbers) - first + 1)
        return places[np.subtract(numbers, first)]

    def blocks(self, clip: Clip, place: np.ndarray, largest: int | None = None) -> Iterator[bytes]:
        """Yield the bytes of a piece, in blocks of at most `largest`; the checksum is compared after the last one."""
        shard_number, offset, size, crc32 = place.tolist()
        self._check_place(clip, shard_number, offset, size, crc32)
        shard = self.index.shards[shard_number]
        found, rest = 0, size
        try:
            check_budget("VIDM_MAX_BYTES", size)
            with open_file(shard) as file:
                file.seek(offset)
                while rest and (data := file.read(min(rest, largest or rest))):
                    found, rest = zlib.crc32(data, found), rest - len(data)
                    yield data
        except OSError as error:
            raise VideoError(f"{shard}: cannot be read for {clip.name} ({error.strerror})") from error
        except ValueError as error:
            raise VideoError(f"{shard}: {clip.name} cannot be read ({error})") from error
        if rest:
            raise VideoError(f"{shard}: truncated before the end of {clip.name}")
        if found != crc32:
            raise VideoError(f"{shard}: bytes of {clip.name} have changed since it was packed (crc32)")

    def read_frames(self, path: Path, indices: Sequence[int]) -> np.ndarray:
        clip, numbers = self.find(path, indices)
        if clip.kind == "video":
            suffix = Path(clip.name).suffix
            if suffix.lower() not in VIDEO_SUFFIXES:
                raise VideoError(f"{path}: unknown video format; use {' '.join(VIDEO_SUFFIXES)}")
            (data,) = self.pieces(clip, numbers)
            return _read_as_file(data, suffix, lambda name: video_io.read_frames(name, indices), str(path))
        frames = {
            index: self._frame(clip, data, f"{path} frame {index}")
            for index, data in zip(numbers, self.pieces(clip, numbers), strict=True)
        }
        return np.stack([frames[index] for index in indices])

    def _frame(self, clip: Clip, data: bytes, name: str) -> np.ndarray:
        shape = (clip.info.height, clip.info.width, 3)
        if clip.kind == "raw":
            return np.frombuffer(data, np.uint8).reshape(shape)
        frame = _read_as_file(data, "", video_io.read_image, name)
        if frame.shape != shape:
            raise VideoError(f"{name}: is {frame.shape[1]}x{frame.shape[0]}, but frame 0 is {shape[1]}x{shape[0]}")
        return frame


@lru_cache(maxsize=8)
def _open_pack(root: Path, changed: int) -> Pack:
    return Pack(root)


def _pack_in(folder: Path) -> Pack | None:
    """Return the pack in a folder, or None; its index is read again only if the pack was written again."""
    try:
        changed = os.lstat(folder / INDEX_NAME).st_mtime_ns
    except OSError:
        return None
    return _open_pack(folder, changed)


def _pack_around(path: Path) -> Pack | None:
    """Return the pack that a path points into, or None."""
    if os.path.exists(path):  # not a clip inside a pack, but possibly a pack whose only clip is "."
        return _pack_in(path)
    return next((pack for pack in map(_pack_in, path.parents) if pack), None)


# Public names


def is_pack(folder: str | Path) -> bool:
    """Return whether a folder is a pack. Ours."""
    return os.path.lexists(Path(folder, INDEX_NAME))  # what is not a file is named when it is read


def list_pack(folder: str | Path) -> list[Path]:
    """Return the paths of a pack's clips, in the order in which they were packed. Raises ValueError. Ours."""
    pack = _pack_in(Path(folder))
    if pack is None:
        command = f"python scripts/pack_dataset.py --data DIR --out {quote(str(folder))}"
        raise ValueError(f"{folder}: is not a pack; `{command}` writes one")
    return [pack.root / name for name in pack.index.numbers]


def pack_of(path: str | Path) -> Pack | None:
    """Return the pack that a path points to or into, or None. Ours."""
    return _pack_around(Path(path))


def probe(path: str | Path) -> VideoInfo:
    """Return video_io.probe(path), also for the path of a clip in a pack, or of a part of a video. Ours.

    Raises VideoError for a part that its video does not have.
    """
    path = Path(path)
    if segment := segment_of(path):
        return segment.probed(probe(segment.path))
    pack = _pack_around(path)
    return tried_twice(partial(pack.probe, path)) if pack else video_io.probe(path)


def read_frames(path: str | Path, indices: Iterable[int]) -> np.ndarray:
    """Return video_io.read_frames(path, indices), also for a clip in a pack or a part of a video: uint8 (n, H, W, 3).

    Raises VideoError, which names a shard that is missing, truncated or changed; FileNotFoundError. Ours.
    """
    path, indices = Path(path), list(map(int, indices))
    if segment := segment_of(path):
        return segment.read(read_frames, indices)
    pack = _pack_around(path)
    return tried_twice(partial(pack.read_frames, path, indices)) if pack else video_io.read_frames(path, indices)


def frame_sha256(frame: np.ndarray) -> str:
    """Return a digest of the size and pixels of a frame, uint8 (H, W, 3), in hexadecimal. Ours."""
    return hashlib.sha256(f"{frame.shape} ".encode() + frame.tobytes()).hexdigest()
