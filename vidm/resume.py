"""The checkpoint that a run resumes or begins from, and the settings that it keeps.

checkpoint = newest_that_verifies("checkpoints")
config = resumed_config(checkpoint, {"total_iters": 200}) if checkpoint else Config.from_preset("tiny")
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from shlex import quote
from typing import Any

from vidm.checkpoint import Checkpoint, check_generator, list_checkpoints, load_checkpoint
from vidm.config import Config
from vidm.distributed import print0
from vidm.frame_size import size_text
from vidm.presets import PRESETS
from vidm.settings import flags_by_name

# These settings decide which sample is at which place of a step. A run that changed one could not be reproduced.
STREAM = (
    "batch_size",
    "seed",
    "split",
    "test_split",
    "held_out",
    "frame_stride",
    "content_frames",
    "flip",
    "fit",
    "class_dropout",
)
# Settings that name a file which is read only when a run begins: checkpoints have the weights trained from it.
BEGINNING = ("spynet", "init")
# Settings that name what a run reads and writes. A file from elsewhere must not decide them.
PLACES = ("data", "out")


def trains_flow(config: Config, resume: Checkpoint | None = None, init: Checkpoint | None = None) -> bool:
    """Whether a run trains SPyNet, given its settings and the checkpoint it resumes or begins from.

    A resumed run keeps its decision. A new run trains SPyNet if --train-flow is given, or if SPyNet has no finished
    weights: those of --spynet or of a checkpoint that did not train it. Raises ValueError for
    --train-flow when resuming a run that does not train SPyNet. Ours.
    """
    asked = config.train.train_flow
    if resume and resume.optimizer:
        if asked and not resume.config.train.train_flow:
            raise ValueError(
                f"--train-flow: SPyNet is frozen in {resume.source}, and a resumed run keeps it frozen; leave the flag "
                f"out, or begin a new run with --init {quote(resume.source)}"
            )
        return resume.config.train.train_flow
    # On resuming, --spynet is not read again; with --init, it replaces the checkpoint's SPyNet.
    given = config.train.spynet and not resume
    begins_from = resume or init
    finished = given or (begins_from and not begins_from.config.train.train_flow)
    return asked or not finished


def newest_undamaged(folder: str | Path) -> Checkpoint | None:
    """The undamaged checkpoint of the highest step in a folder, None without one; prints why others are skipped."""
    for path in reversed(list_checkpoints(folder)):
        try:
            return load_checkpoint(path)
        except ValueError as error:
            print0(f"skipped: {error}")
    return None


def newest_that_verifies(folder: str | Path) -> Checkpoint | None:
    """The undamaged checkpoint of the highest step in a folder, None if the folder has no checkpoints.

    Prints which one is used, and why others were skipped. Raises ValueError if all of them are damaged.
    """
    if found := newest_undamaged(folder):
        print0(f"resuming from {found.source}")
        return found
    if damaged := list_checkpoints(folder):
        raise ValueError(f"all {len(damaged)} checkpoints in {folder} are damaged: move them away to start a new run")
    print0(f"no checkpoint in {folder} yet: starting a new run")
    return None


def in_own_folder(file: str | Path, config: Config) -> bool:
    """Whether a file is in the folder of the run that `config` describes."""
    return Path(file).resolve().parent == Path(config.train.out).resolve()


def check_places(file: str | Path, described: Config, values: Mapping[str, Any], names: Sequence[str] = PLACES) -> None:
    """Raise ValueError if a file outside the folder of the run it describes would decide what is read or written.

    `names` are the settings that name such paths. The file decides those that are not among `values`.
    """
    if in_own_folder(file, described):
        return
    for section, default in zip(described.sections(), Config().sections(), strict=True):
        for name in names:
            stored = getattr(section, name, None)
            if name not in values and stored != getattr(default, name, None):
                raise ValueError(
                    f"{file} is not in the folder of its run, so its --{name} {stored!r} is not used: give --{name}"
                )


def _differences(ours: Config, theirs: Config) -> dict[str, tuple[Any, Any]]:
    """The settings in which two configurations differ: name -> (theirs, ours)."""
    return {
        setting.name: (getattr(before, setting.name), getattr(now, setting.name))
        for before, now in zip(theirs.sections(), ours.sections(), strict=True)
        for setting in fields(now)
        if getattr(before, setting.name) != getattr(now, setting.name)
    }


def resumed_config(checkpoint: Checkpoint, values: Mapping[str, Any], preset: str = "") -> Config:
    """The checkpoint's settings, updated by `values`; changes are printed.

    A preset changes nothing, but must describe the same network. Raises ValueError for another network or diffusion
    process than the checkpoint's, for other files that are read when a run begins, for a checkpoint from elsewhere
    without --out and --data, and, if the checkpoint has an optimizer, for settings that would change the samples of the
    rest of the run.
    """
    path, trained = checkpoint.source, checkpoint.config
    if values.get("precision") == "auto":  # chosen when a run begins, maybe on another device
        values = {name: value for name, value in values.items() if name != "precision"}
    values = {"compile": False, **values}  # a machine may have no compiler
    check_places(path, trained, values)
    for name in BEGINNING:
        begun_with = getattr(trained.train, name)
        if values.get(name, begun_with) != begun_with:
            raise ValueError(
                f"--{name} {values[name]} is read when a run begins, and the run of {path} began with "
                f"{begun_with or 'none'}: leave it out, or begin a new run with --init {quote(path)}"
            )
    if values.get("classes") and not trained.data.classes:
        raise ValueError(
            f"--classes: the network of {path} has no classes; begin a new run with --init {quote(path)} --classes"
        )
    asked = trained
    if preset:
        asked = Config().replaced({**PRESETS[preset], "class_names": trained.model.class_names})
    flags = flags_by_name(trained.sections())
    for name, (before, now) in _differences(asked.replaced(values), trained).items():
        if any(name in {setting.name for setting in fields(section)} for section in trained.sections()[:2]):
            given = flags[name] if name in values else f"--preset {preset}"
            there, here = (size_text(size) for size in (before, now)) if name == "image_size" else (before, now)
            raise ValueError(
                f"{path} has another configuration: {flags[name]} is {there} there and {here} here; "
                f"leave {given} out to use the checkpoint's"
            )
    config = trained.replaced(values)
    changed = _differences(config, trained)
    for name in STREAM if checkpoint.optimizer else ():
        if name in changed:
            before, now = changed[name]
            raise ValueError(
                f"{flags[name]} is {before!r} in {path} and {now!r} here, which would change the samples of the rest "
                f"of the run: leave it out, or begin a new run with --init {quote(path)}"
            )
    if changed:
        shown = ", ".join(f"{name} {before!r} -> {now!r}" for name, (before, now) in changed.items())
        print0(f"changed since {path}: {shown}")
    return config


def init_config(init: Checkpoint, values: Mapping[str, Any], preset: str = "") -> Config:
    """The settings of a new run that begins with a checkpoint's weights.

    Network and diffusion process are the checkpoint's, unless a preset or `values` say otherwise; its classes will be
    those of the new data, if any. Raises ValueError for
    a checkpoint of the other generator.
    """
    config = Config.from_preset(preset or "paper128")
    if not preset:
        config = Config(init.config.model, init.config.diffusion, config.data, config.train)
    config = config.replaced({**values, "class_names": ()})
    check_generator(init, config.model.generator)
    return config
