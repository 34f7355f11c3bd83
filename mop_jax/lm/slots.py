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
from mop_jax.lm.cache import KVCache, empty_cache
from mop_jax.lm.config import DecoderConfig
from mop_jax.lm.decoder import Decoder
from mop_jax.lm.drawing import TruncationArrays, draw_tokens
from mop_jax.lm.mesh import (
    cache_sharding,
    constrain,
    made_on,
    replicate,
    row_sharding,
    shard_rows,
    to_host,
)
from mop_jax.lm.prefixes import OUT_OF_RANGE, append

# Caches of up to this many tokens a slot are not cut to what is in use: little would be saved.
SHORT_WINDOW = 256
# In a table of ends, what any id before a shorter end is equal to.
ANY_ID = -1


Cache = Any
"""A `KVCache`, or an `UnstackedCache` where layers are run one by one."""


class Slots(NamedTuple):
    """What the device holds of B slots.

    Attributes:
        cache: keys and values of prompt and response, but for the last token.
        pending: int32 [B], that last token, which is run next.
        tokens: int32 [B, M], drawn so far.
        log_probs: float32 [B, M], of the tokens drawn.
        counts: int32 [B], how many.
        live: bool [B], whether a response is being drawn.
        ended: bool [B], whether an end token was drawn.
        faulty: bool [B], whether its logits were not finite.
    """

    cache: Cache
    pending: Array
    tokens: Array
    log_probs: Array
    counts: Array
    live: Array
    ended: Array
    faulty: Array


def idle(cache: Cache, num_slots: int, max_new_tokens: int) -> Slots:
    """Slots without work."""
    shape = (num_slots, max_new_tokens)
    return Slots(
        cache,
        jnp.zeros(num_slots, jnp.int32),
        jnp.zeros(shape, jnp.int32),
        jnp.zeros(shape, jnp.float32),
        *(jnp.zeros(num_slots, dtype) for dtype in (jnp.int32, bool, bool, bool)),
    )


def placed(slots: Slots, pending: Array, places: Array) -> Slots:
    """Slots in which the responses at `places` are to begin; those out of range are dropped.

    Args:
        slots: their cache is not looked at.
        pending: int32 [R], the last tokens of the prompts.
        places: int32 [R].
    """

    def put(old: Array, value) -> Array:
        return old.at[places].set(value, mode="drop")

    return slots._replace(
        pending=put(slots.pending, pending),
        counts=put(slots.counts, 0),
        live=put(slots.live, True),
        ended=put(slots.ended, False),
    )


def drawn(
    slots: Slots,
    logits: Array,
    keys: Array,
    temperature: Array,
    end_ids: Array,
    truncation: TruncationArrays,
) -> Slots:
    """Slots with one more token drawn in each that is live.

    Args:
        slots: their cache is not looked at.
        logits: float32 [B, V], of the next token.
        keys: [B], of the samples.
        temperature: float32 [B].
        end_ids: see `Whole.advance`.
        truncation: which tokens may be drawn.
    """
    step_keys = jax.vmap(jax.random.fold_in)(keys, slots.counts)
    token, log_prob = draw_tokens(step_keys, logits, temperature, truncation)
    num_slots, longest = slots.tokens.shape
    rows, place = jnp.arange(num_slots), jnp.where(slots.live, slots.counts, OUT_OF_RANGE)
    counts = slots.counts + slots.live
    tokens = slots.tokens.at[rows, place].set(token, mode="drop")
    ended = slots.live & _ends_with(tokens, counts, end_ids)
    return Slots(
        slots.cache,
        token,
        tokens,
        slots.log_probs.at[rows, place].set(log_prob, mode="drop"),
        counts,
        slots.live & ~ended & (counts < longest),
        slots.ended | ended,
        # A NaN or +∞ anywhere, or −∞ everywhere, is found in the maximum.
        slots.faulty | (slots.live & ~jnp.isfinite(logits.max(axis=-1))),
    )


class Whole:
    """Slots that a device draws in by itself, all layers in one program; on a mesh, too."""

    def __init__(self, decoder: Decoder, mesh: Mesh | None = None):
        """`mesh` is the decoder's; slots are split over `data`, heads over `model`."""
        self._config, self._dtype, self._mesh = decoder.config, decoder.dtype, mesh
        self._graph, self._state = nnx.split(decoder)
        cache = cache_sharding(mesh, decoder.config, rows_over_data=True)
        rows: Any = None if mesh is None else row_sharding(mesh)
        self._shardings = (
            None if cache is None else Slots(cache, *[rows] * (len(Slots._fields) - 1))
        )

    def idle(self, num_slots: int, size: int, max_new_tokens: int) -> Slots:
        """Slots without work; `size` is the number of tokens that each can hold."""
        return made_on(
            self._shardings, _idle, self._config, self._dtype, num_slots, size, max_new_tokens
        )

    def place(self, slots: Slots, pool: KVCache, rows, pending, places) -> Slots:
        """Puts prompts into slots.

        Args:
            slots: donated.
            pool: holds the prompts but for their last tokens.
            rows: int32 [R], of the pool.
            pending: int32 [R], the last tokens.
            places: int32 [R], slots; those out of range are dropped.
        """
        inputs = replicate(self._mesh, (rows, pending, places))
        return _place(slots, pool, *inputs, shardings=self._shardings)

    def resize(self, slots: Slots, size: int) -> Slots:
        """Slots that can hold `size` tokens each."""
        return _resize(slots, size=size, shardings=self._shardings)

    def advance(
        self, slots: Slots, root, sample_ids, temperature, end_ids,
        truncation: TruncationArrays, enough: int,
    ) -> tuple[Slots, int]:  # fmt: skip
        """Draws tokens in the live slots until `enough` responses are over, or one has no room.

        Args:
            slots: donated.
            root: key of the seed.
            sample_ids: uint32 [B], of the samples in the slots.
            temperature: float32 [B].
            end_ids: int32 [E, L], what ends a response, filled up with `ANY_ID` in front; or [E].
            truncation: which tokens may be drawn.
            enough: how many responses.

        Returns:
            The slots, and the number of steps.
        """
        by_slot = shard_rows(self._mesh, (sample_ids, temperature))
        slots, steps = _advance(
            self._graph, self._state, slots, root, *by_slot, end_ids, truncation, enough,
            shardings=self._shardings,
        )  # fmt: skip
        return slots, int(to_host(steps))


def _idle(
    config: DecoderConfig, dtype: jnp.dtype, num_slots: int, size: int, max_new_tokens: int
) -> Slots:
    return idle(empty_cache(config, num_slots, size, dtype), num_slots, max_new_tokens)


@partial(jax.jit, donate_argnames="slots", static_argnames="shardings")
def _place(
    slots: Slots,
    pool: KVCache,
    rows: Array,
    pending: Array,
    places: Array,
    *,
    shardings: Slots | None,
) -> Slots:
    # The rows first: cutting the pool would copy the whole of it.
    old, width = slots.cache, min(slots.cache.size, pool.size)
    new = pool.rows(rows).resized(width)
    cache = KVCache(
        old.keys.at[:, places, :, :, :width].set(new.keys, mode="drop"),
        old.values.at[:, places, :, :width].set(new.values, mode="drop"),
        old.lengths.at[places].set(new.lengths, mode="drop"),
    )
    return constrain(placed(slots, pending, places)._replace(cache=cache), shardings)


@partial(jax.jit, static_argnames=("size", "shardings"))
def _resize(slots: Slots, *, size: int, shardings: Slots | None) -> Slots:
    return constrain(slots._replace(cache=slots.cache.resized(size)), shardings)


@partial(jax.jit, static_argnames=("graph", "shardings"), donate_argnames="slots")
def _advance(
    graph, state, slots: Slots, root, sample_ids, temperature, end_ids,
    truncation: TruncationArrays, enough, *, shardings: Slots | None,
):  # fmt: skip
    decoder = nnx.merge(graph, state)
    keys = jax.vmap(partial(jax.random.fold_in, root))(sample_ids)
    num_live = slots.live.sum()
    size = slots.cache.size

    def unfinished(carry) -> Array:
        now, _ = carry
        filled = jnp.where(now.live, now.cache.lengths, 0).max()
        over = num_live - now.live.sum()
        return now.live.any() & (over < enough) & (filled < size) & ~now.faulty.any()

    def draw(carry):
        now, steps = carry
        hidden, new = decoder.extend(now.cache, now.pending[:, None], now.live.astype(jnp.int32))
        following = drawn(
            now._replace(cache=append(now.cache, new)),
            decoder.next_logits(hidden[:, 0]),
            keys,
            temperature,
            end_ids,
            truncation,
        )
        return constrain(following, shardings), steps + 1

    return jax.lax.while_loop(unfinished, draw, (slots, 0))


def end_table(ends: Ends) -> np.ndarray:
    """Sequences that end a response as one table [E, L]; see `Whole.advance`."""
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
