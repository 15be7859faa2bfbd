"""Tests of the evaluation commands: printed text, records, pages and errors."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vidm.cli_evaluate import evaluate_fvd_main, evaluate_vis_main
from vidm.detectors import PROTOCOLS, load_detector
from vidm.evaluate_flags import METRICS, USE_OF_SPLIT, evaluate_parser, evaluate_vis_parser
from vidm.evaluation import ready_to_write
from vidm.layouts import index_clips
from vidm.metrics import compute_fvd
from vidm.video_io import read_video, write_video
from vidm.world import write_dataset

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("videos")
    for name, seed in (("real", 1), ("made", 2)):
        write_dataset(root / name, 8, num_frames=6, resolution=32, seed=seed, progress=False)
    return root / "real", root / "made"


def run(videos: tuple[Path, Path], *flags: object) -> None:
    evaluate_fvd_main(["-dir1", str(videos[0]), "-dir2", str(videos[1]), "-i3d", "random", *map(str, flags)])


def test_the_commands_have_exactly_these_flags() -> None:
    flags = {flag for action in evaluate_parser()._actions for flag in action.option_strings}
    assert flags == set(
        "-h --help -dir1 --dir1 -dir2 --dir2 -b --batch -r --resolution --fit -n --nframes -ns --nsamples -i3d --i3d "
        "--protocol --frame-stride --real-stride --suite --metrics --split --layout --real --first-frames --seed "
        "--repeats --workers --cache --json --report --latex".split()
    )
    flags = {flag for action in evaluate_vis_parser()._actions for flag in action.option_strings}
    assert flags == set(
        "-h --help -dir2 --dir2 -b --batch -r --resolution --fit -n --nframes -ns --nsamples -c3d --c3d --splits "
        "--seed --workers --cache --json".split()
    )


def test_the_choices_of_a_flag_are_those_of_the_registry_behind_it() -> None:
    actions = {action.dest: action for action in evaluate_parser()._actions}
    assert list(actions["protocol"].choices) == list(PROTOCOLS)
    every = ",".join(METRICS)
    assert every in actions["metrics"].help
    assert actions["metrics"].type(every) == list(METRICS)
    assert set(actions["real"].choices) == set(USE_OF_SPLIT.values())
    assert set(actions["first_frames"].choices) == {"generated", *USE_OF_SPLIT.values()}


def test_commands_of_the_original_repository_still_parse() -> None:
    options = evaluate_parser().parse_args(
        "-dir1 a -dir2 b -b 2 -r 32 -n 128 -ns 16 -i3d ./experiments/i3d_torchscript.pt".split()
    )
    assert (options.batch, options.resolution, options.nframes, options.nsamples) == (2, 32, 128, 16)
    options = evaluate_vis_parser().parse_args(
        "-dir2 b -b 1 -r 128 -n 16 -ns 64 -c3d ./experiments/c3d_ucf101.pt".split()
    )
    assert (options.batch, options.resolution, options.nframes, options.nsamples) == (1, 128, 16, 64)


def test_the_record_has_the_number_and_all_settings_behind_it(
    videos: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = (
        "-n 4 -r 24 --protocol videogpt --metrics fvd,kvd,psnr,ssim --repeats 2 --real held-out --first-frames train"
    )
    run(videos, *flags.split(), "--seed", 3, "--json", tmp_path / "new" / "fvd.json")
    record = json.loads((tmp_path / "new" / "fvd.json").read_text())
    result = record["results"]["random Frechet4"]
    printed = capsys.readouterr().out
    assert f"{result['value']:.4f}" in printed
    assert "not an FVD" in printed
    assert f"{record['frame_metrics']['psnr']:.4f}" in printed
    expected = {
        "real": str(videos[0]),
        "generated": str(videos[1]),
        "split": "all",
        "real videos were": "held-out",
        "first frames were": "train",
        "protocol": "videogpt",
        "seed": 3,
    }
    assert {key: record[key] for key in expected} == expected
    assert record["detector"]["sha256"] == load_detector("random").sha256  # type: ignore[attr-defined]
    assert record["versions"].keys() == {"python", "vidm", "torch", "numpy", "av", "pillow"}
    assert record["machine"]["cores"] >= 1
    assert (result["num_frames"], result["frame_strides"], result["resolution"], result["size"]) == (
        4,
        [1, 1],
        24,
        [24] * 2,
    )
    assert len(result["values"]) == len(result["kernel_values"]) == 2
    assert result["values"][0] == result["values"][1], "both draws are of all videos"
    assert result["deviation"] is None
    assert result["floor"] > 0


def test_what_each_folder_contains_is_printed_and_recorded(
    videos: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = Path(shutil.copytree(videos[0], tmp_path / "real"))
    write_video(real / "train" / "short.mp4", np.zeros((2, 32, 32, 3), np.uint8))
    (real / "thumbnails").mkdir()
    for number in range(3):
        Image.new("RGB", (8, 8)).save(real / "thumbnails" / f"{number}.jpg")
    (real / "more.rm").write_bytes(b"")
    run((real, videos[1]), "-n", 6, "--json", tmp_path / "a.json", "--report", tmp_path / "a.html")
    contents = json.loads((tmp_path / "a.json").read_text())["contents"]
    assert contents[str(real)]["frames"] == [6, 6]
    assert contents[str(real)]["sizes"] == {"32x32": 8}
    assert contents[str(real)]["kinds"] == contents[str(videos[1])]["kinds"] == {"mp4": 8}
    found = contents[str(real)]["found"]
    assert "passed over: 3 images in thumbnails, beside videos" in found
    assert "1 .rm (not read)" in found
    assert [Path(path).name for path, _ in contents[str(real)]["skipped"]] == ["short.mp4"]
    assert f"{real}: {found}; 6 to 6 frames; height x width 32x32 (8); mp4 (8)" in capsys.readouterr().out
    assert "passed over: 3 images in thumbnails" in (tmp_path / "a.html").read_text()


def test_folders_of_different_kinds_of_files_are_warned_of(
    videos: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in index_clips(videos[0]).paths:
        write_video(tmp_path / "gif" / path.relative_to(videos[0]).with_suffix(".gif"), read_video(path))
    for metrics in ("fvd", "psnr", "fvd,psnr"):
        run((videos[0], tmp_path / "gif"), "-n", 2, "--metrics", metrics, "--report", tmp_path / "a.html")
        assert capsys.readouterr().err.count(f"mp4 in {videos[0]}, gif in {tmp_path / 'gif'}: numbers include") == 1
        assert "convert both folders to one format" in (tmp_path / "a.html").read_text()
    run(videos, "-n", 2)
    assert "convert both folders" not in capsys.readouterr().err


def test_pairing_by_order_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("real/a.npy", "real/b.npy", "made/0.npy", "made/1.npy"):
        write_video(tmp_path / name, np.zeros((2, 16, 16, 3), np.uint8))
    run((tmp_path / "real", tmp_path / "made"), "-n", 2, "--metrics", "psnr")
    printed = capsys.readouterr()
    assert "2 pairs by order, frame 1, 16x16" in printed.out
    assert "warning: videos are paired by order" in printed.err


def test_the_layout_of_the_real_videos_can_be_chosen(
    videos: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, path in enumerate(index_clips(videos[0]).paths[:3]):
        write_video(tmp_path / "real" / f"{number}", read_video(path))
    shutil.copy(index_clips(videos[0]).paths[0], tmp_path / "real" / "preview.mp4")
    run((tmp_path / "real", videos[1]), "-n", 6, "--layout", "frames")
    assert "3 folders of frames up to 1 level down; passed over: 1 video (--layout frames)" in capsys.readouterr().out


def test_the_floor_and_unspecified_choices_are_always_printed(
    videos: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run(videos, "-n", 6)
    result = compute_fvd(*videos, load_detector("random"), num_frames=6)
    printed = capsys.readouterr()
    assert f"{result.value:.4f}" in printed.out
    assert f"{result.floor:.4f}" in printed.out
    assert "real videos were not specified" in printed.out
    assert "--real and --first-frames" in printed.out
    assert "warning: the Frechet distance says nothing (8 videos for 128 features): use 512 videos" in printed.err
    assert "says nothing: 512 videos needed; 8 real and 8 generated videos" in printed.out
    assert "4 real videos against 4 generated ones, or against other real ones" in printed.out
    assert "FVD" not in printed.out.replace("not an FVD", "")


@pytest.mark.parametrize(("split", "expected"), [("train", "train"), ("val", "held-out"), ("other", "not specified")])
def test_the_name_of_a_split_implies_whether_it_was_used_for_training(
    videos: tuple[Path, Path], tmp_path: Path, split: str, expected: str
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / split).symlink_to(videos[0])
    run((tmp_path / "data", videos[1]), "-n", 6, "--split", split, "--json", tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text())["real videos were"] == expected


def test_where_first_frames_came_from_is_taken_from_the_records_of_sampling(
    videos: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    real = Path(shutil.copytree(videos[0], tmp_path / "data" / "val"))
    made = Path(shutil.copytree(videos[1], tmp_path / "made"))
    names, sources = index_clips(made).paths, index_clips(real).paths

    def found(*flags: str, last: object = None, **records: object) -> str:
        for path, source in zip(names, sources, strict=True):
            record = {"first_frame": str(source), **records}
            path.with_suffix(".json").write_text(
                json.dumps(record | ({"first_frame": last} if last and path == names[-1] else {}))
            )
        run((tmp_path / "data", made), "-n", 2, "--json", tmp_path / "a.json", *flags)
        return json.loads((tmp_path / "a.json").read_text())["first frames were"]

    assert found() == "those of the real videos"
    assert "where the videos came from with --real: numbers" in capsys.readouterr().out
    assert found("--split", "val") == "held-out"
    assert "record where" not in capsys.readouterr().out
    assert found(first_frame="drawn") == "generated"
    assert found(first_frame="elsewhere/a.png") == "from elsewhere"
    assert found(last="drawn") == "those of the real videos (7), generated (1)"
    assert found("--first-frames", "train") == "train"
    with pytest.raises(SystemExit):
        found("--first-frames", "train", first_frame="drawn")
    assert (
        "--first-frames train: sampling recorded next to the videos that they were generated" in capsys.readouterr().err
    )


def test_frame_metrics_alone_need_no_detector(
    videos: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(videos, "-n", 6, "--metrics", "ssim", "--report", tmp_path / "report.html")
    printed = capsys.readouterr().out
    assert "\nSSIM " in printed
    assert "\nPSNR" not in printed
    assert "random-feature" not in printed
    assert "SSIM by frame" in (tmp_path / "report.html").read_text()


def test_the_suite_makes_all_three_measurements(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for name in ("real", "made"):
        for i in range(3):
            write_video(tmp_path / name / f"{i}.npy", rng.integers(0, 256, (128, 16, 16, 3), dtype=np.uint8))
    run((tmp_path / "real", tmp_path / "made"), "--suite", "--json", tmp_path / "suite.json")
    results = json.loads((tmp_path / "suite.json").read_text())["results"]
    shapes = {name: (result["num_frames"], result["frame_strides"]) for name, result in results.items()}
    assert shapes == {
        "random Frechet16": (16, [1, 1]),
        "random Frechet128": (128, [1, 1]),
        "random Frechet128 by 8": (16, [8, 8]),
    }
    printed = capsys.readouterr().out
    assert all(f"\n{name} " in printed for name in shapes)


def test_the_suite_does_not_start_if_a_measurement_is_impossible(
    videos: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(videos, "--suite", "--cache", tmp_path / "cache")
    assert "longest has 6" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_the_page_has_numbers_videos_curves_and_settings(
    videos: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(
        videos,
        "-n",
        6,
        "--metrics",
        "fvd,psnr,ssim",
        "--report",
        tmp_path / "report.html",
        "--json",
        tmp_path / "a.json",
    )
    page = (tmp_path / "report.html").read_text()
    result = json.loads((tmp_path / "a.json").read_text())["results"]["random Frechet6"]
    assert page.count("<video") == 2 * 8
    assert page.count("nearest: ") == page.count("farthest: ") == 3 * 4
    assert page.count('<svg class="chart"') == 2
    first, last = result["neighbours"][0], result["neighbours"][-1]
    assert f"nearest: {Path(first['path']).name}, {first['distance']:.4g} from {Path(first['nearest']).name}" in page
    assert f"farthest: {Path(last['path']).name}" in page
    assert "stylegan-v" in page
    assert "random Frechet6: 8 generated against 8 real videos" in page
    assert "random Frechet6: floor: 4 other real against the same 4 real videos" in page
    assert page.count("says nothing: 512 videos needed") == 2
    assert "8 pairs by name, frames 1 to 5" in page
    assert page.index("Distances</h2>") < page.index("Over time</h2>") < page.index("Videos</h2>")
    assert {"<dt>checkpoint</dt>", "<dt>date</dt>", "<dt>command</dt>"} <= set(re.findall("<dt>.*?</dt>", page))
    chart = page[page.index("PSNR by frame") :]
    assert re.search(r'text-anchor="start">1</text>.*?text-anchor="end">5</text>', chart), "frame 0 is not drawn"


def test_a_page_of_three_videos_shows_nearest_and_farthest_ones(videos: tuple[Path, Path], tmp_path: Path) -> None:
    run(videos, "-n", 2, "-ns", 3, "--report", tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    assert re.findall(r">(\w+): video_\d+\.mp4, [\d.]+ from video_\d+\.mp4</span>", page) == ["nearest"] * 2 + [
        "farthest"
    ]
    assert "at stride 1 (real) and 1 (generated), 128 features" in page
    run(videos, "-n", 2, "--metrics", "kvd", "--repeats", 2, "--report", tmp_path / "a.html")
    for name in ("random Frechet2", "random Frechet2 kernel"):
        assert f"<dt>{name}: repeats</dt>" in (page := (tmp_path / "a.html").read_text())
        assert re.search(rf"{name}: 8 generated against 8 real videos; mean of 2, deviation \S+</th>", page)
    run(videos, "-n", 2, "--metrics", "psnr", "--report", tmp_path / "a.html")
    assert "nearest" not in (tmp_path / "a.html").read_text(), "no videos are shown"


def test_the_inception_score_is_printed_and_recorded(
    videos: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["-dir2", videos[1], "-n", 6, "-c3d", "random", "--splits", 2, "--json", tmp_path / "vis.json"]
    evaluate_vis_main(list(map(str, flags)))
    record = json.loads((tmp_path / "vis.json").read_text())
    printed, warned = capsys.readouterr()
    assert "with 8 videos in 2 splits a score cannot exceed 4" in warned
    assert "not a video inception score" in printed
    result = record["results"]["random score"]
    assert f"{result['value']:.4f} +- {result['deviation']:.4f}" in printed
    assert "VIS" not in record["results"], "which is by a C3D"
    assert (result["splits"], result["seed"], result["softmax"]) == (2, 42, True)
    done = subprocess.run([sys.executable, ROOT / "scripts" / "evaluate_VIS.py", "--help"], capture_output=True)
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("flags", "printed"),
    [
        ("-n 6 -ns 9", "8 videos of 6 frames or more and 9 are needed"),
        ("-n 7", "the longest has 6"),
        ("-n 0", "-n 0: give a number from 1 to 1000000000"),
        ("-n 6 -b 0", "error: -b 0: give"),
        ("-n 6 --frame-stride 0", "--frame-stride 0: give"),
        ("-n 6 --real-stride 0", "--real-stride 0: give"),
        ("-n 6 --repeats 0", "--repeats 0: give"),
        ("-n 6 --resolution 0", "--resolution 0: give"),
        ("-n 6 --split absent", "--split absent"),
        ("-n 6 --cache {file}", "another --cache"),
        ("-n 6 --json {folder}", "is a folder: give the name of a file"),
        ("-n 6 --report {file}/a.html", "{file}"),
        ("--nframes 0 --metrics psnr", "--nframes 0: give"),
        ("-n 6 --metrics psnr -r=0", "error: -r 0: give"),
        ("-n 6 --metrics ssim -r 8", "SSIM needs frames of 11 x 11 pixels (--resolution) or more"),
        ("-n 6 --metrics psnr -ns 99", "99 pairs were asked for (-ns); there are 8"),
        ("-n 6 -ns 1", "error: -ns 1: a distance needs 2 videos of each folder or more"),
        ("-n 1", "the random detector needs 2 frames (-n)"),
    ],
)
def test_an_error_is_one_line(
    videos: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: str, printed: str
) -> None:
    (tmp_path / "file").write_text("")
    places = {"file": tmp_path / "file", "folder": tmp_path}
    with pytest.raises(SystemExit) as exit_info:
        run(videos, *flags.format(**places).split())
    assert exit_info.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert printed.format(**places) in errors[0]


@pytest.mark.parametrize("flags", ["-ns 1 --splits 1", "-ns 9"])
def test_too_few_videos_for_the_splits_are_refused_before_they_are_read(
    flags: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        evaluate_vis_main(["-dir2", str(tmp_path), *flags.split()])
    number, splits = flags.split()[1], flags.partition("--splits ")[2] or "10"
    needed = max(int(splits), 2)
    assert capsys.readouterr().err == f"error: -ns {number}: --splits {splits} needs {needed} or more\n"


def test_an_unknown_metric_is_named_in_the_error(videos: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(videos, "--metrics", "fvd,lpips")
    assert "'lpips' is not one of fvd, kvd, psnr, ssim" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--suite -n 16", "-n and --frame-stride have no effect with --suite"),
        ("--metrics psnr --repeats 4", "--repeats has no effect on PSNR and SSIM"),
        ("--workers 0", "--workers 0: give a number from 1 to 1024"),
        ("--workers 1000000", "--workers 1000000: give a number from 1 to 1024"),
        ("--seed -1", "--seed -1: give a number from 0 to 4294967295"),
        (f"--seed {10**23}", f"--seed {10**23}: give a number from 0 to 4294967295"),
        (f"-b {10**10}", f"-b {10**10}: give a number from 1 to 1000000000"),
        (f"--repeats {10**10}", f"--repeats {10**10}: give a number"),
        (f"--frame-stride {10**10}", f"--frame-stride {10**10}: give a number"),
        ("-r 10000", "-r 10000: give a number from 1 to 8192"),
        ("--fram 2", "unrecognized arguments: --fram 2"),
    ],
)
def test_a_flag_without_effect_or_an_invalid_one_is_one_line(flags, message, capsys):
    with pytest.raises(SystemExit) as exit_info:
        evaluate_fvd_main(f"-dir1 A -dir2 B {flags}".split())
    assert exit_info.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize("flag", ["--dir1", "--dir2", "--i3d", "--json", "--report", "--cache"])
def test_an_empty_path_is_refused(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        evaluate_fvd_main(["-dir1", "A", "-dir2", "B", flag, ""])
    assert capsys.readouterr().err == f"error: {flag} is empty: give a path, or leave it out\n"


@pytest.mark.parametrize("flag", ["-dir1", "-i3d"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_a_device_is_not_called_missing(
    videos: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, kind: str
) -> None:
    os.mkfifo(tmp_path / "pipe")
    path = tmp_path / "pipe" if kind == "pipe" else Path("/dev/zero")
    with pytest.raises(SystemExit, match="2"):
        run(videos, flag, path)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path} is a pipe or a device: give a ")


@pytest.mark.parametrize("flag", ["--json", "--report"])
def test_a_pipe_without_a_reader_is_refused_before_the_measurement(
    videos: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SystemExit, match="2"):
        run(videos, "-n", 4, flag, tmp_path / "pipe")
    printed = capsys.readouterr()
    assert printed.err.endswith("pipe is a pipe or socket that no process reads: start its reader first\n")
    assert "videos" not in printed.out


def test_the_reader_of_a_pipe_sees_no_end_before_the_record(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with ready_to_write(str(tmp_path / "pipe"), "/dev/null", None), pytest.raises(BlockingIOError):
        os.read(reader, 1)
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_by_default_clips_have_the_frames_of_the_shorter_side(
    videos: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, length in enumerate((4, 4, 4, 5, 2)):
        write_video(tmp_path / "made" / f"{number}.npy", np.zeros((length, 32, 32, 3), np.uint8))
    run((videos[0], tmp_path / "made"))
    printed = capsys.readouterr()
    assert f"-n 4: what most videos of {tmp_path / 'made'} have" in printed.out
    assert "random Frechet4 " in printed.out
    assert "4 generated videos, 4 frames" in printed.out
    assert "2.npy" not in printed.out
    assert "4.npy: has 2 frames, 4 are needed" in printed.err
    run(videos, "--frame-stride", 2)
    assert "3 frames at stride 2, 32x32" in (printed := capsys.readouterr().out)
    assert "random Frechet3 by 2 " in printed
    run(videos, "-n", 3, "--real-stride", 2, "--metrics", "fvd,psnr")
    assert capsys.readouterr().out.count(" at stride 2 (real) and 1, 32x32") == 2


def test_a_row_for_latex_has_what_the_number_depends_on(
    videos: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run(videos, *"-n 4 -ns 6 -r 24 --protocol vidm-released --metrics fvd,kvd,psnr,ssim --repeats 2 --latex".split())
    header, row, kernel, psnr, ssim = capsys.readouterr().out.splitlines()[-5:]
    digest = load_detector("random").sha256[:12]  # type: ignore[attr-defined]
    assert [line.count("&") for line in (header, row, kernel, psnr, ssim)] == [9] * 5
    common = rf"vidm-released & 6 & 6 & 4 & 1 & $24 \times 24$ & 2 & \texttt{{{digest}}} & $".replace("\\\\", "\\")
    assert row.startswith(f"random Frechet4 & {common}")
    assert kernel.startswith(f"random Frechet4 kernel & {common}")
    assert r" \pm " in row
    assert re.search(
        r"\$ \\\\  % floor [\d.]+ \+- [\d.]+ for [\d.]+ of 4 real and 4 generated; says nothing: 512 videos needed", row
    )
    assert "for 128 features" not in kernel, "which has no bias"
    for name, line in (("PSNR, dB", psnr), ("SSIM", ssim)):
        assert line.startswith(rf"{name} & pairs by name & 6 & 6 & 1 to 3 & 1 & $24 \times 24$ & 1 & - & $")
    run(videos, *"-n 4 --protocol videogpt --metrics fvd --repeats 2 --latex".split())
    assert rf"$32 \times 32$ & 1 & \texttt{{{digest}}}" in capsys.readouterr().out, "both draws are of all videos"
    run(videos, *"-n 4 --metrics ssim --latex".split())
    assert [line.split(" &")[0] for line in capsys.readouterr().out.splitlines()[-2:]] == ["% metric", "SSIM"]


def test_the_kernel_distance_has_its_floor_and_its_mark_everywhere(
    videos: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("-n", 4, "--metrics", "kvd", "--latex", "--json", tmp_path / "a.json", "--report", tmp_path / "a.html")
    run(videos, *flags)
    printed = capsys.readouterr()
    result = json.loads((tmp_path / "a.json").read_text())["results"]["random Frechet4"]
    page = (tmp_path / "a.html").read_text()
    assert result["kernel_matched"] <= result["kernel_floor"]
    assert (result["kernel_says_nothing"], result["kernel_needed"]) == ("not above its floor", 0)
    mark = "says nothing: not above its floor"
    rows = [line for line in printed.out.splitlines() if line.startswith("random Frechet4 kernel")]
    assert [mark in row for row in rows] == [True, False, True], "value, matched, LaTeX"
    assert f"{result['kernel_floor']:.3g}" in rows[1]
    assert "warning: the kernel distance says nothing (not above its floor): compare it only with" in printed.err
    kernels = page[page.index("Kernel distances</h2>") :]
    assert kernels.count(mark) == 2
    assert "random Frechet4 kernel: floor: real videos divided at random into 4 and 4" in kernels
    for text in (printed.out, kernels.replace("Floor of", "floor of")):
        assert "floor of the kernel distance: twice the deviation over random divisions" in text


def test_videos_of_a_generator_with_another_fit_are_noticed(
    videos: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = shutil.copytree(videos[1], tmp_path / "made")
    first = sorted(made.rglob("*.mp4"))[0]
    first.with_suffix(".json").write_text('{"checkpoint": "a.pt", "settings": {"fit": "pad"}}')
    for flags, noticed in (("-r 24", True), ("-r 24 --fit pad", False)):
        run((videos[0], made), "-n", 4, *flags.split())
        assert ("sampled by a generator with --fit pad" in capsys.readouterr().err) is noticed


def test_advice_is_for_the_flag_with_the_mistake(
    videos: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags, line in (
        (f"-dir2 {tmp_path / 'typo'}", f"error: no such folder: {tmp_path / 'typo'} (-dir2)"),
        (
            f"-i3d {tmp_path / 'typo.pt'}",
            f"error: no such file: {tmp_path / 'typo.pt'}: check the path, or use the random detector: -i3d random",
        ),
    ):
        with pytest.raises(SystemExit, match="2"):
            run(videos, *flags.split())
        (printed,) = capsys.readouterr().err.splitlines()
        assert printed.startswith(line)
        assert "synthetic" not in printed
        assert "download" not in printed


def test_the_checkpoint_that_sampling_recorded_is_in_the_record(videos: tuple[Path, Path], tmp_path: Path) -> None:
    made = Path(shutil.copytree(videos[1], tmp_path / "made"))
    first = index_clips(made).paths[0]
    first.with_suffix(".json").write_text(json.dumps({"checkpoint": "runs/7.pt", "first_frame": "drawn"}))
    run((videos[0], made), "-n", 2, "--json", tmp_path / "a.json")
    record = json.loads((tmp_path / "a.json").read_text())
    assert record["checkpoint"] == "runs/7.pt"
    assert record["command"]
