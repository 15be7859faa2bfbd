"""Write files and folders atomically, and compute their digests.

The content is written under a hidden name in the same folder and renamed at the end. A reader therefore never sees an
incomplete file, and an interrupted run leaves nothing behind.

    with atomic_write("out/checkpoint_00001000.pt") as temporary:
        torch.save(state, temporary)
    sha256_of([Path("out/checkpoint_00001000.pt")])
"""

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_CHUNK = 1 << 20


def _hidden_sibling(path: Path) -> Path:
    # Renaming is atomic within a disk, so the file is in the same folder. Encoders take the format from the suffix.
    return path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")


def _flush(path: Path) -> None:
    """Wait until a file or folder is on disk: otherwise a rename may reach the disk before the content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to, which is renamed to `path` when the block ends and removed if it raises.

    An existing file is replaced; missing parent folders are created. Raises ValueError if `path` is a folder. Ours.
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
    """Yield a temporary folder to fill, which is renamed to `path` when the block ends and removed if it raises.

    Missing parent folders are created. Raises ValueError if `path` exists and is not an empty folder. Ours.
    """
    path = Path(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"{path} already exists: remove it or give the name of a new folder")
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


def sha256_of(paths: Iterable[Path]) -> str:
    """The sha256 (hexadecimal) of one file's bytes, or of the sizes and bytes of several files in the given order."""
    paths = list(paths)
    digest = hashlib.sha256()
    for path in paths:
        if len(paths) > 1:
            digest.update(f"{path.stat().st_size} ".encode())
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()
