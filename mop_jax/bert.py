"""BERT (Devlin et al. 2019) as a Flax NNX module, for sentence encoders.

Attributes carry the names of the Hugging Face checkpoint (`encoder.layer.0.attention.self.query`),
so that the weight map is the leaf rules of `mop_jax.checkpoint` and nothing else. Computation is in
float32 at the highest precision: the network is small, and embeddings steer everything after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from pydantic import BaseModel, Field, ValidationError

from mop_jax.errors import DataError

# The values that this module computes; anything else would be computed wrongly.
_REQUIRED = {
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}


class BertConfig(BaseModel):
    """The fields of `config.json` that shape the computation; each must be there."""

    vocab_size: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    num_hidden_layers: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    max_position_embeddings: int = Field(gt=0)
    type_vocab_size: int = Field(gt=0)
    layer_norm_eps: float = Field(gt=0)

    @classmethod
    def read(cls, config: Mapping[str, Any], where: str) -> BertConfig:
        """Checks a `config.json`; `where` names it in refusals."""
        for name, value in _REQUIRED.items():
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


_Linear = partial(nnx.Linear, precision=jax.lax.Precision.HIGHEST)


class _Embeddings(nnx.Module):
    def __init__(self, config: BertConfig, rngs: nnx.Rngs) -> None:
        width = config.hidden_size
        self.word_embeddings = nnx.Embed(config.vocab_size, width, rngs=rngs)
        self.position_embeddings = nnx.Embed(config.max_position_embeddings, width, rngs=rngs)
        self.token_type_embeddings = nnx.Embed(config.type_vocab_size, width, rngs=rngs)
        self.LayerNorm = _layer_norm(config, rngs)

    def __call__(self, ids_bt: jax.Array) -> jax.Array:
        position_td = self.position_embeddings(jnp.arange(ids_bt.shape[1]))
        # One text per row: every token is of type 0.
        kind_d = self.token_type_embeddings(jnp.zeros((), jnp.int32))
        return self.LayerNorm(self.word_embeddings(ids_bt) + position_td + kind_d)


class _SelfAttention(nnx.Module):
    def __init__(self, config: BertConfig, rngs: nnx.Rngs) -> None:
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.query = _Linear(width, width, rngs=rngs)
        self.key = _Linear(width, width, rngs=rngs)
        self.value = _Linear(width, width, rngs=rngs)

    def __call__(self, x_btd: jax.Array, real_bt: jax.Array) -> jax.Array:
        heads = (*x_btd.shape[:2], self.num_heads, -1)
        q_bthc = self.query(x_btd).reshape(heads)
        k_bshc = self.key(x_btd).reshape(heads)
        v_bshc = self.value(x_btd).reshape(heads)
        einsum = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
        logits = einsum("bthc,bshc->bhts", q_bthc, k_bshc) / jnp.sqrt(1.0 * q_bthc.shape[-1])
        # A finite floor: a row that only fills up the batch has no real token at all.
        logits = jnp.where(real_bt[:, None, None, :], logits, jnp.finfo(logits.dtype).min)
        mixed = einsum("bhts,bshc->bthc", jax.nn.softmax(logits, axis=-1), v_bshc)
        return mixed.reshape(x_btd.shape)


class _AddAndNorm(nnx.Module):
    def __init__(self, in_features: int, config: BertConfig, rngs: nnx.Rngs) -> None:
        self.dense = _Linear(in_features, config.hidden_size, rngs=rngs)
        self.LayerNorm = _layer_norm(config, rngs)

    def __call__(self, x: jax.Array, residual: jax.Array) -> jax.Array:
        return self.LayerNorm(self.dense(x) + residual)


class _Attention(nnx.Module):
    def __init__(self, config: BertConfig, rngs: nnx.Rngs) -> None:
        self.self = _SelfAttention(config, rngs)
        self.output = _AddAndNorm(config.hidden_size, config, rngs)

    def __call__(self, x: jax.Array, real_bt: jax.Array) -> jax.Array:
        return self.output(self.self(x, real_bt), x)


class _Intermediate(nnx.Module):
    def __init__(self, config: BertConfig, rngs: nnx.Rngs) -> None:
        self.dense = _Linear(config.hidden_size, config.intermediate_size, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        # The checkpoint's "gelu" is the exact one; JAX's default is the tanh approximation.
        return jax.nn.gelu(self.dense(x), approximate=False)


class _Layer(nnx.Module):
    def __init__(self, config: BertConfig, rngs: nnx.Rngs) -> None:
        self.attention = _Attention(config, rngs)
        self.intermediate = _Intermediate(config, rngs)
        self.output = _AddAndNorm(config.intermediate_size, config, rngs)

    def __call__(self, x: jax.Array, real_bt: jax.Array) -> jax.Array:
        x = self.attention(x, real_bt)
        return self.output(self.intermediate(x), x)


class _Encoder(nnx.Module):
    def __init__(self, config: BertConfig, rngs: nnx.Rngs) -> None:
        self.layer = nnx.List([_Layer(config, rngs) for _ in range(config.num_hidden_layers)])

    def __call__(self, x: jax.Array, real_bt: jax.Array) -> jax.Array:
        for layer in self.layer:
            x = layer(x, real_bt)
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


def _layer_norm(config: BertConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(
        config.hidden_size, epsilon=config.layer_norm_eps, use_fast_variance=False, rngs=rngs
    )
