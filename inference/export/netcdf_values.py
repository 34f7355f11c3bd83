"""Texts, names and attributes as NetCDF and ArviZ can hold them."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mop_jax.errors import DataError


def statistics_of(
    texts: np.ndarray, statistics: Mapping[str, Callable[[str], float]]
) -> dict[str, np.ndarray]:
    """Every statistic of every text, float64 [N] each."""
    return {
        name: np.asarray([number(text) for text in texts], float)
        for name, number in statistics.items()
    }


def storable_texts(argument: str, texts: Sequence[str], size: int) -> np.ndarray:
    """`size` texts as NetCDF can hold them; `argument` is named where there are not as many."""
    if isinstance(texts, str) or len(texts) != size:
        found = "one text" if isinstance(texts, str) else f"{len(texts)} texts"
        raise DataError(f"{argument} holds {found}; data has {size} records.")
    return np.asarray([storable(str(text)) for text in texts], object)


def storable(text: str) -> str:
    """A text as NetCDF can hold it."""
    # NetCDF's texts end at a zero character, and must be valid Unicode.
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()


def variable_names(
    samples: Iterable[str], dims: Mapping[str, list[str]], others: Iterable[str] = ()
) -> dict[str, str]:
    """Names of the sites' variables: their own, unless a dimension or another variable has it."""
    dimensions = {"chain", "draw", *(dim for named in dims.values() for dim in named)}
    taken = {
        **dict.fromkeys(others, "another variable"),
        **dict.fromkeys(dimensions, "a dimension"),
    }
    names = {name: f"site_{name}" if name in taken else name for name in samples}
    for name, variable in names.items():
        if name != variable:
            warnings.warn(
                f"Site {name!r} has the name of {taken[name]}; it is exported as {variable!r}.",
                stacklevel=3,
            )
    return names


def coordinate(argument: str, names: Sequence[Any] | None, size: int) -> list[Any]:
    """A dimension's entries, all texts, all integers or all floats; 0 … `size`−1 by default."""
    if names is None:
        return list(range(size))
    if isinstance(names, str) or len(names) != size:
        found = "one text" if isinstance(names, str) else f"{len(names)} names"
        raise DataError(f"{argument} holds {found}; the dimension has {size} entries.")
    plain = [name.item() if isinstance(name, np.generic) else name for name in names]
    for kind in (str, int, float):
        if all(isinstance(name, kind) and not isinstance(name, bool) for name in plain):
            return [storable(name) for name in plain] if kind is str else plain
    return [storable(str(name)) for name in plain]


def attribute_name(name: Any) -> str:
    """A name that NetCDF accepts for an attribute."""
    if not str(name) or "\0" in str(name):
        raise DataError(f"An attribute's name is {name!r}; it must be a text that is not empty.")
    return str(name)


def attribute(value: Any) -> str | int | float:
    """`value` as NetCDF can hold it: text, a number, or else its JSON."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, str) and "\0" not in value:
        return storable(value)
    if isinstance(value, float) or (type(value) is int and abs(value) < 2**63):
        return value
    return json.dumps(_jsonable(value), ensure_ascii=False)


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _jsonable(v) for k, v in value.items()}
    if isinstance(value, set | frozenset):
        value = sorted(value, key=str)
    if isinstance(value, list | tuple):
        return [_jsonable(v) for v in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return _jsonable(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no NaN
    if value is None or isinstance(value, str | int | float):
        return value
    return str(value)
