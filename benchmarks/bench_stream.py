"""Does the memory of a generated video grow with its number of frames?

    python benchmarks/bench_stream.py [--frames 100 2000] [--steps 1]

Generates videos of each length with the shipped generator of the embedded world (32 x 32 pixels, an anchor every 8
frames), each in its own process: `stream` drops the frames of Generator.stream, `mp4` writes them with sample_folder.
Prints the peak of resident memory and appends a row to benchmarks/results/stream.jsonl.
"""

import argparse
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from measuring import CPU, append_row, positive
from PIL import Image

from vidm.generator import load_generator
from vidm.sample_config import SampleConfig
from vidm.sampling import sample_folder

MODES = ("stream", "mp4")
MODEL = Path(__file__).parents[1] / "pretrained_models" / "world" / "motion.safetensors"
ANCHOR = 8
MIB = 1 << 20


def generate(mode: str, num_frames: int, steps: int) -> int:
    """The peak of this process's memory in bytes, after one video."""
    generator = load_generator(MODEL, device=CPU)
    first = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    if mode == "stream":
        for _ in generator.stream(first, num_frames, steps=steps, anchor_every=ANCHOR):
            pass
    else:
        with TemporaryDirectory() as folder:
            content, out = Path(folder, "first.png"), Path(folder, "out")
            Image.fromarray(first).save(content)
            length = SampleConfig(num_frames=num_frames, steps=str(steps), anchor_every=ANCHOR)
            sample_folder(generator, replace(length, content=str(content), out=str(out), format=mode))
    # The peak that getrusage reports also contains the memory of the process that started this one.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def in_own_process(mode: str, num_frames: int, steps: int) -> int:
    command = [sys.executable, __file__, "--mode", mode, "--frames", str(num_frames), "--steps", str(steps)]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=positive, nargs="+", default=[100, 2000], help="lengths of videos (100 2000)")
    parser.add_argument("--steps", type=positive, default=1, help="denoising steps per frame (1)")
    parser.add_argument("--mode", choices=MODES, help="generate one video in this way and print the peak in bytes")
    arguments = parser.parse_args()
    if arguments.mode:
        print(generate(arguments.mode, arguments.frames[0], arguments.steps))
        return
    peaks: dict[str, list[float]] = {}
    for mode in MODES:
        peaks[mode] = [round(in_own_process(mode, count, arguments.steps) / MIB, 1) for count in arguments.frames]
        shown = ", ".join(map(str, peaks[mode]))
        print(f"{mode:8} {shown} MiB at {arguments.frames} frames: {peaks[mode][-1] / peaks[mode][0]:.3f} times")
    append_row("stream", {"frames": arguments.frames, "steps": arguments.steps, "peak_mib": peaks})


if __name__ == "__main__":
    main()
