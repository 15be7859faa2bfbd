"""How fast is the paper-size motion generator on a CUDA GPU, and how much memory does it take?

    python benchmarks/run_gpu.py [--seconds 400]

Measures a denoising step, a video of 16 frames with 20 steps of DPM-Solver++ per frame, and a training step, each in
several precisions, eager, compiled, and with CUDA graphs, in under eight minutes. Measurements of the package and of
the reference (benchmarks/reference.py in fp32 without tf32) alternate, after a warm-up; a video is compared with 100
reference steps per frame. Peak memory is the most that is allocated during one call, including weights and optimizer
state of both implementations. "Achieved / ceiling" is the executed FLOP/s divided by those of the fastest 3x3
convolution or matrix product of this run in the same precision. The most important rows come first. Rows that would
start after --seconds are skipped and listed at the end. Appends rows to benchmarks/results/gpu.jsonl.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from measuring import (
    alternating_seconds,
    append_row,
    ceiling,
    filled_pair,
    flops_of,
    frames_like,
    positive,
    ratio,
    training_step,
)
from reference import update_average

from vidm.checkpoint import build_model
from vidm.config import Config
from vidm.diffusion import GaussianDiffusion
from vidm.ema import EMA
from vidm.generator import with_bf16_weights
from vidm.layers import constant_index
from vidm.presets import PRESETS
from vidm.rollout import animate, video_noise
from vidm.runtime import GIB, autocast, peak_bytes
from vidm.samplers import sample_dpm_solver

# (task, precision, mode)
ROWS = [
    ("step", "fp32", "eager"),
    ("step", "tf32", "eager"),
    ("step", "bf16", "eager"),
    ("step", "bf16-weights", "eager"),
    ("train", "fp32", "eager"),
    ("train", "tf32", "eager"),
    ("train", "bf16", "eager"),
    ("video", "bf16-weights", "eager"),
    ("step", "bf16-weights", "contiguous"),
    ("step", "bf16-weights", "compiled"),
    ("video", "bf16-weights", "compiled"),
    ("step", "bf16-weights", "graphs"),
    ("train", "bf16", "compiled"),
    ("step", "bf16", "compiled"),
    ("step", "tf32", "compiled"),
    ("step", "fp32", "compiled"),
    ("video", "tf32", "eager"),
    ("video", "fp32", "eager"),
]
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "bf16-weights": torch.bfloat16}
FEW = GaussianDiffusion(respacing="20")
NUM_FRAMES = 16


@dataclass
class Bench:
    """The networks and inputs that the rows share."""

    device: torch.device
    size: int
    batch_size: int
    repetitions: int
    preset: str

    def __post_init__(self) -> None:
        self.ours, self.reference = filled_pair(self.device, self.preset)
        self.frames = frames_like(self.batch_size, self.size, self.device)
        self.networks: dict[tuple[str, str], Any] = {}
        self.ceilings: dict[str, dict[str, float]] = {}

    def ceiling(self, precision: str) -> float:
        """The highest measured FLOP/s of this device in a precision."""
        kind = precision.removesuffix("-weights")
        if kind not in self.ceilings:
            with autocast(self.device, "tf32" if kind == "tf32" else "fp32"):
                self.ceilings[kind] = ceiling(DTYPES[precision], self.device)
            print(
                f"ceiling, {kind}: " + ", ".join(f"{k} {v / 1e12:.1f} TFLOP/s" for k, v in self.ceilings[kind].items())
            )
        return max(self.ceilings[kind].values())

    def network(self, precision: str, mode: str) -> Any:
        """The package's network for sampling, which later rows with the same settings reuse."""
        key = ("bf16-weights" if precision == "bf16-weights" else "fp32" if mode == "eager" else precision, mode)
        if key not in self.networks:
            model = with_bf16_weights(self.ours) if precision == "bf16-weights" else self.ours
            if mode == "contiguous":
                model = model.to(memory_format=torch.contiguous_format)
            if mode in ("compiled", "graphs"):
                compile_mode = "reduce-overhead" if mode == "graphs" else "default"
                model = torch.compile(model, dynamic=False, mode=compile_mode)
            self.networks[key] = model
        return self.networks[key]

    def step(self, precision: str, mode: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
        """A denoising step of the package, with a given flow, and of the reference."""
        network, (x_t, previous, first) = self.network(precision, mode), self.frames
        flow = self.ours.flow(first, previous)
        condition = {"frame_index": constant_index(5, x_t), "previous": previous, "first": first}

        def package() -> torch.Tensor:
            with torch.no_grad(), autocast(self.device, precision):
                return network(x_t, constant_index(500, x_t), **condition, flow=flow).float()

        def published() -> torch.Tensor:
            with torch.no_grad(), autocast(self.device, "fp32"):
                return self.reference(x_t, constant_index(500, x_t), **condition)

        return package, published

    def video(self, precision: str, mode: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
        """A batch of videos by the package, and one denoising step of the reference, which needs 100 per frame."""
        network, first = self.network(precision, mode), self.frames[2]
        noise = video_noise(0, range(self.batch_size), self.device)

        def package() -> torch.Tensor:
            with autocast(self.device, precision):
                return animate(network, partial(sample_dpm_solver, FEW), first, NUM_FRAMES, noise)

        return package, self.step("fp32", "eager")[1]

    def train(self, precision: str, mode: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
        """A training step, including optimizer and averaged weights, of the package and of the reference."""
        package, published = filled_pair(self.device, self.preset)
        ema, shadow = EMA(package, 0.999), {name: tensor.clone() for name, tensor in published.state_dict().items()}
        fused = torch.optim.AdamW(package.parameters(), lr=1e-6, weight_decay=0.0, fused=True)
        plain = torch.optim.AdamW(published.parameters(), lr=1e-6, weight_decay=0.0, foreach=False, fused=False)
        network: Any = torch.compile(package) if mode == "compiled" else package
        return (
            partial(training_step, network, fused, lambda: ema.update(package), self.frames, precision),
            partial(training_step, published, plain, lambda: update_average(shadow, published, 0.999), self.frames),
        )

    def measure(self, task: str, precision: str, mode: str) -> dict[str, Any]:
        """A row with the seconds of both, and the peak memory, FLOPs and relative difference of the package."""
        package, published = getattr(self, task)(precision, mode)
        row: dict[str, Any] = {"task": task, "precision": precision, "mode": mode, "size": self.size}
        row["batch_size"] = self.batch_size
        if task == "step":
            row["difference"] = ((package() - published()).norm() / published().norm()).item()
        repetitions = 3 if task == "video" else self.repetitions
        row["seconds"] = alternating_seconds(
            {"reference": published, "package": package}, repetitions, self.device, warm_up=task != "video"
        )
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        package()
        row["peak_bytes"] = peak_bytes(self.device)
        if task == "step":
            # FLOPs are counted in the eager network, because compilation does not change the products.
            row["flops"] = flops_of(self.step(precision, "eager")[0])
            rate = row["flops"] / median(row["seconds"]["package"])
            row["ceiling"] = self.ceiling(precision)
            row["achieved"] = rate / row["ceiling"]
        return row


def table_line(row: dict[str, Any]) -> str:
    own = median(row["seconds"]["package"])
    middle, low, high = ratio(row["seconds"], "reference", "package")
    if row["task"] == "video":
        steps = 100 * (NUM_FRAMES - 1)
        middle, low, high = (steps * value for value in (middle, low, high))
    cells = [
        f"{row['task']}, {row['precision']}, {row['mode']}",
        f"{own:.4f}",
        f"{middle:.2f} ({low:.2f} to {high:.2f})",
        f"{row['peak_bytes'] / GIB:.2f}",
        f"{row['achieved']:.2f}" if "achieved" in row else "",
        f"{row['difference']:.1e}" if "difference" in row else "",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    began = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=400, help="time after which no row starts (400)")
    parser.add_argument(
        "--repetitions",
        type=positive,
        default=10,
        metavar="N",
        help="measurements of each implementation (10; video: 3)",
    )
    parser.add_argument("--size", type=positive, default=128, metavar="R", help="pixels per side (128)")
    parser.add_argument("--batch-size", type=positive, default=4, metavar="N", help="samples per step (4)")
    parser.add_argument(
        "--device",
        choices=("cuda", "cpu"),
        default="cuda",
        help="cuda (default), or cpu to test this script without compiled rows",
    )
    parser.add_argument("--preset", choices=PRESETS, default="paper128", help="preset of the network (paper128)")
    parser.add_argument("--results", default="gpu", metavar="NAME", help="append rows to results/NAME.jsonl (gpu)")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA GPU found; --device cpu tests the script without one")
    multiple = build_model(Config.from_preset(arguments.preset)).shape.side_multiple
    if arguments.size % multiple:
        parser.error(f"--size {arguments.size}: {arguments.preset} needs a multiple of {multiple}")
    bench = Bench(device, arguments.size, arguments.batch_size, arguments.repetitions, arguments.preset)
    print(f"{torch.cuda.get_device_name(device) if device.type == 'cuda' else 'cpu'}; times are the package's")
    print("| row | s | speed-up | peak GiB | achieved / ceiling | relative difference |\n|---|--:|--:|--:|--:|--:|")
    skipped = []
    for task, precision, mode in ROWS:
        compiled = mode in ("compiled", "graphs")
        if time.perf_counter() - began > arguments.seconds or (compiled and device.type == "cpu"):
            skipped.append(f"{task} {precision} {mode}")
            continue
        row = bench.measure(task, precision, mode)
        print(table_line(row), flush=True)
        append_row(arguments.results, row, device)
    if skipped:
        print(f"skipped: {', '.join(skipped)}")


if __name__ == "__main__":
    main()
