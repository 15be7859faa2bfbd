"""Claims about sampling space truncation."""

import math

import pytest
import torch

from vidm.randomness import keyed_normal
from vidm.truncation import TruncatedStart

SHAPE = (2, 4, 4)


def test_psi_one_is_plain_sampling_bit_for_bit():
    z = torch.randn(5, *SHAPE)
    assert torch.equal(TruncatedStart(seed=0, psi=1.0)(z), z)


def test_psi_zero_is_the_same_start_for_every_z():
    start = TruncatedStart(seed=3, psi=0.0)
    starts = start(torch.randn(5, *SHAPE))
    assert torch.equal(starts, keyed_normal((3,), SHAPE).expand(5, *SHAPE))
    assert not torch.equal(starts, TruncatedStart(seed=4, psi=0.0)(torch.randn(5, *SHAPE)))


@pytest.mark.parametrize("psi", [0.25, 0.5, 0.9])
def test_over_z_alone_each_element_is_normal_around_the_fixed_latent(psi):
    n = 20_000
    z = torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(0))
    x_T = TruncatedStart(seed=1, psi=psi)(z)
    c = keyed_normal((1,), SHAPE)
    assert ((x_T.mean(0) - math.sqrt(1 - psi**2) * c).abs() < 4 * psi / math.sqrt(n)).all()
    assert ((x_T.var(0) - psi**2).abs() < 4 * psi**2 * math.sqrt(2 / n)).all()


@pytest.mark.parametrize("psi", [0.0, 0.5, 1.0])
def test_over_the_latent_and_z_each_element_is_standard_normal(psi):
    n = 20_000
    z = torch.randn(n, 1, *SHAPE, generator=torch.Generator().manual_seed(0))
    x_T = torch.cat([TruncatedStart(seed, psi)(z[seed]) for seed in range(n)])
    assert (x_T.mean(0).abs() < 4 / math.sqrt(n)).all()
    assert ((x_T.var(0) - 1).abs() < 4 * math.sqrt(2 / n)).all()


@pytest.mark.parametrize("psi", [-0.1, 1.1, float("nan")])
def test_a_psi_outside_the_unit_interval_is_named(psi):
    with pytest.raises(ValueError, match=f"psi {psi} is outside"):
        TruncatedStart(0, psi)
