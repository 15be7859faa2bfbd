"""Tests of scripts/train_flow.py: the loss, the batches, and a short training."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vidm.checkpoint import load_spynet
from vidm.spynet import SPyNet, warp

SCRIPT = Path(__file__).parent.parent / "scripts" / "train_flow.py"
FLOW = runpy.run_path(str(SCRIPT))


@pytest.fixture(scope="module")
def pairs():
    return FLOW["Pairs"](*(part[None] for part in FLOW["_pairs_of"](0, 12, 32, 3)))


def test_the_loss_of_the_correct_flow_is_near_zero_and_that_of_zero_flow_is_not():
    flow = torch.zeros(2, 2, 32, 32)
    flow[:, 0, 8:24, 8:24] = 4.0
    correct = [torch.nn.functional.avg_pool2d(flow, 2**k) / 2**k for k in range(5, -1, -1)]
    zero = FLOW["flow_loss"]([torch.zeros_like(level) for level in correct], flow)
    assert FLOW["flow_loss"](correct, flow) < 0.2 < zero
    # A plain mean over pixels would weight the moving part only by its area, which is a quarter here.
    assert zero > 2 * 4.0 * 0.25


def test_a_batch_depends_on_seed_and_step_and_its_flow_warps_later_frames_to_first_frames(pairs):
    first, later, flow = FLOW["draw_batch"](pairs, 0, 5, 8)
    for ours, again in zip((first, later, flow), FLOW["draw_batch"](pairs, 0, 5, 8), strict=True):
        assert torch.equal(ours, again)
    assert not torch.equal(later, FLOW["draw_batch"](pairs, 0, 6, 8)[1])
    moving = torch.linalg.vector_norm(flow, dim=1, keepdim=True) > 1
    gap = (first - later).abs()
    gap_back = (first - warp(later, flow)).abs()
    # The first half of the samples is mirrored. Noise and hidden points leave a difference.
    for half in (slice(0, 4), slice(4, 8)):
        where = moving[half].expand_as(gap[half])
        assert gap_back[half][where].mean() < 0.6 * gap[half][where].mean()


def test_a_short_training_writes_spynet_weights_and_prints_the_table_of_errors(tmp_path):
    out = tmp_path / "flow" / "spynet.pt"
    flags = "--num-worlds 2 --num-test 1 --num-frames 4 --steps 2 --batch-size 2".split()
    done = subprocess.run([sys.executable, SCRIPT, "--out", out, *flags], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    load_spynet(SPyNet(), out)
    errors = json.loads(out.with_suffix(".json").read_text())["errors"]
    assert {row["displacement"] for row in errors} >= {"still", "moving"}
    assert all(f"| {row['displacement']} | {row['point']} |" in done.stdout for row in errors)


def test_init_continues_from_given_weights_also_at_another_resolution(tmp_path):
    given, out = SPyNet(), tmp_path / "flow" / "spynet.pt"
    torch.save({"state_dict": given.state_dict()}, tmp_path / "given.pt")
    flags = "--num-worlds 1 --num-test 1 --num-frames 3 --steps 1 --batch-size 2 --lr 1e-12 --resolution 64".split()
    command = [sys.executable, SCRIPT, "--out", out, *flags, "--init"]
    missing = subprocess.run([*command, tmp_path / "nowhere.pt"], capture_output=True, text=True)
    assert (missing.returncode, len(missing.stderr.splitlines()), out.parent.exists()) == (2, 1, False)
    subprocess.run([*command, tmp_path / "given.pt"], check=True)
    found = SPyNet()
    load_spynet(found, out)
    for name, weight in found.state_dict().items():
        assert torch.allclose(weight, given.state_dict()[name], atol=1e-9), name


@pytest.mark.parametrize(
    "flags", ["--resolution 40", "--steps 0", "--num-frames 1", "--seed -1", "--lr 0", "--out flow/spynet.json"]
)
def test_invalid_options_are_reported_in_one_line(tmp_path, flags):
    command = [sys.executable, SCRIPT, "--out", "flow/spynet.pt", *flags.split()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {flags.split()[0]}")
    assert not (tmp_path / "flow").exists()


@pytest.mark.slow
def test_after_training_on_one_world_the_error_of_moving_points_is_half_that_of_zero_flow(pairs):
    torch.manual_seed(0)
    spynet = SPyNet()
    FLOW["train"](spynet, pairs, 250, 8, 1e-3, 0, False)
    (moving,) = [row for row in FLOW["end_point_errors"](spynet, pairs) if row["displacement"] == "moving"]
    assert moving["spynet"] < 0.5 * moving["zero_flow"]
