"""A table as a file or a DataFrame holds it: columns by their headers, duplicates kept apart.

Every column has two readings: its texts, as written, and its values, as numbers where all of them
are numbers. Records are made of the texts; queries and the arithmetic of templates see the values.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from difflib import get_close_matches
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from mop_jax.errors import DataError
from mop_jax.population.cells import cell_text, cell_texts, typed


@dataclass(frozen=True, eq=False)
class Column:
    """One column.

    Attributes:
        name: its header, as written.
        cells: texts (None where missing), or typed values.
        render: turns a value into text, None where missing; `None` if the cells are texts.
        label: what the file says the column is, such as the text of a question; may be blank.
        value_labels: what the file says its codes mean, in the order of the codes, without those
            of missing answers; empty where it says nothing.
    """

    name: str
    cells: Sequence[Any] | pd.Series
    render: Callable[[Any], str | None] | None = None
    label: str = ""
    value_labels: Mapping[Any, str] = field(default_factory=dict)

    def texts(self, rows: Sequence[int]) -> list[str | None]:
        """Its texts; `rows` name the row in refusals."""
        if self.render is None:
            return list(self.cells)
        return cell_texts(self.cells, self.render, rows, self.name)

    @cached_property
    def values(self) -> pd.Series:
        """Its values, typed."""
        if self.render is None:
            return typed(list(self.cells))
        series = pd.Series(self.cells).reset_index(drop=True)
        if series.dtype != object:
            return series
        return series.map(lambda v: float(v) if isinstance(v, Decimal) else v).convert_dtypes()

    def take(self, at: np.ndarray) -> Column:
        """The cells at these positions."""
        if isinstance(self.cells, pd.Series):
            return replace(self, cells=self.cells.iloc[at])
        return replace(self, cells=[self.cells[i] for i in at])


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of equal length, and the number of each row (from 1, the header not counted)."""

    columns: list[Column]
    rows: list[int]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def names(self) -> list[str]:
        """The headers, in order."""
        return [column.name for column in self.columns]

    def take(self, at: np.ndarray | Sequence[int]) -> Table:
        """The rows at these positions, in this order."""
        where = np.asarray(at, dtype=np.intp)
        return Table([c.take(where) for c in self.columns], [self.rows[i] for i in where])

    def column(self, name: str) -> Column:
        """The column of this header; blanks around and inside headers count once.

        Raises:
            DataError: if there is none, or more than one.
        """
        return self.columns[find_column(self.names, name)]

    def texts(self, name: str) -> list[str | None]:
        """The texts of a column."""
        return self.column(name).texts(self.rows)


def find_column(names: Sequence[str], name: str) -> int:
    """The position of a named column among headers; see `Table.column`."""
    at = [i for i, known in enumerate(names) if known == name]
    if not at:
        at = [i for i, known in enumerate(names) if tidy(known) == tidy(name)]
    if len(at) == 1:
        return at[0]
    if at:
        places = " and ".join(str(i + 1) for i in at)
        raise DataError(
            f"The column {name!r} is there {len(at)} times (columns {places}); a column that is "
            "named must be there once, so rename the others."
        )
    there = ", ".join(map(_short, names)) or "none"
    folded = {tidy(known).casefold(): known for known in names}
    near = get_close_matches(tidy(name).casefold(), folded, 1, cutoff=0.6)
    advice = f" The nearest is {folded[near[0]]!r}." if near else ""
    raise DataError(f"There is no column {name!r}; the columns are: {there}.{advice}")


def tidy(header: str) -> str:
    """A header without marks and blanks that are not seen."""
    return " ".join(unicodedata.normalize("NFC", header).replace("\ufeff", "").split())


def _short(name: str) -> str:
    line = " ".join(name.split())
    return line if len(line) <= 60 else line[:57] + "…"


def table_of(df: pd.DataFrame) -> Table:
    """A DataFrame as a table; headers that are no text are named by their text, such as "0".

    Raises:
        DataError: if the columns have several levels.
    """
    if df.columns.nlevels > 1:
        raise DataError(
            f"The columns of the DataFrame have {df.columns.nlevels} levels; accepted is one, so "
            "join them first (df.columns = ['_'.join(map(str, c)) for c in df.columns])."
        )
    columns = [
        Column(str(name), df.iloc[:, at].reset_index(drop=True), cell_text)
        for at, name in enumerate(df.columns)
    ]
    return Table(columns, list(range(1, len(df) + 1)))
