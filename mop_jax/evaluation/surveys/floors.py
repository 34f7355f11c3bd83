"""What people themselves reach: the value of one half of the respondents as the other's prediction.

No prediction can be expected to come nearer to a sample than its sampling error lets it. Every
item's respondents are cut in two at random, without replacement (a multivariate hypergeometric
draw), and one half is judged as the prediction of the other.

Halves are smaller than the sample. Errors of n people fall as 1/√n, so a distance between halves,
each of n/2, has the scale √(2/n + 2/n) = 2/√n; a second survey of n people would be √(1/n + 1/n)
away, `halves` / √2; and the true shares 1/√n, `halves` / 2, which is where a perfect prediction
would stand. The two are given for distances, for which this holds to first order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from mop_jax.errors import DataError
from mop_jax.evaluation.surveys.averages import overall
from mop_jax.evaluation.surveys.registry import SURVEY_MEASURES, Average, find_measure
from mop_jax.evaluation.surveys.shares import effective_counts
from mop_jax.survey import Items

AVERAGES: tuple[Average, ...] = ("cells", "people")


def noise_floor(
    items: Items,
    measures: Sequence[str] | None = None,
    *,
    repeats: int = 50,
    design_effect: float = 1.0,
    seed: int = 0,
) -> pd.DataFrame:
    """Measures of one half of the respondents as the prediction of the other half.

    Weighted counts are scaled to the number of people and rounded to whole ones. As a prediction, a
    half's shares are its Jeffreys posterior means, (c + ½) / (n + M/2), for `log_score` alone: an
    answer that only the other half gave would otherwise make it −∞.

    Args:
        items: with the real counts; those of fewer than two people are passed over.
        measures: names; all that judge items by default, and those of a question on demand.
        repeats: number of random cuts.
        design_effect: by which people count less than they are, see `effective_counts`.
        seed: of the cuts.

    Returns:
        One row for each measure and average (`cells`, `people`): `halves`, its standard error over
        cuts `se`; of distances `second_survey` and `true_shares` (see the module), of others NaN;
        `people_per_half`, the mean over items.

    Raises:
        DataError: if no item has two people.
    """
    whole = _whole_counts(effective_counts(items, design_effect))
    enough = np.flatnonzero(whole.sum(1) >= 2)
    if not len(enough):
        raise DataError("No item has two respondents; a noise floor cuts respondents in two.")
    if repeats < 2:
        raise DataError(f"repeats is {repeats}; at least 2 are needed.")
    part = items.take(enough)
    names = measures or [
        m.name
        for m in SURVEY_MEASURES.values()
        if m.of == "item" and (not m.needs_order or any(q.ordered for q in items.questions))
    ]
    rng = np.random.default_rng([seed, 24])
    values: dict[tuple[str, Average], list[float]] = {}
    for _ in range(repeats):
        first = np.stack([rng.multivariate_hypergeometric(c, c.sum() // 2) for c in whole[enough]])
        second = whole[enough] - first
        real = replace(part, counts=first.astype(float), people=first.sum(1).astype(float))
        for name in names:
            prior = 0.5 * part.mask if name == "log_score" else 0.0
            shares = (second + prior) / (second + prior).sum(1, keepdims=True)
            for average in AVERAGES:
                value = overall(name, shares, real, average=average)
                values.setdefault((name, average), []).append(value)
    rows = []
    for (name, average), found in values.items():
        halves = float(np.mean(found))
        falls = find_measure(name).root_n
        rows.append(
            {
                "measure": name,
                "average": average,
                "halves": halves,
                "se": float(np.std(found, ddof=1) / np.sqrt(repeats)),
                "second_survey": halves / np.sqrt(2) if falls else np.nan,
                "true_shares": halves / 2 if falls else np.nan,
                "people_per_half": float(whole[enough].sum(1).mean() / 2),
            }
        )
    return pd.DataFrame(rows)


def _whole_counts(counts: np.ndarray) -> np.ndarray:
    """Whole numbers with the rounded sums of the rows, by largest remainder, int [N, M]."""
    whole = np.floor(counts + 1e-9).astype(np.int64)
    missing = np.rint(counts.sum(1)).astype(np.int64) - whole.sum(1)
    order = np.argsort(-(counts - whole), axis=1, kind="stable")
    rank = np.argsort(order, axis=1, kind="stable")
    return whole + (rank < missing[:, None])
