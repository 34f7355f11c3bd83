"""MPNet (Song et al. 2020) as a Flax NNX module, for sentence encoders such as all-mpnet-base-v2.

It is BERT (`mop_jax.encoder.bert`, whose layers and conventions serve here) but for three things:
tokens have no types, positions are counted from 2, and every layer adds one shared bias to the
logits of its attention, by how far apart two tokens are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from pydantic import Field

from mop_jax.encoder.bert import Layer, Linear, TransformerConfig, attend, layer_norm

# The token `<pad>`, whose row of the position table is 1 as well: the first position is 2.
_PADDING = 1
# Distances at which a bucket starts: 0 to 7 have one each, then they widen by √2 up to 128 (whose
# bucket starts at 8·2^3.5 = 90.5 already). Tokens ahead have buckets of their own, hence twice 16.
_STARTS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91)


class MPNetConfig(TransformerConfig):
    """The common fields, of which one has a lower bound here."""

    # The reference computes 32 buckets and pads with 1 whatever these two fields say, so that no
    # checkpoint with other values could be computed as it was trained.
    required: ClassVar[Mapping[str, Any]] = {
        **TransformerConfig.required,
        "relative_attention_num_buckets": 2 * len(_STARTS),
        "pad_token_id": _PADDING,
    }

    # Two rows stand before the first position, and the shortest text has three tokens.
    max_position_embeddings: int = Field(ge=_PADDING + 4)


def relative_buckets(num_tokens: int) -> np.ndarray:
    """The bucket [T, T] of every pair (token that looks, token looked at), as in T5."""
    position = np.arange(num_tokens)
    ahead = position[None, :] - position[:, None]
    bucket = np.searchsorted(_STARTS, np.abs(ahead), side="right") - 1
    return bucket + np.where(ahead > 0, len(_STARTS), 0)


class _Embeddings(nnx.Module):
    def __init__(self, config: MPNetConfig, rngs: nnx.Rngs) -> None:
        width = config.hidden_size
        self.word_embeddings = nnx.Embed(config.vocab_size, width, rngs=rngs)
        self.position_embeddings = nnx.Embed(config.max_position_embeddings, width, rngs=rngs)
        self.LayerNorm = layer_norm(config, rngs)

    def __call__(self, ids_bt: jax.Array) -> jax.Array:
        # A text may spell out `<pad>`: it has no position then, and the next token takes its place.
        counted_bt = ids_bt != _PADDING
        position_bt = jnp.where(counted_bt, jnp.cumsum(counted_bt, axis=1), 0) + _PADDING
        return self.LayerNorm(self.word_embeddings(ids_bt) + self.position_embeddings(position_bt))


class _SelfAttention(nnx.Module):
    def __init__(self, config: MPNetConfig, rngs: nnx.Rngs) -> None:
        width = config.hidden_size
        self.q = Linear(width, width, rngs=rngs)
        self.k = Linear(width, width, rngs=rngs)
        self.v = Linear(width, width, rngs=rngs)
        self.o = Linear(width, width, rngs=rngs)

    def __call__(self, x: jax.Array, real_bt: jax.Array, bias_hts: jax.Array) -> jax.Array:
        return self.o(attend(self.q(x), self.k(x), self.v(x), real_bt, bias_hts))


class _Attention(nnx.Module):
    def __init__(self, config: MPNetConfig, rngs: nnx.Rngs) -> None:
        self.attn = _SelfAttention(config, rngs)
        self.LayerNorm = layer_norm(config, rngs)

    def __call__(self, x: jax.Array, real_bt: jax.Array, bias_hts: jax.Array) -> jax.Array:
        return self.LayerNorm(self.attn(x, real_bt, bias_hts) + x)


class _Encoder(nnx.Module):
    def __init__(self, config: MPNetConfig, rngs: nnx.Rngs) -> None:
        self.relative_attention_bias = nnx.Embed(
            2 * len(_STARTS), config.num_attention_heads, rngs=rngs
        )
        self.layer = nnx.List(
            [Layer(_Attention(config, rngs), config, rngs) for _ in range(config.num_hidden_layers)]
        )

    def __call__(self, x: jax.Array, real_bt: jax.Array) -> jax.Array:
        bias_tth = self.relative_attention_bias(jnp.asarray(relative_buckets(x.shape[1])))
        bias_htt = jnp.moveaxis(bias_tth, -1, 0)
        for layer in self.layer:
            x = layer(x, real_bt, bias_htt)
        return x


class MPNet(nnx.Module):
    """Token ids [B, T] and lengths [B] to hidden states [B, T, D]; padding follows the tokens."""

    # A buffer of older checkpoints, and a head that sentence encoders do not use.
    unused = ("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias")

    def __init__(self, config: MPNetConfig, rngs: nnx.Rngs) -> None:
        self.embedding_dim = config.hidden_size
        self.max_length = config.max_position_embeddings - _PADDING - 1
        self.embeddings = _Embeddings(config, rngs)
        self.encoder = _Encoder(config, rngs)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str = "config.json") -> MPNet:
        """A network with arbitrary weights, shaped as a `config.json` says."""
        return cls(MPNetConfig.read(config, where), nnx.Rngs(0))

    def __call__(self, ids_bt: jax.Array, lengths_b: jax.Array) -> jax.Array:
        real_bt = jnp.arange(ids_bt.shape[1])[None, :] < lengths_b[:, None]
        return self.encoder(self.embeddings(ids_bt), real_bt)
