"""Prefix-shared scoring against whole prompts, in any shape, order, batch and memory."""

from __future__ import annotations

from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from mop_jax.errors import DataError, FaultError
from mop_jax.lm import scoring
from mop_jax.lm.base import Continuation, TemperatureGrid
from mop_jax.lm.decoder import Decoder
from mop_jax.lm.flax_lm import FlaxLM
from mop_jax.lm.scoring import batches, choose_lengths, grid_log_probs, prefix_pools

GRID = TemperatureGrid()
UNIT = TemperatureGrid.single(1.0)
WIDTH = 96  # of the oracle's whole prompts


def random_work(seed, num_pairs=40, num_trees=5, longest=(30, 12)):
    """Prefixes of zero to three segments that share beginnings, continuations, and pairs."""
    rng = np.random.default_rng(seed)

    def ids(length):
        return tuple(rng.integers(4, 6060, length).tolist())

    prefixes = [()]
    for _ in range(num_trees):
        trunk = (ids(rng.integers(1, longest[0] // 3 + 1)),)
        prefixes.append(trunk)
        for _ in range(rng.integers(1, 4)):
            branch = (*trunk, ids(rng.integers(1, longest[0] // 3 + 1)))
            prefixes += [branch, (*branch, ids(rng.integers(1, longest[0] // 3 + 1)))]
    tails = [
        Continuation(ids(rng.integers(1, 4)), ids(rng.integers(1, longest[1])))
        for _ in range(num_pairs // 2 + 1)
    ]
    pairs = np.stack(
        [rng.integers(len(prefixes), size=num_pairs), rng.integers(len(tails), size=num_pairs)], 1
    )
    return prefixes, tails, pairs


def score(lm, work, *, grid=GRID, memory=None, skip=None):
    """Scores [n, G]; NaN where nothing was reported; every pair is reported at most once."""
    prefixes, tails, pairs = work
    table = np.full((len(pairs), len(grid.multiples)), np.nan)

    def store(indices, scores):
        assert len(set(indices.tolist())) == len(indices)
        assert np.isnan(table[indices]).all()
        assert scores.dtype == np.float64
        table[indices] = scores

    lm.score_pairs(prefixes, tails, pairs, grid=grid, on_scores=store, memory=memory, skip=skip)
    return table


def brute_force(lm, prompts, responses, temperatures):
    """Float64 log-softmax of whole-prompt logits, [n, G]."""
    tokens = np.full((len(prompts), WIDTH), 5)
    lengths = np.zeros(len(prompts), int)
    for row, (prompt, response) in enumerate(zip(prompts, responses)):
        ids = [*prompt, *response]
        tokens[row, : len(ids)] = ids
        lengths[row] = len(ids)
    found = np.zeros((len(prompts), len(temperatures)))
    for start in range(0, len(prompts), 8):
        rows = np.arange(start, start + 8) % len(prompts)  # one shape, one compilation
        logits = np.asarray(lm.logits(tokens[rows], lengths[rows]), np.float64)
        for place, row in enumerate(rows):
            at = np.arange(len(prompts[row]), lengths[row])
            for g, temperature in enumerate(temperatures):
                tempered = logits[place, at - 1] / temperature
                normaliser = np.logaddexp.reduce(tempered, axis=-1)
                found[row, g] = (tempered[np.arange(len(at)), tokens[row, at]] - normaliser).sum()
    return found


def whole(work):
    """Prompts and responses of the pairs, as ids."""
    prefixes, tails, pairs = work
    prompts = [[i for s in (*prefixes[p], tails[t].request) for i in s] for p, t in pairs]
    return prompts, [tails[t].response for _, t in pairs]


def test_log_likelihood_is_the_sum_of_token_log_probs(tiny_lm):
    prompts, responses = whole(random_work(0))
    temperatures = [0.6, 1.0, 1.7]
    expected = brute_force(tiny_lm, prompts, responses, temperatures)
    assert np.ptp(expected, axis=1).min() > 0.05  # temperature matters
    for g, temperature in enumerate(temperatures):
        found = tiny_lm.log_likelihood(prompts, responses, temperature=temperature)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected[:, g], atol=2e-4)


@pytest.mark.parametrize("seed", [1, 2])
def test_shared_prefixes_give_the_scores_of_whole_prompts(tiny_lm, seed):
    work = random_work(seed)
    expected = brute_force(tiny_lm, *whole(work), GRID.temperatures)
    np.testing.assert_allclose(score(tiny_lm, work), expected, atol=2e-4)


@settings(max_examples=8)
@given(
    seed=st.integers(0, 10_000),
    num_pairs=st.integers(1, 25),
    memory=st.sampled_from([None, 1.0, 150_000.0]),
)
def test_lengths_order_and_memory_do_not_matter(tiny_lm, seed, num_pairs, memory):
    work = random_work(seed, num_pairs)
    prefixes, tails, pairs = work
    expected = brute_force(tiny_lm, *whole(work), [1.0])[:, 0]
    found = score(tiny_lm, work, grid=UNIT, memory=memory)[:, 0]
    np.testing.assert_allclose(found, expected, atol=2e-4)
    # Other order of pairs, and prefixes and tails under other numbers.
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(pairs))
    names = [rng.permutation(len(values)) for values in (prefixes, tails)]
    renamed = np.stack([np.argsort(name)[column] for name, column in zip(names, pairs.T)], axis=1)
    other = ([prefixes[i] for i in names[0]], [tails[i] for i in names[1]], renamed[order])
    again = score(tiny_lm, other, grid=UNIT, memory=memory)[:, 0]
    np.testing.assert_allclose(again, expected[order], atol=2e-4)


def test_little_memory_makes_several_pools_of_one_shape(tiny_lm):
    prefixes, _, pairs = random_work(3)
    row = 32 * 2 * 3 * 2 * 6 * 4  # tokens × (key, value) × layers × heads × width × bytes
    all_at_once = list(prefix_pools(tiny_lm.decoder, prefixes, pairs[:, 0], 1e9))
    assert len(all_at_once) == 1
    few = list(prefix_pools(tiny_lm.decoder, prefixes, pairs[:, 0], 5 * row))
    assert len(few) > 3
    assert len({pool.cache.keys.shape for pool, _ in few}) == 1
    assert sorted(i for _, members in few for i in members) == list(range(len(pairs)))
    for pool, members in few:
        assert {int(pairs[i, 0]) for i in members} == set(pool.row_of)
    one_each = list(prefix_pools(tiny_lm.decoder, prefixes, pairs[:, 0], 1))
    assert len(one_each) == len(set(pairs[:, 0].tolist()))


def test_a_shared_persona_is_run_once(tiny_lm, monkeypatch):
    persona, other = (5, 6, 7), (8, 9)
    prefixes = [(persona, (10 + j,)) for j in range(5)] + [(other, (10,)), (persona,)]
    seen = []
    real = scoring.pad
    monkeypatch.setattr(scoring, "pad", lambda s, *rest: seen.extend(s) or real(s, *rest))
    list(prefix_pools(tiny_lm.decoder, prefixes, np.arange(7), 1e9))
    expected = [persona, other, *((10 + j,) for j in range(5)), (10,)]
    assert sorted(seen) == sorted(expected)


def test_every_temperature_of_a_grid_is_scored_exactly(tiny_lm):
    work = random_work(4)
    table = score(tiny_lm, work)
    assert np.ptp(table, axis=1).min() > 0.01
    for g in (0, 3, 5, 8):
        alone = score(tiny_lm, work, grid=TemperatureGrid.single(GRID.temperatures[g]))
        np.testing.assert_allclose(table[:, g], alone[:, 0], atol=2e-4)


def test_default_grid():
    np.testing.assert_allclose(1 / GRID.temperatures, np.arange(13, 4, -1) / 8)
    assert GRID.temperatures[GRID.unit_index] == 1.0
    assert TemperatureGrid.single(0.7).temperatures == pytest.approx([0.7])
    for bad in ({"step": 0.0}, {"multiples": ()}, {"multiples": (1, 2)}, {"multiples": (2, 2)}):
        with pytest.raises(DataError, match="temperature grid needs"):
            TemperatureGrid(**bad)
    with pytest.raises(DataError, match="temperature grid needs"):
        TemperatureGrid(multiples=(2, 0))


def test_blocks_of_the_vocabulary_whatever_the_size_of_logits():
    """Logits in the hundreds, the largest in the first, a middle or the last block."""
    rng = np.random.default_rng(0)
    embedding = rng.normal(0, 10, (30, 4)).astype(np.float32)
    hidden = rng.normal(0, 10, (50, 4)).astype(np.float32)
    targets = rng.integers(30, size=50)
    logits = hidden.astype(np.float64) @ embedding.T.astype(np.float64)
    assert len({int(v) // 6 for v in logits.argmax(1)}) == 5
    assert logits.max() > 300
    found = grid_log_probs(
        embedding, hidden, targets, np.float32(0.125), multiples=(13, 8, 5), block=6
    )
    for g, inverse in enumerate((1.625, 1.0, 0.625)):
        expected = inverse * logits[np.arange(50), targets] - np.logaddexp.reduce(
            inverse * logits, axis=1
        )
        np.testing.assert_allclose(found[:, g], expected, rtol=1e-5, atol=1e-3)


def test_next_token_probabilities_sum_to_one(tiny_lm):
    """All 6,060 one-token responses after a prefix, at every temperature of the grid."""
    size = tiny_lm.config.vocab_size
    prefixes = [((5, 99, 1234), (77, 8))]
    tails = [Continuation((42,), (token,)) for token in range(size)]
    pairs = np.stack([np.zeros(size, int), np.arange(size)], axis=1)
    total = np.exp(score(tiny_lm, (prefixes, tails, pairs))).sum(axis=0)
    np.testing.assert_allclose(total, 1.0, atol=1e-5)
    found = tiny_lm.log_likelihood([[5, 99, 1234]] * size, [[t] for t in range(size)])
    np.testing.assert_allclose(np.exp(found).sum(), 1.0, atol=1e-5)


def cache_sizes():
    names = ("run_suffixes", "run_segments", "place_rows", "grid_log_probs")
    return np.asarray([getattr(scoring, name)._cache_size() for name in names])


def test_compilations_are_few_and_not_repeated(make_tiny_lm):
    lm = make_tiny_lm(vocab_size=101 * 7)  # shapes that no other test compiles
    work = random_work(5, num_pairs=150, num_trees=12, longest=(60, 70))
    lengths = {len(t.request + t.response) for t in work[1]}
    assert len(lengths) > 30
    before = cache_sizes()
    first = score(lm, work, memory=100_000.0)
    suffixes, segments, placed, projections = cache_sizes() - before
    assert 1 < suffixes <= scoring.MAX_LENGTHS
    assert 1 <= segments <= 4
    assert 1 <= placed <= 4
    assert projections == 1
    middle = cache_sizes()
    np.testing.assert_array_equal(score(lm, work, memory=100_000.0), first)
    some = np.random.default_rng(0).random(150) < 0.5
    score(lm, work, memory=100_000.0, skip=some)
    assert (cache_sizes() == middle).all()


@pytest.mark.parametrize("memory", [None, 50_000.0])
def test_skipping_leaves_the_bits_of_the_others(tiny_lm, memory):
    work = random_work(6, num_pairs=200)
    everything = score(tiny_lm, work, memory=memory)
    assert np.isfinite(everything).all()
    rng = np.random.default_rng(0)
    for share in (0.1, 0.5, 0.97):
        skip = rng.random(200) < share
        found = score(tiny_lm, work, memory=memory, skip=skip)
        np.testing.assert_array_equal(found[~skip], everything[~skip])
    # As a killed run leaves them: whole batches are done, the rest is not.
    lengths = [len(work[1][t].request + work[1][t].response) for _, t in work[2]]
    skip = np.asarray(lengths) > np.median(lengths)
    found = score(tiny_lm, work, memory=memory, skip=skip)
    np.testing.assert_array_equal(found[~skip], everything[~skip])


def test_nothing_is_run_where_everything_is_skipped(tiny_lm, monkeypatch):
    work = random_work(7)
    monkeypatch.setattr(scoring, "PrefixPool", None)
    assert np.isnan(score(tiny_lm, work, skip=np.ones(40, bool))).all()
    assert score(tiny_lm, (work[0], work[1], np.zeros((0, 2), int))).shape == (0, 9)


def test_log_probabilities_that_are_not_finite_are_refused(make_tiny_lm):
    decoder = make_tiny_lm().decoder
    decoder.norm.scale[...] = decoder.norm.scale[...].at[3].set(jnp.nan)
    with pytest.raises(FaultError, match="log-probability that is not finite"):
        FlaxLM(decoder).log_likelihood([[5]], [[6]])


def test_what_log_likelihood_accepts_and_refuses(tiny_lm):
    assert tiny_lm.log_likelihood([], []).shape == (0,)
    assert tiny_lm.log_likelihood([[5], [6]], [[], []]).tolist() == [0.0, 0.0]
    mixed = tiny_lm.log_likelihood([[5], [6], [7]], [[8], [], [9]])
    np.testing.assert_allclose(mixed[[0, 2]], tiny_lm.log_likelihood([[5], [7]], [[8], [9]]))
    assert mixed[1] == 0
    assert tiny_lm.log_likelihood([[5] * 200], [[6] * 11])[0] < 0  # the whole window
    for prompts, responses, message in (
        ([[5] * 200], [[6] * 12], "Pair 0 takes 212 tokens .* window holds 211"),
        ([[5], [5]], [[6]], "2 prompts and 1 responses"),
        ([[]], [[6]], "needs at least one token"),
        ([[6060]], [[6]], "from 0 to 6059"),
        ([[5]], [[-1]], "from 0 to 6059"),
    ):
        with pytest.raises(DataError, match=message):
            tiny_lm.log_likelihood(prompts, responses)


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=14),
    max_lengths=st.integers(1, 4),
    step=st.sampled_from([1, 4, 16]),
)
def test_chosen_lengths_waste_the_fewest_tokens(lengths, max_lengths, step):
    """Against every choice of at most `max_lengths` multiples of the step."""
    rounded = [-(-length // step) * step for length in lengths]
    sizes = sorted(set(rounded))

    def cost(chosen):
        return sum(min(size for size in chosen if size >= length) for length in rounded)

    best = min(
        cost((*some, sizes[-1]))
        for count in range(max_lengths)
        for some in combinations(sizes[:-1], count)
    )
    chosen = choose_lengths(lengths, max_lengths, step)
    assert chosen == sorted(set(chosen))
    assert len(chosen) <= max_lengths
    assert all(size % step == 0 for size in chosen)
    assert cost(chosen) == best


@given(
    lengths=st.lists(st.integers(1, 60), max_size=60),
    tokens=st.sampled_from([1, 64, 200]),
)
def test_batches_hold_every_sequence_once(lengths, tokens):
    padded = choose_lengths(lengths) if lengths else [4]
    made = list(batches(lengths, padded, tokens))
    members = [i for _, rows in made for i in rows if i >= 0]
    assert sorted(members) == list(range(len(lengths)))
    for length, rows in made:
        assert length in padded
        assert len(rows) == max(1, tokens // length)
        assert all(lengths[i] <= length for i in rows if i >= 0)
    assert [lengths[i] for i in members] == sorted(lengths, reverse=True)


@pytest.mark.parametrize("vocab_size", [49_152, 128_256, 32_000, 151_936, 101, 6_060, 50_257])
def test_blocks_divide_the_vocabulary(vocab_size):
    for target in (2_048, 32_768):
        block = scoring.vocabulary_block(vocab_size, target)
        assert vocab_size % block == 0
        assert block == vocab_size or target / 4 <= block <= target * 4


def test_bfloat16_scores_are_close(make_tiny_lm):
    exact = make_tiny_lm()
    graph = nnx.graphdef(Decoder(exact.config, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    state = jax.tree.map(lambda x: x.astype(jnp.bfloat16), nnx.state(exact.decoder))
    short = FlaxLM(nnx.merge(graph, state))
    work = random_work(8)
    found, expected = score(short, work, grid=UNIT)[:, 0], score(exact, work, grid=UNIT)[:, 0]
    num_tokens = np.asarray([len(work[1][t].response) for _, t in work[2]])
    assert 1e-3 < (abs(found - expected) / num_tokens).mean() < 0.15
    whole_prompts = short.log_likelihood(*whole(work))
    assert (abs(found - whole_prompts) / num_tokens).mean() < 0.05


def test_pairs_beyond_the_context_window_are_refused_before_scoring(tiny_lm):
    window = tiny_lm.config.max_position
    prefixes = [[(5,) * 9], [(5,) * (window - 4)]]
    pairs = np.array([[0, 0], [1, 0]])
    with pytest.raises(DataError, match=f"Pair 1 takes {window + 1} tokens"):
        tiny_lm.score_pairs(
            prefixes,
            [Continuation((7, 8, 9), (4, 3))],
            pairs,
            grid=TemperatureGrid(),
            on_scores=lambda *_: pytest.fail("scored all the same"),
        )


def test_a_grid_without_unit_temperature_has_no_index_of_it():
    assert TemperatureGrid().temperatures[TemperatureGrid().unit_index] == 1
    with pytest.raises(DataError, match=r"must be 1 / step = 3\.33"):
        _ = TemperatureGrid(0.3, (4, 3, 2)).unit_index
