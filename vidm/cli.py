"""The command line of training and sampling: the settings that the flags ask for, and the calls.

    python diffusion_ddp_accum_constant_cu.py --preset tiny --data DIR --out checkpoints
    python diffusion_ddp_accum_constant_cu.py --test --resume CKPT --content DIR --out samples

A flag of the other mode, or one that has no effect with the other settings, is refused. Flags without effect that the
original code's sampling command passes are accepted and reported.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path

import torch

from vidm.checkpoint import Checkpoint, list_checkpoints
from vidm.checkpoint_formats import load_any
from vidm.cli_flags import DEFAULT_RUN, DIST_URL, given, parse_flags, refuse_unused
from vidm.config import Config
from vidm.config_file import config_text, read_config
from vidm.distributed import Rendezvous, print0
from vidm.files import LARGEST
from vidm.frame_size import size_text
from vidm.generator import Generator, load_generator
from vidm.hub import is_hub_name
from vidm.launch import launch
from vidm.resume import init_config, newest_that_verifies, resumed_config
from vidm.runtime import exit_on_user_error, keep_freed_memory, slow_group_norms
from vidm.sample_config import SampleConfig
from vidm.sample_report import write_sample_report
from vidm.sampling import sample_folder
from vidm.settings import flags_named
from vidm.trainer import Trainer
from vidm.training_run import dry_run, fit


@flags_named()
def train_config(options: argparse.Namespace) -> tuple[Config, Checkpoint | None, Checkpoint | None]:
    """The settings of a run, the checkpoint it continues, and the one whose weights it starts from, if any.

    Raises ValueError for flags that contradict the checkpoint or have no effect.
    """
    values = {k: v for section in Config().sections() for k, v in given(options, section).items()}
    if options.config:
        values = read_config(options.config, values) | values
    config = Config.from_preset(options.preset or "paper128").replaced(values)
    resume = init = None
    if options.stored_timesteps is not None and not config.train.init and options.resume in ("", "auto"):
        raise ValueError("--video-timesteps has no effect: it describes the file of --resume or --init")
    if options.resume == "auto":
        resume = newest_that_verifies(config.train.out)
    elif options.resume:
        resume = load_any(options.resume, options.stored_timesteps, generator=config.model.generator)
    if resume:
        config = resumed_config(resume, values, options.preset or "")
        if options.preset:
            print0(f"--preset {options.preset} has no effect: the settings of {resume.source} are kept")
    elif config.train.init:
        init = load_any(config.train.init, options.stored_timesteps, generator=config.model.generator)
        config = init_config(init, values, options.preset or "")
    model, diffusion, train = config.model, config.diffusion, config.train
    of_motion = (
        "video_timesteps frame_stride flow_range norm use_encoder use_previous spynet train_flow condition_noise"
    )
    rules = (
        (model.generator == "content", of_motion, "--generator content learns single frames"),
        (model.generator == "content", "start_seed", "first frames are never truncated"),
        (model.generator == "motion", "content_frames constant", "it is for --generator content"),
        (diffusion.prediction == "v", "p2_gamma p2_k", "P2 weighting is for --prediction eps"),
        (diffusion.p2_gamma == 0, "p2_k", "with --p2-gamma 0 there is no P2 weighting"),
        (model.num_head_channels != -1, "num_heads", "heads have num_head_channels channels each, unless that is -1"),
        (diffusion.loss == "mse", "penalty_eps", "it is for --loss charbonnier"),
        (model.flow_range == "none", "spynet train_flow condition_noise", "--flow-range none runs no SPyNet"),
        (not config.data.classes, "class_dropout", "it is for --classes"),
        (not (resume or init or train.spynet), "train_flow", "SPyNet is always trained without --spynet and --init"),
    )
    refuse_unused(options, config.sections(), rules)
    return config, resume, init


@flags_named()
def sample_config(options: argparse.Namespace) -> SampleConfig:
    """The settings of sampling. Raises ValueError for invalid ones and for flags without effect."""
    settings = SampleConfig(**given(options, SampleConfig()))
    if settings.content and settings.content_resume:
        raise ValueError("give either first frames (--content) or a content generator for them (--content-resume)")
    if not options.resume or not (settings.content or settings.content_resume):
        raise ValueError(
            "sampling needs a checkpoint (--resume FILE_OR_FOLDER) and either first frames (--content FILE_OR_DIR) "
            "or a content generator for them (--content-resume FILE)"
        )
    without_rate = settings.format in ("frames", "npy") and not (settings.grid or settings.report)
    rules = (
        (not settings.content, "layout split", "it is for first frames of a --content"),
        (not settings.content_resume, "content_steps", "it is for first frames of a --content-resume"),
        (settings.psi == 0, "start_noise", "with --psi 0 denoising always starts from the same latent"),
        (without_rate, "fps", f"--format {settings.format} stores no frame rate"),
    )
    refuse_unused(options, [settings], rules)
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
    if line := slow_group_norms(device):
        print0(line)


def _trainer(device: torch.device, options: argparse.Namespace) -> Trainer:
    """The trainer of a run. The checkpoint that it was built from, up to 3 GB of memory, is freed on return."""
    if options.start_iters is not None and not 0 <= options.start_iters <= LARGEST:
        raise ValueError(f"--start-iters {options.start_iters}: give a number from 0 to {LARGEST}")
    config, resume, init = train_config(options)
    _check_out(config.train.out)
    _report_device(device, config.train.precision)
    if device.type == "cpu" and config.train.deterministic:
        print0("--deterministic has no effect on a CPU: every run gives the same bits there")
    return Trainer(config, device, resume, init, options.start_iters)


def _print_config(options: argparse.Namespace) -> None:
    """Print the settings of a run, with all other messages on stderr."""
    with redirect_stdout(sys.stderr):
        config = train_config(options)[0]
    config.check()
    print(*config_text(config).splitlines(), sep="\n")


def _train(device: torch.device, options: argparse.Namespace) -> None:
    if device.type == "cpu":
        keep_freed_memory()
    with exit_on_user_error():
        (dry_run if options.dry_run else fit)(_trainer(device, options))


def _check_out(out: str) -> None:
    """Raise ValueError if the folder to write to is a file, or below one."""
    found = next((path for path in (Path(out), *Path(out).parents) if path.exists()), Path())
    if not found.is_dir():
        raise ValueError(f"--out {out}: {found} is a file, not a folder")


def _check_paths(paths: Mapping[str, str]) -> None:
    """Raise FileNotFoundError, naming the flag, for a path that does not exist, before any file is loaded."""
    for flag, path in paths.items():
        if path and not is_hub_name(path) and not Path(path).exists():
            raise FileNotFoundError(f"no such file or folder: {path} ({flag})")


def _sample(device: torch.device, options: argparse.Namespace) -> None:
    if device.type == "cpu":
        keep_freed_memory()
    with exit_on_user_error():
        settings = sample_config(options)
        resume = DEFAULT_RUN if options.resume == "auto" else options.resume
        if options.resume == "auto" and not list_checkpoints(resume):
            raise ValueError(
                f"--resume auto: there is no checkpoint in {resume}, the folder of runs without --out; give --resume "
                "the --out of your run, or a file"
            )
        _check_out(settings.out)
        _check_paths({"--resume": resume, "--content": settings.content, "--content-resume": settings.content_resume})
        generator = load_generator(
            resume, settings.content_resume or None, options.stored_timesteps, device, options.weights
        )
        generator.check(settings)
        _report_device(device, settings.precision)
        _report_unused(options, settings, generator)
        precision = generator.precision(settings)
        print0(
            f"sampling from {generator.path} on {device} in {precision}, {settings.steps} steps of {settings.sampler}"
        )
        sample_folder(generator, settings)
        if settings.report:
            write_sample_report(generator, settings)
        pages = [f"{settings.out}_grid.mp4"] * bool(settings.grid) + [f"{settings.out}/report.html"] * settings.report
        print0(f"videos are in {settings.out}" + "".join(f"; {page} shows them" for page in pages))


def train_main(argv: Sequence[str] | None = None) -> None:
    """diffusion_ddp_accum_constant_cu.py and vidm-train: train, or with --test sample."""
    options = parse_flags(sys.argv[1:] if argv is None else argv)
    alone = not (options.multiprocessing_distributed or "TORCHELASTIC_RUN_ID" in os.environ)
    if not alone and options.gpu is not None:
        print("--gpu has no effect: every process has a GPU of its own")
    if not options.test and options.print_config:
        with exit_on_user_error():
            return _print_config(options)
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
