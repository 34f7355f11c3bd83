"""Shares by cell as tables: as the package `popfidelity` reads them, and tidy."""

from __future__ import annotations

import logging
import os

import numpy as np
import pandas as pd

from mop_jax.atomic import write_text
from mop_jax.errors import DataError
from mop_jax.survey.cell_tables import SEPARATOR
from mop_jax.survey.items import Items

logger = logging.getLogger("mop_jax")

CELLS_COLUMNS = ("cell_id", "question", "option", "share", "n")
"""What `popfidelity` reads."""
_EVERYBODY = "all"


def to_cells_table(items: Items, shares: np.ndarray | None = None) -> pd.DataFrame:
    """The five columns `cell_id, question, option, share, n`, a row for each option of an item.

    A cell's id is its covariates with "|" between them, or "all" where there are none.

    Args:
        items: whose cells and questions they are; n is how many people answered.
        shares: of the options, [N, M], such as a posterior mean; by default people's.

    Raises:
        DataError: if a covariate holds "|", shares are not finite, or items have histories.
    """
    for name in items.covariates:
        for value in items.cells[name]:
            if SEPARATOR in str(value):
                raise DataError(
                    f"The covariate {name} has the value {value!r}, which holds {SEPARATOR!r}; it "
                    "stands between covariates in a cell's id, so write another sign in its place."
                )
    ids = [
        SEPARATOR.join(map(str, cell)) or _EVERYBODY for cell in items.cells.itertuples(index=False)
    ]
    table, _ = _long(items, items.shares if shares is None else shares)
    table.insert(0, "cell_id", [ids[cell] for cell in table.pop("cell")])
    return table[list(CELLS_COLUMNS)]


def to_tidy_table(
    items: Items,
    shares: np.ndarray | None = None,
    low: np.ndarray | None = None,
    high: np.ndarray | None = None,
) -> pd.DataFrame:
    """A row for each option of an item: the covariates, `question, option, share, low, high, n`.

    Args:
        items: see `to_cells_table`.
        shares: of the options, [N, M]; by default people's.
        low: lower ends of their intervals, [N, M]; without them the columns are left blank.
        high: upper ends.

    Raises:
        DataError: if a covariate is named as another column, shares are not finite, or items have
            histories.
    """
    own = ("question", "option", "share", "low", "high", "n")
    clash = [name for name in items.covariates if name in own]
    if clash:
        raise DataError(
            f"The covariate {clash[0]!r} has the name of another column of the table; rename it."
        )
    table, (item, option) = _long(items, items.shares if shares is None else shares)
    for name, ends in (("low", low), ("high", high)):
        table[name] = np.nan if ends is None else _shaped(items, ends, name)[item, option]
    cells = items.cells.iloc[table.pop("cell").to_numpy()].reset_index(drop=True)
    return pd.concat([cells, table[list(own)]], axis=1)


def write_cells_table(
    path: str | os.PathLike[str], items: Items, shares: np.ndarray | None = None
) -> None:
    """Writes `to_cells_table` as CSV, whole or not at all."""
    write_text(path, to_cells_table(items, shares).to_csv(index=False, lineterminator="\n"))


def write_tidy_table(
    path: str | os.PathLike[str],
    items: Items,
    shares: np.ndarray | None = None,
    low: np.ndarray | None = None,
    high: np.ndarray | None = None,
) -> None:
    """Writes `to_tidy_table` as CSV, whole or not at all."""
    table = to_tidy_table(items, shares, low, high)
    write_text(path, table.to_csv(index=False, lineterminator="\n"))


def _long(items: Items, shares: np.ndarray) -> tuple[pd.DataFrame, tuple[np.ndarray, np.ndarray]]:
    """Columns cell (a position), question, option, share and n; and which places they are of."""
    shares = _shaped(items, shares, "shares")
    if any(items.history):
        raise DataError(
            "A table of shares by cell tells no histories apart; give it merge_histories(items)."
        )
    answered = items.people > 0
    if not answered.all():
        logger.warning(
            "%d of %d items that nobody answered are left out of the table.",
            (~answered).sum(),
            len(answered),
        )
    item, option = np.nonzero(items.mask & answered[:, None])
    if not np.isfinite(shares[item, option]).all():
        at = item[int(np.argmin(np.isfinite(shares[item, option])))]
        raise DataError(
            f"Item {at} (question {items.questions[items.question[at]].id}) has a share that is no "
            "finite number."
        )
    question = items.question[item]
    return pd.DataFrame(
        {
            "cell": items.cell[item],
            "question": [items.questions[q].id for q in question],
            "option": [
                items.questions[q].options[m] for q, m in zip(question, option, strict=True)
            ],
            "share": shares[item, option],
            "n": items.people[item],
        }
    ), (item, option)


def _shaped(items: Items, values: np.ndarray, name: str) -> np.ndarray:
    if np.shape(values) != items.counts.shape:
        raise DataError(f"{name} has shape {np.shape(values)}; it must be {items.counts.shape}.")
    return np.asarray(values, dtype=np.float64)
