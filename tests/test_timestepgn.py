"""Claims about the plain alternative to positional group normalisation."""

import torch
from golden import fill_by_rule

from vidm.blocks import ResBlock, UNetShape
from vidm.timestepgn import TimestepGroupNorm, sinusoidal_embedding


def test_embeddings_are_cosines_and_sines_of_which_no_two_steps_share_one():
    embedding = sinusoidal_embedding(torch.arange(1000))
    assert embedding.shape == (1000, 64)
    assert torch.allclose(embedding[:, :32] ** 2 + embedding[:, 32:] ** 2, torch.ones(1000, 32), atol=1e-5)
    assert embedding.unique(dim=0).shape[0] == 1000


def test_the_modulation_is_the_same_at_every_pixel_and_differs_in_t_and_n():
    norm = fill_by_rule(TimestepGroupNorm(32, 1000, 16), "p")
    norm.out_rest[1] = torch.nn.Identity()
    norm.out_norm = torch.nn.Identity()
    h = torch.ones(3, 32, 4, 4)
    out = norm(h, torch.tensor([5, 6, 5]), torch.tensor([2, 2, 3]))
    assert torch.equal(out, out[:, :, :1, :1].expand_as(out))
    assert not torch.allclose(out[0], out[1])
    assert not torch.allclose(out[0], out[2])


def test_it_takes_the_place_of_posgn_in_a_block():
    block = ResBlock(32, 32, UNetShape(model_channels=32, norm="timestep"))
    assert isinstance(block.emb_layers, TimestepGroupNorm)
