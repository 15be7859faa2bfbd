"""Many clips in few files: uncompressed tar shards with an index beside them; any frame is read where it lies. Ours.

    with write_pack("packs/clevrer") as pack:
        pack.add_encoded("train/video_00000.mp4", Path("data/CLEVRER/train/video_00000.mp4"))
    frames = read_frames("packs/clevrer/train/video_00000.mp4", [0, 5, 7])  # (3, H, W, 3), as from the folder

A clip is addressed by PACK/name, as though the pack were the folder that it was made of. In the shards clip number 7 is
00000007.json (its name) and then 00000007.mp4, or the frames 00000007.00000000.png, 00000007.00000001.png and on, or
all of them raw as 00000007.npy: plain `tar` unpacks them, and WebDataset, to which the part before the first dot is the
key of a sample, takes each clip for one.

What is read at once, a video file, an image file or one raw frame, is a *piece*: vidm-pack.table holds little-endian
int64 (shard, offset, bytes, crc32) of each, and vidm-pack.json says which pieces a clip has. No file stays open between
two reads, so processes have nothing to share and nothing to leak.
"""

import hashlib
import json
import os
import tarfile
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import NamedTuple, TypeVar

import numpy as np

from vidm import video_io
from vidm.files import atomic_dir, sha256_of
from vidm.video_io import VideoError, VideoInfo, frame_files

INDEX_NAME = "vidm-pack.json"
TABLE_NAME = "vidm-pack.table"
FORMAT = "vidm pack 1"
SHARD_BYTES = 1 << 30
BLOCK = 512  # tar's unit

T = TypeVar("T")


class _Clip(NamedTuple):
    """A clip in the index; `kind` is video (one piece), images or raw (a piece each frame)."""

    name: str
    kind: str
    first_piece: int
    info: VideoInfo


# Writing


def _tar_member(name: str, data: bytes) -> tuple[bytes, bytes]:
    """What stands before and after the data; the same data always give the same shard, whoever packs them."""
    header = tarfile.TarInfo(name)
    header.size = len(data)
    return header.tobuf(tarfile.PAX_FORMAT), bytes(-len(data) % BLOCK)


class PackWriter:
    """Adds clips to a pack, in the order in which they come; made by `write_pack`. A name is relative to the pack."""

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        self._folder, self._shard_bytes = folder, shard_bytes
        self._shards: list[Path] = []
        self._clips: list[_Clip] = []
        self._table = array("q")

    def add_encoded(self, name: str, path: Path) -> None:
        """Add a video file or a folder of frames, byte for byte. Raises VideoError or OSError, with nothing added."""
        info = video_io.probe(path)
        if path.is_dir():
            files = frame_files(path)
            contents = [file.read_bytes() for file in files]
            suffixes = [f".{number:08d}{file.suffix.lower()}" for number, file in enumerate(files)]
        else:
            contents, suffixes = [path.read_bytes()], [path.suffix.lower()]
        shard, offsets = self._append(name, list(zip(suffixes, contents, strict=True)))
        self._clips.append(_Clip(name, "images" if path.is_dir() else "video", len(self._table) // 4, info))
        for offset, data in zip(offsets, contents, strict=True):
            self._table.extend((shard, offset, len(data), zlib.crc32(data)))

    def add_raw(self, name: str, frames: np.ndarray, fps: float | None = None) -> None:
        """Add uint8 (T, H, W, 3) frames as they are."""
        buffer = BytesIO()
        np.save(buffer, frames)
        data = buffer.getvalue()
        shard, (offset,) = self._append(name, [(".npy", data)])
        num_frames, height, width, _ = frames.shape
        self._clips.append(_Clip(name, "raw", len(self._table) // 4, VideoInfo(num_frames, height, width, fps)))
        size = frames[0].nbytes
        for start in range(len(data) - frames.nbytes, len(data), size):  # what is not pixels is npy's own header
            self._table.extend((shard, offset + start, size, zlib.crc32(data[start : start + size])))

    def _append(self, name: str, files: list[tuple[str, bytes]]) -> tuple[int, list[int]]:
        """Append a clip's (suffix, data) to the last shard or to a new one: that shard, and where the data begin."""
        files = [(".json", json.dumps({"name": name}).encode()), *files]
        size = 2 * BLOCK + sum(len(data) + 2 * BLOCK for _, data in files)
        if not self._shards or self._shards[-1].stat().st_size + size > self._shard_bytes:
            self._end_shard()
            self._shards.append(self._folder / f"shard-{len(self._shards):06d}.tar")
        offsets = []
        with self._shards[-1].open("ab") as shard:
            for suffix, data in files:
                before, after = _tar_member(f"{len(self._clips):08d}{suffix}", data)
                shard.write(before)
                offsets.append(shard.tell())
                shard.write(data)
                shard.write(after)
        return len(self._shards) - 1, offsets[1:]

    def _end_shard(self) -> None:
        if self._shards:
            with self._shards[-1].open("ab") as shard:
                shard.write(bytes(2 * BLOCK))  # two empty blocks end an archive

    def finish(self) -> None:
        """End the last shard and write the index. Raises ValueError if nothing was added."""
        if not self._clips:
            raise ValueError("not one clip could be packed; no pack was written")
        self._end_shard()
        table = np.array(self._table, "<i8").tobytes()
        index = {
            "format": FORMAT,
            "shards": [shard.name for shard in self._shards],
            "table_crc32": zlib.crc32(table),
            "clips": [[clip.name, clip.kind, clip.first_piece, *clip.info] for clip in self._clips],
        }
        (self._folder / TABLE_NAME).write_bytes(table)
        (self._folder / INDEX_NAME).write_text(json.dumps(index))


@contextmanager
def write_pack(out: str | Path, shard_bytes: int = SHARD_BYTES) -> Iterator[PackWriter]:
    """Write a pack: it appears when the block ends, and not at all if that raises.

    A shard holds at most `shard_bytes` bytes, or one larger clip. Raises ValueError if `out` is there already and is
    not an empty folder, or if no clip was added. Ours.
    """
    with atomic_dir(out) as folder:
        writer = PackWriter(folder, shard_bytes)
        yield writer
        writer.finish()


# Reading


def _read_as_file(data: bytes, suffix: str, read: Callable[[str], T], called: str) -> T:
    """Let `read` have bytes as a file, so that video_io stays the only decoder; `called` is their name in errors."""
    with NamedTemporaryFile(prefix="vidm-", suffix=suffix) as file:
        file.write(data)
        file.flush()
        try:
            return read(file.name)
        except VideoError as error:
            raise VideoError(str(error).replace(file.name, called)) from error


class _Pack:
    """A pack's index. Raises VideoError, naming the file, where it is not one that can be read here."""

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            index = json.loads((root / INDEX_NAME).read_text())
            table = (root / TABLE_NAME).read_bytes()  # no memory map: the process would die when the file is cut
            if index["format"] != FORMAT or zlib.crc32(table) != index["table_crc32"]:
                raise ValueError(f"it or {TABLE_NAME} beside it is damaged or of another version")
            self.table = np.frombuffer(table, "<i8").reshape(-1, 4)
            self.shards = [root / name for name in index["shards"]]
            clips = [_Clip(name, kind, first, VideoInfo(*info)) for name, kind, first, *info in index["clips"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise VideoError(f"{root / INDEX_NAME}: cannot be read as a pack's index ({error}); pack again") from error
        self.clips = {clip.name: clip for clip in clips}
        self.shard_sizes = [shard.stat().st_size if shard.is_file() else 0 for shard in self.shards]

    def clip_at(self, path: Path) -> _Clip:
        name = path.relative_to(self.root).as_posix()
        if name not in self.clips:
            raise VideoError(f"{path}: {self.root} is a pack, and has no clip of that name")
        return self.clips[name]

    def probe(self, path: Path) -> VideoInfo:
        clip = self.clip_at(path)
        last_piece = clip.first_piece + (0 if clip.kind == "video" else clip.info.num_frames - 1)
        shard, offset, size, _ = self.table[last_piece].tolist()
        if offset + size > self.shard_sizes[shard]:
            raise VideoError(f"{self.shards[shard]}: is missing or cut short, before the end of {clip.name}")
        return clip.info

    def content_sha256(self, path: Path) -> str:
        """Of the sizes and checksums of a clip's pieces, which are compared whenever a piece is read."""
        clip = self.clip_at(path)
        end = clip.first_piece + (1 if clip.kind == "video" else clip.info.num_frames)
        pieces = self.table[clip.first_piece : end, 2:].tobytes()
        return hashlib.sha256(f"{clip.kind} {clip.info} ".encode() + pieces).hexdigest()

    def piece(self, clip: _Clip, number: int) -> bytes:
        """The bytes of a clip's piece, checked."""
        shard, offset, size, crc32 = self.table[clip.first_piece + number].tolist()
        try:
            with self.shards[shard].open("rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise VideoError(f"{self.shards[shard]}: cannot be read, for {clip.name} ({error.strerror})") from error
        if len(data) < size:
            raise VideoError(f"{self.shards[shard]}: is cut short, before the end of {clip.name}")
        if zlib.crc32(data) != crc32:
            raise VideoError(f"{self.shards[shard]}: bytes of {clip.name} have changed since it was packed (crc32)")
        return data

    def read_frames(self, path: Path, indices: Sequence[int]) -> np.ndarray:
        clip = self.clip_at(path)
        if clip.kind == "video":
            data, suffix = self.piece(clip, 0), Path(clip.name).suffix
            return _read_as_file(data, suffix, lambda name: video_io.read_frames(name, indices), str(path))
        frames = {}
        for index in sorted(set(indices)):
            if not 0 <= index < clip.info.num_frames:
                had = f"it has {clip.info.num_frames}, counted from 0"
                raise VideoError(f"{path}: frame {index} was asked for, but {had}")
            frames[index] = self._frame(clip, index, f"{path} frame {index}")
        return np.stack([frames[index] for index in indices])

    def _frame(self, clip: _Clip, index: int, called: str) -> np.ndarray:
        data, shape = self.piece(clip, index), (clip.info.height, clip.info.width, 3)
        if clip.kind == "raw":
            return np.frombuffer(data, np.uint8).reshape(shape)
        frame = _read_as_file(data, "", video_io.read_image, called)
        if frame.shape != shape:
            raise VideoError(f"{called}: is {frame.shape[1]}x{frame.shape[0]}, not {shape[1]}x{shape[0]} as the first")
        return frame


@lru_cache(maxsize=8)
def _open_pack(root: Path, changed: int) -> _Pack:
    return _Pack(root)


def _pack_in(folder: Path) -> _Pack | None:
    """The pack that a folder is; read anew only after it has been written anew."""
    try:
        changed = os.stat(folder / INDEX_NAME).st_mtime_ns
    except OSError:
        return None
    return _open_pack(folder, changed)


def _pack_around(path: Path) -> _Pack | None:
    """The pack that a path leads into, if any."""
    if path.exists():  # then it may be a pack whose only clip is ".", but is no name inside of one
        return _pack_in(path)
    return next((pack for pack in map(_pack_in, path.parents) if pack), None)


# Public names


def is_pack(folder: str | Path) -> bool:
    """Tell whether a folder is a pack. Ours."""
    return Path(folder, INDEX_NAME).is_file()


def list_pack(folder: str | Path) -> list[Path]:
    """Return the paths of a pack's clips, in the order in which they were packed. Raises ValueError. Ours."""
    pack = _pack_in(Path(folder))
    if pack is None:
        raise ValueError(
            f"{folder}: is not a pack; `python scripts/pack_dataset.py --data DIR --out {folder}` makes one"
        )
    return [pack.root / name for name in pack.clips]


def probe(path: str | Path) -> VideoInfo:
    """Return what a clip holds, as video_io.probe, of a path into a pack or of any other. Ours."""
    pack = _pack_around(Path(path))
    return pack.probe(Path(path)) if pack else video_io.probe(path)


def read_frames(path: str | Path, indices: Iterable[int]) -> np.ndarray:
    """Read frames by number, as video_io.read_frames, of a path into a pack or of any other: uint8 (n, H, W, 3).

    Raises VideoError, which also names a shard that is missing, cut short or changed; FileNotFoundError. Ours.
    """
    pack = _pack_around(Path(path))
    return pack.read_frames(Path(path), list(map(int, indices))) if pack else video_io.read_frames(path, indices)


def content_sha256(path: str | Path) -> str:
    """What a video file, a folder of frames or a clip of a pack holds, as a text that follows from its bytes. Ours."""
    path = Path(path)
    pack = _pack_around(path)
    if pack:
        return pack.content_sha256(path)
    return sha256_of(frame_files(path) if path.is_dir() else [path])
