"""Workbooks (Excel) and the files of statistics packages (Stata, SPSS, SAS), by the `survey` extra.

Coded answers become their value labels, so that a file reads as the questionnaire did; missing
codes are missing.
"""

from __future__ import annotations

import importlib
import logging
import re
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mop_jax.errors import DataError
from mop_jax.population.cells import cell_text
from mop_jax.population.encodings import check_encoding
from mop_jax.population.table import Column, Table, tidy

logger = logging.getLogger("mop_jax")

EXCEL = (".xlsx", ".xlsm")
_READERS = {
    ".dta": "read_dta",
    ".sav": "read_sav",
    ".zsav": "read_sav",
    ".por": "read_por",
    ".sas7bdat": "read_sas7bdat",
    ".xpt": "read_xport",
}
STATISTICS = tuple(_READERS)


def _optional(name: str, module: str, kind: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(
            f"{name} is {kind}, and reading it needs {module}: pip install 'mop-jax[survey]'"
        ) from error


def read_excel(
    name: str, file: Path, *, sheet: str | int | None, needed: Sequence[str], header_row: int
) -> Table:
    """A sheet of a workbook; by default the only one that holds the columns that are needed.

    Args:
        name: the file, for refusals and what is said.
        file: its path.
        sheet: name, or number from 1.
        needed: columns that the run names.
        header_row: which row that is not empty holds the headers.

    Raises:
        DataError: if the workbook cannot be read, or no or several sheets would do.
    """
    openpyxl = _optional(name, "openpyxl", "an Excel workbook")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of styles and validations, which hold no answers
            book = openpyxl.load_workbook(file, read_only=True, data_only=True)
            sheets = {s.title: _rows(s) for s in book.worksheets if _is_wanted(book, s, sheet)}
            titles = [s.title for s in book.worksheets]
            book.close()
    except Exception as error:  # zipfile, xml and openpyxl have their own families
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error) else repr(error)
        raise DataError(f"{name} could not be read as an Excel workbook: {reason}.") from error
    if sheet is not None and not sheets:
        raise DataError(f"{name} has no sheet {sheet!r}; the sheets are: {', '.join(titles)}.")
    full = {title: rows for title, rows in sheets.items() if len(rows) >= header_row}
    if not full:
        raise DataError(f"{name} is empty; at least one record is needed.")
    wanted = {tidy(column) for column in needed}
    headers = {t: {tidy(_header(c)) for c in rows[header_row - 1]} for t, rows in full.items()}
    fitting = [title for title in full if wanted <= headers[title]]
    if len(fitting) > 1 and len(full) > 1:
        if not wanted:
            fitting = fitting[:1]
        else:
            raise DataError(
                f"{name} holds the columns in several sheets ({', '.join(fitting)}); set sheet."
            )
    if not fitting and wanted:
        _advise_header_row(name, full, wanted, header_row)
    chosen = fitting[0] if fitting else next(iter(full))
    if sheet is None and len(titles) > 1:
        logger.warning("%s: the sheet %r is read; set sheet for another.", name, chosen)
    if header_row > 1:
        logger.warning("%s: %d rows above the header passed over.", name, header_row - 1)
    return _sheet_table(name, full[chosen][header_row - 1 :])


def _advise_header_row(
    name: str, sheets: dict[str, list[list[Any]]], wanted: set[str], header_row: int
) -> None:
    """Refuses titles above the header, where the columns that are needed stand in a later row."""
    for title, rows in sheets.items():
        for row, cells in enumerate(rows[: header_row + 50], start=1):
            if row > header_row and wanted <= {tidy(_header(cell)) for cell in cells}:
                raise DataError(
                    f"{name} holds the columns in row {row} of the sheet {title!r}; set "
                    f"header_row: {row}."
                )


def _is_wanted(book: Any, candidate: Any, sheet: str | int | None) -> bool:
    if sheet is None:
        return candidate.sheet_state == "visible"
    return candidate.title == sheet or book.worksheets.index(candidate) + 1 == sheet


def _rows(sheet: Any) -> list[list[Any]]:
    """The rows that are not empty, as long as their last cell that is not."""
    sheet.reset_dimensions()  # what writers say about them is not always true
    rows = []
    for cells in sheet.iter_rows():
        values = [_excel_value(cell) for cell in cells]
        while values and values[-1] is None:
            values.pop()
        if values:
            rows.append(values)
    return rows


def _excel_value(cell: Any) -> Any:
    value = cell.value
    if value is None or getattr(cell, "data_type", "") == "e":  # such as #N/A
        return None
    if isinstance(value, str):
        return _unescape(value)
    if isinstance(value, float):
        # Excel computes with, and shows, fifteen digits.
        value = float(f"{value:.15g}")
    form = cell.number_format
    if isinstance(value, int | float) and re.fullmatch(r"0{2,}", str(form)) and value == int(value):
        return f"{int(value):0{len(form)}d}"
    return value


def _unescape(text: str) -> str:
    return re.sub(r"_x([0-9A-Fa-f]{4})_", lambda m: chr(int(m.group(1), 16)), text) or ""


def _excel_text(value: Any) -> str | None:
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    return cell_text(value)


def _header(value: Any) -> str:
    return _excel_text(value) or ""


def _sheet_table(name: str, rows: list[list[Any]]) -> Table:
    width = max(map(len, rows))
    names = [_header(value) for value in rows[0]]
    names += [""] * (width - len(names))
    names = [n if tidy(n) else f"Unnamed: {at}" for at, n in enumerate(names)]
    if len(rows) == 1:
        raise DataError(f"{name} holds a header but no records; at least one is needed.")
    cells = [[row[at] if at < len(row) else None for row in rows[1:]] for at in range(width)]
    columns = [
        Column(n, pd.Series(values, dtype=object), _excel_text)
        for n, values in zip(names, cells, strict=True)
    ]
    return Table(columns, list(range(1, len(rows))))


def read_statistics(
    name: str, file: Path, kind: str, *, encoding: str | None, value_labels: bool
) -> Table:
    """A file of Stata, SPSS or SAS.

    Args:
        name: the file, for refusals.
        file: its path.
        kind: its suffix.
        encoding: of its texts, if not as the file says.
        value_labels: whether codes become their labels; those without a label stay numbers.

    Raises:
        DataError: if it cannot be read.
    """
    module = _optional(name, "pyreadstat", "a file of a statistics package")
    reader = getattr(module, _READERS[kind])
    options: dict[str, Any] = {} if kind in (".por",) else {"encoding": encoding}
    if encoding is not None:
        check_encoding(encoding)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            df, meta = reader(str(file), **options)
    except Exception as error:  # pyreadstat has its own family of errors
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error) else repr(error)
        raise DataError(f"{name} could not be read: {reason}.") from error
    if df.empty:
        raise DataError(f"{name} holds no records; at least one is needed.")
    labels = meta.variable_value_labels
    missing = _missing_ranges(reader, file, options) if kind in (".sav", ".zsav") else {}
    columns = [
        Column(
            str(key),
            df.iloc[:, at],
            partial(_labelled, (value_labels and labels.get(key)) or {}),
            meta.column_names_to_labels.get(key) or "",
            _valid_labels(labels.get(key) or {}, missing.get(key, ()), kind),
        )
        for at, key in enumerate(df.columns)
    ]
    return Table(columns, list(range(1, len(df) + 1)))


def _missing_ranges(reader: Any, file: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Which codes stand for missing answers; SPSS says so only where it is asked to keep them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, meta = reader(str(file), metadataonly=True, user_missing=True, **options)
    return meta.missing_ranges


def _valid_labels(labels: dict[Any, str], missing: Sequence[Any], kind: str) -> dict[Any, str]:
    """The value labels of codes that are answers, in the order of the codes where they are numbers.

    Stata's missing codes .a to .z come as letters.
    """
    valid = {
        code: label
        for code, label in labels.items()
        if label.strip()
        and not (kind == ".dta" and isinstance(code, str))
        and not any(_is_within(code, part) for part in missing)
    }
    if all(isinstance(code, int | float) for code in valid):
        return dict(sorted(valid.items()))
    return valid


def _is_within(code: Any, part: Any) -> bool:
    if not isinstance(part, dict):
        return code == part
    try:
        return part["lo"] <= code <= part["hi"]
    except TypeError:  # a text beside numbers
        return False


def _labelled(labels: dict[Any, str], value: Any) -> str | None:
    if value is None or value is pd.NaT or (isinstance(value, float) and np.isnan(value)):
        return None
    label = labels.get(value)
    return cell_text(value) if label is None or not label.strip() else label
