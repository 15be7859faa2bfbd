"""The methods that bench_peers.py compares with the package: their networks, training and sampling.

    fit("published", Path("results/peers/published.pt"))
    network = averaged("published", Path("results/peers/published.pt"))
    videos = continue_published(network, 100, first, video_noise(0, range(32)))

They train on one thread with Adam, a learning rate that decays to 0, and averaged weights, like the preset `world`.
"""

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_ablation import NUM_FRAMES, PACK, SHORT_RESOLUTION, SPYNET
from reference import ReferenceMotionGenerator
from torch import Tensor, nn
from tqdm import tqdm

from vidm.checkpoint import load_spynet
from vidm.datasets import to_float
from vidm.diffusion import GaussianDiffusion
from vidm.ema import EMA
from vidm.files import atomic_write
from vidm.layers import constant_index
from vidm.layouts import index_clips
from vidm.packs import read_frames
from vidm.rollout import VideoNoise
from vidm.runtime import keep_freed_memory
from vidm.samplers import sample_ddim, sample_ddpm
from vidm.training_data import hold_out
from vidm.unet import UNetShape

HELD_OUT = 64  # as in the preset `world`
WARM_UP, SAVE_EVERY = 50, 100

# Networks and losses


class Published:
    """The published motion generator, with the channels of the narrowest preset that 32 groups allow.

    SPyNet has the weights of the other trainings and is not trained."""

    batch_size, lr, steps, decay = 16, 8e-4, 2500, 0.995
    shape = UNetShape(32, 1, (4,), (2, 2, 3), num_head_channels=32, video_timesteps=NUM_FRAMES)

    def __init__(self) -> None:
        self.network: Any = ReferenceMotionGenerator(self.shape)
        load_spynet(self.network.spynet, SPYNET)
        self.network.spynet.requires_grad_(False)
        self.process = GaussianDiffusion(loss="mse")

    def loss(self, videos: np.ndarray, rng: np.random.Generator) -> Tensor:
        """The loss of one later frame of each video (B, T, H, W, 3), given the frame before it and the first one."""
        numbers = rng.integers(1, NUM_FRAMES, len(videos))
        frames = [to_float(videos[range(len(videos)), n]) for n in (numbers, numbers - 1, 0 * numbers)]
        t = torch.from_numpy(rng.integers(0, self.process.num_timesteps, len(videos)))
        condition = {"frame_index": torch.from_numpy(numbers), "previous": frames[1], "first": frames[2]}
        return self.process.training_losses(self.network, frames[0], t, None, condition)["loss"].mean()


class VideoNetwork:
    """Unet3D and GaussianDiffusion of video-diffusion-pytorch, at half the width of the example in its README.

    At the width of the example, 60 core-minutes are a third fewer videos."""

    batch_size, lr, steps, decay = 4, 4e-4, 560, 0.99

    def __init__(self) -> None:
        try:
            from video_diffusion_pytorch import GaussianDiffusion as VideoDiffusion
            from video_diffusion_pytorch import Unet3D
        except ImportError as error:
            raise ValueError("unet3d needs video-diffusion-pytorch: pip install -e '.[peers]'") from error
        self.network: Any = Unet3D(dim=32, dim_mults=(1, 2, 4, 8))
        self.process = VideoDiffusion(self.network, image_size=SHORT_RESOLUTION, num_frames=NUM_FRAMES)

    def loss(self, videos: np.ndarray, rng: np.random.Generator) -> Tensor:
        """The loss of whole videos (B, T, H, W, 3)."""
        with torch.autocast("cpu", torch.bfloat16):
            return self.process(torch.from_numpy(videos).permute(0, 4, 1, 2, 3) / 255)


PEERS: dict[str, Any] = {"published": Published, "unet3d": VideoNetwork}

# Training


def training_videos() -> np.ndarray:
    """The videos that the preset `world` trains on, uint8 (N, T, H, W, 3)."""
    train, _ = hold_out(index_clips(PACK), HELD_OUT)
    return np.stack([read_frames(path, range(NUM_FRAMES)) for path in tqdm(train.paths, desc="reading", leave=False)])


def fit(peer: str, path: Path) -> None:
    """Train a peer or resume its training, with its state in the file `path`."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed_memory()
    model = PEERS[peer]()
    parameters = [parameter for parameter in model.network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=model.lr, weight_decay=0.0, fused=True)
    ema, done, earlier = EMA(model.network, model.decay), 0, 0.0
    if path.exists():
        state = torch.load(path, weights_only=True)
        done, earlier = state["step"], state["cpu_seconds"]
        model.network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        ema = EMA(model.network, model.decay, done)
        ema.load_state_dict(state["ema"])
    if done == model.steps:
        return
    videos, began = training_videos(), time.process_time()
    for step in tqdm(range(done, model.steps), desc=peer, initial=done, total=model.steps):
        decayed = (1 + math.cos(math.pi * step / model.steps)) / 2
        optimizer.param_groups[0]["lr"] = model.lr * min((step + 1) / WARM_UP, decayed)
        rng = np.random.default_rng((0, step))
        torch.manual_seed(step)
        model.loss(videos[rng.integers(0, len(videos), model.batch_size)], rng).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(model.network)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == model.steps:
            state = {"step": step + 1, "network": model.network.state_dict(), "optimizer": optimizer.state_dict()}
            state |= {"ema": ema.state_dict(), "cpu_seconds": earlier + time.process_time() - began}
            with atomic_write(path) as temporary:
                torch.save(state, temporary)


def averaged(peer: str, path: Path) -> Any:
    """The network of a peer with the averaged weights in the file of its training."""
    network = PEERS[peer]().network.eval()
    network.load_state_dict(torch.load(path, weights_only=True)["ema"])
    return network


# Sampling


@torch.no_grad()
def continue_published(network: Any, steps: int, first: Tensor, noise: VideoNoise) -> Tensor:
    """Videos (B, T, 3, H, W) that continue first frames (B, 3, H, W): ancestral steps, a start noise per frame."""
    process, clip = GaussianDiffusion(respacing=steps), [first]
    for n in tqdm(range(1, NUM_FRAMES), desc="frames", leave=False):

        def step_noise(step: int, like: Tensor, n: int = n) -> Tensor:
            return noise(n, step + 1, like.shape[1:])

        condition = {"frame_index": constant_index(n, first), "previous": clip[-1], "first": first}
        clip.append(sample_ddpm(process, network, noise(n, 0, first.shape[1:]), condition, step_noise))
    return torch.stack(clip, dim=1)


@torch.no_grad()
def generate_unet3d(network: Any, steps: int, noise: VideoNoise) -> Tensor:
    """Unconditional videos (B, T, 3, H, W) by DDIM, with the cosine schedule of the network's GaussianDiffusion.

    That class has one sampler, all 1000 ancestral steps."""

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            eps = network(x_t, t)
        return torch.cat([eps.float(), -torch.ones_like(x_t)], dim=1)

    x_T = noise(0, 0, (3, NUM_FRAMES, SHORT_RESOLUTION, SHORT_RESOLUTION))
    process = GaussianDiffusion(schedule="cosine", respacing=steps)
    return sample_ddim(process, denoise, x_T, progress=True).transpose(1, 2)
