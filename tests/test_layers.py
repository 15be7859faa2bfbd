"""Shared indices, group norm, activation checkpointing and precision: the same values and gradients, in less memory."""

import sys

import pytest
import torch
from golden import fill_by_rule
from torch.nn import functional as F

from vidm import runtime
from vidm.checkpoint import build_model, list_checkpoints, load_checkpoint
from vidm.config import Config
from vidm.layers import GroupNorm, collapsed, constant_index, group_norm, unit_coordinate
from vidm.runtime import autocast, check_compiler
from vidm.trainer import Trainer
from vidm.training_run import fit


def test_a_constant_index_is_stored_once():
    index = constant_index(7, torch.zeros(3, 2, 5))
    assert index.tolist() == [7, 7, 7]
    assert index.dtype == torch.int64
    assert collapsed(index).tolist() == [7]


def test_equal_values_in_memory_are_not_taken_for_a_constant_index():
    index = torch.tensor([7, 7, 7])
    assert collapsed(index) is index


def test_the_index_of_a_batch_of_one_is_unchanged():
    assert collapsed(torch.tensor([7])).tolist() == [7]
    assert collapsed(constant_index(7, torch.zeros(1, 3))).tolist() == [7]


# Below and above the sizes at which torch's own forward kernel is used.
SHAPES = [(3, 32, 4, 6), (2, 96, 8, 8), (2, 64, 32, 32), (2, 512, 2, 2)]


def inputs(shape: tuple[int, ...], dtype: torch.dtype, mean: float = 3.0, deviation: float = 2.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, gradient = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    weight, bias = torch.randn(2, shape[1], generator=generator, dtype=torch.float64)
    x, gradient = (
        tensor.to(dtype).contiguous(memory_format=torch.channels_last) for tensor in (mean + deviation * x, gradient)
    )
    parameter_dtype = torch.float32 if dtype == torch.bfloat16 else dtype
    return [x, weight.to(parameter_dtype), bias.to(parameter_dtype), gradient]


def with_gradients(norm, x, weight, bias, gradient):
    leaves = [tensor.detach().requires_grad_() for tensor in (x, weight, bias)]
    y = norm(leaves[0], 32, leaves[1], leaves[2], 1e-5)
    y.backward(gradient)
    return [y.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_are_those_of_torch(shape):
    tensors = inputs(shape, torch.float64)
    found = with_gradients(group_norm, *tensors)
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    for ours, theirs in zip(found, with_gradients(F.group_norm, *tensors), strict=True):
        assert (ours - theirs).abs().max() <= 1e-10 * max(1, theirs.abs().max())


# At a mean of ten deviations, sums of bfloat16 products of x itself put the weight's gradient off by 2 %.
@pytest.mark.parametrize("mean", [3.0, 20.0])
@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_sums_are_float32_where_x_is_bfloat16(shape, mean):
    tensors = inputs(shape, torch.bfloat16, mean)
    found = with_gradients(group_norm, *tensors)
    exact = with_gradients(F.group_norm, *(tensor.double() for tensor in tensors))
    assert [tensor.dtype for tensor in found] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    pairs = zip(found, exact, strict=True)
    y, dx, d_weight, d_bias = ((ours - theirs).norm() / theirs.norm() for ours, theirs in pairs)
    assert max(y, dx) < 4e-3  # one rounding
    assert d_bias < 1e-6  # thousands of terms, of which bfloat16 sums would keep two digits
    assert d_weight < 4e-3


# On a GPU, a half-precision map is normalized with weight and bias of its dtype. A CPU's kernel stands in for it.
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.bfloat16, 2**-9), (torch.float16, 2**-12)])
@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_a_half_precision_norm_is_as_near_to_float32_as_its_roundings(shape, dtype, rounding):
    b, c, height, width = shape
    tensors = [tensor.to(dtype) for tensor in inputs(shape, torch.float64)]
    found = with_gradients(
        lambda x, groups, weight, bias, eps: torch.native_group_norm(
            x, weight.to(dtype), bias.to(dtype), b, c, height * width, groups, eps
        )[0],
        tensors[0].contiguous(),
        *(tensor.float() for tensor in tensors[1:3]),
        tensors[3].contiguous(),
    )
    exact = with_gradients(F.group_norm, *(tensor.double() for tensor in tensors))
    for ours, theirs in zip(found, exact, strict=True):
        assert (ours - theirs).norm() < 4 * rounding * theirs.norm()


def test_the_gradient_is_that_of_finite_differences():
    x, weight, bias, _ = inputs((2, 32, 2, 3), torch.float64)
    leaves = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    assert torch.autograd.gradcheck(lambda *tensors: group_norm(tensors[0], 32, *tensors[1:], 1e-5), leaves)


def test_contiguous_tensors_are_normalized_as_well():
    x, weight, bias, _ = inputs((2, 64, 8, 8), torch.float32)
    rows = group_norm(x.contiguous(), 32, weight, bias, 1e-5)
    assert (rows - group_norm(x, 32, weight, bias, 1e-5)).abs().max() <= 1e-5


CPU = torch.device("cpu")


def gradients(config: Config) -> dict[str, torch.Tensor]:
    trainer = Trainer(config.replaced({"model_channels": 64}), CPU)
    fill_by_rule(trainer.model)
    trainer.accumulate(trainer.batches(), step=0)
    return {name: p.grad.clone() for name, p in trainer.model.named_parameters()}


def bytes_kept(config: Config) -> int:
    """Bytes kept for the backward pass of a micro-batch, parameters excluded."""
    trainer = Trainer(config, CPU)
    held: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in trainer.model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = trainer.losses(next(trainer.batches()), step=0, micro=0)
    assert losses["loss"].requires_grad
    return sum(held.values())


@pytest.mark.parametrize("what", ["posgn", "full"])
@pytest.mark.parametrize(
    "values", [{}, {"generator": "content"}, {"norm": "timestep"}, {"precision": "bf16"}, {"accum_steps": 2}]
)
def test_checkpointed_activations_give_the_same_gradients_bit_for_bit(tiny, what, values):
    config = tiny.replaced(values)
    expected = gradients(config)
    found = gradients(config.replaced({"checkpoint_activations": what}))
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())
    assert all(gradient.abs().max() > 0 for gradient in expected.values())


def test_checkpointing_norms_keeps_less_than_half_and_checkpointing_blocks_still_less(tiny):
    config = tiny.replaced({"flow_range": "none"})
    none, posgn, full = (bytes_kept(config.replaced({"checkpoint_activations": w})) for w in ("none", "posgn", "full"))
    assert posgn < 0.5 * none
    assert full < posgn


def state_names(config: Config) -> list[str]:
    fit(Trainer(config.replaced({"total_iters": 1}), CPU))
    return list(load_checkpoint(list_checkpoints(config.train.out)[-1]).state_dict)


def test_activation_checkpointing_changes_no_name_in_a_checkpoint(tiny, tmp_path):
    changed = tiny.replaced({"checkpoint_activations": "full", "out": str(tmp_path / "full")})
    assert state_names(changed) == state_names(tiny)


@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
def test_every_precision_trains_and_keeps_weights_in_float32(tiny, precision):
    trainer = Trainer(tiny.replaced({"precision": precision}), CPU)
    fit(trainer)
    assert trainer.progress.bad_steps == 0
    assert trainer.progress.ema_updates == 4
    assert {tensor.dtype for tensor in trainer.model.state_dict().values()} == {torch.float32}


def test_tf32_is_fp32_on_a_cpu(tiny):
    found, expected = (gradients(tiny.replaced({"precision": precision})) for precision in ("tf32", "fp32"))
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


def test_half_precisions_are_near_full_precision_and_fp16_with_its_longer_mantissa_is_nearer(tiny):
    smooth = tiny.replaced({"penalty_eps": 1e-2})
    expected = torch.cat([g.flatten() for g in gradients(smooth).values()])

    def difference(precision: str, scale: float) -> float:
        found = gradients(smooth.replaced({"precision": precision}))
        return ((torch.cat([g.flatten() for g in found.values()]) / scale - expected).norm() / expected.norm()).item()

    assert 0 < difference("fp16", scale=2.0**16) < difference("bf16", scale=1.0) < 0.1


def test_a_gradient_scaled_beyond_fp16_halves_the_scale_and_is_not_a_bad_step(tiny):
    trainer = Trainer(tiny.replaced({"precision": "fp16"}), CPU)
    fill_by_rule(trainer.model)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126)
    before = trainer.model.unet.out[2].weight.clone()
    assert trainer.train_step(trainer.batches()) is None
    assert trainer.scaler.get_scale() == 2.0**125
    assert torch.equal(trainer.model.unet.out[2].weight, before)
    assert (trainer.progress.bad_steps, trainer.progress.ema_updates) == (0, 0)


def test_the_loss_scale_is_restored_on_resume(tiny):
    config = tiny.replaced({"precision": "fp16", "total_iters": 2})
    trainer = Trainer(config, CPU)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    fit(trainer)
    checkpoint = load_checkpoint(list_checkpoints(config.train.out)[-1])
    assert Trainer(config.replaced({"total_iters": 3}), CPU, checkpoint).scaler.get_scale() == 512.0


def test_coordinates_differ_where_bfloat16_would_make_them_equal():
    with autocast(CPU, "bf16"):
        coordinates = unit_coordinate(torch.arange(1000), 1000)
    assert len(coordinates.unique()) == 1000
    assert len(coordinates.bfloat16().unique()) < 1000


def test_the_compiler_in_cxx_may_have_flags(monkeypatch):
    monkeypatch.setenv("CXX", f"{sys.executable} -O2")
    check_compiler(CPU)


def test_without_a_compiler_compiling_is_refused_in_one_line(tiny, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"^compile needs a C\+\+ compiler"):
        Trainer(tiny.replaced({"compile": True}), CPU)


@pytest.mark.parametrize(
    ("triton", "command", "message"), [(None, "gcc", "needs Triton"), (True, "no-such-compiler", "needs a C compiler")]
)
def test_compiling_on_a_gpu_needs_triton_and_a_c_compiler(monkeypatch, triton, command, message):
    monkeypatch.setattr(runtime, "find_spec", lambda name: triton)
    monkeypatch.setenv("CC", command)
    with pytest.raises(ValueError, match=f"--compile .*{message}.*leave --compile out"):
        check_compiler(torch.device("cuda"))


def test_attention_gives_fused_kernels_heads_whose_channels_are_adjacent(tiny, monkeypatch):
    given = []

    def attention(*inputs):
        given.extend(inputs)
        return original(*inputs)

    original = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    model = build_model(tiny)
    x_t, t = torch.zeros(2, 3, 16, 16), torch.zeros(2, dtype=torch.int64)
    model(x_t, t, t + 1, x_t, x_t)
    assert len(given) > 3
    assert all(tensor.stride(3) == 1 and tensor.shape[3] == 32 for tensor in given)


def test_groups_of_a_given_width_keep_the_means_that_groups_of_one_channel_remove():
    x = torch.randn(2, 32, 8, 8)
    brighter = x + torch.linspace(0, 5, 32)[:, None, None]
    single, wide = GroupNorm(32), GroupNorm(32, channels_per_group=8)
    assert (single.num_groups, wide.num_groups) == (32, 4)
    assert torch.allclose(single(brighter), single(x), atol=1e-4)
    assert not torch.allclose(wide(brighter), wide(x), atol=0.1)
    assert torch.allclose(wide(x), F.group_norm(x, 4, eps=1e-5), atol=1e-5)
