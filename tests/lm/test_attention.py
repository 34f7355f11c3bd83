"""Packing and attention against loops over rows, heads and queries."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mop_jax.lm.attention import (
    attend,
    attend_one,
    attention_bias,
    extension_mask,
    pack,
    within_window,
)
from mop_jax.lm.cache import Cached


@given(
    lengths=st.lists(st.integers(0, 7), min_size=1, max_size=9),
    spare=st.integers(0, 5),
)
@settings(max_examples=60)
def test_packing_goes_there_and_back(lengths, spare):
    lengths[0] = max(lengths[0], 1)
    length, total = max(lengths), sum(lengths)
    packing = pack(jnp.asarray(lengths), length, total + spare)
    rows = np.arange(len(lengths) * length).reshape(len(lengths), length)
    real = np.arange(length) < np.asarray(lengths)[:, None]
    packed = rows.reshape(-1)[np.asarray(packing.slots)]
    np.testing.assert_array_equal(packed[:total], rows[real])
    np.testing.assert_array_equal(packed[np.asarray(packing.tokens)][real], rows[real])
    assert packing.slots.shape == (total + spare,)


def naive_attention(q, keys, values, mask, scale, cap):
    """Float64, one query at a time."""
    q, keys, values = (x.astype(np.float64) for x in (q, keys, values))
    batch, length, num_heads, _ = q.shape
    group = num_heads // keys.shape[2]
    out = np.zeros(q.shape)
    for b in range(batch):
        for t in range(length):
            seen = mask[b, t]
            for h in range(num_heads):
                scores = scale * keys[b, seen, h // group] @ q[b, t, h]
                if cap is not None:
                    scores = cap * np.tanh(scores / cap)
                weights = np.exp(scores - scores.max())
                out[b, t, h] = weights @ values[b, seen, h // group] / weights.sum()
    return out


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("window", [1000, 4])
@pytest.mark.parametrize(("num_cached", "length"), [(0, 5), (7, 5), (7, 1), (0, 1)])
def test_attention_against_a_loop(num_cached, length, window, cap):
    rng = np.random.default_rng(0)
    batch, num_kv_heads, group, width = 3, 2, 3, 5

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    q = 3 * normal(batch, length, num_kv_heads * group, width)
    cached = tuple(normal(batch, num_cached, num_kv_heads, width) for _ in range(2))
    new = tuple(normal(batch, length, num_kv_heads, width) for _ in range(2))
    offsets = np.minimum([0, 3, 7], num_cached)
    lengths = np.maximum(np.asarray([5, 2, 1]) - (5 - length), 1)
    positions = offsets[:, None] + np.arange(length)
    mask = extension_mask(jnp.asarray(offsets), jnp.asarray(lengths), num_cached, length)
    mask = np.asarray(mask & within_window(jnp.asarray(positions), num_cached, window))
    real = np.arange(length) < lengths[:, None]
    # As caches lie: keys [B, K, E, S] and values [B, K, S, E].
    before, behind = (
        (keys.transpose(0, 2, 3, 1), values.transpose(0, 2, 1, 3)) for keys, values in (cached, new)
    )
    if length == 1:
        bias = attention_bias(jnp.asarray(mask), group)
        found = np.asarray(attend_one(q, before, behind, bias, 0.4, cap))
    else:
        # The second of two layers of a cache: its rows as they are, or found among others.
        rows = jnp.asarray([1, 4, 3])
        whole = (jnp.stack([jnp.full_like(x, 9), x]) for x in before)
        same = Cached(*whole, jnp.int32(1), None)
        among = np.full((2, 2, 5, *before[0].shape[1:]), 9, np.float32)
        among_keys, among_values = among[0], among[1].swapaxes(-1, -2)
        among_keys[1, rows], among_values[1, rows] = before
        other = Cached(jnp.asarray(among_keys), jnp.asarray(among_values), jnp.int32(1), rows)
        found = np.asarray(attend(q, same, behind, mask, 0.4, cap))
        # At once; in portions of one row; of two, and a rest of one.
        for most in (None, 1, 4 * num_kv_heads * group * mask[:2].size):
            for cache in (same, other):
                parts = attend(q, cache, behind, mask, 0.4, cap, most)
                np.testing.assert_allclose(parts, found, atol=1e-6)
    keys, values = (np.concatenate([c, n], axis=1) for c, n in zip(cached, new))
    # A real token sees at least itself; padding sees nothing of use, and gives no NaN.
    assert mask[real].any(axis=-1).all()
    assert np.isfinite(found).all()
    seen = mask | ~mask.any(axis=-1, keepdims=True)
    expected = naive_attention(q, keys, values, seen, 0.4, cap)
    np.testing.assert_allclose(found[real], expected[real], atol=2e-6)
    if window < 1000 and num_cached:
        assert (mask.sum(axis=-1)[real] < positions[real] + 1).any()


def test_masks_come_from_positions():
    """Slot by slot: the row has 2 of 3 cached tokens and 2 real ones of 3 new."""
    mask = np.asarray(extension_mask(jnp.asarray([2]), jnp.asarray([2]), 3, 3)[0])
    expected = [[1, 1, 0, 1, 0, 0], [1, 1, 0, 1, 1, 0], [1, 1, 0, 1, 1, 0]]
    np.testing.assert_array_equal(mask, np.asarray(expected, bool))
    # A window of two: each token sees itself and the one before, across the gap in the cache.
    near = np.asarray(within_window(jnp.asarray([[2, 3, 4]]), 3, 2)[0])
    expected = [[0, 1, 0, 1, 0, 0], [0, 0, 0, 1, 1, 0]]
    np.testing.assert_array_equal((mask & near)[:2], np.asarray(expected, bool))
