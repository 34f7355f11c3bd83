"""Tables in text: CSV and its relatives, read so that no line is lost without a word.

The separator is the one under which the header holds the columns that the run names. Quoting is
RFC 4180's where the file keeps to it; a file that does not is read line by line where that is
consistent, and refused otherwise. Cells are texts as written; empty ones are missing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from mop_jax.errors import DataError
from mop_jax.population.quoting import Quoting, Record, first_records, read_lines
from mop_jax.population.table import Column, Table, tidy

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
        separator = check_separator(separator)
        records = read_lines(name, text, separator, quoting, header_row)
    else:
        separator, records = _guessed(name, text, usual, needed, quoting, header_row)
    if len(records) < header_row:
        raise DataError(f"{name} has {len(records)} rows, so no header in row {header_row}.")
    if header_row > 1:
        logger.warning("%s: %d rows above the header passed over.", name, header_row - 1)
    _advise_header_row(name, text, {separator, usual or ","}, needed, header_row)
    return _table(name, records[header_row - 1 :], needed)


def _advise_header_row(
    name: str, text: str, separators: set[str], needed: Sequence[str], header_row: int
) -> None:
    """Refuses titles above the header, where the columns that are needed stand in a later row."""
    wanted = {tidy(column) for column in needed}
    for separator in separators:
        for row, fields in enumerate(first_records(text, separator, header_row), start=1):
            if not wanted or not wanted <= {tidy(field) for field in fields}:
                continue
            if row > header_row:
                raise DataError(
                    f"{name} holds the columns in row {row}, below {row - header_row} others; set "
                    f"header_row: {row}."
                )
            return


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
        header = first_records(text, candidate, header_row)
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
    records = read_lines(name, text, best, quoting, header_row)
    if best != usual:
        logger.warning(
            "%s is read with the separator %s; set separator if that is wrong.", name, _show(best)
        )
    return best, records


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
        logger.warning(
            "%s: %d of %d rows hold no text and were left out.", name, empty, len(records) - 1
        )
    if short:
        logger.warning(
            "%s: fewer fields than in the header in %d of %d rows (the first on line %d); the "
            "last columns are missing there.",
            name,
            len(short),
            len(records) - 1,
            short[0],
        )
    if not rows:
        raise DataError(f"{name} holds a header but no records; at least one is needed.")
    columns = [Column(n, column) for n, column in zip(names, cells, strict=True)]
    return Table(columns, rows)
