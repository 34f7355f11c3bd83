"""Checks of the arrays that models are given; refusals name the array.

Raises:
    DataError: every function, naming what is at fault.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from mop_jax.errors import DataError

Array = Any  # numpy or jax array


def finite(name: str, values: Array, dtype: Any, ndim: int) -> np.ndarray:
    """Finite numbers of so many dimensions, none of them empty."""
    array = np.asarray(values, dtype)
    if array.ndim != ndim or 0 in array.shape:
        raise DataError(f"{name} must have {ndim} non-empty dimensions, not shape {array.shape}.")
    if not np.isfinite(array).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise DataError(f"{name} is {array[where]} at index {where}; it must be finite.")
    return array


def index(name: str, values: Array, shape: tuple[int, ...], size: int) -> np.ndarray:
    """Whole numbers below `size`, int32 of that shape."""
    array = np.asarray(values)
    check_shape(name, array, shape)
    if not np.issubdtype(array.dtype, np.integer) or (array < 0).any() or (array >= size).any():
        raise DataError(f"{name} must hold integers from 0 to {size - 1}.")
    return array.astype(np.int32)


def codes(name: str, values: Array, size: int) -> np.ndarray:
    """Codes int32 [size], −1 where nothing is known."""
    array = np.asarray(values)
    check_shape(name, array, (size,))
    if not np.issubdtype(array.dtype, np.integer) or (array < -1).any():
        raise DataError(f"{name} must hold integers from 0 on, or -1 where nothing is known.")
    return array.astype(np.int32)


def optional_codes(name: str, values: Array | None, size: int) -> np.ndarray | None:
    """`codes`, or None where there are none."""
    return None if values is None else codes(name, values, size)


def check_shape(name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    """Refuses another shape."""
    if array.shape != shape:
        raise DataError(f"{name} has shape {array.shape}; it must be {shape}.")


def random_key(rng_key: Any) -> None:
    """Refuses what is no random key of JAX; those of the older form, arrays of integers, are."""
    old = getattr(rng_key, "dtype", None) == np.uint32 and np.shape(rng_key) == (2,)
    dtype = getattr(rng_key, "dtype", np.dtype(float))
    if not old and not (jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) and not rng_key.shape):
        raise DataError(
            f"rng_key is {rng_key!r}; it must be one random key, such as jax.random.key(0)."
        )
