"""Show videos in a notebook, as inline HTML that loads no other file. Ours.

    vidm.show(generator.animate("first.png"))  # as the last line of a cell
    vidm.show({"generated": generated, "ground truth": real}, fps=4)

The HTML also plays in exported pages. IPython is not needed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from vidm.report import PIXEL_ART_WIDTH, data_url
from vidm.video_io import write_video

# The highest frame rate of each format: browsers play shorter frames of a gif slowly.
MAX_FPS = {"gif": 50, "mp4": 1000}

# A thin outline shows the edge of a white video on a white page, and of a black one on a black page.
STYLE = "image-rendering: pixelated; outline: 1px solid #8886"

Videos = np.ndarray | Sequence[np.ndarray] | Mapping[str, np.ndarray]


@dataclass(frozen=True)
class ShownVideos:
    """Videos that a notebook displays. `html` is a fragment of a page that contains them."""

    num_videos: int
    html: str = field(repr=False)

    def _repr_html_(self) -> str:
        return self.html


def _with_captions(videos: Videos) -> list[tuple[str, np.ndarray]]:
    if isinstance(videos, Mapping):
        pairs = [(str(caption), np.asarray(video)) for caption, video in videos.items()]
    else:
        single = isinstance(videos, np.ndarray) and videos.ndim == 4
        pairs = [("", np.asarray(video)) for video in ([videos] if single else videos)]
    for _, video in pairs:
        if video.dtype.kind == "U":
            raise ValueError(f"cannot show {videos}: give an array of frames; vidm.video_io.read_video reads a file")
        if video.dtype != np.uint8 or video.ndim != 4 or video.shape[3] != 3 or not video.size:
            raise ValueError(f"cannot show {video.dtype} {video.shape}; a video is uint8 (T, H, W, 3)")
    return pairs


def _figure(path: Path, caption: str, number: int, width: int) -> str:
    # The smallest whole multiple that is not tiny on a screen, with the pixels that the model generated.
    shown = width * -(-PIXEL_ART_WIDTH // width)
    attributes = f'width="{shown}" src="{data_url(path)}" style="{STYLE}"'
    label = escape(caption or f"video {number}")
    if path.suffix == ".gif":
        element = f'<img alt="{label}" {attributes}>'
    else:
        element = f'<video autoplay loop muted playsinline controls aria-label="{label}" {attributes}></video>'
    text = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure style="display: inline-block; margin: 0 16px 8px 0">{element}{text}</figure>'


def show(videos: Videos, fps: float = 8, format: str = "gif") -> ShownVideos:
    """Return videos as an object that a notebook displays, side by side, looping.

    `videos` is one video, uint8 (T, H, W, 3), as Generator.animate returns it; several, uint8 (B, T, H, W, 3), as
    generate returns them; a sequence of videos of any lengths and sizes; or videos by caption. Narrow ones are
    enlarged without smoothing. `fps` are frames per second. "gif" has 256 colours per frame and plays everywhere, also
    where notebooks may not play video (GitHub); "mp4" (H.264) is smaller and has controls. Raises ValueError for other
    arrays or formats, and for a frame rate outside 0.1 to 50 (gif) or 1000 (mp4). Ours.
    """
    if format not in MAX_FPS:
        raise ValueError(f"format {format!r}: choose from {', '.join(MAX_FPS)}")
    if not 0.1 <= fps <= MAX_FPS[format]:
        raise ValueError(f"fps {fps}: give 0.1 to {MAX_FPS[format]} for {format}")
    pairs = _with_captions(videos)
    figures = []
    with TemporaryDirectory() as folder:
        for number, (caption, video) in enumerate(pairs):
            path = Path(folder, f"{number}.{format}")
            write_video(path, video, fps)
            figures.append(_figure(path, caption, number, video.shape[2]))
    return ShownVideos(len(pairs), f"<div>{''.join(figures)}</div>")
