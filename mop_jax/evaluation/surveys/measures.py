"""How far predicted shares are from people's: distances of cells, and of what lies between them.

Measures of an item compare two rows of shares and give a number for each item; measures of a
question compare how its cells differ from one another, and give one number. Where the package
`popfidelity` has a measure, ours is the same number: the tests hold the two together.

Symbols: s are people's shares, p the predicted ones, F_s and F_p their cumulative sums, c the
counts; i and j are cells and m is one of the M options.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import rel_entr, xlogy
from scipy.stats import rankdata

from mop_jax.errors import DataError
from mop_jax.evaluation.surveys.shares import predictive_shares
from mop_jax.survey import Items

# --- Of an item: [N] ----------------------------------------------------------------------------


def total_variation(p: ArrayLike, items: Items) -> np.ndarray:
    """Total variation, ½ Σ_m |p_m − s_m|: the share of people whose answer would have to change.

    From 0 to 1, less is better. Used by Meister et al. (2025) and SimBench (Hu et al., 2026);
    `popfidelity`'s `total_variation`.

    Args:
        p: predicted shares [N, M], or draws [S, N, M], whose mean is judged.
        items: with the real shares.

    Returns:
        A value for each item, [N]; NaN where nobody answered.

    Example:
        >>> import numpy as np, pandas as pd
        >>> from mop_jax.survey import Items, Question
        >>> cells = pd.DataFrame({"age": ["young"]})
        >>> items = Items((Question("vote", "Did you vote?", ("Yes", "No")),), cells,
        ...               np.array([0]), np.array([0]), np.array([[9.0, 1.0]]), np.array([10.0]))
        >>> print(total_variation([[0.5, 0.5]], items).round(3))
        [0.4]
    """
    return 0.5 * np.abs(predictive_shares(p, items) - items.shares).sum(1)


def jensen_shannon(p: ArrayLike, items: Items) -> np.ndarray:
    """Jensen–Shannon distance, √(½ KL(p‖u) + ½ KL(s‖u)) with u = (p + s)/2, logarithms to base 2.

    It is the distance, a metric, not the divergence, its square. From 0 to 1, less is better. Lin
    (1991), Endres and Schindelin (2003); GlobalOpinionQA's similarity is one minus it (Durmus et
    al., 2024); `popfidelity`'s `js_distance` with `base=2`.

    Args and returns: as `total_variation`.
    """
    p, s = predictive_shares(p, items), items.shares
    middle = 0.5 * (p + s)
    divergence = 0.5 * (rel_entr(p, middle) + rel_entr(s, middle)).sum(1) / np.log(2)
    # Rounding can leave equal shares a hair below zero.
    return np.sqrt(np.maximum(divergence, 0.0))


def normalized_wasserstein(p: ArrayLike, items: Items) -> np.ndarray:
    """Normalised earth mover's distance, Σ_{m<M} |F_p(m) − F_s(m)| / (M − 1), of ordered options.

    From 0 to 1, less is better: 1 if all people stand at one end of the scale and all predictions
    at the other. One minus it is OpinionQA's alignment (Santurkar et al., 2023); `popfidelity`'s
    `nemd`.

    Args and returns: as `total_variation`; NaN too for items of questions without an order.
    """
    gaps = np.abs(np.cumsum(predictive_shares(p, items) - items.shares, axis=1))
    # Behind the last option both sums are one.
    return np.where(_ordered(items), gaps.sum(1) / (items.mask.sum(1) - 1), np.nan)


def log_score(p: ArrayLike, items: Items) -> np.ndarray:
    """Mean log-probability of the people's answers, Σ_m s_m log p_m, nats.

    From −∞ to 0, more is better; the one strictly proper score that depends on the answer's own
    probability only (Good, 1952; Gneiting and Raftery, 2007). Averaged by people it is the mean
    over respondents, Σ_i Σ_m c_im log p_im / Σ c. Where an answer that somebody gave has no
    probability it is −∞, and stays so in every average; nothing is clipped.

    Args and returns: as `total_variation`.
    """
    p = predictive_shares(p, items)
    with np.errstate(divide="ignore"):
        return xlogy(items.shares, p).sum(1)


def brier(p: ArrayLike, items: Items) -> np.ndarray:
    """Mean Brier score of the people's answers, Σ_m p_m² − 2 Σ_m s_m p_m + 1.

    From 0 to 2, less is better (Brier, 1950): the mean over respondents of Σ_m (p_m − [y = m])².

    Args and returns: as `total_variation`.
    """
    p = predictive_shares(p, items)
    return (p**2).sum(1) - 2 * (p * items.shares).sum(1) + 1


def sd_ratio(p: ArrayLike, items: Items) -> np.ndarray:
    """Spread of answers within a cell: standard deviation on the scale 1 … M, predicted over real.

    From 0 to ∞, best at 1; below it, simulated people are more alike than real ones (Bisbee et al.,
    2024). `popfidelity`'s `sd_ratio`; its mean over cells is `sd_ratio(within=True)` there.

    Args and returns: as `total_variation`; NaN too for items of questions without an order, and
    where all people gave one answer.
    """
    predicted, real = (_scale_sd(shares) for shares in (predictive_shares(p, items), items.shares))
    defined = _ordered(items) & (real > 0)
    return np.divide(predicted, real, out=np.full(len(items), np.nan), where=defined)


def _ordered(items: Items) -> np.ndarray:
    return np.asarray([question.ordered for question in items.questions], bool)[items.question]


def _scale_sd(shares: np.ndarray) -> np.ndarray:
    scale = np.arange(shares.shape[1])
    mean = shares @ scale
    return np.sqrt(np.maximum((shares * (scale - mean[:, None]) ** 2).sum(1), 0.0))


# --- Of a question: one number ------------------------------------------------------------------


def variance_ratio(p: ArrayLike, items: Items) -> float:
    """How far cells lie apart: median_{i<j} d(p_i, p_j) / median_{i<j} d(s_i, s_j).

    d is the normalised earth mover's distance of an ordered question, and the total variation of
    one without an order. From 0 to ∞, best at 1: 0 if all cells are predicted alike, above 1 if
    differences between groups are overdone. It is the ratio of adaptability, `adaptability_ratio`,
    of the Population Fidelity Score in `popfidelity` (da Silva et al., 2026). Sampling error moves
    small cells apart, too, so that true shares have a ratio a little below 1.

    Args:
        p: predicted shares [N, M], or draws [S, N, M], whose mean is judged.
        items: of one question, each of another cell.

    Returns:
        The ratio; NaN if all real cells are equal.

    Raises:
        DataError: if items are of several questions, or fewer than two cells have answers.
    """
    predicted, real = _between_cells(p, items)
    middle = float(np.median(real))
    return float(np.median(predicted)) / middle if middle > 0 else float("nan")


def between_group_structure(p: ArrayLike, items: Items) -> float:
    """Spearman correlation, over pairs of cells, of their predicted and their real distance.

    From −1 to 1, more is better: whether groups that answer alike are predicted alike, whatever the
    size of the differences. It is `rho_structure` of the Population Fidelity Score in `popfidelity`
    (da Silva et al., 2026), a Mantel (1967) correlation; d as in `variance_ratio`.

    Args and raises: as `variance_ratio`.

    Returns:
        The correlation; NaN if predicted or real distances are all equal, as those of the pooled
        marginal are.
    """
    predicted, real = _between_cells(p, items)
    # Distances of small cells are often equal, and rounding would rank them at random.
    ranks = [rankdata(np.round(distances, 12)) for distances in (predicted, real)]
    if not all(map(np.ptp, ranks)):
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def _between_cells(p: ArrayLike, items: Items) -> tuple[np.ndarray, np.ndarray]:
    """Distances between all pairs of cells that have answers, predicted and real."""
    predicted = predictive_shares(p, items)
    if len(np.unique(items.question)) != 1:
        raise DataError("The items are of several questions; this measure judges one at a time.")
    answered = items.counts.sum(1) > 0
    if len(np.unique(items.cell[answered])) < 2:
        raise DataError("Fewer than two cells have answers; differences between cells need two.")
    question = items.questions[items.question[0]]
    first, second = np.triu_indices(int(answered.sum()), k=1)
    # A bootstrap draws a cell twice; a cell is at no distance from itself, and says nothing.
    different = items.cell[answered][first] != items.cell[answered][second]
    first, second = first[different], second[different]

    def distances(shares: np.ndarray) -> np.ndarray:
        shares = shares[answered]
        if question.ordered:
            cumulative = np.cumsum(shares, axis=1)[:, : question.num_options - 1]
            return np.abs(cumulative[first] - cumulative[second]).mean(1)
        return 0.5 * np.abs(shares[first] - shares[second]).sum(1)

    return distances(predicted), distances(items.shares)
