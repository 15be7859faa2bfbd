"""How much faster is a training step than with the reference implementation, on a CPU?

    python benchmarks/bench_step.py [--repetitions 10]

A step of the paper-size motion generator at 64 x 64 with batch size 2 consists of loss, gradient, clipping, AdamW and
averaged weights. The reference (benchmarks/reference.py, in fp32) updates tensors one by one; the package uses fused
AdamW and foreach averaging, in fp32 and in bf16. Both run in this process and alternate, with a warm-up before each
measurement. The package keeps freed memory as its scripts do and the reference does not; further columns are the
speed-up if both keep it and if neither does.
Prints a table and appends a row to benchmarks/results/step.jsonl. bench_memory.py measures the memory of a step.
"""

import argparse
from functools import partial
from statistics import median

import torch
from measuring import alternating_seconds, append_row, filled_pair, frames_like, positive, ratio, training_step
from reference import update_average

from vidm.ema import EMA
from vidm.runtime import keep_freed_memory

SIZE, BATCH = 64, 2
DECAY = 0.999


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--repetitions", type=positive, default=10, metavar="N", help="measurements of each implementation (10)"
    )
    arguments = parser.parse_args()
    ours, reference = filled_pair()
    frames = frames_like(BATCH, SIZE)
    fused = torch.optim.AdamW(ours.parameters(), lr=1e-6, weight_decay=0.0, fused=True)
    plain = torch.optim.AdamW(reference.parameters(), lr=1e-6, weight_decay=0.0, foreach=False, fused=False)
    ema, shadow = EMA(ours, DECAY), {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    package = partial(training_step, ours, fused, lambda: ema.update(ours), frames)
    sides = {
        "reference": partial(training_step, reference, plain, lambda: update_average(shadow, reference, DECAY), frames),
        "fp32": partial(package, "fp32"),
        "bf16": partial(package, "bf16"),
        "fp32, not kept": partial(package, "fp32"),
        "bf16, not kept": partial(package, "bf16"),
    }
    sides["reference, kept"] = sides["reference"]
    kept = ("fp32", "bf16", "reference, kept")
    found = alternating_seconds(sides, arguments.repetitions, before=lambda side: keep_freed_memory(side in kept))
    print(f"reference: {median(found['reference']):.2f} s per step")
    print("| package | s per step | speed-up | both keep | neither keeps |\n|---|--:|--:|--:|--:|")
    for side in ("fp32", "bf16"):
        middle, low, high = ratio(found, "reference", side)
        both, _, _ = ratio(found, "reference, kept", side)
        neither, _, _ = ratio(found, "reference", f"{side}, not kept")
        speed_up = f"{middle:.2f} ({low:.2f} to {high:.2f})"
        print(f"| {side} | {median(found[side]):.2f} | {speed_up} | {both:.2f} | {neither:.2f} |")
    append_row("step", {"size": SIZE, "batch_size": BATCH, "seconds": found})


if __name__ == "__main__":
    main()
