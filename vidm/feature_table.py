"""A table of features in an SQLite file, each row with a checksum. Ours.

    with closing(FeatureTable("cache")) as table:
        table.add([("a key", (64, 64), features)])

A row is written completely or not at all, and several runs can share the file. A file that is damaged or has anything
else in it is made anew, and a row that is damaged or not plausible counts as missing. Whoever can write the file can
also write plausible rows that fit their checksums, which have no secret.
"""

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

from vidm.distributed import is_main
from vidm.files import regular_file, target_of

FILE_NAME = "features.sqlite"
BLOCK = 256
WAIT_S = 60.0
LARGEST_ROW = 2**24  # bytes
LARGEST_FEATURE = 1e100  # the sums of their squares are finite
TABLE = "features (key TEXT PRIMARY KEY, height INT, width INT, row BLOB, sha256 BLOB)"

Size = tuple[int, int]
Row = tuple[str, Size, np.ndarray]


def _is_usable(path: Path) -> bool:
    """Whether a file, if it exists, is an undamaged database with this table and nothing else, such as a trigger."""
    if not path.exists():
        return True
    with closing(sqlite3.connect(regular_file(path), timeout=WAIT_S)) as connection:
        try:
            found = connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL").fetchmany(2)
            is_whole = connection.execute("PRAGMA quick_check(1)").fetchone() == ("ok",)
        except sqlite3.DatabaseError as error:
            if type(error) is not sqlite3.DatabaseError:  # it is locked or cannot be read, for example
                raise
            return False
    return is_whole and found in ([], [(f"CREATE TABLE {TABLE}",)])


def _sha256(key: str, size: Sequence[object], row: bytes) -> bytes:
    return hashlib.sha256(f"{key} {size[0]} {size[1]} ".encode() + row).digest()


def _varies(features: np.ndarray) -> bool:
    return len(features) == 1 or bool((features != features[0]).any())


class FeatureTable:
    """Stores features, float64 (d,), by key, with the (height, width) of their clips.

    `folder` is created if it does not exist; None means a temporary file, which is also what processes other than the
    main one have. Every method raises ValueError, naming the file, when it cannot be read or written.
    """

    def __init__(self, folder: str | Path | None) -> None:
        # Rows of equal values, such as zeros, are believed only if this run computed them.
        self._constant: set[str] = set()
        self.path = target_of(Path(folder, FILE_NAME)) if folder and is_main() else None
        with self._errors_with_path():
            if self.path:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                if not _is_usable(self.path):
                    self.path.unlink(missing_ok=True)
            # An empty name makes SQLite use a temporary file.
            self._connection = sqlite3.connect(self.path or "", timeout=WAIT_S)
            with self._connection:
                self._connection.execute(f"CREATE TABLE IF NOT EXISTS {TABLE}")

    @contextmanager
    def _errors_with_path(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise ValueError(f"{self.path}: features cannot be kept there ({error}); give another --cache") from error

    def _row(self, key: str) -> tuple[Size, np.ndarray] | None:
        """Return the size and features of a row; None if there is no such row, or not as it was added."""
        query = "SELECT height, width, row, sha256 FROM features WHERE key = ? AND typeof(row) = 'blob' AND length(row)"
        with self._errors_with_path():
            found = self._connection.execute(f"{query} BETWEEN 8 AND {LARGEST_ROW}", (key,)).fetchone()
        if not found:
            return None
        height, width, row, sha256 = found
        if sha256 != _sha256(key, (height, width), row) or len(row) % 8:
            return None
        features = np.frombuffer(row, "<f8")
        plausible = (np.abs(features) <= LARGEST_FEATURE).all() and (key in self._constant or _varies(features))
        is_size = all(type(side) is int and side > 0 for side in (height, width))
        return ((height, width), features) if plausible and is_size else None

    def size_of(self, key: str) -> Size | None:
        """Return the (height, width) of a row's clip, or None if there is no such row."""
        found = self._row(key)
        return found and found[0]

    def add(self, rows: Iterable[Row]) -> None:
        """Store rows (key, (height, width), features): all of them or, if interrupted, none."""
        values = []
        for key, size, features in rows:
            row = np.asarray(features, dtype="<f8").tobytes()
            if not _varies(features):
                self._constant.add(key)
            values.append((key, *size, row, _sha256(key, size, row)))
        with self._errors_with_path(), self._connection:
            self._connection.executemany("INSERT OR REPLACE INTO features VALUES (?, ?, ?, ?, ?)", values)

    def blocks(self, keys: Sequence[str]) -> Iterator[np.ndarray]:
        """Yield the rows of keys, which must exist, 256 at a time: float64 (256, d), fewer in the last block."""
        for start in range(0, len(keys), BLOCK):
            found = [self._row(key) for key in keys[start : start + BLOCK]]
            rows = [row[1] for row in found if row]
            if len(rows) < len(found) or len(set(map(len, rows))) > 1:
                raise ValueError(f"{self.path}: its rows were changed by another program; run again")
            yield np.stack(rows)

    def close(self) -> None:
        """Close the file; a temporary file is removed."""
        self._connection.close()
