"""Tests of the table of features: what was added is returned, and a damaged or hostile file gives no number."""

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from vidm.feature_table import FILE_NAME, FeatureTable


def row(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(7)


@pytest.mark.parametrize("kept", [True, False])
def test_rows_are_returned_in_the_order_of_the_keys(tmp_path: Path, kept: bool) -> None:
    table = FeatureTable(tmp_path / "cache" if kept else None)
    table.add([(f"{i}", (3, i + 1), row(i)) for i in range(600)])
    keys = [f"{i}" for i in range(599, -1, -1)]
    blocks = list(table.blocks(keys))
    assert [len(block) for block in blocks] == [256, 256, 88]
    np.testing.assert_array_equal(np.concatenate(blocks), [row(i) for i in range(599, -1, -1)])
    assert table.size_of("41") == (3, 42)
    assert table.size_of("nothing") is None
    assert [path.name for path in tmp_path.rglob("*.sqlite")] == [FILE_NAME] * kept


def test_added_rows_are_available_to_the_next_run(tmp_path: Path) -> None:
    FeatureTable(tmp_path).add([("a", (1, 2), row(1))])
    np.testing.assert_array_equal(next(FeatureTable(tmp_path).blocks(["a"]))[0], row(1))


def test_an_interrupted_batch_leaves_no_rows(tmp_path: Path) -> None:
    table = FeatureTable(tmp_path)

    def rows():
        yield "whole", (1, 1), row(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        table.add(rows())
    assert table.size_of("whole") is None


def test_a_folder_that_cannot_be_written_is_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/features\.sqlite: features cannot be kept there .* another --cache"):
        FeatureTable(tmp_path / "file")


def test_writing_to_a_read_only_table_is_an_error(tmp_path: Path) -> None:
    table = FeatureTable(tmp_path)
    table._connection.execute("PRAGMA query_only = ON")
    with pytest.raises(ValueError, match="readonly"):
        table.add([("a", (1, 2), row(1))])
    assert sqlite3.connect(tmp_path / FILE_NAME).execute("SELECT count(*) FROM features").fetchone() == (0,)


def change(folder: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(folder / FILE_NAME)) as connection, connection:
        connection.execute(statement, values)


@pytest.mark.parametrize(
    ("statement", "values"),
    [
        ("UPDATE features SET row = ?", [bytes(7 * 8)]),  # an FVD of rows of zeros is 0
        ("UPDATE features SET row = ?", [b""]),
        ("UPDATE features SET row = ?", [b"x"]),
        ("UPDATE features SET row = ?", ["text"]),
        ("UPDATE features SET row = ?", [None]),
        ("UPDATE features SET row = ?", [np.full(7, np.nan).tobytes()]),
        ("UPDATE features SET row = zeroblob(?)", [2**24 + 8]),
        ("UPDATE features SET row = (SELECT row FROM features WHERE key = 'b')", []),
        ("UPDATE features SET height = ?", [64]),
        ("UPDATE features SET height = ?", ["tall"]),
        ("UPDATE features SET width = ?", [None]),
        ("UPDATE features SET sha256 = ?", [bytes(32)]),
        ("UPDATE features SET sha256 = ?", [3.5]),
        ("UPDATE features SET sha256 = (SELECT sha256 FROM features WHERE key = 'b')", []),
        ("UPDATE OR REPLACE features SET key = 'a' WHERE key = ?", ["b"]),
        ("DELETE FROM features WHERE key = ?", ["a"]),
    ],
)
def test_a_row_that_has_changed_counts_as_missing(tmp_path: Path, statement: str, values: list[object]) -> None:
    with closing(FeatureTable(tmp_path)) as table:
        table.add([("a", (1, 2), row(1)), ("b", (1, 2), row(2))])
    where = "" if "WHERE key = ?" in statement else " WHERE key = 'a'"
    change(tmp_path, statement + where, *values)
    with closing(FeatureTable(tmp_path)) as table:
        assert table.size_of("a") is None
        with pytest.raises(ValueError, match=r"features\.sqlite: its rows were changed by another program; run again"):
            next(table.blocks(["a"]))
        table.add([("a", (1, 2), row(1))])
        np.testing.assert_array_equal(next(table.blocks(["a"]))[0], row(1))


def overwrite(text: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / FILE_NAME).write_bytes(text) and None


def damage_pages(folder: Path) -> None:
    content = bytearray((folder / FILE_NAME).read_bytes())
    content[3000:] = b"\xff" * (len(content) - 3000)
    (folder / FILE_NAME).write_bytes(content)


def truncate(folder: Path) -> None:
    os.truncate(folder / FILE_NAME, 6000)


@pytest.mark.parametrize(
    "attack",
    [
        overwrite(b"not a database, despite its name" * 50),
        overwrite(b"SQLite format 3\0" + bytes(5000)),
        truncate,
        damage_pages,
        *(
            lambda folder, statement=statement: change(folder, statement)
            for statement in (
                "DROP TABLE features",
                "ALTER TABLE features DROP COLUMN sha256",
                "ALTER TABLE features ADD COLUMN more AS (zeroblob(900000000))",
                "CREATE TABLE other (x)",
                "CREATE VIEW endless AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) SELECT i FROM n",
                "CREATE TRIGGER empty AFTER INSERT ON features BEGIN DELETE FROM features; END",
                "CREATE INDEX more ON features (height)",
            )
        ),
    ],
)
def test_a_damaged_file_or_one_with_anything_else_in_it_is_made_anew(
    tmp_path: Path, attack: Callable[[Path], None]
) -> None:
    with closing(FeatureTable(tmp_path)) as table:
        table.add([(f"{i}", (1, 2), row(i)) for i in range(100)])
    attack(tmp_path)
    with closing(FeatureTable(tmp_path)) as table:
        assert table.size_of("1") is None
        table.add([("1", (1, 2), row(1))])
        np.testing.assert_array_equal(next(table.blocks(["1"]))[0], row(1))
    with closing(FeatureTable(tmp_path)) as table:
        assert table.size_of("1") == (1, 2)


def test_the_table_of_an_earlier_version_is_made_anew(tmp_path: Path) -> None:
    change(tmp_path, "CREATE TABLE features (key TEXT PRIMARY KEY, height INT, width INT, row BLOB)")
    change(tmp_path, "INSERT INTO features VALUES ('a', 1, 2, ?)", row(1).tobytes())
    with closing(FeatureTable(tmp_path)) as table:
        assert table.size_of("a") is None


def test_a_file_that_another_run_uses_is_not_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidm.feature_table.WAIT_S", 0)
    with closing(FeatureTable(tmp_path)) as table:
        table.add([("a", (1, 2), row(1))])
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(ValueError, match="database is locked"):
            FeatureTable(tmp_path)
    with closing(FeatureTable(tmp_path)) as table:
        assert table.size_of("a") == (1, 2)


def test_a_pipe_and_a_link_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    for name in ("piped", "linked"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "piped" / FILE_NAME)
    with pytest.raises(ValueError, match=r"features\.sqlite is a pipe or a device"):
        FeatureTable(tmp_path / "piped")
    (tmp_path / "linked" / FILE_NAME).symlink_to("../elsewhere")
    with pytest.raises(ValueError, match=r"features\.sqlite is a link that leads out of its folder"):
        FeatureTable(tmp_path / "linked")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("size", "features"),
    [
        ((1, 2), np.zeros(7)),  # an FVD of rows of zeros is 0
        ((1, 2), np.full(7, 3.5)),
        ((1, 2), row(1) * 1e120),
        ((0, 2), row(1)),
        ((1, -2), row(1)),
        ((1, "\x1b[31m"), row(1)),
        ((1, None), row(1)),
    ],
)
def test_a_row_that_is_not_plausible_counts_as_missing_although_its_checksum_fits(tmp_path, size, features):
    with closing(FeatureTable(tmp_path)) as table:
        table.add([("a", size, features)])
    with closing(FeatureTable(tmp_path)) as table:
        assert table.size_of("a") is None


def test_a_detector_may_return_rows_of_equal_values(tmp_path):
    with closing(FeatureTable(tmp_path)) as table:
        table.add([("a", (1, 2), np.zeros(7))])
        np.testing.assert_array_equal(next(table.blocks(["a"]))[0], np.zeros(7))
