"""Tests of what processes exchange: everything arrives as it was, and a message is never a program."""

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from vidm import distributed, features, frame_metrics
from vidm.cli_evaluate import evaluate_fvd_main, evaluate_vis_main
from vidm.exchange import decoded, encoded
from vidm.sampling import list_content
from vidm.video_io import write_video


@dataclass(frozen=True)
class Clips:
    paths: list[Path]
    size: tuple[int, int]


class Rows(NamedTuple):
    rows: list[tuple[int, Clips]]
    reasons: dict[str, int]


@pytest.mark.parametrize(
    "thing",
    [
        None,
        True,
        -7,
        "a 'quoted' \u6f22\u5b57 \udcff\n",  # a name that is not UTF-8 has surrogates
        [],
        [1, [2.5, None]],
        (1, ("a", (2,)), []),
        {1, 2},
        {"path": {"a": 1}, 3: (4, 5)},
        range(3, 30, 4),
        Path("/data/a b/\udcff.mp4"),
        float("inf"),
        [0.1, 1e-320, 1 / 3, -0.0],
        Rows([(1, Clips([Path("a"), Path("b")], (2, 3)))], {"short": 4}),
    ],
)
def test_things_arrive_as_they_were(thing: Any) -> None:
    found = decoded(encoded(thing, (Rows, Clips)), (Rows, Clips))
    assert found == thing
    assert repr(found) == repr(thing)


def test_features_arrive_bit_for_bit() -> None:
    rows = np.random.default_rng(0).standard_normal((3, 128)) * np.logspace(-30, 30, 128)
    found = decoded(encoded(rows))
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, rows)
    np.testing.assert_array_equal(decoded(encoded(rows.astype(np.float32))), rows.astype(np.float32))


def test_errors_arrive_with_their_text_as_one_of_three_types() -> None:
    for error, kind in ((FileNotFoundError("a"), FileNotFoundError), (PermissionError(13, "b", "c"), OSError)):
        found = decoded(encoded(error))
        assert (type(found), str(found)) == (kind, str(error))
    assert type(decoded(encoded(UnicodeError("a")))) is ValueError


def test_a_type_that_was_not_agreed_on_is_refused_on_both_sides() -> None:
    for thing in (Clips([], (1, 2)), Rows([], {}), RuntimeError(), b"bytes", np.int64(1)):
        with pytest.raises(TypeError, match=f"cannot exchange a {type(thing).__name__}"):
            encoded(thing)
    with pytest.raises(ValueError, match="another process sent what this one cannot read"):
        decoded(encoded(Clips([], (1, 2)), [Clips]))


@pytest.mark.parametrize(
    "message",
    [
        pickle.dumps([1]),
        b"",
        b"\xff",
        b"{}",
        b'{"tuple": [], "list": []}',
        b'{"tuple": 3}',
        b'{"set": [[1]]}',
        b'{"range": ["a"]}',
        b'{"path": [1]}',
        b'{"eval": ["print()"]}',
        b'{"Clips": [1, 2, 3]}',
        b'{"array": ["a"]}',
        b'{"OSError": {}}',
        b"[" * 100_000,
        b'{"tuple":[' * 5_000 + b"]}" * 5_000,
    ],
    ids=lambda message: repr(message[:20]),
)
def test_any_other_message_is_refused(message: bytes) -> None:
    with pytest.raises(ValueError, match="another process sent what this one cannot read"):
        decoded(message, [Clips])


def test_messages_are_json() -> None:
    assert json.loads(encoded(Clips([Path("a")], (1, 2)), [Clips])) == {"Clips": [[{"path": ["a"]}], {"tuple": [1, 2]}]}


def test_evaluation_gets_the_same_numbers_from_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def through_messages(work: Callable[[], Any], *records: type) -> list[Any]:
        return [decoded(encoded(work(), records), records)]

    rng = np.random.default_rng(0)
    for name, count in (("real", 4), ("made", 4)):
        for i in range(count):
            write_video(tmp_path / name / f"{i}.npy", rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8))
    folders = ["-dir1", str(tmp_path / "real"), "-dir2", str(tmp_path / "made")]
    line = [*folders, *"-i3d random -n 4 -b 2 --repeats 2 --metrics fvd,kvd,psnr,ssim".split()]
    records = []
    for run in range(2):
        files = ["--json", str(tmp_path / f"{run}.json"), "--report", str(tmp_path / f"{run}.html")]
        evaluate_fvd_main([*line, *files])
        evaluate_vis_main([*folders[2:], *"-c3d random -n 4 --splits 2".split(), "--json", str(tmp_path / "vis.json")])
        found = [json.loads((tmp_path / name).read_text()) for name in (f"{run}.json", "vis.json")]
        records.append([*(each["results"] for each in found), found[0]["frame_metrics"]["psnr_by_frame"]])
        records[run].append(list_content(tmp_path / "made"))
        for module in (distributed, features, frame_metrics):
            monkeypatch.setattr(module, "gather_results", through_messages)
    assert records[0] == records[1]
