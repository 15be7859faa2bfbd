"""python scripts/train_flow.py --out checkpoints/world-flow/spynet.pt

Trains SPyNet on the embedded world, where the exact flow from the first frame of a video to any other is known. Prints
the end-point errors of SPyNet and of zero flow on held-out worlds, by displacement and by whether the point is still
visible. The flag --spynet of the training script reads the weights. They are for this world only; use the original file
for real videos.
"""

import argparse
import json
import os
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from vidm.interrupts import in_processes, one_line_on_interrupt

if __name__ == "__main__":
    one_line_on_interrupt()  # before imports that take seconds

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from vidm.checkpoint import load_spynet
from vidm.console import CommandParser, given_path
from vidm.datasets import to_float
from vidm.files import atomic_file, atomic_write
from vidm.randomness import keyed_generator
from vidm.runtime import exit_on_user_error, keep_freed_memory
from vidm.spynet import SPyNet
from vidm.world import CollisionWorld, render_clip

# Loss weights of the levels, coarsest first. With small frames, the coarsest levels have only a few pixels.
LEVEL_WEIGHTS = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
NOISE = 0.1  # largest standard deviation of the noise on the later frame, which is a generated frame in sampling
WARMUP = 200
STILL = 0.1  # px; points that move less count as still
MOVING_WEIGHT = 10.0  # only one pixel in thirty moves, so an unweighted mean would favour zero flow
BINS = (STILL, 2, 4, 8, float("inf"))
FIRST_SEEDS = (4, 5)  # seeds of the training and test worlds with --seed 0


class Pairs(NamedTuple):
    """first: first frames, uint8 (N, R, R, 3). later: all later frames, uint8 (N, T - 1, R, R, 3). flow: from the first
    frame to each later one, float16 (N, T - 1, 2, R, R) in px. visible: whether the point is visible in the later
    frame, bool (N, T - 1, R, R)."""

    first: np.ndarray
    later: np.ndarray
    flow: np.ndarray
    visible: np.ndarray


def _pairs_of(seed: int, num_frames: int, resolution: int, index: int) -> Pairs:
    world = CollisionWorld(seed, index, num_frames)
    clip_u8 = render_clip(world, resolution)
    flows, visible = zip(*(world.flow(0, n, resolution) for n in range(1, num_frames)), strict=True)
    return Pairs(clip_u8[0], clip_u8[1:], np.stack(flows).astype(np.float16), np.stack(visible))


def make_pairs(num_worlds: int, seed: int, num_frames: int, resolution: int) -> Pairs:
    """The pairs of the first `num_worlds` worlds of a seed, rendered on all cores."""
    make = partial(_pairs_of, seed, num_frames, resolution)
    pairs = in_processes(make, range(num_worlds), os.cpu_count() or 1, chunksize=8)
    found = list(tqdm(pairs, "worlds", total=num_worlds, leave=False, disable=None))
    return Pairs(*(np.stack(part) for part in zip(*found, strict=True)))


def draw_batch(pairs: Pairs, seed: int, step: int, batch_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """First and later frames (B, 3, R, R) in [0, 1] and their flow (B, 2, R, R), as a function of (seed, step).

    The first half of the samples is mirrored. Noise with a standard deviation from [0, NOISE] is added to later frames.
    """
    rng = np.random.default_rng([seed, step])
    worlds, times = rng.integers(len(pairs.later), size=batch_size), rng.integers(pairs.later.shape[1], size=batch_size)
    first = (to_float(pairs.first[worlds]) + 1) / 2
    later = (to_float(pairs.later[worlds, times]) + 1) / 2
    flow = torch.from_numpy(pairs.flow[worlds, times].astype(np.float32))
    half = batch_size // 2
    flow[:half, 0] *= -1
    first, later, flow = (torch.cat([x[:half].flip(3), x[half:]]) for x in (first, later, flow))
    level = torch.from_numpy(rng.uniform(0, NOISE, (batch_size, 1, 1, 1)).astype(np.float32))
    noise = torch.randn(later.shape, generator=keyed_generator((seed, step)))
    return first, (later + level * noise).clamp(0, 1), flow


def flow_loss(flows: list[Tensor], flow: Tensor) -> Tensor:
    """The weighted sum of mean end-point errors of all levels, in px of each level; moving points weigh more."""
    loss = flow.new_zeros(())
    moving = (torch.linalg.vector_norm(flow, dim=1, keepdim=True) > STILL).float()
    for k, (found, weight) in enumerate(zip(flows[::-1], LEVEL_WEIGHTS[::-1], strict=True)):
        wanted, importance = F.avg_pool2d(flow, 2**k) / 2**k, 1 + MOVING_WEIGHT * F.avg_pool2d(moving, 2**k)
        # Without the 1e-4, the gradient at 0 would be NaN.
        error = ((found.float() - wanted).square().sum(1, keepdim=True) + 1e-4).sqrt()
        loss = loss + weight * (importance * error).mean()
    return loss


def train(spynet: SPyNet, pairs: Pairs, steps: int, batch_size: int, lr: float, seed: int, bf16: bool) -> None:
    """Train with AdamW; the learning rate rises linearly over WARMUP steps and then decays to 0 along a cosine."""
    optimizer = torch.optim.AdamW(spynet.parameters(), lr=lr, weight_decay=0, fused=True)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / WARMUP, total_iters=WARMUP)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps - WARMUP, 1))
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm_up, decay], [WARMUP])
    device = next(spynet.parameters()).device
    with tqdm(range(steps), "train", unit="step", disable=None) as bar:
        for step in bar:
            first, later, flow = (x.to(device) for x in draw_batch(pairs, seed, step, batch_size))
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                flows = spynet.pyramid_flows(first, later)
            loss = flow_loss(flows, flow)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(spynet.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if step % 100 == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}")


def end_point_errors(spynet: SPyNet, pairs: Pairs) -> list[dict[str, Any]]:
    """The share of pixels and the errors of zero flow and SPyNet in px, by displacement and visibility of the point."""
    device, found = next(spynet.parameters()).device, []
    with torch.no_grad():
        for first, later in zip(pairs.first, pairs.later, strict=True):
            frames = [(to_float(frame).to(device) + 1) / 2 for frame in (np.broadcast_to(first, later.shape), later)]
            found.append(spynet(*frames).cpu().numpy())
    wanted = pairs.flow.astype(np.float32)
    length = np.linalg.norm(wanted, axis=2)
    error = np.linalg.norm(np.stack(found) - wanted, axis=2)
    masks = {("still", "all"): length <= STILL, ("moving", "all"): length > STILL}
    for low, high in pairwise(BINS):
        moved = (length > low) & (length <= high)
        name = f"{low:g} to {high:g} px" if high < float("inf") else f"above {low:g} px"
        masks[name, "visible"], masks[name, "hidden"] = moved & pairs.visible, moved & ~pairs.visible
    return [
        {
            "displacement": name,
            "point": point,
            "share": float(mask.mean()),
            "zero_flow": float(length[mask].mean()),
            "spynet": float(error[mask].mean()),
        }
        for (name, point), mask in masks.items()
        if mask.any()
    ]


def print_table(rows: list[dict[str, Any]]) -> None:
    print("| displacement | point | share of pixels | zero flow, px | SPyNet, px |")
    print("|---|---|--:|--:|--:|")
    for row in rows:
        shown = f"{row['share']:.2%} | {row['zero_flow']:.2f} | {row['spynet']:.2f}"
        print(f"| {row['displacement']} | {row['point']} | {shown} |")


def main() -> None:
    parser = CommandParser(
        description=__doc__.split("\n\n", 1)[1], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out", type=given_path, required=True, metavar="FILE", help="the .pt file to write")
    parser.add_argument("--resolution", type=int, default=32, metavar="R", help="side of the frames, a multiple of 32")
    parser.add_argument("--num-frames", type=int, default=16, metavar="T", help="frames per video")
    parser.add_argument("--num-worlds", type=int, default=3000, metavar="N", help="videos for training")
    parser.add_argument("--num-test", type=int, default=128, metavar="N", help="videos for testing")
    parser.add_argument("--steps", type=int, default=6000, help="training steps")
    parser.add_argument("--batch-size", type=int, default=16, metavar="B", help="pairs per step")
    parser.add_argument("--lr", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16", help="precision of training")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers")
    parser.add_argument("--init", type=given_path, metavar="FILE", help="weights to start from")
    options = parser.parse_args()
    with exit_on_user_error():
        for name, least in (("num_frames", 2), ("num_worlds", 1), ("num_test", 1), ("steps", 1), ("batch_size", 1)):
            if getattr(options, name) < least:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(options, name)}: give {least} or more")
        if options.resolution % 32 or options.resolution < 32:
            raise ValueError(f"--resolution {options.resolution}: give a multiple of 32")
        if options.seed < 0:
            raise ValueError(f"--seed {options.seed}: give 0 or more")
        if not options.lr > 0:
            raise ValueError(f"--lr {options.lr}: give a number above 0")
        if options.out.suffix != ".pt" or options.out.is_dir():
            raise ValueError(f"--out {options.out}: give the name of a .pt file")
        torch.manual_seed(options.seed)
        spynet = SPyNet()
        if options.init:
            load_spynet(spynet, options.init)
        keep_freed_memory()
        options.out.parent.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        # The generators are trained and evaluated on worlds with different seeds.
        train_seed, test_seed = (first + 1000 * options.seed for first in FIRST_SEEDS)
        pairs = make_pairs(options.num_worlds, train_seed, options.num_frames, options.resolution)
        spynet.to("cuda" if torch.cuda.is_available() else "cpu")
        bf16 = options.precision == "bf16"
        train(spynet, pairs, options.steps, options.batch_size, options.lr, options.seed, bf16)
        test_pairs = make_pairs(options.num_test, test_seed, options.num_frames, options.resolution)
        rows = end_point_errors(spynet, test_pairs)
        with atomic_file(options.out) as file:
            torch.save({"state_dict": spynet.cpu().state_dict()}, file)
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
        with atomic_write(options.out.with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps({"settings": settings, "errors": rows}, indent=2) + "\n")
        print_table(rows)
        print(f"wrote {options.out} after {(time.monotonic() - began) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
