"""Effective human sample size: to how many real responses is the simulation worth as much?

Asking n people estimates a population with an error that falls with n. The simulation's error is
measured in the same way, against the same held-out real texts; the n at which the curve crosses it
is the number of people whom the simulation stands for (after Huang et al., 2025, who ask it of
survey answers).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mop_jax.errors import DataError
from mop_jax.evaluation.metrics.comparison import Comparison, Sample
from mop_jax.evaluation.metrics.frechet import fid
from mop_jax.evaluation.metrics.threads import one_thread

Criterion = Literal["label_shares", "embedding_mean", "fid"]


@dataclass(frozen=True, eq=False)
class EffectiveSize:
    """How the error of real responses falls, and where it meets the simulation's.

    Attributes:
        criterion: what is estimated.
        size: number of real responses with the simulation's error, between two of `sizes` by
            interpolation; ∞ if the simulation is better than as many as were tried, 0 if it is
            worse than the fewest.
        simulated_error: the simulation's error, in the criterion's unit.
        sizes: numbers of real responses that were tried, ascending, [S].
        errors: their mean error over repeats, [S].
        spread: standard deviation over repeats, [S].
    """

    criterion: Criterion
    size: float
    simulated_error: float
    sizes: np.ndarray
    errors: np.ndarray
    spread: np.ndarray


def effective_sample_size(
    comparison: Comparison,
    criterion: Criterion = "embedding_mean",
    *,
    sizes: Sequence[int] | None = None,
    repeats: int = 20,
) -> EffectiveSize:
    """How many real responses would estimate the population as well as the simulation does.

    Random samples of n training records stand for n people who were asked. Errors are those against
    the held-out real texts, whose own noise is in the curve and in the line alike:

    - `label_shares`: total variation, ½ Σ_l |p̂_l − p_l|, between 0 and 1;
    - `embedding_mean`: |μ̂ − μ|, Euclidean, in units of the embeddings;
    - `fid`: of unit embeddings (see `fid`); its bias at small n counts, for it is an error as well.

    The curve is made to fall (isotonic regression) and interpolated linearly in log n.

    Args:
        comparison: texts to compare, with training records.
        criterion: what is to be estimated.
        sizes: numbers of real responses to try; by default about two to a doubling, from 1 (2 for
            FID) to all training records.
        repeats: random samples of each size.

    Raises:
        DataError: if there are no training records, labels are needed and missing, or a size is
            beyond their number.
    """
    train = comparison.train
    if train is None:
        raise DataError(
            "An effective sample size needs real responses to count; give training records."
        )
    error = _error_of(criterion, comparison)
    least = 2 if criterion == "fid" else 1
    if sizes is None:
        count = 2 + round(2 * math.log2(max(1, len(train) / least)))
        sizes = np.unique(np.geomspace(least, len(train), count).round().astype(int)).tolist()
    sizes = sorted(set(sizes))
    if not sizes or sizes[0] < least or sizes[-1] > len(train):
        raise DataError(
            f"Sample sizes {sizes} are to be tried for {criterion!r}; "
            f"accepted are {least} to {len(train)}, the number of training records."
        )
    rng = np.random.default_rng([comparison.seed, 5])
    values = np.empty((len(sizes), repeats))
    with warnings.catch_warnings(), one_thread():
        # Covariances of few texts are singular, as the curve is meant to show.
        warnings.simplefilter("ignore")
        simulated = error(comparison.simulated)
        for row, size in zip(values, sizes):
            for repeat in range(repeats):
                row[repeat] = error(train.take(rng.choice(len(train), size, replace=False)))
    errors = values.mean(axis=1)
    return EffectiveSize(
        criterion,
        _crossing(np.asarray(sizes, float), errors, simulated),
        simulated,
        np.asarray(sizes),
        errors,
        values.std(axis=1, ddof=1) if repeats > 1 else np.zeros(len(sizes)),
    )


def _error_of(criterion: str, comparison: Comparison) -> Callable[[Sample], float]:
    """The error with which a sample estimates the real texts."""
    real = comparison.real
    if criterion == "embedding_mean":
        centre = real.embeddings.mean(axis=0)
        return lambda sample: float(np.linalg.norm(sample.embeddings.mean(axis=0) - centre))
    if criterion == "fid":
        return lambda sample: fid(Comparison(real, sample))
    if criterion != "label_shares":
        raise DataError(
            f"The criterion is {criterion!r}; "
            "accepted are 'label_shares', 'embedding_mean' and 'fid'."
        )
    for name in ("real", "simulated", "train"):
        if getattr(comparison, name).labels is None:
            raise DataError(f"Label shares need labels, which the {name} texts lack.")
    samples = (real, comparison.simulated, comparison.train)
    labels = sorted({label for s in samples if s is not None for label in s.labels or ()})
    place = {label: i for i, label in enumerate(labels)}

    def shares(sample: Sample) -> np.ndarray:
        counted = np.bincount([place[x] for x in sample.labels or ()], minlength=len(labels))
        return counted / len(sample)

    target = shares(real)
    return lambda sample: float(np.abs(shares(sample) - target).sum() / 2)


def _crossing(sizes: np.ndarray, errors: np.ndarray, level: float) -> float:
    """The size at which the falling curve is at `level`; ∞ below it all, 0 above it all."""
    from sklearn.isotonic import IsotonicRegression

    falling = IsotonicRegression(increasing=False).fit_transform(sizes, errors)
    if level < falling[-1]:
        return math.inf
    if level > falling[0]:
        return 0.0
    right = int(np.argmax(falling <= level))
    if right == 0:
        return float(sizes[0])
    left = right - 1
    part = (falling[left] - level) / (falling[left] - falling[right])
    return float(sizes[left] * (sizes[right] / sizes[left]) ** part)
