"""Diversity by cosine similarity: KL Cosine, mean pairwise similarity, Vendi score.

How alike the texts of one sample are, pair by pair. Too alike is a mode that the simulation is
stuck in; too different is noise. So these are judged against the value on real texts.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from mop_jax.errors import DataError
from mop_jax.evaluation.metrics.comparison import Comparison, Sample, at_least, directions
from mop_jax.evaluation.metrics.registry import Metric, register

Within = Literal["all", "label"]
Direction = Literal["real||simulated", "simulated||real"]
_BLOCK = 1024


def kl_cosine(
    comparison: Comparison,
    *,
    direction: Direction = "real||simulated",
    bins: int = 50,
    within: Within = "all",
    smoothing: float = 0.5,
) -> float:
    """KL between histograms of pairwise cosine similarities (Bui et al., 2025), nats.

    Σ_b P_b log(P_b / Q_b), where P and Q are the shares of the pairs of different texts within
    either sample whose similarity falls into bin b. The bins are equal and cover [−1, 1] whatever
    the texts are, so that methods are measured with the same ruler.

    Args:
        comparison: texts to compare.
        direction: which sample is P. Real texts by default: similarities that people show and the
            simulation never does are what counts.
        bins: number of bins; 50 as in the study in `docs/`, for the paper does not say.
        within: pairs of `all` texts, or pairs of one `label` only, all labels in one histogram.
            All by default; by label takes the shares of labels out of the comparison.
        smoothing: pseudo-count added to every bin of both histograms, that of Krichevsky and
            Trofimov (1981); without it one empty bin makes the divergence infinite.

    Returns:
        The divergence, 0 or more.

    Raises:
        DataError: if a sample has no pair, or labels are needed and missing, or an argument is none
            of those accepted.
    """
    if direction not in ("real||simulated", "simulated||real"):
        raise DataError(
            f"The direction is {direction!r}; accepted are 'real||simulated' and 'simulated||real'."
        )
    if within not in ("all", "label"):
        raise DataError(f"Pairs are taken within {within!r}; accepted are 'all' and 'label'.")
    if bins < 1 or smoothing < 0:
        raise DataError(
            f"There are {bins} bins with a pseudo-count of {smoothing}; "
            "accepted are 1 or more, and 0 or more."
        )
    at_least(comparison, 2, "KL Cosine")
    shares = []
    for name, sample in (("real", comparison.real), ("simulated", comparison.simulated)):
        counts = sum(
            (similarity_histogram(part, bins) for part in _parts(sample, name, within)),
            start=np.zeros(bins),
        )
        if not counts.any():
            raise DataError(f"No two {name} texts have the same label, so there are no pairs.")
        counts += smoothing
        shares.append(counts / counts.sum())
    p, q = shares if direction == "real||simulated" else shares[::-1]
    support = p > 0
    with np.errstate(divide="ignore"):
        return max(0.0, float(np.sum(p[support] * np.log(p[support] / q[support]))))


def _parts(sample: Sample, name: str, within: Within) -> list[np.ndarray]:
    vectors = directions(sample)
    if within == "all":
        return [vectors]
    if sample.labels is None:
        raise DataError(f"Pairs within labels need labels, which the {name} texts lack.")
    labels = np.asarray(sample.labels)
    return [vectors[labels == label] for label in np.unique(labels)]


def similarity_histogram(vectors: np.ndarray, bins: int) -> np.ndarray:
    """Numbers of pairs of different unit vectors by cosine similarity, [bins] over [−1, 1].

    In blocks of rows through one matrix product each, so that no [n, n] matrix is kept; every pair
    is met twice and counted once.

    Args:
        vectors: unit vectors, [n, D].
        bins: number of equal bins; a similarity on an edge falls into the bin above it.
    """
    counts = np.zeros(bins)
    for start in range(0, len(vectors), _BLOCK):
        rows = vectors[start : start + _BLOCK]
        similarity = rows @ vectors[start:].T
        # Half bins of −1 … 1; rounding may carry a similarity just beyond the ends.
        index = ((similarity + 1) * (bins / 2)).astype(np.intp)
        np.clip(index, 0, bins - 1, out=index)
        square, rest = index[:, : len(rows)], index[:, len(rows) :]
        counts += np.bincount(square[np.triu_indices(len(rows), 1)], minlength=bins)
        counts += np.bincount(rest.ravel(), minlength=bins)
    return counts


def mean_similarity(comparison: Comparison) -> float:
    """Mean cosine similarity over pairs of different simulated texts, between −1 and 1.

    (|Σ_i u_i|² − n) / (n (n − 1)) with unit embeddings u: no pair is looked at.

    Raises:
        DataError: if there are fewer than two simulated texts.
    """
    at_least(comparison, 2, "Mean pairwise similarity")
    vectors = directions(comparison.simulated)
    n = len(vectors)
    value = (np.sum(vectors.sum(axis=0) ** 2) - n) / (n * (n - 1))
    return float(np.clip(value, -1.0, 1.0))


def vendi_score(comparison: Comparison) -> float:
    """Vendi score of the simulated texts (Friedman and Dieng, 2023): an effective number of texts.

    exp(−Σ_i λ_i log λ_i) with λ the eigenvalues of K / n and K_ij the cosine similarity: 1 where
    all texts have one direction, n where they are orthogonal. It grows with n; compare equal sizes.
    """
    vectors = directions(comparison.simulated)
    # UU'/n and U'U/n have the same eigenvalues beside zeros: take the smaller.
    small = vectors.T @ vectors if len(vectors) > vectors.shape[1] else vectors @ vectors.T
    values = np.clip(np.linalg.eigvalsh(small / len(vectors)), 0, None)
    values = values[values > 0]
    return max(1.0, float(np.exp(-np.sum(values * np.log(values)))))


register(
    Metric(
        name="kl_cosine",
        title="KL Cosine (real‖simulated), nats",
        function=kl_cosine,
        direction="lower",
        range=(0.0, float("inf")),
        reference="Bui et al. (2025)",
        takes=Comparison,
        family="diversity",
    )
)
register(
    Metric(
        name="mean_similarity",
        title="mean pairwise cosine similarity",
        function=mean_similarity,
        direction="match",
        range=(-1.0, 1.0),
        reference="Bui et al. (2025)",
        takes=Comparison,
        family="diversity",
    )
)
register(
    Metric(
        name="vendi_score",
        title="Vendi score, effective number of texts",
        function=vendi_score,
        direction="match",
        range=(1.0, float("inf")),
        reference="Friedman and Dieng (2023)",
        takes=Comparison,
        family="diversity",
    )
)
