"""New contexts to simulate responses to: read as the run reads its own, but without responses."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mop_jax.config import PopulationConfig
from mop_jax.errors import DataError
from mop_jax.population.files import read_table
from mop_jax.population.population import Population
from mop_jax.population.records import NamedColumns, read_records
from mop_jax.population.table import Column, Table, find_column
from mop_jax.resources import resolve_path

_LINES = (".txt",)


def read_contexts(
    source: str | os.PathLike[str] | Sequence[str], section: PopulationConfig
) -> Population:
    """Contexts as records whose responses nobody looks at.

    Args:
        source: texts; a text file with a context on each line; or a table with the context columns
            of the run, from which its template makes the contexts. Without a template a table's
            context column is taken as it stands. Ids, labels and groups are read where the run
            names their columns and the table has them whole; otherwise contexts are numbered from
            1, and the gate does without what it does not know.
        section: how the run reads its population.

    Raises:
        DataError: if there are none, or one is blank, or a column is missing.
    """
    if not isinstance(source, str | os.PathLike):
        return _from_texts(list(source), "contexts, entry")
    name = os.fspath(source)
    file = resolve_path(name)
    if file.suffix.lower() in _LINES:
        return _from_texts(_lines(name, file), f"{name}, line")
    # Records of a data set by name have columns of these names.
    named_set = section.dataset is not None
    given = section.context or "context"
    columns = [given] if isinstance(given, str) else list(given)
    table = read_table(name, needed=columns)
    response = "response"
    while response in table.names:
        response += "_"
    rows = Table([*table.columns, Column(response, ["none"] * len(table))], table.rows)
    known = {
        "id": section.id if section.id in table.names else None,
        "label": _filled(rows, "label" if named_set else section.label),
        "group": _filled(rows, "group" if named_set else section.group),
    }
    named = NamedColumns(columns, response, section.template, **known)
    try:
        for column in columns:
            find_column(table.names, column)  # refused with the file's own columns
        return Population(**read_records(rows, named, None, False, name))
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def _filled(table: Table, column: str | None) -> str | None:
    """A column that knows something of every context, or None."""
    if column is None or column not in table.names:
        return None
    return column if all(text and text.strip() for text in table.texts(column)) else None


def _lines(name: str, file: Path) -> list[str]:
    try:
        # Not splitlines(): U+2028 and its like are ordinary characters of a text.
        lines = file.read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{name} could not be read as UTF-8 text: {error}.") from error
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise DataError(f"{name} holds no contexts; at least one line is needed.")
    return lines


def _from_texts(texts: list[str], where: str) -> Population:
    if not texts:
        raise DataError("There are no contexts; at least one is needed.")
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{where} {number}, is blank; accepted is a context.")
    stripped = [text.strip() for text in texts]
    ids = [str(number) for number in range(1, len(texts) + 1)]
    return Population(ids=ids, contexts=stripped, responses=["none"] * len(texts))
