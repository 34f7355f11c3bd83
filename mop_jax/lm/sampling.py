"""Ancestral sampling of responses on shared prefixes, in slots that refill.

A slot is a row of one batch: it holds the keys and values of a prompt and of the response drawn so
far. When a response ends, its slot takes the next sample that waits: the prefix's row of the pool
is copied in, the request is run, and drawing goes on; long responses do not hold short ones up. The
device draws on its own until enough slots are free, then the host collects and refills. Few shapes
occur, and the slots are updated in place.

Each sample draws from a key of its own, `fold_in(seed, sample id)`, folded again with the position:
its text does not depend on what is drawn beside it, on the order, or on the number of slots.
Temperatures may differ between samples, as the mixture's personas do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from mop_jax.errors import FaultError
from mop_jax.lm.base import TokenIds
from mop_jax.lm.config import DecoderConfig
from mop_jax.lm.decoder import Decoder, KVCache, empty_cache
from mop_jax.lm.drawing import Truncation, draw_tokens
from mop_jax.lm.memory import default_memory
from mop_jax.lm.mesh import (
    cache_sharding,
    constrain,
    made_on,
    num_lanes,
    replicate,
    row_sharding,
    shard_rows,
    to_host,
)
from mop_jax.lm.planning import by_backend, pad
from mop_jax.lm.prefixes import OUT_OF_RANGE, PrefixPool, append, prefix_pools

# On each device along `data`.
SLOTS = {"cpu": 32}
SLOTS_ACCELERATOR = 128
# Slots are refilled when this share of them is free: a smaller one leaves fewer idle, a larger one
# runs more requests at a time.
REFILL_SHARE = 1 / 8
MIN_REFILL = 4
# Caches of up to this many tokens a slot are not cut to what is in use: little would be saved.
SHORT_WINDOW = 256


class Samples(NamedTuple):
    """What was drawn for each pair.

    Attributes:
        token_ids: drawn ids, the end token included.
        token_log_probs: of each drawn id, float32 arrays, nats, under the untruncated distribution.
        log_probs: their sums, float64 [n].
        finished: bool [n], whether an end token was drawn.
        slot_steps: tokens that were computed until then, those of idle slots included.
    """

    token_ids: list[list[int]]
    token_log_probs: list[np.ndarray]
    log_probs: np.ndarray
    finished: np.ndarray
    slot_steps: int


OnSamples = Callable[[np.ndarray, Samples], None]


class Slots(NamedTuple):
    """What the device holds of B slots.

    Attributes:
        cache: keys and values [L, B, S, K, E] of prompt and response.
        hidden: [B, D], predicts the next token.
        tokens: int32 [B, M], drawn so far.
        log_probs: float32 [B, M], of the tokens drawn.
        counts: int32 [B], how many.
        live: bool [B], whether a response is being drawn.
        ended: bool [B], whether an end token was drawn.
        faulty: bool [B], whether its logits were not finite.
    """

    cache: KVCache
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
    config: DecoderConfig, dtype: jnp.dtype, num_slots: int, size: int, max_new_tokens: int
) -> Slots:
    """Slots without work; `size` is the number of tokens that each can hold."""
    shape = (num_slots, max_new_tokens)
    return Slots(
        empty_cache(config, num_slots, size, dtype),
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


@partial(jax.jit, static_argnames="graph")
def run_prompts(graph, state, pool: KVCache, tokens, lengths, rows) -> Prompts:
    """Runs requests [R, T] after the pool's rows; both are in the result."""
    hidden, new = nnx.merge(graph, state).extend(pool, tokens, lengths, rows)
    prefix = KVCache(pool.keys[:, rows], pool.values[:, rows], pool.lengths[rows])
    room = ((0, 0), (0, 0), (0, tokens.shape[1]), (0, 0), (0, 0))
    cache = KVCache(jnp.pad(prefix.keys, room), jnp.pad(prefix.values, room), prefix.lengths)
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    return Prompts(append(cache, new), last)


# Apart from `run_prompts`, so that the donated slots are only written: see `place_rows`.
@partial(jax.jit, donate_argnames="slots", static_argnames="shardings")
def place_prompts(
    slots: Slots, prompts: Prompts, places: Array, shardings: Slots | None = None
) -> Slots:
    """Puts prompts into the slots at `places`; those out of range are dropped."""
    width = min(slots.cache.keys.shape[2], prompts.cache.keys.shape[2])
    new = prompts.cache

    def put(old: Array, value) -> Array:
        return old.at[places].set(value, mode="drop")

    placed = Slots(
        KVCache(
            slots.cache.keys.at[:, places, :width].set(new.keys[:, :, :width], mode="drop"),
            slots.cache.values.at[:, places, :width].set(new.values[:, :, :width], mode="drop"),
            put(slots.cache.lengths, new.lengths),
        ),
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
    old = slots.cache.keys.shape[2]
    room = ((0, 0), (0, 0), (0, max(0, size - old)), (0, 0), (0, 0))
    keys, values = (jnp.pad(x, room)[:, :, :size] for x in slots.cache[:2])
    resized = slots._replace(cache=KVCache(keys, values, slots.cache.lengths))
    return constrain(resized, shardings)


@partial(jax.jit, static_argnames=("graph", "shardings"), donate_argnames="slots")
def advance(
    graph, state, slots: Slots, root, sample_ids, temperature, end_ids,
    truncation: Truncation, enough, shardings: Slots | None = None,
):  # fmt: skip
    """Draws tokens in the live slots until `enough` responses are over, or a slot has no room.

    Args:
        graph: the decoder's structure.
        state: the decoder's weights.
        slots: donated.
        root: key of the seed.
        sample_ids: uint32 [B], of the samples in the slots.
        temperature: float32 [B].
        end_ids: int32, the ids that end a response.
        truncation: which tokens may be drawn.
        enough: how many responses.
        shardings: where the slots lie, on a mesh.

    Returns:
        The slots, and the number of steps.
    """
    decoder = nnx.merge(graph, state)
    keys = jax.vmap(partial(jax.random.fold_in, root))(sample_ids)
    num_slots, longest = slots.tokens.shape
    num_live = slots.live.sum()
    size = slots.cache.keys.shape[2]

    def unfinished(carry) -> Array:
        now, _ = carry
        filled = jnp.where(now.live, now.cache.lengths, 0).max()
        over = num_live - now.live.sum()
        return now.live.any() & (over < enough) & (filled < size) & ~now.faulty.any()

    def draw(carry):
        now, steps = carry
        logits = decoder.logits(now.hidden)
        step_keys = jax.vmap(jax.random.fold_in)(keys, now.counts)
        token, log_prob = draw_tokens(step_keys, logits, temperature, truncation)
        rows, place = jnp.arange(num_slots), jnp.where(now.live, now.counts, OUT_OF_RANGE)
        counts = now.counts + now.live
        ended = now.live & (token[:, None] == end_ids).any(axis=1)
        live = now.live & ~ended & (counts < longest)
        hidden, new = decoder.extend(now.cache, token[:, None], live.astype(jnp.int32))
        following = Slots(
            append(now.cache, new),
            hidden[:, 0],
            now.tokens.at[rows, place].set(token, mode="drop"),
            now.log_probs.at[rows, place].set(log_prob, mode="drop"),
            counts,
            live,
            now.ended | ended,
            # A NaN or +∞ anywhere, or −∞ everywhere, is found in the maximum.
            now.faulty | (now.live & ~jnp.isfinite(logits.max(axis=-1))),
        )
        return constrain(following, shardings), steps + 1

    return jax.lax.while_loop(unfinished, draw, (slots, 0))


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
    top_k: int | None = None,
    min_p: float = 0.0,
    max_new_tokens: int = 96,
    memory: float | None = None,
    skip: np.ndarray | None = None,
    on_samples: OnSamples = lambda indices, samples: None,
    mesh: Mesh | None = None,
) -> Samples:
    """Draws one response for each (prefix, request) pair.

    Args:
        decoder: the model.
        prefixes: paths of segments of ids.
        requests: ids that follow a prefix; at least one each.
        pairs: int [n, 2], indices of prefix and request.
        seed: with `sample_ids`, decides every draw.
        temperature: [n]; 0 takes the likeliest token at each step.
        sample_ids: int [n], distinct; the sample's identity whatever the batch.
        end_ids: ids that end a response.
        top_p: see `mop_jax.lm.drawing.Truncation`; 1 keeps all tokens.
        top_k: the same; None keeps all tokens.
        min_p: the same; 0 keeps all tokens.
        max_new_tokens: longest response, end token included.
        memory: bytes of a device that pooled prefixes may take at a time; by default a share of
            what the machine has.
        skip: bool [n], samples that are not needed and not drawn; they come back empty. Slots are
            planned as if they were needed, so that the others are drawn in the same shapes.
        on_samples: called with the indices of samples just drawn, and the samples; in any order.
        mesh: the decoder's; slots are split over `data`.

    Raises:
        DataError: if a truncation is out of its range.
        FaultError: if the logits are not finite; names the sample.
    """
    truncation = Truncation.of(top_k, top_p, min_p)
    drawn = Samples(
        [[] for _ in pairs],
        [np.zeros(0, np.float32) for _ in pairs],
        np.zeros(len(pairs)),
        np.zeros(len(pairs), bool),
        0,
    )
    if not len(pairs) or (skip is not None and skip.all()):
        return drawn
    work = _Work(
        decoder,
        np.asarray(temperature, np.float32),
        np.asarray(sample_ids),
        _prompt_lengths(prefixes, requests, pairs),
        jax.random.key(seed),
        np.asarray(end_ids, np.int32),
        truncation,
        max_new_tokens,
        drawn,
        on_samples,
        mesh,
    )
    longest = -(-max(len(requests[r]) for r in pairs[:, 1]) // 8) * 8
    memory = default_memory(decoder) if memory is None else memory
    for pool, members in prefix_pools(decoder, prefixes, pairs[:, 0], memory, skip, mesh):
        waiting = [i for i in members if skip is None or not skip[i]]
        for batch in work.batches(waiting):
            work.run_until_free(len(batch))
            tokens, lengths = pad([requests[pairs[i, 1]] for i in batch], longest, work.num_refill)
            work.refill(pool, tokens, lengths, batch, [int(pairs[i, 0]) for i in batch])
        # Gone before the next one is made: the budget is for one.
        del pool
    work.run_until_free(work.num_slots)
    return drawn._replace(slot_steps=work.slot_steps)


class _Work:
    """The slots on the device, and which sample each of them draws."""

    def __init__(
        self,
        decoder: Decoder,
        temperature: np.ndarray,
        sample_ids: np.ndarray,
        prompt_lengths: np.ndarray,
        root: Array,
        end_ids: np.ndarray,
        truncation: Truncation,
        max_new_tokens: int,
        drawn: Samples,
        on_samples: OnSamples,
        mesh: Mesh | None,
    ):
        """Starts with idle slots; the arguments are those of `sample_pairs`, by sample."""
        self._graph, self._state = nnx.split(decoder)
        self._temperature, self._sample_ids = temperature, sample_ids
        self._prompt_lengths, self._mesh = prompt_lengths, mesh
        # As plain numbers: typed keys cannot be put on devices of other hosts.
        root_data: Any = replicate(mesh, np.asarray(jax.random.key_data(root)))
        self._root = jax.random.wrap_key_data(root_data)
        self._end_ids, self._truncation = replicate(mesh, (end_ids, truncation))
        self._drawn, self._on_samples = drawn, on_samples
        lanes = num_lanes(mesh)
        num_slots = min(by_backend(SLOTS, SLOTS_ACCELERATOR) * lanes, -(-len(sample_ids) // 4) * 4)
        self.num_slots = -(-num_slots // lanes) * lanes
        self.num_refill = max(MIN_REFILL, int(self.num_slots * REFILL_SHARE))
        self.num_refill = -(-self.num_refill // lanes) * lanes
        self._windows = windows(int(prompt_lengths.max()) + max_new_tokens)
        self._shardings = slots_sharding(mesh, decoder.config)
        self._slots = made_on(
            self._shardings, idle_slots, decoder.config, decoder.dtype, self.num_slots,
            self._windows[0], max_new_tokens,
        )  # fmt: skip
        self._owner = np.full(self.num_slots, -1)
        self._filled = np.zeros(self.num_slots, int)
        self.slot_steps = 0

    def batches(self, waiting: Sequence[int]) -> Iterator[list[int]]:
        """Samples in the portions that are refilled together, short prompts first.

        Slots of about the same length need the smallest window.
        """
        order = sorted(waiting, key=lambda i: self._prompt_lengths[i])
        for begin in range(0, len(order), self.num_refill):
            yield order[begin : begin + self.num_refill]

    def refill(
        self,
        pool: PrefixPool,
        tokens: np.ndarray,
        lengths: np.ndarray,
        batch: list[int],
        prefixes: list[int],
    ) -> None:
        """Gives free slots the samples `batch`, whose requests are `tokens`."""
        rows = np.zeros(self.num_refill, np.int32)
        rows[: len(batch)] = [pool.row_of[i] for i in prefixes]
        inputs = shard_rows(self._mesh, (tokens, np.maximum(lengths, 1), rows))
        prompts = run_prompts(self._graph, self._state, pool.cache, *inputs)
        free = np.flatnonzero(self._owner < 0)[: len(batch)]
        places = np.full(self.num_refill, OUT_OF_RANGE, np.int32)
        places[: len(batch)] = free
        self._owner[free], self._filled[free] = batch, self._prompt_lengths[batch]
        self._fit()
        self._slots = place_prompts(
            self._slots, prompts, replicate(self._mesh, places), self._shardings
        )

    def run_until_free(self, wanted: int) -> None:
        """Draws until that many slots are free, and hands over what has ended."""
        while (missing := wanted - int((self._owner < 0).sum())) > 0:
            self._fit()
            owner = np.maximum(self._owner, 0)
            by_slot = (self._sample_ids[owner].astype(np.uint32), self._temperature[owner])
            self._slots, steps = advance(
                self._graph,
                self._state,
                self._slots,
                self._root,
                *shard_rows(self._mesh, by_slot),
                self._end_ids,
                self._truncation,
                min(missing, self.num_refill),
                self._shardings,
            )
            self.slot_steps += int(to_host(steps)) * self.num_slots
            self._collect()

    def _fit(self) -> None:
        # The smallest window with room for one more token in every slot that is in use.
        needed = max(self._filled[self._owner >= 0], default=0) + 1
        size = next((size for size in self._windows if size >= needed), self._windows[-1])
        if size != self._slots.cache.keys.shape[2]:
            self._slots = resize(self._slots, size=size, shardings=self._shardings)

    def _collect(self) -> None:
        slots = self._slots
        faulty, live, ended = to_host((slots.faulty, slots.live, slots.ended))
        if faulty.any():
            raise FaultError(
                "The language model gave logits that are not finite in sample "
                f"{int(self._sample_ids[self._owner[np.flatnonzero(faulty)[0]]])}."
            )
        self._filled = np.array(to_host(slots.cache.lengths))
        over = np.flatnonzero(~live & (self._owner >= 0))
        if not len(over):
            return
        counts, tokens, log_probs = to_host((slots.counts, slots.tokens, slots.log_probs))
        drawn, indices = self._drawn, self._owner[over]
        for slot, i in zip(over, indices, strict=True):
            drawn.token_ids[i] = tokens[slot, : counts[slot]].tolist()
            drawn.token_log_probs[i] = log_probs[slot, : counts[slot]].copy()
            drawn.log_probs[i] = drawn.token_log_probs[i].sum(dtype=np.float64)
            drawn.finished[i] = ended[slot]
        self._owner[over] = -1
        self._on_samples(
            indices,
            Samples(
                [drawn.token_ids[i] for i in indices],
                [drawn.token_log_probs[i] for i in indices],
                drawn.log_probs[indices],
                drawn.finished[indices],
                self.slot_steps,
            ),
        )


def windows(longest: int) -> list[int]:
    """Cache lengths that slots may have, increasing; the last has room for `longest` tokens.

    Halves, so that attention costs at most about twice what the tokens in use do, whatever the
    longest response that is allowed; but none so short that little would be saved.
    """
    sizes = [-(-longest // 16) * 16]
    while sizes[0] >= 2 * SHORT_WINDOW:
        sizes.insert(0, -(-sizes[0] // 32) * 16)
    return sizes


def _prompt_lengths(prefixes, requests, pairs: np.ndarray) -> np.ndarray:
    before = np.asarray([sum(map(len, prefix)) for prefix in prefixes])
    return before[pairs[:, 0]] + np.asarray([len(request) for request in requests])[pairs[:, 1]]
