"""Attention of new tokens over cached ones and themselves, with rotary positions.

The products before and after attention run over the real tokens of a batch, packed one behind the
other [N, ·]; attention itself needs a row for each sequence [B, T, ·]. `Packing` goes back and
forth, so that padding costs a little attention and no matrix products. Masks come from absolute
positions and lengths, never from padding ids.

Shape suffixes: B rows, T new tokens a row, N packed tokens, S cached tokens, L layers, H query
heads, K key/value heads, G = H / K query heads per key head, E head width, D hidden width.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from mop_jax.lm.cache import Cached, OwnCache
from mop_jax.lm.config import DecoderConfig
from mop_jax.lm.layers import Turned, Weights, joined, linear, norm, product
from mop_jax.lm.planning import by_backend

# Finite, so that a fully masked row (a padded row with an empty cache) stays free of NaN.
MASKED = -1e30
# Bytes of scores at a time, about. Measured on a CPU: what a portion gathers from the cache and
# computes then stays in the processor's caches, and much larger blocks take three times as long, as
# the system clears their pages anew for each.
SCORES = {"cpu": 2**22}
SCORES_ACCELERATOR = 2**30


class Packing(NamedTuple):
    """Where the real tokens of rows [B, T] stand when packed one behind the other.

    Attributes:
        slots: int32 [N], place in the flattened rows of each packed token.
        tokens: int32 [B, T], packed place of each row's tokens; its last one's for padding.
    """

    slots: Array
    tokens: Array


def pack(lengths_b: Array, length: int, num_tokens: int) -> Packing:
    """The packing of rows with the given lengths; their sum must not exceed `num_tokens`."""
    ends = jnp.cumsum(lengths_b)
    starts = ends - lengths_b
    places = jnp.arange(num_tokens)
    rows = jnp.minimum((places[:, None] >= ends).sum(axis=1), len(lengths_b) - 1)
    slots = rows * length + places - starts[rows]
    # Padding repeats its own row's last token: what is not finite in one row stays there.
    tokens = jnp.minimum(starts[:, None] + jnp.arange(length), ends[:, None] - 1)
    return Packing(
        jnp.minimum(slots, len(lengths_b) * length - 1), jnp.clip(tokens, 0, num_tokens - 1)
    )


class Context(NamedTuple):
    """What the layers need to know of a batch besides its residual stream.

    Attributes:
        rows: int32 [B] rows of the cache that the batch's rows follow, or None for the same rows.
        positions: int32 [N], absolute.
        mask: bool [B, T, S + T], True where attention is allowed.
        rotation: cosine and sine, float32 [N, 1, E / 2]; None where positions are learned.
        local_mask: the mask of sliding layers; None where no layer slides.
        local_rotation: the rotation of sliding layers.
        packing: None where the tokens are not packed: N = B · T.
    """

    rows: Array | None
    positions: Array
    mask: Array
    rotation: tuple[Array, Array] | None
    local_mask: Array | None
    local_rotation: tuple[Array, Array] | None
    packing: Packing | None


class Attention(nnx.Module):
    """Grouped-query attention of new tokens over cached tokens and themselves."""

    def __init__(self, config: DecoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        """Four projections and, where the family has them, norms of queries and keys."""
        width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        bias = config.attention_bias
        self.q_proj = linear(config.hidden_size, width, bias, dtype, rngs)
        self.k_proj = linear(config.hidden_size, kv_width, bias, dtype, rngs)
        self.v_proj = linear(config.hidden_size, kv_width, bias, dtype, rngs)
        self.o_proj = linear(width, config.hidden_size, config.attention_output_bias, dtype, rngs)
        if config.qk_norm:
            self.q_norm = norm(config, dtype, config.head_dim)
            self.k_norm = norm(config, dtype, config.head_dim)
        self.qk_norm, self.width, self.kv_width = config.qk_norm, width, kv_width
        self.head_dim, self.group = config.head_dim, config.num_heads // config.num_kv_heads
        self.scale = config.attention_scale or 1.0 / math.sqrt(config.head_dim)
        self.softcap = config.attention_softcap

    def inputs(self) -> Weights:
        """The projections of queries, keys and values as one."""
        return joined(self.q_proj, self.k_proj, self.v_proj)

    def __call__(
        self,
        x_nd: Array,
        cached: Cached | OwnCache,
        mask: Array,
        rotation: tuple[Array, Array] | None,
        packing: Packing | None,
        inputs: Weights | Turned | None = None,
    ) -> tuple[Array, tuple[Array, Array]]:
        """Attends.

        Args:
            x_nd: [N, D] normalised residual stream.
            cached: the tokens before.
            mask: bool [B, T, S + T]; see `Context`. Of an `OwnCache` [B, 1, S].
            rotation: cosine and sine [N, 1, E / 2] of the new tokens' positions, or None.
            packing: where rows stand in x, or None for one row behind the other, padding and all.
            inputs: the joined input projections, where they were made beforehand.

        Returns:
            The update of the residual stream [N, D], and the new tokens' keys [B, K, E, T] and
            values [B, K, T, E]; or an `OwnCache`'s, with these put into it.
        """
        batch, length = mask.shape[:2]
        if inputs is None:
            parts: tuple[Array, ...] = (
                self.q_proj(x_nd),
                self.k_proj(x_nd),
                self.v_proj(x_nd),
            )
        else:
            cuts = (self.width, self.width + self.kv_width)
            parts = tuple(jnp.split(product(x_nd, inputs), cuts, axis=-1))
        q, k, v = (part.reshape(len(x_nd), -1, self.head_dim) for part in parts)
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        if packing is not None:
            q, k, v = (part[packing.tokens] for part in (q, k, v))
        q, k, v = (part.reshape(batch, length, -1, self.head_dim) for part in (q, k, v))
        k, v = k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)
        if isinstance(cached, OwnCache):
            k, v = cached.written(k.astype(cached.keys.dtype), v.astype(cached.values.dtype))
            mixed = attend_all(q, k, v, attention_bias(mask, self.group), self.scale, self.softcap)
        elif length == 1:
            before = cached.read(cached.rows)
            bias = attention_bias(mask, self.group)
            mixed = attend_one(q, before, (k, v), bias, self.scale, self.softcap)
        else:
            # Rows that are not packed may lie on several devices: a loop would collect them.
            most = None if packing is None else by_backend(SCORES, SCORES_ACCELERATOR)
            mixed = attend(q, cached, (k, v), mask, self.scale, self.softcap, most)
        mixed = mixed.reshape(batch * length, -1).astype(x_nd.dtype)
        if packing is not None:
            mixed = mixed[packing.slots]
        return self.o_proj(mixed), (k, v)


def attend(
    q: Array,
    cached: Cached,
    new: tuple[Array, Array],
    mask: Array,
    scale: float,
    cap: float | None,
    most: int | None = None,
) -> Array:
    """Softmax attention, float32 [B, T, H, E].

    The queries of a token's group stand side by side, [B, K, T · G, S + T]: they are moved in whole
    runs of G · E numbers (measured on a CPU: half the time of an order by group and then by token).

    Args:
        q: [B, T, H, E].
        cached: the tokens before.
        new: keys [B, K, E, T] and values [B, K, T, E].
        mask: bool [B, T, S + T], True where attention is allowed.
        scale: factor of the scores.
        cap: of the scores; see `softcap`.
        most: bytes of scores at a time, about: rows are run in portions.
    """
    batch, length, num_heads, width = q.shape
    num_kv_heads = new[0].shape[1]
    group = num_heads // num_kv_heads
    q = (
        (q.astype(jnp.float32) * scale)
        .astype(q.dtype)
        .reshape(batch, length, num_kv_heads, group * width)
    )
    q = q.transpose(0, 2, 1, 3).reshape(batch, num_kv_heads, length * group, width)

    def mix(rows: tuple[Array, ...]) -> Array:
        q, new_keys, new_values, mask, *at = rows
        before = cached.read(at[0] if at else None)
        keys = jnp.concatenate([before[0].astype(new_keys.dtype), new_keys], axis=-1)
        values = jnp.concatenate([before[1].astype(new_values.dtype), new_values], axis=-2)
        bias = attention_bias(mask, group)
        scores = jnp.einsum("...ne,...es->...ns", q, keys, preferred_element_type=jnp.float32)
        scores = softcap(scores, cap) + bias[..., None, :, :]
        weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
        total = weights.sum(axis=-1, keepdims=True)
        mixed = jnp.einsum("...ns,...se->...ne", weights.astype(values.dtype), values)
        return mixed.astype(jnp.float32) / total

    rows = (q, *new, mask)
    portions = 1 if most is None else -(-4 * num_heads * mask.size // most)
    if portions > 1 and batch > 1:
        at = jnp.arange(batch) if cached.rows is None else cached.rows
        mixed = jax.lax.map(mix, (*rows, at), batch_size=-(-batch // portions))
    else:
        mixed = mix(rows if cached.rows is None else (*rows, cached.rows))
    mixed = mixed.reshape(batch, num_kv_heads, length, group * width).transpose(0, 2, 1, 3)
    return mixed.reshape(batch, length, num_heads, width)


def attend_one(
    q: Array,
    cached: tuple[Array, Array],
    new: tuple[Array, Array],
    bias: Array,
    scale: float,
    cap: float | None,
) -> Array:
    """`attend` for one new token a row, as in decoding: the cache is read and never copied."""
    batch, _, num_heads, width = q.shape
    keys, values = (c.astype(n.dtype) for c, n in zip(cached, new))
    num_kv_heads, bias = keys.shape[1], bias[:, None]
    q = (q.astype(jnp.float32) * scale).astype(q.dtype).reshape(batch, num_kv_heads, -1, width)
    before = jnp.einsum("bkge,bkes->bkgs", q, keys, preferred_element_type=jnp.float32)
    itself = jnp.einsum("bkge,bkes->bkgs", q, new[0], preferred_element_type=jnp.float32)
    before = softcap(before, cap) + bias[..., :-1]
    itself = softcap(itself, cap) + bias[..., -1:]
    top = jnp.maximum(before.max(axis=-1, keepdims=True, initial=MASKED), itself)
    before, itself = jnp.exp(before - top), jnp.exp(itself - top)
    mixed = jnp.einsum("bkgs,bkse->bkge", before.astype(values.dtype), values)
    mixed = mixed.astype(jnp.float32) + itself * new[1].astype(jnp.float32)
    total = before.sum(axis=-1, keepdims=True) + itself
    return (mixed / total).reshape(batch, 1, num_heads, width)


def attend_all(
    q: Array, keys: Array, values: Array, bias: Array, scale: float, cap: float | None
) -> Array:
    """`attend` for one new token a row that stands in the cache already.

    Args:
        q: [B, 1, H, E].
        keys: [B, K, E, S].
        values: [B, K, S, E].
        bias: [B, G, S]; see `attention_bias`.
        scale: factor of the scores.
        cap: of the scores; see `softcap`.
    """
    batch, _, num_heads, width = q.shape
    q = (q.astype(jnp.float32) * scale).astype(q.dtype).reshape(batch, keys.shape[1], -1, width)
    scores = jnp.einsum("bkge,bkes->bkgs", q, keys, preferred_element_type=jnp.float32)
    scores = softcap(scores, cap) + bias[:, None]
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed = jnp.einsum("bkgs,bkse->bkge", weights.astype(values.dtype), values)
    mixed = mixed.astype(jnp.float32) / weights.sum(axis=-1, keepdims=True)
    return mixed.reshape(batch, 1, num_heads, width)


def softcap(x: Array, cap: float | None) -> Array:
    """Cap · tanh(x / cap): near the identity for small values, never beyond ± cap."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def extension_mask(offsets: Array, lengths: Array, num_cached: int, num_new: int) -> Array:
    """Which of S cached and T new tokens each new token may attend to, bool [B, T, S + T].

    A token sees the filled cache slots, and the new tokens up to itself; padding is seen by none.
    """
    cached = jnp.arange(num_cached)[None, None] < offsets[:, None, None]
    new = jnp.arange(num_new)
    causal = (new[None, :, None] >= new[None, None, :]) & (
        new[None, None, :] < lengths[:, None, None]
    )
    shape = (offsets.shape[0], num_new)
    return jnp.concatenate(
        [
            jnp.broadcast_to(cached, (*shape, num_cached)),
            jnp.broadcast_to(causal, (*shape, num_new)),
        ],
        axis=-1,
    )


def attention_bias(mask: Array, group: int) -> Array:
    """What is added to scores: zero where attention is allowed, else `MASKED`.

    Spread over the group beforehand, so that it lies as the scores do: XLA then runs the scores,
    the bias and the softmax as one loop (measured on a CPU: attention in three quarters of the time
    that a selection by the mask takes).

    Args:
        mask: bool [B, T, S + T].
        group: G, query heads per key head.

    Returns:
        float32 [B, T · G, S + T].
    """
    return jnp.repeat(jnp.where(mask, 0.0, MASKED), group, axis=-2)


def within_window(positions_bt: Array, num_cached: int, window: int) -> Array:
    """Whether cached slot s or new token s − S lies within a token's window, bool [B, T, S + T]."""
    cached = jnp.broadcast_to(jnp.arange(num_cached), (positions_bt.shape[0], num_cached))
    keys = jnp.concatenate([cached, positions_bt], axis=1)
    return positions_bt[:, :, None] - keys[:, None] < window


def rotary(config: DecoderConfig, positions: Array, *, local: bool = False) -> tuple[Array, Array]:
    """Cosine and sine, float32 [N, 1, E / 2], of the rotary angles at absolute positions [N]."""
    frequencies = rotary_frequencies(config, local=local)
    angles = positions[:, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]


def rotary_frequencies(config: DecoderConfig, *, local: bool = False) -> Array:
    """Radians per position of each of the E / 2 rotated pairs, with the context stretch applied.

    With `local`, those of the sliding layers, where these have a base of their own.

    `llama3` scaling follows the published configuration's meaning: wavelengths longer than
    original / low_freq_factor are stretched by `factor`, those shorter than original /
    high_freq_factor are kept, and in between the two are blended linearly in 1 / wavelength.
    """
    pairs = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32)
    if local and config.local_rope_theta is not None:
        return 1.0 / config.local_rope_theta ** (pairs / config.head_dim)
    frequencies = 1.0 / config.rope_theta ** (pairs / config.head_dim)
    scaling = config.rope_scaling
    if scaling.kind == "factors":
        return frequencies / jnp.asarray(scaling.factors, jnp.float32)
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    if scaling.kind == "llama3":
        turns = scaling.original_max_position * frequencies / (2 * math.pi)
        kept = (turns - scaling.low_freq_factor) / (
            scaling.high_freq_factor - scaling.low_freq_factor
        )
        kept = jnp.clip(kept, 0.0, 1.0)
        return kept * frequencies + (1 - kept) * frequencies / scaling.factor
    return frequencies


def rotate(x: Array, rotation: tuple[Array, Array]) -> Array:
    """Rotates pairs (e, e + E / 2) of heads [N, heads, E] by the given angles."""
    cos, sin = rotation
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
