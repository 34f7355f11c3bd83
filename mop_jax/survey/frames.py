"""Frames: which share of a population each cell has; from margins alone, see `raking`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mop_jax.errors import DataError
from mop_jax.population.table import Table, tidy
from mop_jax.survey.answers import Answers
from mop_jax.survey.cell_tables import numbers_of
from mop_jax.survey.codebook import nearest
from mop_jax.survey.histories import merge_histories
from mop_jax.survey.items import Items
from mop_jax.survey.people import covariate_texts
from mop_jax.survey.platforms import naming, read_survey, survey_table

SIZES = ("count", "share", "n", "weight")
"""Headers under which a frame's or margin's numbers are looked for."""
_ROUNDING = 0.01


@dataclass(frozen=True, eq=False)
class Frame:
    """Which share of a population is in which cell.

    Attributes:
        cells: the covariates, one row a cell and one column a covariate, texts.
        shares: of the cells, float64 [cells], summing to one.

    Raises:
        DataError: if a cell is there twice, a share is negative or not finite, or there is nobody.
    """

    cells: pd.DataFrame
    shares: np.ndarray

    def __post_init__(self) -> None:
        """Checks cells and shares, which are then made to sum to one exactly."""
        shares = np.asarray(self.shares, dtype=np.float64)
        if shares.shape != (len(self.cells),):
            raise DataError(f"shares has shape {shares.shape}; it must be ({len(self.cells)},).")
        if not (np.isfinite(shares) & (shares >= 0)).all():
            raise DataError("Shares of a frame must be finite, and zero or more.")
        if not shares.sum() > 0:
            raise DataError("Nobody is in the frame; at least one cell needs people.")
        if self.cells.shape[1] and self.cells.duplicated().any():
            twice = _rows(self.cells)[int(np.argmax(self.cells.duplicated()))]
            raise DataError(f"The cell {', '.join(twice)} is in the frame twice; accepted is once.")
        object.__setattr__(self, "shares", shares / shares.sum())

    def __len__(self) -> int:
        """How many cells there are."""
        return len(self.cells)

    @property
    def covariates(self) -> list[str]:
        """Names of the cells' columns."""
        return list(self.cells.columns)

    def shares_of(self, cells: pd.DataFrame) -> np.ndarray:
        """The shares of given cells, such as a survey's, float64 [cells].

        Args:
            cells: one row a cell, with the frame's covariates in any order.

        Raises:
            DataError: if covariates differ, or cells are not the same on both sides.
        """
        _refuse_other_covariates(self.covariates, list(cells.columns))
        own = {cell: at for at, cell in enumerate(_rows(self.cells))}
        asked = _rows(cells[self.covariates])
        for cell in asked:
            if cell not in own:
                raise DataError(
                    f"The frame lacks the cell {', '.join(cell)}; give it a share, or 0."
                )
        unknown = [cell for cell in own if cell not in set(asked) and self.shares[own[cell]] > 0]
        if unknown:
            raise DataError(
                f"The frame has the cell {', '.join(unknown[0])}, which the survey does not know; "
                "leave it out, or merge it with another."
            )
        return self.shares[[own[cell] for cell in asked]]

    def margin(self, covariates: str | Sequence[str]) -> pd.Series:
        """Shares of the levels of a covariate, or of combinations of several."""
        names = [covariates] if isinstance(covariates, str) else list(covariates)
        return pd.Series(self.shares).groupby([self.cells[name] for name in names]).sum()


def load_frame(
    source: str | os.PathLike[str] | pd.DataFrame | Table,
    covariates: Sequence[str],
    *,
    size: str | None = None,
    levels: Mapping[str, Sequence[str]] | None = None,
) -> Frame:
    """Reads a frame: one row a cell, with its covariates and its count or share of the people.

    Args:
        source: a file (see `read_survey`) or a table.
        covariates: columns; others are passed over.
        size: the column of counts or shares; by default the one that is named count, share, n or
            weight. A column of this name `share` must sum to one.
        levels: of covariates that a survey knows; others are refused.

    Raises:
        DataError: if a covariate, a level or a number is missing, unknown or negative, or a cell is
            there twice; names the row.
    """
    with naming_file(source):
        table = read_sizes(source)
        columns = covariate_texts(table, covariates)
        size = size_column(table, size)
        for name, column in zip(covariates, columns, strict=True):
            refuse_missing(table, name, column)
            if levels is not None and name in levels:
                refuse_unknown(table.rows, name, column, levels[name])
        rows = [tuple(map(str, row)) for row in zip(*columns, strict=True)] or [()] * len(table)
        first: dict[tuple[str, ...], int] = {}
        for row, cell in zip(table.rows, rows, strict=True):
            if first.setdefault(cell, row) != row:
                raise DataError(
                    f"Rows {first[cell]} and {row} are of the same cell ({', '.join(cell)}); sum "
                    "them to one row a cell."
                )
        shares = numbers_of(table, size, size)
        refuse_other_sums(size, shares.sum(), "The frame")
        levels_of = {name: [cell[at] for cell in rows] for at, name in enumerate(covariates)}
        return Frame(pd.DataFrame(levels_of, index=range(len(rows))), shares)


def frame_of(data: Items | Answers) -> Frame:
    """The survey's own cells, each with its share of the people, weighted where they have weights.

    Of items, a cell is as large as its largest count over the questions: who left a question out
    was there all the same.
    """
    sizes = np.zeros(len(data.cells))
    if isinstance(data, Answers):
        people = data.frame.drop_duplicates("respondent")
        np.add.at(sizes, people["cell"].to_numpy(), people["weight"].to_numpy())
    else:
        whole = merge_histories(data)
        np.maximum.at(sizes, whole.cell, whole.counts.sum(1))
    present = sizes > 0
    return Frame(data.cells[present].reset_index(drop=True), sizes[present])


def _rows(cells: pd.DataFrame) -> list[tuple[str, ...]]:
    return [tuple(map(str, row)) for row in cells.itertuples(index=False)]


def _refuse_other_covariates(known: Sequence[str], asked: Sequence[str]) -> None:
    for name in asked:
        if name not in known:
            raise DataError(f"The frame has no covariate {name!r}; {nearest(name, known)}.")
    for name in known:
        if name not in asked:
            raise DataError(
                f"The frame has the covariate {name!r}, which is none of {', '.join(asked)}; sum "
                "the frame over it."
            )


@contextmanager
def naming_file(source: object) -> Iterator[None]:
    """Begins refusals with the file's name, if it is a file."""
    with naming(os.fspath(source) if isinstance(source, str | os.PathLike) else None):
        yield


def read_sizes(source: str | os.PathLike[str] | pd.DataFrame | Table) -> Table:
    """A file or a table as a table."""
    return read_survey(source) if isinstance(source, str | os.PathLike) else survey_table(source)


def size_column(table: Table, size: str | None) -> str:
    """The column that says how many people there are, or which share."""
    if size is not None:
        return table.column(size).name
    found = [name for name in table.names if tidy(name).casefold() in SIZES]
    if len(found) != 1:
        raise DataError(
            f"There are {len(found)} columns named {', '.join(SIZES[:-1])} or {SIZES[-1]}; one is "
            "needed, which says how many people there are (the columns are: "
            f"{', '.join(table.names)})."
        )
    return found[0]


def refuse_missing(table: Table, name: str, column: Sequence[str | None]) -> None:
    """Refuses a column with a missing text, by its row."""
    if None in column:
        row = table.rows[list(column).index(None)]
        raise DataError(f"Row {row} has no {name}; every row needs one.")


def refuse_unknown(
    rows: Sequence[int], name: str, column: Sequence[str | None], levels: Sequence[str]
) -> None:
    """Refuses a level that is not known, by its row."""
    for row, level in zip(rows, column, strict=True):
        if level not in levels:
            raise DataError(
                f"Row {row} has {name} {level!r}, which is unknown; {nearest(str(level), levels)}."
            )


def refuse_other_sums(size: str, total: float, what: str) -> None:
    """Refuses what is called shares and does not sum to one."""
    if tidy(size).casefold() == "share" and abs(total - 1) > _ROUNDING:
        raise DataError(
            f"{what} has shares that sum to {total:g}; accepted is 1, or counts under another name."
        )
