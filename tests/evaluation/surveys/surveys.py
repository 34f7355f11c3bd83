"""Surveys to test with: made by hand, and simulated from known shares."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd

from mop_jax.survey import Items, Question

SCALE = Question("scale", "How much?", ("none", "little", "some", "much"), ordered=True)
VOTE = Question("vote", "Which party?", ("red", "green", "blue"))


def survey(counts, questions=(SCALE,), cells=None, people=None) -> Items:
    """Items of cells × questions in this order; counts [cells · questions, M]."""
    counts = np.asarray(counts, float)
    num_cells = len(counts) // len(questions)
    if cells is None:
        cells = pd.DataFrame({"cell": [f"c{i}" for i in range(num_cells)]})
    return Items(
        tuple(questions),
        cells,
        np.repeat(np.arange(num_cells), len(questions)),
        np.tile(np.arange(len(questions)), num_cells),
        counts,
        counts.sum(1) if people is None else np.asarray(people, float),
    )


def grid(**levels: int) -> pd.DataFrame:
    """All combinations of so many levels of each covariate."""
    rows = itertools.product(*([f"{name}{i}" for i in range(n)] for name, n in levels.items()))
    return pd.DataFrame(list(rows), columns=list(levels))


def simulated(cells: pd.DataFrame, people: int, seed: int, *, spread=0.6, cell_spread=0.25):
    """Answers to `SCALE` by a multilevel logit; the items and the true shares [cells, M]."""
    rng = np.random.default_rng(seed)
    logits = np.tile(rng.normal(0, 0.5, 4), (len(cells), 1))
    for name in cells:
        effects = {level: rng.normal(0, spread, 4) for level in sorted(set(cells[name]))}
        logits += np.stack([effects[level] for level in cells[name]])
    logits += rng.normal(0, cell_spread, logits.shape)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return survey(rng.multinomial(people, shares), cells=cells), shares
