"""A quantity's mean and equal-tailed interval over draws."""

from __future__ import annotations

from typing import Any

import numpy as np

from mop_jax.errors import DataError


def tails(level: float) -> tuple[float, float]:
    """The quantiles between which an equal-tailed interval of this level lies.

    Raises:
        DataError: if the level is none.
    """
    if not 0 < level < 1:
        raise DataError(f"level is {level}; it must be between 0 and 1.")
    return (1 - level) / 2, (1 + level) / 2


def interval(draws: Any, level: float) -> dict[str, Any]:
    """`mean`, `low` and `high` over the first axis of `draws`."""
    values = np.asarray(draws, np.float64)
    low, high = np.quantile(values, tails(level), axis=0)
    return {"mean": values.mean(0), "low": low, "high": high}
