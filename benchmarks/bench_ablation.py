"""python benchmarks/bench_ablation.py [--only NAME ...] [--table]

What is each strategy worth on the embedded world? A row of the table is a way to make videos: real ones, the first
frame repeated, the shipped generator sampled in several ways, and generators trained for the same short time with one
strategy changed. Every row continues the first frames of 64 held-out videos and is measured against 256 others; the
headline rows do so for three sets of 64 and three seeds. For the best of eight, eight more first frames are continued
eight times each, once a row. A row that is there for the same weights is not made again,
and a training that was stopped goes on. Rows are added to benchmarks/results/ablation.jsonl, --table prints the last
of each. The data to train on is made first, by the commands in docs/results/README.md.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ablation_table import HEADLINE_SEEDS, RESULTS, newest_rows, table
from measuring import append_row
from tqdm import tqdm

from vidm.checkpoint import checkpoint_path
from vidm.detectors import load_detector
from vidm.digests import sha256_of
from vidm.frame_metrics import compute_frame_metrics
from vidm.generator import load_generator
from vidm.layouts import index_clips
from vidm.memory import keep_freed_memory
from vidm.metrics import compute_fvd
from vidm.sample_config import SampleConfig
from vidm.sampling import sample_folder
from vidm.synthetic import write_dataset
from vidm.video_io import read_video, write_video
from vidm.world_metrics import WorldScores, displacement_distance, world_of, world_scores

ROOT = Path(__file__).parent.parent
DATA, MADE = ROOT / "data" / "world", ROOT / "results" / "ablation"
WORLD = ROOT / "pretrained_models" / "world" / "motion.safetensors"
PACK, SPYNET = ROOT / "packs" / "world", ROOT / "checkpoints" / "world-flow" / "spynet.pt"
NUM_FRAMES, RESOLUTION = 16, 32
NUM_VIDEOS, NUM_REFERENCE = 64, 256
NUM_BEST, BEST_OF = 8, 8
# Seeds of worlds: 1 is that of the videos to train on, 4 and 5 are the flow's.
REFERENCE_SEED, TEST_SEED, BEST_SEED = 3, 10, 20
SHORT = ("--total-iters", "2000", "--save-freq", "500", "--keep", "1")
STANDARD = {"sampler": "dpm-solver++", "steps": "20", "precision": "bf16"}


@dataclass(frozen=True)
class Row:
    """A way to make videos: the flags of a short training, or none for the shipped generator, and how it is sampled."""

    training: tuple[str, ...] | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 1
    best: bool = False


ROWS = {
    "real": Row(seeds=HEADLINE_SEEDS),
    "still": Row(seeds=HEADLINE_SEEDS),
    "world": Row(seeds=HEADLINE_SEEDS, best=True),
    "noise per frame": Row(sampling={"start_noise": "frame"}, best=True),
    "psi 0": Row(sampling={"psi": 0.0}, best=True),
    "psi 0.25": Row(sampling={"psi": 0.25}),
    "psi 0.5": Row(sampling={"psi": 0.5}),
    "psi 0.75": Row(sampling={"psi": 0.75}),
    "DPM-Solver++, 4 steps": Row(sampling={"steps": "4"}),
    "DPM-Solver++, 10 steps": Row(sampling={"steps": "10"}),
    "DDIM, 4 steps": Row(sampling={"sampler": "ddim", "steps": "4"}),
    "DDIM, 20 steps": Row(sampling={"sampler": "ddim", "steps": "20"}),
    "ancestral, 100 steps": Row(sampling={"sampler": "ddpm", "steps": "100"}),
    "short": Row((), best=True),
    "robust loss": Row(("--loss", "charbonnier"), best=True),
    "no flow": Row(("--flow-range", "none"), best=True),
    "timestep norm": Row(("--norm", "timestep"), best=True),
    "no encoder": Row(("--no-encoder",), best=True),
    "eps": Row(("--prediction", "eps"), best=True),
    "eps, no P2": Row(("--prediction", "eps", "--p2-gamma", "0"), best=True),
    "no condition noise": Row(("--condition-noise", "0"), best=True),
}


def make_data(folder: Path, num_videos: int, seed: int) -> Path:
    """Videos of the embedded world; those that are there stay."""
    write_dataset(folder, num_videos, NUM_FRAMES, RESOLUTION, seed, progress=False)
    return folder


def folder_of(name: str) -> Path:
    return MADE / name.lower().replace(",", "").replace("+", "p").replace(" ", "-")


def train(name: str, flags: Sequence[str]) -> Path:
    """The checkpoint of a row's short training, which goes on from where it was."""
    out = folder_of(name) / "training"
    last = checkpoint_path(out, int(SHORT[1]))
    if not last.exists():
        script = [sys.executable, str(ROOT / "diffusion_ddp_accum_constant_cu.py"), "--preset", "world"]
        where = ["--data", str(PACK), "--spynet", str(SPYNET), "--out", str(out), "--resume", "auto"]
        subprocess.run([*script, *where, *SHORT, *flags], check=True)
    return last


def sample(checkpoint: Path, content: Path, out: Path, num_samples: int, **values: Any) -> None:
    settings = SampleConfig(
        content=str(content), out=str(out), num_samples=num_samples, batch_size=NUM_VIDEOS, **{**STANDARD, **values}
    )
    sample_folder(load_generator(checkpoint), settings)


def videos_in(folder: Path) -> np.ndarray:
    """uint8 (N, T, H, W, 3), in order."""
    return np.stack([read_video(path) for path in index_clips(folder).paths])


def scores_of(made: Path, content: Path) -> WorldScores:
    """What the worlds of `content` say of the videos that continue their first frames, in turn."""
    worlds = [world_of(path) for path in index_clips(content).paths]
    clips = videos_in(made)
    return world_scores([clips[i :: len(worlds)] for i in range(len(worlds))], worlds)


def make_videos(row: Row, checkpoint: Path | None, content: Path, out: Path, seed: int) -> None:
    """A row's videos for a set of first frames; without a checkpoint, the first frame repeated."""
    if checkpoint is None:
        for i, path in enumerate(index_clips(content).paths):
            write_video(out / f"video_{i:05d}.mp4", np.repeat(read_video(path)[:1], NUM_FRAMES, axis=0))
    else:
        sample(checkpoint, content, out, NUM_VIDEOS, seed=seed, **row.sampling)


def measure(made: Path, content: Path, reference: Path, real_moves: np.ndarray) -> dict[str, Any]:
    """Distances, errors by frame and what the worlds tell; of real videos no errors, which are 0."""
    result = compute_fvd(reference, made, load_detector("random"), NUM_FRAMES, resolution=RESOLUTION, kernel=True)
    scores = scores_of(made, content)
    found: dict[str, Any] = {
        "distance": result.value,
        "kernel": result.kernel,
        "detector": result.name,
        "still_there": scores.still_there,
        "colour_kept": scores.colour_kept,
        "shape_kept": scores.shape_kept,
        "shape_overlap": scores.shape_overlap,
        "num_solids": scores.num_solids,
        "centroid_error": scores.centroid_error.tolist(),
        "displacement": displacement_distance(scores.displacements, real_moves),
        "mean_displacement": float(scores.displacements.mean()),
    }
    if made != content:
        frames = compute_frame_metrics(content, made, NUM_FRAMES)
        found |= {"psnr_by_frame": frames.psnr_by_frame, "ssim_by_frame": frames.ssim_by_frame}
    return found


def add_row(name: str, reference: Path, real_moves: np.ndarray) -> None:
    """Measure a row for each of its seeds that is not there."""
    row = ROWS[name]
    generated = name not in ("real", "still")
    checkpoint = (WORLD if row.training is None else train(name, row.training)) if generated else None
    weights = sha256_of([checkpoint]) if checkpoint else ""
    for seed in range(row.seeds):
        if (name, seed, weights) in {(r["row"], r["seed"], r["weights"]) for r in newest_rows()}:
            continue
        content = make_data(DATA / f"test-{seed}", NUM_VIDEOS, TEST_SEED + seed)
        folder = folder_of(name) / weights[:12]
        began = time.perf_counter()
        made = content if name == "real" else folder / f"seed_{seed}"
        if name != "real":
            make_videos(row, checkpoint, content, made, seed)
        seconds = time.perf_counter() - began
        found = measure(made, content, reference, real_moves)
        if row.best and checkpoint and seed == 0:
            best = make_data(DATA / "best", NUM_BEST, BEST_SEED)
            out = folder / f"best_{seed}"
            sample(checkpoint, best, out, NUM_BEST * BEST_OF, seed=seed, **row.sampling)
            found["best_centroid_error"] = scores_of(out, best).centroid_error.tolist()
        how = {"training": list(row.training) if row.training is not None else None, "sampling": dict(row.sampling)}
        append_row("ablation", {"row": name, "seed": seed, "weights": weights, **how, "seconds": seconds, **found})
        tqdm.write(f"{name}, seed {seed}: distance {found['distance']:.3f}, kernel {found['kernel']:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=ROWS, metavar="NAME", help=f"rows to add: {', '.join(ROWS)}")
    parser.add_argument("--table", action="store_true", help="print the table of the rows that are there, and end")
    options = parser.parse_args()
    if options.table:
        print(table(newest_rows()))
        return
    keep_freed_memory()
    reference = make_data(DATA / "reference", NUM_REFERENCE, REFERENCE_SEED)
    real_moves = scores_of(reference, reference).displacements
    for name in options.only or ROWS:
        add_row(name, reference, real_moves)
    print(f"rows are in {RESULTS}")


if __name__ == "__main__":
    main()
