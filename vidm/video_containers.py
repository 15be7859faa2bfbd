"""Read mp4, mov, mkv, webm, avi and older containers with PyAV, in order or by number. Ours.

    frames = [to_rgb() for to_rgb in frames_in_order(Path("clip.mp4"))]
    frames = frames_by_seeking(Path("clip.mp4"), {90, 91})     # decodes from the keyframe before frame 90

The number of a frame is known without decoding if every packet is one frame with its own time: frame n is then the n-th
packet in order of time. Decoding can start at a keyframe if all packets before it are shown before it, and all packets
after it are shown after it. The time of every decoded frame is compared with this table of packets; if they differ, the
file is decoded from its start. Decoders raise errors of many types here; video_io turns them into VideoError.
"""

import ctypes
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import av
import numpy as np
from av.stream import Disposition

from vidm.container_headers import check_claims, is_mp4
from vidm.images import budget, check_budget, limit_parallel
from vidm.video_rgb import ToRGB, upright_size

CONTAINER_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".avi"),
    *(".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".ogv"),
)

# FFmpeg recognizes a file by its content. None of these formats refers to other files, as playlists do.
FORMATS = (
    *("mov", "matroska", "avi", "mpeg", "mpegts", "mpegvideo", "asf", "flv", "ogg"),
    *("h264", "hevc", "m4v", "mjpeg", "gif"),  # with another suffix
)
MIN_ALLOCATION = 2**28  # bytes; FFmpeg's index of ten million samples
# Containers, by FFmpeg's names, whose packets are whole frames; in an mpeg stream a packet can be one field of a frame.
SEEKABLE_CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi")
# Decoders whose packets are one frame each and which report damage. MPEG-4 part 2 and VP8 have packets without a
# frame or with two; the HEVC decoder does not report damage.
SEEKABLE_CODECS = ("h264", "vp9", "libdav1d")

# Frames in order, each as a function that converts it to RGB, so that skipped frames are not converted. A function is
# valid until the next frame is requested.
FrameStream = Generator[Callable[[], np.ndarray], None, None]
T = TypeVar("T")


class VideoError(ValueError):
    """A video or image cannot be read; the message names the file."""


def tried_twice(read: Callable[[], T]) -> T:
    """Return read(), called again if it raises VideoError: only what fails twice is damaged.

    Under load, a disk, a network or a library may fail once, and a good video that is left out changes a number. Ours.
    """
    with suppress(VideoError):
        return read()
    return read()  # nothing of the first try is in memory anymore


class VideoInfo(NamedTuple):
    """Number of frames, height and width in px, and frames per second; `fps` is None except for containers."""

    num_frames: int
    height: int
    width: int
    fps: float | None


# Tables of frames


class FrameTable(NamedTuple):
    """Frames of a file in order of time, int64: `times` (T,), in the stream's unit; `last_before` (T,), the highest
    number of the frames decoded up to and including this one; `starts` (S,), the frames where decoding can start."""

    info: VideoInfo
    times: np.ndarray
    last_before: np.ndarray
    starts: np.ndarray


def _limit_allocations(num_bytes: int) -> None:
    """Limit what FFmpeg allocates at once: frames, and the index that it builds when it opens a file."""
    ctypes.CDLL(av._core.__file__).av_max_alloc(ctypes.c_size_t(num_bytes))


def _video_stream(container: av.container.InputContainer) -> av.VideoStream | None:
    """Return the stream marked as default, else the best; covers and the pictures of chapters are no video."""
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    best = container.streams.best("video")  # by FFmpeg's rule, which does not know covers
    if best in streams:
        return best
    default = Disposition.default
    return max(streams, key=lambda each: (each.disposition & default, each.width * each.height), default=None)


@contextmanager
def _open_container(path: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    check_claims(path)
    _limit_allocations(max(4 * budget("VIDM_MAX_PIXELS"), MIN_ALLOCATION))
    # Without "file:", FFmpeg takes a name with a colon for a protocol. Without "replace", PyAV fails on a title that is
    # not UTF-8, and leaves the file open.
    formats = [name for name in FORMATS if name != "mov" or is_mp4(path)]
    options = {"format_whitelist": ",".join(formats), "protocol_whitelist": "file"}
    with av.open(f"file:{path}", metadata_errors="replace", options=options) as container:
        stream = _video_stream(container)
        if stream is None:
            raise VideoError(f"{path}: has no video stream{', only a cover' if container.streams.video else ''}")
        stream.thread_type = "NONE"  # the data loader's workers already use all cores
        stream.codec_context.thread_count = 1  # the AV1 decoder has its own threads
        check_budget("VIDM_MAX_PIXELS", stream.width * stream.height)
        # The size can change later. Decoders pad frames, so their limit is twice the budget.
        stream.codec_context.options = {"max_pixels": str(2 * budget("VIDM_MAX_PIXELS"))}
        with limit_parallel((stream.width, stream.height)):
            yield container, stream


def _decode(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    num_frames = 0
    for packet in container.demux(stream):
        # An empty packet says that the frame before it is shown for longer, in Theora for example; decoders refuse it.
        if packet.size or packet.pts is None:
            for frame in packet.decode():
                num_frames += 1
                check_budget("VIDM_MAX_FRAMES", num_frames)
                yield frame


def _info(stream: av.VideoStream, num_frames: int, first: av.VideoFrame) -> VideoInfo:
    fps = float(stream.average_rate) if stream.average_rate else None
    height, width, _ = ToRGB(upright_size(first))(first).shape  # a header has the stored size
    return VideoInfo(num_frames, height, width, fps)


def _table(info: VideoInfo, times: np.ndarray, is_key: np.ndarray, is_shown: np.ndarray) -> FrameTable | None:
    """Build the table from packets in the order of decoding; None if decoding cannot start at the first one."""
    rank = np.argsort(np.argsort(times))
    is_closed = is_key & (rank == np.arange(len(rank))) & (rank == np.maximum.accumulate(rank))
    if not is_closed[0]:
        return None
    # Damage of hidden frames is not detected, so decoding does not start in a group that contains one.
    group = np.cumsum(is_closed)
    is_start = is_closed & ~np.isin(group, group[~is_shown])
    is_start[0] = True
    number = np.cumsum(is_shown[np.argsort(times)])[rank] - 1  # a hidden frame has the number of the frame before it
    last_before = np.empty(info.num_frames, np.int64)
    last_before[number[is_shown]] = np.maximum.accumulate(number)[is_shown]
    return FrameTable(info, np.sort(times[is_shown]), last_before, np.maximum(number[is_start], 0))


# A table of 128 frames takes 3 KB. The time and size in the key change when a file is replaced.
@lru_cache(maxsize=4096)
def _read_table(path: Path, modified_ns: int, num_bytes: int) -> FrameTable | None:
    with _open_container(path) as (container, stream):
        if container.format.name not in SEEKABLE_CONTAINERS or stream.codec_context.name not in SEEKABLE_CODECS:
            return None
        times, is_key, is_shown = [], [], []
        first = None
        for packet in container.demux(stream):
            if first is None:
                with suppress(av.FFmpegError):  # frames after a damaged one can be read
                    first = next(iter(packet.decode()), None)
            if packet.size == 0:
                continue
            if packet.pts is None or packet.is_corrupt:
                return None
            times.append(packet.pts)
            check_budget("VIDM_MAX_FRAMES", len(times))
            is_key.append(packet.is_keyframe)
            is_shown.append(not packet.is_discard)  # an edit list may hide some
        if first is None or len(set(times)) < len(times) or not any(is_shown):
            return None
        info = _info(stream, sum(is_shown), first)
    return _table(info, np.array(times, np.int64), np.array(is_key), np.array(is_shown))


def _table_of(path: Path) -> FrameTable | None:
    """Return the table of a file's frames, or None if they can only be numbered by decoding from the start."""
    status = path.stat()
    return _read_table(path, status.st_mtime_ns, status.st_size)


def codec_of(path: Path) -> str:
    """Return the name of the decoder of a file's video stream. Raises PyAV's errors, VideoError. Ours."""
    with _open_container(path) as (_, stream):
        return stream.codec_context.name


def probe_container(path: Path) -> VideoInfo:
    """Return a file's VideoInfo; of h264, vp9 and av1 one frame is decoded. Raises PyAV's errors, VideoError. Ours."""
    table = _table_of(path)
    if table is not None:
        return table.info
    with _open_container(path) as (container, stream):
        frames = _decode(container, stream)
        first = next(frames, None)
        if first is None:
            raise VideoError(f"{path}: contains no frames")
        return _info(stream, 1 + sum(1 for _ in frames), first)


# Frames


def frames_in_order(path: Path) -> FrameStream:
    """Decode a file from its start. Raises PyAV's errors, and VideoError if a frame is lost. Ours."""
    table = _table_of(path)
    to_rgb: ToRGB | None = None
    num_frames = 0
    with _open_container(path) as (container, stream):
        for frame in _decode(container, stream):
            # A lost frame would shift the numbers of all frames after it.
            if table is not None and (num_frames == len(table.times) or frame.pts != table.times[num_frames]):
                break
            num_frames += 1
            to_rgb = to_rgb or ToRGB(upright_size(frame))
            yield partial(to_rgb, frame)
        else:
            if table is None or num_frames == len(table.times):
                return
    raise VideoError(f"{path}: damaged, frame {num_frames} cannot be decoded")


def _runs(table: FrameTable, wanted: Collection[int]) -> list[tuple[int, list[int]]]:
    """Return (start, frames to read from there) pairs such that no frame is decoded twice or needlessly."""
    runs: list[tuple[int, list[int]]] = []
    for target in sorted(wanted):
        start = int(table.starts[np.searchsorted(table.starts, target, side="right") - 1])
        if runs and start <= runs[-1][1][-1] + 1:
            runs[-1][1].append(target)
        else:
            runs.append((start, [target]))
    return runs


def _decode_from(
    container: av.container.InputContainer, stream: av.VideoStream, table: FrameTable, start: int
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield (number, frame), starting at or before frame `start`; end early if a frame is not as expected."""
    if start > 0:
        container.seek(int(table.times[start]), stream=stream)
    number = None
    for frame in _decode(container, stream):
        if frame.pts is None or frame.is_corrupt:
            return
        if number is None:  # FFmpeg may seek to an earlier frame than the requested one
            number = int(np.searchsorted(table.times, frame.pts))
            if number not in table.starts:
                return
        if number == len(table.times) or table.times[number] != frame.pts:
            return
        yield number, frame
        number += 1


def frames_by_seeking(path: Path, wanted: Collection[int]) -> dict[int, np.ndarray]:
    """Decode the wanted frames, starting at the keyframe before each: {number: (H, W, 3) uint8}.

    The pixels equal those of frames_in_order. Frames for which that is not certain are left out: those of codecs that
    are not in SEEKABLE_CODECS, near damage, and all if one number does not exist. Raises PyAV's errors. Ours.
    """
    frames: dict[int, np.ndarray] = {}
    table = _table_of(path)
    if table is None or not wanted or min(wanted) < 0 or max(wanted) >= len(table.times):
        return frames
    to_rgb = ToRGB((table.info.height, table.info.width))
    with _open_container(path) as (container, stream):
        # By default a decoder conceals damage with pixels that depend on what was decoded before.
        stream.codec_context.options |= {"err_detect": "explode"}
        try:
            for start, targets in _runs(table, wanted):
                found: dict[int, np.ndarray] = {}
                # Frames decoded before the last target may be output after it: an error in them must be seen too.
                last = table.last_before[targets].max()
                for number, frame in _decode_from(container, stream, table, start):
                    if number in targets:
                        found[number] = to_rgb(frame)
                    if number == last:
                        frames |= found
                        break
                else:
                    return frames
        except av.FFmpegError:
            pass
    return frames
