"""Does a run survive being killed at any moment, and is every damaged file reported?

    python benchmarks/soak.py [--kills 300] [--files 3000] [--seed 0] [--folder /tmp/vidm-soak]

Two parts, in series of up to ten kills and of fifty files. A tiny training is killed at random moments, resumed, and at
its end compared bit for bit with a run that nobody killed. Files of every format that the project reads are damaged
(flipped bytes, truncation, zeros) and read by the dataset check, by training and by evaluation, which may report the
damage but not print a traceback, hang for a minute, or silently return another number of frames, or other contents of a
format with checksums. Formats without checksums cannot show that pixels changed; such files are counted.

Each series appends a row to benchmarks/results/soak.jsonl. A stopped soak continues: series whose seeds have rows are
not repeated. Exits with 1 if anything failed. Everything runs in forks of one process, so that nothing is imported
twice; --folder is not removed, so that a failure can be looked at.
"""

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from measuring import HERE, append_row
from PIL import Image

from vidm.checkpoint import checkpoint_path, latest_checkpoint, load_checkpoint
from vidm.checkpoint_formats import load_any, save_safetensors
from vidm.cli_evaluate import evaluate_fvd_main
from vidm.config import Config
from vidm.datasets import FrameTriplets
from vidm.layouts import index_clips
from vidm.packs import read_frames, write_pack
from vidm.resume import newest_that_verifies
from vidm.runtime import exit_on_user_error
from vidm.trainer import Trainer
from vidm.training_run import fit
from vidm.video_io import read_video, write_video
from vidm.world import write_dataset

sys.path.append(str(HERE.parent / "scripts"))
import check_dataset

CPU = torch.device("cpu")
KILLS, FILES = 10, 50  # of a series
NUM_CLIPS, NUM_FRAMES, SIZE, STEPS = 3, 6, 16, 40
LIMIT_S = 60.0
CONTAINERS = {".mkv": "libx264", ".avi": "mpeg4", ".webm": "libvpx-vp9"}
IMAGES = (".gif", ".webp", ".png", ".jpg")
# The files that are damaged; others, such as the ground truth next to a video, are not read.
READ = (".mp4", ".npy", *IMAGES, *CONTAINERS, ".tar", ".table", ".pt", ".safetensors", ".sqlite")
SETTINGS = ("vidm-pack.json", "weights.json")
CHECKSUMMED = ("png", "pack", "raw-pack", "checkpoint")
REPORTS = re.compile(r"skipped: |[1-9]\d* skipped|error: |cannot be decoded|replaced by")


def forked(work: Callable[[], None], output: Path) -> int:
    """Start work() in a fork whose stdout and stderr go to a file; return its process id."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    code = 70
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        with exit_on_user_error():
            work()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def finished(work: Callable[[], None], output: Path, limit_s: float = LIMIT_S) -> tuple[int | None, str]:
    """The exit code of work() in a fork, None if it hangs, and what it printed."""
    pid, deadline = forked(work, output), time.monotonic() + limit_s
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), output.read_text(errors="replace")
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None, output.read_text(errors="replace")


def required(work: Callable[[], None], output: Path) -> str:
    """What work() printed in a fork; raises RuntimeError if it failed."""
    code, printed = finished(work, output, limit_s=20 * LIMIT_S)
    if code:
        raise RuntimeError(printed)
    return printed


# Kills


def config_of(folder: Path, out: str, workers: int) -> Config:
    values = {"image_size": SIZE, "batch_size": 2, "video_timesteps": NUM_FRAMES, "total_iters": STEPS, "save_freq": 1}
    paths = {"data": str(folder / "good" / "mp4"), "out": str(folder / out), "workers": workers}
    return Config.from_preset("tiny").replaced({**values, **paths, "keep": 2, "print_freq": 10, "test_freq": 0})


def train(config: Config) -> None:
    fit(Trainer(config, CPU, newest_that_verifies(config.train.out)))


def print_digest(path: Path) -> None:
    """Print the sha256 of a checkpoint's weights, averaged weights and moments."""
    found, digest = load_any(path), hashlib.sha256()
    moments = [value for _, state in sorted(found.optimizer.get("state", {}).items()) for value in state.values()]
    for tensor in (*found.state_dict.values(), *found.ema_state_dict.values(), *moments):
        digest.update(tensor.contiguous().numpy().tobytes())
    print("digest", found.step, digest.hexdigest())


def wait_for_a_moment(out: Path, rng: random.Random) -> None:
    """Sleep until a checkpoint is being written, until some time after a new one, or for up to two seconds."""
    before, deadline = latest_checkpoint(out), time.monotonic() + LIMIT_S
    moment = rng.choice(("writing", "after", "any"))
    while moment != "any" and time.monotonic() < deadline:
        writing, new = any(out.glob(".checkpoint_*")), latest_checkpoint(out) != before
        if new or (writing and moment == "writing"):
            break
        time.sleep(0.001)
    time.sleep(rng.uniform(0, {"writing": 0.05, "after": 1.0, "any": 2.0}[moment]))


def printed_digest(path: Path, output: Path) -> str:
    return required(lambda: print_digest(path), output)


def kill_series(folder: Path, seed: int, count: int) -> dict[str, Any]:
    """Kill a run up to `count` times, finish it, and compare its last checkpoint with that of an undisturbed run."""
    rng, output = random.Random(seed), folder / "printed.txt"
    undisturbed, last = folder / "undisturbed", f"checkpoint_{STEPS:08d}.pt"
    if not (undisturbed / last).exists():
        required(lambda: train(config_of(folder, "undisturbed", 0)), output)
    failures: list[str] = []
    config, kills = config_of(folder, "killed", seed % 3), 0
    shutil.rmtree(folder / "killed", ignore_errors=True)
    for _ in range(count):
        pid = forked(lambda: train(config), output)
        wait_for_a_moment(folder / "killed", rng)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            break  # it ended before, and the next run says how
        kills += 1
    ended, printed = finished(lambda: train(config), output, limit_s=20 * LIMIT_S)
    if ended != 0:
        failures.append(f"exit code {ended}: {printed[-500:]}")
    elif printed_digest(undisturbed / last, output) != printed_digest(folder / "killed" / last, output):
        failures.append("the result differs from that of an undisturbed run")
    if left := [path.name for path in (folder / "killed").glob(".checkpoint*")]:
        failures.append(f"left behind: {left}")
    return {"row": "kills", "kills": kills, "workers": seed % 3, "failures": failures}


# Damage


def encode(path: Path, frames: np.ndarray) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(CONTAINERS[path.suffix], rate=25)
        stream.height, stream.width, stream.pix_fmt = SIZE, SIZE, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def make_good(folder: Path) -> None:
    """Write data sets of three clips, one for each format, and two checkpoints, weights and cached features."""
    write_dataset(folder / "mp4", NUM_CLIPS, NUM_FRAMES, SIZE, progress=False)
    for number, source in enumerate(sorted((folder / "mp4").rglob("*.mp4"))):
        frames, name = read_video(source), f"clip{number}"
        for suffix in (".gif", ".webp", ".npy"):
            write_video(folder / suffix[1:] / f"{name}{suffix}", frames)
        write_video(folder / "png" / name, frames)
        for suffix in CONTAINERS:
            (folder / suffix[1:]).mkdir(exist_ok=True)
            encode(folder / suffix[1:] / f"{name}{suffix}", frames)
        (folder / "jpg" / name).mkdir(parents=True)
        for i, frame in enumerate(frames):
            Image.fromarray(frame).save(folder / "jpg" / name / f"{i:05d}.jpg")
    for kind in ("pack", "raw-pack"):
        with write_pack(folder / kind) as pack:
            for source in sorted((folder / "mp4").rglob("*.mp4")):
                if kind == "pack":
                    pack.add_encoded(source.name, source)
                else:
                    pack.add_raw(source.name, read_video(source))
    config = config_of(folder.parent, "good/checkpoint", 0).replaced({"total_iters": 2})
    train(config)
    weights = load_checkpoint(checkpoint_path(folder / "checkpoint", 2))
    save_safetensors(folder / "safetensors" / "weights.safetensors", weights)
    evaluate(folder, folder / "png", folder / "features")


def evaluate(good: Path, generated: Path, cache: Path | None = None) -> None:
    flags = ["-dir1", str(good / "mp4"), "-dir2", str(generated), "-i3d", "random", "-n", str(NUM_FRAMES), "-r", "16"]
    evaluate_fvd_main([*flags, "--workers", "1", *(["--cache", str(cache)] if cache else [])])


def check(data: Path, out: Path) -> None:
    sys.argv = ["check_dataset.py", str(data), "--out", str(out / "sheet.png")]
    sys.exit(check_dataset.main())


def read_samples(data: Path) -> None:
    """Read what a training reads: the index, and a sample of each video."""
    index = index_clips(data, min_frames=NUM_FRAMES)
    if index.skipped:
        print(*index.skipped_message().splitlines(), sep="\n")
    samples = FrameTriplets(index, SIZE, NUM_FRAMES, seed=0)
    for i in range(len(samples)):
        samples[0, i]


def print_contents(data: Path) -> None:
    """Print each clip's number of frames and the sha256 of its pixels."""
    index = index_clips(data)
    for path, count in zip(index.paths, index.num_frames, strict=True):
        print("clip", count, hashlib.sha256(read_frames(path, range(count)).tobytes()).hexdigest())


def damage(path: Path, rng: random.Random) -> str:
    """Change a file's bytes; return how."""
    content = bytearray(path.read_bytes())
    how = rng.choice(("1 byte flipped", "16 bytes flipped", "truncated", "zeros")) if content else "empty"
    if how.endswith("flipped"):
        for _ in range(int(how.split()[0])):
            content[rng.randrange(len(content))] ^= rng.randrange(1, 256)
    elif how == "truncated":
        del content[rng.randrange(len(content)) :]
    elif how == "zeros":
        start = rng.randrange(len(content))
        content[start : start + 512] = bytes(len(content[start : start + 512]))
    path.write_bytes(content)
    return how


def facts(printed: str) -> list[str]:
    """The lines that have to be the same for the same contents: digests, frames, and the distance."""
    return [line for line in printed.splitlines() if line.startswith(("clip", "digest", "random Frechet"))]


def readings_of(kind: str, good: Path, case: Path) -> list[Callable[[], None]]:
    """The ways to read a data set or file; the last one prints facts."""
    if kind == "checkpoint":
        return [lambda: print_digest(Path(newest_that_verifies(case).source))]  # type: ignore[union-attr]
    if kind == "safetensors":
        return [lambda: print_digest(case / "weights.safetensors")]
    if kind == "features":
        return [lambda: evaluate(good, good / "png", case)]
    out = good.parent
    return [
        lambda: check(case, out),
        lambda: read_samples(case),
        lambda: evaluate(good, case),
        lambda: print_contents(case),
    ]


def outcome(kind: str, good: Path, case: Path, output: Path) -> str:
    """reported, same, or changed (which the format cannot show); anything else is a failure."""
    reported, printed = False, ""
    for read in readings_of(kind, good, case):
        code, printed = finished(read, output)
        if code not in (0, 1, 2) or "Traceback" in printed:
            return f"hang: {printed[-500:]}" if code is None else f"exit code {code}: {printed[-800:]}"
        reported = reported or code != 0 or bool(REPORTS.search(printed))
    if reported:
        return "reported"
    expected = facts((good.parent / f"facts-{kind}.txt").read_text())
    found = facts(printed)
    if found == expected:
        return "same"
    counts = [line.split()[:2] for line in found] == [line.split()[:2] for line in expected]
    return "changed" if counts and kind not in CHECKSUMMED else f"silently other contents: {found}, not {expected}"


def damage_series(folder: Path, seed: int, count: int) -> dict[str, Any]:
    """Damage `count` files, one at a time, and read each in every way."""
    rng, output, good, case = random.Random(seed), folder / "printed.txt", folder / "good", folder / "case"
    kinds = sorted(path.name for path in good.iterdir())
    outcomes: Counter[str] = Counter()
    failures = []
    for _ in range(count):
        kind = rng.choice(kinds)
        shutil.rmtree(case, ignore_errors=True)
        shutil.copytree(good / kind, case)
        files = (path for path in case.rglob("*") if path.suffix in READ or path.name in SETTINGS)
        path = rng.choice(sorted(path for path in files if path.is_file()))
        how = f"{kind}/{path.relative_to(case)}, {damage(path, rng)}"
        found = outcome(kind, good, case, output)
        outcomes[found if found in ("reported", "same", "changed") else "failed"] += 1
        if found not in ("reported", "same", "changed"):
            failures.append(f"{how}: {found}")
            print(failures[-1], file=sys.stderr)
            shutil.copytree(case, folder / f"failure-{seed}-{len(failures)}")
    return {"row": "damage", "files": count, "outcomes": dict(outcomes), "failures": failures}


def prepare(folder: Path) -> None:
    """Make the undamaged files and note what reading them gives, unless that is done."""
    if (folder / "facts-png.txt").exists():
        return
    shutil.rmtree(folder / "good", ignore_errors=True)
    required(lambda: make_good(folder / "good"), folder / "printed.txt")
    for path in sorted((folder / "good").iterdir(), key=lambda path: path.name == "png"):  # png is the last one
        *_, read = readings_of(path.name, folder / "good", path)
        (folder / f"facts-{path.name}.txt").write_text(required(read, folder / "printed.txt"))
        found = outcome(path.name, folder / "good", path, folder / "printed.txt")
        if found != "same":
            raise RuntimeError(f"undamaged {path.name}: {found}, {(folder / 'printed.txt').read_text()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300, metavar="N", help="kills in series of ten (300)")
    parser.add_argument("--files", type=int, default=3000, metavar="N", help="damaged files in series of fifty (3000)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the first series (0)")
    default = Path(tempfile.gettempdir(), "vidm-soak")
    parser.add_argument("--folder", type=Path, default=default, metavar="DIR", help="files in use (TMP/vidm-soak)")
    parser.add_argument("--results", default="soak", metavar="NAME", help="rows go to results/NAME.jsonl (soak)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    os.environ["XDG_CACHE_HOME"] = str(options.folder / "cache")
    prepare(options.folder)
    rows, done = HERE / "results" / f"{options.results}.jsonl", set()
    if rows.exists():
        done = {(row["row"], row["seed"]) for row in map(json.loads, rows.read_text().splitlines())}
    failed = 0
    for kind, series, wanted, size in (
        ("kills", kill_series, options.kills, KILLS),
        ("damage", damage_series, options.files, FILES),
    ):
        for start in range(0, wanted, size):
            seed, began = options.seed + start // size, time.monotonic()
            if (kind, seed) in done:
                continue
            row = {**series(options.folder, seed, min(size, wanted - start)), "seed": seed}
            seconds = round(time.monotonic() - began, 1)
            append_row(options.results, {**row, "seconds": seconds})
            failed += len(row["failures"])
            print(json.dumps(row), f"{seconds} s", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
