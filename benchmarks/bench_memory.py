"""How much memory do the activations of a training step take, with and without activation checkpointing?

    python benchmarks/bench_memory.py [--repetitions 3] [--image-size 128] [--batch-size 2]

Compares the reference implementation (benchmarks/reference.py) with the package for the paper's motion generator, on a
CPU in fp32. Each step runs in its own process, and the variants alternate. Weights, gradients, AdamW's moments and
averaged weights are allocated before the step; the measured value is the peak of resident memory during the step minus
the resident memory before it. Prints a table and appends a row to benchmarks/results/memory.jsonl.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import torch
from measuring import append_row
from reference import ReferenceMotionGenerator
from torch import nn

from vidm.checkpoint import build_diffusion, build_model
from vidm.config import Config
from vidm.ema import EMA
from vidm.runtime import GIB, num_bytes, peak_bytes
from vidm.unet import set_activation_checkpointing

VARIANTS = ("reference", "none", "posgn", "full")
CPU = torch.device("cpu")
# Freed blocks are returned to the system at once, so that resident memory equals memory in use.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def one_step(variant: str, image_size: int, batch_size: int) -> dict[str, float]:
    """The bytes and seconds of a step, after a tiny step that allocates gradients, moments and averaged weights."""
    config = Config.from_preset("paper128")
    package = build_model(config)
    model: nn.Module = ReferenceMotionGenerator(package.shape) if variant == "reference" else package
    if variant != "reference":
        set_activation_checkpointing(package, variant)
    diffusion = build_diffusion(config)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False, fused=variant != "reference")
    ema = EMA(model, config.train.ema_decay)

    def step(size: int, samples: int) -> None:
        frames = torch.randn(3, samples, 3, size, size)
        condition = {"first": frames[0], "previous": frames[1], "frame_index": torch.full((samples,), 5)}
        t = torch.full((samples,), 500)
        diffusion.training_losses(model, frames[2], t, torch.randn_like(frames[2]), condition)["loss"].mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        ema.update(model)

    step(32, 1)
    parameters = list(model.parameters())
    moments = [value for state in optimizer.state.values() for value in state.values()]
    held = num_bytes(parameters) * 2 + num_bytes(moments) + num_bytes(ema.state_dict().values())
    before, began = resident_bytes(), time.perf_counter()
    step(image_size, batch_size)
    return {"held": held, "rest": peak_bytes(CPU) - before, "seconds": time.perf_counter() - began}


def in_own_process(variant: str, arguments: argparse.Namespace) -> dict[str, float]:
    sizes = ["--image-size", str(arguments.image_size), "--batch-size", str(arguments.batch_size)]
    command = [sys.executable, __file__, "--variant", variant, *sizes]
    return json.loads(subprocess.run(command, env=os.environ | MALLOC, check=True, stdout=subprocess.PIPE).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3, metavar="N", help="steps of each variant (3)")
    parser.add_argument("--image-size", type=int, default=128, metavar="R", help="pixels per side (128)")
    parser.add_argument("--batch-size", type=int, default=2, metavar="N", help="samples per step (2)")
    parser.add_argument("--variant", choices=VARIANTS, help="run one step of this variant and print its result as JSON")
    arguments = parser.parse_args()
    if arguments.variant:
        print(json.dumps(one_step(arguments.variant, arguments.image_size, arguments.batch_size)))
        return
    found: dict[str, list[dict[str, float]]] = {variant: [] for variant in VARIANTS}
    for _ in range(arguments.repetitions):
        for variant in VARIANTS:
            found[variant].append(in_own_process(variant, arguments))
    rest = {variant: median(row["rest"] for row in rows) for variant, rows in found.items()}
    held = found["none"][0]["held"]
    print(
        f"weights, gradients, AdamW, averaged weights: {held / GIB:.2f} GiB; additional memory at the peak of a step:"
    )
    for variant, rows in found.items():
        values = [row["rest"] / GIB for row in rows]
        seconds = median(row["seconds"] for row in rows)
        print(
            f"  {variant:9} {rest[variant] / GIB:.2f} GiB ({min(values):.2f} to {max(values):.2f}), "
            f"{rest[variant] / rest['reference']:.2f} of the reference; {seconds:.0f} s"
        )
    row = {
        "image_size": arguments.image_size,
        "batch_size": arguments.batch_size,
        "held_bytes": held,
        "rest_bytes": {variant: [row["rest"] for row in rows] for variant, rows in found.items()},
        "seconds": {variant: [round(row["seconds"], 1) for row in rows] for variant, rows in found.items()},
    }
    append_row("memory", row)


if __name__ == "__main__":
    main()
