"""The flags of training and sampling: a parser for each, made from the fields of vidm.config.

options = parse_flags(["--preset", "tiny", "--lr", "1e-3", "--set", "clip_norm=0.5"])
given(options, Config().train)  # {"lr": 0.001, "clip_norm": 0.5}
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import Field, fields
from textwrap import fill
from typing import Any

from vidm.config import SETTINGS, Config, setting_of
from vidm.console import CommandParser
from vidm.distributed import BACKENDS, TIMEOUT_S
from vidm.frame_size import frame_size, size_text
from vidm.generator import WEIGHTS
from vidm.presets import DESCRIPTIONS, PRESETS
from vidm.sample_config import SampleConfig
from vidm.settings import check_value, flag_of, flag_type, flagged, flags_by_name, from_text

DIST_URL = "tcp://localhost:10001"
# The folder of runs without --out.
DEFAULT_RUN = Config().train.out
TRAINING_ONLY = ("--config", "--dry-run", "--preset", "--print-config", "--set", "--start-iters")
# Accepted in sampling because the original code's command passes them.
UNUSED_IN_SAMPLING = ("--workers", "-j", "--resolution")
# A rule about flags without effect: whether it applies, the names of the settings, and the reason.
Rule = tuple[bool, str, str]


class _Value(argparse.Action):
    """Takes the value of a setting; a message about it names the flag as it was typed."""

    def __init__(self, field: Field[Any], **options: Any) -> None:
        super().__init__(**options)
        self.field = field

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: Any, flag: str | None = None
    ) -> None:
        try:
            check_value(self.field, value, flag or "")
        except ValueError as error:
            parser.error(str(error))
        setattr(namespace, self.dest, value)


class _Set(argparse.Action):
    """Takes NAME=VALUE for a setting of training, as a flag of that name would."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, text: Any, _: str | None = None
    ) -> None:
        name, equals, value = text.partition("=")
        if not equals:
            parser.error(f"--set {text}: give NAME=VALUE")
        try:
            setattr(namespace, name, from_text(setting_of(name), value))
        except ValueError as error:
            parser.error(f"--set {text}: {error}")


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
            kind = each.metadata["parse"] or flag_type(each)
            options |= {"action": _Value, "field": each, "type": kind}
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


def _as_flag(name: str, value: Any) -> str:
    """How a user would give a setting this value."""
    flag = flag_of(SETTINGS[name])
    if not flag.startswith("--set "):
        shown = size_text(value) if isinstance(value, tuple) else value
        return flag if isinstance(value, bool) else f"{flag} {shown}"
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f"{flag}={text.lower()}"


def _about_presets(preset: str) -> str:
    """The end of --help: what a preset sets, or which presets there are, and the settings without a flag."""
    if preset:
        values = [_as_flag(name, value) for name, value in PRESETS[preset].items()] or ["nothing: it is the default"]
        return f"--preset {preset}, {DESCRIPTIONS[preset]}, sets\n" + "\n".join(f"  {value}" for value in values)
    presets = "".join(f"  {name:14} {text}\n" for name, text in DESCRIPTIONS.items())
    others = ", ".join(sorted(name for name, each in SETTINGS.items() if not each.metadata.get("flags")))
    return (
        f"presets (--preset NAME --help lists what one sets):\n{presets}\n"
        + fill(f"settings without a flag, for --set: {others}", 100)
        + "\n\nWith --test the script samples videos: --test --help lists its flags."
    )


class _Help(argparse.Action):
    """Prints the help, whose end is about the preset that is given before, or about all presets."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: Any) -> None:
        parser.epilog = _about_presets(namespace.preset or "")
        parser.print_help()
        parser.exit()


def train_parser() -> argparse.ArgumentParser:
    """All flags of training."""
    parser = CommandParser(
        "Train a VIDM generator.", add_help=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-h", "--help", action=_Help, nargs=0, help="show this help message and exit")
    mode = parser.add_argument_group("run")
    mode.add_argument("--test", action="store_true", help="sample videos instead of training")
    mode.add_argument(
        "--dry-run", action="store_true", help="build everything, take one step, print its memory, write nothing"
    )
    mode.add_argument("--preset", choices=PRESETS, help="named settings to start from (paper128)")
    mode.add_argument(
        "--config", metavar="FILE", help="config.json of a run, or TOML: settings that replace the preset's"
    )
    mode.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action=_Set,
        dest="",
        default=argparse.SUPPRESS,
        help="any setting by its name in config.json, also one without a flag; may be repeated",
    )
    mode.add_argument(
        "--print-config",
        action="store_true",
        help="print all settings as JSON, which --config takes in a file named *.json, and exit",
    )
    _add_checkpoint(
        mode,
        "checkpoint to continue from; a run's folder: its newest undamaged one; auto: that of --out, if there is one; "
        "hf:owner/name: a repository",
    )
    mode.add_argument("--start-iters", type=int, metavar="N", help="count steps from N instead of the checkpoint's")
    _add_processes(parser)
    titles = ("network", "diffusion", "data", "training")
    for title, section in zip(titles, Config().sections(), strict=True):
        _add_settings(parser.add_argument_group(f"{title} (defaults in parentheses)"), section)
    sampling_only = _flags(SampleConfig()) - _flags(*Config().sections()) | {"--weights"}
    _add_other_mode(parser, sampling_only, "is a sampling flag: add --test")
    return parser


def sample_parser() -> argparse.ArgumentParser:
    """All flags of sampling (--test)."""
    parser = CommandParser("Sample videos from a trained VIDM generator.")
    mode = parser.add_argument_group("run")
    mode.add_argument("--test", action="store_true", help="sample videos; without it the script trains")
    _add_checkpoint(
        mode,
        "checkpoint of the motion generator to sample from; a run's folder: its newest undamaged one; auto: that of "
        f"the folder {DEFAULT_RUN}, the default --out of training; hf:owner/name: a repository on the Hugging Face Hub",
    )
    mode.add_argument(
        "--weights",
        choices=WEIGHTS,
        default="ema",
        help="weights of the generators: ema, averaged over the training, or raw, those of the last step (ema)",
    )
    _add_processes(parser)
    _add_settings(parser.add_argument_group("sampling (defaults in parentheses)"), SampleConfig())
    unused = parser.add_argument_group("without effect, accepted because the original code's command passes them")
    unused.add_argument("--workers", "-j", type=int, metavar="INT", help="each process reads its own first frames")
    unused.add_argument("--resolution", type=frame_size, metavar="SIZE", help="videos have the size of the network")
    training_only = _flags(*Config().sections()) - _flags(SampleConfig()) - {*UNUSED_IN_SAMPLING} | {*TRAINING_ONLY}
    _add_other_mode(parser, training_only - {"--data"}, "is a training flag: it has no effect on sampling")
    _add_other_mode(parser, {"--data"}, "is a training flag: sampling takes first frames from --content")
    return parser


def parse_flags(arguments: Sequence[str]) -> argparse.Namespace:
    """The flags of a command line, parsed for sampling if --test is among them, else for training."""
    if "--test" in arguments:
        return sample_parser().parse_args(arguments)
    return train_parser().parse_args(arguments)


def given(options: argparse.Namespace, section: Any) -> dict[str, Any]:
    """The values given as flags or by --set for a section's settings, by name."""
    return {each.name: getattr(options, each.name) for each in fields(section) if hasattr(options, each.name)}


def refuse_unused(options: argparse.Namespace, sections: Sequence[Any], rules: Iterable[Rule]) -> None:
    """Raise ValueError, naming the flag and the reason, if a given setting has no effect by one of the rules."""
    flags = flags_by_name(sections)
    for applies, names, reason in rules:
        for name in names.split() if applies else ():
            if hasattr(options, name):
                raise ValueError(f"{flags[name]} has no effect: {reason}")
