"""Tests of content keys: kept features are used for the bytes they were computed from, whatever a pack says of them."""

import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from vidm.content_keys import ContentKeys
from vidm.metrics import FVDResult, compute_fvd
from vidm.pack_index import INDEX_NAME, TABLE_NAME
from vidm.packs import list_pack, write_pack
from vidm.video_io import VideoError, write_video

NUM_CLIPS = 5
NUM_FRAMES = 8


class Means:
    """A detector that returns mean colours, in float64, and counts the clips of all calls."""

    sha256 = "means"

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, video: torch.Tensor, **switches: bool) -> torch.Tensor:
        self.seen += len(video)
        return video.double().mean(dim=(3, 4)).flatten(1)[:, :8]


def forged(data: bytes, crc32: int) -> bytes:
    """Return data with other last four bytes, such that its CRC-32 is the given one."""
    table = [zlib.crc32(bytes([value]), 0xFFFFFFFF) ^ 0xFFFFFFFF for value in range(256)]
    by_first_byte = {entry >> 24: value for value, entry in enumerate(table)}
    state = crc32 ^ 0xFFFFFFFF
    for _ in range(4):
        value = by_first_byte[state >> 24]
        state = ((state ^ table[value]) << 8 | value) & 0xFFFFFFFF
    return data[:-4] + (state ^ zlib.crc32(data[:-4]) ^ 0xFFFFFFFF).to_bytes(4, "little")


def write_raw(pack: Path, clips: list[np.ndarray]) -> Path:
    with write_pack(pack) as writer:
        for number, clip in enumerate(clips):
            writer.add_raw(f"{number}", clip)
    return pack


def random_clips(seed: int) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (NUM_CLIPS, NUM_FRAMES, 8, 8, 3), np.uint8))


def measured(real: Path, made: Path, cache: Path | None = None) -> FVDResult:
    return compute_fvd(real, made, Means(), num_frames=4, cache=cache)


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """A pack of raw frames, whose features are in the folder `cache`."""
    pack = write_raw(tmp_path / "real", random_clips(0))
    compute_fvd(pack, pack, Means(), num_frames=4, cache=tmp_path / "cache")
    return pack


def test_other_pixels_with_the_checksums_of_a_pack_do_not_get_its_features(real: Path, tmp_path: Path) -> None:
    clips = [
        [forged(b.tobytes(), zlib.crc32(a.tobytes())) for a, b in zip(*pair, strict=True)]
        for pair in zip(random_clips(0), random_clips(1), strict=True)
    ]
    shape = (NUM_FRAMES, 8, 8, 3)
    made = write_raw(tmp_path / "made", [np.frombuffer(b"".join(clip), np.uint8).reshape(shape) for clip in clips])
    assert (made / TABLE_NAME).read_bytes() == (real / TABLE_NAME).read_bytes()
    expected = measured(real, made)
    assert expected.value > 100
    assert measured(real, made, tmp_path / "cache").value == expected.value


def test_a_copy_of_a_pack_without_its_pixels_is_refused_although_its_features_are_kept(
    real: Path, tmp_path: Path
) -> None:
    made = tmp_path / "made"
    with write_pack(made) as writer:  # its shard has the size of the other one
        for number in range(NUM_CLIPS):
            writer.add_raw(f"{number}", np.zeros((NUM_FRAMES, 8, 8, 3), np.uint8))
    for name in (INDEX_NAME, TABLE_NAME):
        shutil.copy(real / name, made)
    for cache in (None, tmp_path / "cache"):
        with pytest.raises(ValueError, match=r"made has 0 videos"):
            measured(real, made, cache)


def test_damaged_clips_of_a_pack_are_skipped_with_a_cache_as_without_one(real: Path, tmp_path: Path) -> None:
    made = Path(shutil.copytree(real, tmp_path / "made"))
    (shard,) = made.glob("*.tar")
    data = bytearray(shard.read_bytes())
    for number, frame in ((1, 3), (2, 6)):  # frame 6 is not read
        data[data.index(random_clips(0)[number][frame].tobytes())] ^= 1
    shard.write_bytes(data)
    without, with_cache = (measured(real, made, cache) for cache in (None, tmp_path / "cache"))
    assert with_cache == without
    (skipped,) = with_cache.skipped
    assert "bytes of 1 have changed since it was packed" in skipped[1]


def test_kept_features_are_used_for_a_pack_that_was_moved(real: Path, tmp_path: Path) -> None:
    moved, detector = real.rename(tmp_path / "moved"), Means()
    compute_fvd(moved, moved, detector, num_frames=4, cache=tmp_path / "cache")
    assert detector.seen == 0


def test_a_clip_is_read_once_for_its_key(real: Path) -> None:
    keys, path = ContentKeys(), list_pack(real)[0]
    key = keys.of(path, range(4))
    for shard in real.glob("*.tar"):
        shard.unlink()
    assert keys.of(path, range(4)) == key
    with pytest.raises(VideoError, match="cannot be read for 0"):
        keys.of(path, range(5))


def test_the_same_bytes_divided_into_other_images_have_another_key(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        write_video(folder, np.array(random_clips(0)[0][:2]))
    first, second = (file.read_bytes() for file in sorted(folders[0].iterdir()))
    for folder, end in zip(folders, (len(first), len(first) - 4), strict=True):
        (folder / "00000.png").write_bytes((first + second)[:end])
        (folder / "00001.png").write_bytes((first + second)[end:])
    paths = []
    for folder in folders:
        with write_pack(tmp_path / f"pack {folder.name}") as pack:
            pack.add_encoded("clip", folder)
        paths += list_pack(tmp_path / f"pack {folder.name}")
    for names in (folders, paths):
        assert len({ContentKeys().of(path, range(2)) for path in names}) == 2


def test_the_same_bytes_in_another_format_have_another_key(tmp_path: Path) -> None:
    write_video(tmp_path / "a.npy", random_clips(0)[0])
    names = ["a.npy", "b.npy", "c.ts"]
    with write_pack(tmp_path / "pack") as pack:
        for name in names:
            pack.add_encoded(name, tmp_path / "a.npy")
    for name in names[1:]:
        shutil.copy(tmp_path / "a.npy", tmp_path / name)
    for folder in (tmp_path, tmp_path / "pack"):
        keys = [ContentKeys().of(folder / name, [0]) for name in names]
        assert keys[0] == keys[1] != keys[2]
