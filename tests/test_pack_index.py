"""Tests of the index of a pack: every malformed or hostile one is refused in one line that names the pack."""

import copy
import json
import multiprocessing
import os
import random
import resource
import shutil
import time
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vidm.content_keys import ContentKeys
from vidm.pack_index import INDEX_NAME, TABLE_NAME, PackIndex
from vidm.packs import Pack, is_pack, list_pack, probe, read_frames, write_pack
from vidm.verify import verify
from vidm.video_io import VideoError, write_video

SHARD = "shard-000000.tar"
GIB = 2**30
# Replacements for a value in an index: wrong types, bounds, and places outside the pack.
VALUES: list[Any] = [
    *(None, True, "", ".", "..", "/", "../a.npy", "/etc/passwd", "a/../../b", "a\0b", "\ud800", "\udce4", "x" * 300),
    *("a.npy", SHARD, "video", "raw", "images", -1, 0, 1, 2, 3, 8, 512, 10**6, 2**31, 2**63 - 1, 2**63, 10**400),
    *(-0.5, 1e308, float("nan"), float("inf"), [], [0], [[]], {}, {"a": 1}),
]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of a video, a folder of frames and an array without compression."""
    folder = tmp_path_factory.mktemp("packs")
    frames = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    write_video(folder / "a.npy", frames)
    write_video(folder / "b", frames)
    with write_pack(folder / "pack") as writer:
        writer.add_encoded("train/a.npy", folder / "a.npy")
        writer.add_encoded("train/b", folder / "b")
        writer.add_raw("c", frames, fps=25)
    return folder / "pack"


@pytest.fixture
def pack(original: Path, tmp_path: Path) -> Path:
    """A pack that a test may change."""
    return Path(shutil.copytree(original, tmp_path / "pack"))


def index_of(pack: Path) -> dict[str, Any]:
    return json.loads((pack / INDEX_NAME).read_text())


def save(pack: Path, index: Any, table: bytes | None = None) -> None:
    """Write an index, with the checksum of its table, and its own if it has one: the checks must not depend on them."""
    if isinstance(index, dict):
        if table is not None:
            (pack / TABLE_NAME).write_bytes(table)
            index["table_crc32"] = zlib.crc32(table)
        if index.pop("crc32", None) is not None:
            index["crc32"] = zlib.crc32(json.dumps(index).encode())
    (pack / INDEX_NAME).write_text(json.dumps(index))


def use(pack: Path) -> list[str]:
    """Read everything that an index describes; return the messages of what was refused."""
    messages = []
    try:
        opened = Pack(pack)
    except VideoError as error:
        return [str(error)]
    for name in opened.index.numbers:
        last = opened.index.clip(name).info.num_frames - 1
        keys = partial(ContentKeys().of, indices=[0, last])
        for read in (opened.probe, keys, partial(opened.read_frames, indices=[0, last])):
            try:
                read(pack / name)
            except VideoError as error:
                messages.append(str(error))
    return messages


def refusal(pack: Path) -> str:
    """Return the message of a refused index, without the name of the pack."""
    with pytest.raises(VideoError) as refused:
        PackIndex(pack)
    before, _, reason = str(refused.value).partition(": not a readable pack index (")
    assert before == str(pack / INDEX_NAME)
    assert "\n" not in reason
    return reason


def test_an_unchanged_index_can_be_saved_and_used(pack: Path) -> None:
    clips = {path.relative_to(pack): read_frames(path, [0, 2]) for path in list_pack(pack)}
    save(pack, index_of(pack), (pack / TABLE_NAME).read_bytes())
    assert use(pack) == []
    for name, frames in clips.items():
        np.testing.assert_array_equal(read_frames(pack / name, [0, 2]), frames)
    assert probe(pack / "c") == (3, 8, 8, 25)


def test_an_index_without_checksums_is_read(pack: Path) -> None:
    """As written by version 0.1.0."""
    index = {name: value for name, value in index_of(pack).items() if name not in ("crc32", "shards_crc32")}
    save(pack, index)
    assert len(list_pack(pack)) == 3
    assert not [reason for _, reason in verify(list_pack(pack), [3, 3, 3])]


@pytest.mark.parametrize(
    "name", ["../a.npy", "..", "/etc/passwd", "a/../../b", "a//b", "./a", "", "a\0b", "x" * 300, 3, None]
)
def test_a_clip_outside_the_pack_is_refused(pack: Path, name: Any) -> None:
    index = index_of(pack)
    index["clips"][0][0] = name
    save(pack, index)
    assert "is not a name inside the pack" in (reason := refusal(pack)) or "the name of a clip is of the type" in reason


@pytest.mark.parametrize("name", ["../x.tar", "/etc/passwd", "a/b.tar", "..", ".", "", "a\0b", 3, None])
def test_a_shard_outside_the_pack_is_refused(pack: Path, name: Any) -> None:
    index = index_of(pack)
    index["shards"] = [name]
    save(pack, index)
    assert "is not in the folder of the pack" in (reason := refusal(pack)) or "the name of a shard is of" in reason


@pytest.mark.parametrize("name", ["../a", "/a", "", "a//b"])
def test_a_clip_outside_the_pack_is_not_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="is not a name inside the pack"), write_pack(tmp_path / "pack") as writer:
        writer.add_raw(name, np.zeros((1, 8, 8, 3), np.uint8))


def test_two_clips_of_one_name_are_not_written(tmp_path: Path) -> None:
    with write_pack(tmp_path / "pack") as writer:
        writer.add_raw("a", np.zeros((1, 8, 8, 3), np.uint8))
        with pytest.raises(ValueError, match="a: the pack has a clip of that name already"):
            writer.add_raw("a", np.zeros((1, 8, 8, 3), np.uint8))


def to_link(path: Path) -> None:
    path.rename(path.parent.with_name(path.name))
    path.symlink_to(path.parent.with_name(path.name))


def to_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def to_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("change", [to_link, to_pipe, to_device, to_folder])
@pytest.mark.parametrize("name", [INDEX_NAME, TABLE_NAME, SHARD])
def test_links_pipes_and_devices_are_refused_without_being_opened(
    pack: Path, name: str, change: Callable[[Path], None]
) -> None:
    paths = list_pack(pack)
    opened = Pack(pack)
    change(pack / name)
    assert is_pack(pack)
    if name == SHARD:
        assert len(verify(paths, [3, 3, 3])) == 3
        with pytest.raises(VideoError, match="it is a link, a pipe or a device and not a file"):
            opened.read_frames(paths[0], [0])
        with pytest.raises(VideoError, match=f"{SHARD}: missing or truncated"):
            Pack(pack).read_frames(paths[0], [0])
    else:
        assert "it is a link, a pipe or a device and not a file" in refusal(pack)
        with pytest.raises(VideoError, match=r"link, a pipe|clip of that name|not a readable pack"):
            (opened.probe if name == INDEX_NAME else partial(opened.read_frames, indices=[0]))(pack / "nothing")


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        (1, "mp4", "the kind of a clip is 'mp4'"),
        (2, 1, "the pieces of a clip do not follow"),
        (3, 4, f"{TABLE_NAME} does not have the size of 8 pieces"),
        (3, 10**7, "it has more than 1000000 frames; to read it, set the environment variable VIDM_MAX_FRAMES"),
        (4, 10**9, "VIDM_MAX_PIXELS"),
        (4, -8, "a height is -8"),
        (5, 0, "a width is 0"),
        (5, True, "a width is of the type bool"),
        (6, float("nan"), "a frame rate is not a positive number"),
        (6, 10**400, "a frame rate is not a positive number"),
    ],
)
def test_numbers_that_cannot_be_right_are_refused(pack: Path, column: int, value: Any, reason: str) -> None:
    index = index_of(pack)
    index["clips"][2][column] = value
    save(pack, index)
    assert reason in refusal(pack)


@pytest.mark.parametrize(
    "row", [(1, 0, 8, 0), (-1, 0, 8, 0), (0, -8, 8, 0), (0, 0, -8, 0), (0, 2**63 - 1, 2**63 - 1, 0)]
)
def test_a_piece_outside_the_shards_is_refused_or_missing(pack: Path, row: tuple[int, ...]) -> None:
    table = np.frombuffer((pack / TABLE_NAME).read_bytes(), "<i8").reshape(-1, 4).copy()
    table[0] = row
    save(pack, index_of(pack), table.tobytes())
    if row[1] < 2**60:
        assert "has a piece that is in no shard" in refusal(pack)
        return
    with pytest.raises(VideoError, match=r"missing or truncated before the end of train/a\.npy"):
        probe(pack / "train" / "a.npy")
    assert probe(pack / "c").num_frames == 3


def test_a_raw_frame_of_another_size_is_named(pack: Path) -> None:
    table = np.frombuffer((pack / TABLE_NAME).read_bytes(), "<i8").reshape(-1, 4).copy()
    table[-1, 2] -= 1
    save(pack, index_of(pack), table.tobytes())
    with pytest.raises(VideoError, match="191 bytes cannot be a frame of c"):
        read_frames(pack / "c", [2])


@pytest.mark.parametrize("name", [INDEX_NAME, TABLE_NAME, SHARD])
def test_a_file_with_holes_that_claims_a_terabyte_takes_no_memory(pack: Path, name: str) -> None:
    os.truncate(pack / name, 10**12)
    if name == SHARD:
        table = np.frombuffer((pack / TABLE_NAME).read_bytes(), "<i8").reshape(-1, 4).copy()
        table[0, 1:3] = 0, 10**12
        save(pack, index_of(pack), table.tobytes())
        with pytest.raises(VideoError, match="VIDM_MAX_BYTES"):
            read_frames(pack / "train" / "a.npy", [0])
    else:
        assert "bytes" in (reason := refusal(pack)) or "does not have the size" in reason


# Mutations


def mutated(index: Any, rng: random.Random) -> Any:
    """Return an index with one to three values, entries or names replaced, removed or added."""
    index = json.loads(json.dumps(index))
    for _ in range(rng.randint(1, 3)):
        place = index
        while True:
            key: Any = rng.choice([*place, "new"]) if isinstance(place, dict) else rng.randrange(len(place))
            inner = place.get(key) if isinstance(place, dict) else place[key]
            if isinstance(inner, dict | list) and inner and rng.random() < 0.9:
                place = inner
                continue
            break
        if rng.random() < 0.1 and inner is not None:
            del place[key]
        else:
            place[key] = copy.deepcopy(rng.choice(VALUES))
    return index


def changed_bytes(data: bytes, rng: random.Random) -> bytes:
    """Return bytes with some of them overwritten, removed or repeated."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(changed) + 1)
        end = start + rng.choice((1, 2, 8, 40))
        changed[start:end] = rng.choice(
            (b"", rng.randbytes(end - start), changed[start:end] * 2, b"[" * 9, b"\xff" * 8)
        )
    return bytes(changed)


def check_mutations(pack: Path, number: int, seed: int) -> None:
    """Use a pack with `number` mutations of its index and table; anything but a VideoError in one line fails."""
    rng, index, table = random.Random(seed), index_of(pack), (pack / TABLE_NAME).read_bytes()
    text = (pack / INDEX_NAME).read_bytes()
    resource.setrlimit(resource.RLIMIT_AS, (4 * GIB, 4 * GIB))
    before, num_refused = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    start = f"{pack / INDEX_NAME}: not a readable pack index ("
    for _ in range(number):
        way = rng.random()
        rows = np.frombuffer(table, "<i8").copy()
        if way < 0.3:
            rows[rng.randrange(len(rows))] = rng.choice([v for v in VALUES if type(v) is int and abs(v) < 2**63])
        elif way < 0.4:
            rows = np.frombuffer(changed_bytes(table, rng)[: len(table) // 8 * 8].ljust(8)[:-8] or bytes(8), np.uint8)
        save(pack, index if 0.2 < way < 0.4 else mutated(index, rng), rows.tobytes())
        if way > 0.8:
            (pack / INDEX_NAME).write_bytes(changed_bytes(text, rng))
        messages = use(pack)
        assert not [message for message in messages if "\n" in message]
        num_refused += any(message.startswith(start) for message in messages)
    assert number // 2 < num_refused < number
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < GIB


def run_limited(work: Callable[..., None], *arguments: object, seconds: float) -> None:
    """Run work(*arguments) in a process of its own, which must end in time and without an error."""
    process = multiprocessing.get_context("spawn").Process(target=work, args=arguments)
    process.start()
    process.join(seconds)
    process.kill()
    assert process.exitcode == 0


def test_mutated_indexes_are_refused_in_one_line_or_used(pack: Path) -> None:
    run_limited(check_mutations, pack, 2_000, 0, seconds=300)


@pytest.mark.slow
def test_many_mutated_indexes_are_refused_in_one_line_or_used(pack: Path) -> None:
    run_limited(check_mutations, pack, 20_000, 1, seconds=1800)


@pytest.mark.parametrize(
    "text", [b"", b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe", b"null", b"3", b'"x"', b"NaN", b"[]"]
)
def test_an_index_of_any_content_is_refused(pack: Path, text: bytes) -> None:
    (pack / INDEX_NAME).write_bytes(text)
    refusal(pack)


# Size


def load_million(pack: Path) -> None:
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    assert probe(list_pack(pack)[-1]).num_frames == 128
    assert time.process_time() - start < 60
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < GIB


@pytest.mark.slow
def test_a_million_clips_are_loaded_in_seconds_and_in_less_than_a_gibibyte(tmp_path: Path) -> None:
    number = 1_000_000
    rows = np.zeros((number, 4), "<i8")
    rows[:, 2] = 8
    clips = [[f"train/video_{i:07d}.mp4", "video", i, 128, 320, 480, 25.0] for i in range(number)]
    save(
        tmp_path,
        {"format": "vidm pack 1", "shards": [SHARD], "clips": clips, "crc32": 0},
        rows.tobytes(),
    )
    (tmp_path / SHARD).write_bytes(bytes(8))
    run_limited(load_million, tmp_path, seconds=300)
