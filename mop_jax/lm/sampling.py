"""Ancestral sampling of responses on shared prefixes.

Each sample draws from a key of its own, `fold_in(seed, sample id)`, folded again with the position:
its text does not depend on what else is in the batch, nor on the batch's size. Temperatures may
differ between samples, as the mixture's personas do. Truncation (top-p) changes what is drawn;
reported log-probabilities are those of the untruncated distribution at the sampling temperature.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from mop_jax.errors import FaultError
from mop_jax.lm.base import TokenIds
from mop_jax.lm.decoder import Decoder, KVCache
from mop_jax.lm.memory import default_memory
from mop_jax.lm.planning import by_backend, pad
from mop_jax.lm.prefixes import OUT_OF_RANGE, append, prefix_pools

SLOTS = {"cpu": 16}
SLOTS_ACCELERATOR = 128


class Samples(NamedTuple):
    """What was drawn for each pair.

    Attributes:
        token_ids: drawn ids, the end token included.
        log_probs: float64 [n], nats, under the untruncated distribution.
        finished: bool [n], whether an end token was drawn.
    """

    token_ids: list[list[int]]
    log_probs: np.ndarray
    finished: np.ndarray


OnSamples = Callable[[np.ndarray, Samples], None]


class _Slots(NamedTuple):
    cache: KVCache
    hidden: Array  # [B, D], predicts the next token
    tokens: Array  # [B, M] drawn so far
    counts: Array  # [B]
    log_probs: Array  # [B]
    finished: Array  # [B]


@partial(jax.jit, static_argnames=("graph", "num_slots"))
def start_slots(graph, state, pool, tokens, lengths, rows, *, num_slots: int):
    """Copies prefix rows into a cache with `num_slots` slots a row, and runs the requests."""
    room = num_slots - pool.keys.shape[2]
    widths = ((0, 0), (0, 0), (0, room), (0, 0), (0, 0))
    prefix = KVCache(pool.keys[:, rows], pool.values[:, rows], pool.lengths[rows])
    hidden, new = nnx.merge(graph, state).extend(prefix, tokens, lengths)
    cache = KVCache(jnp.pad(prefix.keys, widths), jnp.pad(prefix.values, widths), prefix.lengths)
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    return append(cache, new), last


@partial(jax.jit, static_argnames=("graph", "truncated", "max_new_tokens"))
def decode(
    graph, state, cache, hidden, keys, temperature, end_ids, top_p, idle,
    *, truncated: bool, max_new_tokens: int,
):  # fmt: skip
    """Draws tokens in every slot until each has ended or `max_new_tokens` are drawn."""
    decoder = nnx.merge(graph, state)
    batch = hidden.shape[0]

    def unfinished(slots: _Slots) -> Array:
        return ~slots.finished.all() & (slots.counts.max() < max_new_tokens)

    def draw(slots: _Slots) -> _Slots:
        live = ~slots.finished
        step_keys = jax.vmap(jax.random.fold_in)(keys, slots.counts)
        token, log_prob = draw_tokens(
            step_keys, decoder.logits(slots.hidden), temperature, top_p if truncated else None
        )
        ended = (token[:, None] == end_ids).any(axis=1)
        position = jnp.where(live, slots.counts, OUT_OF_RANGE)
        tokens = slots.tokens.at[jnp.arange(batch), position].set(token, mode="drop")
        hidden, new = decoder.extend(slots.cache, token[:, None], live.astype(jnp.int32))
        return _Slots(
            append(slots.cache, new),
            hidden[:, 0],
            tokens,
            slots.counts + live,
            slots.log_probs + jnp.where(live, log_prob, 0.0),
            slots.finished | ended,
        )

    start = _Slots(
        cache,
        hidden,
        jnp.zeros((batch, max_new_tokens), jnp.int32),
        jnp.zeros(batch, jnp.int32),
        jnp.zeros(batch),
        idle,
    )
    end = jax.lax.while_loop(unfinished, draw, start)
    return end.tokens, end.counts, end.log_probs, end.finished


def draw_tokens(
    keys: Array, logits: Array, temperature: Array, top_p: Array | None
) -> tuple[Array, Array]:
    """Draws one token a row.

    Args:
        keys: [B] typed keys.
        logits: float32 [B, V].
        temperature: [B]; 0 takes the likeliest token.
        top_p: scalar; the smallest set of likeliest tokens with at least this probability is kept
            (None: all).

    Returns:
        Tokens int32 [B], and their log-probabilities [B] at the temperature, untruncated (at
        temperature 0: at temperature 1).
    """
    greedy = temperature == 0
    log_probs = jax.nn.log_softmax(logits / jnp.where(greedy, 1.0, temperature)[:, None], axis=-1)
    kept = log_probs
    if top_p is not None:
        ordered = jnp.sort(log_probs, axis=-1, descending=True)
        before = jnp.cumsum(jnp.exp(ordered), axis=-1) - jnp.exp(ordered)
        # The last token whose predecessors hold less than top_p is the least likely one kept.
        last = jnp.maximum((before < top_p).sum(axis=-1), 1) - 1
        threshold = jnp.take_along_axis(ordered, last[:, None], axis=-1)
        kept = jnp.where(log_probs >= threshold, log_probs, -jnp.inf)
    drawn = jax.vmap(jax.random.categorical)(keys, kept)
    token = jnp.where(greedy, jnp.argmax(logits, axis=-1), drawn).astype(jnp.int32)
    return token, jnp.take_along_axis(log_probs, token[:, None], axis=-1)[:, 0]


def sample_pairs(
    decoder: Decoder,
    prefixes: Sequence[Sequence[TokenIds]],
    requests: Sequence[TokenIds],
    pairs: np.ndarray,
    *,
    seed: int,
    temperature: np.ndarray,
    sample_ids: np.ndarray,
    end_ids: Sequence[int],
    top_p: float = 1.0,
    max_new_tokens: int = 96,
    memory: float | None = None,
    skip: np.ndarray | None = None,
    on_samples: OnSamples = lambda indices, samples: None,
) -> Samples:
    """Draws one response for each (prefix, request) pair.

    Args:
        decoder: the model.
        prefixes: paths of segments of ids.
        requests: ids that follow a prefix; at least one each.
        pairs: int [n, 2], indices of prefix and request.
        seed: with `sample_ids`, decides every draw.
        temperature: [n].
        sample_ids: int [n], distinct; the sample's identity whatever the batch.
        end_ids: ids that end a response.
        top_p: probability kept by nucleus truncation, in (0, 1].
        max_new_tokens: longest response, end token included.
        memory: bytes of pooled prefixes at a time; a share of what there is by default.
        skip: bool [n], samples that are not needed. Batches are planned as if they were, and run
            unless all their samples are skipped, so that what is drawn does not depend on it.
        on_samples: called with the indices of samples just drawn, and the samples.

    Raises:
        FaultError: if the logits are not finite.
    """
    graph, state = nnx.split(decoder)
    num_rows = min(by_backend(SLOTS, SLOTS_ACCELERATOR), -(-len(pairs) // 4) * 4)
    root = jax.random.key(seed)
    token_ids: list[list[int]] = [[] for _ in pairs]
    log_probs, finished = np.zeros(len(pairs)), np.zeros(len(pairs), bool)
    longest = -(-max((len(r) for r in requests), default=1) // 16) * 16
    memory = default_memory(decoder) if memory is None else memory
    for pool, members in prefix_pools(decoder, prefixes, pairs[:, 0], memory, skip):
        num_slots = pool.cache.keys.shape[2] + longest + max_new_tokens
        for begin in range(0, len(members), num_rows):
            batch = members[begin : begin + num_rows]
            if skip is not None and skip[batch].all():
                continue
            tokens, lengths = pad([requests[pairs[i, 1]] for i in batch], longest, num_rows)
            rows = np.zeros(num_rows, np.int32)
            rows[: len(batch)] = [pool.row_of[int(pairs[i, 0])] for i in batch]
            ids = np.zeros(num_rows, np.uint32)
            ids[: len(batch)] = sample_ids[batch]
            heat = np.ones(num_rows, np.float32)
            heat[: len(batch)] = np.asarray(temperature)[batch]
            cache, hidden = start_slots(
                graph, state, pool.cache, tokens, np.maximum(lengths, 1), rows, num_slots=num_slots
            )
            drawn, counts, scores, ended = decode(
                graph,
                state,
                cache,
                hidden,
                jax.vmap(partial(jax.random.fold_in, root))(ids),
                heat,
                np.asarray(end_ids, np.int32),
                np.float32(top_p),
                np.arange(num_rows) >= len(batch),
                truncated=top_p < 1.0,
                max_new_tokens=max_new_tokens,
            )
            drawn, counts = np.asarray(drawn), np.asarray(counts)
            scores, ended = np.asarray(scores), np.asarray(ended)
            for row, i in enumerate(batch):
                token_ids[i] = drawn[row, : counts[row]].tolist()
                log_probs[i], finished[i] = float(scores[row]), bool(ended[row])
                if not np.isfinite(log_probs[i]):
                    raise FaultError(
                        f"The language model gave logits that are not finite in sample "
                        f"{int(sample_ids[i])}."
                    )
            on_samples(
                np.asarray(batch),
                Samples([token_ids[i] for i in batch], log_probs[batch], finished[batch]),
            )
    return Samples(token_ids, log_probs, finished)
