"""Tests of the moving average of weights."""

import pytest
import torch
from torch import nn

from vidm.ema import EMA


def model_at(value: float) -> nn.Module:
    model = nn.Linear(2, 1)
    for parameter in model.parameters():
        nn.init.constant_(parameter, value)
    return model


def model_like(model: nn.Linear) -> nn.Linear:
    return nn.Linear(model.in_features, model.out_features)


def test_updates_after_the_warm_up_follow_the_closed_form():
    ema = EMA(model_at(0.0), decay=0.9, num_updates=1000)
    for _ in range(3):
        ema.update(model_at(1.0))
    assert torch.allclose(ema.state_dict()["weight"], torch.tensor(1 - 0.9**3))


def test_the_first_update_forgets_most_of_the_start():
    ema = EMA(model_at(0.0), decay=0.999)
    ema.update(model_at(1.0))
    assert torch.allclose(ema.state_dict()["bias"], torch.tensor(0.9))


def test_the_average_has_the_models_keys_and_its_own_tensors():
    model = model_at(1.0)
    ema = EMA(model, decay=0.5)
    nn.init.constant_(model.weight, 5.0)
    assert list(ema.state_dict()) == list(model.state_dict())
    assert (ema.state_dict()["weight"] == 1).all()


def test_swapping_in_the_average_is_undone_bit_for_bit():
    model = nn.Linear(3, 3)
    own = model.weight.detach().clone()
    ema = EMA(model, decay=0.5)
    ema.update(model_like(model))
    average = ema.state_dict()["weight"].clone()
    with ema.swapped_into(model):
        assert torch.equal(model.weight, average)
    assert torch.equal(model.weight, own)
    assert torch.equal(ema.state_dict()["weight"], average)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_outside_its_range_is_refused(decay):
    with pytest.raises(ValueError, match="outside"):
        EMA(model_at(0.0), decay)
