"""Features by key, on disk: what is there already need not be computed again, however a run ended.

    table = FeatureTable("cache")                 # or FeatureTable(None): a temporary file, gone with the table
    table.add([(key, (64, 64), row)])
    for block in table.blocks(keys): ...          # float64 (256, d), in the order of the keys

SQLite does the rest: a row is there whole or not at all, and several runs may share a table.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

FILE_NAME = "features.sqlite"
BLOCK = 256
WAIT_S = 60.0

Row = tuple[str, tuple[int, int], np.ndarray]


class FeatureTable:
    """Rows of features (d,) with the (height, width) of the clip they are of; float64, no two with one key.

    `folder` is made where it is not there; None means a temporary file. Every method raises ValueError, naming the
    file, where it cannot be read or written. Ours.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.path = Path(folder, FILE_NAME) if folder else None
        with self._failures_named():
            if self.path:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            # An empty name is SQLite's temporary file.
            self._connection = sqlite3.connect(self.path or "", timeout=WAIT_S)
            with self._connection:
                self._connection.execute(
                    "CREATE TABLE IF NOT EXISTS features (key TEXT PRIMARY KEY, height INT, width INT, row BLOB)"
                )

    @contextmanager
    def _failures_named(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise ValueError(f"{self.path}: features cannot be kept there ({error}); give another --cache") from error

    def size_of(self, key: str) -> tuple[int, int] | None:
        """The (height, width) of the clip that a row is of, or None where there is no such row."""
        with self._failures_named():
            found = self._connection.execute("SELECT height, width FROM features WHERE key = ?", (key,)).fetchone()
        return found and tuple(found)

    def add(self, rows: Iterable[Row]) -> None:
        """Keep rows (key, (height, width), features), all of them or, when interrupted, none."""
        values = [(key, *size, np.asarray(row, dtype="<f8").tobytes()) for key, size, row in rows]
        with self._failures_named(), self._connection:
            self._connection.executemany("INSERT OR REPLACE INTO features VALUES (?, ?, ?, ?)", values)

    def blocks(self, keys: Sequence[str]) -> Iterator[np.ndarray]:
        """The rows of keys, all of which are there, 256 at a time: float64 (256, d), fewer in the last block."""
        for start in range(0, len(keys), BLOCK):
            with self._failures_named():
                query = "SELECT row FROM features WHERE key = ?"
                found = [self._connection.execute(query, (key,)).fetchone()[0] for key in keys[start : start + BLOCK]]
            yield np.stack([np.frombuffer(row, "<f8") for row in found])

    def close(self) -> None:
        """Let go of the file; a temporary one is removed."""
        self._connection.close()
