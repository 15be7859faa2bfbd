"""Tests with headers made to harm: small files that claim many samples, or that refer to other files, are refused."""

import resource
import struct
from pathlib import Path

import numpy as np
import pytest
from test_pack_index import GIB, run_limited

from vidm.container_headers import PARENTS, check_claims
from vidm.video_io import VideoError, probe, read_frames, write_video

REAL = Path(__file__).parent / "data" / "nasa_13013.mp4"


def box(kind: bytes, *content: bytes) -> bytes:
    data = b"".join(content)
    return struct.pack(">I4s", 8 + len(data), kind) + data


def numbers(*values: int) -> bytes:
    return struct.pack(f">{len(values)}I", *values)


def claiming(boxes: bytes, samples: int, edits: int, tracks: int) -> bytes:
    """Return the boxes of an mp4 whose tables claim other numbers of samples and edits, and with its track repeated."""
    tables = {
        b"stsz": numbers(0, 1, samples),
        b"stts": numbers(0, 1, samples, 512),
        b"stsc": numbers(0, 1, 1, samples, 1),
        b"elst": numbers(0, edits) + numbers(10**8, 0, 0x10000) * edits,
        b"stss": b"",
        b"ctts": b"",
    }
    result, position = b"", 0
    while position < len(boxes):
        size, kind = struct.unpack_from(">I4s", boxes, position)
        content = boxes[position + 8 : position + size]
        if kind in PARENTS:
            content = claiming(content, samples, edits, tracks)
        if content := tables.get(kind, content):
            result += box(kind, content) * (tracks if kind == b"trak" else 1)
        position += size
    return result


@pytest.fixture
def video(tmp_path: Path) -> Path:
    write_video(tmp_path / "a.mp4", np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8))
    return tmp_path / "a.mp4"


def refuse_to_read(path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for read in (probe, lambda path: read_frames(path, [1])):
        with pytest.raises(VideoError, match=f"{path.name}: "):
            read(path)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < GIB


# The last one is within the budget. Without any check, each takes more than a GiB, and the third one 25 GiB.
@pytest.mark.parametrize(
    ("samples", "edits", "tracks"), [(50_000_000, 1, 1), (500_000, 200, 1), (9_000_000, 1, 80), (9_000_000, 1, 1)]
)
def test_a_small_file_that_claims_many_samples_takes_less_than_a_gibibyte(
    video: Path, samples: int, edits: int, tracks: int
) -> None:
    path = video.with_name("claims.mp4")
    path.write_bytes(claiming(video.read_bytes(), samples, edits, tracks))
    if samples * edits * tracks > 10**7:
        with pytest.raises(VideoError, match=f"its headers claim {samples * edits * tracks} samples, but it has "):
            probe(path)
    run_limited(refuse_to_read, path, seconds=120)


def test_a_fragment_that_claims_many_samples_is_refused(video: Path) -> None:
    moof = box(b"moof", box(b"traf", box(b"tfhd", numbers(0, 1)), box(b"trun", numbers(0, 2**31, 0))))
    video.write_bytes(video.read_bytes() + moof)
    with pytest.raises(ValueError, match=f"its headers claim {2**31 + 4} samples"):
        check_claims(video)


def test_a_compressed_header_is_refused(video: Path) -> None:
    video.write_bytes(video.read_bytes().replace(b"mvhd", b"cmov"))
    with pytest.raises(VideoError, match=r"its header is compressed: copy it with `ffmpeg -i FILE -c copy NEW\.mp4`"):
        probe(video)


@pytest.mark.parametrize("data", [b"", b"\0" * 99, numbers(1) + b"moov" + bytes(8), b"\0\0\0\x08moov" * 1000])
def test_boxes_of_any_size_end(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(data)
    check_claims(tmp_path / "a.mp4")
    deep = b""
    for _ in range(2000):
        deep = box(b"moov", deep)
    (tmp_path / "b.mp4").write_bytes(deep)
    with pytest.raises(VideoError, match=r"b\.mp4: "):
        probe(tmp_path / "b.mp4")


def test_a_real_film_with_sound_claims_what_it_has() -> None:
    check_claims(REAL)


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".ts", ".mkv"])
@pytest.mark.parametrize(
    "text",
    ["ffconcat version 1.0\nfile a.mp4\n", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\na.mp4\n#EXT-X-ENDLIST\n"],
)
def test_a_list_of_other_files_is_not_a_video(video: Path, suffix: str, text: str) -> None:
    """FFmpeg recognizes such lists by their content, whatever the name is."""
    path = video.with_name(f"list{suffix}")
    path.write_text(text)
    with pytest.raises(VideoError, match=rf"list\{suffix}: cannot be read"):
        probe(path)
