"""Prompts' shared beginnings, each run once and kept: a pool of rows that form a tree.

An exemplar's row continues its persona's; what is scored or sampled attends to the rows.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import jax
import numpy as np
from flax import nnx
from jax import Array
from jax import numpy as jnp
from jax.sharding import Mesh

from mop_jax.errors import DeviceFullError
from mop_jax.lm.base import TokenIds
from mop_jax.lm.cache import KVCache, empty_cache
from mop_jax.lm.decoder import Decoder
from mop_jax.lm.memory import is_out_of_memory, kv_bytes_per_token
from mop_jax.lm.mesh import (
    MODEL,
    cache_sharding,
    constrain,
    in_lanes,
    made_on,
    num_lanes,
    replicate,
    shard_rows,
)
from mop_jax.lm.planning import (
    TOKENS_PER_CHUNK,
    TOKENS_PER_CHUNK_ACCELERATOR,
    Chunk,
    ChunkShape,
    by_backend,
    chunk_shapes,
    pad,
    plan_calls,
    plan_chunks,
)

# An index that scatters drop.
OUT_OF_RANGE = np.iinfo(np.int32).max
# Slots of a row are rounded up to this, so that shapes repeat.
_SLOT_STEP = 16


@partial(jax.jit, static_argnames=("graph", "packed", "depth", "mesh"))
def run_segments(
    graph,
    state,
    pool: KVCache,
    tokens: Array,
    lengths: Array,
    parents: Array,
    *,
    packed: int,
    depth: int,
    mesh: Mesh | None = None,
) -> KVCache:
    """Whole prefixes, rows like the pool's: each parent row of it, continued by `tokens`.

    No parent has more than `depth` tokens.

    On a mesh the arguments are those of D lanes, and all lanes' prefixes, D · B rows, come back, on
    every device of `data` as the pool is.
    """
    decoder = nnx.merge(graph, state)

    def run(tokens, lengths, parents):
        # The batch's rows first: cutting the pool would copy the whole of it.
        parent = KVCache(pool.keys[:, parents], pool.values[:, parents], pool.lengths[parents])
        _, new = decoder.extend(parent.resized(depth), tokens, lengths, packed=packed)
        return append(parent, new)

    grown = in_lanes(mesh, run)(tokens, lengths, parents)
    if mesh is None:
        return grown
    keys, values = (x.swapaxes(0, 1).reshape(x.shape[1], -1, *x.shape[3:]) for x in grown[:2])
    whole = KVCache(keys, values, grown.lengths.reshape(-1))
    return constrain(whole, cache_sharding(mesh, decoder.config, rows_over_data=False))


# A step of its own that only writes: XLA then updates the donated pool in place, where a program
# that also reads it copies the whole of it first.
@partial(jax.jit, donate_argnames="pool", static_argnames="shardings")
def place_rows(
    pool: KVCache, prefixes: KVCache, rows: Array, *, shardings: KVCache | None = None
) -> KVCache:
    """Puts prefixes into `rows` of the pool, which lies as `shardings` say."""
    placed = KVCache(
        pool.keys.at[:, rows].set(prefixes.keys, mode="drop"),
        pool.values.at[:, rows].set(prefixes.values, mode="drop"),
        pool.lengths.at[rows].set(prefixes.lengths, mode="drop"),
    )
    return constrain(placed, shardings)


def append(cache: KVCache, new: KVCache) -> KVCache:
    """Puts each row's new keys and values behind those it has."""
    batch, steps = len(new.lengths), jnp.arange(new.size)
    # Padding is sent out of range, where `drop` discards it.
    slots = jnp.where(steps < new.lengths[:, None], cache.lengths[:, None] + steps, OUT_OF_RANGE)
    rows = jnp.arange(batch)[:, None]
    return KVCache(
        # Indexed axes come first: [B, T, L, K, E].
        cache.keys.at[:, rows, :, :, slots].set(new.keys.transpose(1, 4, 0, 2, 3), mode="drop"),
        cache.values.at[:, rows, :, slots].set(new.values.transpose(1, 3, 0, 2, 4), mode="drop"),
        cache.lengths + new.lengths,
    )


class PrefixPool:
    """Keys and values of prefixes, one row each; row 0 is the empty prefix.

    Segments shared between prefixes (a persona's, under all its exemplars) are run once.

    Attributes:
        cache: the pool.
        row_of: row of each prefix, by the caller's index of it.
    """

    def __init__(
        self,
        decoder: Decoder,
        prefixes: dict[int, Sequence[TokenIds]],
        num_rows: int,
        sizes: Sequence[int],
        shapes: Sequence[ChunkShape],
        mesh: Mesh | None = None,
    ):
        """Runs all prefixes.

        Args:
            decoder: the model.
            prefixes: each a path of segments of ids; may be empty.
            num_rows: rows of the pool, at least the number of distinct paths (their parents
                counted) and one more; fixed by the caller so that shapes repeat.
            sizes: tokens of the longest path of no segment, of one, of two and so on, or more;
                fixed by the caller as well.
            shapes: of `segment_shapes`, in which segments are run together; the same.
            mesh: the decoder's; every device along `data` has the whole pool.
        """
        self._graph, self._state = nnx.split(decoder)
        self._mesh = mesh
        self._shardings = cache_sharding(mesh, decoder.config, rows_over_data=False)
        self.cache = made_on(
            self._shardings, empty_cache, decoder.config, num_rows, max(sizes), decoder.dtype
        )
        self._row_of_path: dict[tuple, int] = {(): 0}
        paths = {i: path_of(prefix) for i, prefix in prefixes.items()}
        levels = tree_levels(paths.values())
        for level, chunks in zip(levels, level_chunks(levels, shapes), strict=True):
            # Parents are a segment shorter. All levels run as the deepest does, in one program.
            self._add_level(level, chunks, max(sizes[:-1], default=0))
        self.row_of = {i: self._row_of_path[path] for i, path in paths.items()}

    def for_prefixes(self, prefixes: dict[int, Sequence[TokenIds]]) -> PrefixPool:
        """The same rows, by another caller's indices."""
        known = copy.copy(self)
        known.row_of = {i: self._row_of_path[path_of(p)] for i, p in prefixes.items()}
        return known

    def _add_level(self, paths: list[tuple], chunks: Iterator[Chunk], depth: int) -> None:
        first = len(self._row_of_path)
        self._row_of_path.update({path: first + i for i, path in enumerate(paths)})
        lanes = num_lanes(self._mesh)
        for call in plan_calls(chunks, lanes):
            length, num_rows, num_tokens, _ = call[0].shape
            tokens = np.zeros((lanes, num_rows, length), np.int32)
            counts, parents = np.zeros((2, lanes, num_rows), np.int32)
            # Rows that only fill the batch are sent out of range and dropped.
            rows = np.full((lanes, num_rows), OUT_OF_RANGE, np.int32)
            for lane, (_, members) in enumerate(call):
                segments = [paths[i][-1] for i in members]
                tokens[lane], counts[lane] = pad(segments, length, num_rows)
                rows[lane, : len(members)] = [first + i for i in members]
                parents[lane, : len(members)] = [self._row_of_path[paths[i][:-1]] for i in members]
            inputs = (tokens, counts, parents)
            grown = run_segments(
                self._graph,
                self._state,
                self.cache,
                *(shard_rows(self._mesh, inputs) if self._mesh else (x[0] for x in inputs)),
                packed=num_tokens,
                depth=depth,
                mesh=self._mesh,
            )
            self.cache = place_rows(
                self.cache,
                grown,
                replicate(self._mesh, rows.reshape(-1)),
                shardings=self._shardings,
            )


class KeptPool:
    """The last pool, for work that follows the very same prefixes.

    Rounds of candidates, and held-out records after them, ask for the same components again and
    again. A pool is found only by all that decides its bits, so that a run that was interrupted,
    and makes it anew, ends like one that was not.
    """

    # Of the memory for pools: what is kept while other work is done must not be missed there.
    _SHARE = 1 / 4

    def __init__(self) -> None:
        """Nothing is kept yet."""
        self._pool: tuple[PrefixPool, tuple, list[Array]] | None = None

    def find(self, key: tuple, weights: list[Array]) -> PrefixPool | None:
        """The pool of that key and these very arrays; any other is dropped, to make room."""
        if self._pool is not None:
            pool, known, of = self._pool
            if key == known and all(a is b for a, b in zip(of, weights, strict=True)):
                return pool
        self._pool = None
        return None

    def keep(
        self, pool: PrefixPool, key: tuple, weights: list[Array], num_bytes: float, memory: float
    ) -> None:
        """Keeps a pool that takes little of the memory."""
        if num_bytes <= self._SHARE * memory:
            self._pool = pool, key, weights


def tree_levels(paths: Iterable[tuple]) -> list[list[tuple]]:
    """The distinct nodes of a tree of paths, level by level: parents before their children."""
    paths = list(paths)
    depths = range(1, max(map(len, paths), default=0) + 1)
    return [list(dict.fromkeys(p[:depth] for p in paths if len(p) >= depth)) for depth in depths]


def segment_shapes(
    paths: Iterable[tuple], num_rows: int, chunk_tokens: int | None = None
) -> list[ChunkShape]:
    """Shapes in which the segments of all levels, and of all pools of `num_rows` rows, are run."""
    lengths = [len(node[-1]) for level in tree_levels(paths) for node in level]
    if not lengths:
        return []
    usual = by_backend(TOKENS_PER_CHUNK, TOKENS_PER_CHUNK_ACCELERATOR)
    shapes = chunk_shapes(lengths, chunk_tokens or usual, 2, 16)
    # What is run must find room beside the pool.
    return [shape._replace(num_rows=min(shape.num_rows, num_rows)) for shape in shapes]


def level_chunks(
    levels: Sequence[Sequence[tuple]], shapes: Sequence[ChunkShape]
) -> list[Iterator[Chunk]]:
    """How the last segments of each level's nodes are run together."""
    return [plan_chunks([len(node[-1]) for node in level], shapes) for level in levels]


def prefix_pools(
    decoder: Decoder,
    prefixes: Sequence[Sequence[TokenIds]],
    wanted: np.ndarray,
    memory: float,
    skip: np.ndarray | None = None,
    mesh: Mesh | None = None,
    kept: KeptPool | None = None,
    most_rows: float = math.inf,
    chunk_tokens: int | None = None,
) -> Iterator[tuple[PrefixPool, list[int]]]:
    """Pools that together hold all wanted prefixes, each within the memory budget.

    All pools have one shape, so that nothing is compiled twice. A pool that turns out too large for
    the device is halved, and so on; if a single prefix does not fit, that is a `DeviceFullError`.

    Args:
        decoder: the model.
        prefixes: paths of segments.
        wanted: int [n], the prefix of each piece of work.
        memory: bytes of one pool on a device; a pool holds at least one prefix whatever the budget.
        skip: bool [n], work that is done; pools that nothing else needs are not run.
        mesh: the decoder's.
        kept: where the pool of earlier work with the same decoder may be found.
        most_rows: of a pool, prefixes' parents counted; as many as the memory holds by default.
        chunk_tokens: that are run at a time. The last chunk of each level of each pool is not full,
            which is nothing in large pools, and most of the work in small ones.

    Yields:
        A pool, and the indices into `wanted` of the work whose prefix it holds.
    """
    paths = _paths(prefixes, wanted)
    sizes, row_bytes = _row_size(decoder, paths, mesh)
    memory = min(memory, most_rows * row_bytes)
    groups, num_rows = _groups(paths, row_bytes, memory)
    shapes = segment_shapes(paths.values(), num_rows, chunk_tokens)
    weights = jax.tree.leaves(nnx.state(decoder))
    while groups:
        group = groups.pop(0)
        inside = set(group)
        members = [n for n, i in enumerate(wanted) if int(i) in inside]
        if skip is not None and skip[members].all():
            continue
        held: dict[int, Sequence[TokenIds]] = {i: paths[i] for i in group}
        key = (*held.values(), num_rows, *sizes, *shapes)
        found = None if kept is None else kept.find(key, weights)
        if found is not None:
            yield found.for_prefixes(held), members
            continue
        try:
            pool = PrefixPool(decoder, held, num_rows, sizes, shapes, mesh)
            jax.block_until_ready(pool.cache)
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if len(group) == 1 and num_rows <= len(paths[group[0]]) + 1:
                raise DeviceFullError(
                    "The device's memory does not hold a single prefix of "
                    f"{longest_of(paths.values())} tokens beside the model; use a larger device, "
                    "more devices along the mesh's `model` axis, or shorter prompts."
                ) from error
            memory = num_rows * row_bytes / 2
            rest = {i: paths[i] for g in (group, *groups) for i in g}
            groups, num_rows = _groups(rest, row_bytes, memory)
            shapes = segment_shapes(paths.values(), num_rows, chunk_tokens)
            warnings.warn(
                f"The device's memory does not hold {len(group)} prefixes at a time; going on with "
                f"{len(groups[0])}.",
                stacklevel=2,
            )
            continue
        if kept is not None:
            kept.keep(pool, key, weights, num_rows * row_bytes, memory)
        yield pool, members
        del pool


def plan_pools(
    decoder: Decoder,
    prefixes: Sequence[Sequence[TokenIds]],
    wanted: np.ndarray,
    memory: float,
    mesh: Mesh | None = None,
) -> tuple[list[dict[int, tuple]], list[ChunkShape]]:
    """What `prefix_pools` would run, without running it.

    Returns:
        The paths that each of the pools would hold, by prefix, and the shapes of segments.
    """
    paths = _paths(prefixes, wanted)
    groups, num_rows = _groups(paths, _row_size(decoder, paths, mesh)[1], memory)
    shapes = segment_shapes(paths.values(), num_rows)
    return [{i: paths[i] for i in group} for group in groups], shapes


def _paths(prefixes: Sequence[Sequence[TokenIds]], wanted: np.ndarray) -> dict[int, tuple]:
    """The wanted paths, siblings side by side and in one order, whatever work they are for."""
    paths = {int(i): path_of(prefixes[i]) for i in np.unique(wanted)}
    return dict(sorted(paths.items(), key=lambda item: item[1]))


def _row_size(
    decoder: Decoder, paths: dict[int, tuple], mesh: Mesh | None
) -> tuple[list[int], int]:
    """Slots that hold all paths of no segment, of one and so on, and bytes of a pool's row."""
    levels = tree_levels(paths.values())
    longest = [0, *(longest_of(level) for level in levels)]
    sizes = [-(-length // _SLOT_STEP) * _SLOT_STEP for length in longest]
    model = 1 if mesh is None else mesh.shape[MODEL]
    token_bytes = kv_bytes_per_token(decoder.config, decoder.dtype, model)
    return sizes, max(1, max(sizes) * token_bytes)


def _groups(
    paths: dict[int, tuple], row_bytes: float, memory: float
) -> tuple[list[list[int]], int]:
    """Prefixes by pool, and the rows that a pool needs."""
    groups: list[list[int]] = []
    held: set[tuple] = set()
    counts: list[int] = []
    for i, path in paths.items():
        nodes = {path[:depth] for depth in range(1, len(path) + 1)}
        # Equal paths take one row, and never a pool of their own.
        if not groups or (nodes - held and (len(held | nodes) + 1) * row_bytes > memory):
            groups.append([])
            counts.append(0)
            held = set()
        groups[-1].append(i)
        held |= nodes
        counts[-1] = len(held) + 1
    # Rounded up, so that shapes repeat from one piece of work to the next, but within the budget.
    needed = max(counts, default=1)
    return groups, min(-(-needed // 16) * 16, max(needed, int(memory // row_bytes)))


def longest_of(paths: Iterable[tuple]) -> int:
    """Tokens of the longest path."""
    return max((sum(map(len, path)) for path in paths), default=0)


def path_of(prefix: Sequence[TokenIds]) -> tuple[tuple[int, ...], ...]:
    """A prefix as a hashable path; empty segments leave no trace."""
    return tuple(tuple(segment) for segment in prefix if len(segment))
