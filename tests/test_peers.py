"""Tests of benchmarks/bench_peers.py: its committed rows, and training and sampling of the other methods."""

import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import fill_by_rule

from vidm.diffusion import GaussianDiffusion
from vidm.model import MotionGenerator
from vidm.rollout import animate, video_noise
from vidm.samplers import sample_ddpm
from vidm.unet import UNetShape

ROOT = Path(__file__).parent.parent
TINY = UNetShape(32, 1, (2,), (1, 2), num_head_channels=32, video_timesteps=4)


@pytest.fixture
def peers(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import bench_peers

    yield bench_peers
    for name in ("bench_peers", "peer_networks", "bench_ablation", "ablation_table", "measuring", "reference"):
        sys.modules.pop(name)


def test_the_committed_rows_are_complete_and_of_equal_training_times(peers):
    rows = {row["row"]: row for row in peers.newest_rows("peers")}
    assert rows.keys() == {*peers.BASELINES, *peers.ROWS}
    for name, row in peers.ROWS.items():
        assert peers.is_current(name)
        assert rows[name]["weights"] == rows[row.peer]["weights"]
        assert rows[name]["core_minutes"] == pytest.approx(60, rel=0.2)
    for name in ("published", "unet3d"):
        equal = rows[f"{name}, in the time of vidm"]
        assert equal["seconds"] == pytest.approx(rows["vidm"]["seconds"], rel=0.3)


def test_published_sampling_equals_animate_with_a_start_noise_per_frame(peers, monkeypatch):
    import peer_networks

    monkeypatch.setattr(peer_networks, "NUM_FRAMES", 4)
    ours = MotionGenerator(16, **asdict(TINY))
    fill_by_rule(ours)  # in place of the reference: tests/test_reference.py compares the two networks
    first, noise = torch.rand(2, 3, 16, 16) * 2 - 1, video_noise(0, range(2))
    found = peer_networks.continue_published(ours, 3, first, noise)
    expected = animate(ours, partial(sample_ddpm, GaussianDiffusion(respacing=3)), first, 4, noise)
    assert torch.equal(found, expected)


def test_a_network_that_knows_the_video_generates_it_with_the_schedule_of_unet3d(peers):
    import peer_networks

    known = torch.rand(1, 3, 16, 32, 32) * 1.8 - 0.9
    alphas = torch.from_numpy(GaussianDiffusion(schedule="cosine").alphas_cumprod)

    def network(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        a = alphas[t].view(-1, 1, 1, 1, 1)
        return ((x_t - a.sqrt() * known) / (1 - a).sqrt()).float()

    videos = peer_networks.generate_unet3d(network, 5, video_noise(0, range(2)))
    assert videos.shape == (2, 16, 3, 32, 32)
    assert (videos - known.transpose(1, 2)).abs().max() < 1e-4


@pytest.mark.parity
def test_the_schedule_is_that_of_video_diffusion_pytorch(peers):
    pytest.importorskip("video_diffusion_pytorch")
    import peer_networks

    theirs = peer_networks.VideoNetwork().process.alphas_cumprod
    ours = GaussianDiffusion(schedule="cosine").alphas_cumprod
    assert (theirs - torch.from_numpy(ours)).abs().max() < 1e-6


class OneConvolution:
    """A peer of one convolution that learns the negative of a video's first frame."""

    batch_size, lr, steps, decay = 2, 1e-2, 6, 0.9

    def __init__(self) -> None:
        self.network = torch.nn.Conv2d(3, 3, 1)

    def loss(self, videos, rng):
        frames = torch.from_numpy(videos[:, 0]).permute(0, 3, 1, 2) / 255 + 0.01 * rng.standard_normal()
        return (self.network(frames.float()) + frames.float() + 0.1 * torch.randn(1)).square().mean()


def test_an_interrupted_training_of_a_peer_ends_with_the_same_weights(peers, monkeypatch, tmp_path):
    import peer_networks

    monkeypatch.setitem(peer_networks.PEERS, "one", OneConvolution)
    monkeypatch.setattr(peer_networks, "SAVE_EVERY", 2)
    monkeypatch.setattr(
        peer_networks, "training_videos", lambda: np.random.default_rng(0).integers(0, 256, (5, 1, 4, 4, 3), np.uint8)
    )
    threads = torch.get_num_threads()
    peer_networks.fit("one", tmp_path / "whole.pt")
    loss = OneConvolution.loss

    def interrupted(model, videos, rng):
        if torch.initial_seed() == 5:
            raise KeyboardInterrupt
        return loss(model, videos, rng)

    monkeypatch.setattr(OneConvolution, "loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        peer_networks.fit("one", tmp_path / "resumed.pt")
    monkeypatch.setattr(OneConvolution, "loss", loss)
    peer_networks.fit("one", tmp_path / "resumed.pt")
    torch.set_num_threads(threads)
    whole, resumed = (torch.load(tmp_path / name, weights_only=True) for name in ("whole.pt", "resumed.pt"))
    assert whole["step"] == resumed["step"] == 6
    for part in ("network", "ema"):
        for key, tensor in whole[part].items():
            assert torch.equal(tensor, resumed[part][key])
    assert not torch.equal(whole["ema"]["weight"], OneConvolution().network.weight)


def test_missing_inputs_are_errors_before_anything_is_computed(peers, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(peers, "newest_rows", lambda name: [])
    monkeypatch.setattr(peers, "PACK", peers.ROOT / "packs" / "nowhere")
    monkeypatch.setattr(sys, "argv", ["bench_peers.py", "--only", "vidm"])
    with pytest.raises(SystemExit) as exit_:
        peers.main()
    assert exit_.value.code == 2
    assert "packs/nowhere is missing; docs/results/README.md" in capsys.readouterr().err
    monkeypatch.setattr(peers, "PACK", tmp_path)
    monkeypatch.setattr(peers, "SPYNET", tmp_path)
    monkeypatch.setitem(sys.modules, "video_diffusion_pytorch", None)
    monkeypatch.setattr(sys, "argv", ["bench_peers.py", "--only", "unet3d"])
    with pytest.raises(SystemExit) as exit_:
        peers.main()
    assert exit_.value.code == 2
    assert "unet3d needs video-diffusion-pytorch" in capsys.readouterr().err
