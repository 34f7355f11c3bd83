"""BERT (Devlin et al. 2019) as a Flax NNX module, for sentence encoders.

Attributes carry the names of the Hugging Face checkpoint (`encoder.layer.0.attention.self.query`),
so that the weight map is the leaf rules of `mop_jax.encoder.checkpoint` and nothing else.
Computation is in float32 at the highest precision: the network is small, and embeddings steer
everything after it.

What other families share with BERT has a public name; a family's own page says how it differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from flax import nnx
from pydantic import BaseModel, Field, ValidationError

from mop_jax.errors import DataError


class TransformerConfig(BaseModel):
    """The fields of `config.json` that shape the computation; each must be there."""

    # The values that a family computes, which are also those of an absent field; anything else
    # would be computed wrongly.
    required: ClassVar[Mapping[str, Any]] = {
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
    }

    vocab_size: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    num_hidden_layers: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    max_position_embeddings: int = Field(gt=0)
    layer_norm_eps: float = Field(gt=0)

    @classmethod
    def read(cls, config: Mapping[str, Any], where: str) -> Self:
        """Checks a `config.json`; `where` names it in refusals."""
        for name, value in cls.required.items():
            if config.get(name, value) != value:
                raise DataError(f"{where} has {name} {config[name]!r}; accepted is {value!r}.")
        try:
            parsed = cls.model_validate(dict(config))
        except ValidationError as error:
            first = error.errors()[0]
            raise DataError(f"{where}, field {first['loc'][0]}: {first['msg']}.") from error
        if parsed.hidden_size % parsed.num_attention_heads:
            raise DataError(
                f"{where} has hidden_size {parsed.hidden_size}, which its "
                f"{parsed.num_attention_heads} attention heads do not divide."
            )
        return parsed


class BertConfig(TransformerConfig):
    """BERT's own field besides."""

    type_vocab_size: int = Field(gt=0)


Linear = partial(nnx.Linear, precision=jax.lax.Precision.HIGHEST)


def layer_norm(config: TransformerConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Normalises the last axis, of `hidden_size` values, and scales and shifts it."""
    return nnx.LayerNorm(
        config.hidden_size, epsilon=config.layer_norm_eps, use_fast_variance=False, rngs=rngs
    )


def attend(
    q_btd: jax.Array,
    k_bsd: jax.Array,
    v_bsd: jax.Array,
    real_bs: jax.Array,
    bias_hts: jax.Array,
) -> jax.Array:
    """softmax(q·k / √c + bias)·v per head of width c, over real tokens only.

    Args:
        q_btd: queries [B, T, D], the heads side by side.
        k_bsd: keys [B, S, D].
        v_bsd: values [B, S, D].
        real_bs: which tokens are no padding [B, S].
        bias_hts: added to the logits of every text [H, T, S], or [H, 1, 1].

    Returns:
        Mixed values [B, T, D].
    """
    num_heads = bias_hts.shape[0]
    q_bthc, k_bshc, v_bshc = (
        x.reshape((*x.shape[:2], num_heads, -1)) for x in (q_btd, k_bsd, v_bsd)
    )
    einsum = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    logits = einsum("bthc,bshc->bhts", q_bthc, k_bshc) / jnp.sqrt(1.0 * q_bthc.shape[-1])
    # A finite floor: a row that only fills up the batch has no real token at all.
    floor = jnp.finfo(logits.dtype).min
    logits = jnp.where(real_bs[:, None, None, :], logits + bias_hts[None], floor)
    mixed = einsum("bhts,bshc->bthc", jax.nn.softmax(logits, axis=-1), v_bshc)
    return mixed.reshape(q_btd.shape)


class _Embeddings(nnx.Module):
    def __init__(self, config: BertConfig, rngs: nnx.Rngs) -> None:
        width = config.hidden_size
        self.word_embeddings = nnx.Embed(config.vocab_size, width, rngs=rngs)
        self.position_embeddings = nnx.Embed(config.max_position_embeddings, width, rngs=rngs)
        self.token_type_embeddings = nnx.Embed(config.type_vocab_size, width, rngs=rngs)
        self.LayerNorm = layer_norm(config, rngs)

    def __call__(self, ids_bt: jax.Array) -> jax.Array:
        position_td = self.position_embeddings(jnp.arange(ids_bt.shape[1]))
        # One text per row: every token is of type 0.
        kind_d = self.token_type_embeddings(jnp.zeros((), jnp.int32))
        return self.LayerNorm(self.word_embeddings(ids_bt) + position_td + kind_d)


class _SelfAttention(nnx.Module):
    def __init__(self, config: BertConfig, rngs: nnx.Rngs) -> None:
        width = config.hidden_size
        self.query = Linear(width, width, rngs=rngs)
        self.key = Linear(width, width, rngs=rngs)
        self.value = Linear(width, width, rngs=rngs)

    def __call__(self, x: jax.Array, real_bt: jax.Array, bias_hts: jax.Array) -> jax.Array:
        return attend(self.query(x), self.key(x), self.value(x), real_bt, bias_hts)


class _AddAndNorm(nnx.Module):
    def __init__(self, in_features: int, config: TransformerConfig, rngs: nnx.Rngs) -> None:
        self.dense = Linear(in_features, config.hidden_size, rngs=rngs)
        self.LayerNorm = layer_norm(config, rngs)

    def __call__(self, x: jax.Array, residual: jax.Array) -> jax.Array:
        return self.LayerNorm(self.dense(x) + residual)


class _Attention(nnx.Module):
    def __init__(self, config: BertConfig, rngs: nnx.Rngs) -> None:
        self.self = _SelfAttention(config, rngs)
        self.output = _AddAndNorm(config.hidden_size, config, rngs)

    def __call__(self, x: jax.Array, real_bt: jax.Array, bias_hts: jax.Array) -> jax.Array:
        return self.output(self.self(x, real_bt, bias_hts), x)


class _Intermediate(nnx.Module):
    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs) -> None:
        self.dense = Linear(config.hidden_size, config.intermediate_size, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        # The checkpoint's "gelu" is the exact one; JAX's default is the tanh approximation.
        return jax.nn.gelu(self.dense(x), approximate=False)


class Layer(nnx.Module):
    """A family's attention, then the two linear maps; hidden states [B, T, D] in and out."""

    def __init__(self, attention: nnx.Module, config: TransformerConfig, rngs: nnx.Rngs) -> None:
        self.attention = attention
        self.intermediate = _Intermediate(config, rngs)
        self.output = _AddAndNorm(config.intermediate_size, config, rngs)

    def __call__(self, x: jax.Array, real_bt: jax.Array, bias_hts: jax.Array) -> jax.Array:
        """Takes which tokens are real [B, T] and what is added to logits [H, T, T] besides."""
        x = self.attention(x, real_bt, bias_hts)
        return self.output(self.intermediate(x), x)


class _Encoder(nnx.Module):
    def __init__(self, config: BertConfig, rngs: nnx.Rngs) -> None:
        self.num_heads = config.num_attention_heads
        self.layer = nnx.List(
            [Layer(_Attention(config, rngs), config, rngs) for _ in range(config.num_hidden_layers)]
        )

    def __call__(self, x: jax.Array, real_bt: jax.Array) -> jax.Array:
        no_bias = jnp.zeros((self.num_heads, 1, 1))
        for layer in self.layer:
            x = layer(x, real_bt, no_bias)
        return x


class Bert(nnx.Module):
    """Token ids [B, T] and lengths [B] to hidden states [B, T, D]; padding follows the tokens."""

    # A buffer of older checkpoints, and the head for BERT's own next-sentence task.
    unused = (
        "embeddings.position_ids",
        "embeddings.token_type_ids",
        "pooler.dense.weight",
        "pooler.dense.bias",
    )

    def __init__(self, config: BertConfig, rngs: nnx.Rngs) -> None:
        self.embedding_dim = config.hidden_size
        self.max_length = config.max_position_embeddings
        self.embeddings = _Embeddings(config, rngs)
        self.encoder = _Encoder(config, rngs)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str = "config.json") -> Bert:
        """A network with arbitrary weights, shaped as a `config.json` says."""
        return cls(BertConfig.read(config, where), nnx.Rngs(0))

    def __call__(self, ids_bt: jax.Array, lengths_b: jax.Array) -> jax.Array:
        real_bt = jnp.arange(ids_bt.shape[1])[None, :] < lengths_b[:, None]
        return self.encoder(self.embeddings(ids_bt), real_bt)
