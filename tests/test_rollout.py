"""Rollout: the order of frames and conditions, what a video's noise depends on, and where chains start."""

import math
from functools import partial

import pytest
import torch
from golden import fill_by_rule, small_model_arguments

from vidm.diffusion import GaussianDiffusion
from vidm.model import MotionGenerator
from vidm.posgn import PositionalGroupNorm
from vidm.randomness import keyed_normal
from vidm.rollout import animate, generate_first_frames, shared_start, truncated_start, video_noise
from vidm.samplers import sample_ddpm

SAMPLER = partial(sample_ddpm, GaussianDiffusion(respacing="2"))
ONE_STEP = partial(sample_ddpm, GaussianDiffusion(respacing="1"))


class Spy(MotionGenerator):
    """Records the conditions it is called with and predicts x_t as the noise."""

    def __init__(self):
        super().__init__(**small_model_arguments())
        self.calls, self.flows = [], []

    def flow(self, first, previous):
        self.flows.append((first.clone(), previous.clone()))
        return torch.zeros_like(first[:, :2])

    def forward(self, x_t, t, frame_index, previous, first, flow=None):
        self.calls.append((frame_index.tolist(), previous.clone(), first.clone(), flow))
        return torch.cat([x_t, x_t], dim=1)


def test_frame_zero_is_given_and_the_others_are_generated_in_order():
    spy = Spy()
    first = torch.rand(2, 3, 8, 8) * 2 - 1
    clip = animate(spy, SAMPLER, first, 4, video_noise(0, [0, 1]))
    assert clip.shape == (2, 4, 3, 8, 8)
    assert torch.equal(clip[:, 0], first)
    assert [call[0] for call in spy.calls] == [[n, n] for n in (1, 1, 2, 2, 3, 3)]
    for n, (_, previous, anchor, _) in zip((1, 1, 2, 2, 3, 3), spy.calls, strict=True):
        assert torch.equal(previous, clip[:, n - 1])
        assert torch.equal(anchor, first)


def test_flow_is_computed_once_per_frame_from_first_to_previous():
    spy = Spy()
    first = torch.rand(1, 3, 8, 8) * 2 - 1
    clip = animate(spy, SAMPLER, first, 4, video_noise(0, [0]))
    assert len(spy.flows) == 3
    for n, (anchor, previous) in enumerate(spy.flows):
        assert torch.equal(anchor, first)
        assert torch.equal(previous, clip[:, n])
    assert all(call[3] is not None for call in spy.calls)


def test_posgn_is_computed_once_for_all_videos_of_a_batch(monkeypatch):
    rows, compute = [], PositionalGroupNorm.scale_shift

    def counted(*arguments):
        scale, shift = compute(*arguments)
        rows.append(len(scale))
        return scale, shift

    monkeypatch.setattr(PositionalGroupNorm, "scale_shift", counted)
    arguments = small_model_arguments()
    first = torch.rand(3, 3, 8, 8) * 2 - 1
    animate(MotionGenerator(**arguments), SAMPLER, first, 2, video_noise(0, [0, 1, 2]))
    assert rows
    assert set(rows) == {1}


def test_a_video_does_not_depend_on_its_batch():
    model = fill_by_rule(MotionGenerator(**small_model_arguments()))
    # v does not multiply the rounding of a step near pure noise, as dividing by sqrt(alphas_cumprod) would.
    sampler = partial(sample_ddpm, GaussianDiffusion(respacing="2", prediction="v"))
    first = torch.rand(3, 3, 16, 16) * 2 - 1
    together = animate(model, sampler, first, 3, video_noise(5, [10, 11, 12]))
    alone = animate(model, sampler, first[1:2], 3, video_noise(5, [11]))
    assert (together[1] - alone[0]).abs().max() < 1e-4


def test_seeds_and_videos_differ():
    model = fill_by_rule(MotionGenerator(**small_model_arguments()))
    first = (torch.rand(1, 3, 16, 16) * 2 - 1).expand(2, -1, -1, -1)
    a, b = animate(model, SAMPLER, first, 2, video_noise(0, [0, 1]))
    c = animate(model, SAMPLER, first, 2, video_noise(1, [0, 1]))[0]
    assert not torch.allclose(a[1], b[1])
    assert not torch.allclose(a[1], c[1])


class Starts:
    """A sampler that generates nothing and records where chains start."""

    def __init__(self):
        self.seen = []

    def __call__(self, model, x_T, condition, noise):
        self.seen.append(x_T)
        return torch.zeros_like(x_T)


def starts(noise) -> list[torch.Tensor]:
    sampler = Starts()
    animate(Spy(), sampler, torch.zeros(2, 3, 8, 8), 4, noise)
    return sampler.seen


def test_psi_zero_starts_every_video_and_frame_of_every_seed_at_one_latent():
    c = keyed_normal((9,), (3, 8, 8))
    for seed in (0, 1):
        found = starts(truncated_start(video_noise(seed, [0, 1]), seed=9, psi=0.0))
        assert len(found) == 3
        assert all(torch.equal(x_T, c.expand(2, 3, 8, 8)) for x_T in found)


def test_starts_are_drawn_per_frame_or_shared_by_a_videos_frames():
    noise = video_noise(0, [0, 1])
    one, two, three = starts(noise)
    assert not torch.equal(one, two)
    assert not torch.equal(two, three)
    shared = starts(shared_start(noise))
    assert all(torch.equal(x_T, one) for x_T in shared)
    assert not torch.equal(shared[0][0], shared[0][1])


def test_only_starts_are_shared_or_truncated():
    noise = video_noise(0, [0, 1])
    for changed in (shared_start(noise), truncated_start(noise, seed=9, psi=0.5)):
        assert torch.equal(changed(2, 1, (3, 8, 8)), noise(2, 1, (3, 8, 8)))
    assert torch.equal(shared_start(noise)(0, 0, (3, 8, 8)), noise(0, 0, (3, 8, 8)))


def test_first_frames_are_drawn_as_frame_zero_of_their_video():
    sampler = Starts()
    generate_first_frames(Spy(), sampler, (3, 8, 8), video_noise(4, [7, 2]))
    expected = torch.stack([keyed_normal((4, index, 0, 0), (3, 8, 8)) for index in (7, 2)])
    assert torch.equal(sampler.seen[0], expected)


def test_every_k_frames_the_last_frame_replaces_the_first():
    spy = Spy()
    first = torch.rand(1, 3, 8, 8) * 2 - 1
    clip = animate(spy, ONE_STEP, first, 8, video_noise(0, [0]), anchor_every=3)
    assert [call[0] for call in spy.calls] == [[n] for n in (1, 2, 3, 1, 2, 3, 1)]
    for n, (_, previous, anchor, _) in enumerate(spy.calls, start=1):
        assert torch.equal(previous, clip[:, n - 1])
        assert torch.equal(anchor, clip[:, (n - 1) // 3 * 3])
    assert [torch.equal(flow[0], call[2]) for flow, call in zip(spy.flows, spy.calls, strict=True)] == [True] * 7


def test_condition_noise_reaches_the_flow_alone_at_its_level():
    spy = Spy()
    first = torch.rand(4, 3, 8, 8) * 2 - 1
    clip = animate(spy, ONE_STEP, first, 3, video_noise(0, range(4)), condition_noise=0.25)
    for n, ((_, seen), (_, previous, _, _)) in enumerate(zip(spy.flows, spy.calls, strict=True)):
        assert torch.equal(previous, clip[:, n])
        assert (seen - previous).std().item() == pytest.approx(0.25, rel=0.1)


SHAPE = (2, 4, 4)


def truncated(z: torch.Tensor, seed: int, psi: float) -> torch.Tensor:
    return truncated_start(lambda frame, step, shape: z, seed, psi)(1, 0, z.shape[1:])


def test_psi_one_is_plain_sampling_bit_for_bit():
    z = torch.randn(5, *SHAPE)
    assert torch.equal(truncated(z, seed=0, psi=1.0), z)


def test_psi_zero_is_the_same_start_for_every_z():
    starts = truncated(torch.randn(5, *SHAPE), seed=3, psi=0.0)
    assert torch.equal(starts, keyed_normal((3,), SHAPE).expand(5, *SHAPE))
    assert not torch.equal(starts, truncated(torch.randn(5, *SHAPE), seed=4, psi=0.0))


@pytest.mark.parametrize("psi", [0.25, 0.5, 0.9])
def test_over_z_alone_each_element_is_normal_around_the_fixed_latent(psi):
    n = 20_000
    z = torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(0))
    x_T = truncated(z, seed=1, psi=psi)
    c = keyed_normal((1,), SHAPE)
    assert ((x_T.mean(0) - math.sqrt(1 - psi**2) * c).abs() < 4 * psi / math.sqrt(n)).all()
    assert ((x_T.var(0) - psi**2).abs() < 4 * psi**2 * math.sqrt(2 / n)).all()


@pytest.mark.parametrize("psi", [0.0, 0.5, 1.0])
def test_over_the_latent_and_z_each_element_is_standard_normal(psi):
    n = 20_000
    z = torch.randn(n, 1, *SHAPE, generator=torch.Generator().manual_seed(0))
    x_T = torch.cat([truncated(z[seed], seed, psi) for seed in range(n)])
    assert (x_T.mean(0).abs() < 4 / math.sqrt(n)).all()
    assert ((x_T.var(0) - 1).abs() < 4 * math.sqrt(2 / n)).all()
