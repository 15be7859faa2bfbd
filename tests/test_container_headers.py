"""Tests with headers made to harm: small files that claim many samples, or that refer to other files, are refused."""

import resource
import struct
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from test_pack_index import GIB, run_limited

from vidm.container_headers import check_claims
from vidm.video_io import VideoError, probe, read_frames, write_video

PARENTS = (b"moov", b"trak", b"edts", b"mdia", b"minf", b"stbl", b"udta")
REAL = Path(__file__).parent / "data" / "nasa_13013.mp4"


def box(kind: bytes, *content: bytes) -> bytes:
    data = b"".join(content)
    return struct.pack(">I4s", 8 + len(data), kind) + data


def long_box(kind: bytes, *content: bytes) -> bytes:
    data = b"".join(content)
    return struct.pack(">I4sQ", 1, kind, 16 + len(data)) + data


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


# The last one is within the budget. Without any check, the first three take more than a GiB, and the third one 25 GiB.
@pytest.mark.parametrize(
    ("samples", "edits", "tracks"), [(50_000_000, 1, 1), (500_000, 200, 1), (9_000_000, 1, 80), (999_000, 1, 1)]
)
def test_a_small_file_that_claims_many_samples_takes_less_than_a_gibibyte(
    video: Path, samples: int, edits: int, tracks: int
) -> None:
    path = video.with_name("claims.mp4")
    path.write_bytes(claiming(video.read_bytes(), samples, edits, tracks))
    if samples * edits * tracks > 10**6:
        with pytest.raises(VideoError, match=f"its headers claim {samples * edits * tracks} samples, but it has "):
            probe(path)
    run_limited(refuse_to_read, path, seconds=120)


def bomb(tracks: int, samples: int, place: bytes, table: Callable[..., bytes] = box) -> list[bytes]:
    """Return the boxes of an mp4 whose tracks have their table of samples inside another box than the usual one."""
    entry = box(b"jpeg", bytes(24), struct.pack(">HH", 16, 16), bytes(50))
    tables = (
        box(b"stsd", numbers(0, 1), entry),
        box(b"stts", numbers(0, 1, samples, 1)),
        box(b"ctts", numbers(0, 1, samples, 1)),
        box(b"stsc", numbers(0, 1, 1, samples, 1)),
        box(b"stco", numbers(0, 1, 0)),
        box(place, table(b"stsz", numbers(0, 1, samples))),
    )
    handler = box(b"hdlr", numbers(0, 0), b"vide", bytes(13))
    media = box(b"mdia", box(b"mdhd", numbers(0, 0, 0, 25, samples, 0)), handler, box(b"minf", box(b"stbl", *tables)))
    track = box(b"trak", box(b"tkhd", numbers(3, 0, 0, 1, 0, samples), bytes(60)), media)
    return [box(b"mvhd", numbers(0, 0, 0, 25, samples), bytes(80)), *[track] * tracks]


@pytest.mark.parametrize(
    ("outer", "place", "table"),
    [(b"moov", b"dinf", box), (b"hoov", b"udta", box), (b"free", b"stbl", box), (b"moov", b"dinf", long_box)],
)
def test_samples_are_counted_in_boxes_where_they_do_not_belong(
    tmp_path: Path, outer: bytes, place: bytes, table: Callable[..., bytes]
) -> None:
    """FFmpeg reads them there: 8 tracks of 10,000,000 samples, 4 KB, took 2.9 GB and 13 seconds."""
    path = tmp_path / "claims.mp4"
    path.write_bytes(
        box(b"ftyp", b"isom", numbers(0)) + box(outer, *bomb(8, 10**7, place, table)) + box(b"mdat", bytes(8))
    )
    with pytest.raises(VideoError, match="its headers claim "):
        probe(path)
    run_limited(refuse_to_read, path, seconds=20)


def test_a_file_that_does_not_begin_as_an_mp4_is_not_read_as_one(tmp_path: Path) -> None:
    """FFmpeg skips anything before the boxes of an mp4, which are not looked at in an mkv or avi."""
    path = tmp_path / "claims.avi"
    path.write_bytes(box(b"junk") + box(b"moov", *bomb(8, 10**7, b"dinf")))
    run_limited(refuse_to_read, path, seconds=20)


def test_headers_of_a_quarter_gibibyte_are_refused(video: Path) -> None:
    with video.open("r+b") as file:
        file.truncate(2**30)
    with pytest.raises(ValueError, match="its headers have more than 268435456 bytes"):
        check_claims(video)


def test_boxes_of_any_size_that_ffmpeg_does_not_open_are_not_read(video: Path) -> None:
    size = video.stat().st_size
    with video.open("ab") as file:
        file.write(struct.pack(">I4sQ", 1, b"mdat", 2**40) + b"stsz" * 9 + b"cmov....dcom")
        file.truncate(size + 2**40)
    check_claims(video)
    assert probe(video).num_frames == 4


def test_a_fragment_that_claims_many_samples_is_refused(video: Path) -> None:
    moof = box(b"moof", box(b"traf", box(b"tfhd", numbers(0, 1)), box(b"trun", numbers(0, 2**31, 0))))
    video.write_bytes(video.read_bytes() + moof)
    with pytest.raises(ValueError, match=f"its headers claim {2**31 + 4} samples"):
        check_claims(video)


def test_a_compressed_header_is_refused(video: Path) -> None:
    data = video.read_bytes()
    start = data.index(b"mvhd")
    video.write_bytes(data[:start] + b"cmov\0\0\0\x0cdcomzlib" + data[start + 16 :])
    with pytest.raises(VideoError, match=r"its header is compressed: copy it with `ffmpeg -i FILE -c copy NEW\.mp4`"):
        probe(video)


def fragmented(path: Path, index: str) -> bytes:
    """Write an mp4 of two fragments, with an index that leads to them, and hide the second one in an mdat."""
    options = {"movflags": "dash+global_sidx+empty_moov+default_base_moof", "frag_duration": "400000"}
    with av.open(path, "w", format="mp4", options=options) as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "2", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for level in range(15):
            picture = np.full((64, 64, 3), level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    data = bytearray(path.read_bytes())
    start = data.index(b"sidx") - 4
    if index == "long":
        size = struct.unpack_from(">I", data, start)[0]
        data[start : start + 8] = struct.pack(">I4sQ", 1, b"sidx", size + 8)
    sizes = data.index(b"sidx") + 36 + 8 * (index == "long")
    struct.pack_into(">I", data, sizes, struct.unpack_from(">I", data, sizes)[0] + 8)
    if index == "truncated":
        struct.pack_into(">H", data, sizes - 2, 9)
    second = data.rindex(b"moof") - 4
    return bytes(data[:second]) + box(b"mdat", bytes(data[second:]))


@pytest.mark.parametrize("index", ["usual", "long", "truncated"])
def test_an_index_that_leads_to_a_fragment_inside_a_box_is_refused(tmp_path: Path, index: str) -> None:
    """Seeking by the index, FFmpeg read the samples that such a fragment claims."""
    path = tmp_path / "fragments.mp4"
    hidden = fragmented(path, index)
    assert read_frames(path, [14, 3]).shape == (2, 64, 64, 3)
    check_claims(path)
    path.write_bytes(hidden)
    with pytest.raises(VideoError, match=r"its index (leads into a box|is truncated)"):
        probe(path)


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
