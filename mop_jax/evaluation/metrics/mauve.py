"""MAUVE: how much two samples of texts miss of each other, over all trade-offs of the two errors.

The algorithm as published (Pillutla et al., 2021, and its JMLR extension of 2023), over our own
embeddings and with scikit-learn's k-means, so that it needs no language model, takes a fraction of
a second and can be resampled. `mauve_text` is the authors' own package, on the same embeddings; the
two differ by no more than that package differs from itself under another seed.
"""

from __future__ import annotations

import math
import warnings

import numpy as np

from mop_jax.errors import DataError
from mop_jax.evaluation.metrics.comparison import Comparison, at_least, directions
from mop_jax.evaluation.metrics.registry import Metric, register

ADVISED_TEXTS = 1000
"""Texts a side below which the authors advise against comparing values."""


def mauve(
    comparison: Comparison,
    *,
    buckets: int | None = None,
    explained_variance: float = 0.9,
    scaling: float = 5.0,
    weights: int = 25,
    restarts: int = 5,
    iterations: int = 500,
) -> float:
    """Area under the divergence frontier of quantised embeddings (Pillutla et al., 2021).

    Embeddings of both samples are scaled to unit length, projected on the principal components that
    explain 90 % of their variance and clustered; P and Q are the histograms over clusters. With
    R_w = w P + (1 − w) Q, the frontier is {(exp(−c KL(Q‖R_w)), exp(−c KL(P‖R_w)))}, closed by
    (1, 0) and (0, 1); the value is the area under it.

    Args:
        comparison: texts to compare. Its seed chooses the clusters.
        buckets: number of clusters; by default a tenth of the smaller sample, at least two.
        explained_variance: share of variance that the projection keeps.
        scaling: c above.
        weights: number of mixture weights w.
        restarts: k-means starts from random texts this often and the tightest clusters are kept.
        iterations: at most, of k-means.
            All six defaults are those of the authors' package.

    Returns:
        Between 0 (nothing in common) and 1 (equal histograms).

    Raises:
        DataError: if a sample has fewer than two texts.
    """
    _check_size(comparison)
    p, q = _histograms(comparison, buckets, explained_variance, restarts, iterations)
    return frontier_area(p, q, scaling, weights)


def _check_size(comparison: Comparison) -> None:
    at_least(comparison, 2, "MAUVE")
    fewest = min(len(comparison.real), len(comparison.simulated))
    if fewest < ADVISED_TEXTS:
        warnings.warn(
            f"MAUVE of {fewest} texts is noisy and too low; its authors advise {ADVISED_TEXTS} or "
            "more on either side.",
            stacklevel=3,
        )


def _histograms(
    comparison: Comparison,
    buckets: int | None,
    explained_variance: float,
    restarts: int,
    iterations: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Shares of the clusters among real and among simulated texts, [buckets] each."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    vectors = np.concatenate([directions(comparison.real), directions(comparison.simulated)])
    count = len(comparison.real)
    if buckets is None:
        buckets = max(2, round(min(count, len(vectors) - count) / 10))
    centred = vectors - vectors.mean(axis=0)
    # The covariance's eigenvectors are the principal components, at a fraction of an SVD's time.
    variances, components = np.linalg.eigh(centred.T @ centred)
    explained = np.cumsum(variances[::-1]) / max(variances.sum(), np.finfo(float).tiny)
    kept = min(int(np.sum(explained < explained_variance)) + 1, len(variances))
    # Single precision: enough for clusters, and twice as fast.
    projected = (centred @ components[:, ::-1][:, :kept]).astype(np.float32)
    buckets = min(buckets, len({row.tobytes() for row in projected}))
    if buckets < 2:
        return np.ones(1), np.ones(1)
    k_means = KMeans(
        buckets,
        init="random",
        n_init=restarts,
        max_iter=iterations,
        random_state=comparison.seed,
    )
    with warnings.catch_warnings():
        # Of clusters that stay empty; they have no share in either histogram.
        warnings.simplefilter("ignore", ConvergenceWarning)
        clusters = k_means.fit_predict(projected)
    p = np.bincount(clusters[:count], minlength=buckets) / count
    q = np.bincount(clusters[count:], minlength=buckets) / (len(vectors) - count)
    return p, q


def frontier_area(p: np.ndarray, q: np.ndarray, scaling: float = 5.0, weights: int = 25) -> float:
    """Area under the divergence frontier of two histograms, [buckets] each; see `mauve`."""
    # The ends 0 and 1 are no mixtures: KL is infinite there wherever one histogram has a hole.
    mixing = np.linspace(1e-6, 1 - 1e-6, weights)[:, None]
    mixture = mixing * p + (1 - mixing) * q
    x = np.concatenate([[1.0], np.exp(-scaling * _kl(q, mixture)), [0.0]])
    y = np.concatenate([[0.0], np.exp(-scaling * _kl(p, mixture)), [1.0]])
    # In the order of w, x falls and y rises from axis to axis. Sorting by x instead would cut the
    # corner off where many points have the same x, as all have for equal histograms.
    return float(np.clip(-np.trapezoid(y, x), 0.0, 1.0))


def _kl(p: np.ndarray, mixture: np.ndarray) -> np.ndarray:
    """KL(p ‖ each mixture), nats; p [buckets], mixture [weights, buckets]."""
    support = p > 0
    return np.sum(p[support] * np.log(p[support] / mixture[:, support]), axis=1)


def mauve_text(comparison: Comparison, *, seed: int = 25) -> float:
    """MAUVE by the authors' package `mauve-text` on our embeddings, with all of its defaults.

    They are: n / 10 clusters, 90 % of variance, 5 restarts and 500 iterations of faiss's k-means,
    scaling 5, 25 mixture weights, seed 25. Needs the extra `metrics`, and neither torch nor GPT-2.

    Raises:
        DataError: if the package is not installed, or a sample has fewer than two texts.
    """
    _check_size(comparison)
    try:
        from mauve import compute_mauve
    except ModuleNotFoundError as error:
        raise DataError(
            "The package mauve-text is not installed; pip install 'mop-jax[metrics]' brings it."
        ) from error
    found = compute_mauve(
        p_features=comparison.real.embeddings,
        q_features=comparison.simulated.embeddings,
        seed=seed,
    )
    value = float(found.mauve)
    if math.isnan(value):
        raise DataError("mauve-text gave no number for these embeddings; are they all equal?")
    return value


register(
    Metric(
        name="mauve",
        title="MAUVE",
        function=mauve,
        direction="higher",
        range=(0.0, 1.0),
        reference="Pillutla et al. (2021)",
        takes=Comparison,
        family="alignment",
    )
)
