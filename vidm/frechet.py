"""Metrics of feature sets, in float64.

Frechet distance (Heusel et al. 2017, FID; Unterthiner et al. 2018, FVD): each set is described by a Gaussian, and
d^2 = |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)). Kernel distance (Binkowski et al. 2018, KID): the squared maximum
mean discrepancy under a cubic kernel. Inception score (Salimans et al. 2016): how confident and how varied a
classifier's predictions are.

    real, fake = FeatureStats(), FeatureStats()     # then .update(features) batch after batch
    print(frechet_of(real, fake))
"""

from itertools import pairwise

import numpy as np
import torch
from scipy.special import rel_entr

BLOCK = 1024
# Divisions of a set in kernel_spread: its error is a twentieth.
DIVISIONS = 200


def _as_rows(features: np.ndarray | torch.Tensor) -> np.ndarray:
    if isinstance(features, torch.Tensor):
        features = features.detach().to("cpu", torch.float64).numpy()
    rows = np.asarray(features, dtype=np.float64)
    if rows.ndim != 2:
        raise ValueError(f"features have shape {rows.shape}; they must be (samples, dimensions)")
    if not np.isfinite(rows).all():
        bad = int((~np.isfinite(rows).all(axis=1)).sum())
        raise ValueError(f"{bad} of {len(rows)} feature rows contain NaN or inf; check the inputs they come from")
    return rows


class FeatureStats:
    """Count, mean and covariance of feature rows that arrive in batches; stores one (d, d) matrix, not the rows.

    The sum of squared deviations from the running mean is updated pairwise (Chan, Golub and LeVeque 1979), because
    a raw sum of squares loses precision when the mean is much larger than the deviation.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean = np.zeros(0)
        self._scatter = np.zeros((0, 0))

    def update(self, features: np.ndarray | torch.Tensor) -> None:
        """Add rows (n, d) of any float type; raises ValueError for NaN, inf or another shape."""
        rows = _as_rows(features)
        if len(rows) == 0:
            return
        batch = FeatureStats()
        batch.count = len(rows)
        batch._mean = rows.mean(axis=0)
        centred = rows - batch._mean
        batch._scatter = centred.T @ centred
        self.merge(batch)

    def merge(self, other: "FeatureStats") -> None:
        """Add the rows of `other`, which is not changed. Raises ValueError if it has another number of dimensions."""
        if other.count == 0:
            return
        if self.count == 0:
            self.count, self._mean, self._scatter = other.count, other._mean.copy(), other._scatter.copy()
            return
        if len(self._mean) != len(other._mean):
            raise ValueError(
                f"features of {len(other._mean)} dimensions cannot be added to features of {len(self._mean)}; "
                "take both from the same detector"
            )
        gap = other._mean - self._mean
        total = self.count + other.count
        self._scatter += other._scatter + np.outer(gap, gap) * (self.count * other.count / total)
        self._mean += gap * (other.count / total)
        self.count = total

    def mean(self) -> np.ndarray:
        """Return the mean (d,), float64; raises ValueError if nothing has been added."""
        if self.count == 0:
            raise ValueError("no samples were added; a mean needs at least 1")
        return self._mean.copy()

    def covariance(self, ddof: int = 0) -> np.ndarray:
        """Return the covariance (d, d), float64, divided by count - ddof; raises ValueError below 2 samples.

        ddof=0 is the population covariance, ddof=1 the sample covariance.
        """
        if self.count < 2:
            raise ValueError(f"{self.count} sample(s) were added; a covariance needs at least 2")
        return self._scatter / (self.count - ddof)


def _factor(covariance: np.ndarray) -> np.ndarray:
    """Return F (d, rank) with F F^T = covariance, without eigenvalues that are rounding errors.

    An eigenvalue of 1e-16 that should be 0 would change the distance by its square root, 1e-8.
    """
    eigenvalues, eigenvectors = np.linalg.eigh(covariance)
    kept = eigenvalues > eigenvalues[-1] * len(eigenvalues) * np.finfo(np.float64).eps
    return eigenvectors[:, kept] * np.sqrt(eigenvalues[kept])


def frechet_distance(mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray) -> float:
    """Return the squared Frechet distance of two Gaussians: means (d,), symmetric covariances (d, d); at least 0.

    tr (S1 S2)^(1/2) is computed as the sum of the singular values of F1^T F2, where S = F F^T. This is symmetric in
    the two sides, and exact for rank-deficient covariances (fewer samples than d), for which a square root of S1 S2 is
    not. Raises ValueError if the shapes do not match or a value is not finite.
    """
    mean1, cov1, mean2, cov2 = (np.asarray(array, dtype=np.float64) for array in (mean1, cov1, mean2, cov2))
    d = mean1.size
    shapes = [array.shape for array in (mean1, cov1, mean2, cov2)]
    if d == 0 or shapes != [(d,), (d, d)] * 2:
        raise ValueError(f"two means (d,) and covariances (d, d) do not match: shapes {shapes}")
    if not all(np.isfinite(array).all() for array in (mean1, cov1, mean2, cov2)):
        raise ValueError("a mean or covariance contains NaN or inf; check the features it was computed from")
    factor1, factor2 = _factor(cov1), _factor(cov2)
    cross = np.linalg.svd(factor1.T @ factor2, compute_uv=False).sum()
    spread = np.square(factor1).sum() + np.square(factor2).sum() - 2.0 * cross
    # Only rounding can make the spread negative.
    return float(np.square(mean1 - mean2).sum() + max(spread, 0.0))


def frechet_of(one: FeatureStats, two: FeatureStats, ddof: int = 0) -> float:
    """Return frechet_distance for the statistics of two feature sets; the covariances are divided by count - ddof."""
    return frechet_distance(one.mean(), one.covariance(ddof), two.mean(), two.covariance(ddof))


def kernel_distance(features1: np.ndarray | torch.Tensor, features2: np.ndarray | torch.Tensor) -> float:
    """Return the squared maximum mean discrepancy of two feature sets (n, d) and (m, d) under (x . y / d + 1)^3.

    This is the unbiased estimate over all pairs of different rows (Gretton et al. 2012, equation 3, extended to
    n != m). For sets of the same distribution it is 0 on average at any size, so it can be negative. Kernels are
    computed in blocks of 1024 rows. Raises ValueError for fewer than 2 rows, NaN, inf or dimensions that differ.
    """
    rows1, rows2 = _as_rows(features1), _as_rows(features2)
    if min(len(rows1), len(rows2)) < 2:
        raise ValueError(f"sets of {len(rows1)} and {len(rows2)} samples: a kernel distance needs at least 2 each")
    if rows1.shape[1] != rows2.shape[1]:
        raise ValueError(f"features of {rows1.shape[1]} and of {rows2.shape[1]} dimensions cannot be compared")

    def kernel_sum(left: np.ndarray, right: np.ndarray) -> float:
        blocks = (left[start : start + BLOCK] for start in range(0, len(left), BLOCK))
        return sum(float(((block @ right.T / right.shape[1] + 1) ** 3).sum()) for block in blocks)

    def mean_of_pairs(rows: np.ndarray) -> float:
        diagonal = ((np.square(rows).sum(axis=1) / rows.shape[1] + 1) ** 3).sum()
        return (kernel_sum(rows, rows) - float(diagonal)) / (len(rows) * (len(rows) - 1))

    cross = kernel_sum(rows1, rows2) / (len(rows1) * len(rows2))
    return mean_of_pairs(rows1) + mean_of_pairs(rows2) - 2 * cross


def kernel_spread(features: np.ndarray | torch.Tensor, num_first: int, seed: int = 0) -> float:
    """Return the standard deviation of kernel_distance between two parts of one feature set (n, d), by chance alone.

    The set is divided at random into num_first rows and the others, 2 or more each, DIVISIONS times. The mean over all
    divisions is 0, so this is the root mean square. It needs memory for 1024 rows of kernels. Ours.
    """
    rows = _as_rows(features)
    num_second = len(rows) - num_first
    if min(num_first, num_second) < 2:
        raise ValueError(f"parts of {num_first} and {num_second} samples: a kernel distance needs at least 2 each")
    rng = np.random.default_rng(seed)
    first = np.stack([rng.permutation(len(rows)) < num_first for _ in range(DIVISIONS)], axis=1).astype(np.float64)
    second = 1 - first
    distances = np.zeros(DIVISIONS)
    for start in range(0, len(rows), BLOCK):
        part = slice(start, start + BLOCK)
        kernels = (rows[part] @ rows.T / rows.shape[1] + 1) ** 3
        np.fill_diagonal(kernels[:, part], 0)
        to_first, to_second = kernels @ first, kernels @ second
        distances += (first[part] * to_first).sum(axis=0) / (num_first * (num_first - 1))
        distances += (second[part] * to_second).sum(axis=0) / (num_second * (num_second - 1))
        distances -= 2 * (first[part] * to_second).sum(axis=0) / (num_first * num_second)
    return float(np.sqrt(np.square(distances).mean()))


def inception_score(
    probabilities: np.ndarray | torch.Tensor, splits: int = 10, shuffle_seed: int | None = 42
) -> tuple[float, float]:
    """Return mean and standard deviation, over the splits, of exp(mean KL(p(class | sample) || p(class))).

    The score is between 1 and the number of classes. probabilities: (samples, classes), rows that sum to 1. They are
    shuffled by RandomState(shuffle_seed), unless it is None, and divided into `splits` parts, as StyleGAN-V does
    (Skorokhodov et al. 2022). Raises ValueError for fewer rows than splits, or rows that are not probabilities.
    """
    rows = _as_rows(probabilities)
    if not 1 <= splits <= len(rows):
        raise ValueError(
            f"{len(rows)} samples cannot be divided into {splits} splits; give more samples or fewer splits"
        )
    if rows.min() < 0 or np.abs(rows.sum(axis=1) - 1).max() > 1e-3:
        raise ValueError("rows of class probabilities must be at least 0 and sum to 1; apply a softmax to scores first")
    order = np.arange(len(rows))
    if shuffle_seed is not None:
        np.random.RandomState(shuffle_seed).shuffle(order)
    bounds = [split * len(rows) // splits for split in range(splits + 1)]
    scores = []
    for start, end in pairwise(bounds):
        part = rows[order[start:end]]
        scores.append(np.exp(rel_entr(part, part.mean(axis=0)).sum(axis=1).mean()))
    return float(np.mean(scores)), float(np.std(scores))
