"""Tests of SPyNet and warping."""

import torch
from golden import fill_by_rule, load_npz

from vidm.spynet import SPyNet, warp


def test_the_flow_meets_its_reference_at_a_size_that_is_no_multiple_of_32():
    reference = load_npz("spynet")
    spynet = fill_by_rule(SPyNet(), "spynet")
    with torch.no_grad():
        flow = spynet(reference["reference"], reference["support"])
    assert flow.abs().max() > 0.1
    assert (flow - reference["flow"]).abs().max() <= 1e-4


def test_warping_by_a_whole_pixel_is_a_shift():
    frame = torch.rand(1, 3, 6, 8)
    flow = torch.zeros(1, 2, 6, 8)
    flow[:, 0] = 1
    assert torch.allclose(warp(frame, flow)[..., :-1], frame[..., 1:], atol=1e-6)
    assert torch.allclose(warp(frame, flow)[..., -1], frame[..., -1], atol=1e-6)


def test_the_flow_is_float32_under_autocast():
    spynet = fill_by_rule(SPyNet(), "spynet")
    frames = torch.rand(2, 1, 3, 32, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = spynet(*frames)
    with torch.no_grad():
        assert torch.equal(half, spynet(*frames))
