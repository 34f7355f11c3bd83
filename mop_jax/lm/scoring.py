"""Prefix-shared scoring: many responses after few prefixes, at the price of the responses.

Components share prefixes (instruction and persona, then the exemplar), and only the request and the
response differ between pairs. Each prefix is run once and its keys and values kept in a pool, whose
rows form a tree: an exemplar's row continues its persona's. Suffixes, sorted into few lengths, then
attend to the gathered prefix rows. Final hidden states are packed, so that the vocabulary
projection, in blocks of the vocabulary that stay in the cache, runs at response positions only and
gives all temperatures of the grid in the same pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from mop_jax.errors import FaultError
from mop_jax.lm.base import Continuation, OnScores, TemperatureGrid, TokenIds
from mop_jax.lm.decoder import Decoder, KVCache, empty_cache, softcap

# Tokens in one forward pass. Measured: on two CPU cores larger batches are slower (they leave the
# cache), on accelerators smaller ones leave the matrix units idle.
TOKENS_PER_BATCH = {"cpu": 512}
TOKENS_PER_BATCH_ACCELERATOR = 16_384
# Response positions in one vocabulary projection.
POSITIONS_PER_CHUNK = {"cpu": 256}
POSITIONS_PER_CHUNK_ACCELERATOR = 4_096
# Rows of the vocabulary handled at a time: small enough that logits stay in a core's cache.
VOCABULARY_BLOCK = {"cpu": 2_048}
VOCABULARY_BLOCK_ACCELERATOR = 32_768
# Bytes of pooled prefixes at a time, where the caller sets none.
DEFAULT_MEMORY = 2 * 2**30
MAX_LENGTHS = 4
# An index that scatters drop.
OUT_OF_RANGE = np.iinfo(np.int32).max


def choose_lengths(lengths: Sequence[int], max_lengths: int = MAX_LENGTHS, step: int = 4):
    """At most `max_lengths` padded lengths, multiples of `step`, that waste the fewest tokens.

    Exact, by dynamic programming over the distinct rounded lengths.
    """
    rounded = np.ceil(np.asarray(lengths) / step).astype(int) * step
    sizes, counts = np.unique(rounded, return_counts=True)
    total = np.concatenate([[0], np.cumsum(counts)])
    # cost[m][i]: padded tokens of the i shortest distinct lengths in m groups.
    cost = np.full((max_lengths + 1, len(sizes) + 1), np.inf)
    cost[0, 0] = 0.0
    split = np.zeros(cost.shape, int)
    for m in range(1, max_lengths + 1):
        for i in range(1, len(sizes) + 1):
            options = cost[m - 1, :i] + sizes[i - 1] * (total[i] - total[:i])
            split[m, i] = int(np.argmin(options))
            cost[m, i] = options[split[m, i]]
    m, i, chosen = int(np.argmin(cost[:, -1])), len(sizes), []
    while i > 0:
        chosen.append(int(sizes[i - 1]))
        i, m = split[m, i], m - 1
    return sorted(chosen)


def vocabulary_block(vocab_size: int, target: int) -> int:
    """The divisor of the vocabulary size nearest to `target`, or all of it where none is near."""
    divisors = [d for d in range(target // 4, target * 4 + 1) if vocab_size % d == 0]
    return min(divisors, key=lambda d: abs(d - target), default=vocab_size)


def by_backend(table: dict[str, int], otherwise: int) -> int:
    """A size for the default backend."""
    return table.get(jax.default_backend(), otherwise)


@partial(jax.jit, static_argnames="graph")
def run_suffixes(graph, state, pool: KVCache, tokens: Array, lengths: Array, rows: Array) -> Array:
    """Hidden states [B, T, D] of suffix tokens after pooled prefixes."""
    hidden, _ = nnx.merge(graph, state).extend(pool, tokens, lengths, rows)
    return hidden


@partial(jax.jit, static_argnames="graph")
def run_segments(
    graph, state, pool: KVCache, tokens: Array, lengths: Array, parents: Array
) -> KVCache:
    """Whole prefixes [L, B, S, K, E]: each parent row of the pool, continued by `tokens`."""
    _, new = nnx.merge(graph, state).extend(pool, tokens, lengths, parents)
    parent = KVCache(pool.keys[:, parents], pool.values[:, parents], pool.lengths[parents])
    return append(parent, new)


# A step of its own that only writes: XLA then updates the donated pool in place, where a program
# that also reads it copies the whole of it first.
@partial(jax.jit, donate_argnames="pool")
def place_rows(pool: KVCache, prefixes: KVCache, rows: Array) -> KVCache:
    """Puts prefixes into `rows` of the pool."""
    return KVCache(
        pool.keys.at[:, rows].set(prefixes.keys, mode="drop"),
        pool.values.at[:, rows].set(prefixes.values, mode="drop"),
        pool.lengths.at[rows].set(prefixes.lengths, mode="drop"),
    )


def append(cache: KVCache, new: KVCache) -> KVCache:
    """Puts each row's new keys and values behind those it has."""
    batch, length = new.keys.shape[1:3]
    steps = jnp.arange(length)
    # Padding is sent out of range, where `drop` discards it.
    slots = jnp.where(steps < new.lengths[:, None], cache.lengths[:, None] + steps, OUT_OF_RANGE)
    rows = jnp.arange(batch)[:, None]
    return KVCache(
        cache.keys.at[:, rows, slots].set(new.keys, mode="drop"),
        cache.values.at[:, rows, slots].set(new.values, mode="drop"),
        cache.lengths + new.lengths,
    )


@partial(jax.jit, static_argnames=("multiples", "block", "cap"))
def grid_log_probs(
    embedding: Array,
    hidden: Array,
    targets: Array,
    step: Array,
    *,
    multiples: tuple[int, ...],
    block: int,
    cap: float | None = None,
) -> Array:
    """Log-probabilities of target tokens at every temperature of a grid, float32 [n, G].

    With u_v = exp(step · (l_v − max l)), the normaliser at 1/τ = m · step is Σ_v u_v^m: one
    exponential per logit serves the whole grid. The maximum is updated block by block.

    Args:
        embedding: [V, D] output projection.
        hidden: [n, D] normalised hidden states that predict the targets.
        targets: int32 [n].
        step: spacing of the inverse temperatures.
        multiples: m of each grid point.
        block: rows of the vocabulary at a time; divides V.
        cap: of the logits; see `softcap`.
    """
    powers = jnp.asarray(multiples, jnp.float32)[:, None]
    columns = hidden.T

    def add_block(carry, rows):
        top, sums = carry
        logits = softcap(jnp.matmul(rows, columns, preferred_element_type=jnp.float32), cap)
        new_top = jnp.maximum(top, logits.max(axis=0))
        # Without the barrier XLA recomputes the exponential in each of the G sums.
        u = jax.lax.optimization_barrier(jnp.exp((logits - new_top) * step))
        added = jnp.stack([jax.lax.integer_pow(u, m).sum(axis=0) for m in multiples])
        return (new_top, sums * jnp.exp((top - new_top) * step * powers) + added), None

    start = (jnp.full(hidden.shape[0], -1e30), jnp.zeros((len(multiples), hidden.shape[0])))
    blocks = embedding.reshape(-1, block, embedding.shape[1])
    (top, sums), _ = jax.lax.scan(add_block, start, blocks)
    chosen = jnp.einsum("nd,nd->n", hidden, embedding[targets], preferred_element_type=jnp.float32)
    chosen = softcap(chosen, cap)
    return (powers * step * (chosen - top) - jnp.log(sums)).T


class PrefixPool:
    """Keys and values of prefixes, one row each; row 0 is the empty prefix.

    Segments shared between prefixes (a persona's, under all its exemplars) are run once.

    Attributes:
        cache: the pool.
        row_of: row of each prefix, by the caller's index of it.
    """

    def __init__(
        self, decoder: Decoder, prefixes: dict[int, Sequence[TokenIds]], num_rows: int, size: int
    ):
        """Runs all prefixes.

        Args:
            decoder: the model.
            prefixes: each a path of segments of ids; may be empty.
            num_rows: rows of the pool, at least the number of distinct paths (their parents
                counted) and one more; fixed by the caller so that shapes repeat.
            size: tokens of the longest prefix, or more.
        """
        self._graph, self._state = nnx.split(decoder)
        self.cache = empty_cache(decoder.config, num_rows, size, decoder.dtype)
        self._row_of_path: dict[tuple, int] = {(): 0}
        paths = {i: path_of(prefix) for i, prefix in prefixes.items()}
        for depth in range(1, max(map(len, paths.values()), default=0) + 1):
            level = [path[:depth] for path in paths.values() if len(path) >= depth]
            self._add_level(list(dict.fromkeys(level)))
        self.row_of = {i: self._row_of_path[path] for i, path in paths.items()}

    def _add_level(self, paths: list[tuple]) -> None:
        first = len(self._row_of_path)
        self._row_of_path.update({path: first + i for i, path in enumerate(paths)})
        lengths = [len(path[-1]) for path in paths]
        budget = by_backend(TOKENS_PER_BATCH, TOKENS_PER_BATCH_ACCELERATOR)
        for length, members in batches(lengths, choose_lengths(lengths, 2, 16), budget):
            tokens, counts = pad([paths[i][-1] for i in members if i >= 0], length, len(members))
            # Rows that only fill the batch are sent out of range and dropped.
            rows = [first + i if i >= 0 else OUT_OF_RANGE for i in members]
            parents = [self._row_of_path[paths[i][:-1]] if i >= 0 else 0 for i in members]
            grown = run_segments(
                self._graph, self._state, self.cache, tokens, counts, np.asarray(parents, np.int32)
            )
            self.cache = place_rows(self.cache, grown, np.asarray(rows, np.int32))


def prefix_pools(
    decoder: Decoder,
    prefixes: Sequence[Sequence[TokenIds]],
    wanted: np.ndarray,
    memory: float,
    skip: np.ndarray | None = None,
) -> Iterator[tuple[PrefixPool, list[int]]]:
    """Pools that together hold all wanted prefixes, each within the memory budget.

    All pools have one shape, so that nothing is compiled twice.

    Args:
        decoder: the model.
        prefixes: paths of segments.
        wanted: int [n], the prefix of each piece of work.
        memory: bytes of one pool; a pool holds at least one prefix whatever the budget.
        skip: bool [n], work that is done; pools that nothing else needs are not run.

    Yields:
        A pool, and the indices into `wanted` of the work whose prefix it holds.
    """
    used = [int(i) for i in np.unique(wanted)]
    paths = {i: path_of(prefixes[i]) for i in used}
    nodes = {i: {p[:d] for d in range(1, len(p) + 1)} for i, p in paths.items()}
    size = -(-max((sum(map(len, p)) for p in paths.values()), default=0) // 32) * 32
    config = decoder.config
    per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    row_bytes = max(1, size * per_token * decoder.dtype.itemsize)
    groups: list[list[int]] = []
    held: set[tuple] = set()
    counts: list[int] = []
    for i in used:
        if not groups or (len(held | nodes[i]) + 1) * row_bytes > memory:
            groups.append([])
            counts.append(0)
            held = set()
        groups[-1].append(i)
        held |= nodes[i]
        counts[-1] = len(held) + 1
    num_rows = -(-max(counts, default=1) // 16) * 16
    for group in groups:
        inside = set(group)
        members = [n for n, i in enumerate(wanted) if int(i) in inside]
        if skip is not None and skip[members].all():
            continue
        yield PrefixPool(decoder, {i: prefixes[i] for i in group}, num_rows, size), members


def path_of(prefix: Sequence[TokenIds]) -> tuple[tuple[int, ...], ...]:
    """A prefix as a hashable path."""
    return tuple(tuple(segment) for segment in prefix)


def batches(lengths: Sequence[int], padded: Sequence[int], tokens_per_batch: int):
    """Groups sequences into batches of fixed shapes, longest first.

    Rows left over in one padded length move up into the next longer batch's free places as far as
    there are any; the last batch of each length is filled with −1.

    Yields:
        (padded length, member indices with −1 for filling); the number of members depends on the
        padded length alone.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    position = 0
    while position < len(order):
        longest = lengths[order[position]]
        length = next(size for size in padded if size >= longest)
        num_rows = max(1, tokens_per_batch // length)
        members = order[position : position + num_rows]
        position += len(members)
        yield length, members + [-1] * (num_rows - len(members))


def pad(sequences: Sequence[TokenIds], length: int, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids int32 [num_rows, length], zeros at the end, and lengths int32 [num_rows]."""
    tokens = np.zeros((num_rows, length), np.int32)
    lengths = np.zeros(num_rows, np.int32)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence)] = sequence
        lengths[row] = len(sequence)
    return tokens, lengths


@dataclass
class _Packed:
    """Hidden states waiting for the projection, with their targets and the pairs they belong to."""

    hidden: list[np.ndarray]
    targets: list[int]
    owners: list[int]


class Scorer:
    """Scores (prefix, continuation) pairs; see the module's docstring for how."""

    def __init__(self, decoder: Decoder, grid: TemperatureGrid, memory: float | None = None):
        """Prepares the projection.

        Args:
            decoder: the model.
            grid: temperatures.
            memory: bytes that pooled prefixes may take at a time.
        """
        self._decoder = decoder
        self._graph, self._state = nnx.split(decoder)
        self._grid = grid
        self._memory = DEFAULT_MEMORY if memory is None else memory
        self._tokens = by_backend(TOKENS_PER_BATCH, TOKENS_PER_BATCH_ACCELERATOR)
        self._chunk = by_backend(POSITIONS_PER_CHUNK, POSITIONS_PER_CHUNK_ACCELERATOR)
        self._block = vocabulary_block(
            decoder.config.vocab_size, by_backend(VOCABULARY_BLOCK, VOCABULARY_BLOCK_ACCELERATOR)
        )

    def score(
        self,
        prefixes: Sequence[Sequence[TokenIds]],
        continuations: Sequence[Continuation],
        pairs: np.ndarray,
        on_scores: OnScores,
        skip: np.ndarray | None = None,
    ) -> None:
        """Scores pairs and reports them in batches, in no particular order.

        Args:
            prefixes: paths of segments.
            continuations: what may follow; padded lengths are chosen over all of them, so that
                scoring a part of the pairs uses the same shapes as scoring all.
            pairs: int [n, 2], indices of prefix and continuation.
            on_scores: called with pair indices int [m] and log-probabilities float64 [m, G], nats
                summed over the response's tokens.
            skip: bool [n], pairs that need no scores. Batches are planned as if they did, and run
                unless all their pairs are skipped: what is run gives the same bits either way.

        Raises:
            FaultError: if a log-probability is not finite.
        """
        if not len(pairs) or (skip is not None and skip.all()):
            return
        suffixes = [c.request + c.response for c in continuations]
        padded = choose_lengths([len(s) for s in suffixes])
        totals = np.zeros((len(pairs), len(self._grid.multiples)))
        missing = np.asarray([len(continuations[c].response) for c in pairs[:, 1]])
        packed = _Packed([], [], [])
        for pool, members in prefix_pools(self._decoder, prefixes, pairs[:, 0], self._memory, skip):
            lengths = [len(suffixes[pairs[i, 1]]) for i in members]
            for length, rows in batches(lengths, padded, self._tokens):
                batch = [members[r] for r in rows if r >= 0]
                if skip is not None and skip[batch].all():
                    continue
                self._run(pool, continuations, pairs, batch, length, len(rows), packed)
                self._project(packed, totals, missing, on_scores, final=False)
        self._project(packed, totals, missing, on_scores, final=True)

    def _run(self, pool, continuations, pairs, batch, length, num_rows, packed) -> None:
        chosen = [continuations[pairs[i, 1]] for i in batch]
        tokens, lengths = pad([c.request + c.response for c in chosen], length, num_rows)
        rows = np.zeros(num_rows, np.int32)
        rows[: len(batch)] = [pool.row_of[pairs[i, 0]] for i in batch]
        hidden = np.asarray(
            run_suffixes(self._graph, self._state, pool.cache, tokens, lengths, rows)
        )
        for row, (pair, continuation) in enumerate(zip(batch, chosen, strict=True)):
            # The state at position t predicts the token at t + 1.
            end = lengths[row] - 1
            packed.hidden.append(hidden[row, end - len(continuation.response) : end])
            packed.targets.extend(continuation.response)
            packed.owners.extend([pair] * len(continuation.response))

    def _project(self, packed: _Packed, totals, missing, on_scores, *, final: bool) -> None:
        if not packed.targets or (len(packed.targets) < self._chunk and not final):
            return
        hidden = np.concatenate(packed.hidden)
        targets = np.asarray(packed.targets, np.int32)
        owners = np.asarray(packed.owners)
        whole = len(targets) if final else len(targets) // self._chunk * self._chunk
        for start in range(0, whole, self._chunk):
            part = slice(start, min(start + self._chunk, whole))
            count = part.stop - start
            filled = np.zeros((self._chunk, hidden.shape[1]), hidden.dtype)
            filled[:count] = hidden[part]
            wanted = np.zeros(self._chunk, np.int32)
            wanted[:count] = targets[part]
            scores = grid_log_probs(
                self._decoder.output_embedding,
                filled,
                wanted,
                np.float32(self._grid.step),
                multiples=self._grid.multiples,
                block=self._block,
                cap=self._decoder.config.logit_softcap,
            )
            np.add.at(totals, owners[part], np.asarray(scores, np.float64)[:count])
            np.subtract.at(missing, owners[part], 1)
            done = np.unique(owners[part])
            done = done[missing[done] == 0]
            if not np.isfinite(totals[done]).all():
                bad = int(done[~np.isfinite(totals[done]).all(axis=1)][0])
                raise FaultError(
                    f"The language model gave a log-probability that is not finite for pair {bad}."
                )
            if len(done):
                on_scores(done, totals[done])
        packed.hidden[:] = [hidden[whole:]]
        packed.targets[:] = packed.targets[whole:]
        packed.owners[:] = packed.owners[whole:]
