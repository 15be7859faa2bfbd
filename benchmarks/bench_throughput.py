"""How many samples a second does a small preset train on one CPU core?

    python benchmarks/bench_throughput.py [--preset world] [--repetitions 10]

Optimizer steps of a small preset on random frames, on one thread: in fp32, in bf16, in bf16 with the flow given (what a
training with the flow computed in advance would take), and compiled in bf16 (`--compile`, which needs a C++ compiler).
Times are CPU time and the variants alternate, so that
other work on the machine affects them little. Prints a table and appends a row to benchmarks/results/throughput.jsonl.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from measuring import append_row, frames_like, positive, training_step
from tqdm import tqdm

from vidm.checkpoint import build_model
from vidm.config import Config
from vidm.ema import EMA
from vidm.model import MotionGenerator
from vidm.runtime import check_compiler, exit_on_user_error, keep_freed_memory
from vidm.trainer import compile_network

BASELINE = "fp32"


def variants(config: Config) -> dict[str, Callable[[], None]]:
    """One optimizer step of the motion generator by variant."""
    frames = frames_like(config.train.batch_size, config.model.image_size)

    def step_of(precision: str, flow_given: bool = False, compiled: bool = False) -> Callable[[], None]:
        model = build_model(config)
        assert isinstance(model, MotionGenerator)
        model.spynet.requires_grad_(False)
        if flow_given:
            flow = model.flow(frames[2], frames[1])
            model.flow = lambda first, previous: flow  # type: ignore[method-assign]
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        ema, optimizer = EMA(model, 0.999), torch.optim.AdamW(trained, lr=1e-6, weight_decay=0.0, fused=True)
        if compiled:
            compile_network(model)
        return partial(training_step, model, optimizer, lambda: ema.update(model), frames, precision)

    return {
        BASELINE: step_of("fp32"),
        "bf16": step_of("bf16"),
        "bf16, flow given": step_of("bf16", flow_given=True),
        "bf16, compiled": step_of("bf16", compiled=True),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=("tiny", "demo", "world"), default="world", help="the preset (world)")
    parser.add_argument("--repetitions", type=positive, default=10, metavar="N", help="steps of each variant (10)")
    arguments = parser.parse_args()
    with exit_on_user_error():
        check_compiler(torch.device("cpu"))
        config = Config.from_preset(arguments.preset)
    keep_freed_memory()
    torch.set_num_threads(1)
    steps = variants(config)
    found: dict[str, list[float]] = {name: [] for name in steps}
    for name, step in steps.items():
        for _ in tqdm(range(2), desc=f"warming up: {name}", leave=False):
            step()
    for _ in tqdm(range(arguments.repetitions), desc="measuring", leave=False):
        for name, step in steps.items():
            began = time.process_time()
            step()
            found[name].append(time.process_time() - began)
    print(f"| {arguments.preset} | samples/s | speed-up |\n|---|--:|--:|")
    for name, seconds in found.items():
        speed_up = median(slow / fast for slow, fast in zip(found[BASELINE], seconds, strict=True))
        print(f"| {name} | {config.train.batch_size / median(seconds):.1f} | {speed_up:.2f} |")
    append_row("throughput", {"preset": arguments.preset, "batch_size": config.train.batch_size, "cpu_seconds": found})


if __name__ == "__main__":
    main()
