"""Claims about positional group normalisation."""

import torch
from golden import fill_by_rule

from vidm.posgn import PositionalGroupNorm, unit_coordinate


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
    assert torch.allclose(torch.cat(norm.scale_shift(t, n, height, width), 1), stacked, atol=1e-5)


def test_scale_and_shift_act_after_the_group_norm():
    norm = fill_by_rule(PositionalGroupNorm(32, 1000, 16), "p")
    t = n = torch.tensor([5])
    h = torch.randn(1, 32, 4, 4)
    scale, shift = norm.scale_shift(t, n, 4, 4)
    groups = torch.nn.functional.group_norm(h, 32, norm.out_norm.weight, norm.out_norm.bias, 1e-5)
    assert torch.allclose(norm(h, t, n), norm.out_rest(groups * (1 + scale) + shift), atol=1e-6)


def test_neighbouring_steps_stay_apart_under_bfloat16():
    norm = fill_by_rule(PositionalGroupNorm(32, 1000, 16), "p")
    norm.linear_1 = torch.nn.Identity()
    t = torch.arange(1000)
    with torch.autocast("cpu", torch.bfloat16):
        scale, shift = norm.scale_shift(t, torch.zeros_like(t), 1, 1)
    assert torch.cat([scale, shift], 1).unique(dim=0).shape[0] == 1000


def test_no_coordinate_is_stored():
    assert not list(PositionalGroupNorm(32, 1000, 16).buffers())
