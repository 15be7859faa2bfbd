"""Find damaged clips before training does: by a few frames of each, or by reading every byte. Ours.

damaged_clip(Path("data/a.mp4"), num_frames=128)                 # "" or the reason
verify(index.paths, index.num_frames)                            # [(path, reason), ...]
"""

import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from vidm.images import open_image, upright_image_size
from vidm.pack_index import open_file
from vidm.packs import Pack, pack_of, read_frames
from vidm.segments import whole_path
from vidm.video_io import VideoError, frame_files

CHUNK = 32  # frames in memory at a time

Damage = list[tuple[Path, str]]


def _mixed_sizes(folder: Path) -> str:
    """Return the reason if the images of a folder have different sizes."""
    sizes: dict[tuple[int, int], str] = {}
    for file in frame_files(folder):
        with suppress(Exception), open_image(file) as image:  # a damaged image is found by reading it
            sizes.setdefault(upright_image_size(image), file.name)
    if len(sizes) < 2:
        return ""
    found = ", ".join(f"{name} is {width}x{height}" for (height, width), name in sizes.items())
    return f"{folder}: has frames of {len(sizes)} sizes: {found}"


def _read(path: Path, groups: Sequence[Sequence[int]]) -> str:
    """Read groups of frames; return the reason if one cannot be read or the frame size changes."""
    first = None
    try:
        for group in groups:
            height, width = read_frames(path, group).shape[1:3]
            first = first or (width, height)
            if (width, height) != first:
                before = "{}x{}".format(*first)
                return f"{path}: its frame size changes from {before} to {width}x{height} up to frame {group[0]}"
    except (VideoError, OSError) as error:
        return str(error)
    return ""


def damaged_clip(path: Path, num_frames: int, every_frame: bool = False) -> str:
    """Say what makes frames of a clip unusable; '' if all can be used.

    The first, the middle and the last frame are decoded, or every frame. Of a folder, the size of every frame is
    compared. Ours.
    """
    groups: list[Sequence[int]] = [[number] for number in sorted({0, num_frames // 2, num_frames - 1})]
    if every_frame:
        groups += [range(start, min(start + CHUNK, num_frames)) for start in range(0, num_frames, CHUNK)]
    whole = whole_path(path)
    mixed = _mixed_sizes(whole) if whole.is_dir() and not pack_of(whole) else ""
    return mixed or _read(path, groups)


def _crc32_of(path: Path) -> int:
    crc32 = 0
    with open_file(path) as file:
        while chunk := file.read(1 << 20):
            crc32 = zlib.crc32(chunk, crc32)
    return crc32


def _damage_of_shard(pack: Pack, number: int) -> Damage:
    """Read all bytes of a shard; return its damaged clips, or the shard itself if bytes between clips are damaged."""
    index = pack.index
    shard = index.shards[number]
    with suppress(OSError):
        if index.shards_crc32 and _crc32_of(shard) == index.shards_crc32[number]:
            return []
    damaged = []
    for clip in map(index.clip, index.numbers):
        try:
            if index.pieces(clip.first_piece, 1)[0, 0] == number:
                for _ in pack.pieces(clip, range(clip.num_pieces)):
                    pass
        except VideoError as error:
            damaged.append((pack.root / clip.name, str(error)))
    if damaged or not index.shards_crc32:
        return damaged
    return [(shard, f"{shard}: bytes outside the frames of its clips have changed (crc32)")]


def verify(paths: Sequence[Path], num_frames: Sequence[int]) -> Damage:
    """Read every byte of clips once: return (path, reason) of all that is damaged.

    Packs are compared with their checksums, as a whole; every frame of other clips is decoded. Shows progress. Ours.
    """
    packs = {pack.root: pack for pack in map(pack_of, paths) if pack}
    shards = [(pack, number) for pack in packs.values() for number in range(len(pack.index.shards))]
    files = [(path, count) for path, count in zip(paths, num_frames, strict=True) if not pack_of(path)]
    damaged: Damage = []
    with (
        ThreadPoolExecutor() as pool,
        tqdm(total=len(shards) + len(files), desc="verifying", delay=3, disable=None) as bar,
    ):
        # What a second try does not show is not damaged.
        for found in pool.map(lambda shard: _damage_of_shard(*shard) and _damage_of_shard(*shard), shards):
            damaged += found
            bar.update()
        reasons = pool.map(lambda file: damaged_clip(file[0], file[1], every_frame=True), files)
        for (path, _), reason in zip(files, reasons, strict=True):
            damaged += [(path, reason)] if reason else []
            bar.update()
    return damaged
