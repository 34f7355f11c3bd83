"""Whether intervals of shares hold as many of people's shares as they say.

What is compared is a sample's share, so its sampling error belongs into the interval: with
predicted share p, n people give a share k/n with k multinomial. Otherwise a perfect prediction of a
small cell would miss it nearly always.

A share is inside its interval of level a if its rank among the S predictive draws lies in the
middle a of all S + 1 ranks, ties broken at random. If the real share is one more draw from the
prediction, its rank is uniform, whatever S and however coarse the shares of few people are: no
interpolated quantile, and no excess where a real share lies on an end of its interval.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from mop_jax.errors import DataError
from mop_jax.evaluation.surveys.shares import checked_draws
from mop_jax.survey import Items


def coverage(
    draws: ArrayLike,
    items: Items,
    level: float = 0.9,
    *,
    sampled: bool = False,
    design_effect: float = 1.0,
    seed: int = 0,
) -> float:
    """Share of people's shares that lie in their central predictive interval.

    Every option of every answered item counts once; the options of an item are not independent, and
    of two options the second only repeats the first.

    Args:
        draws: of shares [S, N, M]; S of a hundred or more for a level of 0.9.
        items: with the real shares.
        level: of the intervals, between 0 and 1.
        sampled: whether the draws hold the sampling error of the cells already, as those of
            `sample_shares` do; if not, it is added.
        design_effect: by which people count less than they are, see `effective_counts`.
        seed: of the sampling error and of ties.

    Returns:
        A share, 0 to 1; best at `level`.

    Raises:
        DataError: if draws do not fit, the level is none, or there are too few draws for it.
    """
    curve = calibration(
        draws, items, [level], sampled=sampled, design_effect=design_effect, seed=seed
    )
    return float(curve[0])


def calibration(
    draws: ArrayLike,
    items: Items,
    levels: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    *,
    sampled: bool = False,
    design_effect: float = 1.0,
    seed: int = 0,
) -> np.ndarray:
    """`coverage` of intervals of several levels, [levels]; the same draws serve all.

    Args and raises: as `coverage`.
    """
    wanted = np.asarray(levels, float)
    if not ((wanted > 0) & (wanted < 1)).all():
        raise DataError(f"Levels are {list(levels)}; they must lie between 0 and 1.")
    array = checked_draws(draws, items)
    if (1 - wanted.max()) * (len(array) + 1) < 1:
        raise DataError(
            f"{len(array)} draws have no interval of level {wanted.max():g}; at least "
            f"{int(np.ceil(1 / (1 - wanted.max()))) - 1} are needed."
        )
    rng = np.random.default_rng([seed, 21])
    size = _sizes(items, design_effect)
    answered = (size > 0) & (items.counts.sum(1) > 0)
    if not answered.any():
        raise DataError("Nobody answered any of these items; there is nothing to cover.")
    if not sampled:
        array = sample_shares(array, items, design_effect=design_effect, seed=seed)
    real = items.shares
    # Shares of whole people, k/n, are told apart by far more than rounding.
    below = (array < real - 1e-9).sum(0)
    equal = (np.abs(array - real) <= 1e-9).sum(0)
    rank = (below + rng.uniform(size=real.shape) * (equal + 1)) / (len(array) + 1)
    distance = np.abs(2 * rank - 1)[items.mask & answered[:, None]]
    return (distance <= wanted[:, None]).mean(1)


def sample_shares(
    draws: ArrayLike, items: Items, *, design_effect: float = 1.0, seed: int = 0
) -> np.ndarray:
    """Shares of as many simulated people as answered: n p̃ ~ Multinomial(n, p) for each draw.

    Args:
        draws: of shares [S, N, M].
        items: whose `people`, over the design effect, are n, at least one.
        design_effect: see `effective_counts`.
        seed: of everything that is drawn.

    Returns:
        Shares [S, N, M]; those of items that nobody answered are the drawn ones themselves.
    """
    array = checked_draws(draws, items)
    size = _sizes(items, design_effect)
    rng = np.random.default_rng([seed, 22])
    normal = array / array.sum(2, keepdims=True)
    counts = rng.multinomial(np.broadcast_to(size, array.shape[:2]), normal)
    return np.where(size[:, None] > 0, counts / np.maximum(size, 1)[:, None], array)


def _sizes(items: Items, design_effect: float) -> np.ndarray:
    if not 0 < design_effect < np.inf:
        raise DataError(f"The design effect is {design_effect}; it must be a positive number.")
    size = np.rint(items.people / design_effect).astype(np.int64)
    return np.where(items.people > 0, np.maximum(size, 1), 0)
