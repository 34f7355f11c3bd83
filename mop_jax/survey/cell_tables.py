"""Tables of shares or counts by cell, in place of individuals."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from mop_jax.errors import DataError
from mop_jax.population.cells import weights_of
from mop_jax.population.table import Table
from mop_jax.survey.answer_tables import question_positions, refuse_without_text
from mop_jax.survey.codebook import Codebook, as_codebook
from mop_jax.survey.items import Items
from mop_jax.survey.people import cell_positions, covariate_texts
from mop_jax.survey.platforms import naming, survey_table
from mop_jax.survey.questions import Question, option_mask

logger = logging.getLogger("mop_jax")

SEPARATOR = "|"
"""Between the covariates in a cell's id, as the package `popfidelity` reads and writes it."""
_ROUNDING = 0.02


def items_from_cells(
    table: Table | pd.DataFrame,
    questions: Codebook | Iterable[Question],
    covariates: Sequence[str],
    *,
    cell_id: str | None = None,
    question: str = "question",
    option: str = "option",
    share: str | None = None,
    n: str | None = None,
    count: str | None = None,
    source: str | None = None,
) -> Items:
    """Items from a table with one row for each cell, question and option.

    Options without a row are nobody's. Answers that the codebook calls missing are left out, and
    the people who gave them; rows of questions that it does not name are passed over.

    Args:
        table: see `read_survey`.
        questions: a codebook, or questions; each with its text.
        covariates: names of the cells' covariates: columns, or, where `cell_id` is given, what its
            parts are.
        cell_id: a column with the covariates joined by "|", such as "Female|18-29".
        question: the column of the questions' ids.
        option: the column of the options.
        share: the column of the shares, which sum to one over the options of an item (a deviation
            of 0.02 is taken for rounding).
        n: the column of how many people answered, the same in all rows of an item; 0 leaves it out.
        count: in place of share and n, the column of how many people chose the option.
        source: the file, with which refusals begin.

    Raises:
        DataError: if a column is missing, an option is none, shares do not sum to one, numbers are
            missing or negative, or a row is there twice; names the row.
    """
    where = source or "The table"
    with naming(source):
        if (count is None) == (share is None) or (share is None) != (n is None):
            raise DataError(
                "Counts by cell need either share and n, or count; give the names of those columns."
            )
        found = survey_table(table, where)
        book = as_codebook(questions)
        refuse_without_text(book)
        of_row = question_positions(found, question, book, where)
        rows = np.flatnonzero(of_row >= 0)
        found, of_row = found.take(rows), of_row[rows]
        for at, asked in enumerate(book.questions):
            if not (of_row == at).any():
                raise DataError(
                    f"Question {asked.id} has no answers; leave it out of the codebook."
                )
        cells, cell = cell_positions(_cells(found, covariates, cell_id), covariates)
        key = cell * len(book.codings) + of_row
        present, item = np.unique(key, return_inverse=True)
        chosen = _options(found, option, book, of_row)
        _refuse_duplicates(found, item, chosen, option)
        if share is not None and n is not None:
            shares = numbers_of(found, share, "share")
            people = _people(found, n, item, len(present))
            shares = shares / _sums(found, shares, item, share)[item]
            counts = shares * people[item]
        else:
            counts = numbers_of(found, count or "", "count")
        table_of_counts = np.zeros((len(present), option_mask(book.questions).shape[1]))
        valid = chosen >= 0
        np.add.at(table_of_counts, (item[valid], chosen[valid]), counts[valid])
        items = Items(
            questions=book.questions,
            cells=cells,
            cell=present // len(book.codings),
            question=present % len(book.codings),
            counts=table_of_counts,
            people=table_of_counts.sum(1),
        )
        return _answered(items, counts[~valid].sum(), where)


def _cells(table: Table, covariates: Sequence[str], cell_id: str | None) -> list[tuple[str, ...]]:
    """The covariates of each row."""
    if cell_id is None:
        columns = covariate_texts(table, covariates)
        for name, column in zip(covariates, columns, strict=True):
            if None in column:
                raise DataError(
                    f"Row {table.rows[column.index(None)]} has no {name} (a covariate); every row "
                    "of a table by cell needs one."
                )
        return [tuple(str(column[at]) for column in columns) for at in range(len(table))]
    cells = []
    for row, text in zip(table.rows, table.texts(cell_id), strict=True):
        parts = tuple(part.strip() for part in (text or "").split(SEPARATOR))
        if len(parts) != len(covariates) or "" in parts:
            raise DataError(
                f"Row {row} has the cell {text or ''!r} (column {cell_id!r}), which is not made of "
                f"{len(covariates)} texts with {SEPARATOR!r} between them, as the covariates "
                f"{', '.join(covariates)} need."
            )
        cells.append(parts)
    return cells


def _options(table: Table, column: str, book: Codebook, of_row: np.ndarray) -> np.ndarray:
    """Which option each row is of, -1 where it is a missing answer."""
    options = []
    for row, text, at in zip(table.rows, table.texts(column), of_row, strict=True):
        option = book.codings[at].option(text, f"Row {row}, column {column!r}")
        if text is None or not text.strip():
            raise DataError(f"Row {row} has no option (column {column!r}); every row needs one.")
        options.append(-1 if option is None else option)
    return np.array(options, dtype=int)


def _refuse_duplicates(table: Table, item: np.ndarray, option: np.ndarray, column: str) -> None:
    first: dict[tuple[int, int], int] = {}
    pairs = zip(item.tolist(), option.tolist(), table.rows, strict=True)
    for at, (of_item, of_option, row) in enumerate(pairs):
        # Several answers may count as missing.
        where = row if of_option < 0 else first.setdefault((of_item, of_option), row)
        if where != row:
            raise DataError(
                f"Rows {where} and {row} are of the same cell, question and option "
                f"({table.texts(column)[at]}); accepted is one."
            )


def numbers_of(table: Table, column: str, kind: str) -> np.ndarray:
    """A column of numbers of zero or more.

    Raises:
        DataError: if one is missing, negative or no number; names its row and what it is.
    """
    try:
        numbers, _ = weights_of(table.texts(column), table.rows, column)
    except DataError as error:
        # The same numbers, under another name.
        sentence = str(error).replace("has the weight", f"has the {kind}").partition("; ")[0]
        raise DataError(f"{sentence}; accepted is a number of zero or more.") from error
    return numbers


def _people(table: Table, column: str, item: np.ndarray, num_items: int) -> np.ndarray:
    """How many answered each item, of which every row says the same."""
    numbers = numbers_of(table, column, "number of people")
    people = np.full(num_items, -1.0)
    people[item] = numbers
    wrong = numbers != people[item]
    if wrong.any():
        at = int(np.argmax(wrong))
        raise DataError(
            f"Row {table.rows[at]} says {numbers[at]:g} people in column {column!r}, and another "
            f"row of its cell and question {people[item[at]]:g}; accepted is one number, of those "
            "who answered the question."
        )
    return people


def _sums(table: Table, shares: np.ndarray, item: np.ndarray, column: str) -> np.ndarray:
    """Sums of the shares of each item, which are one but for rounding."""
    sums = np.bincount(item, weights=shares)
    wrong = np.abs(sums - 1) > _ROUNDING
    if wrong.any():
        at = int(np.argmax(item == np.argmax(wrong)))
        raise DataError(
            f"The shares of the cell and question of row {table.rows[at]} sum to "
            f"{sums[item[at]]:g} (column {column!r}); accepted is 1."
        )
    return sums


def _answered(items: Items, missing: float, source: str) -> Items:
    if missing > 0:
        logger.warning("%s: missing answers of %g people were left out.", source, missing)
    empty = items.people == 0
    if empty.all():
        raise DataError("Nobody answered anything; at least one item with people is needed.")
    if empty.any():
        logger.warning(
            "%s: %d of %d items have no people and were left out.", source, empty.sum(), len(empty)
        )
    return items.take(~empty)
