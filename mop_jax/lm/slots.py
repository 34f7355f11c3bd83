"""What the device holds and runs of sampling: slots that draw until enough responses are over.

A slot is a row of one batch: it holds the keys and values of a prompt and of the response drawn so
far. See `mop_jax.lm.sampling` for what fills them.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from mop_jax.lm.base import Ends
from mop_jax.lm.cache import KVCache, UnstackedCache, empty_cache, empty_unstacked_cache
from mop_jax.lm.config import DecoderConfig
from mop_jax.lm.drawing import TruncationArrays, draw_tokens
from mop_jax.lm.mesh import cache_sharding, constrain, row_sharding
from mop_jax.lm.prefixes import OUT_OF_RANGE, append
from mop_jax.lm.unstacked import merged

# Caches of up to this many tokens a slot are not cut to what is in use: little would be saved.
SHORT_WINDOW = 256
# In a table of ends, what any id before a shorter end is equal to.
ANY_ID = -1


class Slots(NamedTuple):
    """What the device holds of B slots.

    Attributes:
        cache: keys and values of prompt and response.
        hidden: [B, D], predicts the next token.
        tokens: int32 [B, M], drawn so far.
        log_probs: float32 [B, M], of the tokens drawn.
        counts: int32 [B], how many.
        live: bool [B], whether a response is being drawn.
        ended: bool [B], whether an end token was drawn.
        faulty: bool [B], whether its logits were not finite.
    """

    cache: KVCache | UnstackedCache
    hidden: Array
    tokens: Array
    log_probs: Array
    counts: Array
    live: Array
    ended: Array
    faulty: Array


class Prompts(NamedTuple):
    """Prompts that have been run: their keys and values, and the last hidden states [R, D]."""

    cache: KVCache
    hidden: Array


def idle_slots(
    config: DecoderConfig,
    dtype: jnp.dtype,
    num_slots: int,
    size: int,
    max_new_tokens: int,
    by_layer: bool = False,
) -> Slots:
    """Slots without work; `size` is the number of tokens that each can hold."""
    shape = (num_slots, max_new_tokens)
    empty = empty_unstacked_cache if by_layer else empty_cache
    return Slots(
        empty(config, num_slots, size, dtype),
        jnp.zeros((num_slots, config.hidden_size), dtype),
        jnp.zeros(shape, jnp.int32),
        jnp.zeros(shape, jnp.float32),
        *(jnp.zeros(num_slots, dtype) for dtype in (jnp.int32, bool, bool, bool)),
    )


def slots_sharding(mesh: Mesh | None, config: DecoderConfig) -> Slots | None:
    """Where slots lie, as slots of shardings: split over `data`, heads over `model`."""
    cache = cache_sharding(mesh, config, rows_over_data=True)
    if mesh is None or cache is None:
        return None
    rows: Any = row_sharding(mesh)
    return Slots(cache, *[rows] * (len(Slots._fields) - 1))


@partial(jax.jit, static_argnames=("graph", "packed"))
def run_prompts(graph, state, pool: KVCache, tokens, lengths, rows, packed=None) -> Prompts:
    """Runs requests [R, T] after the pool's rows; both are in the result.

    Of all tokens together at most `packed` are real, where that is given.
    """
    hidden, new = nnx.merge(graph, state).extend(pool, tokens, lengths, rows, packed=packed)
    prefix = KVCache(pool.keys[:, rows], pool.values[:, rows], pool.lengths[rows])
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    return Prompts(append(prefix.resized(pool.size + tokens.shape[1]), new), last)


# Apart from `run_prompts`, so that the donated slots are only written: see `place_rows`.
@partial(jax.jit, donate_argnames="slots", static_argnames="shardings")
def place_prompts(
    slots: Slots, prompts: Prompts, places: Array, shardings: Slots | None = None
) -> Slots:
    """Puts prompts into the slots at `places`; those out of range are dropped."""
    width = min(slots.cache.size, prompts.cache.size)
    new = prompts.cache.resized(width)

    def put(old: Array, value) -> Array:
        return old.at[places].set(value, mode="drop")

    def put_keys(old: Array, value) -> Array:
        return old.at[..., places, :, :, :width].set(value, mode="drop")

    def put_values(old: Array, value) -> Array:
        return old.at[..., places, :, :width, :].set(value, mode="drop")

    old, lengths = slots.cache, put(slots.cache.lengths, new.lengths)
    cache: KVCache | UnstackedCache
    if isinstance(old, UnstackedCache):
        keys, values = map(put_keys, old.keys, new.keys), map(put_values, old.values, new.values)
        cache = UnstackedCache(tuple(keys), tuple(values), lengths)
    else:
        cache = KVCache(put_keys(old.keys, new.keys), put_values(old.values, new.values), lengths)
    placed = Slots(
        cache,
        put(slots.hidden, prompts.hidden),
        slots.tokens,
        slots.log_probs,
        put(slots.counts, 0),
        put(slots.live, True),
        put(slots.ended, False),
        slots.faulty,
    )
    return constrain(placed, shardings)


@partial(jax.jit, static_argnames=("size", "shardings"))
def resize(slots: Slots, *, size: int, shardings: Slots | None = None) -> Slots:
    """Slots that can hold `size` tokens each."""
    return constrain(slots._replace(cache=slots.cache.resized(size)), shardings)


@partial(jax.jit, static_argnames=("graph", "structure", "shardings"), donate_argnames="slots")
def advance(
    graph, state, slots: Slots, root, sample_ids, temperature, end_ids,
    truncation: TruncationArrays, enough, shardings: Slots | None = None,
    structure=None, layers=(),
):  # fmt: skip
    """Draws tokens in the live slots until `enough` responses are over, or a slot has no room.

    Args:
        graph: the decoder's structure.
        state: the decoder's weights.
        slots: donated.
        root: key of the seed.
        sample_ids: uint32 [B], of the samples in the slots.
        temperature: float32 [B].
        end_ids: int32 [E, L], what ends a response, filled up with `ANY_ID` in front; or [E].
        truncation: which tokens may be drawn.
        enough: how many responses.
        shardings: where the slots lie, on a mesh.
        structure: of the layers one by one; see `unstacked_layers`.
        layers: their weights.

    Returns:
        The slots, and the number of steps.
    """
    decoder, one_by_one = nnx.merge(graph, state), merged(structure, layers)
    keys = jax.vmap(partial(jax.random.fold_in, root))(sample_ids)
    num_slots, longest = slots.tokens.shape
    num_live = slots.live.sum()
    size = slots.cache.size

    def unfinished(carry) -> Array:
        now, _ = carry
        filled = jnp.where(now.live, now.cache.lengths, 0).max()
        over = num_live - now.live.sum()
        return now.live.any() & (over < enough) & (filled < size) & ~now.faulty.any()

    def draw(carry):
        now, steps = carry
        logits = decoder.next_logits(now.hidden)
        step_keys = jax.vmap(jax.random.fold_in)(keys, now.counts)
        token, log_prob = draw_tokens(step_keys, logits, temperature, truncation)
        rows, place = jnp.arange(num_slots), jnp.where(now.live, now.counts, OUT_OF_RANGE)
        counts = now.counts + now.live
        tokens = now.tokens.at[rows, place].set(token, mode="drop")
        ended = now.live & _ends_with(tokens, counts, end_ids)
        live = now.live & ~ended & (counts < longest)
        cache: KVCache | UnstackedCache
        if one_by_one is None or isinstance(now.cache, KVCache):
            hidden, new = decoder.extend(now.cache, token[:, None], live.astype(jnp.int32))
            hidden, cache = hidden[:, 0], append(now.cache, new)
        else:
            hidden, cache = decoder.step(now.cache, token, live, one_by_one)
        following = Slots(
            cache,
            hidden,
            tokens,
            now.log_probs.at[rows, place].set(log_prob, mode="drop"),
            counts,
            live,
            now.ended | ended,
            # A NaN or +∞ anywhere, or −∞ everywhere, is found in the maximum.
            now.faulty | (now.live & ~jnp.isfinite(logits.max(axis=-1))),
        )
        return constrain(following, shardings), steps + 1

    return jax.lax.while_loop(unfinished, draw, (slots, 0))


def end_table(ends: Ends) -> np.ndarray:
    """Sequences that end a response as one table [E, L], for `advance`."""
    sequences = [[end] if isinstance(end, int | np.integer) else list(end) for end in ends]
    sequences = [sequence for sequence in sequences if sequence]
    longest = max(map(len, sequences), default=1)
    rows = [[ANY_ID] * (longest - len(sequence)) + sequence for sequence in sequences]
    return np.asarray(rows, np.int32).reshape(len(rows), longest)


def _ends_with(tokens: Array, counts: Array, ends: Array) -> Array:
    """Whether the first `counts` of `tokens` [B, M] end with one of `ends` [E, L] or [E]."""
    ends = ends[:, None] if ends.ndim == 1 else ends
    length = ends.shape[1]
    places = counts[:, None] - length + jnp.arange(length)
    last = jnp.take_along_axis(tokens, jnp.maximum(places, 0), axis=1)
    last = jnp.where(places < 0, ANY_ID - 1, last)
    return ((last[:, None] == ends) | (ends == ANY_ID)).all(axis=2).any(axis=1)


def windows(longest: int) -> list[int]:
    """Cache lengths that slots may have, increasing; the last has room for `longest` tokens.

    Halves, so that attention costs at most about twice what the tokens in use do, whatever the
    longest response that is allowed; but none so short that little would be saved.
    """
    sizes = [-(-longest // 16) * 16]
    while sizes[0] >= 2 * SHORT_WINDOW:
        sizes.insert(0, -(-sizes[0] // 32) * 16)
    return sizes
