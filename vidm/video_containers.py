"""Read mp4, mov, mkv, webm, avi and older containers with PyAV, in order or by number; detect truncated files. Ours.

    frames = [to_rgb() for to_rgb in frames_in_order(Path("clip.mp4"))]
    frames = frames_by_seeking(Path("clip.mp4"), {90, 91})     # decodes from the keyframe before frame 90

FFmpeg reads a truncated file as a shorter video, so the sizes in a file's own headers are compared with its size.

The number of a frame is known without decoding if every packet is one frame with its own time: frame n is then the n-th
packet in order of time. Decoding can start at a keyframe if all packets before it are shown before it, and all packets
after it are shown after it. The time of every decoded frame is compared with this table of packets; if they differ, the
file is decoded from its start. Decoders raise errors of many types here; video_io turns them into VideoError.
"""

from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import av
import numpy as np

from vidm.images import budget, check_budget
from vidm.video_rgb import ToRGB, upright_size

CONTAINER_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".avi"),
    *(".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".ogv"),
)

# Containers, by FFmpeg's names, whose packets are whole frames; in an mpeg stream a packet can be one field of a frame.
SEEKABLE_CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi")
# Decoders whose packets are one frame each and which report damage. MPEG-4 part 2 and VP8 have packets without a
# frame or with two; the HEVC decoder does not report damage.
SEEKABLE_CODECS = ("h264", "vp9", "libdav1d")

EBML, SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"

# Frames in order, each as a function that converts it to RGB, so that skipped frames are not converted. A function is
# valid until the next frame is requested.
FrameStream = Generator[Callable[[], np.ndarray], None, None]


class VideoError(ValueError):
    """A video or image cannot be read; the message names the file."""


class VideoInfo(NamedTuple):
    """Number of frames, height and width in px, and frames per second; `fps` is None except for containers."""

    num_frames: int
    height: int
    width: int
    fps: float | None


# Truncated files: mp4 and mov (ISO/IEC 14496-12, 4.2), mkv and webm (RFC 8794, 4 and 6), avi (RIFF chunks and the
# "OpenDML AVI File Format Extensions")


def _end_of_boxes(file: BinaryIO, size_on_disk: int) -> int:
    """Return the position where the last index or media box of an mp4 ends; other boxes may be truncated."""
    position = farthest = 0
    while position + 8 <= size_on_disk:
        file.seek(position)
        header = file.read(16)
        size, kind = int.from_bytes(header[:4], "big"), header[4:8]
        if size == 1:
            size = int.from_bytes(header[8:], "big")
        if size < 8:  # 0 means "to the end of the file"; the rest is not a box
            break
        position += size
        if kind in (b"moov", b"mdat"):
            farthest = position
    return farthest


def _element_size(file: BinaryIO) -> int:
    """Read the size of an mkv element: a zero bit for each byte after the first, then a one, then the number."""
    first = file.read(1)
    length = 9 - int.from_bytes(first, "big").bit_length()
    data_bits = (1 << 7 * length) - 1
    size = int.from_bytes(first + file.read(length - 1), "big") & data_bits
    return 0 if size == data_bits else size  # all ones: a stream of unknown length


def _end_of_segment(file: BinaryIO) -> int:
    """Return the position where the element that contains all of an mkv ends."""
    file.seek(len(EBML))
    file.seek(_element_size(file), 1)
    if file.read(len(SEGMENT)) != SEGMENT:
        return 0
    size = _element_size(file)
    return file.tell() + size


def _end_of_riff(file: BinaryIO, size_on_disk: int) -> int:
    """Return the position where the last RIFF chunk of an avi ends; a long video has several."""
    end = position = 0
    while position + 8 <= size_on_disk:
        file.seek(position)
        header = file.read(8)
        if header[:4] != b"RIFF":
            break
        size = int.from_bytes(header[4:], "little")
        end = position + size  # without the 8 bytes of the header, which some writers wrongly include in the size
        position += 8 + size + size % 2
    return end


def missing_bytes(path: Path) -> int:
    """Return how many bytes are missing at the end of a container file; 0 if its headers do not say.

    Detects mp4, mov and 3gp truncated in the index or media, mkv and webm not written as a stream, and avi truncated by
    more than 8 bytes. The headers of the other containers do not contain a size. Raises OSError. Ours.
    """
    size_on_disk = path.stat().st_size
    with path.open("rb") as file:
        magic = file.read(4)
        if magic == EBML:
            end = _end_of_segment(file)
        elif magic == b"RIFF":
            end = _end_of_riff(file, size_on_disk)
        else:
            end = _end_of_boxes(file, size_on_disk)
    return max(0, end - size_on_disk)


# Tables of frames


class FrameTable(NamedTuple):
    """Frames of a file in order of time, int64: `times` (T,), in the stream's unit; `last_before` (T,), the highest
    number of the frames decoded up to and including this one; `starts` (S,), the frames where decoding can start."""

    info: VideoInfo
    times: np.ndarray
    last_before: np.ndarray
    starts: np.ndarray


@contextmanager
def _open_container(path: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    # Without "file:", FFmpeg takes a name with a colon for a protocol. Without "replace", PyAV fails on a title that is
    # not UTF-8, and leaves the file open.
    with av.open(f"file:{path}", metadata_errors="replace") as container:
        stream = container.streams.best("video")  # the one marked as default, else the best
        if stream is None:
            raise VideoError(f"{path}: has no video stream")
        stream.thread_type = "NONE"  # the data loader's workers already use all cores
        stream.codec_context.thread_count = 1  # the AV1 decoder has its own threads
        check_budget("VIDM_MAX_PIXELS", stream.width * stream.height)
        # The size can change later. Decoders pad frames, so their limit is twice the budget.
        stream.codec_context.options = {"max_pixels": str(2 * budget("VIDM_MAX_PIXELS"))}
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
