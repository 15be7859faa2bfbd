"""Tests of the page of results, its committed rows, and the shipped weights with their model card."""

import json
import re
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

import pytest

from vidm.files import sha256_of
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
    for name in (
        "results_page",
        "ablation_table",
        "bench_ablation",
        "bench_content",
        "bench_drift",
        "bench_peers",
        "peer_networks",
        "measuring",
        "reference",
    ):
        sys.modules.pop(name, None)


def test_every_table_and_curve_equals_its_regeneration_from_the_committed_rows(results_page):
    for path, text in results_page.everything().items():
        assert path.read_text() == text, f"{path}: run benchmarks/results_page.py"


def test_a_line_of_the_table_contains_the_mean_and_deviation_over_the_seeds(results_page):
    common = {"colour_kept": 1.0, "shape_overlap": 0.5, "displacement": 0.01, "centroid_error": [0.0, 1.0, 3.0]}
    rows = [
        {"row": "made", "seed": seed, "distance": distance, "kernel": -0.004, "still_there": 0.9, **common}
        for seed, distance in enumerate((12.0, 14.0))
    ]
    rows.append({"row": "drawn", "seed": 0, "distance": 20.0, "kernel": 0.5})
    assert results_page.table(rows).splitlines() == [
        "| | Frechet distance | kernel distance | found | colour kept | outline IoU "
        "| motion distance, px | position error, px |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
        "| made | 13.0 (1.41) | -0.004 (0) | 0.9 (0) | 1 (0) | 0.5 (0) | 0.01 (0) | 2 (0) |",
        "| drawn | 20.0 | 0.5 |  |  |  |  |  |",
    ]


def test_differences_are_between_rows_of_a_seed_and_marked_beyond_three_deviations(results_page):
    values = {"control": (10.0, 30.0, 20.0), "better": (9.0, 29.1, 18.9), "other": (14.0, 24.0, 20.0)}
    rows = [{"row": name, "seed": i, "distance": d} for name, seeds in values.items() for i, d in enumerate(seeds)]
    assert results_page.differences_table(rows, "control", ("better", "other")).splitlines() == [
        "| compared with control | Frechet distance |",
        "|---|--:|",
        "| better | -1 (0.1) * |",
        "| other | -0.667 (5.03) |",
    ]


def test_a_page_with_a_missing_marker_is_an_error(results_page, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- headline -->\nold\n<!-- /headline -->\nnumbers\n")
    assert results_page.filled(page, {"headline": "new"}) == "<!-- headline -->\nnew\n<!-- /headline -->\nnumbers\n"
    with pytest.raises(ValueError, match=r"page\.md: <!-- again -->"):
        results_page.filled(page, {"headline": "new", "again": "numbers"})


def test_rows_of_the_shipped_weights_contain_the_digest_of_the_file(results_page):
    rows = [row for row in results_page.newest_rows() if row["weights"] and row["training"] is None]
    assert {row["weights"] for row in rows} == {sha256_of([WORLD / "motion.safetensors"])}
    assert sorted(row["seed"] for row in rows if row["row"] == "world") == [0, 1, 2]


def test_the_committed_rows_are_those_of_the_benchmarks_and_a_missing_one_is_an_error(results_page, monkeypatch):
    found = {name: results_page.newest_rows(name) for name in results_page.WANTED}
    for name, rows in found.items():
        assert sorted((row["row"], row["seed"]) for row in rows) == sorted(results_page.WANTED[name])
    for name, rows in found.items():
        for number, row in enumerate(rows):
            others = {**found, name: [*rows[:number], *rows[number + 1 :]]}
            monkeypatch.setattr(results_page, "newest_rows", others.get)
            message = re.escape(f"{name}.jsonl has no row {row['row']!r} of seed {row['seed']}: ")
            with pytest.raises(ValueError, match=message):
                results_page.check_rows()


def test_the_drift_rows_are_of_the_shipped_weights(results_page):
    shipped = sha256_of([WORLD / "motion.safetensors"])
    assert {row["weights"] for row in results_page.newest_rows("drift")} == {"", shipped}


def test_unconditional_videos_are_of_the_shipped_content_generator(results_page):
    (row,) = [row for row in results_page.newest_rows() if row["row"] == "drawn"]
    assert row["content_weights"] == sha256_of([WORLD / "content.safetensors"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--stats nowhere.jsonl", "nowhere.jsonl"),
        ("--flow nowhere.json", "nowhere.json"),
        ("--videos nowhere nowhere", "nowhere"),
        ("--stats garbage.jsonl", "garbage.jsonl is damaged"),
    ],
)
def test_the_page_is_unchanged_after_an_error(tmp_path, flags, message):
    before = {path: path.read_bytes() for path in PAGE.iterdir()}
    (tmp_path / "garbage.jsonl").write_text("garbage\n")
    command = [sys.executable, ROOT / "benchmarks" / "results_page.py", *flags.split()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert {path: path.read_bytes() for path in PAGE.iterdir()} == before


def test_the_shipped_generators_beat_the_repeated_first_frame_by_three_deviations(results_page):
    groups = results_page.by_name(results_page.newest_rows())
    for column in ("distance", "kernel"):
        found, still = ([row[column] for row in groups[name]] for name in ("world", "still"))
        assert mean(still) - mean(found) > 3 * max(stdev(found), stdev(still))
    assert max(row["displacement"] for row in groups["world"]) < min(row["displacement"] for row in groups["still"])


def test_the_shipped_weights_are_small_and_generate_videos_without_other_files():
    assert sum(path.stat().st_size for path in WORLD.iterdir()) <= 16 * 2**20
    generator = load_generator(WORLD / "motion.safetensors", WORLD / "content.safetensors")
    of_folder = load_generator(WORLD, WORLD)
    assert (of_folder.path, of_folder.content_path) == (generator.path, generator.content_path)
    videos = generator.generate(2, num_frames=3, sampler="ddim", steps="4", seed=1)
    assert videos.shape == (2, 3, 64, 64, 3)
    assert not (videos[0] == videos[1]).all()
    settings = json.loads((WORLD / "motion.json").read_text())
    assert settings["config"]["model"]["video_timesteps"] == generator.num_frames(SampleConfig())
