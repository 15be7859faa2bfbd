"""Tests of keyed random numbers."""

import itertools

import torch

from vidm.randomness import keyed_normal


def test_the_numbers_of_a_key_do_not_depend_on_earlier_draws():
    first = keyed_normal((1, 2, 3), (4,))
    torch.randn(100)
    keyed_normal((9,), (4,))
    assert torch.equal(first, keyed_normal((1, 2, 3), (4,)))


def test_keys_that_differ_in_order_or_trailing_zeros_give_different_numbers():
    keys = [(1, 2), (2, 1), (1, 2, 0), (1, 2, 0, 0), (0, 1, 2), (12,)]
    drawn = [keyed_normal(key, (8,)) for key in keys]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(drawn, 2))


def test_the_numbers_are_standard_normal():
    drawn = torch.cat([keyed_normal((0, k), (1000,)) for k in range(100)])
    n = len(drawn)
    assert abs(drawn.mean().item()) < 4 / n**0.5
    assert abs(drawn.var().item() - 1) < 4 * (2 / n) ** 0.5
