"""Predicted shares of options: what they must be, and what follows from them without a measure.

A prediction is p [N, M], one row of shares for each of the `Items`, or draws of it [S, N, M], one
for each draw of a posterior or of a bootstrap. A respondent's answer is then distributed as the
mean over the draws, so that every measure of a prediction takes that mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from mop_jax.errors import DataError
from mop_jax.survey import Items

_SUM_TOLERANCE = 1e-5


def checked_draws(p: ArrayLike, items: Items) -> np.ndarray:
    """Predicted shares as draws, float64 [S, N, M]; a single prediction is one draw.

    Raises:
        DataError: if a shape does not fit, a share is not finite or negative, shares do not sum to
            one, or something is predicted for a place that holds no option.
    """
    mask = items.mask
    draws = np.asarray(p, np.float64)
    draws = draws[None] if draws.ndim == 2 else draws
    if draws.ndim != 3 or draws.shape[1:] != mask.shape or not len(draws):
        raise DataError(
            f"Predicted shares have shape {list(np.shape(p))}; accepted is {list(mask.shape)} for "
            "these items, or draws of it."
        )
    if not len(items):
        raise DataError("There are no items to judge; at least one is needed.")
    bad = ~np.isfinite(draws).all((0, 2))
    if bad.any():
        raise DataError(f"Predicted shares of item {int(np.argmax(bad))} are not finite numbers.")
    bad = (draws < 0).any((0, 2))
    if bad.any():
        raise DataError(f"Predicted shares of item {int(np.argmax(bad))} are negative.")
    bad = np.abs(draws.sum(2) - 1).max(0) > _SUM_TOLERANCE
    if bad.any():
        item = int(np.argmax(bad))
        raise DataError(
            f"Predicted shares of item {item} sum to {draws[:, item].sum(1)[0]:g}; they must sum "
            "to one."
        )
    if (draws * ~mask).any():
        item = int(np.argmax((draws * ~mask).any((0, 2))))
        question = items.questions[items.question[item]]
        raise DataError(
            f"Item {item} has predicted shares behind the {question.num_options} options of "
            f"question {question.id}."
        )
    return draws


def predictive_shares(p: ArrayLike, items: Items) -> np.ndarray:
    """How an answer is distributed: the mean over the draws, checked, [N, M].

    Raises:
        DataError: see `checked_draws`.
    """
    return checked_draws(p, items).mean(0)


def effective_counts(items: Items, design_effect: float = 1.0) -> np.ndarray:
    """Counts scaled to as many as there were people, over the design effect, [N, M].

    Weights say which way the sample leans and not that it is larger, so that the information in an
    item is that of its respondents: n = people / design effect. Weights that differ make it less
    still, by Kish's (1965) 1 + CV², which counts alone do not tell.

    Raises:
        DataError: if the design effect is not a positive number.
    """
    if not 0 < design_effect < np.inf:
        raise DataError(f"The design effect is {design_effect}; it must be a positive number.")
    shares = np.nan_to_num(items.shares)
    return shares * items.people[:, None] / design_effect


def group_shares(p: ArrayLike, items: Items, by: str) -> dict[tuple[str, str], np.ndarray]:
    """Shares by question and by the levels of a covariate, cells weighted by their people.

    Args:
        p: shares [N, M], or draws [S, N, M]; the real ones are `items.shares`.
        items: whose cells have the covariate.
        by: the covariate.

    Returns:
        (question id, level) → shares [M_q], or draws [S, M_q].

    Raises:
        DataError: if there is no such covariate.
    """
    levels = levels_of(items, by)
    weights = items.counts.sum(1)
    array = np.asarray(p, np.float64)
    found = {}
    for q, question in enumerate(items.questions):
        for level in dict.fromkeys(levels):
            chosen = (items.question == q) & (levels == level) & (weights > 0)
            if chosen.any():
                part = array[..., chosen, : question.num_options]
                found[question.id, level] = np.einsum(
                    "n,...nm->...m", weights[chosen] / weights[chosen].sum(), part
                )
    return found


def group_means(
    values: ArrayLike, items: Items, by: Sequence[str] | None = None
) -> tuple[list[str], np.ndarray]:
    """Means over the levels of covariates, cells weighted by their people: what figures show.

    Args:
        values: of the items, such as shares of one question's options, [..., N, D].
        items: N items; those that nobody answered are passed over.
        by: covariates, one after another; all by default.

    Returns:
        Names of the G levels, such as `age: 65+`, in the order of the cells, and means [..., G, D].

    Raises:
        DataError: if there is no such covariate, or nobody answered anything.
    """
    array, weights = np.asarray(values, np.float64), items.counts.sum(1)
    names, means = [], []
    for covariate in items.covariates if by is None else by:
        levels = levels_of(items, covariate)
        for level in dict.fromkeys(items.cells[covariate].astype(str)):
            chosen = (levels == level) & (weights > 0)
            if chosen.any():
                names.append(f"{covariate}: {level}")
                share = weights[chosen] / weights[chosen].sum()
                means.append(np.einsum("n,...nd->...d", share, array[..., chosen, :]))
    if not names:
        raise DataError("Nobody answered any of these items; there are no means of groups.")
    return names, np.stack(means, axis=-2)


def levels_of(items: Items, covariate: str) -> np.ndarray:
    """The covariate's level of each item, texts [N].

    Raises:
        DataError: if there is no such covariate.
    """
    if covariate not in items.covariates:
        raise DataError(
            f"There is no covariate {covariate!r}; there are {', '.join(items.covariates)}."
        )
    return items.cells[covariate].astype(str).to_numpy(object)[items.cell]
