"""Raking: the frame of a population of which only margins are known.

References:
    Deming and Stephan (1940), On a Least Squares Adjustment of a Sampled Frequency Table When the
    Expected Marginal Totals are Known.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
import pandas as pd

from mop_jax.errors import DataError
from mop_jax.population.table import Table
from mop_jax.survey.cell_tables import numbers_of
from mop_jax.survey.codebook import nearest
from mop_jax.survey.frames import (
    Frame,
    naming_file,
    read_sizes,
    refuse_missing,
    refuse_other_sums,
    refuse_unknown,
    size_column,
)
from mop_jax.survey.people import covariate_texts

_ROUNDING = 0.01
_MAX_STEPS = 10_000


def rake(
    cells: pd.DataFrame,
    margins: str | os.PathLike[str] | pd.DataFrame | Table,
    start: np.ndarray | None = None,
    *,
    tolerance: float = 1e-10,
) -> Frame:
    """The frame with given margins that is nearest to a start, by iterative proportional fitting.

    Each step multiplies the cells of a level by (share wanted) / (share there is); what is left
    unchanged are the start's odds ratios between cells.

    Args:
        cells: the covariates, one row a cell.
        margins: a file or a table with the columns `variable`, `level` and `share` (or count, n,
            weight), a row for each level of a covariate. Covariates without a margin are free.
        start: sizes of the cells, zero for those that cannot be; by default all alike.
        tolerance: the largest deviation of a share.

    Raises:
        DataError: if margins do not sum to one (or to a common total), name an unknown covariate or
            level or lack a level, or if no frame of these cells has them.
    """
    cells = cells.reset_index(drop=True).astype(str)
    shares = np.ones(len(cells)) if start is None else np.asarray(start, dtype=np.float64)
    shares = Frame(cells, shares).shares.copy()
    wanted = load_margins(margins, cells)
    codes = {name: pd.Index(t.index).get_indexer(cells[name]) for name, t in wanted.items()}
    worst, name, level = np.inf, "", 0
    for _ in range(_MAX_STEPS):
        for name, margin in wanted.items():
            target = margin.to_numpy()
            there = np.bincount(codes[name], weights=shares, minlength=len(target))
            empty = (there == 0) & (target > 0)
            if empty.any():
                raise DataError(
                    f"No cell with people has {name} {margin.index[int(np.argmax(empty))]!r}, of "
                    "which the margins want some; give such a cell a start of more than 0."
                )
            factor = np.divide(target, there, out=np.zeros_like(there), where=there > 0)
            shares = shares * factor[codes[name]]
        worst, name, level = _worst(shares, wanted, codes)
        if worst < tolerance:
            return Frame(cells, shares)
    raise DataError(
        f"No frame of these cells has the margins: {name} {wanted[name].index[level]!r} stays "
        f"{worst:.2g} off its share after {_MAX_STEPS} rounds, since cells that are empty would be "
        "needed; give them a start of more than 0, or merge levels."
    )


def _worst(
    shares: np.ndarray, wanted: Mapping[str, pd.Series], codes: Mapping[str, np.ndarray]
) -> tuple[float, str, int]:
    found = (0.0, "", 0)
    for name, margin in wanted.items():
        there = np.bincount(codes[name], weights=shares, minlength=len(margin))
        off = np.abs(there - margin.to_numpy())
        found = max(found, (float(off.max()), name, int(np.argmax(off))))
    return found


def load_margins(
    source: str | os.PathLike[str] | pd.DataFrame | Table, cells: pd.DataFrame
) -> dict[str, pd.Series]:
    """Margins, covariate → shares by level, checked against the cells; see `rake`."""
    with naming_file(source):
        table = read_sizes(source)
        variables, levels = covariate_texts(table, ["variable", "level"])
        refuse_missing(table, "variable", variables)
        refuse_missing(table, "level", levels)
        size = size_column(table, None)
        sizes = numbers_of(table, size, size)
        found: dict[str, dict[str, float]] = {}
        known = [str(name) for name in cells.columns]
        for row, variable, level, value in zip(table.rows, variables, levels, sizes, strict=True):
            name = str(variable)
            if name not in known:
                raise DataError(f"Row {row} has the variable {name!r}; {nearest(name, known)}.")
            refuse_unknown([row], name, [level], sorted(set(cells[name])))
            if str(level) in found.setdefault(name, {}):
                raise DataError(f"Row {row} has {name} {level!r} a second time; accepted is once.")
            found[name][str(level)] = float(value)
        totals = {name: sum(margin.values()) for name, margin in found.items()}
        for name, margin in found.items():
            lacking = sorted(set(cells[name]) - set(margin))
            if lacking:
                raise DataError(
                    f"The margin of {name} lacks {lacking[0]!r}; give its {size}, or 0."
                )
            refuse_other_sums(size, totals[name], f"The margin of {name}")
            first = next(iter(totals))
            if not totals[name] > 0 or abs(totals[name] / totals[first] - 1) > _ROUNDING:
                raise DataError(
                    f"The margin of {name} sums to {totals[name]:g}, that of {first} to "
                    f"{totals[first]:g}; accepted is one total of more than 0."
                )
        return {name: pd.Series(m) / totals[name] for name, m in found.items()}
