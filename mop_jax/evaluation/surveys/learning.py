"""How a method's predictions of unseen cells gain from more training cells."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from mop_jax.errors import DataError
from mop_jax.evaluation.surveys.averages import by_question
from mop_jax.evaluation.surveys.base import SurveyMethod
from mop_jax.survey import Items

Predict = Callable[[Items, Items, int], np.ndarray]
"""(training items, test items, seed) → shares of the test items [N, M], or draws [S, N, M]."""
MEASURES = ("total_variation", "nemd", "log_score")


def learning_curve(
    methods: Mapping[str, SurveyMethod | Predict],
    train: Items,
    test: Items,
    *,
    sizes: Sequence[int] = (8, 16, 32, 72),
    seeds: Sequence[int] = (0, 1, 2),
    measures: Sequence[str] = MEASURES,
    first: Sequence[int] = (),
) -> pd.DataFrame:
    """Measures on the same test items, as the number of training cells grows.

    Of each seed the cells are put in one order, and the first of them are trained on: smaller
    samples are parts of larger ones, and all methods have the same.

    Args:
        methods: name → method, or a function of training items, test items and seed.
        train: items to draw training cells of.
        test: items to predict; none of their cells in `train`.
        sizes: numbers of training cells.
        seeds: of the orders and of the methods.
        measures: names.
        first: cells that come before all others, for every method, in an order for each seed: those
            that a method needs, such as the ones that a mixture's exemplars are of.

    Returns:
        One row for each method, size, seed, question and measure: `method`, `num_cells`, `seed`,
        `question`, `measure`, `value`.

    Raises:
        DataError: if a size is none, or a cell is in both.
    """
    present = np.unique(train.cell)
    if not methods or not sizes or not seeds:
        raise DataError("A learning curve needs a method, a size and a seed at least.")
    if not 0 < min(sizes) <= max(sizes) <= len(present):
        raise DataError(
            f"Numbers of training cells are {', '.join(map(str, sizes))}; there are {len(present)} "
            "cells to train on."
        )
    keys = [set(map(tuple, part.cells.astype(str).to_numpy()[np.unique(part.cell)]))
            for part in (train, test)]  # fmt: skip
    if both := keys[0] & keys[1]:
        raise DataError(f"The cell {' | '.join(min(both))} is in training and in test items.")
    tables = []
    for seed in seeds:
        order = np.random.default_rng([seed, 41]).permutation(present)
        order = order[np.argsort(~np.isin(order, first), kind="stable")]
        for size in sizes:
            part = train.take(np.isin(train.cell, order[:size]))
            for name, method in methods.items():
                shares = (
                    method(part, test, seed)
                    if callable(method)
                    else method.fit(part, seed=seed).predict(test)
                )
                table = by_question(shares, test, measures).melt(
                    "question", list(measures), "measure", "value"
                )
                tables.append(table.assign(method=name, num_cells=size, seed=seed))
    curve = pd.concat(tables, ignore_index=True).dropna(subset="value")
    return curve[["method", "num_cells", "seed", "question", "measure", "value"]]
