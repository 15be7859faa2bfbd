"""Training, sampling and evaluation on a CUDA device without a GPU: devices and dtypes match, and waits are few.

tests/fake_cuda.py describes the device. Its tensors have no values, so these tests say nothing about results.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from itertools import cycle

import numpy as np
import pytest
import torch
from fake_cuda import CUDA, FakeCuda, backward_in_python, fake_cuda
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import _pop_mode_temporarily
from torch.utils.checkpoint import checkpoint

from vidm import validation
from vidm.checkpoint import build_model, list_checkpoints, load_checkpoint
from vidm.config import Config
from vidm.detectors import C3D, PROTOCOLS, features_of, load_classifier, load_detector
from vidm.ema import EMA
from vidm.generator import Generator, load_generator
from vidm.layers import GroupNorm, constant_index
from vidm.runtime import autocast
from vidm.sample_config import SAMPLING_PRECISIONS, SampleConfig
from vidm.samplers import SAMPLERS
from vidm.trainer import Trainer
from vidm.training_run import fit

# Operators of an eager denoising step of the preset `tiny`, each about one kernel: 387 were counted.
KERNELS_OF_A_STEP = 400


@pytest.fixture(scope="module", autouse=True)
def device_works() -> None:
    """Skip these tests with a version of PyTorch whose internals the fake device does not fit."""
    try:
        with fake_cuda():
            layers = torch.nn.Conv2d(3, 8, 3).to(CUDA)
            layers(torch.zeros(2, 3, 5, 5, device=CUDA)).mean().backward()
    except Exception as error:
        pytest.skip(f"torch {torch.__version__} does not run tests/fake_cuda.py: {error}")


@pytest.fixture
def gpu() -> Iterator[FakeCuda]:
    with fake_cuda() as device:
        yield device


def test_the_device_refuses_what_a_gpu_refuses_and_counts(gpu):
    x = torch.ones(2, 3)
    on_gpu = x.to(CUDA)
    assert (on_gpu + 1).device == CUDA
    assert (x + 1).tolist() == [[2, 2, 2], [2, 2, 2]]
    assert (gpu.kernels.total(), gpu.waits.total()) == (1, 1)
    x.pin_memory().to(CUDA, non_blocking=True)
    assert gpu.waits.total() == 1
    assert on_gpu.sum().item() == 0
    assert on_gpu.cpu().numpy().shape == (2, 3)
    assert gpu.waits.total() == 3
    assert gpu.bytes == 2 * 24 + 24 + 4
    with pytest.raises(RuntimeError, match="same device"):
        on_gpu @ torch.ones(3, 2)


def test_backward_passes_on_the_device_are_those_of_pytorch():
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.GroupNorm(4, 8), torch.nn.SiLU())
    x = torch.randn(2, 3, 5, 5)
    found = []
    for backward in (Tensor.backward, backward_in_python):
        layers.zero_grad()
        h = checkpoint(layers, x, use_reentrant=False)
        backward((torch.cat(h.chunk(2), dim=1) * layers[1].weight.repeat(2)[:, None, None] + h.mean()).square().sum())
        found.append([p.grad.clone() for p in layers.parameters()])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))


def waits_of_a_step(trainer: Trainer, gpu: FakeCuda) -> int:
    batches = trainer.batches()
    gpu.clear()
    assert trainer.train_step(batches)
    return gpu.waits.total()


@pytest.mark.parametrize(
    "values",
    [
        {"precision": "fp32", "prediction": "eps"},
        {"precision": "tf32", "generator": "content"},
        {"precision": "bf16", "checkpoint_activations": "posgn"},
        {"precision": "fp16", "accum_steps": 2, "condition_noise": 0.1},
        {"norm": "timestep", "use_encoder": False, "flow_range": "none", "checkpoint_activations": "full"},
    ],
    ids=str,
)
def test_a_training_step_waits_once(tiny, gpu, values):
    trainer = Trainer(tiny.replaced(values), CUDA)
    assert waits_of_a_step(trainer, gpu) == 1, gpu.waits
    assert {p.device for p in trainer.model.parameters()} == {CUDA}


def test_a_checkpoint_of_a_cpu_is_continued_on_a_gpu(tiny):
    fit(Trainer(tiny.replaced({"total_iters": 1}), torch.device("cpu")))
    checkpoint = load_checkpoint(list_checkpoints(tiny.train.out)[-1])
    with fake_cuda() as gpu:
        trainer = Trainer(tiny, CUDA, checkpoint)
        for weight, state in trainer.optimizer.state.items():
            assert state["exp_avg"].device == weight.device
            assert state["exp_avg"].stride() == weight.stride()
        assert waits_of_a_step(trainer, gpu) == 1, gpu.waits


@pytest.mark.parametrize("generator", ["motion", "content"])
def test_validation_runs_with_the_averaged_weights(tiny, gpu, monkeypatch, generator):
    for name, value in {"NUM_SAMPLES": 4, "NUM_FRAMES": 3, "STEPS": "2"}.items():
        monkeypatch.setattr(validation, name, value)
    config = tiny.replaced({"generator": generator, "held_out": 0})
    trainer = Trainer(config, CUDA)
    data = trainer.data
    validator = validation.Validator(config, data.held_out, data.samples(data.held_out, 0, flip=False), CUDA)
    with trainer.ema.swapped_into(trainer.model):
        assert "held_out_vb" in validator.loss(trainer.model, batch_size=2)
        assert validator.video(trainer.model).dtype == np.uint8
        if generator == "motion":
            validator.distance(trainer.model)


def test_averaged_weights_are_on_the_gpu_in_the_layout_of_the_weights(tiny, gpu):
    model = build_model(tiny).to(CUDA)
    ema = EMA(model, 0.9)
    ema.update(model)
    for name, tensor in model.state_dict().items():
        assert ema.state_dict()[name].device == CUDA
        assert ema.state_dict()[name].stride() == tensor.stride()


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory) -> Generator:
    """Generators after one step on the CPU."""
    out = tmp_path_factory.mktemp("checkpoints")
    paths = []
    for generator in ("motion", "content"):
        values = {"generator": generator, "data": str(world), "out": str(out / generator), "image_size": 16}
        config = Config.from_preset("tiny").replaced({**values, "total_iters": 1, "test_freq": 0, "workers": 0})
        fit(Trainer(config, torch.device("cpu")))
        paths.append(list_checkpoints(config.train.out)[-1])
    return load_generator(*paths, device="cpu")


def waits_of_a_batch(trained: Generator, gpu: FakeCuda, num_frames: int = 2, **settings) -> int:
    """The waits while given first frames are continued."""
    models = {name: deepcopy(getattr(trained, name)).to(CUDA) for name in ("model", "content_model")}
    generator = replace(trained, **models, device=CUDA, _networks={})
    settings = SampleConfig(num_frames=num_frames, steps="2", **settings)
    first = generator.draw_first_frames(range(2), settings)
    gpu.clear()
    clips = generator.animate_batch(list(first), range(2), settings)
    assert clips.shape == (2, num_frames, 16, 16, 3)
    return gpu.waits.total()


SAMPLERS_AND_PRECISIONS = [*zip(cycle(SAMPLERS), SAMPLING_PRECISIONS)]


@pytest.mark.parametrize(("sampler", "precision"), SAMPLERS_AND_PRECISIONS)
def test_a_batch_of_videos_is_sampled_with_one_wait(trained, gpu, sampler, precision):
    assert waits_of_a_batch(trained, gpu, sampler=sampler, precision=precision) == 1, gpu.waits


def test_every_setting_of_sampling_keeps_to_one_wait(trained, gpu):
    settings = {"eta": 1.0, "psi": 0.5, "anchor_every": 1, "condition_noise": 0.1, "start_noise": "frame"}
    assert waits_of_a_batch(trained, gpu, num_frames=3, sampler="ddim", **settings) == 1, gpu.waits


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_features_are_computed_on_the_gpu(gpu, protocol):
    clips = np.zeros((2, 12, 40, 48, 3), np.uint8)
    features = features_of(load_detector("random", CUDA), clips, PROTOCOLS[protocol], CUDA)
    assert features.device == CUDA
    assert features.shape == (2, 128)


def test_class_probabilities_are_computed_on_the_gpu(gpu):
    clips = np.zeros((2, 16, 40, 48, 3), np.uint8)
    assert features_of(load_classifier("random", CUDA), clips, C3D, CUDA).device == CUDA


def test_a_denoising_step_computes_the_coordinates_of_posgn_once_for_each_size(gpu, tiny):
    model = build_model(tiny).to(CUDA).eval().requires_grad_(False)
    x = torch.zeros(2, 3, 16, 16, device=CUDA)
    t, frame_index = constant_index(999, x), constant_index(1, x)
    gpu.clear()
    with torch.no_grad():
        model(x, t, frame_index, x, x, flow=x[:, :2])
    sizes = len(tiny.model.channel_mult)
    assert gpu.kernels["linspace"] == 2 * sizes
    assert gpu.kernels["sub"] == 2
    assert gpu.kernels.total() <= KERNELS_OF_A_STEP


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_group_norm_under_autocast_reads_and_writes_a_feature_map_once(gpu, precision):
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    norm = GroupNorm(32).to(CUDA)
    x = torch.zeros(4, 32, 64, 64, device=CUDA, dtype=dtype).to(memory_format=torch.channels_last)
    gpu.clear()
    with autocast(CUDA, precision):
        y = norm(x)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert gpu.bytes < 1.01 * (x.nbytes + y.nbytes)
    y.sum().backward()
    assert norm.weight.grad.dtype == torch.float32


@pytest.mark.slow
def test_denoising_steps_compile_to_one_graph_for_all_steps_and_frames(gpu, tiny):
    model = build_model(tiny).to(CUDA).eval().requires_grad_(False)
    x = torch.zeros(2, 3, 16, 16, device=CUDA)
    graphs = CompileCounterWithBackend("aot_eager")
    network = torch.compile(model, dynamic=False, fullgraph=True, backend=graphs)
    positions = [(constant_index(t, x), constant_index(n, x)) for t, n in ((999, 1), (500, 1), (0, 15))]
    with _pop_mode_temporarily(), torch.no_grad(), autocast(CUDA, "bf16"):  # the compiler refuses the counting mode
        for t, frame_index in positions:
            assert network(x, t, frame_index, x, x, flow=x[:, :2]).shape == (2, 6, 16, 16)
    assert graphs.frame_count == 1
