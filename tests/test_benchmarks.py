"""Tests that the benchmarks start and that the GPU benchmark runs on a CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SHARED = ("reference.py", "measuring.py", "ablation_table.py", "peer_networks.py")
GROUPS = "tests parity step waits compiled train group_norm bits memory video processes reference".split()
SCRIPTS = sorted(path.name for path in BENCHMARKS.glob("*.py") if path.name not in SHARED)


def run(script: str, *flags: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, str(BENCHMARKS / script), *flags]
    return subprocess.run(command, capture_output=True, text=True, **options)


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_help_contains_the_question_and_the_results_file(script):
    done = run(script, "--help", check=True)
    assert f"python benchmarks/{script}" in (BENCHMARKS / script).read_text()
    assert "?" in done.stdout
    assert "benchmarks/results/" in done.stdout


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_the_gpu_benchmark_runs_every_group_on_a_cpu(tmp_path):
    small = "--preset tiny --size 16 --batches 1 2 --samples 2 --repetitions 1".split()
    flags = ["--device", "cpu", *small, "--seconds", "3600", "--results", str(tmp_path / "rows")]
    done = run("run_gpu.py", *flags)
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "rows")
    assert [row for row in rows if "error" in row and "--deterministic" not in row.get("flags", "")] == []
    assert list(dict.fromkeys(row["group"] for row in rows)) == GROUPS
    assert all(row["max_difference"] == 0 for row in rows if row["group"] == "parity")
    assert {row["precision"] for row in rows if row["group"] == "step"} == {"fp32", "tf32", "bf16", "bf16-weights"}
    assert {(row["again"], row["resumed"]) for row in rows if "again" in row} == {(0, 0)}
    raises, killed = [row for row in rows if row.get("worker") in ("raises", "killed")]
    assert raises["exit_code"] > 0 < killed["exit_code"]
    assert "a process fails on purpose" in raises["errors"][0]


@pytest.mark.slow
def test_the_soak_kills_a_run_damages_files_and_continues_where_it_stopped(tmp_path):
    flags = ["--kills", "1", "--folder", str(tmp_path / "soak"), "--results", str(tmp_path / "rows")]
    for files in ("3", "52"):
        done = run("soak.py", *flags, "--files", files)
        assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [(row["row"], row["seed"]) for row in rows] == [("kills", 0), ("damage", 0), ("damage", 1)]
    assert [sum(row["outcomes"].values()) for row in rows[1:]] == [3, 2]


@pytest.mark.gpu
def test_the_gpu_benchmark_counts_waits_and_runs_compiled_rows_and_rows_with_cuda_graphs(tmp_path):
    groups = ["parity", "step", "waits", "compiled"]
    done = run("run_gpu.py", "--preset", "tiny", "--size", "32", "--only", *groups, "--results", str(tmp_path / "rows"))
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "rows")
    assert [row for row in rows if "error" in row] == []
    assert list(dict.fromkeys(row["group"] for row in rows)) == groups
    assert all(row["within"] for row in rows if row["group"] == "parity")
    assert all(row["kernels"] > 100 for row in rows if row["group"] == "step")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--repetitions 0", "0: give 1 or more"),
        ("--device cpu --preset nope", "invalid choice: 'nope'"),
        ("--device cpu --preset tiny --size 15", "--size 15: tiny needs a multiple of 2"),
    ],
)
def test_the_gpu_benchmark_reports_invalid_flags_in_one_line(flags, message):
    done = run("run_gpu.py", *flags.split())
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]


def test_a_missing_gpu_is_reported_in_one_line():
    done = run("run_gpu.py", env={"CUDA_VISIBLE_DEVICES": "", "PATH": "/usr/bin:/bin"})
    assert done.returncode == 2
    assert done.stderr.endswith("error: no CUDA GPU found; --device cpu tests the script without one\n")
