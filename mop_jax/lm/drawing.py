"""Draws tokens from logits: temperature, truncation, and the probabilities that are reported.

Truncations are applied in the order of Hugging Face's `generate`, each on what the one before left:
top-k, top-p, min-p, all after the temperature. They change what is drawn; the log-probabilities
reported are those of the untruncated distribution at the temperature.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mop_jax.lm.base import Truncation

# Tokens of a block of the vocabulary; about the root of its size. Which tokens a key draws depends
# on it: it is the same on every machine.
BLOCK = 128


class TruncationArrays(NamedTuple):
    """The rules of a `Truncation` that are not without effect, as traced arrays."""

    top_k: Array | np.ndarray | None = None
    top_p: Array | np.ndarray | None = None
    min_p: Array | np.ndarray | None = None

    @classmethod
    def of(cls, truncation: Truncation) -> TruncationArrays:
        """The arrays of a truncation."""
        top_k, top_p, min_p = truncation.top_k, truncation.top_p, truncation.min_p
        return cls(
            None if top_k is None else np.asarray(top_k, np.int32),
            None if top_p == 1 else np.asarray(top_p, np.float32),
            None if min_p == 0 else np.asarray(min_p, np.float32),
        )


def truncate(log_probs: Array, truncation: TruncationArrays) -> Array:
    """Log-probabilities [B, V] with −∞ for the tokens that may not be drawn, not renormalised."""
    top_k, top_p, min_p = truncation
    threshold = jnp.full(log_probs.shape[:1], -jnp.inf)
    if top_k is not None or top_p is not None:
        ordered = jnp.sort(log_probs, axis=-1, descending=True)
        probs = jnp.exp(ordered)
        total = jnp.ones(log_probs.shape[:1])
        if top_k is not None:
            threshold = jnp.take(ordered, jnp.minimum(top_k, ordered.shape[1]) - 1, axis=1)
            probs = jnp.where(ordered >= threshold[:, None], probs, 0.0)
            total = probs.sum(axis=-1)
        if top_p is not None:
            before = jnp.cumsum(probs, axis=-1) - probs
            # The last token whose predecessors hold less than top_p is the least likely one kept.
            last = jnp.maximum((before < top_p * total[:, None]).sum(axis=-1), 1) - 1
            least = jnp.take_along_axis(ordered, last[:, None], axis=-1)[:, 0]
            threshold = jnp.maximum(threshold, least)
    if min_p is not None:
        threshold = jnp.maximum(threshold, log_probs.max(axis=-1) + jnp.log(min_p))
    return jnp.where(log_probs >= threshold[:, None], log_probs, -jnp.inf)


def draw_tokens(
    keys: Array, logits: Array, temperature: Array, truncation: TruncationArrays
) -> tuple[Array, Array]:
    """Draws one token a row: first a block of the vocabulary, then a token of the block.

    p(token) = p(block) · p(token | block), each drawn by `jax.random.categorical`. A step needs
    some hundred random numbers a row; one for each token took a CPU longer than the logits.
    `mode="high"`, since the default, of 23 random bits, never draws what is less likely than about
    1e-7, and a large vocabulary has many such tokens: one in a thousand of SmolLM2's at
    temperature 1.

    Args:
        keys: [B] typed keys.
        logits: float32 [B, V].
        temperature: [B]; 0 takes the likeliest token.
        truncation: which tokens may be drawn.

    Returns:
        Tokens int32 [B], and their log-probabilities [B] at the temperature, untruncated (at
        temperature 0: at temperature 1).
    """
    greedy = temperature == 0
    scaled = in_blocks(logits) / jnp.where(greedy, 1.0, temperature)
    most = scaled.max(axis=1)
    by_block = _log_sum_exp(scaled, most)
    total = _log_sum_exp(by_block, by_block.max(axis=0))
    kept, kept_by_block = scaled, by_block
    if any(rule is not None for rule in truncation):
        heat = jnp.where(greedy, 1.0, temperature)[:, None]
        kept = in_blocks(truncate(jax.nn.log_softmax(logits / heat, axis=-1), truncation))
        kept_by_block = _log_sum_exp(kept, kept.max(axis=1))

    @jax.vmap
    def draw(key: Array, weights: Array) -> Array:
        return jax.random.categorical(key, weights, mode="high")

    first, second = jax.vmap(jax.random.split, out_axes=1)(keys)
    rows = jnp.arange(len(temperature))
    block = jnp.where(greedy, most.argmax(axis=0), draw(first, kept_by_block.T))
    inside = jnp.where(greedy[:, None], scaled[block, :, rows], kept[block, :, rows])
    place = jnp.where(greedy, inside.argmax(axis=1), draw(second, inside))
    log_prob = scaled[block, place, rows] - total
    return (block * BLOCK + place).astype(jnp.int32), log_prob


def in_blocks(logits: Array) -> Array:
    """Logits [B, V] as [V / 128, 128, B], filled up with −∞."""
    # Rows last: that is how a product by the vocabulary leaves them, and sums over a block's tokens
    # then run over neighbouring rows at once.
    columns = jnp.pad(logits.T, ((0, -logits.shape[1] % BLOCK), (0, 0)), constant_values=-jnp.inf)
    return columns.reshape(-1, BLOCK, logits.shape[0])


def _log_sum_exp(values: Array, most: Array) -> Array:
    """Over the last axis but one, given its maximum; −∞ where that is −∞."""
    least = jnp.where(jnp.isfinite(most), most, 0.0)
    return jnp.log(jnp.exp(values - least[..., None, :]).sum(axis=-2)) + least
