"""Tests of verify: damage anywhere in a clip or a pack is found and named."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vidm.layouts import index_clips
from vidm.pack_index import INDEX_NAME
from vidm.packs import write_pack
from vidm.verify import damaged_clip, verify
from vidm.video_io import VideoError, write_video

NUM_FRAMES = 70


def frames(seed: int, num_frames: int = NUM_FRAMES) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num_frames, 16, 16, 3), np.uint8)


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    """A pack of two shards with a video, a folder of frames and an array without compression."""
    write_video(tmp_path / "data" / "a.mp4", frames(0, 6))
    write_video(tmp_path / "data" / "b", frames(1, 3))
    with write_pack(tmp_path / "pack", shard_bytes=20_000) as writer:
        writer.add_encoded("a.mp4", tmp_path / "data" / "a.mp4")
        writer.add_encoded("b", tmp_path / "data" / "b")
        writer.add_raw("c", frames(2, 30))
    assert len(list((tmp_path / "pack").glob("*.tar"))) == 2
    return tmp_path / "pack"


def found(folder: Path) -> list[tuple[str, str]]:
    index = index_clips(folder)
    return [(str(path.relative_to(folder)), reason) for path, reason in verify(index.paths, index.num_frames)]


def test_an_undamaged_pack_or_folder_has_no_damage(pack: Path) -> None:
    assert found(pack) == []
    index = index_clips(pack.with_name("data"), layout="both")
    assert len(index.paths) == 2
    assert verify(index.paths, index.num_frames) == []


def test_every_changed_byte_of_a_pack_is_found(pack: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number, file in enumerate(sorted(pack.iterdir()) * 6):
        copy = Path(shutil.copytree(pack, tmp_path / str(number)))
        data = bytearray(file.read_bytes())
        place = int(rng.integers(len(data)))
        data[place] ^= 1
        (copy / file.name).write_bytes(data)
        if file.suffix == ".tar":
            ((name, reason),) = found(copy)
            assert name in ("a.mp4", "b", "c", file.name)
            assert file.name in reason
        else:
            with pytest.raises(VideoError, match=INDEX_NAME):
                found(copy)


def test_a_pack_without_checksums_of_shards_is_verified_by_those_of_its_frames(
    pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = (pack / INDEX_NAME).read_text()
    start, end = index.index('"shards_crc32"'), index.index('"table_crc32"')
    index = index[:start] + index[end:]
    (pack / INDEX_NAME).write_text(index[: index.index(', "crc32"')] + "}")  # as written by version 0.1.0
    assert found(pack) == []
    shard = sorted(pack.glob("*.tar"))[1]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert [name for name, _ in found(pack)] == ["c"]


def test_damage_in_any_frame_of_a_folder_is_found_by_reading_all(tmp_path: Path) -> None:
    write_video(tmp_path / "a", frames(0))
    write_video(tmp_path / "b", frames(1))
    image = tmp_path / "b" / "00041.png"
    image.write_bytes(image.read_bytes()[:100])
    assert damaged_clip(tmp_path / "b", NUM_FRAMES) == ""
    ((name, reason),) = found(tmp_path)
    assert name == "b"
    assert str(image) in reason


def test_mixed_sizes_in_a_folder_are_found_without_reading_all(tmp_path: Path) -> None:
    write_video(tmp_path / "a", frames(0, 9))
    Image.new("RGB", (8, 16)).save(tmp_path / "a" / "00002.png")
    assert damaged_clip(tmp_path / "a", 9) == (
        f"{tmp_path / 'a'}: has frames of 2 sizes: 00000.png is 16x16, 00002.png is 8x16"
    )


def test_a_frame_that_its_orientation_turns_is_of_another_size(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for number in range(4):
        image = Image.new("RGB", (24, 16))
        exif = image.getexif()
        exif[0x0112] = 6 if number == 2 else 1
        image.save(tmp_path / "a" / f"{number}.jpg", exif=exif)
    assert "0.jpg is 24x16, 2.jpg is 16x24" in damaged_clip(tmp_path / "a", 4)


def test_a_video_whose_size_changes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_frames(path: Path, numbers: list[int]) -> np.ndarray:
        side = 8 if numbers[0] < 5 else 16
        return np.zeros((len(numbers), side, 2 * side, 3), np.uint8)

    monkeypatch.setattr("vidm.verify.read_frames", read_frames)
    assert damaged_clip(tmp_path / "a.mp4", 10) == (
        f"{tmp_path / 'a.mp4'}: its frame size changes from 16x8 to 32x16 up to frame 5"
    )
