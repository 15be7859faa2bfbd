"""Identify a clip by the bytes that its frames are read from, so that features computed from them can be found. Ours.

    keys = ContentKeys()
    keys.of(Path("packs/clevrer/train/video_00000.mp4"), range(16))

Nothing that somebody wrote about the bytes, such as a checksum in the index of a pack, can take their place.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from vidm.files import sha256_of
from vidm.pack_index import Clip
from vidm.packs import Pack, pack_of
from vidm.segments import segment_of
from vidm.video_io import frame_files

BLOCK = 1 << 20  # bytes of a piece in memory

_Found = tuple[Clip, tuple[int, ...]] | None


def _key_of_pieces(pack: Pack, clip: Clip, numbers: Sequence[int]) -> str:
    places = pack.places(clip, numbers)
    sizes = places[:, 2].tolist()  # without them, the same bytes could be divided into other pieces
    suffix = Path(clip.name).suffix.lower() if clip.kind == "video" else ""
    digest = hashlib.sha256(f"{clip.kind} {suffix} {clip.info} {sizes} ".encode(errors="replace"))
    for place in places:
        for block in pack.blocks(clip, place, BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _key_of_files(path: Path) -> str:
    files = frame_files(path) if path.is_dir() else [path]
    return f"{sha256_of(files)}{files[0].suffix.lower()}"


class ContentKeys:
    """Computes the keys of clips, each once: a file that changes afterwards keeps its key."""

    def __init__(self) -> None:
        self._known: dict[tuple[Path, _Found], str] = {}

    def of(self, path: Path, indices: Iterable[int]) -> str:
        """Return a text that depends on the bytes from which frames of a clip are read, and on their format.

        These are all bytes of a video or a folder of frames; in a pack, those of the video or of the frames at these
        indices. The part of a video has the key of the whole, with its first frame. Raises VideoError if the pack does
        not have them or they do not match its checksums; OSError.
        """
        if segment := segment_of(path):
            return f"{self.of(segment.path, segment.numbers(indices))} from {segment.start}"
        pack = pack_of(path)
        found = pack.find(path, indices) if pack else None
        if (path, found) not in self._known:
            self._known[path, found] = _key_of_pieces(pack, *found) if pack and found else _key_of_files(path)
        return self._known[path, found]
