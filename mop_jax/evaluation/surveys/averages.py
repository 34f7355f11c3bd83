"""One number of many items: overall, by question, and by the levels of a covariate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from mop_jax.errors import DataError
from mop_jax.evaluation.surveys.registry import (
    SURVEY_MEASURES,
    Average,
    SurveyMeasure,
    find_measure,
)
from mop_jax.evaluation.surveys.shares import checked_draws, levels_of
from mop_jax.survey import Items


def overall(
    measure: str | SurveyMeasure, p: ArrayLike, items: Items, *, average: Average | None = None
) -> float:
    """A measure's value of all items.

    Items that nobody answered, and those of questions that the measure is not defined for, are
    passed over. A measure of a question is computed by question and averaged over questions.

    Args:
        measure: its name, or itself.
        p: predicted shares [N, M], or draws [S, N, M], whose mean is judged.
        items: with the real shares.
        average: over items: `cells` counts each the same, `people` as its (weighted) respondents;
            the measure's own by default. Has no bearing on measures of a question.

    Raises:
        DataError: if predicted shares do not fit, or the measure is defined for no item.
    """
    measure = find_measure(measure)
    value = _value(measure, np.asarray(p, np.float64), items, average)
    if np.isnan(value) and measure.of == "item":
        ordered = any(items.questions[q].ordered for q in set(items.question.tolist()))
        raise DataError(
            f"Measure {measure.name!r} needs ordered options, and no question here has an order."
            if measure.needs_order and not ordered
            else f"Measure {measure.name!r} is defined for none of the {len(items)} items."
        )
    return value


def by_item(p: ArrayLike, items: Items, measures: Sequence[str] | None = None) -> pd.DataFrame:
    """Every measure of every item, one row an item.

    Args:
        p: predicted shares [N, M], or draws [S, N, M], whose mean is judged.
        items: with the real shares.
        measures: names; all that judge items by default.

    Returns:
        The covariates, `question`, `people` (weighted), and a column for each measure.
    """
    names = measures or [m.name for m in SURVEY_MEASURES.values() if m.of == "item"]
    table = items.cells.iloc[items.cell].reset_index(drop=True)
    table["question"] = [items.questions[q].id for q in items.question]
    table["people"] = items.counts.sum(1)
    for name in names:
        measure = find_measure(name)
        if measure.of != "item":
            raise DataError(f"Measure {name!r} judges questions; items have no value of it.")
        table[name] = measure.function(p, items)
    return table


def by_question(
    p: ArrayLike,
    items: Items,
    measures: Sequence[str] | None = None,
    *,
    average: Average | None = None,
) -> pd.DataFrame:
    """Every measure of every question, one row a question; NaN where it is not defined.

    Args and raises: as `overall`; `measures` are names, all by default.
    """
    draws = checked_draws(p, items)
    rows = {
        question.id: _row(draws, items, items.question == q, measures, average)
        for q, question in enumerate(items.questions)
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("question").reset_index()


def by_group(
    p: ArrayLike,
    items: Items,
    covariate: str,
    measures: Sequence[str] | None = None,
    *,
    average: Average | None = None,
) -> pd.DataFrame:
    """Every measure of every level of a covariate, over the level's cells and all questions.

    Args and raises: as `by_question`; and if there is no such covariate.
    """
    draws = checked_draws(p, items)
    levels = levels_of(items, covariate)
    rows = {
        level: _row(draws, items, levels == level, measures, average)
        for level in dict.fromkeys(levels)
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(covariate).reset_index()


def item_weights(measure: SurveyMeasure, items: Items, average: Average | None) -> np.ndarray:
    """What each item counts in an average, [N]; nothing where nobody answered.

    Raises:
        DataError: if there is no such average.
    """
    people = items.counts.sum(1)
    chosen = average or measure.average
    if chosen not in ("cells", "people"):
        raise DataError(f"The average is {chosen!r}; accepted are 'cells' and 'people'.")
    return (people > 0).astype(float) if chosen == "cells" else people


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> float:
    """Σ w v / Σ w over values that are defined; NaN if there are none."""
    there = ~np.isnan(values) & (weights > 0)
    return float(values[there] @ weights[there] / weights[there].sum()) if there.any() else np.nan


def _row(
    draws: np.ndarray,
    items: Items,
    chosen: np.ndarray,
    measures: Sequence[str] | None,
    average: Average | None,
) -> dict[str, float]:
    part = items.take(np.flatnonzero(chosen))
    row: dict[str, float] = {"items": len(part), "people": float(part.counts.sum())}
    for name in measures or SURVEY_MEASURES:
        measure = find_measure(name)
        row[name] = _value(measure, draws[:, chosen], part, average) if len(part) else np.nan
    return row


def _value(measure: SurveyMeasure, p: np.ndarray, items: Items, average: Average | None) -> float:
    """NaN where the measure is not defined."""
    if measure.of == "item":
        return weighted_mean(measure.function(p, items), item_weights(measure, items, average))
    checked_draws(p, items)
    values = []
    for q in np.unique(items.question):
        chosen = np.flatnonzero(items.question == q)
        part = items.take(chosen)
        if len(np.unique(part.cell[part.counts.sum(1) > 0])) >= 2:
            values.append(measure.function(p[..., chosen, :], part))
    return weighted_mean(np.asarray(values), np.ones(len(values)))
