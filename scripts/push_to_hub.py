"""python scripts/push_to_hub.py MOTION OWNER/NAME [--content CKPT] [--measured FILE ...] [--dry-run FOLDER]

Uploads generators to a repository on the Hugging Face Hub, which --resume hf:OWNER/NAME then names. The repository has
motion.safetensors, with --content content.safetensors, their settings as .json, and a model card, README.md, with the
settings and the measurements of --measured. Checkpoints of other formats are converted. With --dry-run, the files are
written to a new folder, and nothing is uploaded.
"""

import json
import re
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vidm.interrupts import one_line_on_interrupt

if __name__ == "__main__":
    one_line_on_interrupt()  # before imports that take seconds

from vidm import __version__
from vidm.checkpoint import Checkpoint, check_generator, load_model
from vidm.checkpoint_formats import load_any, save_safetensors
from vidm.config import Config
from vidm.console import CommandParser, given_path, printable, short
from vidm.files import atomic_dir, read_json, regular_file, sha256_of
from vidm.frame_size import size_text
from vidm.hub import PREFIX, files_of, publish
from vidm.resume import BEGINNING, PLACES
from vidm.runtime import exit_on_user_error

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
from ablation_table import table

# Paths of the machine that trained, and settings that do not change the weights.
NOT_SHOWN = (*PLACES, *BEGINNING, "workers", "compile", "print_freq", "test_freq", "eval_freq", "save_freq", "keep")
CARD = """---
{license}library_name: vidm
pipeline_tag: image-to-video
tags:
- video-generation
- diffusion
---

# {repository}

Generators of VIDM (video implicit diffusion models), which generate a video frame by frame.

{files}

Weights are averaged over the training. Each file has its settings in a .json of the same name; nothing here is code.

## Use

With VIDM and the package huggingface_hub:

```python
import vidm

generator = vidm.load_generator({arguments})
video = generator.animate("first.png")  # uint8 (frames, height, width, 3)
```

```bash
vidm-sample --resume {name} --content first.png --out results/continued
{unconditional}```

## Settings

Those that differ from the defaults of VIDM {version}:

{settings}
{measurements}"""
UNCONDITIONAL = "vidm-sample --resume {name} --content-resume {name} --out results/from-scratch\n"


def write_weights(source: Path, folder: Path, generator: str, half: bool, video_timesteps: int | None) -> Checkpoint:
    """Write the averaged weights and the settings of a checkpoint under the names that they have in a repository.

    Files of .safetensors are copied, because benchmarks name the weights that they measured by the digest of the file.
    """
    checkpoint = load_any(source, video_timesteps, generator=generator)
    check_generator(checkpoint, generator)
    load_model(checkpoint.config, checkpoint.ema_state_dict, checkpoint.source)
    settings, weights = (folder / name for name in files_of(generator))
    read = Path(checkpoint.source)
    if read.suffix == ".safetensors" and not half:
        shutil.copyfile(read, weights)
        shutil.copyfile(read.with_suffix(".json"), settings)
    else:
        save_safetensors(weights, checkpoint, half)
    return checkpoint


def rows_of(heading: Iterable[str], lines: Iterable[Iterable[object]]) -> str:
    """A table in Markdown."""
    heading = list(heading)
    cells = ([printable(str(cell)).replace("|", r"\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in (heading, ["---"] * len(heading), *cells))


def files_table(checkpoints: Mapping[str, Checkpoint], folder: Path) -> str:
    """What the files of a repository contain."""
    lines = []
    for generator, checkpoint in checkpoints.items():
        file, model = folder / files_of(generator)[1], checkpoint.config.model
        size = size_text(model.image_size)
        makes = f"first frames of {size}"
        if generator == "motion":
            makes = f"videos of {model.video_timesteps} frames of {size} from first frames"
        weights = sum(tensor.numel() for tensor in checkpoint.ema_state_dict.values())
        bits = round(8 * file.stat().st_size / weights)
        lines.append(
            [file.name, f"{generator} generator: {makes}", f"{weights:,} of {bits} bits", f"{checkpoint.step:,}"]
        )
    return rows_of(("file", "content", "weights", "steps of training"), lines)


def settings_table(checkpoints: Mapping[str, Checkpoint]) -> str:
    """The settings in which any of the checkpoints differs from VIDM's defaults."""

    def values(config: Config) -> dict[str, Any]:
        return {name: value for section in config.sections() for name, value in asdict(section).items()}

    default, found = values(Config()), [values(checkpoint.config) for checkpoint in checkpoints.values()]
    names = [n for n in default if n not in NOT_SHOWN and any(each[n] != default[n] for each in found)]
    return rows_of(("setting", *checkpoints), [[name, *(short(each[name]) for each in found)] for name in names])


def _decimal(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def evaluation_table(path: Path) -> str:
    """The numbers in a record of evaluate_FVD.py --json, and what they depend on."""
    record = read_json(path)
    try:
        lines = []
        for name, found in record["results"].items():
            real, made = found["num_samples"]
            clips = f"{made} generated, {real} real videos, {found['num_frames']} frames of {size_text(found['size'])}"
            for label, value, prefix in ((name, "value", ""), (f"{name} kernel", "kernel", "kernel_")):
                if found[value] is not None:
                    # The floor of a distance; not that of fewer videos, which the record has in its place.
                    floor = found[f"{prefix}floor"] if found[f"{prefix}matched"] == found[value] else None
                    doubts = found[f"{prefix}says_nothing"]
                    doubts = f"says nothing: {doubts}" if doubts else ""
                    numbers = map(_decimal, (found[value], found[f"{prefix}deviation"], floor))
                    lines.append([label, *numbers, clips, doubts])
        frames = record.get("frame_metrics", {})
        for label, key in (("PSNR, dB", "psnr"), ("SSIM", "ssim")) if frames else ():
            lines.append([label, _decimal(frames[key]), "", "", f"{frames['num_pairs']} pairs {frames['pairing']}", ""])
        about = f"{record['detector']['name']}. Protocol {record['protocol']}, {record['date'][:10]}."
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is not a record of evaluate_FVD.py --json: {error!r}") from error
    return f"{rows_of(('', 'value', 'deviation', 'floor', 'videos', ''), lines)}\n\n{about}"


def benchmark_table(path: Path, digests: set[str]) -> str:
    """The newest rows of a benchmark that measured these weights, and its rows without weights, as of real videos."""
    newest: dict[tuple[str, int], dict[str, Any]] = {}
    try:
        for row in map(json.loads, regular_file(path).read_text().splitlines()):
            if {row["weights"], row.get("content_weights", "")} <= {"", *digests}:
                newest[row["row"], row["seed"]] = row
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not have rows of a benchmark with weights: {error!r}") from error
    rows = list(newest.values())
    if not any(row["weights"] for row in rows):
        raise ValueError(f"{path} has no row of these weights: it measured others")
    detectors = dict.fromkeys(row["detector"] for row in rows if "detector" in row)
    about = "".join(f" Distances: {detector}." for detector in detectors)
    return f"{table(rows)}\n\nMeans over seeds, with standard deviations in brackets.{about}"


def card(
    repository: str, folder: Path, checkpoints: Mapping[str, Checkpoint], measured: Iterable[Path], terms: str
) -> str:
    """The model card of the files in a folder; `terms` is the name of their license, "" for none."""
    name, both = f"{PREFIX}{repository}", "content" in checkpoints
    digests = {sha256_of([folder / files_of(generator)[1]]) for generator in checkpoints}
    tables = [benchmark_table(p, digests) if p.suffix == ".jsonl" else evaluation_table(p) for p in measured]
    return CARD.format(
        license=f"license: {terms}\n" if terms else "",
        repository=repository,
        files=files_table(checkpoints, folder),
        arguments=", ".join([f'"{name}"'] * len(checkpoints)),
        name=name,
        unconditional=UNCONDITIONAL.format(name=name) if both else "",
        version=__version__,
        settings=settings_table(checkpoints),
        measurements="".join(f"\n{text}\n" for text in ["## Measurements", *tables]) if tables else "",
    )


def _flags() -> CommandParser:
    parser = CommandParser(description=__doc__.split("\n\n", 1)[1])
    parser.add_argument("motion", type=given_path, help="checkpoint of the motion generator, of any format")
    parser.add_argument("repository", metavar="OWNER/NAME", help="the repository, which is created if it is missing")
    parser.add_argument("--content", type=given_path, metavar="CKPT", help="checkpoint of the content generator")
    parser.add_argument(
        "--measured",
        type=given_path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="numbers for the card: records of evaluate_FVD.py --json, or .jsonl of benchmarks/results, of which the "
        "rows of these weights are used",
    )
    parser.add_argument("--license", default="", metavar="NAME", help="license for the card, such as mit")
    parser.add_argument("--card", type=given_path, metavar="FILE", help="use this page as the card")
    parser.add_argument("--half", action="store_true", help="write weights in float16, half as large")
    parser.add_argument(
        "--video-timesteps", type=int, metavar="N", help="frames per training video, if the file does not contain them"
    )
    parser.add_argument("--private", action="store_true", help="create a repository that only you can read")
    parser.add_argument("--dry-run", type=given_path, metavar="FOLDER", help="write the files to this folder instead")
    return parser


def main() -> None:
    options = _flags().parse_args()

    def write(folder: Path) -> None:
        checkpoints = {"motion": write_weights(options.motion, folder, "motion", options.half, options.video_timesteps)}
        if options.content:
            checkpoints["content"] = write_weights(options.content, folder, "content", options.half, None)
        if options.card:
            shutil.copyfile(regular_file(options.card), folder / "README.md")
        else:
            text = card(options.repository, folder, checkpoints, options.measured, options.license)
            (folder / "README.md").write_text(text, encoding="utf-8")

    with exit_on_user_error():
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", options.repository, re.ASCII):
            raise ValueError(f"{options.repository}: give the repository as owner/name")
        if options.card and (options.measured or options.license):
            raise ValueError("--card is the whole page: leave --measured and --license out")
        if options.dry_run:
            with atomic_dir(options.dry_run) as folder:
                write(folder)
            print(f"wrote {options.dry_run}: {', '.join(sorted(path.name for path in options.dry_run.iterdir()))}")
        else:
            with TemporaryDirectory() as temporary:
                write(Path(temporary))
                print(f"uploaded {publish(Path(temporary), options.repository, options.private)}")


if __name__ == "__main__":
    main()
