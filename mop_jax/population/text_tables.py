"""Tables in text: CSV and its relatives, read so that no line is lost without a word.

The separator is the one under which the header holds the columns that the run names. Quoting is
RFC 4180's where the file keeps to it; a file that does not is read line by line where that is
consistent, and refused otherwise. Cells are texts as written; empty ones are missing.
"""

from __future__ import annotations

import csv
import io
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

from mop_jax.errors import DataError
from mop_jax.population.table import Column, Table, tidy

Quoting = Literal["auto", "standard", "none"]
logger = logging.getLogger("mop_jax")

_NAMED = {
    "comma": ",",
    "semicolon": ";",
    "tab": "\t",
    "\\t": "\t",
    "pipe": "|",
    "colon": ":",
    "blank": " ",
    "space": " ",
}
_SPOKEN = {"\t": "tab", " ": "blank"}
_GUESSES = (",", ";", "\t", "|")
_RETURN = "\r"


class Record(NamedTuple):
    """The fields of a record, and the lines of the file that it takes (from 1)."""

    fields: list[str]
    first: int
    last: int


class _Malformed(Exception):
    """The text does not keep to the quoting; on which line."""

    def __init__(self, line: int, reason: str):
        self.line, self.reason = line, reason
        super().__init__(reason)


def check_separator(separator: str) -> str:
    """One character, or its name.

    Raises:
        DataError: if it is neither.
    """
    found = _NAMED.get(separator.strip().lower() or separator, separator)
    if len(found) != 1 or found in '"\n\r':
        raise DataError(
            f"The separator {separator!r} is not accepted; accepted is one character, such as ; or "
            f"|, or a name ({', '.join(n for n in _NAMED if n.isalpha())})."
        )
    return found


def read_text_table(
    name: str,
    text: str,
    *,
    separator: str | None,
    usual: str | None,
    needed: Sequence[str],
    quoting: Quoting = "auto",
    header_row: int = 1,
) -> Table:
    """Reads separated text.

    Args:
        name: the file, for refusals and what is said.
        text: its content.
        separator: between fields; guessed by default.
        usual: the separator that the file's suffix promises.
        needed: columns that the run names; the separator under which they are there is right.
        quoting: "standard", where a field between double quotes may hold separators and line breaks
            and "" is a quote; "none", where a quote is a character as any other; or "auto".
        header_row: which line holds the headers, blank ones not counted; those before are passed
            over.

    Raises:
        DataError: if the text is no such table; names the line.
    """
    text, said = _without_hint(text)
    if separator is None and said is not None:
        separator = said
        logger.warning("%s: its first line names the separator %s.", name, _show(said))
    if separator is not None:
        records = _records(name, text, check_separator(separator), quoting, usual)
    else:
        separator, records = _guessed(name, text, usual, needed, quoting, header_row)
    if len(records) < header_row:
        raise DataError(f"{name} has {len(records)} rows, so no header in row {header_row}.")
    if header_row > 1:
        logger.warning("%s: %d rows above the header passed over.", name, header_row - 1)
    return _table(name, records[header_row - 1 :], needed)


def _show(separator: str) -> str:
    return _SPOKEN.get(separator, repr(separator))


def _without_hint(text: str) -> tuple[str, str | None]:
    """The text without Excel's first line "sep=;", and what it says."""
    first, newline, rest = text.partition("\n")
    hint = first.rstrip("\r").strip('"')
    if hint.startswith("sep=") and len(hint) == 5:
        # The line stays as a blank one, so that lines keep their numbers.
        return newline + rest, hint[4]
    return text, None


def _guessed(
    name: str,
    text: str,
    usual: str | None,
    needed: Sequence[str],
    quoting: Quoting,
    header_row: int,
) -> tuple[str, list[Record]]:
    """The separator under which the header holds what is needed and the rows agree with it."""
    candidates = [s for s in dict.fromkeys((usual, *_GUESSES)) if s is not None]
    if usual is None:
        candidates.append(" ")
    wanted = {tidy(column) for column in needed}
    ranked = []
    for order, candidate in enumerate(candidates):
        header = _first_records(text, candidate, header_row)
        if len(header) < header_row:
            continue
        names = [tidy(field) for field in header[header_row - 1]]
        widths = [len(fields) for fields in header[header_row:]]
        agree = sum(width == len(names) for width in widths) / max(len(widths), 1)
        # A word of a sentence can be a header by accident; agreement of the rows decides then.
        rank = (len(wanted & set(names)), len(names) > 1, agree > 0.9, -order)
        if candidate == usual and wanted <= set(names) and len(names) > 1:
            rank = (len(wanted) + 1, True, True, 0)
        ranked.append((rank, candidate))
    best = max(ranked)[1] if ranked else usual or ","
    records = _records(name, text, best, quoting, usual)
    if best != usual:
        logger.warning(
            "%s is read with the separator %s; set separator if that is wrong.", name, _show(best)
        )
    return best, records


def _first_records(text: str, separator: str, header_row: int) -> list[list[str]]:
    """The first records, read with forgiveness, to try a separator."""
    found = []
    with _any_length():
        reader = csv.reader(
            io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=separator == " "
        )
        try:
            for fields in reader:
                if any(field.strip() for field in fields):
                    found.append(fields)
                if len(found) >= header_row + 50:
                    break
        except csv.Error:
            pass
    return found


def _records(
    name: str, text: str, separator: str, quoting: Quoting, usual: str | None
) -> list[Record]:
    if quoting == "none":
        return _unquoted(text, separator)
    try:
        standard = _standard(text, separator)
    except _Malformed as error:
        if quoting == "standard":
            raise DataError(f"{name} is malformed on line {error.line}: {error.reason}.") from error
        lines = _unquoted(text, separator)
        if _consistent(lines) and (separator == "\t" or not _has_quoted(lines)):
            logger.warning(
                "%s: quotes are read as ordinary characters, for on line %d %s; set quoting to "
                "decide otherwise.",
                name,
                error.line,
                error.reason,
            )
            return lines
        raise DataError(
            f"{name} is malformed on line {error.line}: {error.reason}; mend the quote there, or "
            "set quoting: none if quotes are ordinary characters in this file."
        ) from error
    broken = next((r for r in standard if r.last > r.first), None)
    if broken is None or quoting == "standard":
        return standard
    lines = _unquoted(text, separator)
    if _consistent(lines):
        raise DataError(
            f"{name}: the quote that opens on line {broken.first} closes on line {broken.last}, "
            "yet every line by itself is a whole record too; set quoting: standard if that is one "
            "cell with line breaks, or quoting: none if quotes are ordinary characters."
        )
    return standard


def _standard(text: str, separator: str) -> list[Record]:
    """RFC 4180, strictly: a quoted field ends at a separator or at the end of a line."""
    text, stand_in = _with_stand_in(text)
    records = []
    with _any_length():
        reader = csv.reader(
            io.StringIO(text, newline=""),
            delimiter=separator,
            strict=True,
            skipinitialspace=separator == " ",
        )
        first = 1
        try:
            for fields in reader:
                if stand_in:
                    fields = [field.replace(stand_in, _RETURN) for field in fields]
                records.append(Record(fields, first, reader.line_num))
                first = reader.line_num + 1
        except csv.Error as error:
            if "end of data" in str(error):
                reason = "a quote opens a cell and is never closed"
            elif "expected after" in str(error):
                reason = "a quote opens a cell, and where it closes the cell goes on"
            else:
                reason = str(error)
            raise _Malformed(first, reason) from error
    return [record for record in records if not _is_blank(record)]


def _unquoted(text: str, separator: str) -> list[Record]:
    lines = text.split("\n") if "\n" in text else text.split("\r")
    records = []
    for number, line in enumerate(lines, start=1):
        line = line.removesuffix("\r")
        # Of blanks between fields any number is one.
        fields = line.split() if separator == " " else line.split(separator)
        records.append(Record(fields, number, number))
    return [record for record in records if not _is_blank(record)]


def _is_blank(record: Record) -> bool:
    return not record.fields or (len(record.fields) == 1 and not record.fields[0].strip())


def _consistent(lines: Sequence[Record]) -> bool:
    return len({len(line.fields) for line in lines}) == 1 and len(lines[0].fields) > 1


def _has_quoted(lines: Sequence[Record]) -> bool:
    return any(
        len(field) > 1 and field.startswith('"') and field.endswith('"')
        for line in lines
        for field in line.fields
    )


def _with_stand_in(text: str) -> tuple[str, str]:
    """A lone carriage return inside a cell ends no line where lines end in line feeds."""
    if "\n" not in text or "\r" not in text.replace("\r\n", ""):
        return text, ""
    stand_in = next(c for c in map(chr, range(0xE000, 0xF900)) if c not in text)
    return re.sub(r"\r(?!\n)", stand_in, text), stand_in


@contextmanager
def _any_length() -> Iterator[None]:
    """Lifts the csv module's bound on the length of a field, for a while."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _table(name: str, records: list[Record], needed: Sequence[str]) -> Table:
    # A header without text is named as pandas names it.
    names = [
        field if tidy(field) else f"Unnamed: {at}" for at, field in enumerate(records[0].fields)
    ]
    width = len(names)
    rows, empty, short = [], 0, []
    cells: list[list[str | None]] = [[] for _ in names]
    wanted = {tidy(column) for column in needed}
    last = max((at for at, field in enumerate(names) if tidy(field) in wanted), default=0)
    for row, record in enumerate(records[1:], start=1):
        fields = record.fields
        if any(field.strip() for field in fields[width:]):
            raise DataError(
                f"{name} is malformed: line {record.first} has more fields than its header "
                f"({len(fields)} and {width})."
            )
        if not any(field.strip() for field in fields):
            empty += 1
            continue
        if len(fields) < width:
            if len(fields) <= last:
                raise DataError(
                    f"{name} is malformed: line {record.first} has {len(fields)} of {width} "
                    f"fields, none for the column {names[last]!r}; a line break inside a cell "
                    "must stand between quotes."
                )
            short.append(record.first)
        rows.append(row)
        for at, column in enumerate(cells):
            column.append((fields[at] or None) if at < len(fields) else None)
    if empty:
        logger.warning("%s: %d rows without any text were left out.", name, empty)
    if short:
        logger.warning(
            "%s: %d rows have fewer fields than the header (the first on line %d); the last "
            "columns are missing there.",
            name,
            len(short),
            short[0],
        )
    if not rows:
        raise DataError(f"{name} holds a header but no records; at least one is needed.")
    columns = [Column(n, column) for n, column in zip(names, cells, strict=True)]
    return Table(columns, rows)
