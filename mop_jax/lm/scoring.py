"""Prefix-shared scoring: many responses after few prefixes, at the price of the responses.

Components share prefixes (instruction and persona, then the exemplar), and only the request and the
response differ between pairs. Prefixes are run once (`mop_jax.lm.prefixes`); suffixes, packed into
chunks with next to no padding (`mop_jax.lm.planning`), attend to them; and the vocabulary is
projected at response positions only, all temperatures of the grid in the same pass
(`mop_jax.lm.vocabulary`). One call does all of this for several chunks, and only the
log-probabilities leave the device.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from mop_jax.errors import FaultError, NotFiniteError
from mop_jax.lm.base import Continuation, OnScores, TemperatureGrid, TokenIds
from mop_jax.lm.cache import KVCache
from mop_jax.lm.decoder import Decoder
from mop_jax.lm.memory import default_memory, is_out_of_memory
from mop_jax.lm.mesh import in_lanes, is_split, num_lanes, num_parts, replicate, shard_rows, to_host
from mop_jax.lm.planning import (
    CHUNKS_PER_CALL,
    CHUNKS_PER_CALL_ACCELERATOR,
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
from mop_jax.lm.prefixes import (
    KeptPool,
    PrefixPool,
    level_chunks,
    plan_pools,
    prefix_pools,
    tree_levels,
)
from mop_jax.lm.vocabulary import (
    POSITION_BLOCK,
    POSITION_BLOCK_ACCELERATOR,
    VOCABULARY_BLOCK,
    VOCABULARY_BLOCK_ACCELERATOR,
    grid_log_probs,
    vocabulary_block,
)

# Calls under way at a time: the host prepares one while the device runs another.
_CALLS_AHEAD = 2
# Inputs that are common to all lanes of a mesh: they end loops, which lanes run in step.
_COMMON = ("num_chunks", "num_places")


class CallInputs(NamedTuple):
    """What a call needs besides the model and the pool.

    On a mesh all but `_COMMON` have one more axis in front, D lanes, one for each device along
    `data`; those two are then the largest over the lanes.

    Attributes:
        tokens: int32 [C, B, T], suffixes.
        lengths: int32 [C, B].
        rows: int32 [C, B], rows of the pool that the suffixes follow.
        num_chunks: int32, how many of the C are to be run.
        places: int32 [M], which of the C · B · T states predict response tokens.
        targets: int32 [M], those tokens.
        num_places: int32, how many of the M are real.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    rows: np.ndarray
    num_chunks: np.ndarray
    places: np.ndarray
    targets: np.ndarray
    num_places: np.ndarray


@partial(jax.jit, static_argnames=("graph", "packed", "join", "mesh"))
def run_suffixes(
    graph,
    state,
    pool: KVCache,
    inputs: CallInputs,
    *,
    packed: int,
    join: bool,
    mesh: Mesh | None = None,
) -> Array:
    """The states that predict response tokens, [M, D]; on a mesh, those of all lanes, [L, M, D]."""
    decoder = nnx.merge(graph, state)

    def run(*arrays: Array) -> Array:
        inputs = CallInputs(*arrays)  # type: ignore[arg-type]
        hidden = decoder.extend_chunks(
            pool,
            inputs.tokens,
            inputs.lengths,
            inputs.rows,
            inputs.num_chunks,
            packed=packed,
            join=join,
        )
        return hidden.reshape(-1, hidden.shape[-1])[inputs.places]

    axes = tuple(None if name in _COMMON else 0 for name in CallInputs._fields)
    return in_lanes(mesh, run, axes)(*inputs)


# A program of its own, which depends on M alone: it is compiled once for all shapes of suffixes.
@partial(
    jax.jit,
    static_argnames=("graph", "multiples", "block", "positions", "cap", "mesh"),
)
def score_states(
    graph,
    state,
    hidden: Array,
    targets: Array,
    num_places: Array,
    step: Array,
    *,
    multiples: tuple[int, ...],
    block: int,
    positions: int,
    cap: float | None,
    mesh: Mesh | None = None,
) -> Array:
    """Log-probabilities of the targets [M], float32 [M, G] (on a mesh, [L, M, G]).

    See `grid_log_probs`.
    """
    decoder = nnx.merge(graph, state)

    def run(hidden: Array, targets: Array, num_places: Array) -> Array:
        return grid_log_probs(
            decoder.output_embedding,
            hidden,
            targets,
            step,
            num_places,
            multiples=multiples,
            block=block,
            positions=positions,
            cap=cap,
            parts=num_parts(mesh, decoder.config.vocab_size),
        )

    return in_lanes(mesh, run, (0, 0, None))(hidden, targets, num_places)


class _Call(NamedTuple):
    scores: Array | np.ndarray  # [M, G] or [D, M, G]
    owners: np.ndarray  # [M] or [D, M], pair of each response token; −1 for none
    members: list[int]  # pairs


class Scorer:
    """Scores (prefix, continuation) pairs; see the module's docstring for how."""

    def __init__(
        self,
        decoder: Decoder,
        grid: TemperatureGrid,
        memory: float | None = None,
        mesh: Mesh | None = None,
        kept: KeptPool | None = None,
    ):
        """Prepares the projection.

        Args:
            decoder: the model.
            grid: temperatures.
            memory: bytes of a device that pooled prefixes may take at a time; by default a share
                of what the machine has.
            mesh: the decoder's.
            kept: see `prefix_pools`.
        """
        self._decoder, self._mesh, self._kept = decoder, mesh, kept
        self._graph, self._state = nnx.split(decoder)
        self._grid = grid
        self._memory = default_memory(decoder) if memory is None else memory
        self._tokens = by_backend(TOKENS_PER_CHUNK, TOKENS_PER_CHUNK_ACCELERATOR)
        self._chunks = by_backend(CHUNKS_PER_CALL, CHUNKS_PER_CALL_ACCELERATOR)
        self._positions = by_backend(POSITION_BLOCK, POSITION_BLOCK_ACCELERATOR)
        vocab_size = decoder.config.vocab_size
        parts = num_parts(mesh, vocab_size)
        block = by_backend(VOCABULARY_BLOCK, VOCABULARY_BLOCK_ACCELERATOR)
        self._block = parts * vocabulary_block(vocab_size // parts, max(1, block // parts))

    def score(
        self,
        prefixes: Sequence[Sequence[TokenIds]],
        continuations: Sequence[Continuation],
        pairs: np.ndarray,
        on_scores: OnScores,
        skip: np.ndarray | None = None,
    ) -> None:
        """Scores pairs and reports them in batches, in no particular order.

        Where a device's memory does not hold a chunk, chunks are halved, with a warning.

        Args:
            prefixes: paths of segments.
            continuations: what may follow.
            pairs: int [n, 2], indices of prefix and continuation; shapes are chosen over all of
                them, whichever are skipped.
            on_scores: called with pair indices int [m] and log-probabilities float64 [m, G], nats
                summed over the response's tokens.
            skip: bool [n], pairs that need no scores. Calls are planned as if they did, and run
                unless all their pairs are skipped: what is run gives the same bits either way.

        Raises:
            NotFiniteError: if a log-probability, and so a logit, is not finite.
            FaultError: if a single suffix does not fit into the device's memory.
        """
        if not len(pairs) or (skip is not None and skip.all()):
            return
        work = _Work(continuations, pairs)
        for pool, members in prefix_pools(
            self._decoder, prefixes, pairs[:, 0], self._memory, skip, self._mesh, self._kept
        ):
            self._score_pool(work, pool, members, on_scores, skip)
            # Gone before the next one is made: the budget is for one.
            del pool

    def padding_share(
        self,
        prefixes: Sequence[Sequence[TokenIds]],
        continuations: Sequence[Continuation],
        pairs: np.ndarray,
    ) -> float:
        """Share of padding among the tokens that `score` would run, prefixes included."""
        work = _Work(continuations, pairs)
        shapes = chunk_shapes(work.lengths, self._tokens)
        run, real = 0, sum(work.lengths)
        pools, of_segments = plan_pools(
            self._decoder, prefixes, pairs[:, 0], self._memory, self._mesh
        )
        for paths in pools:
            members = np.flatnonzero(np.isin(pairs[:, 0], list(paths)))
            chunks = list(plan_chunks([work.lengths[i] for i in members], shapes))
            levels = tree_levels(paths.values())
            for level, planned in zip(levels, level_chunks(levels, of_segments), strict=True):
                chunks += planned
                real += sum(len(node[-1]) for node in level)
            run += sum(chunk.shape.num_tokens for chunk in chunks)
        return 1.0 - real / run

    def _score_pool(self, work: _Work, pool: PrefixPool, members, on_scores, skip) -> None:
        done = np.zeros(len(work.lengths), bool)
        while True:
            # Whatever its size, a call's pairs depend on the whole work alone, not on what is done.
            finished = done if skip is None else done | skip
            try:
                for call in self._run_ahead(work, pool, members, finished):
                    self._report(call, on_scores, done)
                    done[call.members] = True
                return
            except jax.errors.JaxRuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._halve(work)

    def _halve(self, work: _Work) -> None:
        longest = max(work.lengths)
        if self._tokens <= longest and self._chunks == 1:
            raise FaultError(
                f"The device's memory does not hold a single suffix of {longest} tokens beside the "
                "prefixes; give a smaller --memory, or a model that takes less."
            )
        if self._chunks > 1:
            self._chunks //= 2
        else:
            self._tokens = max(self._tokens // 2, longest)
        warnings.warn(
            "The device's memory is full: going on with batches of "
            f"{self._chunks * self._tokens} tokens.",
            stacklevel=2,
        )

    def _run_ahead(self, work: _Work, pool: PrefixPool, members, finished) -> Iterator[_Call]:
        """Runs calls, a few ahead of the one that is yielded; its scores are on the host."""
        under_way: deque[_Call] = deque()
        shapes = chunk_shapes(work.lengths, self._tokens)
        chunks = plan_chunks([work.lengths[i] for i in members], shapes)
        for chunk_call in plan_calls(chunks, self._chunks * num_lanes(self._mesh)):
            pairs = [members[i] for chunk in chunk_call for i in chunk.members]
            if finished[pairs].all():
                continue
            under_way.append(self._start(work, pool, chunk_call, members))
            if len(under_way) == _CALLS_AHEAD:
                yield _fetched(under_way.popleft())
        while under_way:
            yield _fetched(under_way.popleft())

    def _start(self, work: _Work, pool: PrefixPool, chunks: list[Chunk], members) -> _Call:
        shape, lanes, num_chunks = chunks[0].shape, num_lanes(self._mesh), self._chunks
        # Dealt out, so that a call that is not full is shared by all lanes too.
        each = [
            self._lane(work, pool, chunks[lane::lanes], members, shape, num_chunks)
            for lane in range(lanes)
        ]
        inputs, owners = each[0]
        if self._mesh is not None:
            inputs = _placed(self._mesh, [lane for lane, _ in each])
            owners = np.stack([lane for _, lane in each])
        hidden = run_suffixes(
            self._graph,
            self._state,
            pool.cache,
            inputs,
            packed=shape.num_tokens,
            # Products of one input are joined where layers' weights are copied anyhow, and whole.
            join=jax.default_backend() == "cpu" and not is_split(self._mesh),
            mesh=self._mesh,
        )
        scores = score_states(
            self._graph,
            self._state,
            hidden,
            inputs.targets,
            inputs.num_places,
            np.float32(self._grid.step),
            multiples=self._grid.multiples,
            block=self._block,
            positions=min(self._positions, owners.shape[-1]),
            cap=self._decoder.config.logit_softcap,
            mesh=self._mesh,
        )
        every = [members[i] for chunk in chunks for i in chunk.members]
        return _Call(scores, owners, every)

    def _lane(
        self,
        work: _Work,
        pool: PrefixPool,
        chunks: list[Chunk],
        members,
        shape: ChunkShape,
        num_chunks: int,
    ) -> tuple[CallInputs, np.ndarray]:
        """What one lane is given (nothing, for no chunks), and the owners of its scores."""
        tokens = np.zeros((num_chunks, shape.num_rows, shape.length), np.int32)
        lengths = np.zeros((num_chunks, shape.num_rows), np.int32)
        rows = np.zeros((num_chunks, shape.num_rows), np.int32)
        places, targets, owners = [], [], []
        for c, chunk in enumerate(chunks):
            pairs = [members[i] for i in chunk.members]
            tails = [work.continuations[work.pairs[i, 1]] for i in pairs]
            tokens[c], lengths[c] = pad(
                [t.request + t.response for t in tails], shape.length, shape.num_rows
            )
            rows[c, : len(pairs)] = [pool.row_of[int(work.pairs[i, 0])] for i in pairs]
            for row, (pair, tail) in enumerate(zip(pairs, tails, strict=True)):
                # The state at position t predicts the token at t + 1.
                last = (c * shape.num_rows + row) * shape.length + lengths[c, row] - 1
                places.append(np.arange(last - len(tail.response), last))
                targets.append(tail.response)
                owners.append(np.full(len(tail.response), pair))
        room = -(-num_chunks * shape.num_tokens // self._positions) * self._positions
        inputs = CallInputs(
            tokens,
            lengths,
            rows,
            np.asarray(len(chunks), np.int32),
            _filled(places, room),
            _filled(targets, room),
            np.asarray(sum(map(len, targets)), np.int32),
        )
        return inputs, _filled(owners, room, -1)

    def _report(self, call: _Call, on_scores: OnScores, done: np.ndarray) -> None:
        members = np.asarray(call.members)
        order = np.argsort(members)
        totals = np.zeros((len(members), len(self._grid.multiples)))
        real = call.owners >= 0
        owners, scores = call.owners[real], np.asarray(call.scores, np.float64)[real]
        np.add.at(totals, order[np.searchsorted(members, owners, sorter=order)], scores)
        finite = np.isfinite(totals).all(axis=1)
        if not finite.all():
            raise NotFiniteError(int(members[~finite][0]))
        fresh = ~done[members]
        if fresh.any():
            on_scores(members[fresh], totals[fresh])


class _Work:
    """The pairs of one job, with the lengths of their suffixes."""

    def __init__(self, continuations: Sequence[Continuation], pairs: np.ndarray):
        self.continuations, self.pairs = continuations, pairs
        each = [len(c.request) + len(c.response) for c in continuations]
        self.lengths = [each[int(c)] for c in pairs[:, 1]]


def _fetched(call: _Call) -> _Call:
    return call._replace(scores=to_host(call.scores))


def _placed(mesh: Mesh, lanes: Sequence[CallInputs]) -> CallInputs:
    """The inputs of all lanes, each on its lane's devices."""
    stacked = CallInputs(*(np.stack(values) for values in zip(*lanes, strict=True)))
    common = {name: getattr(stacked, name).max() for name in _COMMON}
    return shard_rows(mesh, stacked)._replace(**replicate(mesh, common))


def _filled(parts: Sequence, length: int, filler: int = 0) -> np.ndarray:
    """Parts one behind the other, and `filler` up to `length`, int32."""
    result = np.full(length, filler, np.int32)
    if parts:
        joined = np.concatenate([np.asarray(part, np.int32) for part in parts])
        result[: len(joined)] = joined
    return result
