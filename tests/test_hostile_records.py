"""Tests with records, logs and caches made to harm: each is used, named and refused in one line, or passed over."""

import json
import os
import random
import resource
import runpy
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from test_hostile_checkpoints import mutated

from vidm import probe_cache
from vidm.checkpoint import checkpoint_from
from vidm.config import Config
from vidm.feature_table import FILE_NAME, FeatureTable
from vidm.files import read_json
from vidm.images import budget
from vidm.layouts import ClipIndex
from vidm.pairing import pair_videos
from vidm.runlog import RunLog, rows_up_to
from vidm.sample_config import SampleConfig
from vidm.sample_report import _records
from vidm.sampling import _is_finished
from vidm.video_io import write_video
from vidm.world import CollisionWorld, _is_written
from vidm.world_metrics import world_of

PREPROCESS = runpy.run_path(str(Path(__file__).parent.parent / "scripts" / "preprocess_dataset.py"))
# Attempts to read one file: each takes the file, and raises ValueError or returns something usable.
Reader = Callable[[Path], object]
# What sampling records of a video.
RECORD = {
    "index": 0,
    "first_frame": "real/a.npy",
    "settings": {"seed": 0, "sampler": "ddim", "steps": "2", "psi": 1.0, "num_frames": 8},
    "versions": {"torch": "2"},
    "first_frame_sha256": "0" * 64,
}
TEXTS = [
    *(
        b"",
        b"null",
        b"3",
        b"[]",
        b"{}",
        b'"text"',
        b"NaN",
        b"\xff\xfe",
        b"[" * 10**5,
        b'{"a":' * 10**5,
        b"[" * 900 + b"]" * 900,
    ),
    *(b'{"first_frame": ["a"]}', b'{"first_frame": "a\\u0000b"}', b'{"first_frame": "\\ud800"}', b'{"settings": []}'),
    *(b'{"step": 1e999}', b'{"step": ' + b"9" * 10**4 + b"}", b'{"step": true}', b'{"first_frame_sha256": {}}'),
    b'{"first_frame": "' + b"a/" * 10**5 + b'"}',
]


def mutated_bytes(content: bytes, rng: random.Random) -> bytes:
    """Bytes with one to four places replaced, removed, repeated or inserted, or cut at the end."""
    mutable = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        place, length = rng.randrange(len(mutable) + 1), rng.choice([1, 1, 2, 8, 100])
        new = rng.choice(
            [b"", rng.randbytes(length), bytes(length), b"9" * length, b"[" * length, b'"', mutable[:length]]
        )
        mutable[place : place + rng.choice([0, length])] = new
        if rng.random() < 0.1:
            del mutable[place:]
    return bytes(mutable)


def mutations(content: bytes, rng: random.Random) -> Iterator[bytes]:
    """Without end, JSON of a changed form and changed bytes of a file of JSON rows."""
    rows = content.splitlines()
    while True:
        if rng.random() < 0.5:
            row = json.dumps(mutated(json.loads(rng.choice(rows)), rng)).encode()
            yield b"\n".join([*rows[:1], row, *rows[2:]]) if len(rows) > 1 else row
        elif rng.random() < 0.2:
            yield rng.choice(TEXTS)
        else:
            yield mutated_bytes(content, rng)


def pair(path: Path) -> object:
    made = ClipIndex(path.parent, [path.with_suffix(".npy")], [8], [])
    return pair_videos(ClipIndex(Path("real"), [Path("real/a.npy")], [8], []), made)


def resume(path: Path) -> object:
    return _is_finished(path.with_suffix(".npy"), RECORD)


def show(path: Path) -> object:
    (record,) = _records(SampleConfig(out=str(path.parent), format="npy"))
    return f"{record['settings']['psi']:g} {Path(record['first_frame']).name}"


def render(path: Path) -> object:
    return _is_written(path.with_suffix(".npy"), {"seed": 0, "num_frames": 8, "resolution": [8, 8]})


def extracted(path: Path) -> object:
    path.rename(path.with_name(PREPROCESS["RECORD"]))
    return PREPROCESS["recorded_sha256"](path.parent)


def lengths(path: Path) -> object:
    found = probe_cache._read(path)
    assert all(type(number) is int and 0 < number <= budget("VIDM_MAX_FRAMES") for _, number in found.values())
    return found


def logged(path: Path) -> object:
    kept = b"".join(rows_up_to(path, 2))
    assert all(json.loads(row)["step"] <= 2 for row in kept.splitlines())
    return kept


def described(path: Path) -> object:
    settings = read_json(path)
    if not isinstance(settings, dict):
        raise ValueError("it does not describe a checkpoint")
    return checkpoint_from({**settings, "state_dict": {}, "ema_state_dict": {}, "optimizer": {}}, path)


@cache
def files() -> dict[str, tuple[Reader, bytes]]:
    """Name of a kind -> (its reader, the content of an undamaged file)."""
    found = {f"/data/{i}.mp4": ("12 34 56", 100 + i) for i in range(3)}
    rows = [{"step": step, "loss": 0.5, "lr": 1e-4} for step in (1, 2, 3)]
    world = CollisionWorld(0, 0, 8).ground_truth() | {"resolution": [8, 8]}
    settings = {"format": 2, "iters": 3, "config": Config.from_preset("tiny").to_dict()}
    records = {reader.__name__: (reader, json.dumps(RECORD).encode()) for reader in (pair, resume, show)}
    return records | {
        "render": (render, json.dumps(world).encode()),
        "world_of": (world_of, json.dumps(world).encode()),
        "extracted": (extracted, json.dumps({"file": "a.mp4", "sha256": "0" * 64}).encode()),
        "lengths": (lengths, json.dumps({"readers": probe_cache._readers(), "found": found}).encode()),
        "logged": (logged, b"".join(json.dumps(row).encode() + b"\n" for row in rows)),
        "described": (described, json.dumps(settings).encode()),
    }


def refused(reader: Reader, path: Path) -> bool:
    """Read a file; return whether it was refused. Anything but a ValueError in one line fails."""
    message = ""
    try:
        reader(path)
    except ValueError as error:
        message = str(error) or "no message"
    assert len(message.splitlines()) <= 1
    assert len(message) < 10**6
    return bool(message)


def written(folder: Path, content: bytes) -> Path:
    (folder / "video_00000.json").write_bytes(content)
    return folder / "video_00000.json"


def check_mutations(folder: Path, number: int, seed: int) -> None:
    """Read `number` mutated files, of all kinds in turn, in less than 1 GiB of additional memory."""
    write_video(folder / "video_00000.npy", np.zeros((8, 8, 8, 3), np.uint8))
    rng, kinds = random.Random(seed), files()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counts = dict.fromkeys(kinds, 0)
    for name, (reader, content) in kinds.items():
        assert not refused(reader, written(folder, content)), name
        for _, mutation in zip(range(number // len(kinds)), mutations(content, rng), strict=False):
            counts[name] += refused(reader, written(folder, mutation))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20
    assert all(counts[name] for name in set(kinds) - {"extracted", "lengths", "logged"}), counts


def check_tables(folder: Path, number: int, seed: int) -> None:
    """Open `number` mutated feature caches: a row is as it was added, or missing."""
    rows = {f"{i}": np.random.default_rng(i).standard_normal(40) for i in range(30)}
    with closing(FeatureTable(folder)) as table:
        table.add((key, (8, 8), row) for key, row in rows.items())
    content, rng = (folder / FILE_NAME).read_bytes(), random.Random(seed)
    missing = 0

    def read(folder: Path) -> None:
        nonlocal missing
        with closing(FeatureTable(folder)) as table:
            for key, row in rows.items():
                if table.size_of(key):
                    np.testing.assert_array_equal(next(table.blocks([key]))[0], row)
                else:
                    missing += 1

    for _ in range(number):
        (folder / FILE_NAME).write_bytes(mutated_bytes(content, rng))
        refused(read, folder)
    assert 0 < missing < number * len(rows)


@pytest.mark.parametrize("name", files())
def test_a_file_of_any_other_form_is_refused_in_one_line_or_passed_over(tmp_path: Path, name: str) -> None:
    write_video(tmp_path / "video_00000.npy", np.zeros((8, 8, 8, 3), np.uint8))
    for content in TEXTS:
        refused(files()[name][0], written(tmp_path, content))


@pytest.mark.parametrize("name", files())
def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path: Path, name: str) -> None:
    write_video(tmp_path / "video_00000.npy", np.zeros((8, 8, 8, 3), np.uint8))
    os.mkfifo(tmp_path / "video_00000.json")
    refused(files()[name][0], tmp_path / "video_00000.json")


def test_mutated_records_logs_and_caches_are_used_or_refused_in_one_line(tmp_path: Path) -> None:
    check_mutations(tmp_path, 1_900, seed=0)
    check_tables(tmp_path / "cache", 100, seed=0)


@pytest.mark.slow
def test_many_mutated_records_logs_and_caches_are_used_or_refused_in_one_line(tmp_path: Path) -> None:
    check_mutations(tmp_path, 19_000, seed=1)
    check_tables(tmp_path / "cache", 1_000, seed=1)


def test_a_record_that_is_none_is_named_and_the_others_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(3):
        write_video(tmp_path / f"video_{index:05d}.npy", np.zeros((2, 8, 8, 3), np.uint8))
        (tmp_path / f"video_{index:05d}.json").write_text(json.dumps(RECORD | {"index": index}))
    (tmp_path / "video_00001.json").write_text("[]")
    assert [record["index"] for record in _records(SampleConfig(out=str(tmp_path), format="npy"))] == [0, 2]
    assert "video_00001.json: not a record of a sampled video (it has no settings" in capsys.readouterr().out


def test_a_log_of_any_content_keeps_the_rows_of_steps(tmp_path: Path) -> None:
    rows = [b'{"step": 1, "loss": NaN}', *TEXTS, b'{"step": 2}', b'{"step": 3}']
    (tmp_path / "stats.jsonl").write_bytes(b"\n".join(rows))
    RunLog(tmp_path, total=3, start=2).close()
    assert (tmp_path / "stats.jsonl").read_text() == '{"step": 1, "loss": NaN}\n{"step": 2}\n'
