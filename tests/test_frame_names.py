"""Tests of frame names: which images of a folder are one clip, and in which order."""

from itertools import product
from pathlib import Path
from time import process_time

import numpy as np
import pytest
from PIL import Image

from vidm.frame_names import choose_frames, choose_images, is_numbered_through
from vidm.packs import read_frames, write_pack
from vidm.video_io import VideoError, frame_files, natural_key, probe, read_video


def write_images(folder: Path, pattern: str, numbers: range, grey: bool = False) -> list[str]:
    """Write one image of 8 x 8 per number, whose level is 10 times the number; return the names."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        level = 10 * number
        image = Image.new("L", (8, 8), level) if grey else Image.new("RGB", (8, 8), (level, 0, 0))
        image.save(folder / pattern.format(number), quality=95)
    return [pattern.format(number) for number in numbers]


def chosen(folder: Path) -> list[str]:
    return [path.name for path in frame_files(folder)]


def test_frames_named_by_seconds_are_in_the_order_of_time(tmp_path: Path) -> None:
    times = [f"{number * 0.04:g}" for number in range(12)]
    assert times[3:7] == ["0.12", "0.16", "0.2", "0.24"]
    for level, time in enumerate(times):
        Image.new("RGB", (8, 8), (10 * level, 0, 0)).save(tmp_path / f"{time}.png")
    assert read_video(tmp_path)[:, 0, 0, 0].tolist() == [10 * level for level in range(12)]
    assert sorted(times, key=natural_key) != times  # the earlier order: 0.2 before 0.04, as 2 before 4


@pytest.mark.parametrize(
    "names",
    [
        ["0.0.png", "0.25.png", "0.5.png", "0.75.png", "1.0.png", "10.5.png"],
        ["t_0.08.jpg", "t_0.10.jpg", "t_0.12.jpg"],
        ["take2.8.png", "take2.9.png", "take2.10.png", "take2.11.png"],
        ["shot.0009.png", "shot.0010.png", "shot.0100.png"],
        ["1403636579763555584.png", "1403636579763555585.png"],
        ["frame_2.png", "frame_10.png"],
        ["11h58.png", "11h59.png", "12h00.png", "12h01.png"],
        ["a.png", "b.png", "c.jpg"],
        ["9.JPG", "10.jpeg", "11.png"],
        ["a1 b.png", "a2 b.png"],
    ],
)
def test_one_sequence_is_ordered_by_its_numbers(names: list[str]) -> None:
    assert choose_frames(Path("folder"), names[::-1]).names == names


@pytest.mark.parametrize(
    ("read", "other"),
    [
        ("{}.jpg", ["{}_mask.png"]),
        ("{:05d}.png", ["{:05d}-depth.png", "mask_{:05d}.png"]),
        ("frame {}.png", ["frame {} mask.png"]),
        ("{}.jpg", ["{}.png"]),
        ("{}.jpeg", ["{}.png", "{}_mask.png"]),
    ],
)
def test_images_that_belong_to_frames_are_no_frames(tmp_path: Path, read: str, other: list[str]) -> None:
    names = write_images(tmp_path, read, range(9, 12))
    for pattern in other:
        write_images(tmp_path, pattern, range(9, 11))
    assert chosen(tmp_path) == names
    note = choose_frames(tmp_path, [path.name for path in tmp_path.iterdir()]).note
    assert "is read" in note
    assert note.endswith("is not" if len(other) == 1 else "are not")
    assert probe(tmp_path).num_frames == len(read_video(tmp_path)) == 3


def test_grey_images_beside_colour_ones_are_no_frames(tmp_path: Path) -> None:
    for axis in "xy":
        write_images(tmp_path, f"flow_{axis}_{{:05d}}.jpg", range(1, 4), grey=True)
    names = write_images(tmp_path, "img_{:05d}.jpg", range(1, 5))
    assert chosen(tmp_path) == names
    note = choose_frames(tmp_path, [path.name for path in tmp_path.iterdir()]).note
    assert note == "img_#.jpg is read, flow_x_#.jpg, flow_y_#.jpg are not"
    with write_pack(tmp_path.with_name("pack")) as pack:
        pack.add_encoded("clip", tmp_path)
    np.testing.assert_array_equal(read_frames(tmp_path.with_name("pack") / "clip", range(4)), read_video(tmp_path))


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        (["left_{}.jpg", "right_{}.jpg"], "6 images of 2 sequences, left_#.jpg, right_#.jpg"),
        (["cam1_{}.jpg", "cam2_{}.jpg"], "6 images of 2 sequences, cam1_#.jpg, cam2_#.jpg"),
        (["v{}_a.png", "v{}_b.png", "x{}.png"], "9 images of 3 sequences"),
    ],
)
def test_several_sequences_in_one_folder_are_refused_with_what_was_found(
    tmp_path: Path, patterns: list[str], found: str
) -> None:
    for pattern in patterns:
        write_images(tmp_path, pattern, range(1, 4))
    with pytest.raises(VideoError, match=found) as caught:
        read_video(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "give each sequence its own folder" in str(caught.value)


def test_names_without_a_common_pattern_are_refused() -> None:
    with pytest.raises(VideoError, match=r"2 images of 2 sequences, 3f2\.png, a9\.png"):
        choose_frames(Path("folder"), ["3f2.png", "a9.png"])


def test_single_images_beside_a_sequence_are_left_out(tmp_path: Path) -> None:
    names = write_images(tmp_path, "{}.png", range(3))
    frames = choose_frames(tmp_path, [*names, "cover.jpg", "poster_1.png"])
    assert frames.names == names
    assert frames.note == "#.png is read, cover.jpg, poster_1.png are not"


def test_gaps_in_the_numbers_are_allowed_and_noted() -> None:
    assert choose_frames(Path("f"), ["1.png", "2.png", "5.png", "6.png", "9.png"]).note == (
        "2 gaps in the numbers, 5 follows 2"
    )
    assert choose_frames(Path("f"), ["0.0.png", "0.04.png", "0.12.png"]).note == (
        "1 gap in the numbers, 0.12 follows 0.04"
    )
    for even in (["0.png", "10.png", "20.png"], ["0.png", "0.033.png", "0.067.png", "0.1.png"], ["7.png"], ["a.png"]):
        assert choose_frames(Path("f"), even).note == ""


def test_images_keep_all_that_do_not_belong_to_another_one(tmp_path: Path) -> None:
    names = ["cat_2.png", "cat_10.png", "dog_1.png", "photo.png"]
    for name in (*names, "cat_2_mask.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    images = choose_images(tmp_path, [*names[::-1], "cat_2_mask.png"])
    assert images.names == names
    assert images.note == "cat_2_mask.png not used"


def test_a_grey_video_beside_images_named_after_it_is_read_whatever_their_colours(tmp_path: Path) -> None:
    names = write_images(tmp_path, "{}.png", range(3), grey=True)
    write_images(tmp_path, "{}_depth.png", range(3))
    assert chosen(tmp_path) == names


def test_a_number_sign_in_a_name_is_not_a_number() -> None:
    frames = choose_frames(Path("folder"), ["take#1.png", "a#b.png", "take#2.png", "a1b.png", "take1.png"])
    assert frames.names == ["take#1.png", "take#2.png"]
    assert frames.note == "take##.png is read, a1b.png, a#b.png, take1.png are not"


@pytest.mark.parametrize("number", ["", "1"])
@pytest.mark.parametrize("alphabet", ["abcdef", "-_. "])
def test_names_are_compared_in_a_time_that_grows_with_their_number(tmp_path: Path, number: str, alphabet: str) -> None:
    names = [f"a{'_' * 200 * ('_' in alphabet)}{''.join(word)}x{number}.png" for word in product(alphabet, repeat=5)]
    start = process_time()
    choose_images(tmp_path, [*names, "a.png"])
    assert process_time() - start < 10


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["00000.png", "00001.png"], True),
        (["a_000001.jpg", "a_000002.jpg", "a_000003.jpg"], True),
        (["00001.png", "00003.png"], False),
        (["0.png", "1.png"], False),
        (["01000.png", "01001.png"], False),
        (["00000.png"], False),
        (["00000.png", "a_00001.png"], False),
    ],
)
def test_frames_of_videos_are_recognized_by_padded_numbers_without_gaps(names: list[str], expected: bool) -> None:
    assert is_numbered_through(names) is expected
