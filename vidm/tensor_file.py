"""Read files of torch.save from strangers: no code runs, and memory and time are in proportion to the file. Ours.

    content = read_tensors("checkpoint.pt")

torch.load(weights_only=True) runs no code, but a small file can still fill the memory or take hours: by calls that it
allows, such as bytearray(10**12), by tensors that repeat few values, by tuples of tuples as keys, by compressed parts.
Each file is therefore checked first, and may contain only what dictionaries of plain tensors need.
"""

import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from vidm.files import regular_file

_ZIP = b"PK\x03\x04"
# The first pickle, a constant, of the files that PyTorch before 1.6 wrote; three more come before the tensors.
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_LARGEST_PICKLE = 1 << 21  # bytes; the 4,000 tensors of an authors' checkpoint need a quarter
_DTYPES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_GLOBALS = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    *(f"torch {dtype}Storage" for dtype in _DTYPES),
}
_TUPLES = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")
_MOST_REPEATED = 16  # tuples that are used again, each of which can double the time to hash a tuple


def _check_pickle(file: BinaryIO | bytes) -> None:
    """Read one pickle without executing it. Raises ValueError if it does more than describe tensors."""
    tuples: set[object] = set()
    repeated, is_tuple, start = 0, False, None
    for opcode, argument, position in pickletools.genops(file):
        start = position if start is None else start
        if (position or 0) - (start or 0) > _LARGEST_PICKLE:
            raise ValueError("its pickle is too large")
        if opcode.name in ("STACK_GLOBAL", "EMPTY_SET") or (opcode.name == "GLOBAL" and argument not in _GLOBALS):
            raise ValueError(f"its pickle has {opcode.name} {argument or ''}")
        if isinstance(argument, int) and argument.bit_length() > 64:  # any number of them can have the same hash
            raise ValueError("its pickle has an integer of more than 64 bits")
        if opcode.name in ("BINPUT", "LONG_BINPUT"):
            (tuples.add if is_tuple else tuples.discard)(argument)
            continue
        is_tuple = opcode.name in _TUPLES
        if opcode.name in ("BINGET", "LONG_BINGET") and argument in tuples:
            is_tuple, repeated = True, repeated + 1
        if repeated > _MOST_REPEATED:
            raise ValueError("its pickle repeats tuples")


def _check_directory(file: BinaryIO, start: int) -> None:
    """Raise ValueError unless every reader of zip finds the directory that starts at `start`, and no other.

    Its place and size are stored several times, and readers differ in which of them they believe.
    """
    file.seek(start)
    tail = file.read()
    is_zip64 = tail[-42:-38] == b"PK\6\7"  # as PyTorch writes it
    size = len(tail) - 22 - 76 * is_zip64
    unset = (0xFFFFFFFF,) if is_zip64 else ()
    size_32, start_32, comment = struct.unpack("<IIH", tail[-10:])
    agree = tail[-22:-18] == b"PK\5\6" and comment == 0 and size_32 in (size, *unset) and start_32 in (start, *unset)
    if is_zip64:
        agree &= struct.unpack("<QQ", tail[size + 40 : size + 56]) == (size, start)
        agree &= struct.unpack("<Q", tail[-34:-26]) == (start + size,)
    if not agree:
        raise ValueError("its zip directory is ambiguous")


def _check_zip(file: BinaryIO, size: int) -> None:
    """Raise ValueError for parts that are compressed, overlap, or do not match their checksum, which torch ignores."""
    with zipfile.ZipFile(file) as parts:
        _check_directory(file, parts.start_dir)
        found = parts.infolist()
        if any(part.compress_type != zipfile.ZIP_STORED for part in found):
            raise ValueError("a part is compressed")  # torch.save compresses nothing
        if sum(part.file_size for part in found) > size:
            raise ValueError("its parts are larger than the file")
        if parts.testzip() is not None:
            raise ValueError("a part does not match its checksum")
        for part in found:
            if part.filename.lower().endswith("data.pkl"):
                with parts.open(part) as pickle:
                    _check_pickle(pickle)  # type: ignore[arg-type]


def _check(path: Path) -> None:
    with path.open("rb") as file:
        magic = file.read(len(_LEGACY))
        if magic.startswith(_ZIP):
            _check_zip(file, path.stat().st_size)
        elif magic == _LEGACY:
            for _ in ("protocol", "system", "content", "names of storages"):
                _check_pickle(file)
        else:
            raise ValueError("torch.save did not write it")


def _tensors_in(content: Any, seen: set[int]) -> Iterator[Tensor]:
    """All tensors in nested dictionaries and lists, each once: a file can contain one list any number of times."""
    if id(content) in seen:
        return
    seen.add(id(content))
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, (Mapping, list, tuple)):
        # PyTorch gives state dicts this one attribute; any other would replace a method.
        if set(getattr(content, "__dict__", ())) - {"_metadata"}:
            raise ValueError("a dictionary has attributes")
        for part in content.values() if isinstance(content, Mapping) else content:
            yield from _tensors_in(part, seen)


def wrong_download(path: Path) -> str:
    """What a file is instead of weights, such as what a failed download left, and what to do; "" for others. Ours."""
    with path.open("rb") as file:
        head = file.read(256).lstrip().lower()
    if head.startswith((b"<!doctype html", b"<html")):
        return "is a web page, such as one that asks for a login or a confirmation; download it again in a browser"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself; run git lfs pull where it was cloned"
    if re.match(rb'\{\s*"', head):
        return "is JSON, such as the settings of a run; give the file of the weights"
    return ""


def read_tensors(path: str | Path) -> dict[str, Any]:
    """Load a file that torch.save wrote as a dictionary of tensors and plain values, on the CPU.

    Tensors are dense, of the usual real dtypes. Checksums are verified if the file has them. Never runs code from the
    file. Raises FileNotFoundError or ValueError, naming the file.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give a file in it")
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path}")
    if wrong := wrong_download(regular_file(path)):
        raise ValueError(f"{path} {wrong}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the error below says what is wrong
            _check(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
        # A tensor may repeat few stored values without end, and use that much memory once it is copied. Weights and
        # averaged weights may be the same.
        if (
            sum(tensor.numel() * tensor.element_size() for tensor in _tensors_in(content, set()))
            > 2 * path.stat().st_size
        ):
            raise ValueError("its tensors are larger than the file")
    except Exception as error:  # damaged files raise errors of many types
        raise ValueError(
            f"{path} is truncated, damaged, not a PyTorch file, or contains more than plain tensors, such as code "
            "(which was not run): download or write it again"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} contains a {type(content).__name__}, not a dictionary of weights")
    return content
