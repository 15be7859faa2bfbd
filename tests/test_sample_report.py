"""Tests of the report of a folder of samples: first frames, generated and real videos, distances, drift."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden import fill_by_rule
from test_classes import QUICK, saved
from test_report import Page

from vidm import sample_report
from vidm.checkpoint import Checkpoint, build_model, save_checkpoint
from vidm.config import Config
from vidm.detectors import STYLEGAN_V, load_detector
from vidm.generator import Generator, load_generator
from vidm.metric_results import FVDResult
from vidm.metrics import compute_fvd
from vidm.sample_config import SampleConfig
from vidm.sample_report import write_sample_report
from vidm.sampling import sample_folder
from vidm.video_io import write_video


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    config = Config.from_preset("tiny").replaced({"image_size": 16})
    state = fill_by_rule(build_model(config)).state_dict()
    path = tmp_path_factory.mktemp("checkpoint") / "checkpoint_00000001.pt"
    save_checkpoint(path, Checkpoint(1, config, state, state, {}))
    return load_generator(path)


def sampled(generator: Generator, content: Path, out: Path, **values: object) -> Page:
    settings = SampleConfig(content=str(content), out=str(out), sampler="ddim", steps="2", **values)
    sample_folder(generator, settings)
    write_sample_report(generator, settings)
    return Page(out / "report.html")


def test_each_video_is_shown_with_its_first_frame_and_the_real_video(
    generator: Generator, world: Path, tmp_path: Path
) -> None:
    page = sampled(generator, world, tmp_path / "out", num_samples=10, num_frames=8)
    assert len(page.all("video")) == 2 * 8
    assert len(page.all("img")) == 8
    assert "10 videos of 8 frames, 8 shown." in page.text
    assert "No distance" not in page.text
    assert f"first frames {world} " in page.text
    assert "video 3: seed 0, ddim, 2 steps, psi 1; first frame video_00003.mp4" in page.text
    assert "ground truth" in page.text
    assert "10 generated against 10 real videos" in page.text
    assert "floor: 6 other real against the same 6 real videos" in page.text
    assert "says nothing: 512 videos needed" in page.text
    assert "FVD" not in page.text.replace("not an FVD", "").replace("evaluate_FVD.py", "")
    for words in ("sampler ddim", "steps 2", "checkpoint_sha256", "seed 0", f"checkpoint {generator.path}", "command"):
        assert words in page.text
    assert "No curve of the drift: 10 videos, and it needs 512" in page.text
    assert "windows" not in page.text
    assert "protocol stylegan-v, real clips from their first frame; evaluate_FVD.py draws equally many" in page.text
    assert "given first frame counts in distances, not in PSNR and SSIM" in page.text
    assert "date 20" in page.text
    assert page.text.index("Distances") < page.text.index("Videos") < page.text.index("sampler ddim")
    assert page.open == []


@pytest.mark.parametrize("suffix", ["gif", "frames", "npy"])
def test_the_page_shows_videos_of_every_format(generator: Generator, world: Path, tmp_path: Path, suffix: str) -> None:
    page = sampled(generator, world, tmp_path / "out", num_samples=2, num_frames=4, format=suffix)
    assert len(page.all("video")) == 2 * 2


def test_only_frames_with_a_real_counterpart_are_compared(
    generator: Generator, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vidm.sample_report.enough_for", lambda dim: 2)
    write_video(tmp_path / "images", np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8))
    page = sampled(generator, tmp_path / "images", tmp_path / "of_images", num_frames=4)
    assert (len(page.all("video")), len(page.all("img"))) == (2, 2)
    assert "ground truth" not in page.text
    assert (
        "No distance to real videos: first frames are not of a folder or list of videos; evaluate_FVD.py" in page.text
    )
    page = sampled(generator, world, tmp_path / "long", num_samples=3, num_frames=20, anchor_every=8)
    assert "distance within windows of 4 frames" in page.text, "a quarter of the 16 real frames"


def test_a_page_of_generated_first_frames_says_the_classes_and_why_there_is_no_distance(tmp_path: Path) -> None:
    paths = [saved(tmp_path / f"{name}.pt", class_names=("a", "b"), generator=name) for name in ("motion", "content")]
    settings = SampleConfig(out=str(tmp_path / "out"), num_samples=3, guidance=2.0, **QUICK)
    generator = load_generator(*paths, device="cpu")
    sample_folder(generator, settings)
    write_sample_report(generator, settings)
    page = Page(tmp_path / "out" / "report.html")
    why = "first frames were generated; evaluate_FVD.py -dir1 REAL -dir2 " + settings.out
    assert f"3 videos of 2 frames, 3 shown. No distance to real videos: {why} compares" in page.text
    for number, name in enumerate("aba"):
        assert f"video {number}: class {name}, guidance 2.0, seed 0" in page.text
    assert "class_name a (2), b (1)" in page.text
    assert "first frames generated" in page.text


def test_samples_of_a_csv_list_are_compared_with_its_videos(generator: Generator, world: Path, tmp_path: Path) -> None:
    videos = sorted(world.rglob("*.mp4"))[:2]
    (tmp_path / "list.csv").write_text("path\n" + "".join(f"{video}\n" for video in videos))
    page = sampled(generator, tmp_path / "list.csv", tmp_path / "out", num_frames=2)
    assert "ground truth" in page.text
    assert "2 generated against 2 real videos" in page.text


def test_the_distance_is_to_the_split_whose_first_frames_were_continued(
    generator: Generator, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "list.csv"
    # Relative paths, by which the draws of videos do not depend on the temporary folder.
    videos = [shutil.copy(video, tmp_path) for video in sorted(world.rglob("*.mp4"))[:6]]
    rows = [f"{Path(video).name},{'test' if i % 2 else 'train'}\n" for i, video in enumerate(videos)]
    file.write_text("path,split\n" + "".join(rows))
    found = []

    def measured(*args: Any, **rest: Any) -> FVDResult:
        found.append(compute_fvd(*args, **rest))
        return found[0]

    monkeypatch.setattr(sample_report, "compute_fvd", measured)
    page = sampled(generator, file, tmp_path / "out", num_frames=4, split="test")
    choice: dict[str, Any] = {"num_frames": 4, "resolution": 16, "num_samples": 3, "detector": load_detector("random")}
    choice["protocol"] = replace(STYLEGAN_V, random_start=False)
    whole, train, test = (
        compute_fvd(file, tmp_path / "out", **choice, split=split).value for split in ("", "train", "test")
    )
    assert found[0].value == test
    assert test not in (whole, train)
    assert "split test" in page.text
