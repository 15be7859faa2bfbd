"""Claims about making a video frame by frame."""

import math

import pytest
import torch
from golden import fill_by_rule, small_model_arguments

from vidm.diffusion import GaussianDiffusion
from vidm.model import ContentGenerator, MotionGenerator
from vidm.posgn import PositionalGroupNorm
from vidm.randomness import keyed_normal
from vidm.rollout import TruncatedStart, animate, generate_first_frames, video_noise

DIFFUSION = GaussianDiffusion(respacing="2")


class Spy(MotionGenerator):
    """Records the conditions it is called with and says that there is no noise."""

    def __init__(self):
        super().__init__(**small_model_arguments())
        self.calls, self.flows = [], []

    def flow(self, first, previous):
        self.flows.append((first.clone(), previous.clone()))
        return torch.zeros_like(first[:, :2])

    def forward(self, x_t, t, frame_index, previous, first, flow=None):
        self.calls.append((frame_index.tolist(), previous.clone(), first.clone(), flow))
        return torch.cat([x_t, x_t], dim=1)


def test_frame_zero_is_given_and_the_others_are_made_in_order():
    spy = Spy()
    first = torch.rand(2, 3, 8, 8) * 2 - 1
    clip = animate(spy, DIFFUSION, first, 4, video_noise(0, [0, 1]))
    assert clip.shape == (2, 4, 3, 8, 8)
    assert torch.equal(clip[:, 0], first)
    assert [call[0] for call in spy.calls] == [[n, n] for n in (1, 1, 2, 2, 3, 3)]
    for n, (_, previous, anchor, _) in zip((1, 1, 2, 2, 3, 3), spy.calls, strict=True):
        assert torch.equal(previous, clip[:, n - 1])
        assert torch.equal(anchor, first)


def test_flow_is_computed_once_per_frame_from_first_to_previous():
    spy = Spy()
    first = torch.rand(1, 3, 8, 8) * 2 - 1
    clip = animate(spy, DIFFUSION, first, 4, video_noise(0, [0]))
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
    animate(MotionGenerator(**arguments), DIFFUSION, first, 2, video_noise(0, [0, 1, 2]))
    arguments.pop("video_timesteps")
    generate_first_frames(ContentGenerator(**arguments), DIFFUSION, (3, 8, 8), video_noise(0, [0, 1, 2]))
    assert rows
    assert set(rows) == {1}


def test_a_video_does_not_depend_on_its_batch():
    model = fill_by_rule(MotionGenerator(**small_model_arguments()))
    # v does not multiply the rounding of a step near pure noise, as dividing by sqrt(alphas_cumprod) would.
    diffusion = GaussianDiffusion(respacing="2", prediction="v")
    first = torch.rand(3, 3, 16, 16) * 2 - 1
    together = animate(model, diffusion, first, 3, video_noise(5, [10, 11, 12]))
    alone = animate(model, diffusion, first[1:2], 3, video_noise(5, [11]))
    assert (together[1] - alone[0]).abs().max() < 1e-4


def test_seeds_and_videos_differ():
    model = fill_by_rule(MotionGenerator(**small_model_arguments()))
    first = (torch.rand(1, 3, 16, 16) * 2 - 1).expand(2, -1, -1, -1)
    a, b = animate(model, DIFFUSION, first, 2, video_noise(0, [0, 1]))
    c = animate(model, DIFFUSION, first, 2, video_noise(1, [0, 1]))[0]
    assert not torch.allclose(a[1], b[1])
    assert not torch.allclose(a[1], c[1])


@pytest.mark.parametrize("num_frames", [0, 17])
def test_more_frames_than_were_trained_are_refused(num_frames):
    with pytest.raises(ValueError, match="model trained on 16"):
        animate(Spy(), DIFFUSION, torch.zeros(1, 3, 8, 8), num_frames, video_noise(0, [0]))


class Starts:
    """A sampler that makes nothing and records where chains start."""

    def __init__(self):
        self.seen = []

    def __call__(self, diffusion, model, x_T, condition, noise):
        self.seen.append(x_T)
        return torch.zeros_like(x_T)


def starts(seed: int = 0, **options) -> list[torch.Tensor]:
    sampler = Starts()
    animate(Spy(), DIFFUSION, torch.zeros(2, 3, 8, 8), 4, video_noise(seed, [0, 1]), sampler=sampler, **options)
    return sampler.seen


def test_psi_one_starts_where_plain_sampling_does_bit_for_bit():
    plain, truncated = starts(), starts(start=TruncatedStart(9, psi=1.0))
    assert all(torch.equal(a, b) for a, b in zip(plain, truncated, strict=True))


def test_psi_zero_starts_every_video_and_frame_of_every_seed_at_one_latent():
    c = keyed_normal((9,), (3, 8, 8))
    for seed in (0, 1):
        assert all(torch.equal(x_T, c.expand(2, 3, 8, 8)) for x_T in starts(seed, start=TruncatedStart(9, psi=0.0)))


def test_start_noise_is_shared_by_a_videos_frames_or_drawn_per_frame():
    one, two, three = starts(start_noise="frame")
    assert not torch.equal(one, two)
    shared = starts()
    assert all(torch.equal(x_T, shared[0]) for x_T in shared)
    assert not torch.equal(shared[0][0], shared[0][1])
    assert torch.equal(shared[0], one)
    assert not torch.equal(two, three)


def test_first_frames_are_drawn_as_frame_zero_of_their_video():
    sampler = Starts()
    generate_first_frames(Spy(), DIFFUSION, (3, 8, 8), video_noise(4, [7, 2]), sampler=sampler)
    expected = torch.stack([keyed_normal((4, index, 0, 0), (3, 8, 8)) for index in (7, 2)])
    assert torch.equal(sampler.seen[0], expected)


def test_every_k_frames_the_last_one_takes_the_first_ones_place():
    spy = Spy()
    first = torch.rand(1, 3, 8, 8) * 2 - 1
    clip = animate(spy, GaussianDiffusion(respacing="1"), first, 8, video_noise(0, [0]), anchor_every=3)
    assert [call[0] for call in spy.calls] == [[n] for n in (1, 2, 3, 1, 2, 3, 1)]
    for n, (_, previous, anchor, _) in enumerate(spy.calls, start=1):
        assert torch.equal(previous, clip[:, n - 1])
        assert torch.equal(anchor, clip[:, (n - 1) // 3 * 3])
    assert [torch.equal(flow[0], call[2]) for flow, call in zip(spy.flows, spy.calls, strict=True)] == [True] * 7


def test_condition_noise_reaches_the_flow_alone_at_its_level():
    spy = Spy()
    first = torch.rand(4, 3, 8, 8) * 2 - 1
    clip = animate(spy, GaussianDiffusion(respacing="1"), first, 3, video_noise(0, range(4)), condition_noise=0.25)
    for n, ((_, seen), (_, previous, _, _)) in enumerate(zip(spy.flows, spy.calls, strict=True)):
        assert torch.equal(previous, clip[:, n])
        assert (seen - previous).std().item() == pytest.approx(0.25, rel=0.1)


def test_anchors_must_lie_within_what_the_model_knows():
    spy = Spy()
    first, noise = torch.zeros(1, 3, 8, 8), video_noise(0, [0])
    most = spy.video_timesteps
    with pytest.raises(ValueError, match=f"--anchor-every {most}: .* give 1 to {most - 1}"):
        animate(spy, DIFFUSION, first, 3, noise, anchor_every=most)
    with pytest.raises(ValueError, match="ask for at most that, or for --anchor-every K"):
        animate(spy, DIFFUSION, first, most + 1, noise)


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
