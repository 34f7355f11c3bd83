"""Chunks, calls and padded lengths against what they promise."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mop_jax.lm.planning import (
    MAX_LENGTHS,
    SMALL,
    choose_lengths,
    chunk_shapes,
    coarse,
    pad,
    plan_calls,
    plan_chunks,
)


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=14),
    max_lengths=st.integers(1, 4),
    step=st.sampled_from([1, 4, 16]),
)
def test_chosen_lengths_leave_the_least_room(lengths, max_lengths, step):
    """Against every choice of at most `max_lengths` multiples of the step."""
    rounded = [-(-length // step) * step for length in lengths]
    sizes = sorted(set(rounded))

    def cost(chosen):
        groups: dict[int, list[int]] = {}
        for length in lengths:
            groups.setdefault(min(size for size in chosen if size >= length), []).append(length)
        return sum(size / min(group) * sum(group) for size, group in groups.items())

    best = min(
        cost((*some, sizes[-1]))
        for count in range(max_lengths)
        for some in combinations(sizes[:-1], count)
    )
    chosen = choose_lengths(lengths, max_lengths, step)
    assert chosen == sorted(set(chosen))
    assert len(chosen) <= max_lengths
    assert all(size % step == 0 for size in chosen)
    assert cost(chosen) == pytest.approx(best)


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=60),
    budget=st.sampled_from([1, 64, 200, 512]),
)
def test_chunks_hold_every_sequence_once_within_their_shapes(lengths, budget):
    shapes = chunk_shapes(lengths, budget)
    assert 1 <= len(shapes) <= MAX_LENGTHS
    chunks = list(plan_chunks(lengths, shapes))
    assert sorted(i for chunk in chunks for i in chunk.members) == list(range(len(lengths)))
    for shape, members in chunks:
        assert shape in shapes
        assert members
        assert len(members) <= shape.num_rows
        assert max(lengths[i] for i in members) <= shape.length
        assert sum(lengths[i] for i in members) <= shape.num_tokens
    longest = [max(lengths[i] for i in chunk.members) for chunk in chunks]
    assert longest == sorted(longest, reverse=True)  # a full device is found out at once


@given(seed=st.integers(0, 1_000), count=st.sampled_from([200, 600, 2_000]))
def test_chunks_of_many_sequences_waste_little(seed, count):
    """Large work under 3 %; small work under 5 %, and the chunk that is begun last."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(20, 80, size=count).tolist()
    shapes = chunk_shapes(lengths, 512)
    small = sum(lengths) < SMALL * 512
    assert all(shape.mixed == small for shape in shapes)
    room = sum(chunk.shape.num_tokens for chunk in plan_chunks(lengths, shapes))
    assert sum(lengths) / (room - 512 * small) > (0.95 if small else 0.97)


@given(seed=st.integers(0, 1_000))
def test_small_jobs_of_one_kind_share_their_shapes(seed):
    """Of ten jobs that differ in their records and their number there are few shapes in all."""
    rng = np.random.default_rng(seed)
    jobs = [rng.integers(25, rng.integers(81, 96), size=n) for n in rng.integers(100, 400, 10)]
    shapes = {shape for job in jobs for shape in chunk_shapes(job.tolist(), 1_024)}
    assert len(shapes) <= 16  # closely fitting ones would be 50


@given(number=st.integers(1, 100_000), least=st.sampled_from([1, 8, 64]))
def test_coarse_sizes_are_few_and_near(number, least):
    size = coarse(number, least)
    assert max(number, least) <= size <= max(least, 1.25 * number)
    assert coarse(size, least) == size
    assert len({coarse(n) for n in range(1, 1_025)}) <= 4 * 10


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=14),
    max_lengths=st.integers(1, 4),
    price=st.sampled_from([0.0, 5.0, 60.0]),
)
def test_lengths_of_mixed_chunks_are_worth_their_price(lengths, max_lengths, price):
    """Against every choice: places of attention, and what the shapes cost."""
    sizes = sorted(set(lengths))

    def cost(chosen):
        places = sum(min(size for size in chosen if size >= length) for length in lengths)
        return places + price * len(chosen)

    best = min(
        cost((*some, sizes[-1]))
        for count in range(max_lengths)
        for some in combinations(sizes[:-1], count)
    )
    assert cost(choose_lengths(lengths, max_lengths, 1, price)) == pytest.approx(best)


def test_equal_lengths_and_one_long_sequence():
    assert [len(c.members) for c in plan_chunks([8] * 20, chunk_shapes([8] * 20, 64))] == [8, 8, 4]
    lengths = [500, 3, 3, 3]
    shapes = chunk_shapes(lengths, 64)
    assert {shape.num_tokens for shape in shapes} == {512}
    assert [c.members for c in plan_chunks(lengths, shapes)] == [[0, 1, 2, 3]]


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=200), num_chunks=st.integers(1, 5))
def test_calls_keep_the_order_and_never_mix_shapes(lengths, num_chunks):
    chunks = list(plan_chunks(lengths, chunk_shapes(lengths, 100)))
    calls = list(plan_calls(iter(chunks), num_chunks))
    assert [chunk for call in calls for chunk in call] == chunks
    for call, after in zip(calls, [*calls[1:], None]):
        assert len({chunk.shape for chunk in call}) == 1
        assert len(call) <= num_chunks
        if after is not None and after[0].shape == call[0].shape:
            assert len(call) == num_chunks


def test_padding_stands_behind_and_in_empty_rows():
    tokens, lengths = pad([(3, 4, 5), (6,)], 4, 3)
    np.testing.assert_array_equal(tokens, [[3, 4, 5, 0], [6, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(lengths, [3, 1, 0])
    assert tokens.dtype == lengths.dtype == np.int32


def test_one_long_sequence_among_many():
    """The sample on which sizes are tried has none of its length."""
    lengths = np.random.default_rng(0).integers(20, 76, 12_808).tolist()
    for longest in (400, 1_500):
        work = [*lengths, longest]
        chunks = list(plan_chunks(work, chunk_shapes(work, 512)))
        assert sorted(i for chunk in chunks for i in chunk.members) == list(range(len(work)))
        assert max(chunk.shape.length for chunk in chunks) >= longest
