"""A row is there whole or not at all, comes back bit for bit, and a file that cannot be used is named."""

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from vidm.feature_table import FILE_NAME, FeatureTable


def row(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(7)


@pytest.mark.parametrize("kept", [True, False])
def test_rows_come_back_in_the_order_of_the_keys(tmp_path: Path, kept: bool) -> None:
    table = FeatureTable(tmp_path / "cache" if kept else None)
    table.add([(f"{i}", (3, i), row(i)) for i in range(600)])
    keys = [f"{i}" for i in range(599, -1, -1)]
    blocks = list(table.blocks(keys))
    assert [len(block) for block in blocks] == [256, 256, 88]
    np.testing.assert_array_equal(np.concatenate(blocks), [row(i) for i in range(599, -1, -1)])
    assert table.size_of("41") == (3, 41)
    assert table.size_of("nothing") is None
    assert [path.name for path in tmp_path.rglob("*.sqlite")] == [FILE_NAME] * kept


def test_what_was_added_is_there_for_the_next_run(tmp_path: Path) -> None:
    FeatureTable(tmp_path).add([("a", (1, 2), row(1))])
    np.testing.assert_array_equal(next(FeatureTable(tmp_path).blocks(["a"]))[0], row(1))


def test_an_interrupted_batch_leaves_no_row_of_it(tmp_path: Path) -> None:
    table = FeatureTable(tmp_path)

    def rows():
        yield "whole", (1, 1), row(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        table.add(rows())
    assert table.size_of("whole") is None


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/features\.sqlite: features cannot be kept there .* another --cache"):
        FeatureTable(tmp_path / "file")


def test_a_file_that_is_no_table_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text("no database, whatever its name" * 50)
    with pytest.raises(ValueError, match=r"features\.sqlite: .*not a database"):
        FeatureTable(tmp_path)


def test_a_table_that_turns_read_only_is_named(tmp_path: Path) -> None:
    table = FeatureTable(tmp_path)
    table._connection.execute("PRAGMA query_only = ON")
    with pytest.raises(ValueError, match="readonly"):
        table.add([("a", (1, 2), row(1))])
    assert sqlite3.connect(tmp_path / FILE_NAME).execute("SELECT count(*) FROM features").fetchone() == (0,)
