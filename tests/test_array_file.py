"""Tests of the headers of .npy files: those that numpy writes, and those that nothing should write."""

import ast
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from vidm.array_file import Header, open_array, read_header

CLIP = np.random.default_rng(0).integers(0, 255, (3, 4, 5, 3), dtype=np.uint8)
GOOD = "{'descr': '|u1', 'fortran_order': False, 'shape': (1, 1, 1, 3), }"


def array_file(path: Path, header: str, version: int = 1, data: bytes = b"abc") -> Path:
    text = header.encode("utf-8" if version == 3 else "latin1")
    path.write_bytes(
        b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2 if version == 1 else 4, "little") + text + data
    )
    return path


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_of_any_version_is_read_as_numpy_reads_it(
    tmp_path: Path, version: tuple[int, int], order: str
) -> None:
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array(file, np.asarray(CLIP, order=order), version)
    found = open_array(tmp_path / "a.npy")
    np.testing.assert_array_equal(found, CLIP)
    assert found.flags["F_CONTIGUOUS"] == (order == "F")


@pytest.mark.parametrize("array", [np.zeros(()), np.zeros(5, ">i2"), np.zeros((2, 0), bool), np.zeros((1, 2), "<U7")])
def test_the_headers_of_numpy_are_understood(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", array)
    header = read_header(tmp_path / "a.npy")
    assert header.offset + array.nbytes == (tmp_path / "a.npy").stat().st_size
    assert header == Header(array.dtype.str, array.shape, False, header.offset)
    with pytest.raises(ValueError, match=rf"contains {array.dtype} \(.*\); a video is uint8"):
        open_array(tmp_path / "a.npy")


def test_entries_may_have_any_order_and_spaces(tmp_path: Path) -> None:
    header = '{ "shape":(1L , 1, 1,3L) ,"fortran_order" : False,\t"descr":"|u1"}   \n'
    assert open_array(array_file(tmp_path / "a.npy", header)).tolist() == [[[[97, 98, 99]]]]


@pytest.mark.parametrize(
    "header",
    [
        "",
        "{}",
        GOOD[:-1],
        GOOD + "}",
        GOOD.replace("False", "0"),
        GOOD.replace("(1, 1, 1, 3)", "(-1, 3)"),
        GOOD.replace("(1, 1, 1, 3)", "(1 1, 3)"),
        GOOD.replace("(1, 1, 1, 3)", "9" * 4000),
        GOOD.replace("'shape'", "'shapes'"),
        GOOD.replace("'|u1'", "[('r', '|u1')]"),
        GOOD.replace("'|u1'", "__import__('os').abort()"),
        GOOD.replace("(1, 1, 1, 3)", "(" + "1" * 9000),
        GOOD.replace("(1, 1, 1, 3)", "(" + " " * 9000),
        GOOD + " " * 10_000,
    ],
)
def test_any_other_header_is_refused(tmp_path: Path, header: str) -> None:
    with pytest.raises(ValueError, match="header of the array"):
        open_array(array_file(tmp_path / "a.npy", header))


def test_an_array_of_objects_or_with_missing_bytes_is_not_mapped(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="contains object"):
        open_array(array_file(tmp_path / "a.npy", GOOD.replace("|u1", "|O")))
    with pytest.raises(ValueError, match="contains unknown"):
        open_array(array_file(tmp_path / "a.npy", GOOD.replace("|u1", "i4,(2)f8")))
    with pytest.raises(ValueError, match="truncated, 1 bytes are missing"):
        open_array(array_file(tmp_path / "a.npy", GOOD, data=b"ab"))
    with pytest.raises(ValueError, match="truncated, 29999999"):
        open_array(array_file(tmp_path / "a.npy", GOOD.replace("(1,", f"({10**16},")))


def test_threads_read_headers_while_others_parse_python(tmp_path: Path) -> None:
    """Where they parse at the same moment, Python 3.11 may raise SystemError in any of them, as in numpy.load."""
    np.save(tmp_path / "a.npy", CLIP)

    def read(number: int) -> int:
        if number % 2 == 0:
            with suppress(SystemError, RecursionError, MemoryError):
                ast.literal_eval(repr({"shape": tuple(range(200))}))
        return len(open_array(tmp_path / "a.npy"))

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(read, range(400))) == {3}
