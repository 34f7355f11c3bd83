"""How sure a measure's value is: intervals by resampling cells.

Cells are what a survey study generalises over, and all items of a cell, whatever the question, are
of the same people: they are drawn together, with replacement (Efron and Tibshirani, 1993). The
value of a measure of items is a weighted mean, for which the ordinary bootstrap is right; where
cells are compared in pairs, a cell drawn twice is not compared to itself. Differences of methods
are those on the same cells, so that what makes a cell hard for both cancels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from mop_jax.errors import DataError
from mop_jax.evaluation.surveys.averages import item_weights, overall, weighted_mean
from mop_jax.evaluation.surveys.registry import Average, SurveyMeasure, find_measure
from mop_jax.evaluation.surveys.shares import checked_draws
from mop_jax.survey import Items

FEWEST_CELLS = 4


class Estimate(NamedTuple):
    """A value and the ends of its interval."""

    mean: float
    low: float
    high: float


def estimate(
    measure: str | SurveyMeasure,
    p: ArrayLike,
    items: Items,
    *,
    average: Average | None = None,
    level: float = 0.95,
    replicates: int = 1000,
    seed: int = 0,
) -> Estimate:
    """A measure's value with a percentile interval over resampled cells.

    Args:
        measure: its name, or itself.
        p: predicted shares [N, M], or draws [S, N, M], whose mean is judged.
        items: with the real shares.
        average: see `overall`.
        level: of the interval.
        replicates: number of resampled surveys.
        seed: of the resampling.

    Raises:
        DataError: if predicted shares do not fit, or there are fewer than four cells.
    """
    mean, values = _replicates(measure, [p], items, average, replicates, seed)
    return _interval(float(mean[0]), values[:, 0], level)


def paired_difference(
    measure: str | SurveyMeasure,
    p_a: ArrayLike,
    p_b: ArrayLike,
    items: Items,
    *,
    average: Average | None = None,
    level: float = 0.95,
    replicates: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Value of `p_a` less that of `p_b`, on the same cells, resampled together.

    Args and raises: as `estimate`.

    Returns:
        The difference: below zero, a is better where less is better. NaN if both are −∞.
    """
    mean, values = _replicates(measure, [p_a, p_b], items, average, replicates, seed)
    return _difference(mean, values, level)


def compare(
    measure: str | SurveyMeasure,
    predictions: Mapping[str, ArrayLike],
    items: Items,
    against: str,
    *,
    average: Average | None = None,
    level: float = 0.95,
    replicates: int = 1000,
    seed: int = 0,
) -> tuple[dict[str, Estimate], dict[str, Estimate]]:
    """`estimate` of every prediction, and `paired_difference` of one of them less the others.

    The same numbers, of surveys that are resampled once for all.

    Args:
        measure: see `estimate`, as for what is not named here.
        predictions: name → predicted shares, or draws.
        items: see there.
        against: the prediction that is compared with the others.
        average: see there.
        level: see there.
        replicates: see there.
        seed: see there.
    """
    names = list(predictions)
    means, values = _replicates(
        measure, list(predictions.values()), items, average, replicates, seed
    )
    alone = {
        name: _interval(float(means[place]), values[:, place], level)
        for place, name in enumerate(names)
    }
    first = names.index(against)
    pairs = {name: [first, place] for place, name in enumerate(names) if place != first}
    return alone, {
        name: _difference(means[pair], values[:, pair], level) for name, pair in pairs.items()
    }


def _difference(means: np.ndarray, values: np.ndarray, level: float) -> Estimate:
    """The first of two predictions less the second."""
    with np.errstate(invalid="ignore"):
        return _interval(float(means[0] - means[1]), values[:, 0] - values[:, 1], level)


def _interval(mean: float, values: np.ndarray, level: float) -> Estimate:
    if not 0 < level < 1:
        raise DataError(f"The interval's level is {level}; it must lie between 0 and 1.")
    values = values[~np.isnan(values)]
    if not len(values) or np.isnan(mean):
        return Estimate(mean, np.nan, np.nan)
    # "lower" and "higher" take no mean of two values, of which one may be −∞.
    low = np.quantile(values, (1 - level) / 2, method="lower")
    high = np.quantile(values, (1 + level) / 2, method="higher")
    return Estimate(mean, float(low), float(high))


def _replicates(
    measure: str | SurveyMeasure,
    predictions: list[ArrayLike],
    items: Items,
    average: Average | None,
    replicates: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Values of the predictions [P], and of resampled surveys [replicates, P]."""
    measure = find_measure(measure)
    arrays = [checked_draws(p, items).mean(0) for p in predictions]
    cells, of_item = np.unique(items.cell, return_inverse=True)
    if len(cells) < FEWEST_CELLS:
        raise DataError(f"An interval needs {FEWEST_CELLS} cells at least; there are {len(cells)}.")
    if replicates < 1:
        raise DataError(f"replicates is {replicates}; at least 1 is needed.")
    means = np.asarray([overall(measure, p, items, average=average) for p in arrays])
    rng = np.random.default_rng([seed, 23])
    times = rng.multinomial(len(cells), np.full(len(cells), 1 / len(cells)), size=replicates)
    if measure.of == "item":
        weights = item_weights(measure, items, average)
        of_items = [measure.function(p, items) for p in arrays]
        values = [[weighted_mean(v, weights * drawn[of_item]) for v in of_items] for drawn in times]
        return means, np.asarray(values)
    values = []
    for drawn in times:
        index = np.repeat(np.arange(len(items)), drawn[of_item])
        part = items.take(index)
        values.append([overall(measure, p[index], part, average=average) for p in arrays])
    return means, np.asarray(values)
