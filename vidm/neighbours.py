"""Each generated video's nearest real one, by Euclidean distance of features. Ours.

for neighbour in nearest_real(real, made):
    print(neighbour.path, neighbour.nearest, neighbour.distance)
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial.distance import cdist

from vidm.features import Features


@dataclass(frozen=True)
class Neighbour:
    """A generated video, the real one with the nearest features, and the distance of the two.

    `start` is the first frame of the real video's clip.
    """

    path: Path
    nearest: Path
    start: int
    distance: float


def nearest_real(real: Features, made: Features) -> tuple[Neighbour, ...]:
    """Return each generated clip's nearest real clip, by Euclidean distance of features; the nearest pair first. Ours.

    Rows are compared block by block, so memory does not grow with the number of videos.
    """
    found: list[Neighbour] = []
    real_paths, made_paths = real.clips.index.paths, made.clips.index.paths
    for block in made.blocks():
        distances = np.full(len(block), np.inf)
        places = np.zeros(len(block), dtype=int)
        seen = 0
        for others in real.blocks():
            gaps = cdist(block, others)
            closer = gaps.min(axis=1) < distances
            places = np.where(closer, seen + gaps.argmin(axis=1), places)
            distances = np.minimum(distances, gaps.min(axis=1))
            seen += len(others)
        for path, place, distance in zip(made_paths[len(found) :], places, distances, strict=False):
            found.append(Neighbour(path, real_paths[place], real.clips.starts[place], float(distance)))
    return tuple(sorted(found, key=lambda neighbour: neighbour.distance))
