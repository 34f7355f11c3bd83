"""From a table to records: rows that hold no answers, named columns, weights, missing cells.

Survey platforms write rows between the header and the people: Qualtrics the question texts and a
row of `{"ImportId": …}`, SurveyMonkey a second header with the answer options. Both are recognised
and passed over, and said.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mop_jax.errors import DataError
from mop_jax.population.cells import weights_of
from mop_jax.population.expressions import render_contexts, rows_of_query
from mop_jax.population.table import Column, Table, find_column, tidy

logger = logging.getLogger("mop_jax")


@dataclass(frozen=True)
class NamedColumns:
    """Which columns mean what; see `Population.from_dataframe`."""

    context: str | Sequence[str]
    response: str
    template: str | None = None
    id: str | None = None
    label: str | None = None
    group: str | None = None
    weight: str | None = None

    def __post_init__(self) -> None:
        if not self.contexts:
            raise DataError("No context column is named; at least one is needed.")
        if len(self.contexts) > 1 and self.template is None:
            raise DataError(
                f"{len(self.contexts)} context columns are named ({', '.join(self.contexts)}) but "
                "no template says how they make one context; give one, such as "
                f'"{{{{ {self.contexts[0]} }}}}".'
            )

    @property
    def contexts(self) -> list[str]:
        """The context columns."""
        return [self.context] if isinstance(self.context, str) else list(self.context)

    @property
    def all(self) -> list[str]:
        """Every column that is named."""
        optional = (self.id, self.label, self.group, self.weight)
        return [*self.contexts, self.response, *(c for c in optional if c is not None)]


def read_records(
    table: Table, columns: NamedColumns, query: str | None, drop_missing: bool, source: str
) -> dict[str, Any]:
    """The arguments of `Population`, read from a table; see `Population.from_dataframe`."""
    for column in columns.all:
        find_column(table.names, column)
    if not len(table):
        raise DataError("The data hold no records; at least one row is needed.")
    if query is not None:
        table = table.take(rows_of_query(table, query))
    weights = np.ones(len(table))
    if columns.weight is not None:
        table, weights = _weighted(table, columns.weight, source)
    kept = _complete(table, columns, drop_missing, source)
    table, weights = table.take(kept), weights[kept]
    texts = render_contexts(table, columns.contexts, columns.template)
    refuse_blank(texts, "context", table.rows)
    if columns.id is None:
        ids = [str(row) for row in table.rows]
    else:
        ids = _strings(table, columns.id, "id")
    refuse_duplicates(ids, table.rows)
    return {
        "ids": ids,
        "contexts": texts,
        "responses": _strings(table, columns.response, "response"),
        "labels": None if columns.label is None else _strings(table, columns.label, "label"),
        "groups": None if columns.group is None else _strings(table, columns.group, "group"),
        "weights": weights,
    }


def _weighted(table: Table, column: str, source: str) -> tuple[Table, np.ndarray]:
    """The rows whose weight is not zero, and their weights."""
    weights, commas = weights_of(table.texts(column), table.rows, column)
    if commas:
        logger.warning("%s: decimal commas were read in the weights (%s).", source, column)
    zeros = int((weights == 0).sum())
    if zeros == len(weights):
        raise DataError(f"Every row has the weight 0 (column {column!r}); no record is left.")
    if zeros:
        logger.warning(
            "%s: %d of %d rows have the weight 0 and were left out.", source, zeros, len(weights)
        )
    kept = np.flatnonzero(weights > 0)
    return table.take(kept), weights[kept]


def _complete(table: Table, columns: NamedColumns, drop_missing: bool, source: str) -> np.ndarray:
    """Positions of the rows with a context and a response; others are refused or left out."""
    named = [*columns.contexts, columns.response]
    blank = np.array([[_is_blank(text) for text in table.texts(name)] for name in named]).T
    kept = np.flatnonzero(~blank.any(axis=1))
    if len(kept) == len(table):
        return kept
    if drop_missing:
        if not len(kept):
            raise DataError("Every row has a blank context or response; nothing is left.")
        logger.warning(
            "%s: %d of %d rows have a blank context or response and were left out.",
            source,
            len(table) - len(kept),
            len(table),
        )
        return kept
    at, which = (int(found[0]) for found in np.nonzero(blank))
    kind = "response" if which == len(columns.contexts) else "context"
    raise DataError(
        f"Row {table.rows[at]} has an empty {kind} (column {named[which]!r}); accepted is "
        "non-blank text, or set drop_missing to leave such rows out."
    )


def _is_blank(text: str | None) -> bool:
    return text is None or not text.strip()


def _strings(table: Table, column: str, kind: str) -> list[str]:
    values = []
    for row, text in zip(table.rows, table.texts(column), strict=True):
        if text is None or not text.strip():
            raise DataError(
                f"Row {row} has an empty {kind} (column {column!r}); every record needs one."
            )
        values.append(text.strip())
    return values


def refuse_blank(values: Sequence[str], kind: str, rows: Sequence[int]) -> None:
    """Refuses texts that are blank or no Unicode text, by their row."""
    for row, value in zip(rows, values, strict=True):
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"Row {row} has an empty {kind}; accepted is non-blank text.")
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            raise DataError(
                f"Row {row} has a {kind} with half of a surrogate pair, which is no text; "
                "accepted is Unicode text."
            )


def refuse_duplicates(ids: Sequence[str], rows: Sequence[int]) -> None:
    """Refuses ids that are not distinct."""
    seen: dict[str, int] = {}
    for row, value in zip(rows, ids, strict=True):
        if value in seen:
            raise DataError(
                f"Rows {seen[value]} and {row} have the same id {value!r}; ids must be distinct."
            )
        seen[value] = row


def pass_over(table: Table, skip_rows: int | Sequence[int] | None, source: str) -> Table:
    """The table without rows that hold no answers; those that are left are numbered from 1.

    Args:
        table: as read.
        skip_rows: how many rows after the header hold no answers, or their numbers (1 is the first
            row after the header); by default the known exports are recognised.
        source: the file, for what is said.

    Raises:
        DataError: if `skip_rows` names rows that are not there, or no row is left.
    """
    if not len(table):
        return table
    if skip_rows is None:
        number, what = _known_rows(table)
        skipped = list(range(1, number + 1))
        if skipped:
            logger.warning(
                "%s: %s under the header %s passed over as %s; set skip_rows to decide otherwise.",
                source,
                f"{number} rows" if number > 1 else "1 row",
                "were" if number > 1 else "was",
                what,
            )
    elif isinstance(skip_rows, int):
        skipped = list(range(1, skip_rows + 1))
    else:
        skipped = sorted(set(skip_rows))
    if not skipped:
        return table
    if skipped[0] < 1 or skipped[-1] > len(table):
        raise DataError(
            f"skip_rows names row {skipped[-1] if skipped[0] >= 1 else skipped[0]}, but "
            f"the rows after the header are 1 to {len(table)}."
        )
    if len(skipped) == len(table):
        raise DataError(f"No record is left behind the {len(skipped)} skipped rows.")
    left = table.take(np.setdiff1d(np.arange(len(table)), np.asarray(skipped) - 1))
    # The question texts made every column text; without them numbers are numbers again.
    columns = [_retyped(column, left.rows) for column in left.columns]
    return Table(columns, list(range(1, len(left) + 1)))


def _retyped(column: Column, rows: list[int]) -> Column:
    if column.render is None or not all(v is None or isinstance(v, str) for v in column.cells):
        return column
    return replace(column, cells=column.texts(rows), render=None)


def _known_rows(table: Table) -> tuple[int, str]:
    """How many rows after the header belong to it, and whose they are."""
    head = [_head(column) for column in table.columns]
    depth = max(map(len, head), default=0)
    for row in range(depth):
        cells = [texts[row] for texts in head if texts[row]]
        if cells and 2 * sum(map(_is_import_id, cells)) > len(cells):
            return row + 1, "the question texts and import ids of a Qualtrics export"
    names = [tidy(name).casefold().replace("_", " ") for name in table.names]
    if {"respondent id", "collector id"} <= set(names) and depth:
        first = {name: texts[0] for name, texts in zip(names, head, strict=True)}
        if not first["respondent id"] and any(first.values()):
            return 1, "the second header of a SurveyMonkey export"
    return 0, ""


def qualtrics_texts(table: Table) -> list[str] | None:
    """The question texts below the header of a Qualtrics export, one a column; else None."""
    heads = [_head(column) for column in table.columns]
    number, what = _known_rows(table) if len(table) else (0, "")
    if number < 2 or "Qualtrics" not in what:
        return None
    return [texts[number - 2] for texts in heads]


def _head(column: Column) -> list[str]:
    first = column.take(np.arange(min(3, len(column.cells))))
    return ["" if not isinstance(v, str) else v.strip() for v in first.cells]


def _is_import_id(cell: str | None) -> bool:
    if not cell or not cell.startswith("{") or "ImportId" not in cell:
        return False
    try:
        return "ImportId" in json.loads(cell)
    except json.JSONDecodeError:
        return False
