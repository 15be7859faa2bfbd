"""Tests of the floor: as many videos as the distance, exchangeable with those of a perfect generator."""

from pathlib import Path

import numpy as np
import pytest

from vidm.detectors import load_detector
from vidm.floor import DEVIATIONS, matched_places
from vidm.frechet import FeatureStats, frechet_of, kernel_distance, kernel_spread
from vidm.metrics import compute_fvd
from vidm.video_io import write_video


def stats_of(rows: np.ndarray) -> FeatureStats:
    stats = FeatureStats()
    stats.update(rows)
    return stats


@pytest.mark.parametrize(
    ("num_real", "num_made", "wanted", "expected"),
    [
        (256, 64, 2048, (192, 64)),
        (7, 7, 2048, (4, 3)),
        (5000, 2048, 2048, (2048, 2048)),
        (3000, 2048, 2048, (1500, 1500)),
        (20, 2048, 2048, (10, 10)),
    ],
)
def test_there_are_as_many_other_real_videos_as_generated_ones_or_half(num_real, num_made, wanted, expected):
    rng = np.random.default_rng(0)
    real_order, made_order = rng.permutation(num_real).tolist(), rng.permutation(num_made).tolist()
    places = matched_places(real_order, made_order, wanted, {})
    assert (len(places.reference), len(places.others)) == expected
    assert len(places.made) == len(places.others)
    assert not set(places.reference) & set(places.others)
    assert set(places.reference) <= set(real_order[:wanted]), "those of the protocol's distance"


def test_videos_that_continue_given_frames_are_not_compared_with_the_videos_of_these_frames():
    places = matched_places(range(10), range(8), 10, {made: 9 - made for made in range(8)})
    assert (places.reference, places.others, places.made) == ([0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [0, 1, 2, 3, 4])
    places = matched_places(range(10), range(4), 10, dict.fromkeys(range(4), 2))
    assert (places.reference, places.others) == ([0, 1, 3, 4, 5, 6], [2, 7, 8, 9])


@pytest.mark.parametrize(("num_real", "num_made"), [(8, 7), (40, 7), (40, 40)])
def test_a_perfect_generator_is_above_and_below_the_floor_equally_often(num_real, num_made):
    rng = np.random.default_rng(1)
    above = []
    for _ in range(200):
        real, made = rng.normal(size=(num_real, 6)), rng.normal(size=(num_made, 6))
        places = matched_places(range(num_real), range(num_made), num_real, {})
        reference = stats_of(real[places.reference])
        above.append(
            frechet_of(reference, stats_of(made[places.made])) > frechet_of(reference, stats_of(real[places.others]))
        )
    assert abs(np.mean(above) - 0.5) < 4 * 0.5 / np.sqrt(200)


@pytest.mark.parametrize(("num_real", "num_made"), [(4, 3), (33, 7), (20, 20)])
def test_a_perfect_generator_is_rarely_above_the_kernel_floor(num_real, num_made):
    rng = np.random.default_rng(1)
    above = []
    for _ in range(100):
        real, others, made = (rng.normal(size=(number, 6)) for number in (num_real, num_made, num_made))
        floor = DEVIATIONS * kernel_spread(np.concatenate([real, others]), num_real)
        above.append(kernel_distance(real, made) > floor)
    assert np.mean(above) <= 0.1


def write_moving(folder: Path, number: int, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    for i in range(number):
        coarse = rng.integers(0, 256, (1, 4, 4, 3), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2)
        write_video(folder / f"{i}.npy", np.concatenate([np.roll(coarse, 2 * t, axis=2) for t in range(4)]))
    return folder


def test_a_kernel_distance_is_marked_unless_it_is_above_its_floor(tmp_path: Path) -> None:
    real, perfect = write_moving(tmp_path / "real", 20, seed=2), write_moving(tmp_path / "perfect", 8, seed=3)
    noise = tmp_path / "noise"
    for i in range(8):
        write_video(noise / f"{i}.npy", np.random.default_rng(i).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8))
    results = [compute_fvd(real, made, load_detector("random"), 4, kernel=True) for made in (perfect, noise)]
    found = [result.measures["kernel"] for result in results]
    assert (found[0].says_nothing, found[0].needed) == ("not above its floor", 0)
    assert (found[1].says_nothing, found[1].needed) == ("", 0)
    assert 0 < found[0].floor == found[1].floor < found[1].matched
    kernel = ["kernel distance says nothing" in " ".join(result.warnings) for result in results]
    assert kernel == [True, False]
    few = compute_fvd(write_moving(tmp_path / "few", 3, seed=4), noise, load_detector("random"), 4, kernel=True)
    assert few.measures["kernel"].says_nothing == "too few videos for a floor"


@pytest.mark.parametrize("num_real", [7, 20])
def test_seven_videos_of_noise_do_not_seem_better_than_real_ones(tmp_path: Path, num_real: int) -> None:
    write_moving(tmp_path / "real", num_real, seed=2)
    rng = np.random.default_rng(2)
    for i in range(7):
        write_video(tmp_path / "noise" / f"{i}.npy", rng.integers(100, 156, (4, 32, 32, 3), dtype=np.uint8))
    result = compute_fvd(tmp_path / "real", tmp_path / "noise", load_detector("random"), num_frames=4)
    assert result.matched > result.floor or "not above its floor" in result.says_nothing
    assert "7 videos for 128 features" in result.says_nothing
    assert result.needed == 512
