"""TF32 is used where --precision tf32 says so and nowhere else, whatever switches the process has set before."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from vidm import frame_metrics
from vidm.detectors import STYLEGAN_V, features_of
from vidm.runtime import autocast
from vidm.sample_config import SAMPLING_PRECISIONS
from vidm.spynet import SPyNet
from vidm.tf32 import tf32_products
from vidm.trainer import Trainer

CPU = torch.device("cpu")
OPERATIONS = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)


def precisions() -> set[str]:
    return {operation.fp32_precision for operation in OPERATIONS}


@pytest.fixture(autouse=True, params=["default", "current API", "older API"])
def switches(request: pytest.FixtureRequest) -> Iterator[None]:
    """Switches that a process may have set before: none, TF32 everywhere, and the older API, which may raise errors."""
    before = [torch.backends.fp32_precision, *(operation.fp32_precision for operation in OPERATIONS)]
    if request.param == "current API":
        torch.backends.fp32_precision = "tf32"
    if request.param == "older API":
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.fp32_precision = before[0]
    for operation, precision in zip(OPERATIONS, before[1:], strict=True):
        operation.fp32_precision = precision


@pytest.mark.parametrize("precision", SAMPLING_PRECISIONS)
def test_only_tf32_lets_a_gpu_round_the_factors_of_fp32_products(precision):
    before = [operation.fp32_precision for operation in OPERATIONS]
    with autocast(CPU, precision):
        assert precisions() == {"tf32" if precision == "tf32" else "ieee"}
    assert [operation.fp32_precision for operation in OPERATIONS] == before


@pytest.mark.parametrize("precision", ["tf32", "fp32"])
def test_forward_and_backward_passes_of_training_have_the_same_setting_except_those_of_spynet(tiny, precision):
    trainer = Trainer(tiny.replaced({"precision": precision, "accum_steps": 2}), CPU)
    found: dict[str, set[str]] = {"spynet": set(), "others": set()}

    def note(part: str, *_: object) -> None:
        found[part] |= precisions()

    for name, module in trainer.model.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            part = "spynet" if name.startswith("spynet") else "others"
            module.register_forward_hook(lambda *_, part=part: note(part))
            module.weight.register_hook(lambda _, part=part: note(part))
    trainer.train_step(trainer.batches())
    assert found == {"spynet": {"ieee"}, "others": {"tf32" if precision == "tf32" else "ieee"}}


def test_the_flow_of_a_video_is_computed_without_tf32(monkeypatch):
    seen = []
    monkeypatch.setattr(SPyNet, "pyramid_flows", lambda *_: seen.append(precisions()) or [torch.zeros(1, 2, 32, 32)])
    with tf32_products(True):
        SPyNet()(torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32))
    assert seen == [{"ieee"}]


def test_detectors_and_frame_metrics_compute_without_tf32(monkeypatch):
    seen = []
    clips = np.zeros((1, 2, 16, 16, 3), np.uint8)
    features_of(lambda video, **_: seen.append(precisions()) or torch.zeros(1, 4), clips, STYLEGAN_V, CPU)
    pytest.importorskip("torchmetrics")
    convolve = torch.nn.functional.conv2d
    monkeypatch.setattr(torch.nn.functional, "conv2d", lambda *a, **k: seen.append(precisions()) or convolve(*a, **k))
    frame_metrics._compared(clips[0], clips[0], CPU)
    assert seen == [{"ieee"}] * len(seen)
    assert len(seen) > 1
