"""Claims about the motion generator and its parts; reference numbers are those of the published code."""

import json
from copy import deepcopy
from itertools import product

import pytest
import torch
from golden import DATA, fill_by_rule, load_npz, small_content_arguments, small_model_arguments

from vidm.model import ContentGenerator, MotionGenerator
from vidm.posgn import Position
from vidm.unet import AttentionBlock, UNetShape

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def small() -> MotionGenerator:
    return fill_by_rule(MotionGenerator(**small_model_arguments(), flow_range="published"))


@pytest.fixture(scope="module")
def inputs() -> dict[str, torch.Tensor]:
    arrays = load_npz("motion_model_small")
    return {k: arrays[k] for k in ("x_t", "t", "frame_index", "previous", "first")}


def shapes(model: torch.nn.Module) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


def test_the_small_model_meets_its_reference(small, inputs):
    reference = load_npz("motion_model_small")
    with torch.no_grad():
        flow = small.flow(inputs["first"], inputs["previous"])
        latents = small.encoder(inputs["first"], Position(inputs["t"], inputs["frame_index"]))
        output = small(**inputs)
    assert (flow - reference["flow"]).abs().max() <= TOLERANCE
    assert (latents[-1] - reference["encoder_last"]).abs().max() <= TOLERANCE
    means = torch.stack([latent.mean() for latent in latents])
    assert (means - reference["encoder_mean"]).abs().max() <= TOLERANCE
    assert output.abs().max() > 0.1
    assert (output - reference["output"]).abs().max() <= TOLERANCE


def test_the_small_layout_equals_the_published_one(small):
    assert shapes(small) == json.loads((DATA / "motion_model_small.json").read_text())["state_dict"]


def test_the_paper_layout_equals_the_988_published_tensors():
    layout = json.loads((DATA / "published_checkpoint_layout.json").read_text())["state_dict"]
    with torch.device("meta"):
        model = MotionGenerator()
    assert len(layout) == 988
    assert shapes(model) == layout


def test_without_gradients_the_inputs_and_the_weights_stay_as_they_were(small, inputs):
    """The norms and activations then work in place, on what the network itself has made."""
    flow = torch.randn(3, 2, 32, 32)
    given = {**inputs, "flow": flow}
    before = {k: v.clone() for k, v in [*given.items(), *small.state_dict().items()]}
    with torch.no_grad():
        first = small(**given)
        assert torch.equal(small(**given), first)
    assert all(torch.equal(before[k], v) for k, v in [*given.items(), *small.state_dict().items()])


def test_weights_lie_channels_last_in_memory_and_so_does_what_is_computed(small, inputs):
    seen = []
    block = small.unet.output_blocks[-1]
    hook = block.register_forward_hook(lambda module, given, out: seen.append(out))
    small(**inputs)
    hook.remove()
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert not seen[0].is_contiguous()
    weights = [m.weight for m in small.modules() if isinstance(m, torch.nn.Conv2d)]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


def test_a_given_flow_replaces_spynets(small, inputs):
    with torch.no_grad():
        own = small(**inputs)
        given = small(**inputs, flow=small.flow(inputs["first"], inputs["previous"]))
        none = small(**inputs, flow=torch.zeros(3, 2, 32, 32))
    assert torch.equal(own, given)
    assert not torch.allclose(own, none)


def test_a_sample_does_not_depend_on_its_batch(small, inputs):
    with torch.no_grad():
        together = small(**inputs)
        alone = torch.cat([small(**{k: v[i : i + 1] for k, v in inputs.items()}) for i in range(3)])
    assert (together - alone).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["t", "frame_index", "previous", "first"])
def test_every_condition_reaches_the_output(small, inputs, name):
    changed = dict(inputs)
    if name in ("t", "frame_index"):
        changed[name] = (inputs[name] + 1).clamp(max=15)
    else:
        changed[name] = inputs[name].flip(3)
    with torch.no_grad():
        assert (small(**changed) - small(**inputs)).abs().max() > 1e-4


def test_sides_need_not_be_square_but_must_halve_at_every_level(small):
    t = torch.zeros(1, dtype=torch.int64)
    frame = torch.randn(1, 3, 24, 40)
    assert small(frame, t, t, frame, frame).shape == (1, 6, 24, 40)
    odd = torch.randn(1, 3, 24, 39)
    with pytest.raises(ValueError, match=r"24x39 .* multiples of 2"):
        small(odd, t, t, odd, odd)
    with pytest.raises(ValueError, match=r"100x100 .* multiples of 32"):
        MotionGenerator(image_size=100)


def test_widths_that_the_group_norm_cannot_split_are_refused():
    with pytest.raises(ValueError, match="model_channels 48 must be a multiple of 32 for the group norm"):
        MotionGenerator(model_channels=48)


def test_strided_resampling_keeps_the_shape():
    arguments = small_model_arguments() | {"resblock_updown": False}
    model = fill_by_rule(MotionGenerator(**arguments))
    t = torch.zeros(1, dtype=torch.int64)
    frame = torch.randn(1, 3, 32, 32)
    assert model(frame, t, t, frame, frame).shape == (1, 6, 32, 32)
    assert "unet.input_blocks.2.0.op.weight" in model.state_dict()


def test_flow_ranges_say_what_spynet_sees(inputs):
    models = {
        name: fill_by_rule(MotionGenerator(**small_model_arguments(), flow_range=name))
        for name in ("unit", "published", "none")
    }
    first, previous = inputs["first"], inputs["previous"]
    with torch.no_grad():
        assert torch.equal(
            models["unit"].flow(first, previous), models["unit"].spynet((first + 1) / 2, (previous + 1) / 2)
        )
        assert torch.equal(models["published"].flow(first, previous), models["published"].spynet(first, previous))
        assert torch.equal(models["none"].flow(first, previous), torch.zeros(3, 2, 32, 32))
    with pytest.raises(ValueError, match="unknown flow_range 'sideways': choose from unit, published, none"):
        MotionGenerator(**small_model_arguments(), flow_range="sideways")


def test_a_fresh_model_puts_out_zeros_and_sees_no_motion(inputs):
    model = MotionGenerator(**small_model_arguments())
    assert model(**inputs).abs().max() == 0
    assert model.flow(inputs["first"], inputs["previous"]).abs().max() == 0


def test_the_trunks_of_content_and_motion_have_the_same_widths():
    ours = shapes(ContentGenerator(**small_content_arguments()))
    theirs = shapes(MotionGenerator(**small_model_arguments()))
    shared = {name for name in ours if f"unet.{name}" in theirs and "emb_layers" not in name}
    assert {name for name in shared if ours[name] != theirs[f"unet.{name}"]} == {"input_blocks.0.0.weight"}
    assert {name.split(".")[-3] for name in set(ours) - shared if "_blocks" in name or "middle" in name} == {
        "emb_layers",
        "out_layers",
    }


@pytest.fixture(scope="module")
def content() -> ContentGenerator:
    return fill_by_rule(ContentGenerator(**small_content_arguments()))


def test_the_small_content_generator_meets_its_reference(content):
    arrays = load_npz("content_model_small")
    assert torch.equal(content.input.input, arrays["constant"])
    with torch.no_grad():
        assert (content(arrays["x_t"], arrays["t"]) - arrays["output"]).abs().max() <= TOLERANCE


def test_the_content_layout_equals_the_507_published_tensors():
    with torch.device("meta"):
        model = ContentGenerator()
    layout = json.loads((DATA / "published_content_layout.json").read_text())["state_dict"]
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == layout
    assert len(layout) == 507
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == 131.8


def test_the_constant_reaches_the_output_and_can_be_switched_off(content):
    arrays = load_npz("content_model_small")
    x_t, t = arrays["x_t"], arrays["t"]
    without = fill_by_rule(ContentGenerator(**small_content_arguments(), constant=False))
    assert set(content.state_dict()) - set(without.state_dict()) == {"input.input"}
    changed = deepcopy(content)
    with torch.no_grad():
        changed.input.input.neg_()
        assert not torch.allclose(changed(x_t, t), content(x_t, t), atol=1e-3)
        assert without(x_t, t).shape == (3, 6, 32, 32)
        assert not torch.allclose(content(x_t, t), content(x_t, t.flip(0)), atol=1e-3)
    with pytest.raises(ValueError, match="frames of 32x24 pixels do not fit this network, made for 32x32"):
        content(x_t[..., 8:], t)


def test_with_the_plain_norm_t_and_frame_index_still_reach_the_output(inputs):
    model = fill_by_rule(MotionGenerator(**small_model_arguments(), norm="timestep"))
    with torch.no_grad():
        output = model(**inputs)
        for name in ("t", "frame_index"):
            changed = inputs | {name: (inputs[name] + 1).clamp(max=15)}
            assert (model(**changed) - output).abs().max() > 1e-4
    with pytest.raises(ValueError, match="unknown norm 'batch': choose from posgn, timestep"):
        MotionGenerator(**small_model_arguments(), norm="batch")


def test_without_the_encoder_the_first_frame_still_reaches_the_output(inputs):
    model = fill_by_rule(MotionGenerator(**small_model_arguments(), use_encoder=False))
    assert not [name for name in model.state_dict() if name.startswith("encoder")]
    changed = inputs | {"first": inputs["first"].flip(3), "flow": torch.zeros(3, 2, 32, 32)}
    with torch.no_grad():
        output = model(**inputs, flow=torch.zeros(3, 2, 32, 32))
        assert (model(**changed) - output).abs().max() > 1e-4


def test_the_previous_frame_reaches_the_output_besides_its_flow_only_if_asked_for(inputs):
    zero = torch.zeros(3, 2, 32, 32)
    changed = inputs | {"previous": inputs["previous"].flip(3)}
    for use_encoder, use_previous in product((True, False), (True, False)):
        switches = {"use_encoder": use_encoder, "use_previous": use_previous}
        model = fill_by_rule(MotionGenerator(**small_model_arguments(), **switches))
        with torch.no_grad():
            difference = (model(**changed, flow=zero) - model(**inputs, flow=zero)).abs().max()
        assert (difference > 1e-4) == use_previous


def test_the_softmax_of_attention_is_float32_where_weights_are_bfloat16():
    torch.manual_seed(0)
    attention = AttentionBlock(64, UNetShape(num_head_channels=64))
    with torch.no_grad():
        attention.qkv.bias[[0, 64]] = 46.0  # of q and of k: logits near 264, where bfloat16 knows steps of two
        attention.proj_out.weight.copy_(torch.eye(64)[:, :, None])
    attention.to(torch.bfloat16)
    x = torch.randn(2, 64, 8, 8, dtype=torch.bfloat16)
    with torch.no_grad():
        q, k, v = attention.qkv(attention.norm(x).reshape(2, 64, 64)).chunk(3, dim=1)
        logits = q.transpose(1, 2).float() @ k.float() / 8
        exact = (v.float() @ logits.softmax(2).transpose(1, 2)).reshape(x.shape)
        rounded = (v @ logits.to(torch.bfloat16).softmax(2).transpose(1, 2)).reshape(x.shape)
        found = attention(x) - x
    assert logits.abs().max() > 256
    error, error_of_rounded = ((out.float() - exact).norm() / exact.norm() for out in (found, rounded))
    assert error < 0.02
    assert error_of_rounded > 0.05


def test_all_group_norms_of_both_generators_have_the_given_channels_per_group():
    shape = {
        "image_size": 16,
        "model_channels": 16,
        "channel_mult": (1, 2),
        "channels_per_group": 8,
        "num_head_channels": 16,
    }
    for model in (MotionGenerator(**shape), ContentGenerator(**shape)):
        norms = [module for module in model.modules() if isinstance(module, torch.nn.GroupNorm)]
        assert norms
        assert {norm.num_channels // norm.num_groups for norm in norms} == {8}
    with pytest.raises(ValueError, match="model_channels 20 must be a multiple of 8 for the group norm"):
        UNetShape(model_channels=20, channels_per_group=8)
