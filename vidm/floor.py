"""The floor of a distance: what other real videos measure in place of the generated ones. Ours.

A Frechet distance of few videos is too large, by an amount that depends on the numbers of videos on both sides. A floor
from fewer videos than the distance is therefore too high, and noise can seem better than real videos. Here both are
measured against the same real videos, with equally many generated and other real ones, which a perfect generator makes
exchangeable: neither is favoured, whatever the numbers.

    matched = matched_distances(real, made, wanted=64, seed=0)     # features of all real and all generated clips
    print(matched.value, "floor", matched.floor)
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vidm.clip_choice import draw_order
from vidm.features import Features
from vidm.folder_walk import count_of
from vidm.frechet import frechet_of
from vidm.pairing import continued_videos

# With fewer samples per dimension, a covariance is mostly noise.
SAMPLES_PER_DIMENSION = 4


class Matched(NamedTuple):
    """A distance and its floor, both of as many videos: the numbers of real videos and of those compared with them."""

    value: float
    floor: float
    num_samples: tuple[int, int]


class MatchedPlaces(NamedTuple):
    """Places of real clips, `reference` and, disjoint, `others`; and of generated ones, `made`, as many as `others`."""

    reference: list[int]
    others: list[int]
    made: list[int]


def matched_places(
    real_order: Sequence[int], made_order: Sequence[int], wanted: int, continued: Mapping[int, int]
) -> MatchedPlaces | None:
    """Return the clips of which a distance and its floor are measured; None for fewer than 4 real or 2 generated ones.

    The orders have the places of all clips in a random order; the first `wanted` real ones are those of the protocol's
    distance. There are as many others as generated clips, or half of the real ones if there are fewer. `continued` has
    the place of the real clip that begins with the same frame as a generated one, if any: the others are these, and the
    reference has none of them, since a shared first frame would bring the generated side closer than the real one.
    """
    count = min(len(made_order), len(real_order) // 2)
    if count < 2:
        return None
    made = list(made_order[:count])
    sources = {continued[place] for place in made if place in continued}
    own = [place for place in real_order if place in sources]
    rest = [place for place in real_order if place not in sources]
    missing = count - len(own)
    reference = rest[: min(wanted, len(rest) - missing)]
    others = own + rest[len(rest) - missing :]
    return MatchedPlaces(sorted(reference), sorted(others), sorted(made))


def _continued(real: Features, made: Features) -> dict[int, int]:
    found = continued_videos(real.clips.index, made.clips.index)
    place_of = {path: place for place, path in enumerate(real.clips.index.paths)}
    return {place: place_of[found[path]] for place, path in enumerate(made.clips.index.paths) if path in found}


def matched_distances(real: Features, made: Features, wanted: int, seed: int, ddof: int = 0) -> Matched | None:
    """Return the distance of generated videos and its floor; None for fewer than 4 real or 2 generated videos.

    The first `wanted` real videos that the seed draws are those of the protocol's distance; see matched_places.
    """
    real_order, made_order = (draw_order(side.clips, seed, by_video=True) for side in (real, made))
    places = matched_places(real_order, made_order, wanted, _continued(real, made))
    if places is None:
        return None
    reference = real.at(places.reference).stats()
    return Matched(
        value=frechet_of(reference, made.at(places.made).stats(), ddof),
        floor=frechet_of(reference, real.at(places.others).stats(), ddof),
        num_samples=(len(places.reference), len(places.others)),
    )


def enough_for(feature_dim: int) -> int:
    """Return how many videos of each folder a distance in that many features needs."""
    return SAMPLES_PER_DIMENSION * feature_dim


def doubts(num_samples: int, feature_dim: int, matched: float | None, floor: float | None) -> tuple[list[str], int]:
    """Return why a distance says nothing, and how many videos of each folder would be enough; [] and 0 if it does.

    `num_samples` is the smaller number of videos. A distance that is not above its floor needs at least twice as many.
    """
    reasons, needed = [], 0
    if num_samples < enough_for(feature_dim):
        reasons.append(f"{count_of(num_samples, 'video')} for {feature_dim} features")
        needed = enough_for(feature_dim)
    if matched is not None and floor is not None and matched <= floor:
        reasons.append("not above its floor")
        needed = max(needed, 2 * num_samples)
    return reasons, needed
