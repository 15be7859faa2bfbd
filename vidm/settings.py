"""Fields of dataclasses that are settings: each has a default, a help text, and perhaps a flag and valid values. Ours.

@dataclass(frozen=True)
class DataConfig:
    frame_stride: int = setting(1, "take every K-th frame of a video", "--frame-stride", least=1)

check_values(DataConfig(frame_stride=0))  # raises ValueError: --frame-stride 0: give 1 or more

Messages name settings by their flags. A function for Python code is decorated with arguments_named: outside commands,
its errors have the names of arguments instead.
"""

import argparse
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import Field, field, fields
from numbers import Integral, Real
from types import NoneType
from typing import Any, get_args

from vidm.console import short
from vidm.files import LARGEST
from vidm.frame_size import FrameSize, plain_size

# A flag with its --, or a quoted command, in a message.
_FLAG = re.compile(r"(?:--set |(?<![\w-])--)(?P<name>[a-z][\w-]*)|`[^`]*`")
# Whether this is inside a command, or inside a function for Python code that will rename flags.
_inside: ContextVar[bool] = ContextVar("inside", default=False)
# Of classes; the largest video data sets have some thousands.
MOST_NAMES = 100_000


def setting(
    default: Any,
    help: str,
    flag: str = "",
    choices: tuple[str, ...] = (),
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    parse: Callable[[str], Any] | None = None,
) -> Any:
    """A dataclass field with its flag (several names are separated by spaces), help text and valid values.

    `parse` reads a value from text, if the field's type does not. In a tuple, every number must be valid.
    """
    valid = {"choices": choices, "least": least, "above": above, "most": most, "parse": parse}
    return field(default=default, metadata={"help": help, "flags": flag.split(), **valid})


def flagged(section: Any) -> Iterator[Field[Any]]:
    """The fields of a configuration dataclass that have a flag."""
    return (each for each in fields(section) if each.metadata.get("flags"))


def flag_of(each: Field[Any]) -> str:
    """How a user gives a setting: its first flag, or --set and its name."""
    return each.metadata["flags"][0] if each.metadata.get("flags") else f"--set {each.name}"


def flags_by_name(sections: Iterable[Any]) -> dict[str, str]:
    """How a user gives each setting of some sections, by the setting's name."""
    return {each.name: flag_of(each) for section in sections for each in fields(section)}


@contextmanager
def flags_named() -> Iterator[None]:
    """Let messages name flags, as they are written: for commands."""
    token = _inside.set(True)
    try:
        yield
    finally:
        _inside.reset(token)


@contextmanager
def arguments_named(*sections: Any, **names: str) -> Iterator[None]:
    """Let errors of a function that Python code calls name its arguments where commands name flags.

    The name of a flag's argument is the one in `names`, else that of the setting in `sections`, else the flag's:
    num_samples for --num-samples. Of functions that call each other, the outermost renames. Ours.
    """
    if _inside.get():
        yield
        return
    by_flag = {flag: each.name for section in sections for each in flagged(section) for flag in each.metadata["flags"]}

    def argument(found: re.Match[str]) -> str:
        if not found["name"]:
            return found[0]
        name = found["name"].replace("-", "_")
        return names.get(name) or by_flag.get(f"--{found['name']}") or name

    try:
        with flags_named():
            yield
    except (ValueError, OSError) as error:
        if len(error.args) == 1:
            error.args = (_FLAG.sub(argument, str(error)),)
        raise


def flag_type(each: Field[Any]) -> type:
    """The type of a setting's values without None."""
    return next(kind for kind in (*get_args(each.type), each.type) if kind is not NoneType)


def from_text(each: Field[Any], text: str) -> Any:
    """A setting's value from text: 2e-4, true, or 1,2,4. Raises ValueError, naming the setting, for another type."""
    try:
        if each.metadata.get("parse"):
            return each.metadata["parse"](text)
        if isinstance(each.default, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(each.default, tuple):
            return tuple(int(part) for part in text.split(",")) if text.strip() else ()
        return flag_type(each)(text)
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"{each.name} is {error}") from None
    except (ValueError, KeyError):
        wanted = "true or false" if isinstance(each.default, bool) else "whole numbers as 1,2,4"
        if not isinstance(each.default, bool | tuple):
            wanted = "a whole number" if flag_type(each) is int else "a number"
        raise ValueError(f"{each.name} is {short(text)!r}: give {wanted}") from None


def check_type(each: Field[Any], value: Any) -> None:
    """Raise ValueError, naming the setting, for a value of another type than a field's."""
    wanted = type(each.default)
    if each.type == FrameSize:
        try:
            plain_size(value)
        except ValueError:
            wanted_size = "a whole number, or two for height and width"
            raise ValueError(f"setting {each.name} is {reprlib.repr(value)}: give {wanted_size}") from None
        return
    kinds = (wanted, int) if each.type is float else wanted
    if isinstance(value, bool) is not (wanted is bool) or not isinstance(value, kinds):
        raise ValueError(f"setting {each.name} is {reprlib.repr(value)}, not of type {wanted.__name__}")
    if isinstance(value, tuple):
        kind = get_args(each.type)[0]
        named, most = ("names", MOST_NAMES) if kind is str else ("whole numbers", 100)
        if len(value) > most or not all(isinstance(part, kind) for part in value):
            raise ValueError(f"setting {each.name} is {short(value)}, not {named}, at most {most}")


def check_value(each: Field[Any], value: Any, flag: str = "") -> None:
    """Raise ValueError, naming the flag, for a value that is not among the choices or not in the range of a field."""
    valid, flag = each.metadata, flag or flag_of(each)
    if not valid:
        return
    if valid["choices"] and value not in valid["choices"]:
        raise ValueError(f"{flag} {short(value)!r}: choose from {', '.join(valid['choices'])}")
    least, above, most = valid["least"], valid["above"], valid["most"]
    if value is None or (least is None and above is None):
        return
    parts = value if isinstance(value, tuple) else (value,)
    whole = flag_type(each) is int
    if not all(isinstance(part, Integral if whole else Real) for part in parts):
        raise ValueError(f"{flag} {reprlib.repr(value)}: give {'a whole number' if whole else 'a number'}")
    # Comparisons with NaN are false, so it is refused as well.
    large_enough = all(part > above if least is None else part >= least for part in parts)
    if not (large_enough and all(part <= (most or LARGEST) for part in parts)):
        wanted = f"{least} or more" if above is None else f"a number above {above}"
        if most or large_enough:
            most = most or LARGEST
            wanted = f"a number from {least} to {most}" if above is None else f"{wanted}, at most {most}"
        shown = "x".join(map(str, parts)) if isinstance(value, tuple) else short(value)
        raise ValueError(f"{flag} {shown}: give {wanted}")


def check_values(section: Any) -> None:
    """Raise ValueError, naming the flag, for the first value of a section that check_value refuses."""
    for each in fields(section):
        check_value(each, getattr(section, each.name))
