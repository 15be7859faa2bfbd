"""What the metrics return: each number with every setting that it depends on. Ours.

result = compute_fvd("real", "generated", load_detector(), num_frames=16, resolution=128)
for kind, found in result.measures.items():
    print(kind, found.value, "floor", found.floor, found.says_nothing)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import stdev

from vidm.floor import Measure
from vidm.frame_size import FrameSize
from vidm.neighbours import Neighbour

Skipped = tuple[tuple[Path, str], ...]


def deviation_of(values: Sequence[float]) -> float | None:
    """The standard deviation over repeats (n - 1); None if all are equal, as a single one is, or there are none."""
    return stdev(values) if len(set(values)) > 1 else None


@dataclass(frozen=True)
class FVDResult:
    """A distance and everything that it depends on.

    `values` are the distances of all repeats and `value` is their mean; `kernel_values` and `kernel` are the same for
    the kernel distance, empty and None unless requested. `floor` is the distance of other real videos to real ones, and
    `matched` that of as many generated videos to the same real ones: compare these two. `matched_samples` counts both
    sides of them. `matched` is `value` if the data allow, else it is of fewer videos. `kernel_matched` and
    `kernel_floor` are the same for the kernel distance (see vidm.floor). All are None for fewer than 4 real videos.
    Deviations are those over repeats; see deviation_of.
    `num_samples` counts each folder's videos, `frame_strides` are those of the real and the generated ones, `size` is
    the (height, width) of their clips, `skipped` has (path, reason), `warnings` say why the number may be misleading.
    `neighbours` are those of the first repeat, the nearest first; empty unless requested.
    """

    value: float
    values: tuple[float, ...]
    kernel: float | None
    kernel_values: tuple[float, ...]
    matched: float | None
    floor: float | None
    matched_deviation: float | None
    floor_deviation: float | None
    matched_samples: tuple[int, int] | None
    kernel_matched: float | None
    kernel_floor: float | None
    kernel_matched_deviation: float | None
    kernel_floor_deviation: float | None
    name: str
    protocol: str
    num_samples: tuple[int, int]
    feature_dim: int
    num_frames: int
    frame_strides: tuple[int, int]
    resolution: FrameSize | None
    fit: str
    size: tuple[int, int]
    seed: int
    skipped: Skipped
    warnings: tuple[str, ...]
    neighbours: tuple[Neighbour, ...]

    @property
    def deviation(self) -> float | None:
        """That of `values`."""
        return deviation_of(self.values)

    @property
    def kernel_deviation(self) -> float | None:
        """That of `kernel_values`."""
        return deviation_of(self.kernel_values)

    @property
    def measures(self) -> dict[str, Measure]:
        """The distances by kind: "Frechet", and "kernel" if requested."""
        number, matched = min(self.num_samples), (self.matched, self.matched_deviation)
        floor = self.floor, self.floor_deviation
        found = {"Frechet": Measure(self.value, self.deviation, *matched, *floor, number, self.feature_dim)}
        if self.kernel is not None:
            found["kernel"] = Measure(
                value=self.kernel,
                deviation=self.kernel_deviation,
                matched=self.kernel_matched,
                matched_deviation=self.kernel_matched_deviation,
                floor=self.kernel_floor,
                floor_deviation=self.kernel_floor_deviation,
                num_samples=number,
                num_fitted=0,
            )
        return found

    @property
    def says_nothing(self) -> str:
        """Why the Frechet distance says nothing; "" if it does."""
        return self.measures["Frechet"].says_nothing

    @property
    def needed(self) -> int:
        """How many videos of each folder the features need; 0 if there are as many."""
        return self.measures["Frechet"].needed


@dataclass(frozen=True)
class VISResult:
    """A video inception score, its standard deviation over the splits, and everything that they depend on.

    `softmax` says that the classifier returned scores, which a softmax turned into probabilities.
    """

    value: float
    deviation: float
    name: str
    num_samples: int
    num_classes: int
    num_frames: int
    resolution: FrameSize | None
    fit: str
    size: tuple[int, int]
    splits: int
    seed: int
    softmax: bool
    skipped: Skipped
