"""A folder of videos, however it is laid out, becomes a list of clips; what is bad is named."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vidm.layouts import ClipIndex, index_clips
from vidm.video_io import write_video


def write_clip(path: Path, num_frames: int = 4) -> None:
    frames = np.random.default_rng(num_frames).integers(0, 256, (num_frames, 16, 16, 3), np.uint8)
    write_video(path, frames)


def names(index: ClipIndex) -> list[str]:
    return [str(path.relative_to(index.root)) for path in index.paths]


@pytest.mark.parametrize(
    "layout",
    [
        ["video_2.mp4", "video_10.mp4"],
        ["juggling/a.mp4", "tennis/a.gif", "tennis/b.npy"],
        ["train/video_00000-01000/video_00000.mp4", "train/video_09000-10000/video_09999.mp4"],
        ["clips/7", "clips/12", "clips/12b.mp4"],
    ],
    ids=["flat", "class folders", "CLEVRER", "frame folders"],
)
def test_every_layout_is_found_in_natural_order(tmp_path: Path, layout: list[str]) -> None:
    for name in reversed(layout):
        write_clip(tmp_path / name)
    index = index_clips(tmp_path)
    assert names(index) == layout
    assert index.num_frames == [4] * len(layout)
    assert index.skipped == []
    assert index.skipped_message() == ""


def test_a_folder_that_holds_the_frames_itself_is_one_clip(tmp_path: Path) -> None:
    write_clip(tmp_path / "frames", num_frames=6)
    index = index_clips(tmp_path / "frames")
    assert index.paths == [tmp_path / "frames"]
    assert index.num_frames == [6]


def test_hidden_and_other_files_and_thumbnails_beside_videos_are_ignored(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4")
    write_clip(tmp_path / ".cache" / "b.mp4")
    (tmp_path / ".half-written.mp4").write_bytes(b"")
    (tmp_path / "labels.json").write_text("{}")
    (tmp_path / "README.txt").write_text("")
    Image.new("RGB", (8, 8)).save(tmp_path / "thumbnail.png")
    index = index_clips(tmp_path)
    assert names(index) == ["a.mp4"]
    assert index.skipped == []


def test_a_link_to_a_folder_is_followed_and_a_loop_is_not(tmp_path: Path) -> None:
    write_clip(tmp_path / "elsewhere" / "a.mp4")
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "linked_again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "deep" / "loop").symlink_to(tmp_path / "data")
    assert names(index_clips(tmp_path / "data")) == ["linked/a.mp4"]


def test_a_bad_video_among_good_ones_is_named_counted_and_skipped(tmp_path: Path) -> None:
    write_clip(tmp_path / "good.mp4")
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    (tmp_path / "text.mp4").write_text("not a video")
    write_clip(tmp_path / "short.npy", num_frames=2)
    index = index_clips(tmp_path, min_frames=3)
    assert names(index) == ["good.mp4"]
    assert [path.name for path, _ in index.skipped] == ["gone.mp4", "short.npy", "text.mp4"]
    lines = index.skipped_message().splitlines()
    assert len(lines) == 3
    assert lines[0] == f"skipped: no such file or folder: {tmp_path / 'gone.mp4'}"
    assert lines[1] == f"skipped: {tmp_path / 'short.npy'}: has 2 frames, 3 are needed"


def test_of_many_bad_videos_ten_are_named_and_all_are_counted(tmp_path: Path) -> None:
    write_clip(tmp_path / "good.mp4")
    for number in range(12):
        (tmp_path / f"bad_{number}.mp4").write_bytes(b"")
    lines = index_clips(tmp_path).skipped_message().splitlines()
    assert len(lines) == 11
    assert "bad_9.mp4" in lines[9]
    assert lines[10] == "12 of 13 clips were skipped in all"


def test_a_missing_or_empty_folder_says_where_data_comes_from(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "labels.json").write_text("{}")
    for folder, error in ((tmp_path / "gone", FileNotFoundError), (empty, ValueError)):
        with pytest.raises(error) as caught:
            index_clips(folder)
        message = str(caught.value)
        assert f"`python scripts/make_synthetic_dataset.py --out {folder}`" in message
        assert "http://clevrer.csail.mit.edu" in message
        assert "\n" not in message


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_clip(tmp_path / "a.npy")
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def scandir_of_a_stranger(folder: str | Path) -> object:  # root, who often runs tests, may list everything
        if str(folder).endswith("locked"):
            raise PermissionError(errno.EACCES, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", scandir_of_a_stranger)
    with pytest.raises(ValueError, match=r"locked: the folder cannot be listed \(Permission denied\)"):
        index_clips(tmp_path)


def test_videos_that_are_all_too_short_name_the_longest_and_the_flag(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.npy", num_frames=3)
    write_clip(tmp_path / "b.npy", num_frames=5)
    with pytest.raises(ValueError, match=rf"{tmp_path} .* 16 frames .* longest has 5: ask for at most 5"):
        index_clips(tmp_path, min_frames=16)


def test_videos_that_are_all_bad_name_the_folder_and_the_first(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=rf"none of the 2 videos in {tmp_path} can be read; the first: .*a\.mp4"):
        index_clips(tmp_path)
