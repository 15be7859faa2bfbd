"""The command line of training and sampling: one script with a parser for each. Flags come from vidm.config's fields.

    python diffusion_ddp_accum_constant_cu.py --preset tiny --data DIR --out checkpoints
    python diffusion_ddp_accum_constant_cu.py --test --resume CKPT --content DIR --out samples

A flag of the other mode, or one that has no effect with the other settings, is refused. Flags without effect that the
original code's sampling command passes are accepted and reported.
"""

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from types import NoneType
from typing import Any, get_args

import torch

from vidm.checkpoint import Checkpoint
from vidm.checkpoint_formats import load_any
from vidm.config import Config, SampleConfig
from vidm.console import CommandParser
from vidm.distributed import BACKENDS, TIMEOUT_S, Rendezvous, print0
from vidm.files import LARGEST
from vidm.frame_size import frame_size, size_text
from vidm.generator import Generator, load_generator
from vidm.launch import launch
from vidm.presets import PRESETS
from vidm.resume import init_config, newest_that_verifies, resumed_config
from vidm.runtime import exit_on_user_error, keep_freed_memory
from vidm.sample_report import write_sample_report
from vidm.sampling import sample_folder
from vidm.settings import flagged
from vidm.trainer import Trainer
from vidm.training_run import dry_run, fit

DIST_URL = "tcp://localhost:10001"
# The version of PyTorch whose group norms take channels-last memory on GPUs.
CHANNELS_LAST_SINCE = "2.15"
TRAINING_ONLY = ("--dry-run", "--preset", "--start-iters")
# Accepted in sampling because the original code's command passes them.
UNUSED_IN_SAMPLING = ("--workers", "-j", "--resolution")
# A rule about flags without effect: whether it applies, the names of the settings, and the reason.
Rule = tuple[bool, str, str]


class _OtherMode(argparse.Action):
    """Refuses a flag of the other mode; `const` is the message."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        parser.error(f"{self.option_strings[0]} {self.const}")


def _flags(*sections: Any) -> set[str]:
    return {flag for section in sections for each in flagged(section) for flag in each.metadata["flags"]}


def _add_settings(group: argparse._ActionsContainer, section: Any) -> None:
    """Add one flag per flagged field of a section; it is absent from the result unless given."""
    for each in flagged(section):
        options: dict[str, Any] = {"dest": each.name, "default": argparse.SUPPRESS}
        if each.type is bool:
            options["action"] = "store_false" if each.default else "store_true"
        else:
            plain = next(kind for kind in (*get_args(each.type), each.type) if kind is not NoneType)
            options["type"] = each.metadata["parse"] or plain
            options["metavar"] = options["type"].__name__.upper()
            if each.metadata["choices"]:
                options["choices"], options["metavar"] = each.metadata["choices"], None
        shown = "" if each.type is bool or each.default in (None, "") else f" ({each.default})"
        group.add_argument(*each.metadata["flags"], help=each.metadata["help"] + shown, **options)


def _add_other_mode(parser: argparse.ArgumentParser, flags: Iterable[str], message: str) -> None:
    for flag in sorted(flags):
        parser.add_argument(flag, action=_OtherMode, nargs="?", const=message, dest="", help=argparse.SUPPRESS)


def _add_processes(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("processes (under torchrun, its environment variables define them)")
    group.add_argument("--multiprocessing-distributed", action="store_true", help="one process per GPU of this node")
    group.add_argument("--world-size", type=int, default=1, metavar="N", help="number of nodes (1)")
    group.add_argument("--rank", type=int, default=0, metavar="R", help="index of this node (0)")
    group.add_argument(
        "--dist-url",
        default=DIST_URL,
        metavar="URL",
        help="address at which the processes of several nodes connect; those of one need none (tcp://localhost:10001)",
    )
    group.add_argument("--dist-backend", choices=BACKENDS, help="nccl on GPUs, gloo on the CPU")
    group.add_argument(
        "--timeout",
        type=float,
        default=TIMEOUT_S,
        metavar="S",
        help=f"seconds to wait for another process, for example during a preview, before the run ends ({TIMEOUT_S:g})",
    )
    group.add_argument("--gpu", type=int, metavar="ID", help="use only this GPU")


def _add_checkpoint(group: argparse._ActionsContainer, resume: str) -> None:
    group.add_argument("--resume", default="", metavar="FILE", help=resume)
    group.add_argument(
        "--video-timesteps",
        type=int,
        metavar="N",
        dest="stored_timesteps",
        help="frames per video of the authors' checkpoint, if the file does not store it",
    )


def train_parser() -> argparse.ArgumentParser:
    """All flags of training."""
    parser = CommandParser(
        "Train a VIDM generator.", epilog="With --test the script samples videos: --test --help lists its flags."
    )
    mode = parser.add_argument_group("run")
    mode.add_argument("--test", action="store_true", help="sample videos instead of training")
    mode.add_argument(
        "--dry-run", action="store_true", help="build everything, take one step, print its memory, write nothing"
    )
    mode.add_argument("--preset", choices=PRESETS, help="named settings to start from (paper128)")
    _add_checkpoint(mode, "checkpoint to continue from, or auto: the newest undamaged one in --out, if any")
    mode.add_argument("--start-iters", type=int, metavar="N", help="count steps from N instead of the checkpoint's")
    _add_processes(parser)
    titles = ("network", "diffusion", "data", "training")
    for title, section in zip(titles, Config().sections(), strict=True):
        _add_settings(parser.add_argument_group(f"{title} (defaults in parentheses)"), section)
    sampling_only = _flags(SampleConfig()) - _flags(*Config().sections())
    _add_other_mode(parser, sampling_only, "is a sampling flag: add --test")
    return parser


def sample_parser() -> argparse.ArgumentParser:
    """All flags of sampling (--test)."""
    parser = CommandParser("Sample videos from a trained VIDM generator.")
    mode = parser.add_argument_group("run")
    mode.add_argument("--test", action="store_true", help="sample videos; without it the script trains")
    _add_checkpoint(mode, "checkpoint of the motion generator to sample from")
    _add_processes(parser)
    _add_settings(parser.add_argument_group("sampling (defaults in parentheses)"), SampleConfig())
    unused = parser.add_argument_group("without effect, accepted because the original code's command passes them")
    unused.add_argument("--workers", "-j", type=int, metavar="INT", help="each process reads its own first frames")
    unused.add_argument("--resolution", type=frame_size, metavar="SIZE", help="videos have the size of the network")
    training_only = _flags(*Config().sections()) - _flags(SampleConfig()) - {*UNUSED_IN_SAMPLING} | {*TRAINING_ONLY}
    _add_other_mode(parser, training_only, "is a training flag: it has no effect on sampling")
    return parser


def parse_flags(arguments: Sequence[str]) -> argparse.Namespace:
    """The flags of a command line, parsed for sampling if --test is among them, else for training."""
    return (sample_parser() if "--test" in arguments else train_parser()).parse_args(arguments)


def _given(options: argparse.Namespace, section: Any) -> dict[str, Any]:
    """The values given as flags for a section's settings, by name."""
    return {each.name: getattr(options, each.name) for each in flagged(section) if hasattr(options, each.name)}


def _refuse_unused(options: argparse.Namespace, sections: Sequence[Any], rules: Iterable[Rule]) -> None:
    """Raise ValueError, naming the flag and the reason, if a given flag has no effect by one of the rules."""
    flags = {each.name: each.metadata["flags"][0] for section in sections for each in flagged(section)}
    for applies, names, reason in rules:
        for name in names.split() if applies else ():
            if hasattr(options, name):
                raise ValueError(f"{flags[name]} has no effect: {reason}")


def train_config(options: argparse.Namespace) -> tuple[Config, Checkpoint | None, Checkpoint | None]:
    """The settings of a run, the checkpoint it continues, and the one whose weights it starts from, if any.

    Raises ValueError for flags that contradict the checkpoint or have no effect.
    """
    values = {k: v for section in Config().sections() for k, v in _given(options, section).items()}
    config = Config.from_preset(options.preset or "paper128").replaced(values)
    resume = init = None
    if options.stored_timesteps is not None and not config.train.init and options.resume in ("", "auto"):
        raise ValueError("--video-timesteps has no effect: it describes the file of --resume or --init")
    if options.resume == "auto":
        resume = newest_that_verifies(config.train.out)
    elif options.resume:
        resume = load_any(options.resume, options.stored_timesteps)
    if resume:
        config = resumed_config(resume, values, options.preset or "")
        if options.preset:
            print0(f"--preset {options.preset} has no effect: the settings of {resume.source} are kept")
    elif config.train.init:
        init = load_any(config.train.init, options.stored_timesteps)
        config = init_config(init, values, options.preset or "")
    model, diffusion, train = config.model, config.diffusion, config.train
    of_motion = (
        "video_timesteps frame_stride flow_range norm use_encoder use_previous spynet train_flow condition_noise"
    )
    rules = (
        (model.generator == "content", of_motion, "--generator content learns single frames"),
        (model.generator == "motion", "content_frames constant", "it is for --generator content"),
        (diffusion.prediction == "v", "p2_gamma", "P2 weighting is for --prediction eps"),
        (diffusion.loss == "mse", "penalty_eps", "it is for --loss charbonnier"),
        (model.flow_range == "none", "spynet train_flow condition_noise", "--flow-range none runs no SPyNet"),
        (not (resume or init or train.spynet), "train_flow", "SPyNet is always trained without --spynet and --init"),
    )
    _refuse_unused(options, config.sections(), rules)
    return config, resume, init


def sample_config(options: argparse.Namespace) -> SampleConfig:
    """The settings of sampling. Raises ValueError for invalid ones and for flags without effect."""
    settings = SampleConfig(**_given(options, SampleConfig()))
    if options.resume in ("", "auto") or bool(settings.content) == bool(settings.content_resume):
        raise ValueError(
            "sampling needs a checkpoint (--resume FILE) and either first frames (--content FILE_OR_DIR) or a content "
            "generator for them (--content-resume FILE)"
        )
    without_rate = settings.format in ("frames", "npy") and not (settings.grid or settings.report)
    rules = (
        (not settings.content_resume, "content_steps", "it is for first frames of a --content-resume"),
        (settings.psi == 0, "start_noise", "with --psi 0 denoising always starts from the same latent"),
        (without_rate, "fps", f"--format {settings.format} stores no frame rate"),
    )
    _refuse_unused(options, [settings], rules)
    return settings


def _report_unused(options: argparse.Namespace, settings: SampleConfig, generator: Generator) -> None:
    """Print a line for each given flag that has no effect on this generator's videos."""
    size, num_frames = generator.config.model.image_size, generator.num_frames(settings)
    if options.workers is not None:
        print0("--workers has no effect on sampling: each process reads its own first frames")
    if options.resolution not in (None, size):
        print0(f"--resolution has no effect: videos have the network's size, {size_text(size)}")
    if settings.anchor_every and num_frames <= settings.anchor_every + 1:
        print0(f"--anchor-every {settings.anchor_every} has no effect on videos of {num_frames} frames")
    if settings.condition_noise and generator.model.flow_range == "none":
        print0("--condition-noise has no effect: this model was trained with --flow-range none")


def _report_device(device: torch.device, precision: str) -> None:
    """Print a line for a precision that the device does not have, and for a PyTorch that is slow on it."""
    if device.type == "cpu" and precision == "tf32":
        print0("--precision tf32 has no effect on a CPU: it is the same as fp32 there")
    if device.type == "cuda" and torch.__version__ < CHANNELS_LAST_SINCE:
        print0(
            f"PyTorch {torch.__version__} copies every feature map around a group norm on GPUs; "
            f"{CHANNELS_LAST_SINCE} or newer does not"
        )


def _trainer(device: torch.device, options: argparse.Namespace) -> Trainer:
    """The trainer of a run. The checkpoint that it was built from, up to 3 GB of memory, is freed on return."""
    if options.start_iters is not None and not 0 <= options.start_iters <= LARGEST:
        raise ValueError(f"--start-iters {options.start_iters}: give a number from 0 to {LARGEST}")
    config, resume, init = train_config(options)
    _report_device(device, config.train.precision)
    if device.type == "cpu" and config.train.deterministic:
        print0("--deterministic has no effect on a CPU: every run gives the same bits there")
    return Trainer(config, device, resume, init, options.start_iters)


def _train(device: torch.device, options: argparse.Namespace) -> None:
    if device.type == "cpu":
        keep_freed_memory()
    with exit_on_user_error():
        (dry_run if options.dry_run else fit)(_trainer(device, options))


def _sample(device: torch.device, options: argparse.Namespace) -> None:
    if device.type == "cpu":
        keep_freed_memory()
    with exit_on_user_error():
        settings = sample_config(options)
        generator = load_generator(options.resume, settings.content_resume or None, options.stored_timesteps, device)
        _report_device(device, settings.precision)
        _report_unused(options, settings, generator)
        precision = generator.precision(settings)
        print0(
            f"sampling from {options.resume} on {device} in {precision}, {settings.steps} steps of {settings.sampler}"
        )
        sample_folder(generator, settings)
        if settings.report:
            write_sample_report(generator, settings)
        print0(f"videos are in {settings.out}")


def train_main(argv: Sequence[str] | None = None) -> None:
    """diffusion_ddp_accum_constant_cu.py and vidm-train: train, or with --test sample."""
    options = parse_flags(sys.argv[1:] if argv is None else argv)
    if options.multiprocessing_distributed and options.gpu is not None:
        print("--gpu has no effect with --multiprocessing-distributed, which starts one process per GPU")
    alone = not (options.multiprocessing_distributed or "TORCHELASTIC_RUN_ID" in os.environ)
    if options.dist_url != DIST_URL and (alone or options.world_size == 1):
        print("--dist-url has no effect: only several nodes (--world-size) need an address")
    if alone and options.dist_backend:
        print("--dist-backend has no effect on one process")
    with exit_on_user_error():
        launch(
            _sample if options.test else _train,
            (options,),
            multiprocessing=options.multiprocessing_distributed,
            num_nodes=options.world_size,
            node_rank=options.rank,
            gpu=options.gpu,
            rendezvous=Rendezvous(options.dist_url, options.dist_backend, options.timeout),
        )


def sample_main(argv: Sequence[str] | None = None) -> None:
    """vidm-sample: sample, with or without --test."""
    train_main(["--test", *(sys.argv[1:] if argv is None else argv)])
