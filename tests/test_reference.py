"""Tests that the outputs of the package equal those of the reference implementation, benchmarks/reference.py."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from golden import fill_by_rule, load_npz, small_model_arguments
from torch import nn

from vidm.ema import EMA
from vidm.layers import constant_index
from vidm.model import MotionGenerator

SPEC = importlib.util.spec_from_file_location("reference", Path(__file__).parents[1] / "benchmarks" / "reference.py")
sys.modules["reference"] = module = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(module)


def filled(**arguments) -> tuple[MotionGenerator, nn.Module]:
    ours = fill_by_rule(MotionGenerator(**arguments))
    reference = module.ReferenceMotionGenerator(ours.shape)
    reference.load_state_dict(ours.state_dict())
    return ours, reference


@pytest.fixture(scope="module")
def small() -> tuple[MotionGenerator, nn.Module]:
    return filled(**small_model_arguments())


@pytest.fixture(scope="module")
def inputs() -> dict[str, torch.Tensor]:
    arrays = load_npz("motion_model_small")
    return {k: arrays[k] for k in ("x_t", "t", "frame_index", "previous", "first")}


def test_the_reference_matches_the_published_numbers():
    arrays = load_npz("motion_model_small")
    reference = filled(**small_model_arguments())[1]
    # SPyNet gets frames in [-1, 1] in the published code.
    frames = {k: 2 * arrays[k] - 1 for k in ("previous", "first")}
    with torch.no_grad():
        assert (reference.spynet(arrays["first"], arrays["previous"]) - arrays["flow"]).abs().max() <= 1e-4
        reference.spynet.forward = lambda first, previous: arrays["flow"]
        output = reference(arrays["x_t"], arrays["t"], arrays["frame_index"], frames["previous"], arrays["first"])
    assert (output - arrays["output"]).abs().max() <= 1e-4


def test_outputs_are_equal_with_and_without_gradients(small, inputs):
    ours, reference = small
    expected = reference(**inputs)
    assert expected.abs().max() > 0.1
    assert (ours(**inputs) - expected).abs().max() <= 1e-4
    with torch.no_grad():
        assert (ours(**inputs) - expected).abs().max() <= 1e-4


def test_outputs_are_equal_with_a_given_flow_and_a_shared_step(small, inputs):
    ours, reference = small
    x_t = inputs["x_t"]
    one_step = inputs | {"t": torch.full((3,), 500), "frame_index": torch.full((3,), 5)}
    with torch.no_grad():
        expected = reference(**one_step)
        flow = ours.flow(inputs["first"], inputs["previous"])
        found = ours(**inputs | {"t": constant_index(500, x_t), "frame_index": constant_index(5, x_t)}, flow=flow)
    assert (found - expected).abs().max() <= 1e-4


def test_gradients_are_equal(small, inputs):
    ours, reference = small
    for model in (ours, reference):
        model.zero_grad()
        model(**inputs).square().mean().backward()
    for (name, one), two in zip(ours.named_parameters(), reference.parameters(), strict=True):
        assert one.grad.abs().max() > 0, name
        assert (one.grad - two.grad).norm() <= 1e-4 * two.grad.norm() + 1e-7, name


def test_optimizer_steps_and_averaged_weights_are_equal():
    """bench_step.py measures these: fused AdamW and foreach EMA, compared with updates of single tensors."""
    ours, reference = filled(**small_model_arguments())
    plain = torch.optim.AdamW(reference.parameters(), lr=1e-2, weight_decay=0.0, foreach=False, fused=False)
    fused = torch.optim.AdamW(ours.parameters(), lr=1e-2, weight_decay=0.0, fused=True)
    ema, shadow = EMA(ours, 0.9), {k: v.clone() for k, v in reference.state_dict().items()}
    for model, optimizer in ((ours, fused), (reference, plain)):
        sum((p * (torch.arange(p.numel()) % 7 - 2.5).view(p.shape)).sum() for p in model.parameters()).backward()
        optimizer.step()
    ema.update(ours)
    module.update_average(shadow, reference, decay=min(0.9, 1 / 10))
    for name, tensor in reference.state_dict().items():
        assert torch.allclose(ours.state_dict()[name], tensor, atol=1e-6), name
        assert torch.allclose(ema.state_dict()[name], shadow[name], atol=1e-6), name


@pytest.mark.slow
def test_outputs_are_equal_at_the_papers_size():
    ours, reference = filled()
    first, previous, x_t = torch.randn(3, 1, 3, 64, 64).clamp(-1, 1)
    with torch.no_grad():
        flow = ours.flow(first, previous)
        expected = reference(x_t, torch.tensor([500]), torch.tensor([5]), previous, first)
        found = ours(x_t, constant_index(500, x_t), constant_index(5, x_t), previous, first, flow)
    assert expected.abs().max() > 0.1
    assert (found - expected).abs().max() <= 1e-4
