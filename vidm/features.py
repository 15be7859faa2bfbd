"""Videos -> features, once: clips are read ahead, seen by a detector and kept in a table.

    features = measure(partial(choose_clips, "real", 16), detector, STYLEGAN_V, FeatureTable("cache"))
    stats = features.stats()

Statistics are summed in the order of the videos, so that batch size, threads, processes and what was kept from before
change nothing. Memory does not grow with the number of videos. Ours.

Features by key, on disk: what is there already need not be computed again, however a run ended.

    table = FeatureTable("cache")                 # or FeatureTable(None): a temporary file, gone with the table
    table.add([(key, (64, 64), row)])
    for block in table.blocks(keys): ...          # float64 (256, d), in the order of the keys

SQLite does the rest: a row is there whole or not at all, and several runs may share a table.
"""

import json
import sqlite3
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vidm.datasets import Clips
from vidm.detectors import Detector, Protocol, features_of, name_of
from vidm.distributed import gather_results, is_main, on_main, rank, world_size
from vidm.frechet import FeatureStats
from vidm.packs import content_sha256
from vidm.video_io import VideoError

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


# Counted up when the same video would come out as other pixels, so that features from before are left alone.
PIXELS = "vidm pixels 1"

Damaged = list[tuple[Path, str]]
Size = tuple[int, int]
# A clip as it was read, or why it could not be.
Read = tuple[int, np.ndarray | VideoError]


@dataclass(frozen=True)
class Features:
    """The features of clips, in their order; in a table, that of the main process."""

    clips: Clips
    table: FeatureTable
    keys: list[str]

    @property
    def size(self) -> Size:
        """The (height, width) of the clips."""
        return self.table.size_of(self.keys[0]) or (0, 0)

    def blocks(self, places: Sequence[int] | None = None) -> Iterator[np.ndarray]:
        """float64 (256, d) after another; of some places or of all."""
        return self.table.blocks(self.keys if places is None else [self.keys[place] for place in places])

    def stats(self, places: Sequence[int] | None = None) -> FeatureStats:
        """Their mean and covariance."""
        stats = FeatureStats()
        for block in self.blocks(places):
            stats.update(block)
        return stats

    def rows(self) -> np.ndarray:
        """All at once: float64 (n, d)."""
        return np.concatenate(list(self.blocks()))


def _keys(clips: Clips, detector: Detector, protocol: Protocol, by_content: bool) -> list[str]:
    """A text for each clip that says all that its features follow from; by content where they are to be kept."""
    how = [PIXELS, clips.num_frames, clips.stride, clips.resolution, protocol.name, av.__version__, torch.__version__]
    if not by_content:
        places = zip(clips.index.paths, clips.starts, strict=True)
        return [json.dumps([str(path.absolute()), start, *how]) for path, start in places]
    sha256 = getattr(detector, "sha256", None)
    if not sha256:
        raise ValueError(
            f"the features of {name_of(detector)} cannot be kept (--cache): it has no sha256 to know it by"
        )
    with ThreadPoolExecutor() as pool:
        contents = list(pool.map(content_sha256, clips.index.paths))
    return [json.dumps([content, start, *how, sha256]) for content, start in zip(contents, clips.starts, strict=True)]


def _read_ahead(clips: Clips, places: Iterable[int], workers: int, ahead: int) -> Iterator[Read]:
    """Clips in order, up to `ahead` of them decoded before they are asked for.

    Threads rather than processes: decoders let each other run.
    """

    def read(place: int) -> Read:
        try:
            return place, clips[place][0]
        except VideoError as error:
            return place, error

    pool = ThreadPoolExecutor(max(workers, 1))
    waiting: deque[Future[Read]] = deque()
    try:
        for place in places:
            waiting.append(pool.submit(read, place))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _size(clip: np.ndarray) -> Size:
    return clip.shape[1], clip.shape[2]


def _refuse_other_size(path: Path, size: Size, first_path: Path, first_size: Size) -> None:
    if size != first_size:
        raise ValueError(
            f"{path} is {size[1]} x {size[0]} and {first_path} is {first_size[1]} x {first_size[0]}; "
            "give a resolution (-r) to bring all videos to one size"
        )


class _Batch(NamedTuple):
    """Features of a batch that may still be under way on the device, and what of it could not be read."""

    places: list[int]
    size: Size
    features: Tensor | None
    damaged: list[tuple[int, str]]


class _Done(NamedTuple):
    """Rows (place, size, features) that are here, and (place, reason) of what could not be read."""

    rows: list[tuple[int, Size, np.ndarray]]
    damaged: list[tuple[int, str]]


def _started(
    clips: Clips,
    places: list[int],
    detector: Detector,
    protocol: Protocol,
    batch_size: int,
    workers: int,
    device: torch.device | str,
) -> Iterator[_Batch]:
    """Batches of clips, each given to the device as soon as it is decoded."""
    read = _read_ahead(clips, places, workers, ahead=min(batch_size, 2 * max(workers, 1)))
    first: tuple[Path, Size] | None = None
    while found := list(islice(read, batch_size)):
        damaged = [(place, str(clip)) for place, clip in found if isinstance(clip, VideoError)]
        good = [(place, clip) for place, clip in found if not isinstance(clip, VideoError)]
        if not good:
            yield _Batch([], (0, 0), None, damaged)
            continue
        for place, clip in good:
            first = first or (clips.index.paths[place], _size(clip))
            _refuse_other_size(clips.index.paths[place], _size(clip), *first)
        clips_u8 = np.stack([clip for _, clip in good])
        features = features_of(detector, clips_u8, protocol, device)
        yield _Batch([place for place, _ in good], _size(good[0][1]), features, damaged)


def _finished(clips: Clips, batch: _Batch) -> _Done:
    """Wait for the device. Raises ValueError for features that are not finite, naming the video."""
    if batch.features is None:
        return _Done([], batch.damaged)
    rows = batch.features.detach().double().cpu().numpy()
    for place, row in zip(batch.places, rows, strict=True):
        if not np.isfinite(row).all():
            path = clips.index.paths[place]
            raise ValueError(f"{path}: its features hold NaN or inf; look at the video and at the detector")
    return _Done([(place, batch.size, row) for place, row in zip(batch.places, rows, strict=True)], batch.damaged)


def _overlapped(clips: Clips, batches: Iterator[_Batch]) -> Iterator[_Done]:
    """While the device works on one batch, the next is decoded and sent."""
    last = None
    for batch in batches:
        if last:
            yield _finished(clips, last)
        last = batch
    if last:
        yield _finished(clips, last)


def _missing(table: FeatureTable, keys: list[str]) -> list[int]:
    return [place for place, key in enumerate(keys) if not table.size_of(key)]


def _in_step(rounds: int, mine: Iterator[_Done]) -> Iterator[_Done]:
    """What all processes computed, round by round."""
    for _ in range(rounds):
        parts = gather_results(lambda: next(mine, _Done([], [])))
        yield _Done([row for part in parts for row in part.rows], [bad for part in parts for bad in part.damaged])


def _refuse_mixed_sizes(clips: Clips, keys: list[str], table: FeatureTable) -> None:
    """As within a batch, over rows of other processes and from before."""
    sizes = [table.size_of(key) or (0, 0) for key in keys]
    for path, size in zip(clips.index.paths, sizes, strict=True):
        _refuse_other_size(path, size, clips.index.paths[0], sizes[0])


def measure(
    choose: Callable[..., Clips],
    detector: Detector,
    protocol: Protocol,
    table: FeatureTable,
    batch_size: int = 32,
    workers: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> Features:
    """Bring the features of the clips that `choose` names into the table, whatever of them it does not have yet.

    Videos that turn out damaged are handed to choose(damaged=...), which may name others. Of several processes each
    computes a share, and the main one's table alone is filled. Raises ValueError for clips of different sizes, for
    features that are not finite, naming the video, and for what the detector cannot take.
    """
    damaged: Damaged = []
    while True:
        clips = choose(damaged=damaged)
        paths = clips.index.paths
        keys = on_main(partial(_keys, clips, detector, protocol, by_content=table.path is not None))
        missing = on_main(partial(_missing, table, keys))
        mine = missing[rank() :: world_size()]
        batches = _started(clips, mine, detector, protocol, batch_size, workers, device)
        rounds = -(-len(missing) // (world_size() * batch_size))
        known = len(clips) - len(missing)
        show = progress and is_main()
        with tqdm(total=len(clips), initial=known, desc=str(clips.index.root), unit="video", disable=not show) as bar:
            for done in _in_step(rounds, _overlapped(clips, batches)):
                new = [(keys[place], size, row) for place, size, row in done.rows]
                on_main(partial(table.add, new))
                damaged += [(paths[place], reason) for place, reason in done.damaged]
                bar.update(len(done.rows) + len(done.damaged))
        if not {path for path, _ in damaged} & set(paths):
            break
    on_main(partial(_refuse_mixed_sizes, clips, keys, table))
    return Features(clips, table, keys)
