"""Tests of layouts: the clips of a folder in any layout are listed, and bad clips are reported."""

import errno
import multiprocessing
import os
import shutil
import tarfile
import time
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
import pytest
import torch
from PIL import Image

from vidm import layouts
from vidm.cli import parse_flags
from vidm.config import Config, DataConfig
from vidm.distributed import Rendezvous, on_main, rank
from vidm.launch import launch
from vidm.layouts import LAYOUTS, ClipIndex, index_clips, survey_clips
from vidm.packs import write_pack
from vidm.trainer import Trainer
from vidm.video_io import read_video, write_video


def write_clip(path: Path, num_frames: int = 4) -> None:
    frames = np.random.default_rng(num_frames).integers(0, 256, (num_frames, 16, 16, 3), np.uint8)
    write_video(path, frames)


def write_numbered(path: Path, video: int, num_frames: int = 4) -> None:
    """Write a clip with red = 20 * frame number and green = 20 * video number."""
    frames = np.zeros((num_frames, 16, 16, 3), np.uint8)
    frames[..., 0] = 20 * np.arange(num_frames)[:, None, None]
    frames[..., 1] = 20 * video
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix != ".avi":
        write_video(path, frames)
        return
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 16
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 10**6
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def numbers(index: ClipIndex) -> list[int]:
    """Return the number of each video of an index; also check every frame."""
    videos = []
    for path, num_frames in zip(index.paths, index.num_frames, strict=True):
        frames = read_video(path).mean(axis=(1, 2))
        assert len(frames) == num_frames
        np.testing.assert_array_equal((frames[:, 0] / 20).round(), np.arange(num_frames))
        (video,) = set((frames[:, 1] / 20).round().astype(int).tolist())
        videos.append(video)
    return videos


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
    index = index_clips(tmp_path, layout="both")
    assert names(index) == layout
    assert index.num_frames == [4] * len(layout)
    assert index.skipped == []
    assert index.skipped_message() == ""


def test_a_folder_that_contains_frames_directly_is_one_clip(tmp_path: Path) -> None:
    write_clip(tmp_path / "frames", num_frames=6)
    index = index_clips(tmp_path / "frames")
    assert index.paths == [tmp_path / "frames"]
    assert index.found == "1 folder of frames"
    assert index.num_frames == [6]


def test_hidden_files_other_files_and_thumbnails_next_to_videos_are_ignored(tmp_path: Path) -> None:
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


@pytest.mark.skipif(not Path("/proc/self/root").is_dir(), reason="needs Linux")
@pytest.mark.parametrize("target", ["/proc", "/proc/self/task", "/sys", "/dev", "/proc/self/root", ".."])
def test_a_link_to_the_system_or_to_a_folder_around_the_data_is_named_and_not_followed(
    tmp_path: Path, target: str
) -> None:
    write_clip(tmp_path / "data" / "a.mp4")
    write_clip(tmp_path / "other data" / "b.mp4")
    link = tmp_path / "data" / "link"
    link.symlink_to(target)
    index = survey_clips(tmp_path / "data")
    assert names(index) == ["a.mp4"]
    ((path, reason),) = index.bad
    assert path == link
    assert reason.startswith(f"{link}: the folder is not read: ")
    assert link.resolve().as_posix() in reason


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="there is no disk in memory")
def test_a_link_to_the_disk_in_memory_is_followed(tmp_path: Path) -> None:
    with TemporaryDirectory(dir="/dev/shm") as folder:
        write_clip(Path(folder, "a.mp4"))
        (tmp_path / "linked").symlink_to(folder)
        assert names(index_clips(tmp_path)) == ["linked/a.mp4"]


def test_a_bad_video_among_good_ones_is_reported_and_skipped(tmp_path: Path) -> None:
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


def test_the_first_ten_bad_videos_are_listed_and_all_are_counted(tmp_path: Path) -> None:
    write_clip(tmp_path / "good.mp4")
    for number in range(12):
        (tmp_path / f"bad_{number}.mp4").write_bytes(b"")
    lines = index_clips(tmp_path).skipped_message().splitlines()
    assert len(lines) == 11
    assert "bad_9.mp4" in lines[9]
    assert lines[10] == "12 of 13 clips were skipped"


def test_the_error_for_a_missing_folder_says_where_to_get_data(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        index_clips(tmp_path / "gone")
    message = str(caught.value)
    assert f"`python scripts/make_synthetic_dataset.py --out {tmp_path / 'gone'}`" in message
    assert "http://clevrer.csail.mit.edu" in message
    assert "\n" not in message


def test_a_folder_without_videos_is_not_taken_for_a_place_to_make_data(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text("{}")
    with pytest.raises(ValueError, match=f"^no videos and no folders of frames in {tmp_path}: give the folder that"):
        index_clips(tmp_path)


def test_a_folder_that_cannot_be_listed_is_reported_and_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_clip(tmp_path / "a.npy")
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def scandir_without_permission(folder: str | Path) -> object:  # chmod does not restrict root
        if str(folder).endswith("locked"):
            raise PermissionError(errno.EACCES, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", scandir_without_permission)
    index = index_clips(tmp_path)
    assert names(index) == ["a.npy"]
    assert index.skipped_message() == f"skipped: {tmp_path / 'locked'}: the folder cannot be listed (Permission denied)"
    assert "1 folder not read" in index.found
    (tmp_path / "locked").rename(tmp_path / "data_locked")
    with pytest.raises(ValueError, match=r"data_locked: the folder cannot be listed \(Permission denied\)"):
        index_clips(tmp_path / "data_locked")


def test_if_all_videos_are_too_short_the_error_names_the_longest_and_the_flag(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.npy", num_frames=3)
    write_clip(tmp_path / "b.npy", num_frames=5)
    with pytest.raises(ValueError, match=rf"{tmp_path} .* 16 frames .* longest has 5: ask for at most 5"):
        index_clips(tmp_path, min_frames=16)


def test_if_all_videos_are_bad_the_error_names_the_folder_and_the_first(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=rf"none of the 2 videos in {tmp_path} can be read; the first: .*a\.mp4"):
        index_clips(tmp_path)


def test_if_no_video_is_usable_the_error_names_the_frames_that_were_passed_over(tmp_path: Path) -> None:
    write_clip(tmp_path / "frames", num_frames=9)
    write_clip(tmp_path / "preview.npy", num_frames=2)
    with pytest.raises(ValueError, match=r"the longest has 2: .*; passed over: 9 images in frames, beside videos"):
        index_clips(tmp_path, min_frames=9)
    (tmp_path / "preview.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of the 1 videos .*; passed over: 9 images in frames, beside videos"):
        index_clips(tmp_path, min_frames=9)


# A small example of each layout


@pytest.mark.parametrize(
    ("clips", "found"),
    [
        (["0.mp4", "1.avi", "2.gif"], "3 videos in one flat folder"),
        (["juggling/0.mp4", "juggling/1.mp4", "tennis/2.mp4"], "3 videos in 2 subfolders"),
        (["0.mp4", "a/1.mp4"], "2 videos in 2 folders up to 1 level down"),
        (["a/00/0.mp4", "a/10/1.mp4"], "2 videos in 2 folders up to 2 levels down"),
        (["0", "1"], "2 folders of frames up to 1 level down"),
        (
            ["sky_train/AbCd/AbCd_1", "sky_train/AbCd/AbCd_2", "sky_test/Ef/Ef_1"],
            "3 folders of frames up to 3 levels down",
        ),
        (["taichi/train/person 1#000.mp4/", "taichi/test/b.mp4/"], "2 folders of frames up to 3 levels down"),
        (["0.mp4", "frames/1"], "1 video in one flat folder and 1 folder of frames up to 2 levels down"),
    ],
    ids=[
        "flat",
        "class folders",
        "a folder next to a video",
        "CLEVRER's subfolders",
        "frames",
        "Sky Time-lapse",
        "TaiChi-HD",
        "both",
    ],
)
def test_a_small_example_of_each_layout_is_read_and_described(tmp_path: Path, clips: list[str], found: str) -> None:
    for video, name in enumerate(clips):
        folder = name.endswith("/")
        write_numbered(tmp_path / "data" / name.replace(".mp4/", ""), video)
        if folder:  # TaiChi-HD's frame folders have names of video files
            (tmp_path / "data" / name.replace(".mp4/", "")).rename(tmp_path / "data" / name)
    index = index_clips(tmp_path / "data", layout="both")
    assert index.found == found
    assert sorted(numbers(index)) == list(range(len(clips)))
    assert index.skipped == []


def test_a_layout_can_select_only_videos_or_only_frames(tmp_path: Path) -> None:
    write_numbered(tmp_path / "0.mp4", 0)
    write_numbered(tmp_path / "1", 1)
    assert numbers(index_clips(tmp_path)) == [0]  # images beside videos, anywhere, are thumbnails
    assert numbers(index_clips(tmp_path, layout="both")) == [0, 1]
    assert numbers(index_clips(tmp_path, layout="videos")) == [0]
    assert numbers(index_clips(tmp_path, layout="frames")) == [1]
    (tmp_path / "0.mp4").rename(tmp_path / "1" / "beside.mp4")
    assert numbers(index_clips(tmp_path)) == [0]  # the images are thumbnails
    assert numbers(index_clips(tmp_path, layout="frames")) == [1]
    with pytest.raises(ValueError, match=r"^layout folders: choose from auto, videos, frames, both, ucf101"):
        index_clips(tmp_path, layout="folders")


def test_every_choice_of_the_layout_flag_is_a_layout() -> None:
    assert DataConfig.__dataclass_fields__["layout"].metadata["choices"] == LAYOUTS


def write_images(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (16, 16)).save(folder / name)


def test_images_anywhere_beside_videos_are_thumbnails_and_are_counted(tmp_path: Path) -> None:
    for video in range(3):
        write_numbered(tmp_path / "videos" / f"video_{video:05d}.mp4", video)
    write_images(tmp_path / "thumbnails", *(f"video_{video:05d}.jpg" for video in range(3)))
    write_images(tmp_path / "posters" / "large", "0.png")
    index = index_clips(tmp_path)
    assert numbers(index) == [0, 1, 2]
    assert index.skipped == []
    assert index.passed_over == (
        "4 images in posters/large and 1 other folder, beside videos (thumbnails unless --layout is both or frames)"
    )
    assert index.found == f"3 videos in 1 subfolder; passed over: {index.passed_over}"
    assert len(index_clips(tmp_path, layout="both").paths) == 5
    assert "passed over: 3 videos (--layout frames)" in index_clips(tmp_path, layout="frames").found
    assert "passed over: 4 images in posters/large" in index_clips(tmp_path, layout="videos").found


def test_an_animation_of_one_frame_beside_videos_or_frames_is_an_image(tmp_path: Path) -> None:
    write_numbered(tmp_path / "a" / "0.webp", 0)
    write_numbered(tmp_path / "a" / "1.mp4", 1)
    write_images(tmp_path / "covers", "0.gif", "1.gif")
    index = index_clips(tmp_path)
    assert numbers(index) == [0, 1]
    assert index.passed_over.startswith("2 images in covers, beside videos")
    shutil.rmtree(tmp_path / "a")
    write_numbered(tmp_path / "frames", 2)
    index = index_clips(tmp_path)
    assert numbers(index) == [2]
    assert (index.skipped, index.passed_over) == ([], "2 images in covers (single gif or webp)")
    shutil.rmtree(tmp_path / "frames")
    assert len(index_clips(tmp_path).paths) == 2  # without anything else, videos of one frame


def test_a_pack_beside_frames_does_not_make_them_thumbnails(tmp_path: Path) -> None:
    write_clip(tmp_path / "frames")
    with write_pack(tmp_path / "pack") as pack:
        pack.add_raw("a", np.zeros((2, 8, 8, 3), np.uint8))
    assert names(index_clips(tmp_path)) == ["frames", "pack/a"]


def test_several_sequences_in_a_folder_are_never_one_clip_and_what_is_read_is_said(tmp_path: Path) -> None:
    for number in range(3):
        write_images(tmp_path / "a", f"{number}.jpg", f"{number}_mask.png")
        write_images(tmp_path / "b", f"left_{number}.jpg", f"right_{number}.jpg")
        write_images(tmp_path / "c", f"{number**2}.png")
    index = index_clips(tmp_path)
    assert list(zip(names(index), index.num_frames, strict=True)) == [("a", 3), ("c", 3)]
    assert "b: has 6 images of 2 sequences, left_#.jpg, right_#.jpg" in index.bad[0][1]
    assert index.found == (
        "3 folders of frames up to 1 level down; in a (and 1 folder like it), #.jpg is read, #_mask.png is not"
    )
    assert index_clips(tmp_path / "c").found == "1 folder of frames; in ., 1 gap in the numbers, 4 follows 1"


def test_formats_that_are_not_read_are_counted_and_named(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4")
    (tmp_path / "b").mkdir()
    for name in ("1.rm", "b/2.RM", "b/3.ppm", "more.zip", "labels.json", ".hidden.rm"):
        (tmp_path / name).write_bytes(b"")
    unread = index_clips(tmp_path).passed_over
    assert unread.endswith("(not read)")
    assert all(part in unread for part in ("2 .rm", "1 .ppm", "1 .zip"))
    assert "json" not in unread
    (tmp_path / "a.mp4").unlink()
    with pytest.raises(ValueError, match=r"no videos and no folders of frames in .*, passed over: 2 \.rm") as caught:
        index_clips(tmp_path)
    assert "convert" in str(caught.value)
    assert "make_synthetic" not in str(caught.value)
    write_images(tmp_path / "images", "0.png")
    with pytest.raises(ValueError, match=r"\(layout videos\); give another layout"):
        index_clips(tmp_path / "images", layout="videos")


def test_a_file_in_place_of_a_folder_is_told_what_it_is(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4")
    (tmp_path / "notes.txt").write_text("")
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.write(tmp_path / "a.mp4")
    with tarfile.open(tmp_path / "data.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "a.mp4")
    for name, what in (
        ("data.zip", "is an archive: unpack it"),
        ("data.tar.gz", "is an archive: unpack it"),
        ("a.mp4", f"is one video: give a folder of videos, such as {tmp_path}"),
        ("notes.txt", "is a file: give a folder of videos"),
    ):
        with pytest.raises(ValueError, match=f"{tmp_path / name} {what}"):
            index_clips(tmp_path / name)


def test_a_split_is_a_subfolder_and_without_one_all_clips_are_used(tmp_path: Path) -> None:
    for video, split in enumerate(("train", "val", "test")):
        write_numbered(tmp_path / split / "video_00000-01000" / f"{video}.mp4", video)
    assert numbers(index_clips(tmp_path, split="val")) == [1]
    assert index_clips(tmp_path, split="val").found == "val: 1 video in 1 subfolder"
    everything = index_clips(tmp_path)
    assert sorted(numbers(everything)) == [0, 1, 2]
    assert everything.found.endswith("(all of it is used; --split chooses from train, val, test)")
    with pytest.raises(ValueError, match=r"^split dev: .* has no such folder or list; choose from test, train, val"):
        index_clips(tmp_path, split="dev")


# UCF-101


def make_ucf(videos: Path, lists: Path, suffix: str = ".avi") -> None:
    for video, name in enumerate(("Archery/v_Archery_g01_c01", "Archery/v_Archery_g08_c01", "YoYo/v_YoYo_g08_c01")):
        write_numbered(videos / f"{name}{suffix}", video)
    lists.mkdir(parents=True, exist_ok=True)
    (lists / "classInd.txt").write_text("1 Archery\n2 YoYo\n")
    (lists / "trainlist01.txt").write_text("Archery/v_Archery_g08_c01.avi 1\r\nYoYo/v_YoYo_g08_c01.avi 2\r\n\r\n")
    (lists / "testlist01.txt").write_text("Archery/v_Archery_g01_c01.avi\n")
    (lists / "trainlist02.txt").write_text("Archery/v_Archery_g01_c01.avi 1\n")


def test_a_pipe_in_place_of_a_list_is_refused_without_waiting(tmp_path: Path) -> None:
    make_ucf(tmp_path, tmp_path)
    (tmp_path / "trainlist01.txt").unlink()
    os.mkfifo(tmp_path / "trainlist01.txt")
    with pytest.raises(ValueError, match=r"trainlist01\.txt is a pipe or a device"):
        index_clips(tmp_path, layout="ucf101", split="train1")


def test_a_line_of_a_list_is_read_in_a_time_that_grows_with_its_length(tmp_path: Path) -> None:
    make_ucf(tmp_path, tmp_path)
    line = (tmp_path / "trainlist01.txt").read_text().splitlines()[0]
    (tmp_path / "trainlist01.txt").write_text(f"A/a{' ' * 300_000}b\n{line.replace(' ', ' ' * 300_000)}\n")
    start = time.process_time()
    index = index_clips(tmp_path, layout="ucf101", split="train1")
    assert time.process_time() - start < 10
    assert (len(index.paths), len(index.skipped)) == (1, 1)


def test_a_list_of_more_than_a_few_megabytes_is_refused(tmp_path: Path) -> None:
    make_ucf(tmp_path, tmp_path)
    with (tmp_path / "trainlist01.txt").open("ab") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match=r"trainlist01.txt has more than 4194304 bytes: .*; remove it"):
        index_clips(tmp_path, layout="ucf101", split="train1")


@pytest.mark.parametrize("layout", ["auto", "ucf101"])
@pytest.mark.parametrize(
    ("videos", "lists", "root"),
    [
        ("UCF-101", "ucfTrainTestlist", "UCF-101"),
        ("UCF-101", "ucfTrainTestlist", "."),
        ("UCF-101", "UCF-101/ucfTrainTestlist", "UCF-101"),
        ("UCF-101", "UCF-101", "UCF-101"),
        ("UCF-101", ".", "UCF-101"),
    ],
    ids=["next to it", "root above both", "inside", "next to the classes", "in the parent folder"],
)
def test_ucf101s_official_lists_are_found_and_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, videos: str, lists: str, root: str
) -> None:
    make_ucf(tmp_path / videos, tmp_path / lists)
    assert numbers(index_clips(tmp_path / root, layout=layout, split="train1")) == [1, 2]
    assert numbers(index_clips(tmp_path / root, layout=layout, split="test1")) == [0]
    assert numbers(index_clips(tmp_path / root, layout=layout, split="train2")) == [0]
    index = index_clips(tmp_path / root, layout=layout, split="train1")
    assert index.found == "UCF-101, trainlist01.txt: 2 of the 2 videos listed, 2 classes"
    assert index.skipped == []
    monkeypatch.chdir(tmp_path / root)
    assert numbers(index_clips(".", layout=layout, split="test1")) == [0]


@pytest.mark.parametrize("split", ["..", "train/../..", "/"])
def test_a_split_that_leads_out_of_the_folder_is_refused(world: Path, split: str) -> None:
    with pytest.raises(ValueError, match=f"^split {split}: it leads out of"):
        index_clips(world, split=split)


def test_ucf101_without_a_split_uses_all_clips_and_names_the_splits(tmp_path: Path) -> None:
    make_ucf(tmp_path, tmp_path / "ucfTrainTestlist")
    assert index_clips(tmp_path).found == (
        "3 videos in 2 subfolders (all of it is used; --split chooses from test1, train1, train2)"
    )
    with pytest.raises(ValueError, match=r"^split train3: choose one of UCF-101's lists: test1, train1, train2"):
        index_clips(tmp_path, layout="ucf101", split="train3")
    with pytest.raises(ValueError, match=r"^split train3: .* choose from Archery, YoYo, ucfTrainTestlist, test1"):
        index_clips(tmp_path, split="train3")


def test_the_official_lists_apply_to_extracted_frames(tmp_path: Path) -> None:
    make_ucf(tmp_path / "frames", tmp_path / "ucfTrainTestlist", suffix="")
    assert numbers(index_clips(tmp_path / "frames", split="train1")) == [1, 2]


def test_without_the_official_lists_the_error_names_the_missing_file(tmp_path: Path) -> None:
    write_clip(tmp_path / "UCF-101" / "YoYo" / "a.npy")
    with pytest.raises(ValueError, match=r"no ucfTrainTestlist/trainlist01\.txt in or next to it"):
        index_clips(tmp_path / "UCF-101", layout="ucf101", split="train1")


def test_a_listed_class_or_file_that_does_not_exist_is_reported_and_skipped(tmp_path: Path) -> None:
    make_ucf(tmp_path, tmp_path / "ucfTrainTestlist")
    with (tmp_path / "ucfTrainTestlist" / "trainlist01.txt").open("a") as file:
        file.write("Tai Chi/v_TaiChi_g01_c01.avi 3\nTai Chi/v_TaiChi_g01_c02.avi 3\nYoYo/v_YoYo_g99_c01.avi 2\n")
    index = index_clips(tmp_path, split="train1")
    assert numbers(index) == [1, 2]
    assert index.found == ("UCF-101, trainlist01.txt: 2 of the 5 videos listed, 2 classes; missing: Tai Chi")
    assert index.skipped_message().splitlines() == [
        f"skipped: {tmp_path}/Tai Chi/v_TaiChi_g01_c01.avi: listed in trainlist01.txt, but the folder of class Tai Chi "
        "does not exist",
        f"skipped: {tmp_path}/Tai Chi/v_TaiChi_g01_c02.avi: listed in trainlist01.txt, but the folder of class Tai Chi "
        "does not exist",
        f"skipped: {tmp_path}/YoYo/v_YoYo_g99_c01.avi: listed in trainlist01.txt, but the file does not exist",
    ]
    with pytest.raises(ValueError, match="3 of the 5 clips"):
        index_clips(tmp_path, split="train1", max_bad_fraction=0.5, bad_list=tmp_path / "bad.txt")


# The cached lengths


def test_an_index_from_the_cache_equals_the_first_one_and_opens_no_readable_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for video, name in enumerate(("b/0.mp4", "b/1", "2.gif")):
        write_numbered(tmp_path / name, video)
    write_clip(tmp_path / "short.npy", num_frames=2)
    (tmp_path / "bad.mp4").write_text("not a video")
    fresh = index_clips(tmp_path, min_frames=3, layout="both")
    opened = []

    def counted(path: Path) -> object:
        opened.append(path.name)
        return probe(path)

    probe = layouts.probe
    monkeypatch.setattr(layouts, "probe", counted)
    assert index_clips(tmp_path, min_frames=3, layout="both") == fresh
    assert opened == ["bad.mp4"]  # an unreadable video is tried again
    write_numbered(tmp_path / "bad.mp4", 3, num_frames=6)
    write_numbered(tmp_path / "b" / "0.mp4", 0, num_frames=5)
    (tmp_path / "b" / "1" / "00003.png").unlink()
    (tmp_path / "2.gif").unlink()
    opened.clear()
    changed = index_clips(tmp_path, min_frames=3, layout="both")
    assert sorted(opened) == ["0.mp4", "1", "bad.mp4"]
    assert list(zip(names(changed), changed.num_frames, strict=True)) == [("b/0.mp4", 5), ("b/1", 3), ("bad.mp4", 6)]


def index_in_one_of_two_processes(node_rank: int, folder: Path, results: multiprocessing.Queue) -> None:
    """Index folder/data in three ways; put (rank, files opened so far, result) into the queue after each."""
    opened, probe = [], layouts.probe

    def counted(path: Path) -> object:
        opened.append(path.name)
        return probe(path)

    def attempt(split: str) -> ClipIndex | str:
        try:
            return index_clips(folder / "data", split=split)
        except ValueError as error:
            return str(error)

    def worker(device: torch.device) -> None:
        for way in (lambda: attempt(""), lambda: on_main(lambda: attempt("a"), ClipIndex), lambda: attempt("none")):
            found = way()
            results.put((rank(), sorted(opened), found))

    layouts.probe = counted
    launch(worker, (), True, num_nodes=2, node_rank=node_rank, rendezvous=Rendezvous(f"file://{folder}/meeting"))


def test_only_one_of_two_processes_opens_the_videos_and_both_get_the_index(tmp_path: Path) -> None:
    for name in ("a/0.npy", "a/1.npy", "b/2.npy"):
        write_clip(tmp_path / "data" / name)
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=index_in_one_of_two_processes, args=(n, tmp_path, results)) for n in (0, 1)]
    for process in processes:
        process.start()
    found = [results.get(timeout=120) for _ in range(6)]
    for process in processes:
        process.join()
    main, other = ([row[1:] for row in found if row[0] == number] for number in (0, 1))
    whole, split_too = ["0.npy", "1.npy", "2.npy"], ["0.npy", "0.npy", "1.npy", "1.npy", "2.npy"]
    assert [opened for opened, _ in main] == [whole, split_too, split_too]  # a split has its own cache file
    assert [opened for opened, _ in other] == [[], [], []]
    assert [result for _, result in main] == [result for _, result in other]
    assert [names(index) for _, index in main[:2]] == [["a/0.npy", "a/1.npy", "b/2.npy"], ["a/0.npy", "a/1.npy"]]
    assert main[2][1].startswith("split none: ")


# Bad input


def test_files_with_spaces_and_any_alphabet_in_their_names_are_read(tmp_path: Path) -> None:
    for video, name in enumerate(("a b/c  d.mp4", "\u6f22\u5b57/\u00fc\U0001f3a5.mp4", "x: y%s\n/z")):
        write_numbered(tmp_path / name, video)
    assert sorted(numbers(index_clips(tmp_path, layout="both"))) == [0, 1, 2]


def test_a_name_that_is_not_utf8_can_be_printed(tmp_path: Path) -> None:
    os.close(os.open(os.fsencode(tmp_path) + b"/\xff.mp4", os.O_CREAT))
    write_clip(tmp_path / "a.npy")
    index = index_clips(tmp_path)
    assert names(index) == ["a.npy"]
    assert "\\udcff.mp4" in index.skipped_message().encode().decode()


def test_a_link_to_itself_is_reported_and_skipped(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.npy")
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    (tmp_path / "folder").symlink_to(tmp_path / "folder")
    index = index_clips(tmp_path)
    assert names(index) == ["a.npy"]
    assert [path.name for path, _ in index.bad] == ["loop.mp4"]


def test_short_videos_are_not_bad(tmp_path: Path) -> None:
    write_clip(tmp_path / "long.npy", num_frames=9)
    write_clip(tmp_path / "short.npy", num_frames=2)
    index = index_clips(tmp_path, min_frames=3, max_bad_fraction=0.0, bad_list=tmp_path / "bad.txt")
    assert [path.name for path, _ in index.skipped] == ["short.npy"]
    assert index.bad == []
    assert not (tmp_path / "bad.txt").exists()


def test_more_bad_videos_than_allowed_are_an_error_and_are_all_listed_in_a_file(tmp_path: Path) -> None:
    data, bad_list = tmp_path / "data", tmp_path / "new" / "bad.txt"
    for number in range(4):
        write_clip(data / f"{number}.npy")
    for number in range(12):
        (data / f"bad_{number}\n.mp4").write_bytes(b"")
    assert len(index_clips(data, max_bad_fraction=0.75, bad_list=bad_list).paths) == 4
    assert not bad_list.exists()
    with pytest.raises(ValueError, match=rf"12 of the 16 clips in {data} .*max_bad_fraction.* listed in {bad_list}"):
        index_clips(data, max_bad_fraction=0.74, bad_list=bad_list)
    lines = bad_list.read_text().splitlines()
    assert len(lines) == 12
    assert all(rf"bad_{number}\n.mp4" in line for number, line in enumerate(lines))


def test_training_does_not_start_if_too_many_videos_are_bad(tiny: Config, tmp_path: Path) -> None:
    for number in range(19):
        write_clip(tmp_path / "data" / f"{number}.npy", num_frames=16)
    (tmp_path / "data" / "bad_0.mp4").write_bytes(b"")
    config = tiny.replaced({"data": str(tmp_path / "data")})
    limit = config.data.max_bad_fraction
    assert len(index_clips(tmp_path / "data", max_bad_fraction=limit).paths) == 19  # one in twenty is allowed
    (tmp_path / "data" / "bad_1.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match=r"2 of the 21 clips .* listed in .*run/bad_videos\.txt"):
        Trainer(config, torch.device("cpu"))
    assert [path.name for path in Path(config.train.out).iterdir()] == ["bad_videos.txt"]
    with pytest.raises(ValueError, match=r"^max_bad_fraction 1\.5: give a number from 0 to 1"):
        Trainer(config.replaced({"max_bad_fraction": 1.5}), torch.device("cpu"))


def test_survey_clips_returns_an_index_that_index_clips_refuses(tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"")
    write_clip(tmp_path / "short.npy", num_frames=2)
    index = survey_clips(tmp_path, min_frames=3)
    assert (index.paths, len(index.skipped), len(index.bad), index.longest) == ([], 2, 1, 2)


def test_the_commands_in_the_datasets_document_parse() -> None:
    document = Path(__file__).parent.parent / "docs" / "datasets.md"
    name = "python diffusion_ddp_accum_constant_cu.py "
    commands = [line.strip() for line in document.read_text().splitlines() if name in line]
    assert len(commands) == 7
    for command in commands:
        parse_flags(command.removeprefix(name).split())
