"""Tables as survey platforms export them: headers that are question texts, rows that are headers.

Whatever is recognised is said to the logger "mop_jax". Question texts become the columns' labels,
where the labels of variables in files of statistics packages are found as well.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pandas as pd

from mop_jax.errors import DataError
from mop_jax.population.files import read_table
from mop_jax.population.records import pass_over, qualtrics_texts
from mop_jax.population.table import Table, table_of, tidy

logger = logging.getLogger("mop_jax")

# LimeSurvey's codes begin with a letter; subquestions stand in brackets: `Q1[SQ001]. Text`.
_LIMESURVEY = re.compile(r"([A-Za-z]\w*(?:\[[^\]]*\])*)\.\s+(\S.*)", re.DOTALL)
# Columns that LimeSurvey writes into every export, whatever was asked.
_LIMESURVEY_OWN = {"id", "submitdate", "lastpage", "startlanguage", "seed", "startdate", "token"}
# What Qualtrics adds to the text of a question where it has a field for other answers.
_SELECTED = re.compile(r"\s+-\s+Selected Choice$")


def read_survey(
    path: str | os.PathLike[str], *, needed: Sequence[str] = (), **options: Any
) -> Table:
    """Reads a table of answers by the file's suffix, in whichever form a survey platform wrote it.

    Args:
        path: see `mop_jax.population.read_table`.
        needed: columns that are named; of LimeSurvey's by their codes.
        **options: of `read_table`: separator, encoding, quoting, header_row, sheet, value_labels.

    Raises:
        DataError: as `read_table`.
    """
    try:
        table = read_table(path, needed=needed, **options)
    except DataError:
        # Columns are named by their codes, the file's headers are codes and texts.
        table = read_table(path, **options)
        if set(_without_texts(table).names) == set(table.names):
            raise
    return survey_table(table, os.fspath(path))


def survey_table(table: Table | pd.DataFrame, source: str = "The table") -> Table:
    """A table whose rows are answers and whose columns are named by codes.

    The question texts of Qualtrics (below the header) and of LimeSurvey (in the header, behind a
    code: `Q1. Did you vote?`) become the columns' labels. A table of another form stays as it is.

    Args:
        table: as read.
        source: the file, for what is said.

    Raises:
        DataError: if no row of answers is left.
    """
    found = table_of(table) if isinstance(table, pd.DataFrame) else table
    texts = qualtrics_texts(found)
    found = pass_over(found, None, source)
    if texts is not None:
        columns = zip(found.columns, texts, strict=True)
        labels = [c if c.label else replace(c, label=_qualtrics_text(text)) for c, text in columns]
        return Table(labels, found.rows)
    named = _without_texts(found)
    if named is not found:
        logger.warning(
            "%s: the headers are codes and question texts, as LimeSurvey exports them; columns are "
            "named by their codes, such as %s.",
            source,
            next(n for n in named.names if n not in found.names),
        )
    return named


def _qualtrics_text(text: str) -> str:
    return _SELECTED.sub("", " ".join(text.split()))


def _without_texts(table: Table) -> Table:
    """The table with LimeSurvey's codes as headers; the same one if its headers are no such."""
    matches = [_LIMESURVEY.fullmatch(tidy(name)) for name in table.names]
    codes = [match[1] for match in matches if match is not None]
    own = any(code in _LIMESURVEY_OWN for code in codes)
    # A single header such as "Q1. Why?" among others is a name as any other.
    if not codes or len(set(codes)) < len(codes) or not (own or 2 * len(codes) > len(matches)):
        return table
    columns = [
        column if match is None else replace(column, name=match[1], label=match[2])
        for column, match in zip(table.columns, matches, strict=True)
    ]
    return Table(columns, table.rows)


@contextmanager
def naming(source: str | None) -> Iterator[None]:
    """Begins the sentence of a refusal with the file that it is about."""
    try:
        yield
    except DataError as error:
        if source is None or str(error).startswith(source):
            raise
        raise DataError(f"{source}: {error}") from error
