"""Training and sampling: flags in, one call out. Flags and their help come from the fields of vidm.config.

python diffusion_ddp_accum_constant_cu.py --preset tiny --data DIR --out checkpoints
python diffusion_ddp_accum_constant_cu.py --test --resume CKPT --content DIR --out samples
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import Field
from types import NoneType
from typing import Any, get_args

import torch

from vidm.checkpoint import Checkpoint
from vidm.checkpoint_formats import load_any
from vidm.config import Config, SampleConfig, knobs
from vidm.distributed import BACKENDS, TIMEOUT_S, is_main, launch, print0
from vidm.generator import load_generator
from vidm.presets import PRESETS
from vidm.resume import init_config, newest_that_verifies, resumed_config
from vidm.runtime import exit_on_user_error, keep_freed_memory
from vidm.sample_report import write_sample_report
from vidm.sampling import sample_folder
from vidm.trainer import Trainer
from vidm.training_run import dry_run, fit


def _key(knob: Field[Any]) -> str:
    """The attribute under which argparse keeps a knob's value: two knobs may share a flag."""
    return knob.metadata["flags"][0].lstrip("-").replace("-", "_")


def _default_text(values: Sequence[Any]) -> str:
    shown = dict.fromkeys(str(value) for value in values if value not in (None, "", False))
    return f" ({' / '.join(shown)})" if shown else ""


def add_knobs(parser: argparse._ActionsContainer, sections: Sequence[Any]) -> None:
    """One flag per knob of the sections, absent from the result unless given; a shared flag shows both meanings."""
    by_key: dict[str, list[Field[Any]]] = {}
    for section in sections:
        for knob in knobs(section):
            by_key.setdefault(_key(knob), []).append(knob)
    for key, group in by_key.items():
        knob = group[0]
        text = "; with --test: ".join(dict.fromkeys(k.metadata["help"] for k in group))
        options: dict[str, Any] = {"dest": key, "default": argparse.SUPPRESS}
        if knob.type is bool:
            options["action"] = "store_false" if knob.default else "store_true"
        else:
            options["type"] = next(kind for kind in (*get_args(knob.type), knob.type) if kind is not NoneType)
            options["metavar"] = options["type"].__name__.upper()
            if knob.metadata["choices"]:
                choices = dict.fromkeys(choice for k in group for choice in k.metadata["choices"])
                options["choices"], options["metavar"] = list(choices), None
        names = dict.fromkeys(name for k in group for name in k.metadata["flags"])
        parser.add_argument(*names, help=text + _default_text([k.default for k in group]), **options)


def given_values(options: argparse.Namespace, section: Any) -> dict[str, Any]:
    """The values that were given for a section's knobs, by the fields' names."""
    return {knob.name: getattr(options, _key(knob)) for knob in knobs(section) if hasattr(options, _key(knob))}


def train_parser() -> argparse.ArgumentParser:
    """All flags of diffusion_ddp_accum_constant_cu.py."""
    parser = argparse.ArgumentParser(description="VIDM: train a motion generator; with --test, sample videos from one.")
    mode = parser.add_argument_group("what to do")
    mode.add_argument("--test", action="store_true", help="sample from --resume instead of training")
    mode.add_argument(
        "--dry-run", action="store_true", help="build everything, take one step, tell its memory, write nothing"
    )
    mode.add_argument("--preset", choices=PRESETS, help="named settings to start from (paper128)")
    mode.add_argument(
        "--resume",
        default="",
        metavar="FILE",
        help="checkpoint to go on from, or auto: the newest whole one in --out; with --test: the one to sample from",
    )
    mode.add_argument(
        "--video-timesteps",
        type=int,
        metavar="N",
        help="frames per video a published checkpoint was trained on, where it does not tell itself",
    )
    mode.add_argument("--start-iters", type=int, metavar="N", help="count steps from N instead of the checkpoint's")
    where = parser.add_argument_group("where to run (under torchrun its environment decides)")
    where.add_argument("--multiprocessing-distributed", action="store_true", help="one process per GPU of this node")
    where.add_argument("--world-size", type=int, default=1, metavar="N", help="number of nodes (1)")
    where.add_argument("--rank", type=int, default=0, metavar="R", help="this node's number (0)")
    where.add_argument("--dist-url", default="tcp://localhost:10001", metavar="URL", help="where processes meet")
    where.add_argument("--dist-backend", choices=BACKENDS, help="nccl on GPUs, gloo on the CPU")
    where.add_argument(
        "--timeout",
        type=float,
        default=TIMEOUT_S,
        metavar="S",
        help="a process that lets the others wait for longer ends the run; a preview, a distance and a checkpoint must "
        f"take less ({TIMEOUT_S:g} s)",
    )
    where.add_argument("--gpu", type=int, metavar="ID", help="use this one GPU")
    knob_group = parser.add_argument_group("settings (default in brackets; with --test the second)")
    add_knobs(knob_group, [*Config().sections(), SampleConfig()])
    return parser


def train_config(options: argparse.Namespace) -> tuple[Config, Checkpoint | None, Checkpoint | None]:
    """The settings of a run, the checkpoint it goes on from, and the one whose weights it begins with, if any."""
    values = {k: v for section in Config().sections() for k, v in given_values(options, section).items()}
    fresh = Config.from_preset(options.preset or "paper128").replaced(values)
    if options.resume == "auto":
        resume = newest_that_verifies(fresh.train.out)
    else:
        resume = load_any(options.resume, options.video_timesteps) if options.resume else None
    if resume:
        return resumed_config(resume, values, options.preset or ""), resume, None
    if fresh.train.init:
        init = load_any(fresh.train.init, options.video_timesteps)
        return init_config(init, values, options.preset or ""), None, init
    return fresh, None, None


def _train(device: torch.device, options: argparse.Namespace) -> None:
    if device.type == "cpu":
        keep_freed_memory()
    with exit_on_user_error():
        config, resume, init = train_config(options)
        if options.start_iters is not None and options.start_iters < 0:
            raise ValueError(f"--start-iters {options.start_iters}: give 0 or more")
        trainer = Trainer(config, device, resume, init, options.start_iters)
        (dry_run if options.dry_run else fit)(trainer)


def _sample(device: torch.device, options: argparse.Namespace) -> None:
    if device.type == "cpu":
        keep_freed_memory()
    with exit_on_user_error():
        sample = SampleConfig(**given_values(options, SampleConfig()))
        if options.resume in ("", "auto") or bool(sample.content) == bool(sample.content_resume):
            raise ValueError(
                "--test needs a checkpoint (--resume FILE) and first frames: given ones (--content FILE_OR_DIR) or a "
                "content generator's (--content-resume FILE)"
            )
        generator = load_generator(options.resume, sample.content_resume or None, options.video_timesteps, device)
        generator.check(sample)
        print0(f"sampling from {options.resume} on {device}, {sample.steps} steps of {sample.sampler}")
        sample_folder(generator, sample)
        if sample.report:
            write_sample_report(generator, sample)
        if is_main():
            print(f"videos are in {sample.out}")


def train_main(argv: Sequence[str] | None = None) -> None:
    """diffusion_ddp_accum_constant_cu.py: train, or with --test sample."""
    options = train_parser().parse_args(argv)
    worker: Callable[..., None] = _sample if options.test else _train
    with exit_on_user_error():
        launch(
            worker,
            (options,),
            multiprocessing=options.multiprocessing_distributed,
            num_nodes=options.world_size,
            node_rank=options.rank,
            dist_url=options.dist_url,
            backend=options.dist_backend,
            gpu=options.gpu,
            timeout=options.timeout,
        )
