"""The floor of a distance: what other real videos measure in place of the generated ones. Ours.

A Frechet distance of few videos is too large, by an amount that depends on the numbers of videos on both sides. A floor
from fewer videos than the distance is therefore too high, and noise can seem better than real videos. Here both are
measured against the same real videos, with equally many generated and other real ones, which a perfect generator makes
exchangeable: neither is favoured, whatever the numbers.

The kernel distance has no such bias: real videos measure 0 on average. Its floor is therefore what chance adds to 0,
twice the standard deviation over random divisions of the same real videos into the same numbers.

    matched = matched_distances(real, made, wanted=64, seed=0)     # features of all real and all generated clips
    print(matched.value, "floor", matched.floor)
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from vidm.clip_choice import draw_order
from vidm.features import Features
from vidm.folder_walk import count_of
from vidm.frechet import frechet_of, kernel_distance, kernel_spread
from vidm.pairing import continued_videos

# With fewer samples per dimension, a covariance is mostly noise.
SAMPLES_PER_DIMENSION = 4
# Real videos in place of the generated ones exceed this many standard deviations about once in thirty times.
DEVIATIONS = 2
# What to read from a number with its floor, by kind of distance.
FLOORS = {
    "Frechet": "floor: what other real videos measure in place of the generated ones; a perfect generator comes to "
    "about 1 times it, minutes of training to tens of times",
    "kernel": "floor of the kernel distance: twice the deviation over random divisions of the real videos, which "
    "measure 0 on average and rarely more than the floor",
}


class Matched(NamedTuple):
    """A distance and its floor, both of as many videos: the numbers of real videos and of those compared with them.

    `kernel` and `kernel_floor` are the same for the kernel distance, None unless requested.
    """

    value: float
    floor: float
    num_samples: tuple[int, int]
    kernel: float | None
    kernel_floor: float | None


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


def matched_distances(
    real: Features, made: Features, wanted: int, seed: int, ddof: int = 0, kernel: bool = False
) -> Matched | None:
    """Return the distance of generated videos and its floor; None for fewer than 4 real or 2 generated videos.

    The first `wanted` real videos that the seed draws are those of the protocol's distance; see matched_places. With
    `kernel`, also the kernel distance and its floor, for which all features must fit in memory.
    """
    real_order, made_order = (draw_order(side.clips, seed, by_video=True) for side in (real, made))
    places = matched_places(real_order, made_order, wanted, _continued(real, made))
    if places is None:
        return None
    reference, others, compared = real.at(places.reference), real.at(places.others), made.at(places.made)
    stats = reference.stats()
    spread = kernel_spread(np.concatenate([reference.rows(), others.rows()]), len(places.reference)) if kernel else 0
    return Matched(
        value=frechet_of(stats, compared.stats(), ddof),
        floor=frechet_of(stats, others.stats(), ddof),
        num_samples=(len(places.reference), len(places.others)),
        kernel=kernel_distance(reference.rows(), compared.rows()) if kernel else None,
        kernel_floor=DEVIATIONS * spread if kernel else None,
    )


def enough_for(feature_dim: int) -> int:
    """Return how many videos of each folder a Frechet distance in that many features needs."""
    return SAMPLES_PER_DIMENSION * feature_dim


class Measure(NamedTuple):
    """A distance, and what decides whether it says something: the one of `matched` numbers of videos, and its floor.

    `num_samples` is the smaller number of videos, the deviations are those over repeats. `num_fitted` is the number of
    features whose covariance is estimated: 0 for the kernel distance, which has no bias.
    """

    value: float
    deviation: float | None
    matched: float | None
    matched_deviation: float | None
    floor: float | None
    floor_deviation: float | None
    num_samples: int
    num_fitted: int

    @property
    def is_whole(self) -> bool:
        """Whether the floor is that of the distance itself, and not of fewer videos."""
        return self.matched == self.value

    @property
    def says_nothing(self) -> str:
        """Why the number says nothing: too few videos for the features, or not above its floor; "" if it does."""
        few = f"{count_of(self.num_samples, 'video')} for {self.num_fitted} features"
        low = "too few videos for a floor" if self.floor is None else "not above its floor"
        return " and ".join([few] * self._has_few + [low] * self._is_low)

    @property
    def needed(self) -> int:
        """How many videos of each folder the features need; 0 if there are as many.

        A distance that is not above its floor needs more videos, but how many depends on the generator: for a perfect
        one, no number is enough.
        """
        return enough_for(self.num_fitted) * self._has_few

    @property
    def _has_few(self) -> bool:
        return self.num_samples < enough_for(self.num_fitted)

    @property
    def _is_low(self) -> bool:
        return self.matched is None or self.floor is None or self.matched <= self.floor
