"""mp4, mov, mkv, webm and avi through PyAV: frames in order, frames by number, and writing mp4. Ours.

    frames = frames_by_seeking(Path("clip.mp4"), {90, 91})     # from the keyframe before 90 on; or {}, where unsure
    frames = [to_rgb() for to_rgb in frames_in_order(Path("clip.mp4"))]

Which frame is number n is known without decoding where every packet is one frame and has a time of its own: then
frame n is the n-th packet by time. A keyframe is a place to begin when no packet before it is shown after it and none
after it is shown before. Every frame's time is compared with the table as it comes out of the decoder.

Decoders throw what they like here; video_io puts the file's name to it.

How many bytes a container file lacks: a copy that was cut short tells by the sizes in its own headers. Ours.

    missing_bytes(Path("whole.mkv"))    # 0
    missing_bytes(Path("half.mkv"))     # as many as the other half has

FFmpeg reads a cut file as a shorter video. mp4 and mov: ISO/IEC 14496-12, 4.2; mkv and webm: RFC 8794, 4 and 6;
avi: RIFF chunks, the "OpenDML AVI File Format Extensions" among them.
"""

from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import lru_cache, partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

EBML, SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"


def _end_of_boxes(file: BinaryIO, size_on_disk: int) -> int:
    """Where the index or media box that reaches farthest would end; other boxes may be cut without harm."""
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
    """Read an element's size: as many leading zero bits as bytes follow, then a one, then the number."""
    first = file.read(1)
    length = 9 - int.from_bytes(first, "big").bit_length()
    data_bits = (1 << 7 * length) - 1
    size = int.from_bytes(first + file.read(length - 1), "big") & data_bits
    return 0 if size == data_bits else size  # all ones: written to a stream, whose length was not known


def _end_of_segment(file: BinaryIO) -> int:
    """Where the element that holds everything would end."""
    file.seek(len(EBML))
    file.seek(_element_size(file), 1)
    if file.read(len(SEGMENT)) != SEGMENT:
        return 0
    size = _element_size(file)
    return file.tell() + size


def _end_of_riff(file: BinaryIO, size_on_disk: int) -> int:
    """Where the last of the chunks that hold everything would end; a long video has several."""
    end = position = 0
    while position + 8 <= size_on_disk:
        file.seek(position)
        header = file.read(8)
        if header[:4] != b"RIFF":
            break
        size = int.from_bytes(header[4:], "little")
        end = position + size  # without the header's 8 bytes: some writers count them in, wrongly
        position += 8 + size + size % 2
    return end


def missing_bytes(path: Path) -> int:
    """Return how many bytes are missing at the end of a container file; 0 also where nothing in it tells.

    Told are mp4 and mov (index or media cut), mkv and webm (unless written to a stream) and avi (8 bytes or fewer go
    unnoticed). Raises OSError. Ours.
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


CONTAINER_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")

# Decoders whose packets are one frame each, and which tell of damage where it matters what was decoded before. MPEG-4
# part 2 and VP8 have packets that show nothing, or two frames; HEVC's decoder keeps silent over damage.
SOUGHT_IN = ("h264", "vp9", "libdav1d")

# The same frames are to give the same bytes: x264's output depends on the number of threads, and its macroblock
# tree reads memory that it never set when frames are small.
X264_OPTIONS = {"crf": "12", "threads": "1", "x264-params": "mbtree=0"}
SMPTE170M = 6  # the number by which H.264 tags BT.601 in the 525-line form (ITU-T H.273, tables 2 to 4)

# Frames in order, each as a function that turns it to RGB: one that is passed over is never converted.
# A function is good until the next one is drawn.
FrameStream = Generator[Callable[[], np.ndarray], None, None]


class VideoError(ValueError):
    """A video or image that cannot be read; the message names the file."""


class VideoInfo(NamedTuple):
    """What a video holds; `fps` is None where no single rate is kept, which is in all but containers."""

    num_frames: int
    height: int
    width: int
    fps: float | None


class FrameTable(NamedTuple):
    """Where frames are, all int64: `times` (T,), of each frame, in the stream's unit; `last_before` (T,), the last one
    by time of those that are decoded before it or are itself; `starts` (S,), those to begin at."""

    info: VideoInfo
    times: np.ndarray
    last_before: np.ndarray
    starts: np.ndarray


@contextmanager
def _open_container(path: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    # "file:" keeps FFmpeg from taking a name with a colon for a protocol. A title that is not UTF-8 is no reason to
    # fail, and failing over one, PyAV would leave the file open.
    with av.open(f"file:{path}", metadata_errors="replace") as container:
        if not container.streams.video:
            raise VideoError(f"{path}: has no video stream")
        stream = container.streams.video[0]
        stream.thread_type = "NONE"  # the data loader's workers are the parallelism
        stream.codec_context.thread_count = 1  # AV1's decoder has threads of its own
        yield container, stream


def _info(stream: av.VideoStream, num_frames: int) -> VideoInfo:
    fps = float(stream.average_rate) if stream.average_rate else None
    return VideoInfo(num_frames, stream.height, stream.width, fps)


# Tables of frames


def _table(info: VideoInfo, times: np.ndarray, is_key: np.ndarray, is_shown: np.ndarray) -> FrameTable | None:
    """Make a table of what is known of each packet, in the order of decoding."""
    rank = np.argsort(np.argsort(times))
    is_closed = is_key & (rank == np.arange(len(rank))) & (rank == np.maximum.accumulate(rank))
    if not is_closed[0]:
        return None
    # Whether hidden frames are damaged is not seen: decoding begins before those that they may have a part in.
    group = np.cumsum(is_closed)
    is_start = is_closed & ~np.isin(group, group[~is_shown])
    is_start[0] = True
    number = np.cumsum(is_shown[np.argsort(times)])[rank] - 1  # of a hidden packet: that of the frame shown before it
    last_before = np.empty(info.num_frames, np.int64)
    last_before[number[is_shown]] = np.maximum.accumulate(number)[is_shown]
    return FrameTable(info, np.sort(times[is_shown]), last_before, np.maximum(number[is_start], 0))


# A table of 128 frames is 3 KB. The key holds what changes when a file is replaced.
@lru_cache(maxsize=4096)
def _read_table(path: Path, modified_ns: int, num_bytes: int) -> FrameTable | None:
    with _open_container(path) as (container, stream):
        if stream.codec_context.name not in SOUGHT_IN:
            return None
        times, is_key, is_shown = [], [], []
        for packet in container.demux(stream):
            if packet.size == 0:
                continue
            if packet.pts is None or packet.is_corrupt:
                return None
            times.append(packet.pts)
            is_key.append(packet.is_keyframe)
            is_shown.append(not packet.is_discard)  # an edit list may hide some
        info = _info(stream, sum(is_shown))
    if len(set(times)) < len(times) or info.num_frames == 0:
        return None
    return _table(info, np.array(times, np.int64), np.array(is_key), np.array(is_shown))


def _table_of(path: Path) -> FrameTable | None:
    """The table of a file's frames, or None where only decoding from the start tells which frame is which."""
    status = path.stat()
    return _read_table(path, status.st_mtime_ns, status.st_size)


def probe_container(path: Path) -> VideoInfo:
    """Return what a file holds: h264, vp9 and av1 are not decoded, others once. Raises as PyAV does. Ours."""
    table = _table_of(path)
    if table is not None:
        return table.info
    with _open_container(path) as (container, stream):
        num_frames = sum(1 for _ in container.decode(stream))
        if num_frames == 0:
            raise VideoError(f"{path}: holds no frames")
        return _info(stream, num_frames)


# Frames


def _rgb_from_yuv(frame: av.VideoFrame, reformatter: VideoReformatter) -> np.ndarray:
    # By the file's own matrix and range; what is not tagged is BT.601, narrow range, as FFmpeg takes it.
    # All is said in full because PyAV's defaults differ between its versions.
    known = {int(colorspace) for colorspace in Colorspace}
    rgb = reformatter.reformat(
        frame,
        format="rgb24",
        src_colorspace=frame.colorspace if frame.colorspace in known else Colorspace.ITU601,
        src_color_range=ColorRange.JPEG if frame.color_range == ColorRange.JPEG else ColorRange.MPEG,
        dst_color_range=ColorRange.JPEG,
    )
    return rgb.to_ndarray()


def frames_in_order(path: Path) -> FrameStream:
    """Decode a file from its start. Raises as PyAV does, and VideoError where a frame does not come out. Ours."""
    table = _table_of(path)
    reformatter = VideoReformatter()  # one for all frames: setting one up costs more than a conversion
    num_frames = 0
    with _open_container(path) as (container, stream):
        for frame in container.decode(stream):
            # A frame that is lost would shift the numbers of all that follow.
            if table is not None and (num_frames == len(table.times) or frame.pts != table.times[num_frames]):
                break
            num_frames += 1
            yield partial(_rgb_from_yuv, frame, reformatter)
        else:
            if table is None or num_frames == len(table.times):
                return
    raise VideoError(f"{path}: damaged, frame {num_frames} does not come out of the decoder")


def _runs(table: FrameTable, wanted: Collection[int]) -> list[tuple[int, list[int]]]:
    """(where to begin, frames to read from there on), so that nothing is decoded twice or for nothing."""
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
    """Numbered frames from frame `start` on or from before it; they end where there is any doubt about one."""
    if start > 0:
        container.seek(int(table.times[start]), stream=stream)
    number = None
    for frame in container.decode(stream):
        if frame.pts is None or frame.is_corrupt:
            return
        if number is None:  # FFmpeg may land on an earlier place than the one that was asked for
            number = int(np.searchsorted(table.times, frame.pts))
            if number not in table.starts:
                return
        if number == len(table.times) or table.times[number] != frame.pts:
            return
        yield number, frame
        number += 1


def frames_by_seeking(path: Path, wanted: Collection[int]) -> dict[int, np.ndarray]:
    """Decode the wanted frames, each from the last place to begin before it; (H, W, 3) uint8, by number.

    They are those of frames_in_order, bit for bit. Fewer or none come back where that is not certain: for codecs
    whose packets are not one frame each, for damage, for numbers that are not there. Raises as PyAV does. Ours.
    """
    frames: dict[int, np.ndarray] = {}
    table = _table_of(path)
    if table is None or not wanted or min(wanted) < 0 or max(wanted) >= len(table.times):
        return frames
    reformatter = VideoReformatter()
    with _open_container(path) as (container, stream):
        # What stands in for a damaged part depends on what was decoded before.
        stream.codec_context.options = {"err_detect": "explode"}
        try:
            for start, targets in _runs(table, wanted):
                found: dict[int, np.ndarray] = {}
                # A frame is made of those decoded before it, of which some come out after it: these are awaited.
                last = table.last_before[targets].max()
                for number, frame in _decode_from(container, stream, table, start):
                    if number in targets:
                        found[number] = _rgb_from_yuv(frame, reformatter)
                    if number == last:
                        frames |= found
                        break
                else:
                    return frames
        except av.FFmpegError:
            pass
    return frames


# Writing


def write_mp4(path: Path, frames: np.ndarray, fps: float) -> None:
    """Write uint8 (T, H, W, 3) frames as H.264, 4:2:0; odd sides grow by one. Raises as PyAV does. Ours."""
    # 4:2:0 keeps one colour per 2 x 2 pixels, so sides are even: an odd one repeats its last row or column.
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    reformatter = VideoReformatter()
    with av.open(f"file:{path}", "w", format="mp4", options={"movflags": "+faststart"}) as container:
        rate = Fraction(fps).limit_denominator(1001)  # holds 24000/1001 and 30000/1001
        stream = container.add_stream("libx264", rate=rate, options=X264_OPTIONS)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = SMPTE170M
        context.color_range = ColorRange.MPEG
        for array in frames:
            frame = reformatter.reformat(
                av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24"),
                format="yuv420p",
                dst_colorspace=Colorspace.ITU601,
                dst_color_range=ColorRange.MPEG,
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
