"""PosGN and its baseline: coordinates, scale and shift in closed form, and positions shared by a batch."""

import pytest
import torch
from golden import fill_by_rule

from vidm.layers import GroupNorm, constant_index, conv1x1, modulated_silu, sinusoidal_embedding, unit_coordinate
from vidm.posgn import Position, PositionalGroupNorm, TimestepGroupNorm
from vidm.unet import NORMS, ResBlock, UNetShape


def test_coordinates_are_those_of_linspace():
    for count in (1, 2, 16, 1000):
        expected = torch.linspace(-1, 1, count)
        assert torch.allclose(unit_coordinate(torch.arange(count), count), expected, atol=1e-6)


def test_split_coordinates_equal_the_linear_layer_over_stacked_ones():
    norm = fill_by_rule(PositionalGroupNorm(32, 1000, 16), "p")
    t, n = torch.tensor([3, 999]), torch.tensor([0, 15])
    height, width = 4, 6
    coordinates = torch.stack(
        [
            (torch.linspace(-1, 1, 1000)[t])[:, None, None].expand(2, height, width),
            (torch.linspace(-1, 1, 16)[n])[:, None, None].expand(2, height, width),
            torch.linspace(-1, 1, height)[:, None].expand(2, height, width),
            torch.linspace(-1, 1, width).expand(2, height, width),
        ],
        dim=3,
    )
    stacked = norm.linear_1(torch.sin(norm.linear_0(coordinates))).permute(0, 3, 1, 2)
    assert torch.allclose(torch.cat(norm.scale_shift(Position(t, n), height, width), 1), stacked, atol=1e-5)


def test_scale_and_shift_act_after_the_group_norm():
    norm = fill_by_rule(PositionalGroupNorm(32, 1000, 16), "p")
    t = n = torch.tensor([5])
    h = torch.randn(1, 32, 4, 4)
    scale, shift = norm.scale_shift(Position(t, n), 4, 4)
    groups = torch.nn.functional.group_norm(h, 32, norm.out_norm.weight, norm.out_norm.bias, 1e-5)
    assert torch.allclose(norm(h, Position(t, n)), norm.out_rest(groups * (1 + scale) + shift), atol=1e-6)


def test_neighbouring_steps_differ_under_bfloat16_autocast():
    norm = fill_by_rule(PositionalGroupNorm(32, 1000, 16), "p")
    t = torch.arange(1000)
    with torch.autocast("cpu", torch.bfloat16):
        angles = norm.angles(Position(t, torch.zeros_like(t)), 1, 1).flatten(1)
    assert angles.dtype == torch.float32
    assert angles.unique(dim=0).shape[0] == 1000


def test_neighbouring_steps_rows_and_columns_differ_with_bfloat16_weights():
    norm = fill_by_rule(PositionalGroupNorm(32, 1000, 16), "p").to(torch.bfloat16)
    t = torch.arange(1000)
    angles = norm.angles(Position(t, torch.zeros_like(t)), 1, 1).flatten(1)
    assert angles.dtype == torch.float32
    assert angles.unique(dim=0).shape[0] == 1000
    exact = fill_by_rule(PositionalGroupNorm(32, 1000, 16), "p")
    with torch.no_grad():
        for weight, rounded in zip(exact.parameters(), norm.parameters(), strict=True):
            weight.copy_(rounded.float())
    t = torch.tensor([501])
    wanted = exact.angles(Position(t, torch.tensor([5])), 128, 128)
    # An error of 1e-3 or more would show that coordinates, products or sums were computed in bfloat16.
    assert (norm.angles(Position(t, torch.tensor([5])), 128, 128) - wanted).abs().max() <= 1e-6


def test_a_position_shared_by_all_samples_gives_one_scale_and_shift():
    norm = fill_by_rule(PositionalGroupNorm(32, 1000, 16), "p")
    h = torch.randn(3, 32, 4, 6)
    t, n = constant_index(500, h), constant_index(7, h)
    assert torch.equal(t, torch.full((3,), 500))
    assert norm.scale_shift(Position(t, n), 4, 6)[0].shape == (1, 32, 4, 6)
    assert norm.scale_shift(Position(t.clone(), n), 4, 6)[0].shape == (3, 32, 4, 6)
    assert norm.scale_shift(Position(t, torch.tensor([7, 7, 8])), 4, 6)[0].shape == (3, 32, 4, 6)
    assert torch.allclose(norm(h, Position(t, n)), norm(h, Position(t.clone(), n.clone())), atol=1e-6)
    apart = torch.cat([norm(h, Position(t, torch.tensor([7, 7, 8])))[:2], norm(h, Position(t, n))[2:]])
    assert torch.allclose(apart, norm(h, Position(t, n)), atol=1e-6)


def test_a_1x1_convolution_with_the_weights_of_a_linear_layer_is_the_linear_layer():
    linear, x = torch.nn.Linear(8, 5), torch.randn(2, 4, 6, 8)
    assert torch.allclose(conv1x1(linear, x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), linear(x), atol=1e-6)


def test_modulating_in_place_without_gradients_is_the_same_arithmetic():
    x, scale, shift = torch.randn(3, 2, 32, 4, 6)
    expected = torch.nn.functional.silu(x * (1 + scale) + shift)
    with_gradients = modulated_silu(x, scale, shift)
    with torch.no_grad():
        without = modulated_silu(x.clone(), scale, shift)
    assert torch.allclose(with_gradients, expected, atol=1e-6)
    assert torch.allclose(without, expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_group_norm_of_a_half_precision_map_has_float32_sums(dtype):
    norm = GroupNorm(32)
    x = (100 + torch.randn(2, 32, 16, 16)).to(dtype)
    in_half = norm(x)
    assert in_half.dtype == dtype
    in_float = norm(x.float())
    assert (in_half.float() - in_float).abs().max() <= 2 * torch.finfo(dtype).eps * in_float.abs().max()


def test_no_coordinate_is_stored():
    assert not list(PositionalGroupNorm(32, 1000, 16).buffers())


def test_sinusoidal_embeddings_differ_between_all_steps():
    embedding = sinusoidal_embedding(torch.arange(1000), 64)
    assert embedding.shape == (1000, 64)
    assert torch.allclose(embedding[:, :32] ** 2 + embedding[:, 32:] ** 2, torch.ones(1000, 32), atol=1e-5)
    assert embedding.unique(dim=0).shape[0] == 1000


def test_the_baseline_modulates_all_pixels_alike_and_differs_in_t_and_n():
    norm = fill_by_rule(TimestepGroupNorm(32, 1000, 16), "p")
    norm.out_rest[1] = torch.nn.Identity()
    norm.out_norm = torch.nn.Identity()
    h = torch.ones(3, 32, 4, 4)
    out = norm(h, Position(torch.tensor([5, 6, 5]), torch.tensor([2, 2, 3])))
    assert torch.equal(out, out[:, :, :1, :1].expand_as(out))
    assert not torch.allclose(out[0], out[1])
    assert not torch.allclose(out[0], out[2])


@pytest.mark.parametrize("name", NORMS)
def test_every_norm_starts_at_zero_changes_no_input_and_gets_a_gradient(name):
    norm = NORMS[name](32, 1000, 16)
    h, position = torch.randn(3, 32, 4, 6), Position(torch.tensor([0, 5, 999]), torch.tensor([1, 2, 15]))
    before = h.clone()
    assert torch.equal(norm(h, position), torch.zeros(3, 32, 4, 6))
    fill_by_rule(norm, "p")
    norm(h, position).square().sum().backward()
    assert torch.equal(h, before)
    assert all(parameter.grad.abs().max() > 0 for parameter in norm.parameters())


def test_the_baseline_replaces_posgn_in_a_residual_block():
    block = ResBlock(32, 32, UNetShape(model_channels=32, norm="timestep"))
    assert isinstance(block.emb_layers, TimestepGroupNorm)
