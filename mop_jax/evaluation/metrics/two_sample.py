"""Two-sample tests: could real and simulated texts be draws from one distribution?

A classifier that tells them apart (C2ST), the energy distance, and the kernel MMD. Each has a
value, which is a metric, and a p-value under the hypothesis that the two are exchangeable. Where
every group holds both real and simulated texts, as when one simulates the held-out contexts, labels
are permuted within groups only: then the hypothesis is about texts given their group.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mop_jax.errors import DataError
from mop_jax.evaluation.metrics.comparison import Comparison, Sample, at_least
from mop_jax.evaluation.metrics.registry import Metric, register

_BLOCK = 512
# The median of distances hardly moves beyond this many texts.
_MEDIAN_TEXTS = 500


class TwoSampleTest(NamedTuple):
    """A statistic and the probability of one as large where the two samples are exchangeable."""

    statistic: float
    p_value: float


# --- Classifier ---------------------------------------------------------------------------------


def classifier_accuracy(
    comparison: Comparison, *, folds: int = 5, inverse_penalty: float = 0.01
) -> float:
    """Accuracy of a classifier that tells simulated from real texts (Lopez-Paz and Oquab, 2017).

    Logistic regression on standardised embeddings, cross-validated: every text is classified by a
    model that saw neither it nor its group. The larger sample is cut at random to the size of the
    smaller, so that 0.5 is chance; 1 means that every text gives its origin away.

    Args:
        comparison: texts to compare. Its seed chooses the texts that are left out, and the folds.
        folds: of the cross-validation.
        inverse_penalty: C of the L2 penalty. 0.01, the strongest of the usual grid, suits hundreds
            of dimensions and hundreds of texts, where C = 1 fits the training folds without error.

    Returns:
        Share of texts whose origin is recognised, between 0 and 1.

    Raises:
        DataError: if a sample has fewer texts than folds, or there are fewer groups than folds.
    """
    return float(_recognised(comparison, folds, inverse_penalty)[0].mean())


def classifier_test(
    comparison: Comparison, *, folds: int = 5, inverse_penalty: float = 0.01
) -> TwoSampleTest:
    """`classifier_accuracy` and its one-sided p-value by a normal approximation.

    With r_i ∈ {0, 1} for a recognised text, Σ_i (r_i − ½) would have the variance
    Σ_g (Σ_{i in g} (r_i − ½))² over independent groups g (without groups n / 4, the binomial's) if
    all predictions came from one model. Those of k folds come from k models that share training
    texts, which multiplies it by up to 1 + k / (k − 1) (Nadeau and Bengio, 2003). The factor is
    somewhat too large (1.6 to 1.75 where 2.25 is assumed), so the test errs on the safe side: at
    the 5 % level it rejects 1 to 3 % of true hypotheses.
    """
    from scipy.stats import norm

    recognised, groups = _recognised(comparison, folds, inverse_penalty)
    excess = recognised - 0.5
    clusters = excess if groups is None else np.bincount(groups, weights=excess)
    spread = np.sqrt((1 + folds / (folds - 1)) * np.sum(clusters**2))
    return TwoSampleTest(float(recognised.mean()), float(norm.sf(excess.sum() / spread)))


def _recognised(
    comparison: Comparison, folds: int, inverse_penalty: float
) -> tuple[np.ndarray, np.ndarray | None]:
    """Which texts of the balanced pool are recognised, [2 · the smaller size]; their groups."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    at_least(comparison, folds, f"A classifier test with {folds} folds")
    size = min(len(comparison.real), len(comparison.simulated))
    rng = np.random.default_rng(comparison.seed)
    real, simulated = (
        _cut(sample, size, rng) for sample in (comparison.real, comparison.simulated)
    )
    vectors = np.concatenate([real.embeddings, simulated.embeddings])
    origin = np.repeat([0, 1], size)
    groups = pooled_groups(real, simulated)
    if groups is not None and len(np.unique(groups)) < folds:
        raise DataError(
            f"A classifier test with {folds} folds needs as many groups; there are "
            f"{len(np.unique(groups))}."
        )
    split = StratifiedKFold if groups is None else StratifiedGroupKFold
    recognised = np.zeros(len(origin), bool)
    parts = split(folds, shuffle=True, random_state=comparison.seed)
    for train, test in parts.split(vectors, origin, groups):
        if len(np.unique(origin[train])) < 2:
            raise DataError(
                "A classifier test leaves training folds without real or without simulated texts: "
                "the groups of the two differ too much; leave groups out."
            )
        classifier = make_pipeline(
            StandardScaler(), LogisticRegression(C=inverse_penalty, max_iter=1000)
        )
        classifier.fit(vectors[train], origin[train])
        recognised[test] = classifier.predict(vectors[test]) == origin[test]
    return recognised, groups


def _cut(sample: Sample, size: int, rng: np.random.Generator) -> Sample:
    if len(sample) == size:
        return sample
    return sample.take(np.sort(rng.choice(len(sample), size, replace=False)))


def pooled_groups(real: Sample, simulated: Sample) -> np.ndarray | None:
    """Group of every real and then of every simulated text, as integers; None without groups."""
    if real.groups is None or simulated.groups is None:
        return None
    return np.unique([*real.groups, *simulated.groups], return_inverse=True)[1]


# --- Energy distance and MMD --------------------------------------------------------------------


def energy_distance(comparison: Comparison) -> float:
    """Energy distance (Székely and Rizzo, 2013), in units of the embeddings.

    (2 E|X − Y| − E|X − X′| − E|Y − Y′|)^½ with Euclidean distances and means over all pairs, those
    of a text with itself included: never negative, zero for equal samples only, and in one
    dimension what `scipy.stats.energy_distance` returns.
    """
    return _root(_statistics(comparison, _distance, 0, energy=True)[0])


def energy_test(comparison: Comparison, *, permutations: int = 200) -> TwoSampleTest:
    """`energy_distance` and its permutation p-value."""
    found = _statistics(comparison, _distance, permutations, energy=True)
    return TwoSampleTest(_root(found[0]), _p_value(found, comparison))


def mmd(comparison: Comparison, *, bandwidth: float | None = None) -> float:
    """Squared maximum mean discrepancy, Gaussian kernel, unbiased (Gretton et al., 2012, eq. 3).

    E k(X, X′) + E k(Y, Y′) − 2 E k(X, Y), k(x, y) = exp(−|x − y|² / (2 σ²)), means over pairs of
    different texts. Unbiased: zero on average, and often negative, for equal distributions.

    Args:
        comparison: texts to compare. Its seed chooses the texts whose distances give σ.
        bandwidth: σ, in units of the embeddings; by default the median distance between texts of
            the pooled sample (of at most 500 of them).

    Raises:
        DataError: if a sample has fewer than two texts, or σ is not positive.
    """
    return float(_statistics(comparison, _kernel(comparison, bandwidth), 0)[0])


def mmd_test(
    comparison: Comparison, *, bandwidth: float | None = None, permutations: int = 200
) -> TwoSampleTest:
    """`mmd` and its permutation p-value."""
    found = _statistics(comparison, _kernel(comparison, bandwidth), permutations)
    return TwoSampleTest(float(found[0]), _p_value(found, comparison))


def median_distance(comparison: Comparison) -> float:
    """Median Euclidean distance between different texts of the pooled sample (at most 500)."""
    vectors = _pool(comparison)
    if len(vectors) > _MEDIAN_TEXTS:
        rng = np.random.default_rng(comparison.seed)
        vectors = vectors[rng.choice(len(vectors), _MEDIAN_TEXTS, replace=False)]
    squared = _squared_distances(vectors, vectors)
    return float(np.sqrt(np.median(squared[np.triu_indices(len(vectors), 1)])))


def _kernel(comparison: Comparison, bandwidth: float | None) -> Callable[[np.ndarray], np.ndarray]:
    at_least(comparison, 2, "The unbiased MMD")
    sigma = median_distance(comparison) if bandwidth is None else bandwidth
    if not sigma > 0:
        raise DataError(
            f"The kernel's bandwidth is {sigma}, and must be positive; "
            "most texts have the same embedding."
        )

    def gaussian(squared: np.ndarray) -> np.ndarray:
        squared *= -0.5 / sigma**2
        return np.exp(squared, out=squared)

    return gaussian


def _distance(squared: np.ndarray) -> np.ndarray:
    """Minus the distance: the kernel with which MMD is the energy distance (Sejdinovic, 2013)."""
    np.sqrt(squared, out=squared)
    return np.negative(squared, out=squared)


def _statistics(
    comparison: Comparison,
    kernel: Callable[[np.ndarray], np.ndarray],
    permutations: int,
    *,
    energy: bool = False,
) -> np.ndarray:
    """E k(X, X′) + E k(Y, Y′) − 2 E k(X, Y) as labelled, then under permuted labels.

    One pass over the upper half of the symmetric kernel matrix K, in blocks of rows, gives z'Kz for
    the indicators z of all labellings at once; no more than that and the row sums is needed.

    Args:
        comparison: texts to compare.
        kernel: of squared distances; may write into its argument.
        permutations: of the labels, after the true labelling.
        energy: means over all pairs, a text with itself included, instead of different texts.

    Returns:
        float [1 + permutations].
    """
    vectors = _pool(comparison)
    n = len(comparison.real)
    m = len(vectors) - n
    labels = _labellings(comparison, permutations)
    products = np.zeros(len(labels))
    row_sums = np.zeros(len(vectors))
    for start in range(0, len(vectors), _BLOCK):
        end = min(start + _BLOCK, len(vectors))
        block = kernel(_squared_distances(vectors[start:end], vectors[start:]))
        square, rest = block[:, : end - start], block[:, end - start :]
        row_sums[start:end] += block.sum(axis=1)
        row_sums[end:] += rest.sum(axis=0)
        rows = labels[:, start:end]
        # Blocks right of the diagonal stand for their mirror images, too.
        halves = rows @ (square / 2) + labels[:, end:] @ rest.T
        products += 2 * np.sum(rows * halves, axis=1)
    diagonal = float(kernel(np.zeros((1, 1)))[0, 0])
    total = row_sums.sum()
    across = labels @ row_sums - products
    within_real, within_simulated = products, total - products - 2 * across
    if energy:
        return within_real / n**2 + within_simulated / m**2 - 2 * across / (n * m)
    within_real, within_simulated = within_real - n * diagonal, within_simulated - m * diagonal
    return within_real / (n * (n - 1)) + within_simulated / (m * (m - 1)) - 2 * across / (n * m)


def _labellings(comparison: Comparison, permutations: int) -> np.ndarray:
    """Indicators of the real texts, float [1 + permutations, n + m]; the first row is the truth."""
    real, simulated = comparison.real, comparison.simulated
    truth = np.repeat([1.0, 0.0], [len(real), len(simulated)])
    if not permutations:
        return truth[None]
    rng = np.random.default_rng([comparison.seed, 1])
    groups = pooled_groups(real, simulated)
    if groups is not None:
        both = set(real.groups or ()) == set(simulated.groups or ())
        groups = groups if both else None
    keys = rng.random((permutations, len(truth)))
    if groups is None:
        return np.concatenate([truth[None], truth[np.argsort(keys, axis=1)]])
    # Within groups: sorted by group, texts stand where those of the group stood, in a random order.
    places = np.argsort(groups, kind="stable")
    labels = np.empty_like(keys)
    labels[:, places] = truth[np.argsort(groups + keys, axis=1)]
    return np.concatenate([truth[None], labels])


def _pool(comparison: Comparison) -> np.ndarray:
    return np.concatenate([comparison.real.embeddings, comparison.simulated.embeddings])


def _squared_distances(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances, [rows, columns]; equal vectors are at exactly zero."""
    lengths, others = (rows**2).sum(axis=1), (columns**2).sum(axis=1)
    squared = (-2 * rows) @ columns.T
    squared += lengths[:, None]
    squared += others
    # What is less than the rounding of the squares is none: its root would be 1e-7, not zero.
    squared *= squared > 1e-14 * lengths.max()
    return squared


def _root(squared: float) -> float:
    return float(np.sqrt(max(squared, 0.0)))


def _p_value(statistics: np.ndarray, comparison: Comparison) -> float:
    """Share of labellings, the true one among them, that reach the true one's statistic.

    NaN, with a warning, where groups stand on one side only: their texts are not exchangeable one
    by one (measured: 97 % of such tests reject at 5 % where nothing differs).
    """
    real, simulated = comparison.real.groups, comparison.simulated.groups
    if real is not None and simulated is not None and set(real) != set(simulated):
        warnings.warn(
            "There is no permutation p-value: some groups have real or simulated texts only, so "
            "that texts are not exchangeable; compare responses to the same groups.",
            stacklevel=3,
        )
        return math.nan
    return float(np.mean(statistics >= statistics[0] - 1e-12 * abs(statistics[0])))


def _p_of(test: Callable[[Comparison], TwoSampleTest]) -> Callable[[Comparison], float]:
    return lambda comparison: test(comparison).p_value


register(
    Metric(
        name="classifier_accuracy",
        title="accuracy of telling simulated from real",
        function=classifier_accuracy,
        direction="lower",
        range=(0.0, 1.0),
        reference="Lopez-Paz and Oquab (2017)",
        takes=Comparison,
        family="alignment",
        p_value=_p_of(classifier_test),
    )
)
register(
    Metric(
        name="energy_distance",
        title="energy distance of embeddings",
        function=energy_distance,
        direction="lower",
        range=(0.0, float("inf")),
        reference="Székely and Rizzo (2013)",
        takes=Comparison,
        family="alignment",
        p_value=_p_of(energy_test),
    )
)
register(
    Metric(
        name="mmd",
        title="MMD², Gaussian kernel of embeddings",
        function=mmd,
        direction="lower",
        range=(-1.0, 2.0),
        reference="Gretton et al. (2012)",
        takes=Comparison,
        family="alignment",
        p_value=_p_of(mmd_test),
    )
)
