"""A decoder-only transformer in Flax NNX, small enough to read at one sitting.

One decoder serves all families: `DecoderConfig` switches on what a family has. Attributes carry the
names of Hugging Face checkpoints of the Llama family, so that loading needs only leaf rules. The
layers are stacked along a leading axis and run under `jax.lax.scan`: one layer is compiled, not L;
what differs between layers (sliding windows, rotary bases) is chosen by a flag of the layer's.

There is one operation, `Decoder.extend`: run new tokens after cached ones. Whole-prompt logits are
an extension of an empty cache; scoring extends shared prefixes; a decoding step extends by one
token. `Decoder.extend_chunks` does the same for several batches, layer by layer.

Shape suffixes: C chunks, B rows, T new tokens a row, N tokens of a chunk, S cached tokens,
K key/value heads, E head width, D hidden width, V vocabulary.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from mop_jax.lm.attention import (
    Attention,
    Context,
    Packing,
    extension_mask,
    pack,
    rotary,
    rotary_frequencies,
    softcap,
    within_window,
)
from mop_jax.lm.cache import Cached, KVCache, OwnCache, empty_cache
from mop_jax.lm.config import DecoderConfig
from mop_jax.lm.layers import MLP, Embed, Turned, Weights, norm

__all__ = ["Decoder", "DecoderLayer", "KVCache", "empty_cache", "rotary_frequencies", "softcap"]


Inputs = Weights | Turned | None
"""Joined input projections of a block, where they were made beforehand."""


class DecoderLayer(nnx.Module):
    """Attention and feed-forward block, each on a normalised residual stream.

    With `post_norms` each block's update is normalised too before it is added; as in Gemma's
    checkpoints, `post_attention_layernorm` is then the one behind attention.
    """

    def __init__(self, config: DecoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        """One layer; `Decoder` stacks L of them."""
        self.input_layernorm = norm(config, dtype)
        self.self_attn = Attention(config, dtype, rngs)
        self.post_attention_layernorm = norm(config, dtype)
        self.mlp = MLP(config, dtype, rngs)
        if config.post_norms:
            self.pre_feedforward_layernorm = norm(config, dtype)
            self.post_feedforward_layernorm = norm(config, dtype)
        self.post_norms = config.post_norms

    def inputs(self) -> tuple[Weights, Weights]:
        """The joined input projections of both blocks."""
        return self.self_attn.inputs(), self.mlp.inputs()

    def __call__(
        self,
        x_nd: Array,
        cached: Cached | OwnCache,
        mask: Array,
        rotation: tuple[Array, Array] | None,
        packing: Packing | None,
        inputs: tuple[Inputs, Inputs] = (None, None),
    ) -> tuple[Array, tuple[Array, Array]]:
        """See `Attention.__call__` for the arguments."""
        update, new = self.self_attn(
            self.input_layernorm(x_nd), cached, mask, rotation, packing, inputs[0]
        )
        if not self.post_norms:
            x_nd = x_nd + update
            return x_nd + self.mlp(self.post_attention_layernorm(x_nd), inputs[1]), new
        x_nd = x_nd + self.post_attention_layernorm(update)
        update = self.mlp(self.pre_feedforward_layernorm(x_nd), inputs[1])
        return x_nd + self.post_feedforward_layernorm(update), new


class StepContext(NamedTuple):
    """What layers need to know of a step of decoding.

    Attributes:
        places: int32 [B], where the tokens go; out of range for rows that are not live.
        far: mask [B, 1, S] and rotation of layers that see everything.
        near: those of sliding layers.
    """

    places: Array
    far: tuple[Array, tuple[Array, Array] | None]
    near: tuple[Array, tuple[Array, Array] | None]


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
        self.norm = norm(config, dtype)
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
        self,
        cache: KVCache,
        tokens_bt: Array,
        lengths_b: Array,
        rows_b: Array | None = None,
        *,
        packed: int | None = None,
    ) -> tuple[Array, KVCache]:
        """Runs new tokens after cached ones.

        Args:
            cache: what came before; row b of the batch follows row `rows_b[b]` of the cache.
            tokens_bt: int32 [B, T] new token ids, padded at the end with any valid id.
            lengths_b: int32 [B], how many of the T are real.
            rows_b: int32 [B], or None where batch and cache have the same rows.
            packed: how many real tokens there are at most in all rows together; only so many are
                run through the matrix products. By default padding is run too.

        Returns:
            Normalised hidden states [B, T, D] (meaningless on padding), and the new tokens' own
            keys and values as a cache of B rows and T slots (the prefix is not copied into it).
        """
        context = self._context(cache, tokens_bt.shape[1], lengths_b, rows_b, packed)
        x_nd = self._embed(tokens_bt, context)

        def run_layer(x_nd, layer):
            module, index, slides = self._layer(layer)
            return self._run(module, cache, index, slides, x_nd, context)

        x_nd, (keys, values) = jax.lax.scan(run_layer, x_nd, self._stack())
        hidden = self._unpack(self.norm(x_nd), tokens_bt.shape, context)
        return hidden, KVCache(keys, values, lengths_b)

    def begin_step(
        self, tokens_b: Array, lengths_b: Array, live_b: Array, size: int
    ) -> tuple[Array, StepContext]:
        """What comes before the layers where one token a row is run, layer by layer.

        Args:
            tokens_b: int32 [B].
            lengths_b: int32 [B], what the rows' caches hold; there is room for a token in live
                rows.
            live_b: bool [B]; nothing is put into the other rows, and what comes of them means
                nothing.
            size: slots of a row.

        Returns:
            The residual stream [B, D], and what the layers need to know; see `OwnCache`.
        """
        config = self.config
        positions = lengths_b
        x_bd = self.embed_tokens.embedding[...][tokens_b]
        x_bd = x_bd * jnp.asarray(config.embedding_scale, x_bd.dtype)
        if config.learned_positions:
            x_bd = x_bd + self.embed_positions.embedding[...][positions]
            far_rotation = near_rotation = None
        else:
            far_rotation = rotary(config, positions)
            near_rotation = rotary(config, positions, local=True)
        mask = (jnp.arange(size) < (lengths_b + live_b)[:, None])[:, None]
        near = within_window(positions[:, None], size, config.sliding_window or size)[..., :size]
        places = jnp.where(live_b, lengths_b, size)
        return x_bd, StepContext(places, (mask, far_rotation), (mask & near, near_rotation))

    def extend_chunks(
        self,
        cache: KVCache,
        tokens_cbt: Array,
        lengths_cb: Array,
        rows_cb: Array,
        num_chunks: Array,
        *,
        packed: int,
        join: bool,
    ) -> Array:
        """Runs several batches after cached tokens: each layer over all of them in turn.

        A layer's weights are fetched once for all chunks, while each chunk is small enough for the
        processor's cache.

        Args:
            cache: what came before.
            tokens_cbt: int32 [C, B, T]; see `extend`.
            lengths_cb: int32 [C, B].
            rows_cb: int32 [C, B].
            num_chunks: int32, how many of the C are to be run.
            packed: real tokens of a chunk at most.
            join: whether projections of one input are run as one product. It pays where weights
                are copied anyhow when a layer's turn comes, and whole on one device.

        Returns:
            Normalised hidden states [C, B, T, D], meaningless on padding.
        """
        contexts, x_cnd = jax.vmap(
            lambda tokens, lengths, rows: self._start(cache, tokens, lengths, rows, packed)
        )(tokens_cbt, lengths_cb, rows_cb)

        def run_layer(x_cnd, layer):
            module, index, slides = self._layer(layer)
            inputs = module.inputs() if join else (None, None)

            def run_chunk(c, x_cnd):
                context = jax.tree.map(lambda leaf: leaf[c], contexts)
                x_nd, _ = self._run(module, cache, index, slides, x_cnd[c], context, inputs)
                return x_cnd.at[c].set(x_nd)

            if len(x_cnd) == 1:
                return run_chunk(0, x_cnd), None
            return jax.lax.fori_loop(0, num_chunks, run_chunk, x_cnd), None

        x_cnd, _ = jax.lax.scan(run_layer, x_cnd, self._stack())
        shape = tokens_cbt.shape[1:]
        return jax.vmap(lambda x_nd, c: self._unpack(x_nd, shape, c))(self.norm(x_cnd), contexts)

    def logits(self, hidden: Array) -> Array:
        """Next-token logits, float32 [..., V], of hidden states [..., D]."""
        logits = jnp.matmul(hidden, self.output_embedding.T, preferred_element_type=jnp.float32)
        return softcap(logits, self.config.logit_softcap)

    def next_logits(self, hidden_bd: Array) -> Array:
        """`logits` of one state a row, float32 [B, V], of states [B, D]."""
        # The vocabulary is the longer side of the product; see `Turned`.
        columns = jnp.matmul(self.output_embedding, hidden_bd.T, preferred_element_type=jnp.float32)
        return softcap(jax.lax.optimization_barrier(columns).T, self.config.logit_softcap)

    def _start(self, cache, tokens_bt, lengths_b, rows_b, packed):
        context = self._context(cache, tokens_bt.shape[1], lengths_b, rows_b, packed)
        return context, self._embed(tokens_bt, context)

    def _context(self, cache, length, lengths_b, rows_b, packed) -> Context:
        config = self.config
        offsets = cache.lengths if rows_b is None else cache.lengths[rows_b]
        positions_bt = offsets[:, None] + jnp.arange(length)
        num_cached = cache.size
        mask = extension_mask(offsets, lengths_b, num_cached, length)
        packing = None if packed is None else pack(lengths_b, length, packed)
        positions_n = _packed(positions_bt, packing)
        rotation = None if config.learned_positions else rotary(config, positions_n)
        local_mask = local_rotation = None
        if any(config.sliding_layers):
            near = within_window(positions_bt, num_cached, config.sliding_window or 0)
            local_mask = mask & near
            local_rotation = rotary(config, positions_n, local=True)
        return Context(rows_b, positions_n, mask, rotation, local_mask, local_rotation, packing)

    def _embed(self, tokens_bt: Array, context: Context) -> Array:
        x_nd = self.embed_tokens.embedding[...][_packed(tokens_bt, context.packing)]
        x_nd = x_nd * jnp.asarray(self.config.embedding_scale, x_nd.dtype)
        if self.config.learned_positions:
            x_nd = x_nd + self.embed_positions.embedding[...][context.positions]
        return x_nd

    def _unpack(self, x_nd: Array, shape: tuple[int, ...], context: Context) -> Array:
        if context.packing is None:
            return x_nd.reshape(*shape, -1)
        return x_nd[context.packing.tokens]

    def _stack(self):
        config = self.config
        slides = jnp.asarray(config.sliding_layers or (False,) * config.num_layers)
        return nnx.split(self.layers)[1], jnp.arange(config.num_layers), slides

    def _layer(self, layer) -> tuple[DecoderLayer, Array, Array]:
        state, index, slides = layer
        return nnx.merge(nnx.graphdef(self.layers), state), index, slides

    def _run(self, module, cache, index, slides, x_nd, context, inputs=(None, None)):
        # The cache is indexed here rather than scanned over: scanning would copy every row of a
        # pool, layer by layer, where the batch needs a few.
        mask, rotation = context.mask, context.rotation
        if context.local_mask is not None:
            local = (context.local_mask, context.local_rotation)
            mask, rotation = jax.tree.map(partial(jnp.where, slides), local, (mask, rotation))
        cached = Cached(cache.keys, cache.values, index, context.rows)
        return module(x_nd, cached, mask, rotation, context.packing, inputs)


def _packed(x_bt: Array, packing: Packing | None) -> Array:
    """Numbers [B, T] of a batch's tokens as they are packed, [N]."""
    x_n = x_bt.reshape(-1)
    # No gather where nothing is packed: on a mesh it would collect all devices' tokens.
    return x_n if packing is None else x_n[packing.slots]
