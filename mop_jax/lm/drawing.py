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
    """Draws one token a row, as `jax.random.categorical` does with the row's key and `mode="high"`.

    Args:
        keys: [B] typed keys.
        logits: float32 [B, V].
        temperature: [B]; 0 takes the likeliest token.
        truncation: which tokens may be drawn.

    Returns:
        Tokens int32 [B], and their log-probabilities [B] at the temperature, untruncated (at
        temperature 0: at temperature 1).
    """
    greedy = (temperature == 0)[:, None]
    log_probs = jax.nn.log_softmax(logits / jnp.where(greedy, 1.0, temperature[:, None]), axis=-1)
    kept = log_probs
    if any(rule is not None for rule in truncation):
        kept = truncate(log_probs, truncation)
    # The default, of 23 random bits, never draws tokens less likely than about 1e-7, of which a
    # large vocabulary has many: one in a thousand of SmolLM2's tokens at temperature 1.
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:], mode="high"))(keys)
    token = first_largest(jnp.where(greedy, logits, noise + kept))
    return token, jnp.take_along_axis(log_probs, token[:, None], axis=-1)[:, 0]


def first_largest(values: Array) -> Array:
    """Index of the first largest value of each row, int32 [B]; equals `argmax`.

    Two plain reductions: XLA vectorises them on CPUs, where it runs `argmax`, and all that is fused
    into it, number by number.
    """
    # Without the barrier the random numbers would be computed once for each reduction.
    values = jax.lax.optimization_barrier(values)
    size = values.shape[1]
    places = jnp.where(values == values.max(axis=-1, keepdims=True), jnp.arange(size), size - 1)
    return places.min(axis=-1).astype(jnp.int32)
