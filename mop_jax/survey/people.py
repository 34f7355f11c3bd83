"""The respondents of a table: who they are, in which cell, with which weight and by what design."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from mop_jax.errors import DataError
from mop_jax.population.cells import weights_of
from mop_jax.population.records import refuse_duplicates
from mop_jax.population.table import Table, find_column

logger = logging.getLogger("mop_jax")

CovariateMissing = Literal["refuse", "keep", "drop"]
MISSING = "(missing)"
"""The category of those whose covariate is missing, where they are kept."""


@dataclass(frozen=True, eq=False)
class People:
    """Respondents: `at` are their positions in the table, `cells` texts of their covariates."""

    at: np.ndarray
    ids: list[str]
    covariates: list[str]
    cells: list[tuple[str, ...]]
    weights: np.ndarray
    strata: list[str] | None
    psu: list[str] | None


def read_people(
    table: Table,
    covariates: Sequence[str],
    id: str | None,
    weight: str | None,
    strata: str | None,
    psu: str | None,
    covariate_missing: CovariateMissing,
    source: str,
) -> People:
    """The respondents of a table with one row each; some are left out."""
    for column in (*covariates, id, weight, strata, psu):
        if column is not None:
            find_column(table.names, column)
    ids = [str(row) for row in table.rows] if id is None else filled_texts(table, id, "id")
    refuse_duplicates(ids, table.rows)
    weights = np.ones(len(table))
    if weight is not None:
        weights, commas = weights_of(table.texts(weight), table.rows, weight)
        if commas:
            logger.warning("%s: decimal commas were read in the weights (%s).", source, weight)
    kept = weights > 0
    if not kept.all():
        logger.warning(
            "%s: %d of %d respondents have the weight 0 and were left out.",
            source,
            (~kept).sum(),
            len(kept),
        )
    texts = covariate_texts(table, covariates)
    kept &= _with_covariates(table, covariates, texts, kept, covariate_missing, source)
    at = np.flatnonzero(kept)
    if not len(at):
        raise DataError("Every respondent is left out; at least one with a weight is needed.")
    rows = [tuple(MISSING if column[i] is None else str(column[i]) for column in texts) for i in at]
    left = table.take(at)
    return People(
        at=at,
        ids=[ids[i] for i in at],
        covariates=list(covariates),
        cells=rows,
        weights=weights[at],
        strata=None if strata is None else filled_texts(left, strata, "stratum"),
        psu=None if psu is None else filled_texts(left, psu, "primary sampling unit"),
    )


def covariate_texts(table: Table, covariates: Sequence[str]) -> list[list[str | None]]:
    """Columns of covariates, without blanks around them; None where one is missing."""
    twice = [name for name in covariates if list(covariates).count(name) > 1]
    if twice:
        raise DataError(f"The covariate {twice[0]!r} is named twice; once is enough.")
    columns = [table.texts(name) for name in covariates]
    return [[(text or "").strip() or None for text in column] for column in columns]


def _with_covariates(
    table: Table,
    covariates: Sequence[str],
    texts: list[list[str | None]],
    wanted: np.ndarray,
    rule: CovariateMissing,
    source: str,
) -> np.ndarray:
    """Who has all covariates, or may lack some."""
    if rule not in ("refuse", "keep", "drop"):
        raise DataError(f"covariate_missing is {rule!r}; accepted are refuse, keep and drop.")
    lacks = np.zeros(len(table), dtype=bool)
    for name, column in zip(covariates, texts, strict=True):
        missing = np.array([text is None for text in column], dtype=bool) & wanted
        if not missing.any():
            continue
        if rule == "refuse":
            raise DataError(
                f"Row {table.rows[int(np.argmax(missing))]} has no {name} (a covariate); set "
                f"covariate_missing to keep, which makes {MISSING!r} a category, or to drop."
            )
        logger.warning(
            "%s: %d of %d respondents have no %s and %s.",
            source,
            missing.sum(),
            wanted.sum(),
            name,
            f"are in the category {MISSING!r}" if rule == "keep" else "were left out",
        )
        lacks |= missing
    return np.ones_like(lacks) if rule == "keep" else ~lacks


def filled_texts(table: Table, column: str, kind: str) -> list[str]:
    """A column in which every row has a text."""
    texts = [(text or "").strip() for text in table.texts(column)]
    if "" in texts:
        raise DataError(
            f"Row {table.rows[texts.index('')]} has no {kind} (column {column!r}); every "
            "respondent needs one."
        )
    return texts


def cell_positions(
    rows: Sequence[tuple[str, ...]], covariates: Sequence[str]
) -> tuple[pd.DataFrame, np.ndarray]:
    """Cells in the order of their texts, and which cell each row is of."""
    # Sorted, so that cells do not hang on the order of the rows.
    cells = sorted(set(rows))
    place = {cell: at for at, cell in enumerate(cells)}
    frame = pd.DataFrame(
        {name: [cell[at] for cell in cells] for at, name in enumerate(covariates)},
        index=range(len(cells)),
    )
    return frame, np.array([place[row] for row in rows], dtype=int)
