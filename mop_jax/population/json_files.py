"""Records in JSON: one object a line, or one list of objects. Numbers keep the digits written."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pandas as pd

from mop_jax.errors import DataError
from mop_jax.population.cells import cell_text
from mop_jax.population.table import Column, Table


class _Object(dict[str, Any]):
    """A JSON object that remembers which of its names stand there more than once."""

    repeated: tuple[str, ...] = ()


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    made = _Object(pairs)
    if len(made) < len(pairs):
        made.repeated = tuple(n for n, k in Counter(n for n, _ in pairs).items() if k > 1)
    return made


def _loads(text: str) -> Any:
    return json.loads(
        text,
        object_pairs_hook=_object,
        parse_float=Decimal,
        parse_int=_whole,
        parse_constant=_constant,
    )


def _whole(digits: str) -> int | str:
    # Python refuses to make longer ones; nobody calculates with them.
    return int(digits) if len(digits) < 1000 else digits


def _constant(name: str) -> float | None:
    return None if name == "NaN" else float(name)


def read_json(name: str, text: str, needed: Sequence[str] = ()) -> Table:
    """A list of objects; or an object that holds one such list; or pandas' objects of columns.

    Args:
        name: the file, for refusals.
        text: its content.
        needed: columns that the run names; they tell columns of rows from rows of columns.

    Raises:
        DataError: if the text is neither, nor JSON Lines.
    """
    try:
        content = _loads(text)
    except json.JSONDecodeError as error:
        if "Extra data" in error.msg:  # one object a line, whatever the suffix says
            return read_json_lines(name, text)
        raise DataError(
            f"{name}, line {error.lineno}, column {error.colno}, is not JSON: {error.msg}."
        ) from error
    except RecursionError:
        raise DataError(f"{name} is nested too deeply to hold records.") from None
    if isinstance(content, dict):
        records = _transposed(content, needed)
        if records is not None:
            return _table(name, records, list(range(1, len(records) + 1)))
        lists = [key for key, value in content.items() if _is_records(value)]
        if len(lists) != 1:
            if content and not any(isinstance(v, list | dict) for v in content.values()):
                return _table(name, [content], [1])
            found = f" (it has {', '.join(map(repr, lists))})" if lists else ""
            raise DataError(
                f"{name} is an object; accepted is a list of records [{{…}}, {{…}}], or an object "
                f"with one such list{found}."
            )
        content = content[lists[0]]
    if not isinstance(content, list):
        raise DataError(f"{name} is no list of records; accepted is [{{…}}, {{…}}].")
    return _table(name, content, list(range(1, len(content) + 1)))


def _transposed(content: dict[str, Any], needed: Sequence[str]) -> list[Any] | None:
    """Records from {column: {row: value}}, or from {row: {column: value}}."""
    inner = list(content.values())
    if not needed or not all(isinstance(v, dict) and v.keys() == inner[0].keys() for v in inner):
        return None
    if inner and set(needed) <= inner[0].keys():
        return inner
    if not set(needed) <= content.keys():
        return None
    return [{name: content[name][row] for name in content} for row in inner[0]]


def _is_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


def read_json_lines(name: str, text: str) -> Table:
    """One object a line.

    Raises:
        DataError: if a line is none.
    """
    records, lines = [], []
    # Not splitlines(): U+2028 and its like are ordinary characters inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = _loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            reason = getattr(error, "msg", "nested too deeply")
            raise DataError(f"{name}, line {number}, is not JSON: {reason}.") from error
        if not isinstance(record, dict):
            raise DataError(f"{name}, line {number}, is not a JSON object; accepted is one a line.")
        records.append(record)
        lines.append(number)
    return _table(name, records, lines)


def _table(name: str, records: list[Any], places: list[int]) -> Table:
    for place, record in zip(places, records, strict=True):
        if not isinstance(record, dict):
            raise DataError(
                f"{name}, record {place}, is not an object; accepted is [{{…}}, {{…}}]."
            )
    if not records:
        raise DataError(f"{name} holds no records; at least one is needed.")
    names = list(dict.fromkeys(key for record in records for key in record))
    columns = []
    for key in names:
        cells = [record.get(key) for record in records]
        columns.append(Column(key, pd.Series(cells, dtype=object), _text))
    # A name that an object holds twice becomes two columns, so that naming it is refused.
    repeated = {key for record in records for key in getattr(record, "repeated", ())}
    columns += [Column(key, [None] * len(records)) for key in names if key in repeated]
    return Table(columns, list(range(1, len(records) + 1)))


def _text(value: Any) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    return cell_text(value)
