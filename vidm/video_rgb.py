"""Convert decoded frames to RGB as ffmpeg's command line shows them: upright, of one size, in the right colours. Ours.

    to_rgb = ToRGB(upright_size(first))
    video = [to_rgb(frame) for frame in (first, *others)]      # (H, W, 3) uint8, all of the first frame's size

The colours come from FFmpeg's scale filter and not from PyAV's reformat, whose result depends on the version of PyAV:
before 18 it does not know BT.2020, and from 17 on it shifts the chroma of frames with more than 8 bits.
"""

import math
from typing import Any, NamedTuple

import av
import numpy as np
from av.filter import Graph

# Numbers of ITU-T H.273, table 4: RGB, BT.709, unspecified (taken for BT.601), FCC, BT.601 twice, SMPTE 240M, BT.2020.
MATRICES = (0, 1, 2, 4, 5, 6, 7, 9)
RESERVED, UNSPECIFIED = 3, 2
ANGLE_TOLERANCE = 1  # degrees, as in ffmpeg


def _display_matrix(frame: av.VideoFrame) -> tuple[float, float, float, float]:
    """Return (a, b, c, d): the stored pixel (x, y), y downwards, is displayed at (a x + c y, b x + d y)."""
    side_data: Any  # PyAV's type lacks the buffer interface
    try:
        side_data = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:
        # PyAV does not know all kinds of side data, for example EXIF in Motion JPEG. The rotation is still known, but
        # not a flip.
        angle = -math.radians(frame.rotation)
        return math.cos(angle), math.sin(angle), -math.sin(angle), math.cos(angle)
    if side_data is None:
        return 1, 0, 0, 1
    a, b, _, c, d = np.frombuffer(side_data, np.int32)[:5].tolist()
    return a, b, c, d


def _turn(frame: av.VideoFrame) -> tuple[str, ...]:
    """Return the filters that turn a frame upright. Raises ValueError if that takes other than right angles."""
    a, b, c, d = _display_matrix(frame)
    angle = math.degrees(math.atan2(b, a))
    if abs(angle - 90 * round(angle / 90)) >= ANGLE_TOLERANCE:
        raise ValueError(f"its display matrix turns it by {angle:.0f} degrees; only right angles can be read")
    transposed = abs(b) > abs(a)
    # "transpose=0" exchanges rows and columns.
    steps = {"transpose=0": transposed, "vflip=": (b if transposed else d) < 0, "hflip=": (c if transposed else a) < 0}
    return tuple(name for name, needed in steps.items() if needed)


def _color_matrix(frame: av.VideoFrame) -> int:
    """Return the number of a frame's colour matrix. Raises ValueError if there is no conversion to RGB for it."""
    matrix = UNSPECIFIED if frame.colorspace == RESERVED else int(frame.colorspace)
    if matrix not in MATRICES:
        raise ValueError(f"its colour matrix, number {matrix} of ITU-T H.273, cannot be converted to RGB")
    return matrix


def _upright(frame: av.VideoFrame, turn: tuple[str, ...]) -> tuple[int, int]:
    return (frame.width, frame.height) if "transpose=0" in turn else (frame.height, frame.width)


def upright_size(frame: av.VideoFrame) -> tuple[int, int]:
    """Return the height and width in px of a frame as it is displayed. Raises ValueError. Ours."""
    return _upright(frame, _turn(frame))


class _Stored(NamedTuple):
    """What a frame is converted from: options of FFmpeg's `buffer`."""

    width: int
    height: int
    pix_fmt: str
    colorspace: int
    range: int
    time_base: int = 1


def _build_graph(stored: _Stored, filters: tuple[str, ...]) -> Graph:
    """Return a graph that applies filters to one kind of stored frame and converts the result to RGB."""
    graph = Graph()
    graph.threads = 1  # the data loader's workers already use all cores
    source = ":".join(f"{name}={value}" for name, value in stored._asdict().items())
    names = (f"buffer={source}", *filters, "format=pix_fmts=rgb24", "buffersink=")
    graph.link_nodes(*(graph.add(*name.split("=", 1)) for name in names)).configure()
    return graph


class ToRGB:
    """Converts frames to uint8 (*size, 3). One object serves a whole video: creating it costs as much as a conversion.

    A frame is turned upright by its display matrix, and scaled to `size`, (height, width) in px, if its own is another.
    Raises ValueError for a display matrix or a colour matrix that cannot be applied. Ours.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self._size = size
        self._turns: dict[int, tuple[str, ...]] = {}
        self._graphs: dict[tuple[_Stored, tuple[str, ...]], Graph] = {}

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        # PyAV keeps a frame whose side data was read until the next garbage collection, so few frames are looked at.
        if frame.rotation not in self._turns:
            self._turns[frame.rotation] = _turn(frame)
        filters = self._turns[frame.rotation]
        stored = _Stored(frame.width, frame.height, frame.format.name, _color_matrix(frame), int(frame.color_range))
        if _upright(frame, filters) != self._size:
            height, width = self._size
            filters += (f"scale={width}:{height}",)
        if (stored, filters) not in self._graphs:
            self._graphs[stored, filters] = _build_graph(stored, filters)
        graph = self._graphs[stored, filters]
        graph.vpush(frame)
        return graph.vpull().to_ndarray()
