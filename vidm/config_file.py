"""Files of training settings: a run's config.json, or TOML or JSON with some settings. Ours.

    values = read_config("checkpoints/config.json")
    config = Config.from_preset("tiny").replaced(values)

Sections are optional, because no two settings have the same name:

    lr = 2e-4
    [model]
    model_channels = 96
"""

import json
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from vidm.config import Config, setting_of
from vidm.console import short
from vidm.files import LARGEST_JSON, read_json, regular_file
from vidm.resume import BEGINNING, PLACES, check_places
from vidm.settings import check_value

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def _read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file. Raises ValueError, naming the file, if it is larger than JSON may be, or damaged."""
    with regular_file(path).open("rb") as file:
        text = file.read(LARGEST_JSON + 1)
    try:
        if len(text) > LARGEST_JSON:
            raise ValueError(f"it has more than {LARGEST_JSON} bytes")
        return tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not TOML that can be read: {error}") from error


def _read_named(path: Path) -> Any:
    """The content of a file, TOML if it is named *.toml, else JSON. Raises ValueError, also if it is the other form."""
    forms = {"JSON": read_json, "TOML": _read_toml}
    form, other = ("TOML", "JSON") if path.suffix.lower() == ".toml" else ("JSON", "TOML")
    try:
        return forms[form](path)
    except ValueError as error:
        content = None
        with suppress(ValueError):
            content = forms[other](path)
        if content:
            name = path.with_suffix(f".{other.lower()}").name
            raise ValueError(f"{path} is {other}: rename it to {name}, or save it as {form}") from error
        raise


def _in_sections(content: Any) -> dict[str, dict[str, Any]]:
    """Settings in or outside sections, as sections. Raises ValueError for an unknown section or a setting given twice.

    The settings outside are the section "".
    """
    if not isinstance(content, Mapping):
        raise ValueError("it contains no settings by name")
    sections = {name: dict(part) for name, part in content.items() if isinstance(part, Mapping)}
    known = [part.name for part in fields(Config)]
    if unknown := [name for name in sections if name not in known]:
        raise ValueError(f"unknown section {short(unknown[0])!r}: the sections are {', '.join(known)}")
    sections[""] = {name: value for name, value in content.items() if name not in sections}
    for name, count in Counter(name for part in sections.values() for name in part).items():
        if count > 1:
            raise ValueError(f"setting {short(name)} is there twice")
    return sections


def read_config(path: str | Path, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The settings in a file of --config, or in a run's folder, by name; TOML if it is named *.toml, else JSON.

    `given` are settings from flags, which replace the file's. Unless the file is in the folder of the run it describes,
    it must not decide what is read and written: the data, the folder of the run, and the weights that it begins with.
    Left out is what a run found out itself: the classes of its data, and that SPyNet is trained for lack of weights.
    Raises ValueError, naming the file and the setting, for an unknown name, a wrong type or value, and for such a path
    that is not in `given`; FileNotFoundError for a missing file.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path} (--config)")
    content = _read_named(path)
    try:
        values = Config.values_from(_in_sections(content))
        for name, value in values.items():
            check_value(setting_of(name), value, name)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    paths = (*PLACES, *BEGINNING)
    described = Config().replaced({name: value for name, value in values.items() if name in paths})
    check_places(path, described, given or {}, paths)
    return _without_findings(values)


def _without_findings(values: dict[str, Any]) -> dict[str, Any]:
    """A run's settings without those that it found out itself: another run finds out its own."""
    found = {"class_names"} if "classes" in values else set()
    if (values.get("spynet"), values.get("init")) == ("", ""):
        found.add("train_flow")
    return {name: value for name, value in values.items() if name not in found}


def config_text(config: Config) -> str:
    """All settings as text in the form of a run's config.json, which read_config reads again."""
    return json.dumps(config.to_dict(), indent=2)
