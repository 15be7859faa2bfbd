"""Tests of benchmarks/bench_ablation.py with few videos: content of rows, when they are computed again, and errors."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vidm.detectors import load_detector

ROOT = Path(__file__).parent.parent
MODULES = ("bench_ablation", "ablation_table", "measuring", "reference")


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """The benchmark with few videos, few steps and temporary folders. Its rows are appended to bench.rows."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import bench_ablation

    bench_ablation.rows = []
    shrunk = {
        "DATA": {32: tmp_path / "data" / "32", 64: tmp_path / "data" / "64"},
        "OUT": tmp_path / "out",
        "NUM_VIDEOS": 4,
        "NUM_REFERENCE": 6,
        "NUM_BEST": 2,
        "BEST_OF": 2,
        "STANDARD": {"sampler": "ddim", "steps": "2"},
        "append_row": lambda name, row, device: bench_ablation.rows.append(row),
        "newest_rows": lambda: list({(row["row"], row["seed"]): row for row in bench_ablation.rows}.values()),
        "ROWS": {name: replace(row, seeds=1) for name, row in bench_ablation.ROWS.items()},
        "load_detector": lambda name: load_detector("random"),
    }
    for name, value in shrunk.items():
        monkeypatch.setattr(bench_ablation, name, value)
    yield bench_ablation
    for name in MODULES:
        sys.modules.pop(name)


def run(bench, monkeypatch, *flags: str) -> int:
    """Run the benchmark; return the number of rows it appended."""
    before = len(bench.rows)
    monkeypatch.setattr(sys, "argv", ["bench_ablation.py", *flags])
    bench.main()
    return len(bench.rows) - before


@pytest.mark.slow
def test_rows_have_distances_scores_against_ground_truth_and_the_best_of_several(bench, monkeypatch):
    assert run(bench, monkeypatch, "--only", "real", "still", "world", "drawn") == 4
    rows = {row["row"]: row for row in bench.rows}
    assert rows["real"]["distance"] < rows["still"]["distance"]
    assert rows["real"]["mean_displacement"] > 5 * rows["still"]["mean_displacement"]
    assert "psnr_by_frame" not in rows["real"]
    assert len(rows["world"]["psnr_by_frame"]) == 16
    # All videos of a repeated frame are equal.
    assert rows["still"]["one_of_8_error"] == rows["still"]["best_of_8_error"]
    assert sum(rows["world"]["best_of_8_error"]) < sum(rows["world"]["one_of_8_error"])
    assert rows["drawn"].keys() == {
        *("row", "seed", "weights", "content_weights", "resolution", "training", "sampling", "detector"),
        *("distance", "kernel", "distance_at_32", "kernel_at_32"),
    }
    assert rows["world"]["weights"] == rows["drawn"]["weights"] == bench.sha256_of([bench.WORLD])
    assert rows["drawn"]["content_weights"] == bench.sha256_of([bench.CONTENT])
    rows["drawn"]["content_weights"] = "others"
    assert not bench.is_current("drawn", 0, i3d="")


@pytest.mark.slow
def test_a_row_is_computed_again_only_for_different_weights_or_for_the_fvd(bench, monkeypatch):
    assert run(bench, monkeypatch, "--only", "psi 0, 4 steps") == 1
    assert run(bench, monkeypatch, "--only", "psi 0, 4 steps") == 0
    assert run(bench, monkeypatch, "--only", "psi 0, 4 steps", "--i3d", "i3d_torchscript.pt") == 1
    assert bench.rows[-1]["fvd"] == pytest.approx(bench.rows[-1]["distance"])
    bench.rows[-1]["weights"] = "others"
    assert run(bench, monkeypatch, "--only", "psi 0, 4 steps") == 1


def test_a_missing_input_is_an_error_before_anything_is_written(bench, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(bench, "PACK", ROOT / "packs" / "nowhere")
    monkeypatch.setattr(bench, "SPYNET", bench.WORLD)
    with pytest.raises(SystemExit) as ended:
        run(bench, monkeypatch, "--only", "still", "robust loss, 1e-3")
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: packs/nowhere is missing")
    assert list(tmp_path.iterdir()) == []
