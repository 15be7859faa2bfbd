"""Tests of lists of clips in csv files: which clips they mean, that parts of one video stay apart, and every error."""

import json
import runpy
import shutil
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest

from vidm.cli_evaluate import evaluate_fvd_main
from vidm.clip_choice import ClipSelection, choose_clips, contents_of, draw_order
from vidm.config import Config
from vidm.csv_list import is_list
from vidm.datasets import Clips
from vidm.layouts import ClipIndex, index_clips, survey_clips
from vidm.packs import probe, read_frames, write_pack
from vidm.pairing import pair_videos
from vidm.sampling import list_content
from vidm.training_data import TrainingData, hold_out
from vidm.video_io import VideoError, write_video

SCRIPTS = Path(__file__).parent.parent / "scripts"
HEADER = "path,start,length,class,split\n"


def video(number: int, num_frames: int = 20) -> np.ndarray:
    """Frames whose levels say which video and frame they are of."""
    levels = (100 * number + np.arange(num_frames)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (num_frames, 16, 16, 3)).copy()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two videos of 20 frames, one of them a folder of frames."""
    for number, name in enumerate(("a.npy", "sub/b")):
        write_video(tmp_path / "data" / name, video(number))
    return tmp_path / "data"


def listed(data: Path, rows: str, name: str = "clips.csv") -> Path:
    (data / name).write_text(rows, encoding="utf-8")
    return data / name


def names(index: ClipIndex) -> list[str]:
    return [index.name_of(path).as_posix() for path in index.paths]


# What a list means


def test_a_list_names_videos_and_parts_of_them(data: Path) -> None:
    rows = "sub/b, 5, 10\nsub/b,15,\na.npy,,\na.npy,0,5\n\n"
    file = listed(data, "path,start,length\n" + rows)
    index = index_clips(data, layout="csv")
    assert names(index) == ["a.npy", "a.npy[0:5]", "sub/b[5:15]", "sub/b[15:20]"]
    assert (index.num_frames, index.classes, index.root) == ([20, 5, 10, 5], [], data)
    assert index.found == "4 clips of 2 videos"
    for path, first in zip(index.paths, (0, 0, 105, 115), strict=True):
        assert read_frames(path, [0, 4, 1])[:, 0, 0, 0].tolist() == [first, first + 4, first + 1]
    assert probe(index.paths[2]) == (10, 16, 16, None)
    assert index_clips(file) == index_clips(file, layout="csv") == index
    assert len(index_clips(data).paths) == 1  # without --layout csv, a list in a folder is not used


def test_columns_may_have_any_order_and_give_classes_and_splits(data: Path) -> None:
    rows = 'class,path,split\n"run, fast",sub/b,train\nwalk,./a.npy,test\n'
    listed(data, "\ufeff" + rows.replace("\n", "\r\n"))  # as Excel writes it
    index = index_clips(data, layout="csv")
    assert (names(index), index.classes) == (["a.npy", "sub/b"], ["walk", "run, fast"])
    assert index.found == "2 clips of 2 videos, 2 classes (all of it is used; --split chooses from train, test)"
    train = index_clips(data, layout="csv", split="train")
    assert (names(train), train.classes, train.found) == (["sub/b"], ["run, fast"], "train: 1 clip of 1 video, 1 class")
    assert train.at([0]).classes == ["run, fast"]


def test_videos_may_be_in_a_pack_or_anywhere_else(data: Path, tmp_path: Path) -> None:
    with write_pack(tmp_path / "lists" / "pack") as pack:
        pack.add_raw("c", video(2))
    file = listed(tmp_path / "lists", f"path,start\npack/c,18\n{data / 'a.npy'},18\n../data/sub/b,18\n", "some.csv")
    index = index_clips(file)
    assert {name: int(read_frames(path, [1]).max()) for name, path in zip(names(index), index.paths, strict=True)} == {
        "pack/c[18:20]": 219,
        f"{data / 'a.npy'}[18:20]": 19,
        "../data/sub/b[18:20]": 119,
    }
    assert len(choose_clips(ClipSelection(file, num_frames=2))) == 3


def test_clips_that_are_short_or_unreadable_are_skipped_and_named(data: Path) -> None:
    (data / "bad.npy").write_bytes(b"")
    listed(data, "path,start,length\na.npy,0,9\na.npy,9,8\nbad.npy,0,9\nbad.npy,9,9\n")
    index = index_clips(data, min_frames=9, layout="csv")
    assert (names(index), index.longest, len(index.skipped), len(index.bad)) == (["a.npy[0:9]"], 9, 3, 2)
    assert f"{data / 'a.npy'}[9:17]: has 8 frames, 9 are needed" in index.skipped_message()
    (data / "a.npy").write_bytes(b"")
    with pytest.raises(VideoError, match=r"a\.npy\[0:9\]: .*a\.npy: "):
        read_frames(index.paths[0], [0])


def test_a_part_that_its_video_does_not_have_cannot_be_opened(data: Path) -> None:
    assert probe(data / "a.npy[12:20]").num_frames == 8
    for part in ("12:21", "30:40", "7:7"):
        with pytest.raises(VideoError, match=rf"a\.npy\[{part}\]: the video has 20 frames"):
            probe(data / f"a.npy[{part}]")


def test_a_part_has_no_frames_outside_of_it(data: Path) -> None:
    for number in (-1, 5):
        with pytest.raises(VideoError, match=rf"a.npy\[2:7\]: frame {number} was requested, but it has 5 frames"):
            read_frames(data / "a.npy[2:7]", [0, number])
    shutil.copytree(data / "sub" / "b", data / "b[2:7]")  # a name is only a name if there is such a file
    assert len(read_frames(data / "b[2:7]", range(20))) == 20


# Parts of one video are different clips


def test_parts_are_drawn_and_cached_apart(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    real, made = (
        listed(
            data,
            "path,start,length\n" + "".join(f"{name},{n},4\n" for name in ("a.npy", "sub/b") for n in starts),
            file,
        )
        for starts, file in (((0, 8), "real.csv"), ((4, 12), "made.csv"))
    )
    draws = {tuple(choose_clips(ClipSelection(real, 4, 3, seed=seed)).index.paths) for seed in range(20)}
    assert len(draws) == 4  # each of the four is left out by some seeds
    assert contents_of(index_clips(real)).kinds == {"npy": 2, "png frames": 2}
    results = []
    for name in ("none", "computed", "cached"):
        flags = f"-n 4 -i3d random --json {tmp_path / name}".split()
        cache = [] if name == "none" else ["--cache", str(tmp_path / "cache")]
        evaluate_fvd_main(["-dir1", str(real), "-dir2", str(made), *flags, *cache])
        results.append(json.loads((tmp_path / name).read_text())["results"]["random Frechet4"])
    assert results[0]["num_samples"] == [4, 4]
    assert results[0]["value"] == results[1]["value"] == results[2]["value"] > 0
    assert "4 clips of 2 videos" in capsys.readouterr().out


def test_generated_videos_are_paired_with_the_parts_of_their_names(data: Path, tmp_path: Path) -> None:
    real = index_clips(listed(data, "path,start,length\na.npy,0,8\na.npy,8,8\nsub/b,8,8\n"))
    for path in real.paths[:2]:
        name = path.name if "8:16" in path.name else path.name.replace(".npy", "")
        write_video(tmp_path / "made" / f"{name}.npy", read_frames(path, range(8)))
    write_video(tmp_path / "made" / "sub" / "b[8:16].gif", read_frames(real.paths[2], range(8)))
    pairs = pair_videos(real, index_clips(tmp_path / "made"))
    assert (pairs.how, set(pairs.real.paths)) == ("by name", set(real.paths))
    for one, other in zip(pairs.real.paths, pairs.made.paths, strict=True):
        np.testing.assert_array_equal(read_frames(one, range(8)), read_frames(other, range(8)))


def test_parts_of_a_held_out_video_are_not_trained_on(data: Path) -> None:
    paths = [Path(f"{number:02d}.mp4[{start}:{start + 8}]") for number in range(20) for start in (0, 8, 16)]
    index = ClipIndex(Path(), paths, [8] * 60, [], classes=[path.name[:2] for path in paths])
    training, held_out = hold_out(index, 2)
    assert [path.name for path in held_out.paths] == ["05.mp4[8:16]", "15.mp4[8:16]"]
    assert held_out.classes == ["05", "15"]
    assert len(training.paths) == 54
    assert not {path.name[:2] for path in training.paths} & set(held_out.classes)


def test_parts_of_a_video_follow_each_other_in_the_order_from_which_a_floor_is_measured() -> None:
    paths = [Path(f"{number:02d}.mp4[{start}:{start + 8}]") for number in range(7) for start in (0, 8, 16)]
    clips = Clips(ClipIndex(Path(), paths, [8] * 21, []), num_frames=8)
    for seed in range(9):
        videos = [paths[place].name[:2] for place in draw_order(clips, seed, by_video=True)]
        assert len([key for key, _ in groupby(videos)]) == 7


def test_a_run_trains_on_the_parts_of_its_split(tiny: Config, data: Path) -> None:
    file = listed(data, HEADER + "a.npy,0,8,x,train\na.npy,8,8,y,train\nsub/b,0,8,x,test\n")
    values = {"data": str(file), "split": "train", "test_split": "test", "video_timesteps": 4, "batch_size": 2}
    found = TrainingData(tiny.replaced(values))
    assert (names(found.index), names(found.held_out)) == (["a.npy[0:8]", "a.npy[8:16]"], ["sub/b[0:8]"])
    batch = next(iter(found.batches(0, pin_memory=False)))
    assert sorted(level // 8 for level in batch["first"][:, 0, 0, 0].tolist()) == [0, 1]
    assert Clips(found.held_out, 8)[0][0][0].max() == 100


def test_first_frames_of_samples_are_those_of_the_parts(data: Path) -> None:
    file = listed(data, "path,start,length\na.npy,0,8\na.npy,8,8\n")
    assert [path.name for path in list_content(file)] == ["a.npy[0:8]", "a.npy[8:16]"]


# Scripts


def test_check_dataset_reads_a_list_and_pack_dataset_refuses_it_in_one_line(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    file = listed(data, "path,start,length\na.npy,0,8\nsub/b,8,8\n")
    check = ["check_dataset.py", str(file), "--verify", "--out", str(tmp_path / "sheet.png")]
    monkeypatch.setattr("sys.argv", check)
    assert runpy.run_path(str(SCRIPTS / "check_dataset.py"))["main"]() == 0
    assert "codecs: npy (1), png frames (1)" in capsys.readouterr().out
    for flags in (["--data", str(file)], ["--data", str(data), "--layout", "csv"]):
        with pytest.raises(SystemExit, match="2"):
            runpy.run_path(str(SCRIPTS / "pack_dataset.py"))["main"]([*flags, "--out", str(tmp_path / "pack")])
        assert "a pack cannot be made from a csv list" in capsys.readouterr().err


# Errors


@pytest.mark.parametrize(
    ("rows", "error"),
    [
        ("path,label\na.npy,x\n", "line 1: unknown column 'label'; the first line names the columns"),
        ("path;start\na.npy;0\n", "line 1: unknown column 'path;start'; .* with commas between them"),
        ("a.npy\n", "line 1: unknown column 'a.npy'"),
        ("path,path\n", "line 1: column path is there twice"),
        ("start\n1\n", "line 1: there is no column path"),
        ("", "lists no clips"),
        ("path\n\n", "lists no clips"),
        ("path,start\na.npy,0\na.npy\n", "line 3: has 1 value for 2 columns"),
        ("path\na.npy\nnone.npy\n", "line 3: no such file: .*none.npy; paths are relative to the list's folder"),
        ("path,class\na.npy,x\nsub/b,\n", "line 3: its class is empty"),
        ("path,split\na.npy, \n", "line 2: its split is empty"),
        ("path,start\n,0\n", "line 2: its path is empty"),
        ("path,start\na.npy,-1\n", "line 2: start is '-1'; give a number of frames, from 0 on"),
        ("path,length\na.npy,1.5\n", "line 2: length is '1.5'"),
        ("path,length\na.npy,0\n", "line 2: length is 0; give 1 or more"),
        ("path,start\na.npy,20\n", "line 2: start 20 is not in .*a.npy, which has 20 frames, counted from 0"),
        ("path,start,length\na.npy,15,6\n", "line 2: frames 15 to 20 are not in .*a.npy, which has 20 frames"),
        ("path,start,length\na.npy,0,5\nsub/b,,\na.npy,,5\n", r"line 4: is the same clip as .*line 2: .*a.npy\[0:5\]"),
        ("path,start,length\na.npy,,\n./a.npy,0,20\n", "line 3: is the same clip as .*line 2: .*a.npy; remove one"),
        ('path\n"a.npy\n', "line 2: is not csv"),
        ('path\n"a"b.npy\n', "line 2: is not csv"),
    ],
)
def test_what_is_wrong_with_a_list_is_said_with_its_line(data: Path, rows: str, error: str) -> None:
    listed(data, rows)
    with pytest.raises((ValueError, FileNotFoundError), match=rf"clips\.csv,? {error}"):
        survey_clips(data, layout="csv")


def test_a_list_in_another_encoding_is_refused_with_its_line(data: Path) -> None:
    for encoding, line in (("latin1", 3), ("utf-16", 1)):
        (data / "clips.csv").write_bytes("path\na.npy\nsub/\xe9.mp4\n".encode(encoding))
        with pytest.raises(ValueError, match=f"clips.csv, line {line}: is not UTF-8; save the list in this encoding"):
            survey_clips(data, layout="csv")


def test_a_list_is_read_only_where_lists_are_asked_for(data: Path) -> None:
    file = listed(data, "path\na.npy\n")
    with pytest.raises(
        ValueError, match=r"clips\.csv is a list of clips, which layout csv reads; for videos, give a fold"
    ):
        survey_clips(file, layout="videos")
    with pytest.raises(ValueError, match=r"^split train: .*clips\.csv has no such split; it has no column split"):
        survey_clips(file, split="train")
    listed(data, "path,split\na.npy,test\n")
    with pytest.raises(ValueError, match=r"^split train: .*clips\.csv has no such split; choose from test"):
        survey_clips(file, split="train")
    with pytest.raises(FileNotFoundError, match=r"no such file: .*sub/clips\.csv; layout csv needs it"):
        survey_clips(data / "sub", layout="csv")
    with pytest.raises(FileNotFoundError, match=r"no such file: .*typo\.csv$"):
        survey_clips(data / "typo.csv")
    (data / "folder.csv").mkdir()
    assert not is_list(data / "folder.csv")


def test_a_clip_cannot_have_the_name_of_another_file(data: Path) -> None:
    listed(data, "path,start,length\nsub/b,2,5\n")
    shutil.copytree(data / "sub" / "b", data / "sub" / "b[2:7]")
    with pytest.raises(ValueError, match=r"line 2: its clip would have the path of another file, .*b\[2:7\]; rename"):
        survey_clips(data, layout="csv")


def test_errors_of_lists_are_one_line_and_exit_code_2(data: Path, capsys: pytest.CaptureFixture) -> None:
    file = listed(data, "path\nnone.npy\n")
    with pytest.raises(SystemExit, match="2"):
        evaluate_fvd_main(["-dir1", str(file), "-dir2", str(data), "-n", "4", "-i3d", "random"])
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith(f"error: {file}, line 2: no such file")
