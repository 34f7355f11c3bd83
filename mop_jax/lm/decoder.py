"""A decoder-only transformer in Flax NNX, small enough to read at one sitting.

One decoder serves all families: `DecoderConfig` switches on what a family has. Attributes carry the
names of Hugging Face checkpoints of the Llama family, so that loading needs only leaf rules. The
layers are stacked along a leading axis and run under `jax.lax.scan`: one layer is compiled, not L;
what differs between layers (sliding windows, rotary bases) is chosen by a flag of the layer's.

There is one operation, `Decoder.extend`: run new tokens after cached ones. Whole-prompt logits are
an extension of an empty cache; scoring extends shared prefixes; a decoding step extends by one
token. Masks come from absolute positions and lengths, never from padding ids.

Shape suffixes: B rows, T new tokens, S cached tokens, L layers, H query heads, K key/value heads,
G = H / K query heads per key head, E head width, D hidden width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from mop_jax.lm.config import DecoderConfig

# Finite, so that a fully masked row (a padded row with an empty cache) stays free of NaN.
MASKED = -1e30


class KVCache(NamedTuple):
    """Rotated keys and values of tokens already run; row b holds positions 0 … lengths[b] − 1.

    Attributes:
        keys: [L, B, S, K, E].
        values: [L, B, S, K, E].
        lengths: int32 [B], how many of the S slots are filled.
    """

    keys: Array
    values: Array
    lengths: Array


def empty_cache(config: DecoderConfig, num_rows: int, size: int, dtype: jnp.dtype) -> KVCache:
    """A cache of `num_rows` rows and `size` slots with nothing in it."""
    shape = (config.num_layers, num_rows, size, config.num_kv_heads, config.head_dim)
    return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros(num_rows, jnp.int32))


class Embed(nnx.Module):
    """Token embedding [V, D]; also the output projection of models with tied embeddings."""

    def __init__(self, num_rows: int, width: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        """Draws the table from a Normal(0, 0.02), the usual initialisation."""
        self.embedding = nnx.Param(
            jax.random.normal(rngs.params(), (num_rows, width), dtype) * jnp.asarray(0.02, dtype)
        )


class RMSNorm(nnx.Module):
    """x / rms(x) · (offset + scale), with the mean square in float32."""

    def __init__(self, width: int, eps: float, dtype: jnp.dtype, offset: float = 0.0):
        """Starts at the identity but for the normalisation."""
        self.scale = nnx.Param(jnp.full(width, 1.0 - offset, dtype))
        self.eps, self.offset = eps, offset

    def __call__(self, x: Array) -> Array:
        """Normalises the last axis of `x`."""
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return (wide * (self.offset + self.scale[...].astype(jnp.float32))).astype(x.dtype)


class LayerNorm(nnx.Module):
    """(x − mean) / sd · scale + bias, with moments in float32."""

    def __init__(self, width: int, eps: float, dtype: jnp.dtype):
        """Starts at scale one and bias zero."""
        self.scale = nnx.Param(jnp.ones(width, dtype))
        self.bias = nnx.Param(jnp.zeros(width, dtype))
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        """Normalises the last axis of `x`."""
        wide = x.astype(jnp.float32)
        wide = wide - wide.mean(axis=-1, keepdims=True)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        scale, bias = self.scale[...].astype(jnp.float32), self.bias[...].astype(jnp.float32)
        return (wide * scale + bias).astype(x.dtype)


def _norm(config: DecoderConfig, dtype: jnp.dtype, width: int | None = None):
    width = config.hidden_size if width is None else width
    if config.norm == "layer":
        return LayerNorm(width, config.norm_eps, dtype)
    return RMSNorm(width, config.norm_eps, dtype, 1.0 if config.norm == "rms_offset" else 0.0)


def _linear(n_in: int, n_out: int, bias: bool, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(
        n_in,
        n_out,
        use_bias=bias,
        dtype=dtype,
        param_dtype=dtype,
        kernel_init=nnx.initializers.normal(0.02),
        rngs=rngs,
    )


class Attention(nnx.Module):
    """Grouped-query attention of new tokens over cached tokens and themselves."""

    def __init__(self, config: DecoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        """Four projections and, where the family has them, norms of queries and keys."""
        width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        bias = config.attention_bias
        self.q_proj = _linear(config.hidden_size, width, bias, dtype, rngs)
        self.k_proj = _linear(config.hidden_size, kv_width, bias, dtype, rngs)
        self.v_proj = _linear(config.hidden_size, kv_width, bias, dtype, rngs)
        self.o_proj = _linear(width, config.hidden_size, config.attention_output_bias, dtype, rngs)
        if config.qk_norm:
            self.q_norm = _norm(config, dtype, config.head_dim)
            self.k_norm = _norm(config, dtype, config.head_dim)
        self.qk_norm = config.qk_norm
        self.num_kv_heads, self.head_dim = config.num_kv_heads, config.head_dim
        self.scale = config.attention_scale or 1.0 / math.sqrt(config.head_dim)
        self.softcap = config.attention_softcap

    def __call__(
        self,
        x_btd: Array,
        cached: tuple[Array, Array],
        rotation: tuple[Array, Array] | None,
        mask: Array,
    ) -> tuple[Array, tuple[Array, Array]]:
        """Attends.

        Args:
            x_btd: [B, T, D] normalised residual stream.
            cached: keys and values [B, S, K, E] of the tokens before.
            rotation: cosine and sine [B, T, 1, E / 2] of the new tokens' positions, or None where
                positions are learned.
            mask: bool [B, T, S + T], True where attention is allowed.

        Returns:
            The update of the residual stream, and the new tokens' keys and values [B, T, K, E].
        """
        batch, length, _ = x_btd.shape
        heads = (batch, length, -1, self.head_dim)
        q = self.q_proj(x_btd).reshape(heads)
        k = self.k_proj(x_btd).reshape(heads)
        v = self.v_proj(x_btd).reshape(heads)
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        q_btkge = q.reshape(batch, length, self.num_kv_heads, -1, self.head_dim)
        keys = jnp.concatenate([cached[0].astype(k.dtype), k], axis=1)
        values = jnp.concatenate([cached[1].astype(v.dtype), v], axis=1)
        scores = jnp.einsum("btkge,bske->bkgts", q_btkge, keys, preferred_element_type=jnp.float32)
        scores = softcap(scores * self.scale, self.softcap)
        weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, MASKED), axis=-1)
        mixed = jnp.einsum("bkgts,bske->btkge", weights.astype(v.dtype), values)
        return self.o_proj(mixed.reshape(batch, length, -1)), (k, v)


_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
}


class MLP(nnx.Module):
    """The feed-forward block, gated (SwiGLU, GeGLU) or plain."""

    def __init__(self, config: DecoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        """Two or three projections; biases as the configuration says."""
        wide, narrow, bias = config.intermediate_size, config.hidden_size, config.mlp_bias
        if config.gated_mlp:
            self.gate_proj = _linear(narrow, wide, bias, dtype, rngs)
        self.up_proj = _linear(narrow, wide, bias, dtype, rngs)
        self.down_proj = _linear(wide, narrow, bias, dtype, rngs)
        self.gated, self.activation = config.gated_mlp, config.activation

    def __call__(self, x_btd: Array) -> Array:
        """down(act(gate(x)) · up(x)), or down(act(up(x)))."""
        activate = _ACTIVATIONS[self.activation]
        if self.gated:
            return self.down_proj(activate(self.gate_proj(x_btd)) * self.up_proj(x_btd))
        return self.down_proj(activate(self.up_proj(x_btd)))


class DecoderLayer(nnx.Module):
    """Attention and feed-forward block, each on a normalised residual stream.

    With `post_norms` each block's update is normalised too before it is added; as in Gemma's
    checkpoints, `post_attention_layernorm` is then the one behind attention.
    """

    def __init__(self, config: DecoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        """One layer; `Decoder` stacks L of them."""
        self.input_layernorm = _norm(config, dtype)
        self.self_attn = Attention(config, dtype, rngs)
        self.post_attention_layernorm = _norm(config, dtype)
        self.mlp = MLP(config, dtype, rngs)
        if config.post_norms:
            self.pre_feedforward_layernorm = _norm(config, dtype)
            self.post_feedforward_layernorm = _norm(config, dtype)
        self.post_norms = config.post_norms

    def __call__(self, x_btd, cached, rotation, mask):
        """See `Attention.__call__` for the arguments."""
        update, new = self.self_attn(self.input_layernorm(x_btd), cached, rotation, mask)
        if not self.post_norms:
            x_btd = x_btd + update
            return x_btd + self.mlp(self.post_attention_layernorm(x_btd)), new
        x_btd = x_btd + self.post_attention_layernorm(update)
        update = self.mlp(self.pre_feedforward_layernorm(x_btd))
        return x_btd + self.post_feedforward_layernorm(update), new


class Decoder(nnx.Module):
    """The language model: embedding, L stacked layers, final norm, vocabulary projection."""

    def __init__(self, config: DecoderConfig, *, dtype=jnp.float32, rngs: nnx.Rngs):
        """A randomly initialised decoder; `load_weights` fills one from a checkpoint."""
        dtype = jnp.dtype(dtype)
        self.config = config
        self.embed_tokens = Embed(config.vocab_size, config.hidden_size, dtype, rngs)

        @nnx.split_rngs(splits=config.num_layers)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def stacked_layers(rngs: nnx.Rngs) -> DecoderLayer:
            return DecoderLayer(config, dtype, rngs)

        self.layers = stacked_layers(rngs)
        self.norm = _norm(config, dtype)
        if config.learned_positions:
            self.embed_positions = Embed(config.max_position, config.hidden_size, dtype, rngs)
        if not config.tie_embeddings:
            self.lm_head = Embed(config.vocab_size, config.hidden_size, dtype, rngs)

    @property
    def dtype(self) -> jnp.dtype:
        """The weights' dtype, which is also that of the residual stream and the cache."""
        return self.embed_tokens.embedding[...].dtype

    @property
    def output_embedding(self) -> Array:
        """The vocabulary projection [V, D]."""
        head = self.embed_tokens if self.config.tie_embeddings else self.lm_head
        return head.embedding[...]

    def extend(
        self, cache: KVCache, tokens_bt: Array, lengths_b: Array, rows_b: Array | None = None
    ) -> tuple[Array, KVCache]:
        """Runs new tokens after cached ones.

        Args:
            cache: what came before; row b of the batch follows row `rows_b[b]` of the cache.
            tokens_bt: int32 [B, T] new token ids, padded at the end with any valid id.
            lengths_b: int32 [B], how many of the T are real.
            rows_b: int32 [B], or None where batch and cache have the same rows.

        Returns:
            Normalised hidden states [B, T, D] (meaningless on padding), and the new tokens' own
            keys and values as a cache of B rows and T slots (the prefix is not copied into it).
        """
        config = self.config
        length = tokens_bt.shape[1]
        offsets = cache.lengths if rows_b is None else cache.lengths[rows_b]
        positions_bt = offsets[:, None] + jnp.arange(length)
        num_cached = cache.keys.shape[2]
        mask = extension_mask(offsets, lengths_b, num_cached, length)
        rotation = None if config.learned_positions else rotary(config, positions_bt)
        if any(config.sliding_layers):
            near = within_window(positions_bt, num_cached, config.sliding_window or 0)
            local_mask = mask & near
            local_rotation = rotary(config, positions_bt, local=True)
        graph, stacked = nnx.split(self.layers)

        def run_layer(x_btd, layer):
            state, index, slides = layer
            # The cache is indexed here rather than scanned over: scanning would copy every row of
            # a pool, layer by layer, where the batch needs a few.
            at = (index,) if rows_b is None else (index, rows_b)
            cached = (cache.keys[at], cache.values[at])
            seen, turned = mask, rotation
            if any(config.sliding_layers):
                pick = partial(jnp.where, slides)
                seen, turned = jax.tree.map(pick, (local_mask, local_rotation), (mask, rotation))
            return nnx.merge(graph, state)(x_btd, cached, turned, seen)

        x_btd = self.embed_tokens.embedding[...][tokens_bt]
        x_btd = x_btd * jnp.asarray(config.embedding_scale, x_btd.dtype)
        if config.learned_positions:
            x_btd = x_btd + self.embed_positions.embedding[...][positions_bt]
        slides = jnp.asarray(config.sliding_layers or (False,) * config.num_layers)
        layers = (stacked, jnp.arange(config.num_layers), slides)
        x_btd, (keys, values) = jax.lax.scan(run_layer, x_btd, layers)
        return self.norm(x_btd), KVCache(keys, values, lengths_b)

    def logits(self, hidden: Array) -> Array:
        """Next-token logits, float32 [..., V], of hidden states [..., D]."""
        logits = jnp.matmul(hidden, self.output_embedding.T, preferred_element_type=jnp.float32)
        return softcap(logits, self.config.logit_softcap)


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


def within_window(positions_bt: Array, num_cached: int, window: int) -> Array:
    """Whether cached slot s or new token s − S lies within a token's window, bool [B, T, S + T]."""
    cached = jnp.broadcast_to(jnp.arange(num_cached), (positions_bt.shape[0], num_cached))
    keys = jnp.concatenate([cached, positions_bt], axis=1)
    return positions_bt[:, :, None] - keys[:, None] < window


def rotary(
    config: DecoderConfig, positions_bt: Array, *, local: bool = False
) -> tuple[Array, Array]:
    """Cosine and sine, float32 [B, T, 1, E / 2], of the rotary angles at absolute positions."""
    frequencies = rotary_frequencies(config, local=local)
    angles = positions_bt[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]


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
    """Rotates pairs (e, e + E / 2) of heads [B, T, heads, E] by the given angles."""
    cos, sin = rotation
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
