"""Keys and values of tokens that were run already.

Shape suffixes: L layers, B rows, K key/value heads, E head width, S slots of a row.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mop_jax.lm.config import DecoderConfig


class KVCache(NamedTuple):
    """Rotated keys and values of tokens already run; row b holds positions 0 … lengths[b] − 1.

    Both lie as the products of attention take them: what is cached is read as it is, not turned
    anew in every layer (a CPU spent 5 % of its time on that where prefixes are long).

    Attributes:
        keys: [L, B, K, E, S].
        values: [L, B, K, S, E].
        lengths: int32 [B], how many of the S slots are filled.
    """

    keys: Array
    values: Array
    lengths: Array

    @property
    def size(self) -> int:
        """S, slots of a row."""
        return self.values.shape[-2]

    def resized(self, size: int) -> KVCache:
        """The first `size` slots of each row, with empty ones behind where there are fewer."""
        return KVCache(_fit(self.keys, size, -1), _fit(self.values, size, -2), self.lengths)

    def rows(self, rows: Array) -> KVCache:
        """Some rows [R] of it."""
        return KVCache(self.keys[:, rows], self.values[:, rows], self.lengths[rows])


class UnstackedCache(NamedTuple):
    """A `KVCache` whose layers are arrays of their own; see `mop_jax.lm.unstacked`.

    Attributes:
        keys: L times [B, K, E, S].
        values: L times [B, K, S, E].
        lengths: int32 [B].
    """

    keys: tuple[Array, ...]
    values: tuple[Array, ...]
    lengths: Array

    @property
    def size(self) -> int:
        """S, slots of a row."""
        return self.values[0].shape[-2]


def empty_cache(config: DecoderConfig, num_rows: int, size: int, dtype: jnp.dtype) -> KVCache:
    """A cache of `num_rows` rows and `size` slots with nothing in it."""
    shape, width = (config.num_layers, num_rows, config.num_kv_heads), config.head_dim
    keys, values = jnp.zeros((*shape, width, size), dtype), jnp.zeros((*shape, size, width), dtype)
    return KVCache(keys, values, jnp.zeros(num_rows, jnp.int32))


def empty_unstacked_cache(
    config: DecoderConfig, num_rows: int, size: int, dtype: jnp.dtype
) -> UnstackedCache:
    """The same, layer by layer."""
    shape, width, layers = (num_rows, config.num_kv_heads), config.head_dim, config.num_layers
    return UnstackedCache(
        tuple(jnp.zeros((*shape, width, size), dtype) for _ in range(layers)),
        tuple(jnp.zeros((*shape, size, width), dtype) for _ in range(layers)),
        jnp.zeros(num_rows, jnp.int32),
    )


def _fit(x: Array, size: int, axis: int) -> Array:
    """The first `size` places along an axis from the end, zeros behind where there are fewer."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, max(0, size - x.shape[axis]))
    return jax.lax.slice_in_dim(jnp.pad(x, widths), 0, size, axis=axis % x.ndim)


@partial(jax.jit, static_argnames="size")
def resized_layer(keys: Array, values: Array, *, size: int) -> tuple[Array, Array]:
    """One layer of an `UnstackedCache` with `size` slots a row; see `KVCache.resized`."""
    return _fit(keys, size, -1), _fit(values, size, -2)


class Cached(NamedTuple):
    """What one layer's attention finds in a cache; read in portions, no sooner than it is used.

    Attributes:
        keys: [L, R, K, E, S], of all layers and rows of the cache.
        values: [L, R, K, S, E].
        layer: int32, whose.
        rows: int32 [B], rows of the cache that the batch's rows follow, or None for the same rows.
    """

    keys: Array
    values: Array
    layer: Array
    rows: Array | None

    def read(self, rows: Array | None) -> tuple[Array, Array]:
        """Keys [..., K, E, S] and values [..., K, S, E] of some rows [...]; of all, for None."""
        at = (self.layer,) if rows is None else (self.layer, rows)
        return self.keys[at], self.values[at]


class OwnCache(NamedTuple):
    """One layer's cache of the batch's own rows: one new token a row is put into it, then read.

    Written before it is read, it is written in place; the other way round XLA copies it first.

    Attributes:
        keys: [B, K, E, S].
        values: [B, K, S, E].
        places: int32 [B], where the new tokens go; out of range for none.
    """

    keys: Array
    values: Array
    places: Array

    def written(self, keys: Array, values: Array) -> tuple[Array, Array]:
        """The cache with the new tokens' keys [B, K, E, 1] and values [B, K, 1, E]."""
        rows = jnp.arange(len(self.places))
        # Indexed axes come first: [B, K, E].
        return (
            self.keys.at[rows, :, :, self.places].set(keys[..., 0], mode="drop"),
            self.values.at[rows, :, self.places].set(values[:, :, 0], mode="drop"),
        )
