"""Quotes: which lines of a text make a record, and when a quote is only a character.

RFC 4180 where the file keeps to it. Where it does not, the lines are the records if that is
consistent; what could be either is refused by its line, for a stray quote would take other people's
lines.
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

Quoting = Literal["auto", "standard", "none"]
logger = logging.getLogger("mop_jax")

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


def first_records(text: str, separator: str, header_row: int) -> list[list[str]]:
    """The first records, read with forgiveness, to try a separator."""
    found = []
    with _any_length():
        reader = csv.reader(
            io.StringIO(text, newline=""),
            delimiter=separator,
            skipinitialspace=_skips_blanks(text, separator),
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


def read_lines(
    name: str, text: str, separator: str, quoting: Quoting, header_row: int
) -> list[Record]:
    """The records of separated text, header first, blank lines left out.

    Raises:
        DataError: if the quotes are wrong or could be read either way; names the line.
    """
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
    if quoting == "auto" and any(record.last > record.first for record in standard):
        _check_line_breaks(name, standard[header_row - 1 :], _unquoted(text, separator))
    return standard


def _check_line_breaks(name: str, records: list[Record], lines: list[Record]) -> None:
    """Refuses cells with line breaks that a stray quote may have made of other people's lines.

    Records are the header and those below it under RFC 4180, lines all lines without quoting. A
    cell is doubtful if each of its lines has as many fields as the header; prose has by chance,
    other people's lines also hold what stands in the same columns elsewhere.
    """
    by_line = {line.first: line.fields for line in lines}
    width = len(records[0].fields) if records else 0
    known: list[set[str]] = []
    for record in records[1:]:
        inside = [by_line.get(n, []) for n in range(record.first, record.last + 1)]
        if len(inside) < 2 or width < 2 or any(len(fields) != width for fields in inside):
            continue
        known = known or _known_fields(records[1:], width)
        # What stands behind the cell is the record's own; only what is before it can tell.
        before = next((i for i, f in enumerate(record.fields) if "\n" in f or "\r" in f), width)
        alike = any(
            all({fields[at], _shape(fields[at])} & known[at] for fields in inside[1:])
            for at in range(before)
        )
        if alike or _consistent(lines):
            raise DataError(
                f"{name}: the quote that opens on line {record.first} closes on line "
                f"{record.last}, yet every line by itself is a whole record too; set quoting: "
                "standard if that is one cell with line breaks, or quoting: none if quotes are "
                "ordinary characters."
            )
        if width == 2:  # one comma is soon there
            logger.warning(
                "%s: lines %d to %d are read as one record, for a quote opens on the first and "
                "closes on the last; set quoting: none if they are records of their own.",
                name,
                record.first,
                record.last,
            )


def _known_fields(records: list[Record], width: int) -> list[set[str]]:
    """Of each column the fields, and the shapes of numbers and ids, of records on one line."""
    single = [r.fields for r in records if r.first == r.last and len(r.fields) == width]
    known = [{fields[at] for fields in single} - {""} for at in range(width)]
    return [fields | ({_shape(f) for f in fields} - {""}) for fields in known]


def _shape(field: str) -> str:
    """What a number or an id looks like: "9" for 17, "a9" for r04; nothing for other fields."""
    if len(field) > 40 or not re.fullmatch(r"\S*[0-9]\S*", field):
        return ""
    return re.sub(r"[0-9]+", "9", re.sub(r"[^\W0-9_]+", "a", field))


def _standard(text: str, separator: str) -> list[Record]:
    """RFC 4180, strictly: a quoted field ends at a separator or at the end of a line."""
    text, stand_in = _with_stand_in(text)
    records = []
    with _any_length():
        reader = csv.reader(
            io.StringIO(text, newline=""),
            delimiter=separator,
            strict=True,
            skipinitialspace=_skips_blanks(text, separator),
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


def _skips_blanks(text: str, separator: str) -> bool:
    """Whether the header sets a blank behind every separator: then a quote may follow one."""
    header = text.lstrip().split("\n", 1)[0]
    return separator == " " or 0 < header.count(separator) == header.count(f"{separator} ")


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
