"""Read clips ahead, pass them through a detector and keep their features in a table, each computed once. Ours.

    settings = MeasureSettings(detector, STYLEGAN_V, workers=4, cache="cache")
    with closing(FeatureTable(settings.cache)) as table:
        features = measure(ClipSelection("real", num_frames=16), settings, table)
        stats = features.stats()

Statistics are summed in the order of the videos, so that batch size, threads, processes and cached features do not
change a number. Memory does not grow with the number of videos. A stopped run continues from its table.
"""

import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from secrets import token_hex
from typing import NamedTuple

import av
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vidm.clip_choice import ClipSelection, check_counts, choose_clips, taken
from vidm.content_keys import ContentKeys
from vidm.datasets import Clips
from vidm.detectors import Detector, Protocol, features_of, identity_of, name_of
from vidm.distributed import gather_results, is_main, on_main, rank, world_size
from vidm.feature_table import FeatureTable, Size
from vidm.frame_size import size_text
from vidm.frechet import FeatureStats
from vidm.runtime import explain_out_of_memory
from vidm.video_io import VideoError

# Increase the number when the pixels read from the same video change, so that older rows of a cache are not used.
PIXELS = "vidm pixels 2"

# The position of a clip, and the clip or the reason why it could not be read.
Read = tuple[int, np.ndarray | VideoError]


@dataclass(frozen=True)
class Features:
    """The features of clips, in their order; the rows are in the main process's table."""

    clips: Clips
    table: FeatureTable
    keys: list[str]

    @property
    def size(self) -> Size:
        """The (height, width) of the clips."""
        return self.table.size_of(self.keys[0]) or (0, 0)

    def at(self, places: Sequence[int]) -> "Features":
        """Return the features of the clips at some places."""
        return replace(self, clips=taken(self.clips, places), keys=[self.keys[place] for place in places])

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield blocks of rows, float64 (256, d)."""
        return self.table.blocks(self.keys)

    def stats(self) -> FeatureStats:
        """Return the mean and covariance of the rows."""
        stats = FeatureStats()
        for block in self.blocks():
            stats.update(block)
        return stats

    def rows(self) -> np.ndarray:
        """Return all rows in memory, float64 (n, d)."""
        return np.concatenate(list(self.blocks()))


# From videos to rows


@dataclass(frozen=True)
class MeasureSettings:
    """The detector and protocol that turn clips into features, and settings that do not change the features.

    `batch_size` clips at a time go through the detector on `device`; `workers` threads read videos. `cache` is a folder
    in which features are kept for later runs; None keeps them for this run only. `progress` shows a bar. `contents` has
    the keys of the clips that were found there, for all measurements with these settings. Raises ValueError for a
    batch size below 1.
    """

    detector: Detector
    protocol: Protocol
    batch_size: int = 32
    workers: int = 0
    device: torch.device | str = "cpu"
    progress: bool = False
    cache: str | Path | None = None
    contents: ContentKeys = field(default_factory=ContentKeys, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_counts(batch_size=self.batch_size)


def _content(clips: Clips, contents: ContentKeys, place: int) -> str:
    try:
        return contents.of(clips.index.paths[place], clips.frames(place))
    except VideoError:
        return f"unreadable {token_hex(16)}"  # no row has this key, and reading the clip will tell the reason


def _keys(clips: Clips, settings: MeasureSettings) -> list[str]:
    """Return a string that identifies each clip's features: with a cache by the video's bytes, else by its path."""
    size = clips.resolution if clips.fit == "crop" else [clips.resolution, clips.fit]
    how = [PIXELS, clips.num_frames, clips.stride, size, settings.protocol.name]
    how += [av.__version__, torch.__version__]
    if settings.cache:
        sha256 = identity_of(settings.detector)["sha256"]
        if not sha256:
            raise ValueError(
                f"the features of {name_of(settings.detector)} cannot be kept (--cache): it has no sha256 attribute"
            )
        how.append(sha256)
        with ThreadPoolExecutor() as pool:
            videos = list(pool.map(partial(_content, clips, settings.contents), range(len(clips))))
    else:
        videos = [str(path.absolute()) for path in clips.index.paths]
    return [json.dumps([video, start, *how]) for video, start in zip(videos, clips.starts, strict=True)]


def _read_ahead(clips: Clips, places: Iterable[int], workers: int, ahead: int) -> Iterator[Read]:
    """Yield clips in order, while up to `ahead` of the next ones are being decoded."""

    def read(place: int) -> Read:
        try:
            return place, clips[place][0]
        except VideoError as error:
            return place, error

    # Threads rather than processes: decoders release the GIL.
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


def _refuse_other_size(path: Path, size: Size, first_path: Path, first_size: Size) -> None:
    if size != first_size:
        raise ValueError(
            f"{path} is {size_text(size)} and {first_path} is {size_text(first_size)} (height x width); "
            "give a --resolution to bring all videos to one size"
        )


class _Batch(NamedTuple):
    """Features of a batch that the device may still be computing, and (place, reason) of unreadable clips."""

    places: list[int]
    size: Size
    features: Tensor | None
    damaged: list[tuple[int, str]]


class _Done(NamedTuple):
    """Rows (place, size, features) that have been computed, and (place, reason) of unreadable clips."""

    rows: list[tuple[int, Size, np.ndarray]]
    damaged: list[tuple[int, str]]


def _started(clips: Clips, places: list[int], settings: MeasureSettings) -> Iterator[_Batch]:
    """Yield batches of clips, each passed to the device as soon as it is decoded."""
    ahead = min(settings.batch_size, 2 * max(settings.workers, 1))
    read = _read_ahead(clips, places, settings.workers, ahead)
    first: tuple[Path, Size] | None = None
    while found := list(islice(read, settings.batch_size)):
        damaged = [(place, str(clip)) for place, clip in found if isinstance(clip, VideoError)]
        good = [(place, clip) for place, clip in found if not isinstance(clip, VideoError)]
        if not good:
            yield _Batch([], (0, 0), None, damaged)
            continue
        for place, clip in good:
            size = clip.shape[1], clip.shape[2]
            first = first or (clips.index.paths[place], size)
            _refuse_other_size(clips.index.paths[place], size, *first)
        clips_u8 = np.stack([clip for _, clip in good])
        with explain_out_of_memory(f"batches of {len(good)} clips in the detector", "give a smaller --batch"):
            features = features_of(settings.detector, clips_u8, settings.protocol, settings.device)
        yield _Batch([place for place, _ in good], size, features, damaged)


def _finished(clips: Clips, batch: _Batch) -> _Done:
    """Wait for the device. Raises ValueError for features that are not finite, naming the video."""
    if batch.features is None:
        return _Done([], batch.damaged)
    rows = batch.features.detach().double().cpu().numpy()
    for place, row in zip(batch.places, rows, strict=True):
        if not np.isfinite(row).all():
            path = clips.index.paths[place]
            raise ValueError(f"{path}: its features contain NaN or inf; check the video and the detector")
    return _Done([(place, batch.size, row) for place, row in zip(batch.places, rows, strict=True)], batch.damaged)


def _overlapped(clips: Clips, batches: Iterator[_Batch]) -> Iterator[_Done]:
    """Decode and send the next batch while the device works on the last one."""
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
    """Yield the results of all processes, round by round."""
    for _ in range(rounds):
        parts = gather_results(lambda: next(mine, _Done([], [])), _Done)
        yield _Done([row for part in parts for row in part.rows], [bad for part in parts for bad in part.damaged])


def _refuse_mixed_sizes(clips: Clips, keys: list[str], table: FeatureTable) -> None:
    """Check the sizes of all rows, including those of other processes and of the cache."""
    sizes = [table.size_of(key) or (0, 0) for key in keys]
    for path, size in zip(clips.index.paths, sizes, strict=True):
        _refuse_other_size(path, size, clips.index.paths[0], sizes[0])


def measure(selection: ClipSelection, settings: MeasureSettings, table: FeatureTable) -> Features:
    """Compute the features of the selected clips that are not in the table, and return all of them.

    Unreadable videos are left out and may be replaced by others of the folder. With several processes each one
    computes a share, and only the main one's table is filled. Raises ValueError for clips of different sizes, for
    features that are not finite, naming the video, and for clips that the detector cannot take.
    """
    damaged: list[tuple[Path, str]] = []
    while True:
        clips = choose_clips(selection, damaged)
        paths = clips.index.paths
        keys = on_main(partial(_keys, clips, settings))
        missing = on_main(partial(_missing, table, keys))
        mine = missing[rank() :: world_size()]
        batches = _started(clips, mine, settings)
        rounds = -(-len(missing) // (world_size() * settings.batch_size))
        known = len(clips) - len(missing)
        show = settings.progress and is_main()
        with tqdm(
            total=len(clips), initial=known, desc=str(clips.index.root), unit="video", disable=not show or None
        ) as bar:
            for done in _in_step(rounds, _overlapped(clips, batches)):
                new = [(keys[place], size, row) for place, size, row in done.rows]
                on_main(partial(table.add, new))
                damaged += [(paths[place], reason) for place, reason in done.damaged]
                bar.update(len(done.rows) + len(done.damaged))
        if not {path for path, _ in damaged} & set(paths):
            break
    on_main(partial(_refuse_mixed_sizes, clips, keys, table))
    return Features(clips, table, keys)
