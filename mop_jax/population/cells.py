"""From a cell to text: as written where a file holds text, as a person would write it elsewhere.

36.0 becomes "36", a float32 of 0.1 becomes "0.1", midnight is dropped from dates, and a category is
its label. Whatever is no single value (a list, a record, bytes) is refused by its row.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd

from mop_jax.errors import DataError

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
_DECIMAL_COMMA = re.compile(r"[+-]?[0-9]+(,[0-9]+)?")
_TRUTHS = {"True": True, "TRUE": True, "true": True, "False": False, "FALSE": False, "false": False}


def cell_text(value: Any) -> str | None:
    """A cell as text; None for a missing one.

    Raises:
        TypeError: if the value is no single text, number, truth value or date.

    Example:
        >>> [cell_text(v) for v in (36.0, np.float32(0.1), Decimal("3.50"), 10**18, float("nan"))]
        ['36', '0.1', '3.5', '1000000000000000000', None]
    """
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bool | np.bool_):
        return str(bool(value))
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, float | np.floating):
        return _float_text(value)
    if isinstance(value, Decimal):
        return _decimal_text(value)
    if isinstance(value, datetime.datetime | np.datetime64):
        return _moment_text(pd.Timestamp(value))
    if isinstance(value, datetime.date | datetime.time | pd.Period):
        return str(value)
    if isinstance(value, datetime.timedelta | np.timedelta64):
        return str(pd.Timedelta(value))
    if isinstance(value, pd.Interval):
        return str(value)
    raise TypeError(type(value).__name__)


def _float_text(value: float | np.floating) -> str | None:
    if math.isnan(value):
        return None
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if value == 0:
        return "0"
    if 1e-6 <= abs(float(value)) < 1e21:
        return np.format_float_positional(value, unique=True, trim="-")
    return str(value)


def _decimal_text(value: Decimal) -> str | None:
    if value.is_nan():
        return None
    if not value.is_finite():
        return "inf" if value > 0 else "-inf"
    if value and not -6 <= value.adjusted() < 21:
        return str(value).lower()
    text = format(value, "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in ("-0", "") else text


def _moment_text(moment: pd.Timestamp) -> str | None:
    if moment is pd.NaT:
        return None
    if moment == moment.normalize() and moment.tzinfo is None:
        return moment.date().isoformat()
    return moment.isoformat(sep=" ")


def cell_texts(
    cells: Sequence[Any] | pd.Series,
    render: Callable[[Any], str | None],
    rows: Sequence[int],
    column: str,
) -> list[str | None]:
    """The texts of a column.

    Raises:
        DataError: if a cell is no single value; names its row.
    """
    # A Series iterates over Python's numbers, in which a float32 shows its rounding.
    values = cells.array if isinstance(cells, pd.Series) else cells
    texts = []
    for row, value in zip(rows, values, strict=True):
        try:
            texts.append(render(value))
        except (TypeError, ValueError) as error:
            what = f"a value of type {type(value).__name__}"
            if isinstance(value, dict):
                what = "a record"
            elif isinstance(value, list | tuple | set | np.ndarray):
                what = "a list"
            raise DataError(
                f"Row {row} holds {what} in column {column!r}; accepted are text, numbers, true or "
                "false and dates, one to a cell."
            ) from error
    return texts


def typed(texts: Sequence[str | None]) -> pd.Series:
    """Texts as numbers or truth values where all of them are such, for queries and arithmetic."""
    given = [text for text in texts if text is not None]
    if given and all(text in _TRUTHS for text in given):
        truths = [pd.NA if text is None else _TRUTHS[text] for text in texts]
        return pd.Series(truths, dtype="boolean")
    if given and all(_NUMBER.fullmatch(text.strip()) for text in given):
        if all(_WHOLE.fullmatch(text.strip()) for text in given):
            whole = [pd.NA if text is None else int(text) for text in texts]
            return pd.Series(whole, dtype="Int64")
        numbers = [pd.NA if text is None else float(text) for text in texts]
        return pd.Series(numbers, dtype="Float64")
    return pd.Series(list(texts), dtype="string")


def weights_of(
    texts: Sequence[str | None], rows: Sequence[int], column: str
) -> tuple[np.ndarray, bool]:
    """A column of weights as float64 [N], and whether decimal commas were read.

    Raises:
        DataError: if a weight is missing, no number, negative or not finite; names its row.
    """
    given = [text.strip() for text in texts if text is not None]
    with_comma = [text for text in given if "," in text]
    commas = bool(with_comma) and all(_DECIMAL_COMMA.fullmatch(text) for text in given)
    # "1,234" alone may be a thousand and more: one comma that groups no thousands decides.
    commas = commas and any(not re.search(r",\d{3}$", text) for text in with_comma)
    weights = np.ones(len(texts))
    for at, (row, text) in enumerate(zip(rows, texts, strict=True)):
        number = None if text is None else text.strip().replace(",", ".") if commas else text
        valid = number is not None and _NUMBER.fullmatch(number.strip())
        value = float(number) if valid and number is not None else math.nan
        if not (math.isfinite(value) and value >= 0):
            advice = " with a decimal point" if text is not None and "," in text else ""
            raise DataError(
                f"Row {row} has the weight {text or ''!r} (column {column!r}); accepted is a "
                f"positive number{advice}, or 0 to leave the record out."
            )
        weights[at] = value
    return weights, commas
