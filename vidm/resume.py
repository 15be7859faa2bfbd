"""What a run goes on from, and which settings it keeps.

checkpoint = newest_that_verifies("checkpoints")
config = resumed_config(checkpoint, {"total_iters": 200}) if checkpoint else Config.from_preset("tiny")
"""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from vidm.checkpoint import Checkpoint, check_generator, list_checkpoints, load_checkpoint
from vidm.config import Config
from vidm.distributed import print0
from vidm.presets import PRESETS

# What decides which sample stands where in which step: a run that changed it half-way would be neither of two runs.
STREAM = ("batch_size", "seed", "split", "test_split", "held_out", "frame_stride", "content_frames", "flip")
# Read when a run begins; a checkpoint carries what came of it.
BEGINNING = ("spynet", "init")


def newest_that_verifies(folder: str | Path) -> Checkpoint | None:
    """The checkpoint of the highest step in a folder that is whole, None where there is none at all.

    Says which it takes and, of those passed over, why. Raises ValueError when every one of them is damaged.
    """
    found = list_checkpoints(folder)
    for path in reversed(found):
        try:
            checkpoint = load_checkpoint(path)
        except ValueError as error:
            print0(f"passed over: {error}")
            continue
        print0(f"going on from {path}")
        return checkpoint
    if found:
        raise ValueError(f"none of the {len(found)} checkpoints in {folder} can be read: move them away to start anew")
    print0(f"no checkpoint in {folder} yet: starting anew")
    return None


def _differences(ours: Config, theirs: Config) -> dict[str, tuple[Any, Any]]:
    """The knobs in which two configurations differ: name -> (theirs, ours)."""
    return {
        knob.name: (getattr(before, knob.name), getattr(now, knob.name))
        for before, now in zip(theirs.sections(), ours.sections(), strict=True)
        for knob in fields(now)
        if getattr(before, knob.name) != getattr(now, knob.name)
    }


def resumed_config(checkpoint: Checkpoint, values: Mapping[str, Any], preset: str = "") -> Config:
    """The checkpoint's settings with the given ones; what changes is printed.

    A preset given again has no say but must be of the same network. Raises ValueError for another network or process
    than the checkpoint's, for files that are read when a run begins and, where a run of ours goes on, for settings that
    would make its samples others half-way.
    """
    path, trained = checkpoint.source, checkpoint.config
    for name in BEGINNING:
        begun_with = getattr(trained.train, name)
        if values.get(name, begun_with) != begun_with:
            raise ValueError(
                f"--{name} {values[name]} is read when a run begins, and that of {path} began with "
                f"{begun_with or 'none'}: leave it out, or begin a new run with --init {path}"
            )
    asked = Config().replaced(PRESETS[preset]) if preset else trained
    for name, (before, now) in _differences(asked.replaced(values), trained).items():
        if any(name in {knob.name for knob in fields(section)} for section in trained.sections()[:2]):
            raise ValueError(
                f"{path} is of another configuration: {name} is {before} there and {now} here; "
                "leave the flags out to take the checkpoint's"
            )
    config = trained.replaced(values)
    changed = _differences(config, trained)
    for name in STREAM if checkpoint.optimizer else ():
        if name in changed:
            before, now = changed[name]
            raise ValueError(
                f"{name} is {before!r} in {path} and {now!r} here, which would change its samples half-way: leave it "
                f"out, or begin a new run with --init {path}"
            )
    if changed:
        shown = ", ".join(f"{name} {before!r} -> {now!r}" for name, (before, now) in changed.items())
        print0(f"changed since {path}: {shown}")
    return config


def init_config(init: Checkpoint, values: Mapping[str, Any], preset: str = "") -> Config:
    """For a new run from a checkpoint's weights: its network and process, unless a preset or values say otherwise.

    Raises ValueError for a checkpoint of the other generator.
    """
    config = Config.from_preset(preset or "paper128")
    if not preset:
        config = Config(init.config.model, init.config.diffusion, config.data, config.train)
    config = config.replaced(values)
    check_generator(init, config.model.generator)
    return config
