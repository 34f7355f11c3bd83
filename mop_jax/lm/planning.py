"""Which sequences are run together: few compiled shapes, and next to no padding.

A chunk holds up to B sequences of up to T tokens each and up to N tokens together. Matrix products
run over the N packed tokens (see `mop_jax.lm.attention.Packing`), so what they waste is the rest of
a chunk that no sequence fits into, or no row is left for; attention runs over B · T places.

Compiling a shape takes as long as running thousands of tokens. Large work is given several shapes
that fit it closely; small work as few as pay, of sizes so coarse that the next job has them too.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from mop_jax.lm.base import TokenIds

# Tokens of a chunk. Measured on two CPU cores: more leave the processor's cache, fewer do not keep
# it busy; accelerators want many.
TOKENS_PER_CHUNK = {"cpu": 1_024}
TOKENS_PER_CHUNK_ACCELERATOR = 16_384
# Chunks in one call: on a CPU a layer's weights are fetched (and copied) once for all of them.
CHUNKS_PER_CALL = {"cpu": 4}
CHUNKS_PER_CALL_ACCELERATOR = 1
MAX_LENGTHS = 5
# Work of fewer chunks than this is small.
SMALL = 24
# What compiling a shape costs, in tokens that are run in the same time, about.
SHAPE_TOKENS = {"cpu": 2_000}
SHAPE_TOKENS_ACCELERATOR = 200_000
# The smallest chunk of small work in tokens, and its fewest rows and shortest length.
_TOKEN_STEP = 64
_LEAST = 8
# Sizes of a chunk that are tried, in relation to the budget, the nearest first.
_SHARES = (1.0, 1.03125, 0.96875, 1.0625, 0.9375, 1.09375, 0.90625, 1.125, 0.875)
# What attention costs in relation to products, about; it is a fifth to a third on a CPU.
_ATTENTION = 0.2
# Sequences on which they are tried, about.
_SAMPLE = 2_000


class ChunkShape(NamedTuple):
    """Sizes of a chunk.

    Attributes:
        length: T, tokens of its longest sequence at most.
        num_rows: B, sequences at most.
        num_tokens: N, real tokens at most.
        mixed: whether long and short sequences stand side by side, so that all chunks have about as
            many; otherwise sequences of about one length do.
    """

    length: int
    num_rows: int
    num_tokens: int
    mixed: bool = False


class Chunk(NamedTuple):
    """Sequences to run together, by their indices."""

    shape: ChunkShape
    members: list[int]


def by_backend(table: dict[str, int], otherwise: int) -> int:
    """A size for the default backend."""
    return table.get(jax.default_backend(), otherwise)


def chunk_shapes(
    lengths: Sequence[int], budget: int, max_lengths: int = MAX_LENGTHS, step: int = 4
) -> list[ChunkShape]:
    """Shapes for a workload, shortest first.

    Args:
        lengths: tokens of each sequence; at least one.
        budget: tokens of a chunk; raised to the longest sequence where that is more. Large work may
            leave it by an eighth, whatever wastes the least.
        max_lengths: how many shapes at most.
        step: lengths are multiples of this where there is much to do.
    """
    total = int(np.sum(lengths))
    if total < SMALL * budget:
        return _coarse_shapes(lengths, min(budget, coarse(total, _TOKEN_STEP)), max_lengths)
    padded = choose_lengths(lengths, max_lengths, step)
    # Every so many-th length stands for all: the same for equal workloads.
    every = -(-len(lengths) // _SAMPLE)
    sample = np.sort(lengths)[::every].tolist()
    # The budget is what suits the machine: leaving it must gain something.
    num_tokens = min(
        (round(budget * share / 16) * 16 for share in _SHARES),
        key=lambda tokens: (
            _waste(sample, padded, tokens, every == 1) + abs(tokens / budget - 1) / 16
        ),
    )
    return _shapes(lengths, padded, max(num_tokens, padded[-1]))


def _coarse_shapes(lengths: Sequence[int], num_tokens: int, max_lengths: int) -> list[ChunkShape]:
    price = by_backend(SHAPE_TOKENS, SHAPE_TOKENS_ACCELERATOR) / _ATTENTION
    each = [coarse(length, _LEAST) for length in lengths]
    padded = choose_lengths(each, max_lengths, step=1, price=price)
    num_tokens = max(num_tokens, padded[-1])
    shapes, shorter = [], 0
    for length in padded:
        inside = [n for n, size in zip(lengths, each) if shorter < size <= length]
        # Rows for as many of the mean length as fill the tokens: chunks are mixed.
        num_rows = coarse(-(-num_tokens * len(inside) // sum(inside)), _LEAST)
        shapes.append(ChunkShape(length, min(num_rows, num_tokens), num_tokens, True))
        shorter = length
    return shapes


def coarse(number: int, least: int = 1) -> int:
    """The next larger of few sizes: `least`, or a quarter, half or three quarters of an octave on.

    Example:
        >>> [coarse(n) for n in (3, 9, 47, 84, 129, 395)]
        [3, 10, 48, 96, 160, 448]
    """
    number = max(number, least)
    step = max(1, 2 ** ((number - 1).bit_length() - 3))
    return -(-number // step) * step


def _waste(lengths: Sequence[int], padded: Sequence[int], num_tokens: int, whole: bool) -> float:
    """Work on padding in chunks of about `num_tokens`, in relation to the rest.

    Products run over a chunk's tokens, attention over its rows. `whole` if these are all sequences.
    """
    chunks = list(plan_chunks(lengths, _shapes(lengths, padded, max(num_tokens, padded[-1]))))
    if not whole:
        # The last chunk is not full in a sample, and no loss in the whole.
        chunks = chunks[:-1] or chunks
    real = sum(lengths[i] for chunk in chunks for i in chunk.members)
    tokens = sum(chunk.shape.num_tokens for chunk in chunks)
    places = sum(chunk.shape.num_rows * chunk.shape.length for chunk in chunks)
    return (tokens + _ATTENTION * places) / real - 1.0 - _ATTENTION


def _shapes(lengths: Sequence[int], padded: Sequence[int], num_tokens: int) -> list[ChunkShape]:
    shapes, shorter = [], 0
    for length in padded:
        # A sample of the lengths may have none of this size.
        inside = [n for n in lengths if shorter < n <= length] or [length]
        # Room for as many of the shortest as fill the tokens.
        num_rows = min(len(lengths), num_tokens // min(inside))
        shapes.append(ChunkShape(length, num_rows, num_tokens))
        shorter = length
    return shapes


def plan_chunks(lengths: Sequence[int], shapes: Sequence[ChunkShape]) -> Iterator[Chunk]:
    """Packs sequences into chunks, longest first, each filled up with the longest that still fit.

    Mixed chunks are filled up evenly instead, with sequences of the mean length of what is left.
    Every sequence is in exactly one chunk; which depends on the lengths and their order alone.
    """
    waiting: dict[int, deque[int]] = {}
    for i, length in enumerate(lengths):
        waiting.setdefault(int(length), deque()).append(i)
    sizes: list[int] = []
    for length in waiting:
        insort(sizes, length)
    left, num_left = sum(map(int, lengths)), len(lengths)
    while sizes:
        shape = next(shape for shape in shapes if shape.length >= sizes[-1])
        members: list[int] = []
        room = shape.num_tokens
        while len(members) < shape.num_rows and sizes:
            most = room
            if shape.mixed and members:
                # Behind the longest, sequences of which as many as usual fill the room.
                count = min(shape.num_rows - len(members), max(1, int(room * num_left / left)))
                most = max(room // count, sizes[0])
            place = bisect_right(sizes, min(most, room)) - 1
            if place < 0:
                break
            length = sizes[place]
            members.append(waiting[length].popleft())
            room, left, num_left = room - length, left - length, num_left - 1
            if not waiting[length]:
                del sizes[place]
        yield Chunk(shape, members)


def plan_calls(chunks: Iterator[Chunk], num_chunks: int) -> Iterator[list[Chunk]]:
    """Puts up to `num_chunks` neighbouring chunks of one shape into a call."""
    call: list[Chunk] = []
    for chunk in chunks:
        if call and (len(call) == num_chunks or chunk.shape != call[0].shape):
            yield call
            call = []
        call.append(chunk)
    if call:
        yield call


def choose_lengths(
    lengths: Sequence[int],
    max_lengths: int = MAX_LENGTHS,
    step: int = 4,
    price: float | None = None,
) -> list[int]:
    """At most `max_lengths` padded lengths, multiples of `step`, with the least room left over.

    Chunks of a length T have rows for as many of its shortest sequences, of t tokens, as fill them:
    attention runs over T / t places for each token. The sum of these is the least possible; exact,
    by dynamic programming over the distinct rounded lengths.

    With a `price`, in places, of each length chunks are mixed: attention runs over T places for
    each sequence, and the sum of these and of the price is the least possible.
    """
    each = np.asarray(lengths)
    sizes, group = np.unique(-(-each // step) * step, return_inverse=True)
    if price is None:
        shortest = np.full(len(sizes), each.max())
        np.minimum.at(shortest, group, each)
        total = np.concatenate([[0], np.cumsum(np.bincount(group, each))])
    else:
        shortest = np.ones(len(sizes))
        total = np.concatenate([[0], np.cumsum(np.bincount(group))])
    # cost[m][i]: places of the i shortest distinct lengths in m groups.
    cost = np.full((max_lengths + 1, len(sizes) + 1), np.inf)
    cost[0, 0] = 0.0
    split = np.zeros(cost.shape, int)
    for m in range(1, max_lengths + 1):
        for i in range(1, len(sizes) + 1):
            options = cost[m - 1, :i] + sizes[i - 1] / shortest[:i] * (total[i] - total[:i])
            split[m, i] = int(np.argmin(options))
            cost[m, i] = options[split[m, i]]
    total_cost = cost[:, -1] + (price or 0.0) * np.arange(max_lengths + 1)
    m, i, chosen = int(np.argmin(total_cost)), len(sizes), []
    while i > 0:
        chosen.append(int(sizes[i - 1]))
        i, m = split[m, i], m - 1
    return sorted(chosen)


def pad(sequences: Sequence[TokenIds], length: int, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids int32 [num_rows, length], zeros at the end, and lengths int32 [num_rows]."""
    tokens = np.zeros((num_rows, length), np.int32)
    lengths = np.zeros(num_rows, np.int32)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence)] = sequence
        lengths[row] = len(sequence)
    return tokens, lengths
