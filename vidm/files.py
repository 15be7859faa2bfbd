"""A file or folder appears whole or not at all.

The work is done under a hidden name beside the target and renamed into place at the end, so a reader never
meets half a file and an interrupted run leaves nothing behind.

    with atomic_write("out/checkpoint_00001000.pt") as temporary:
        torch.save(state, temporary)

What files hold, as one short text: equal for equal bytes, whatever their names, dates and places.

sha256_of([Path("pretrained_models/i3d_torchscript.pt")])
"""

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


def _hidden_sibling(path: Path) -> Path:
    # The same folder is the same disk, so that renaming is atomic; the same suffix tells encoders the format.
    return path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")


def _flush(path: Path) -> None:
    """Wait until the file or folder is on disk: a rename may otherwise reach the disk before the bytes do."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to: it becomes `path` when the block ends, is removed if it raises.

    An existing file is replaced, missing parent folders are made. Raises ValueError if `path` is a folder.
    Ours.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the name of a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _hidden_sibling(path)
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_dir(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder to fill: it becomes `path` when the block ends, is removed if it raises.

    Missing parent folders are made. Raises ValueError if `path` is there already and is not an empty folder.
    Ours.
    """
    path = Path(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"{path} is there already: remove it or give the name of a new folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _hidden_sibling(path)
    temporary.mkdir()
    try:
        yield temporary
        for entry in temporary.rglob("*"):
            _flush(entry)
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


CHUNK = 1 << 20


def sha256_of(paths: Iterable[Path]) -> str:
    """The sha256 (hexadecimal) of one file's bytes, or of the sizes and bytes of several, in their order."""
    paths = list(paths)
    digest = hashlib.sha256()
    for path in paths:
        if len(paths) > 1:
            digest.update(f"{path.stat().st_size} ".encode())
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    return digest.hexdigest()
