"""How much faster is sampling than with the reference implementation, on a CPU?

    python benchmarks/bench_sampling.py [--only ROW ...] [--repetitions 10]

The motion generator has the paper's size except in the last row:

    128x4, 128x1, 64x8    a denoising step at this size and batch size in fp32; the outputs are equal
    bf16-128x4            the same with weights rounded to bfloat16
    frame-64x4            a frame: 20 steps of DPM-Solver++ with bf16 weights, compared with 100 ancestral steps in fp32
    video-32x4            whole videos of 16 frames with the same samplers and the network of the preset `world`

The reference is benchmarks/reference.py, always in fp32; tests check that its output equals the package's. Both run in
this process and alternate, with a warm-up before each measured step. The package keeps freed memory as its scripts do
(vidm.runtime.keep_freed_memory) and the reference does not, as in the authors' code; further columns are the speed-up
if both keep it and if neither does.
The last column is the FLOP/s of a step divided by those of the fastest convolution in this run; the package executes
fewer FLOPs per step.
Prints a table and appends rows to benchmarks/results/sampling.jsonl.
"""

import argparse
from functools import partial
from statistics import median
from typing import Any

import torch
from measuring import alternating_seconds, append_row, ceiling, filled_pair, flops_of, frames_like, positive, ratio

from vidm.diffusion import GaussianDiffusion
from vidm.layers import constant_index
from vidm.model import MotionGenerator
from vidm.rollout import animate, video_noise
from vidm.rounded_weights import with_bf16_weights
from vidm.runtime import keep_freed_memory
from vidm.samplers import sample_ddpm, sample_dpm_solver

ROWS = {
    "128x4": (128, 4),
    "128x1": (128, 1),
    "64x8": (64, 8),
    "bf16-128x4": (128, 4),
    "frame-64x4": (64, 4),
    "video-32x4": (32, 4),
}
CHAINS = ("frame", "video")
KEPT = ("package", "reference, kept")  # the sides that keep freed memory
NUM_FRAMES = 16
T, FRAME_INDEX = 500, 5
FEW, MANY = GaussianDiffusion(respacing="20"), GaussianDiffusion(respacing="100")


def denoising_step(model: Any, frames: list[torch.Tensor], flow: torch.Tensor | None = None) -> torch.Tensor:
    x_t, previous, first = frames
    given = {} if flow is None else {"flow": flow}
    return model(x_t, constant_index(T, x_t), constant_index(FRAME_INDEX, x_t), previous, first, **given).float()


def package_frame(model: MotionGenerator, frames: list[torch.Tensor]) -> torch.Tensor:
    x_T, previous, first = frames
    condition = {
        "frame_index": constant_index(FRAME_INDEX, x_T),
        "previous": previous,
        "first": first,
        "flow": model.flow(first, previous),
    }
    return sample_dpm_solver(FEW, model, x_T, condition)


def reference_frame(reference: Any, frames: list[torch.Tensor]) -> torch.Tensor:
    x_T, previous, first = frames
    condition = {"frame_index": constant_index(FRAME_INDEX, x_T), "previous": previous, "first": first}
    return sample_ddpm(MANY, reference, x_T, condition)


def package_video(model: MotionGenerator, frames: list[torch.Tensor]) -> torch.Tensor:
    x_T, _, first = frames
    return animate(model, partial(sample_dpm_solver, FEW), first, NUM_FRAMES, video_noise(0, range(len(x_T))))


def reference_video(reference: Any, frames: list[torch.Tensor]) -> torch.Tensor:
    x_T, _, first = frames
    clip = [first]
    for n in range(1, NUM_FRAMES):
        condition = {"frame_index": constant_index(n, x_T), "previous": clip[-1], "first": first}
        clip.append(sample_ddpm(MANY, reference, x_T, condition))
    return torch.stack(clip, dim=1)


def measure(name: str, ours: MotionGenerator, reference: Any, repetitions: int) -> dict[str, Any]:
    size, batch_size = ROWS[name]
    frames = frames_like(batch_size, size)
    if name.startswith("video"):
        ours, reference = filled_pair(preset="world")
    model = with_bf16_weights(ours) if name.startswith(("bf16", *CHAINS)) else ours
    flow = ours.flow(frames[2], frames[1])
    package = partial(denoising_step, model, frames, flow)
    published = partial(denoising_step, reference, frames)
    row: dict[str, Any] = {"row": name, "size": size, "batch_size": batch_size}
    expected, found = published(), package()
    row["max_difference"] = (found - expected).abs().max().item()
    row["relative_l2"] = ((found - expected).norm() / expected.norm()).item()
    if name.startswith(CHAINS):
        chains = {"frame": (package_frame, reference_frame), "video": (package_video, reference_video)}
        own, other = chains[name.split("-")[0]]
        package, published = partial(own, model, frames), partial(other, reference, frames)
        repetitions = min(repetitions, 3)
    else:
        row["flops"] = {"reference": flops_of(published), "package": flops_of(package)}
    sides = {"reference": published, "reference, kept": published, "package": package, "package, not kept": package}
    row["seconds"] = alternating_seconds(
        sides, repetitions, before=lambda side: keep_freed_memory(side in KEPT), warm_up=not name.startswith(CHAINS)
    )
    return row


def table_line(row: dict[str, Any], best: float) -> str:
    seconds = row["seconds"]
    middle, low, high = ratio(seconds, "reference", "package")
    both, _, _ = ratio(seconds, "reference, kept", "package")
    neither, _, _ = ratio(seconds, "reference", "package, not kept")
    reached = ""
    if "flops" in row:
        rates = {side: flops / median(seconds[side]) / best for side, flops in row["flops"].items()}
        reached = f"{rates['reference']:.2f} -> {rates['package']:.2f}"
    times = f"{median(seconds['reference']):.3f} | {median(seconds['package']):.3f}"
    spread = f"{middle:.2f} ({low:.2f} to {high:.2f})"
    return (
        f"| {row['row']} | {times} | {spread} | {both:.2f} | {neither:.2f} | {row['max_difference']:.1e} | {reached} |"
    )


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=f"rows to measure: {', '.join(ROWS)}"
    )
    parser.add_argument(
        "--repetitions",
        type=positive,
        default=10,
        metavar="N",
        help="measurements of each implementation (10; at most 3 for frames and videos)",
    )
    arguments = parser.parse_args()
    ours, reference = filled_pair()
    keep_freed_memory()
    best = {torch.float32: ceiling(torch.float32), torch.bfloat16: ceiling(torch.bfloat16)}
    for dtype, rates in best.items():
        print(f"ceiling, {dtype}: " + ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in rates.items()))
    print(
        "| row | reference, s | package, s | speed-up | both keep | neither keeps | difference | achieved / ceiling |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|", flush=True)
    for name in arguments.only:
        row = measure(name, ours, reference, arguments.repetitions)
        row["ceiling"] = {str(dtype): rates for dtype, rates in best.items()}
        dtype = torch.bfloat16 if name.startswith("bf16") else torch.float32
        print(table_line(row, best[dtype]["convolution"]), flush=True)
        append_row("sampling", row)


if __name__ == "__main__":
    main()
