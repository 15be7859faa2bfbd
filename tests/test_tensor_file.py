"""Tests of reading tensor files: what torch.load would execute or unpack without a limit is refused beforehand."""

import pickle
import resource
import time
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from vidm.tensor_file import read_tensors

GLOBAL_BYTEARRAY = b"cbuiltins\nbytearray\n"
GIB = 2**30
FORMS = {
    "contiguous": torch.arange(6.0),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "half": torch.ones(3, dtype=torch.float16),
    "bfloat16": torch.ones(3, dtype=torch.bfloat16),
    "integer": torch.arange(3),
    "bool": torch.tensor([True, False]),
    "parameter": torch.nn.Parameter(torch.ones(2)),
    "empty": torch.zeros(0, 4),
    "scalar": torch.tensor(2.5),
}


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    """At most 2 GiB more memory than now and 30 seconds, which every bomb would exceed."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    start = time.monotonic()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2 * GIB, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)
    assert time.monotonic() - start < 30


def with_pickle(folder: Path, content: bytes, name: str = "data.pkl") -> Path:
    """A file of torch.save whose pickle is replaced by instructions that leave one object on the stack."""
    plain, path = folder / "plain.pt", folder / "bomb.pt"
    torch.save({"weight": torch.ones(2)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w") as target:
        for part in source.infolist():
            replaced = part.filename.endswith("data.pkl")
            data = b"\x80\x02" + content + b"." if replaced else source.read(part)
            target.writestr(part.filename.replace("data.pkl", name), data)
    return path


def refused(path: Path) -> str:
    with pytest.raises(ValueError, match=rf"^{path} is truncated, damaged") as error:
        read_tensors(path)
    return str(error.value.__cause__)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_tensors_of_every_usual_form_are_read_as_they_were_saved(tmp_path, form, legacy):
    tensor = FORMS[form]
    path = tmp_path / "saved.pt"
    content = {"state_dict": OrderedDict(a=tensor, b=tensor), "iters": 7, "shape": (1, (2, 3)), "none": None}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    found = read_tensors(path)
    assert torch.equal(found["state_dict"]["a"], tensor)
    assert found["state_dict"]["a"].dtype == tensor.dtype
    assert (found["iters"], found["shape"], found["none"]) == (7, (1, (2, 3)), None)


@pytest.mark.parametrize(
    ("instructions", "reason"),
    [
        (GLOBAL_BYTEARRAY + b"\x8a\x06\x00\x00\x00\x00\x00\x10\x85R", "GLOBAL builtins bytearray"),
        (b"ctorch.storage\nUntypedStorage\nJ\xff\xff\xff\x7f\x85R", "GLOBAL torch.storage UntypedStorage"),
        (b"ccollections\nCounter\n)R", "GLOBAL collections Counter"),
        (b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86R", "GLOBAL _codecs encode"),
        (b"cposix\nsystem\nX\x02\x00\x00\x00id\x85R", "GLOBAL posix system"),
        (b"\x8c\x05posix\x8c\x06system\x93X\x02\x00\x00\x00id\x85R", "STACK_GLOBAL"),
        (b"}" + b"\x8f0" * 8, "EMPTY_SET"),
        (b"\x8a\x20" + b"\x01" * 32, "an integer of more than 64 bits"),
        (b"]" + b"(" * (2**21 + 1), "its pickle is too large"),
    ],
)
def test_a_pickle_that_does_more_than_describe_tensors_is_refused_before_it_is_executed(tmp_path, instructions, reason):
    assert reason in refused(with_pickle(tmp_path, instructions))


@pytest.mark.parametrize("name", ["data.pkl", "DATA.PKL"])
def test_a_tuple_of_tuples_as_a_key_is_not_hashed_by_every_path(tmp_path, name):
    """Each of 60 tuples contains the one before it twice: the hash of the last takes 2**60 steps."""
    levels = b"".join(b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(60))
    assert "repeats tuples" in refused(with_pickle(tmp_path, b"}K\x01\x85" + levels + b"Ns", name))


@pytest.mark.parametrize("content", [GLOBAL_BYTEARRAY + b"\x8a\x06\x00\x00\x00\x00\x00\x10\x85R", b"cposix\nsystem\n"])
def test_a_file_of_an_old_pytorch_is_checked_as_well(tmp_path, content):
    path = tmp_path / "old.pt"
    torch.save({"weight": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    with path.open("rb") as file:
        before = [pickle.load(file) for _ in range(3)]  # a constant, the format's version, and the byte order
    head = b"".join(pickle.dumps(part, protocol=2) for part in before)
    assert path.read_bytes().startswith(head)
    path.write_bytes(head + b"\x80\x02" + content + b".")
    assert "GLOBAL" in refused(path)


def test_a_dictionary_whose_methods_are_replaced_is_refused(tmp_path):
    content = OrderedDict(weight=torch.ones(2))
    content.items = OrderedDict  # type: ignore[method-assign,assignment]
    torch.save({"state_dict": content}, tmp_path / "replaced.pt")
    assert refused(tmp_path / "replaced.pt") == "a dictionary has attributes"


def test_the_metadata_of_a_state_dict_is_no_obstacle(tmp_path):
    torch.save({"state_dict": torch.nn.Linear(2, 2).state_dict()}, tmp_path / "linear.pt")
    assert list(read_tensors(tmp_path / "linear.pt")["state_dict"]) == ["weight", "bias"]


def test_a_bare_pickle_is_refused(tmp_path):
    path = tmp_path / "bare.pt"
    path.write_bytes(pickle.dumps({"weight": 1}, protocol=2))
    assert refused(path) == "torch.save did not write it"


def test_a_compressed_file_is_not_unpacked(tmp_path):
    """Zeros deflate by a factor of a thousand."""
    plain, path = tmp_path / "plain.pt", tmp_path / "deflated.pt"
    torch.save({"weight": torch.zeros(2**20)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for part in source.infolist():
            target.writestr(part.filename, source.read(part))
    assert refused(path) == "a part is compressed"


@pytest.mark.parametrize("tensor", [torch.zeros(1).expand(10**12), torch.zeros(4096).as_strided((4096, 4096), (0, 1))])
def test_a_tensor_that_is_larger_than_its_file_is_refused(tmp_path, tensor):
    path = tmp_path / "views.pt"
    torch.save({"weight": tensor}, path)
    assert refused(path) == "its tensors are larger than the file"


def test_a_list_that_contains_itself_many_times_is_read_once(tmp_path):
    twice: list = []
    for _ in range(40):
        twice = [twice, twice]  # by every path, there are 2**40 lists
    torch.save({"nested": twice}, tmp_path / "nested.pt")
    read_tensors(tmp_path / "nested.pt")


@pytest.mark.parametrize("width", [4, 8])
def test_a_zip_directory_that_is_found_at_two_places_is_refused(tmp_path, width):
    """zipfile looks for the directory just before its end, PyTorch at the stored offset, where another one can be."""
    path = tmp_path / "two.pt"
    torch.save({"weight": torch.ones(2)}, path)
    content = bytearray(path.read_bytes())
    place = {4: len(content) - 6, 8: len(content) - 98 + 48}[width]
    content[place : place + width] = (64).to_bytes(width, "little")
    path.write_bytes(content)
    with zipfile.ZipFile(path):
        assert refused(path) == "its zip directory is ambiguous"


def test_a_second_record_of_a_zip_directory_is_refused(tmp_path):
    """In files of zip64, zipfile looks for a record just before its locator, PyTorch where the locator points."""
    path = tmp_path / "two.pt"
    torch.save({"weight": torch.ones(2)}, path)
    record = path.read_bytes()[-98:-42]
    torch.save({"weight": torch.frombuffer(bytearray(record), dtype=torch.uint8)}, path)
    content = bytearray(path.read_bytes())
    assert content[-98:-94] == b"PK\6\6"
    content[-34:-26] = content.index(record).to_bytes(8, "little")
    path.write_bytes(content)
    assert refused(path) == "its zip directory is ambiguous"


def test_a_zip_file_with_a_comment_is_refused(tmp_path):
    path = tmp_path / "comment.pt"
    torch.save({"weight": torch.ones(2)}, path)
    with zipfile.ZipFile(path, "a") as parts:
        parts.comment = bytes(64)
    assert refused(path) == "its zip directory is ambiguous"


def test_parts_that_share_bytes_are_refused(tmp_path):
    """A thousand names for the same bytes would be read a thousand times."""
    plain, path = tmp_path / "plain.pt", tmp_path / "shared.pt"
    torch.save({"weight": torch.ones(2**16)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w") as target:
        for part in source.infolist():
            target.writestr(part.filename, source.read(part))
        (weight,) = (part for part in target.infolist() if part.filename.endswith("/0"))
        for number in range(1, 20):
            copy = zipfile.ZipInfo(weight.filename[:-1] + str(number))
            copy.CRC, copy.file_size, copy.compress_size = weight.CRC, weight.file_size, weight.file_size
            copy.header_offset = weight.header_offset
            target.filelist.append(copy)
    assert refused(path) == "its parts are larger than the file"


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(3, device="meta"),
        torch.ones(3, dtype=torch.complex64),
        torch.eye(3).to_sparse(),
        torch.zeros(4, dtype=torch.uint8).view(torch.float8_e4m3fn),
    ],
)
def test_tensors_of_unusual_kinds_are_refused(tmp_path, tensor):
    path = tmp_path / "unusual.pt"
    torch.save({"weight": tensor}, path)
    assert "GLOBAL" in refused(path)
