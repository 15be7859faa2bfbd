"""Write files and folders atomically, hold a folder, read regular files only, and compute digests.

The content is written under a hidden name in the same folder and renamed at the end. A reader therefore never sees an
incomplete file, and an interrupted run leaves nothing behind. On a full disk every function raises WriteError.

Only regular files are replaced. Pipes and devices, such as /dev/stdout, are written to. A link is followed within its
folder, and a link that leads out of it is refused.

    with atomic_file("out/checkpoint_00001000.pt") as file:
        torch.save(state, file)
    append("out/stats.jsonl", b"one row\n")
    sha256_of([Path("out/checkpoint_00001000.pt")])
"""

import errno
import fcntl
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import stat
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

_CHUNK = 1 << 20
LARGEST_JSON = 1 << 24  # bytes
LARGEST = 10**9  # a number from a file or flag, without a smaller bound of its own
LONGEST_PATH = 4096  # bytes, as Linux has it
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class WriteError(OSError):
    """A file could not be written: the disk is full, or a quota or the limit on file sizes (ulimit -f) is reached."""

    def __str__(self) -> str:
        return f"{self.filename} was not written: {self.strerror}"


def is_full(error: OSError) -> bool:
    """Whether an error of a file says that the disk is full, or a quota or the limit on file sizes is reached."""
    return error.errno in _FULL


@contextmanager
def _full_disk_named(path: Path) -> Iterator[None]:
    """Turn an error of a full disk into a WriteError that names `path` instead of a temporary file."""
    try:
        yield
    except OSError as error:
        if error.errno is None or not is_full(error):
            raise
        raise WriteError(error.errno, os.strerror(error.errno), str(path)) from error


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


def _descriptor(path: str | Path) -> int | None:
    """The descriptor of this process that a name such as /dev/stdout stands for, None for other names.

    Opening the name again would write at the beginning of a file that the output is redirected to.
    """
    found = re.fullmatch(r"/dev/fd/(\d{1,9})", str(path))
    return int(found[1]) if found else {"/dev/stdout": 1, "/dev/stderr": 2}.get(str(path))


def target_of(path: str | Path) -> Path:
    """The path that writing to `path` changes: `path` itself, or what it links to in the folder it is in.

    Raises ValueError for a link that leads out of its folder. Ours.
    """
    path = Path(path)
    if _descriptor(path) is not None or not path.is_symlink():
        return path
    folder, target = Path(os.path.realpath(path.parent)), Path(os.path.realpath(path))
    if target.is_symlink() or not target.is_relative_to(folder):
        raise ValueError(f"{path} is a link that leads out of its folder, to {target}: give that name, or remove it")
    return target


def _is_written_through(path: Path) -> bool:
    return _descriptor(path) is not None or (path.exists() and not path.is_file())


def _open_to_write(path: str, flags: int) -> int:
    """Open a file for Python's open(), without waiting for a reader of a pipe and without following a link."""
    descriptor = _descriptor(path)
    if descriptor is not None:
        return os.dup(descriptor)
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY, 0o666)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise ValueError(f"{path} is a pipe or socket that no process reads: start its reader first") from error
        raise
    os.set_blocking(descriptor, True)
    return descriptor


@contextmanager
def _written_through(path: Path) -> Iterator[Path]:
    """Yield a temporary path whose content is written to a pipe or device when the block ends."""
    with TemporaryDirectory() as folder:
        temporary = Path(folder, path.name)
        yield temporary
        with temporary.open("rb") as source, open(path, "wb", opener=_open_to_write) as target:
            shutil.copyfileobj(source, target)


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to, which is renamed to `path` when the block ends and removed if it raises.

    An existing file is replaced; missing parent folders are created. Raises ValueError if `path` is a folder or a link
    out of its folder, and WriteError if an OSError in the block says that the disk is full. Ours.
    """
    path = target_of(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the name of a file")
    if _is_written_through(path):
        with _full_disk_named(path), _written_through(path) as temporary:
            yield temporary
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _hidden_sibling(path)
    try:
        with _full_disk_named(path):
            yield temporary
            _flush(temporary)
            os.replace(temporary, path)
            _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


class _Output(io.RawIOBase):
    """A file for libraries that write to a Python file; `error` is its first error, whatever the library makes of it.

    It has no descriptor, since numpy and Pillow would then write without Python's file, and without its errors.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._file.close()


@contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """Yield a binary file to write to in order, as atomic_write yields a path; its first error is raised at the end.

    For libraries that replace the errors of a file by their own: torch.save by a RuntimeError, numpy.save by one
    without the reason. Ours.
    """
    with atomic_write(path) as temporary:
        output = _Output(temporary)
        try:
            with output:
                yield output  # type: ignore[misc]  # a BinaryIO in everything that writes
        except Exception:
            if output.error:
                raise output.error from None
            raise


def append(path: str | Path, data: bytes) -> None:
    """Append bytes to a file, all or none of them. Raises ValueError for a link out of its folder, WriteError on a full
    disk. Ours."""
    path = target_of(path)
    # Without a buffer, which would write the rest of the data when the file is closed.
    with _full_disk_named(path), open(path, "ab", buffering=0, opener=_open_to_write) as file:
        size, rest = os.fstat(file.fileno()).st_size, memoryview(data)
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            with suppress(OSError):  # a device cannot be truncated
                file.truncate(size)
            raise


@contextmanager
def atomic_dir(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder to fill, which is renamed to `path` when the block ends and removed if it raises.

    Missing parent folders are created. Raises ValueError if `path` exists and is not an empty folder, and errors as
    atomic_write does. Ours.
    """
    path = target_of(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"{path} already exists: remove it or give the name of a new folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _hidden_sibling(path)
    with _full_disk_named(path):
        temporary.mkdir()
    try:
        with _full_disk_named(path):
            yield temporary
            for entry in temporary.rglob("*"):
                _flush(entry)
            _flush(temporary)
            os.replace(temporary, path)
            _flush(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Hold a folder for this process while the block runs. Raises ValueError if another process holds it.

    The system releases the lock when the process ends, however it ends; the empty file .lock remains. Without support
    for locks (some network disks), nothing is held. Ours.
    """
    path = target_of(Path(folder, ".lock"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", opener=_open_to_write) as file:
        try:
            # Unlike flock's, this lock is not inherited by data loading processes, which may outlive a killed run.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise ValueError(
                f"{folder} is in use by another run: wait until it ends, or give another folder"
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
        yield


def regular_file(path: str | Path) -> Path:
    """Return the path of a file to read, unless it is a pipe, a socket or a device: opening one could wait forever.

    Raises ValueError, and OSError for a path that does not exist. Ours.
    """
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ValueError(f"{path} is a pipe or a device: give a regular file")
    return Path(path)


def read_json(path: str | Path, largest: int = LARGEST_JSON) -> Any:
    """Return the content, of any form, of a JSON file of at most `largest` bytes.

    Raises ValueError, naming the file, if it is larger, damaged or no regular file, and OSError. Ours.
    """
    path = regular_file(path)
    with path.open("rb") as file:
        text = file.read(largest + 1)
    try:
        if len(text) > largest:
            raise ValueError(f"it has more than {largest} bytes")
        return json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON that can be read: {error}") from error


def can_be_path(value: object) -> bool:
    """Whether a value, such as one from a JSON file, can be the path of a file on any disk. Ours."""
    try:
        return isinstance(value, str) and b"\0" not in (name := os.fsencode(value)) and 0 < len(name) < LONGEST_PATH
    except UnicodeEncodeError:
        return False


def has_wrong_checksum(path: str | Path) -> bool:
    """Whether a zip file, such as those of PyTorch, has a part whose bytes do not match its CRC-32; torch ignores them.

    False for files of other formats. Raises errors of many types for a damaged zip file. Ours.
    """
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as parts:
        return parts.testzip() is not None


def sha256_of(paths: Iterable[Path]) -> str:
    """The sha256 (hexadecimal) of one file's bytes, or of the sizes and bytes of several files in the given order.

    Raises ValueError for a pipe or a device.
    """
    paths = list(paths)
    digest = hashlib.sha256()
    for path in paths:
        if len(paths) > 1:
            digest.update(f"{path.stat().st_size} ".encode())
        with regular_file(path).open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()
