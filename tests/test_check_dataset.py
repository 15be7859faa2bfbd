"""Tests of scripts/check_dataset.py, which prints what training finds in a folder."""

import runpy
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vidm.packs import write_pack
from vidm.video_io import read_image, write_video

ROOT = Path(__file__).parent.parent
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "check_dataset.py"))


def check(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["check_dataset.py", *map(str, words)])
    return SCRIPT["main"]()


def test_lengths_sizes_codecs_and_skipped_clips_are_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, sheet = tmp_path / "data", tmp_path / "out" / "sheet.png"
    for name, level, num_frames, width in (("a.mp4", 50, 8, 32), ("b.gif", 100, 9, 16), ("c", 200, 12, 16)):
        frames = np.full((num_frames, 16, width, 3), level, np.uint8)
        frames += np.arange(num_frames, dtype=np.uint8)[:, None, None, None]  # a gif merges equal frames
        write_video(data / name, frames)
    write_video(data / "short.npy", np.zeros((3, 16, 16, 3), np.uint8))
    (data / "text.mp4").write_text("not a video")
    assert check(monkeypatch, data, "--min-frames", 8, "--layout", "both", "--out", sheet) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{data}: 4 videos in one flat folder and 1 folder of frames up to 1 level down",
        f"skipped: {data}/short.npy: has 3 frames, 8 are needed",
        *[
            line
            for line in [SCRIPT["survey_clips"](data, 8, "both").skipped_message().splitlines()[1]]
            if "text.mp4" in line
        ],
        "usable: 3 of 5 clips; 1 unreadable or missing, 1 too short",
        "training refuses more than 0.05 of unreadable clips, unless --max-bad-fraction allows them",
        "frames: 8 to 12, median 9, 29 in total",
        "sizes, height x width: 16x16 (2), 16x32 (1)",
        "codecs: h264 (1), gif (1), png frames (1)",
        "frames per second: none stored (2), 25 (1)",
        "damage: 0 found in the first, middle and last frames",
        f"contact sheet: {sheet}",
    ]
    rows = read_image(sheet).reshape(3, SCRIPT["SHEET_SIDE"], -1)
    assert rows.shape[2] == 3 * SCRIPT["SHEET_SIDE"] * SCRIPT["SHEET_FRAMES"]
    for row, level in zip(rows, (50, 100, 200), strict=True):  # one clip per row, in order
        assert np.abs(row.astype(int) - level).max() <= 15


def test_the_contact_sheet_spans_each_clip(tmp_path: Path) -> None:
    frames = np.repeat(np.arange(40, dtype=np.uint8) * 5, 16 * 16 * 3).reshape(40, 16, 16, 3)
    write_video(tmp_path / "a.npy", frames)
    sheet = SCRIPT["contact_sheet"](SCRIPT["survey_clips"](tmp_path))
    shown = sheet[0, :: SCRIPT["SHEET_SIDE"], 0] // 5
    assert shown.tolist() == [0, 6, 11, 17, 22, 28, 33, 39]


def test_a_clip_that_is_damaged_after_its_first_frame_is_named_in_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_video(tmp_path / "good", np.zeros((4, 16, 16, 3), np.uint8))
    write_video(tmp_path / "cut", np.zeros((4, 16, 16, 3), np.uint8))
    whole = (tmp_path / "cut" / "00002.png").read_bytes()
    (tmp_path / "cut" / "00002.png").write_bytes(whole[: len(whole) // 2])
    assert check(monkeypatch, tmp_path, "--out", tmp_path / "sheet.png") == 0
    assert f"cannot be decoded: {tmp_path}/cut/00002.png" in capsys.readouterr().out
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height == SCRIPT["SHEET_SIDE"]


def test_the_codec_is_read_from_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_video(tmp_path / "train" / "a.mp4", np.zeros((4, 16, 16, 3), np.uint8))
    write_video(tmp_path / "val" / "a.npy", np.zeros((4, 16, 16, 3), np.uint8))
    for split, codec in (("train", "h264"), ("val", "npy")):
        assert check(monkeypatch, tmp_path, "--split", split, "--out", tmp_path / "sheet.png") == 0
        assert f"codecs: {codec} (1)\n" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["nothing", "bad", "short"])
def test_if_no_clip_is_usable_the_exit_code_is_1_and_the_reasons_are_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    if content == "bad":
        (tmp_path / "bad.mp4").write_bytes(b"")
    if content == "short":
        write_video(tmp_path / "short.npy", np.zeros((3, 8, 8, 3), np.uint8))
    assert check(monkeypatch, tmp_path, "--min-frames", 4, "--out", tmp_path / "sheet.png") == 1
    said = capsys.readouterr().out
    assert {"nothing": "no videos and no folders", "bad": "bad.mp4", "short": "has 3 frames, 4 are"}[content] in said
    assert "usable: 0 of" in said
    assert not (tmp_path / "sheet.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [("nowhere", "error: no such folder"), (". --split dev", "error: --split dev"), (". --layout x", "invalid choice")],
)
def test_an_invalid_command_exits_with_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        check(monkeypatch, *words.split())
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


def test_a_pack_is_described_like_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_video(tmp_path / "data" / "a.mp4", np.zeros((8, 16, 16, 3), np.uint8))
    with write_pack(tmp_path / "pack", 1 << 20) as pack:
        pack.add_encoded("a.mp4", tmp_path / "data" / "a.mp4")
    assert check(monkeypatch, tmp_path / "pack", "--out", tmp_path / "sheet.png") == 0
    said = capsys.readouterr().out
    assert "usable: 1 of 1 clips" in said
    assert "codecs: in a pack (1)" in said


def test_damage_in_the_last_of_many_clips_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(30):
        write_video(tmp_path / "data" / f"{number:02d}", np.zeros((3, 8, 8, 3), np.uint8))
    (tmp_path / "data" / "17" / "00002.png").write_bytes(b"damaged")
    assert check(monkeypatch, tmp_path / "data", "--out", tmp_path / "sheet.png") == 0
    printed = capsys.readouterr().out
    assert f"cannot be decoded: {tmp_path}/data/17/00002.png" in printed
    assert "damage: 1 found in the first, middle and last frames, which training replaces by the next ones" in printed


def test_verify_reads_every_frame_and_the_exit_code_is_1_for_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        write_video(tmp_path / "data" / name, np.zeros((9, 8, 8, 3), np.uint8))
    words = (tmp_path / "data", "--out", tmp_path / "sheet.png", "--verify")
    assert check(monkeypatch, *words) == 0
    assert "damage: 0 found in every byte" in capsys.readouterr().out
    (tmp_path / "data" / "b" / "00003.png").write_bytes(b"damaged")
    assert check(monkeypatch, *words) == 1
    assert f"cannot be decoded: {tmp_path}/data/b/00003.png" in capsys.readouterr().out


def test_a_folder_with_only_unread_formats_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.rm").write_bytes(b"")
    assert check(monkeypatch, tmp_path, "--out", tmp_path / "sheet.png") == 1
    said = capsys.readouterr().out
    assert f"{tmp_path}: no videos and no folders of frames; passed over: 1 .rm (not read)" in said


def test_a_frame_of_the_contact_sheet_is_decoded_once_and_large_ones_are_not_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight copies of one frame of 8192 x 8191 pixels took 3.8 GB."""
    clip = np.random.default_rng(0).integers(0, 256, (5, 120, 100, 3), np.uint8)
    write_video(tmp_path / "clip", clip)
    thumbnails, read = SCRIPT["thumbnails"], SCRIPT["read_frames"]
    script = thumbnails.__globals__
    fit = partial(SCRIPT["fit_frames"], size=SCRIPT["SHEET_SIDE"])
    expected = fit(clip[[0, 0, 1, 3, 4, 4]])
    asked: list[list[int]] = []
    monkeypatch.setitem(script, "read_frames", lambda path, numbers: asked.append(list(numbers)) or read(path, numbers))
    for pixels, groups in ((100 * 120 * 2, [[0], [1, 3], [4]]), (1, [[0], [1], [3], [4]])):
        asked.clear()
        monkeypatch.setitem(script, "SHEET_PIXELS", pixels)
        assert (thumbnails(tmp_path / "clip", np.array([0, 0, 1, 3, 4, 4]), fit) == expected).all()
        assert asked == groups
