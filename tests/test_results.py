"""The page of results says what the committed rows say, and the shipped weights are what their card describes."""

import json
import sys
from pathlib import Path
from statistics import mean, stdev

import pytest

from vidm.digests import sha256_of
from vidm.generator import load_generator
from vidm.sample_config import SampleConfig

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "results"
WORLD = ROOT / "pretrained_models" / "world"


@pytest.fixture
def results_page(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import results_page

    yield results_page
    for name in ("results_page", "ablation_table"):
        sys.modules.pop(name)


def test_every_table_and_curve_of_the_page_follows_from_the_committed_rows(results_page):
    for path, text in results_page.everything().items():
        assert path.read_text() == text, f"{path}: run benchmarks/results_page.py"


def test_a_line_of_the_table_is_mean_and_deviation_over_the_seeds(results_page):
    common = {"colour_kept": 1.0, "shape_overlap": 0.5, "displacement": 0.01, "centroid_error": [0.0, 1.0, 3.0]}
    rows = [
        {"row": "made", "seed": seed, "distance": distance, "kernel": -0.004, "still_there": 0.9, **common}
        for seed, distance in enumerate((12.0, 14.0))
    ]
    header, _, line = results_page.table(rows).splitlines()
    assert header.startswith("| | distance | kernel | PSNR |")
    assert line.startswith("| made | 13.0 (1.41) | -0.004 (0) |  |  | 0.9 (0) |")
    assert line.endswith("| 0.01 (0) | 2 (0) |  |")


def test_every_marker_is_filled(results_page):
    page = (PAGE / "README.md").read_text()
    for name, text in results_page.parts_of(results_page.newest_rows(), []).items():
        assert f"<!-- {name} -->" in page
        if name != "flow":
            assert text in page


def test_the_headline_rows_are_of_the_weights_that_are_shipped(results_page):
    rows = [row for row in results_page.newest_rows() if row["row"] == "world"]
    assert {row["weights"] for row in rows} == {sha256_of([WORLD / "motion.safetensors"])}
    assert sorted(row["seed"] for row in rows) == [0, 1, 2]


def test_the_shipped_generators_beat_the_repeated_first_frame_by_three_deviations(results_page):
    groups = results_page.by_name(results_page.newest_rows())
    for column in ("distance", "kernel"):
        found, still = ([row[column] for row in groups[name]] for name in ("world", "still"))
        assert mean(still) - mean(found) > 3 * max(stdev(found), stdev(still))
    assert max(row["displacement"] for row in groups["world"]) < min(row["displacement"] for row in groups["still"])


def test_the_shipped_weights_are_small_and_make_videos_from_a_clone_alone():
    assert sum(path.stat().st_size for path in WORLD.iterdir()) <= 16 * 2**20
    generator = load_generator(WORLD / "motion.safetensors", WORLD / "content.safetensors")
    videos = generator.generate(2, num_frames=3, sampler="ddim", steps="4", seed=1)
    assert videos.shape == (2, 3, 32, 32, 3)
    assert not (videos[0] == videos[1]).all()
    settings = json.loads((WORLD / "motion.json").read_text())
    assert settings["config"]["model"]["video_timesteps"] == generator.num_frames(SampleConfig())
