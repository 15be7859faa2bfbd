"""What processes tell each other, as JSON: a message can only become data, whoever sent it. Ours.

    message = encoded({"clips": [Path("a.mp4")], "size": (64, 64)})         # bytes
    decoded(message)                                                        # equal to what was encoded

A list, string, number, bool and None are themselves; anything else is an object with one entry, its type's name and its
parts. Dataclasses and NamedTuples are exchanged if both sides name their classes. Floats keep all bits.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

# An error is received as the first of these that it is an instance of, with its text.
ERRORS = (FileNotFoundError, OSError, ValueError)
# For each type: its parts, and the thing from its parts.
_TYPES: dict[str, tuple[type, Callable[[Any], list[Any]], Callable[[list[Any]], Any]]] = {
    "tuple": (tuple, list, tuple),
    "set": (set, list, set),
    "dict": (dict, lambda thing: [list(item) for item in thing.items()], dict),
    "range": (range, lambda thing: [thing.start, thing.stop, thing.step], lambda parts: range(*parts)),
    "path": (type(Path()), lambda thing: [str(thing)], lambda parts: Path(*parts)),
    "array": (np.ndarray, np.ndarray.tolist, partial(np.array, dtype=np.float64)),
}


def _parts_of(record: Any) -> list[Any]:
    return [getattr(record, each.name) for each in fields(record)] if is_dataclass(record) else list(record)


def _plain(thing: Any, records: Sequence[type]) -> Any:
    if thing is None or isinstance(thing, bool | int | float | str):
        return thing
    if type(thing) is list:
        return [_plain(part, records) for part in thing]
    if type(thing) in records:
        return {type(thing).__name__: _plain(_parts_of(thing), records)}
    for kind in ERRORS:
        if isinstance(thing, kind):
            return {kind.__name__: [str(thing)]}
    for name, (type_, parts_of, _) in _TYPES.items():
        if type(thing) is type_:
            return {name: _plain(parts_of(thing), records)}
    raise TypeError(f"processes cannot exchange a {type(thing).__name__}")


def _called(kind: type, parts: list[Any]) -> Any:
    return kind(*parts)


def _built(plain: Any, builders: dict[str, Callable[[list[Any]], Any]]) -> Any:
    if isinstance(plain, list):
        return [_built(part, builders) for part in plain]
    if not isinstance(plain, dict):
        return plain
    ((name, parts),) = plain.items()
    return builders[name](_built(parts, builders))


def encoded(thing: Any, records: Sequence[type] = ()) -> bytes:
    """A message that `decoded` turns into an equal thing, or into an error of ERRORS.

    `records` are the dataclasses and NamedTuples in it. An array is received as float64. Raises TypeError for anything
    of another type.
    """
    return json.dumps(_plain(thing, records)).encode()


def decoded(message: bytes, records: Sequence[type] = ()) -> Any:
    """The thing in a message. Raises ValueError for a message that `encoded` did not make with these `records`."""
    builders = {name: build for name, (_, _, build) in _TYPES.items()}
    builders |= {kind.__name__: partial(_called, kind) for kind in (*records, *ERRORS)}
    try:
        return _built(json.loads(message), builders)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError("another process sent what this one cannot read: run one version of vidm in all") from error
