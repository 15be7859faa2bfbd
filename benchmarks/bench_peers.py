"""How do the videos compare with those of other methods that were trained for the same time?

    python benchmarks/bench_peers.py [--only ROW ...]

Three methods learn the embedded world from the same videos, each for about 60 minutes of one CPU core:

    vidm         this package with the presets `world` and `world-content`
    published    benchmarks/reference.py: noise prediction with P2, 32 groups, fp32, a start noise per frame. Its first
                 frames are those of vidm's content generator, whose training counts in both
    unet3d       Unet3D and GaussianDiffusion of the package video-diffusion-pytorch, which generate all frames at once

Each row generates 32 videos unconditionally and, if the method can, continues 32 held-out first frames. The other rows
of a method use fewer steps, so that a video takes as long as one of vidm. `real` is the true videos of the first
frames, and `still` these frames repeated. The measures are those of bench_ablation.py; times are CPU times of one
thread, and the peak of memory is that of the process that generates the unconditional videos in one batch.

Rows are appended to benchmarks/results/peers.jsonl; existing rows are computed again only if their number of steps has
changed or their lines were deleted. Trainings resume. The training data must exist; docs/results/README.md has the
commands that create it. unet3d needs `pip install -e '.[peers]'`. benchmarks/results_page.py writes the tables of
docs/results/peers.md.
"""

import argparse
import multiprocessing
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from ablation_table import newest_rows
from bench_ablation import (
    PACK,
    ROOT,
    SHORT_RESOLUTION,
    SPYNET,
    TEST_SEED,
    distances,
    ground_truth_scores,
    make_data,
    reference_at,
    videos_in,
)
from measuring import append_row, check_inputs
from peer_networks import VideoNetwork, averaged, continue_published, fit, generate_unet3d
from torch import Tensor
from tqdm import tqdm

from vidm.checkpoint import checkpoint_path
from vidm.datasets import to_float, to_uint8
from vidm.files import sha256_of
from vidm.generator import load_generator
from vidm.rollout import video_noise
from vidm.runtime import exit_on_user_error, keep_freed_memory
from vidm.sample_config import SampleConfig
from vidm.sampling import sample_folder
from vidm.video_io import write_video
from vidm.world import repeat_first_frames

OUT = ROOT / "results" / "peers"
NUM_VIDEOS = 32
CONTENT_STEPS, MOTION_STEPS = 3000, 4700
BASELINES = ("real", "still")


@dataclass(frozen=True)
class Row:
    """A trained method and the number of its denoising steps: for each frame, or for all frames of unet3d."""

    peer: str
    steps: int


ROWS = {
    "vidm": Row("vidm", 20),
    "published": Row("published", 100),
    "published, in the time of vidm": Row("published", 4),
    "unet3d": Row("unet3d", 50),
    "unet3d, in the time of vidm": Row("unet3d", 1),
}

# Trainings


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def fit_generator(kind: str, steps: int, *flags: str) -> tuple[Path, float]:
    """The checkpoint of vidm's motion or content generator, trained by its script, and the CPU seconds of that."""
    out = OUT / kind
    last, spent = checkpoint_path(out, steps), out / "cpu_seconds.txt"
    if not last.exists():
        script = [sys.executable, str(ROOT / "diffusion_ddp_accum_constant_cu.py"), "--data", str(PACK)]
        where = ["--out", str(out), "--seed", "0", "--resume", "auto", "--total-iters", str(steps)]
        how = ["--save-freq", "500", "--keep", "1", "--compile"]
        before = _children_seconds()
        code = subprocess.run([*script, *where, *how, *flags]).returncode
        if out.exists():
            earlier = float(spent.read_text()) if spent.exists() else 0.0
            spent.write_text(str(earlier + _children_seconds() - before))
        if code:
            raise ValueError(f"the training of vidm's {kind} generator failed; its output is above")
    return last, float(spent.read_text())


def fit_content() -> tuple[Path, float]:
    return fit_generator("content", CONTENT_STEPS, "--preset", "world-content")


def fit_motion() -> tuple[Path, float]:
    # The committed rows are older than the offset noise of the preset.
    flags = ("--preset", "world", "--offset-noise", "0", "--spynet", str(SPYNET))
    return fit_generator("motion", MOTION_STEPS, *flags)


def trained(peer: str) -> tuple[Path, float]:
    """The weights of a peer and the core-minutes of its training, which is run or resumed if necessary."""
    content_seconds = 0.0 if peer == "unet3d" else fit_content()[1]
    if peer == "vidm":
        weights, seconds = fit_motion()
    else:
        weights = OUT / f"{peer}.pt"
        in_own_process(fit, peer, weights)
        seconds = torch.load(weights, weights_only=True)["cpu_seconds"]
    return weights, (content_seconds + seconds) / 60


def num_parameters(peer: str, weights: Path) -> int:
    """The number of parameters that a training of `peer` changes, without those of the content generator."""
    network = load_generator(weights).model if peer == "vidm" else averaged(peer, weights)
    return sum(p.numel() for name, p in network.named_parameters() if not name.startswith("spynet"))


# Videos


def write_videos(out: Path, videos: Tensor) -> None:
    """Write videos (N, T, 3, H, W) in [-1, 1] as sample_folder does."""
    for i, video in enumerate(to_uint8(videos)):
        write_video(out / f"video_{i:05d}.mp4", video, fps=8)


def generate(name: str, weights: Path, first_frames: Path | None, out: Path) -> dict[str, float]:
    """Write a row's videos, which continue the first frames of a folder or, with None, are unconditional.

    Returns the CPU seconds of a video and the peak of this process's memory in MiB."""
    torch.set_num_threads(1)
    keep_freed_memory()
    row, began, noise = ROWS[name], time.process_time(), video_noise(0, range(NUM_VIDEOS))
    content = None if first_frames or row.peer == "unet3d" else fit_content()[0]
    settings = SampleConfig(
        num_samples=NUM_VIDEOS,
        batch_size=NUM_VIDEOS,
        steps=str(row.steps),
        content_steps="50",
        precision="bf16",
        condition_noise=0.0,
    )
    if row.peer == "vidm":
        settings = replace(settings, out=str(out), content=str(first_frames or ""))
        sample_folder(load_generator(weights, content), settings)
    elif row.peer == "unet3d":
        write_videos(out, generate_unet3d(averaged(row.peer, weights), row.steps, noise))
    else:
        if first_frames:
            first = videos_in(first_frames)[:, 0]
        else:
            first = load_generator(fit_motion()[0], content).draw_first_frames(range(NUM_VIDEOS), settings)
        write_videos(out, continue_published(averaged(row.peer, weights), row.steps, to_float(first), noise))
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    return {"seconds": (time.process_time() - began) / NUM_VIDEOS, "peak_mib": peak}


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function that runs in a process of its own, whose memory and CPU time are its alone."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


# Rows


def measure(name: str, first_frames: Path) -> dict[str, Any]:
    """Generate a row's videos and measure them."""
    folder = OUT / name.replace(",", "").replace(" ", "-")
    row: dict[str, Any] = {"row": name, "seed": 0, "weights": ""}
    drawn: Path | None = None
    continued: Path | None = None
    if name == "real":
        drawn = continued = first_frames
    elif name == "still":
        continued = folder
        repeat_first_frames(first_frames, continued)
    else:
        peer, steps = ROWS[name].peer, ROWS[name].steps
        weights, core_minutes = trained(peer)
        digest = sha256_of([weights])
        drawn = folder / digest[:12] / "drawn"
        row |= {"weights": digest, "steps": steps, "core_minutes": core_minutes}
        row |= {"parameters": num_parameters(peer, weights), **in_own_process(generate, name, weights, None, drawn)}
        if peer != "unet3d":
            continued = folder / digest[:12] / "continued"
            in_own_process(generate, name, weights, first_frames, continued)
    if drawn:
        found = distances(drawn, SHORT_RESOLUTION)
        row |= {"drawn_distance": found["distance"], "drawn_kernel": found["kernel"]}
    if continued:
        row |= distances(continued, SHORT_RESOLUTION)
        row |= ground_truth_scores(continued, first_frames, reference_at(SHORT_RESOLUTION)[1])
    return row


def is_current(name: str) -> bool:
    """Whether a committed row has the same number of steps."""
    rows = [row for row in newest_rows("peers") if row["row"] == name]
    return bool(rows) and rows[0].get("steps") == (ROWS[name].steps if name in ROWS else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*BASELINES, *ROWS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="ROW", help=f"rows to add: {', '.join(names)}")
    options = parser.parse_args()
    with exit_on_user_error():
        missing = [name for name in options.only or names if not is_current(name)]
        peers = {ROWS[name].peer for name in missing if name in ROWS}
        if peers:
            check_inputs((PACK, SPYNET))
        if "unet3d" in peers:
            VideoNetwork()  # an error before the other rows if its package is missing
        first_frames = make_data("peers", NUM_VIDEOS, TEST_SEED, SHORT_RESOLUTION)
        for name in missing:
            append_row("peers", measure(name, first_frames))
            tqdm.write(f"{name}: appended")


if __name__ == "__main__":
    main()
