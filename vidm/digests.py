"""What files hold, as one short text: equal for equal bytes, whatever their names, dates and places.

sha256_of([Path("pretrained_models/i3d_torchscript.pt")])
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

CHUNK = 1 << 20


def sha256_of(paths: Iterable[Path]) -> str:
    """The sha256 (hexadecimal) of one file's bytes, or of the sizes and bytes of several, in their order."""
    paths = list(paths)
    digest = hashlib.sha256()
    for path in paths:
        if len(paths) > 1:
            digest.update(f"{path.stat().st_size} ".encode())
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    return digest.hexdigest()
