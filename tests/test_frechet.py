"""Tests of feature statistics and distances: closed forms, parity with golden numbers, and invariances."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from vidm.frechet import FeatureStats, frechet_distance, frechet_of, inception_score, kernel_distance, kernel_spread

GOLDEN = Path(__file__).parent / "data" / "metrics.npz"


def stats_of(*batches: np.ndarray | torch.Tensor) -> FeatureStats:
    stats = FeatureStats()
    for batch in batches:
        stats.update(batch)
    return stats


def features(n: int, d: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) + rng.standard_normal(d)


@pytest.mark.parametrize("rows", ["full", "low_rank"])
@pytest.mark.parametrize(("ddof", "kind"), [(0, "population"), (1, "sample")])
def test_the_distance_of_the_golden_features_is_the_golden_distance(rows: str, ddof: int, kind: str) -> None:
    golden = np.load(GOLDEN)
    n = None if rows == "full" else int(golden["low_rank_n"])
    real, fake = stats_of(golden["features_real"][:n]), stats_of(golden["features_fake"][:n])
    assert frechet_of(real, fake, ddof) == pytest.approx(float(golden[f"frechet_{rows}_{kind}"]), rel=1e-6)


def test_with_equal_covariances_the_distance_is_the_squared_gap_of_the_means() -> None:
    covariance = stats_of(features(50, 6, seed=0)).covariance()
    gap = np.arange(6.0)
    assert frechet_distance(gap, covariance, np.zeros(6), covariance) == pytest.approx(55.0, rel=1e-12)


def test_in_one_dimension_the_distance_is_the_sum_of_squared_gaps_of_mean_and_deviation() -> None:
    result = frechet_distance(np.array([1.0]), np.array([[4.0]]), np.array([4.0]), np.array([[25.0]]))
    assert result == pytest.approx((4 - 1) ** 2 + (5 - 2) ** 2, rel=1e-12)


def test_in_orthogonal_subspaces_the_distance_is_the_sum_of_the_traces() -> None:
    one, two = np.diag([3.0, 0.0]), np.diag([0.0, 5.0])
    assert frechet_distance(np.zeros(2), one, np.zeros(2), two) == pytest.approx(8)


def test_rounding_errors_in_a_covariance_of_rank_one_do_not_change_the_distance() -> None:
    d = 200
    direction = np.random.default_rng(8).standard_normal(d)
    expected = direction @ direction + d - 2 * np.linalg.norm(direction)
    result = frechet_distance(np.zeros(d), np.outer(direction, direction), np.zeros(d), np.eye(d))
    assert result == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("n", [5, 200])
def test_the_distance_of_a_set_to_itself_is_zero_even_with_fewer_samples_than_dimensions(n: int) -> None:
    rows = features(n, 40, seed=1)
    itself = frechet_of(stats_of(rows), stats_of(rows[::-1][: n // 2], rows[::-1][n // 2 :]))
    assert 0 <= itself < 1e-9


@pytest.mark.parametrize("n", [5, 200])
def test_the_distance_is_symmetric_and_positive_between_different_sets(n: int) -> None:
    one, two = stats_of(features(n, 16, seed=2)), stats_of(features(n, 16, seed=3))
    assert frechet_of(one, two) > 1
    assert frechet_of(one, two) == pytest.approx(frechet_of(two, one), rel=1e-12)


def test_batches_and_merged_parts_give_the_statistics_of_all_rows_at_once() -> None:
    rows = features(101, 8, seed=4)
    batched = stats_of(rows[:1], rows[1:40], rows[40:])
    merged = stats_of(rows[60:])
    merged.merge(FeatureStats())
    merged.merge(stats_of(rows[:60]))
    for stats in (batched, merged):
        assert stats.count == 101
        np.testing.assert_allclose(stats.mean(), rows.mean(axis=0), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(stats.covariance(), np.cov(rows.T, ddof=0), rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(stats.covariance(ddof=1), np.cov(rows.T), rtol=1e-10, atol=1e-12)


def test_merging_does_not_change_the_other_statistics() -> None:
    rows = features(20, 3, seed=5)
    part, total = stats_of(rows[:10]), FeatureStats()
    total.merge(part)
    total.update(rows[10:])
    assert part.count == 10
    np.testing.assert_allclose(part.covariance(), np.cov(rows[:10].T, ddof=0), rtol=1e-10)


def test_a_large_mean_does_not_reduce_the_precision_of_the_covariance() -> None:
    rows = np.random.default_rng(6).standard_normal((1000, 1))
    far = rows + 1e8
    raw = np.square(far).mean() - far.mean() ** 2
    assert abs(raw - rows.var()) > 0.1
    assert stats_of(*np.split(far, 10)).covariance().item() == pytest.approx(rows.var(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_torch_features_of_any_float_type_are_converted_to_float64(dtype: torch.dtype) -> None:
    rows = torch.from_numpy(features(30, 4, seed=7)).to(dtype).requires_grad_()
    expected = rows.detach().double().numpy()
    np.testing.assert_array_equal(stats_of(rows).covariance(), stats_of(expected).covariance())


def test_one_sample_has_a_mean_and_no_covariance() -> None:
    one = stats_of(np.ones((1, 3)))
    np.testing.assert_array_equal(one.mean(), np.ones(3))
    with pytest.raises(ValueError, match="at least 2"):
        one.covariance()
    with pytest.raises(ValueError, match="at least 1"):
        FeatureStats().mean()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(bad: float) -> None:
    rows = np.zeros((4, 2))
    rows[2, 1] = bad
    with pytest.raises(ValueError, match="1 of 4 feature rows"):
        FeatureStats().update(rows)
    with pytest.raises(ValueError, match="NaN or inf"):
        frechet_distance(np.array([bad]), np.eye(1), np.zeros(1), np.eye(1))


def test_shapes_that_do_not_match_are_named_in_the_error() -> None:
    with pytest.raises(ValueError, match=r"\(3,\).*\(samples, dimensions\)"):
        FeatureStats().update(np.zeros(3))
    with pytest.raises(ValueError, match="5 dimensions cannot be added to features of 4"):
        stats_of(np.zeros((2, 4)), np.zeros((2, 5)))
    with pytest.raises(ValueError, match="do not match: shapes"):
        frechet_distance(np.zeros(2), np.eye(2), np.zeros(3), np.eye(3))


def naive_kernel_distance(one: np.ndarray, two: np.ndarray) -> float:
    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return (x @ y / len(x) + 1) ** 3

    def of_pairs(rows: np.ndarray) -> float:
        return float(np.mean([kernel(x, y) for i, x in enumerate(rows) for j, y in enumerate(rows) if i != j]))

    return of_pairs(one) + of_pairs(two) - 2 * float(np.mean([kernel(x, y) for x in one for y in two]))


def test_the_kernel_distance_is_the_sum_over_pairs_of_different_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = features(9, 4, seed=8), features(13, 4, seed=9)
    expected = naive_kernel_distance(one, two)
    assert kernel_distance(one, two) == pytest.approx(expected, rel=1e-10)
    assert kernel_distance(two, one) == pytest.approx(expected, rel=1e-10)
    monkeypatch.setattr("vidm.frechet.BLOCK", 4)
    assert kernel_distance(one, two) == pytest.approx(expected, rel=1e-10)


def test_the_kernel_distance_of_sets_of_one_distribution_is_zero_on_average_at_any_size() -> None:
    rng = np.random.default_rng(10)
    draws = [kernel_distance(rng.standard_normal((8, 3)), rng.standard_normal((5, 3))) for _ in range(3000)]
    assert abs(np.mean(draws)) < 4 * np.std(draws) / np.sqrt(len(draws))
    assert min(draws) < 0
    assert kernel_distance(rng.standard_normal((50, 3)), 3 + rng.standard_normal((50, 3))) > 10


def test_the_kernel_spread_is_the_deviation_over_divisions_of_one_set(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(5).standard_normal((7, 3))
    divisions = [(list(first), [i for i in range(7) if i not in first]) for first in combinations(range(7), 3)]
    distances = [kernel_distance(rows[first], rows[second]) for first, second in divisions]
    assert np.mean(distances) == pytest.approx(0, abs=1e-12)
    spread = kernel_spread(rows, 3)
    assert spread == pytest.approx(np.std(distances), rel=0.2)
    monkeypatch.setattr("vidm.frechet.BLOCK", 2)
    assert kernel_spread(rows, 3) == pytest.approx(spread, rel=1e-10)
    with pytest.raises(ValueError, match="parts of 6 and 1 samples"):
        kernel_spread(rows, 6)


def test_invalid_inputs_of_the_kernel_distance_are_named_in_the_error() -> None:
    with pytest.raises(ValueError, match="1 and 3 samples: a kernel distance needs at least 2"):
        kernel_distance(np.zeros((1, 2)), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="of 2 and of 4 dimensions"):
        kernel_distance(np.zeros((3, 2)), np.zeros((3, 4)))


@pytest.mark.parametrize(("kind", "seed"), [("shuffled", 42), ("unshuffled", None)])
def test_the_inception_score_of_the_golden_probabilities_is_the_golden_score(kind: str, seed: int | None) -> None:
    golden = np.load(GOLDEN)
    value, deviation = inception_score(golden["probabilities"], splits=10, shuffle_seed=seed)
    assert value == pytest.approx(float(golden[f"vis_{kind}_mean"]), rel=1e-6)
    assert deviation == pytest.approx(float(golden[f"vis_{kind}_std"]), rel=1e-6)


def test_the_score_is_the_number_of_classes_for_confident_varied_predictions_and_one_for_others() -> None:
    sure = np.tile(np.eye(4), (10, 1))
    assert inception_score(sure, splits=1) == pytest.approx((4.0, 0.0))
    assert inception_score(np.full((40, 4), 0.25), splits=5) == pytest.approx((1.0, 0.0))
    assert inception_score(sure[:1].repeat(40, axis=0), splits=5) == pytest.approx((1.0, 0.0))


def test_every_row_is_used_if_splits_do_not_divide_the_number_of_rows() -> None:
    rows = np.random.default_rng(11).dirichlet(np.ones(4), 11)
    changed = rows.copy()
    for place in range(11):
        changed[place] = rows[place][::-1]
        assert inception_score(changed, splits=3)[0] != inception_score(rows, splits=3)[0]
        changed[place] = rows[place]


def test_scores_that_are_not_probabilities_are_refused() -> None:
    with pytest.raises(ValueError, match="apply a softmax"):
        inception_score(np.full((20, 3), 0.5))
    with pytest.raises(ValueError, match="5 samples cannot be divided into 10 splits"):
        inception_score(np.full((5, 2), 0.5))


class OneFeaturePerPixel(torch.nn.Module):
    """A network whose features are the pixels of uint8 images (N, 3, 2, 2)."""

    num_features = 12

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1).double() / 64


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save")
def test_distances_agree_with_those_of_torchmetrics() -> None:
    pytest.importorskip("torchmetrics")
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    generator = torch.Generator().manual_seed(0)
    real = torch.randint(0, 256, (60, 3, 2, 2), generator=generator, dtype=torch.uint8)
    fake = torch.randint(0, 200, (60, 3, 2, 2), generator=generator, dtype=torch.uint8)
    network = OneFeaturePerPixel()
    one, two = network(real), network(fake)

    fid = FrechetInceptionDistance(feature=network, normalize=False)
    kid = KernelInceptionDistance(feature=network, subsets=1, subset_size=60, normalize=False)
    for metric in (fid, kid):
        metric.set_dtype(torch.float64)
        metric.update(real, real=True)
        metric.update(fake, real=False)
    assert frechet_of(stats_of(one), stats_of(two), ddof=1) == pytest.approx(fid.compute().item(), rel=1e-6)
    assert kernel_distance(one, two) == pytest.approx(kid.compute()[0].item(), rel=1e-6)
