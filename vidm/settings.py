"""Fields of dataclasses that are settings: each has a default, a help text, and perhaps a flag and valid values. Ours.

@dataclass(frozen=True)
class DataConfig:
    frame_stride: int = setting(1, "take every K-th frame of a video", "--frame-stride", least=1)

check_values(DataConfig(frame_stride=0))  # raises ValueError: --frame-stride 0: give 1 or more
"""

from collections.abc import Callable, Iterator
from dataclasses import Field, field, fields
from typing import Any

from vidm.console import short
from vidm.files import LARGEST


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


def check_values(section: Any) -> None:
    """Raise ValueError, naming the flag, for a value that is not among the choices or not in the range of its field."""
    for each in (each for each in fields(section) if each.metadata):
        value, valid = getattr(section, each.name), each.metadata
        flag = valid["flags"][0] if valid["flags"] else each.name
        if valid["choices"] and value not in valid["choices"]:
            raise ValueError(f"{flag} {short(value)!r}: choose from {', '.join(valid['choices'])}")
        least, above, most = valid["least"], valid["above"], valid["most"]
        if value is None or (least is None and above is None):
            continue
        parts = value if isinstance(value, tuple) else (value,)
        # Comparisons with NaN are false, so it is refused as well.
        large_enough = all(part > above if least is None else part >= least for part in parts)
        if not (large_enough and all(part <= (most or LARGEST) for part in parts)):
            wanted = f"{least} or more" if above is None else f"a number above {above}"
            if most or large_enough:
                most = most or LARGEST
                wanted = f"a number from {least} to {most}" if above is None else f"{wanted}, at most {most}"
            shown = "x".join(map(str, parts)) if isinstance(value, tuple) else short(value)
            raise ValueError(f"{flag} {shown}: give {wanted}")
