"""Names in tables that others may add to: metrics, predictors, baselines, data sets."""

from __future__ import annotations

from collections.abc import Container

from mop_jax.errors import DataError


def check_name(what: str, name: str, taken: Container[str]) -> None:
    """Refuses a name that is taken, or that cannot stand in files.

    Args:
        what: is named, such as `metric`.
        name: of it.
        taken: the names that there are.

    Raises:
        DataError: if it is taken or no plain word.
    """
    if name in taken:
        raise DataError(f"There is a {what} {name!r} already; choose another name.")
    if not name.isidentifier():
        raise DataError(
            f"A {what}'s name is {name!r}; accepted are letters, digits and underscores."
        )
