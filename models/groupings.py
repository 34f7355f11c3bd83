"""Groupings of records as designs: a one in the column of the level that a record is of.

A grouping is a column or a cross of columns, such as `age` or `age:education`. Its design has a
column more than there are levels: the last is of levels unseen so far.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mop_jax.errors import DataError
from mop_jax.models import checks

Array = Any  # numpy or jax array


def make_designs(
    codes: Mapping[str, Array], num_levels: Mapping[str, int], size: int, dtype: Any
) -> dict[str, np.ndarray]:
    """The design of each grouping, [N, L + 1].

    Args:
        codes: of each grouping's levels, integers [N]; −1 for a level unseen so far.
        num_levels: how many levels a grouping has; by default as many as there are here.
        size: N.
        dtype: of the designs.

    Raises:
        DataError: naming the grouping that is at fault.
    """
    designs = {}
    for name, values in codes.items():
        label = f"groups[{name!r}]"
        checked = checks.codes(label, values, size)
        levels = num_levels.get(name, int(checked.max()) + 1)
        designs[name] = make_design(label, checked, levels, dtype)
    return designs


def unknown_designs(
    designs: Mapping[str, Array], number: int, member_of: Mapping[str, Array] | None = None
) -> dict[str, np.ndarray]:
    """Designs of other records of the same groupings.

    Args:
        designs: of the records that there are.
        number: of the other records, N.
        member_of: codes of their levels, integers [N]; −1 for a level unseen so far, as all are of
            groupings that are not given.

    Raises:
        DataError: if there is no such grouping, or no such level.
    """
    member_of = member_of or {}
    for name in member_of:
        if name not in designs:
            known = ", ".join(designs) or "none"
            raise DataError(f"member_of names the grouping {name!r}; there are {known}.")
    found = {}
    for name, design in designs.items():
        label = f"member_of[{name!r}]"
        codes = checks.codes(label, member_of.get(name, np.full(number, -1)), number)
        found[name] = make_design(label, codes, design.shape[-1] - 1, design.dtype)
    return found


def make_design(name: str, codes: np.ndarray, levels: int, dtype: Any) -> np.ndarray:
    """The design of a grouping with so many levels, [N, L + 1]."""
    if (codes >= levels).any():
        raise DataError(f"{name} holds {int(codes.max())}, and there are {levels} levels.")
    design = np.zeros((len(codes), levels + 1), dtype)
    # Code −1 is the last column.
    design[np.arange(len(codes)), codes] = 1.0
    return design
