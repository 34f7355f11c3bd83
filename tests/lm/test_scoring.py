"""Prefix-shared scoring against whole prompts, in any shape, order, batch and memory."""

from __future__ import annotations

import gc
import re
import warnings
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from mop_jax.errors import DataError, FaultError, NotFiniteError
from mop_jax.lm import prefixes as prefix_module
from mop_jax.lm import scoring
from mop_jax.lm.base import Continuation, TemperatureGrid
from mop_jax.lm.decoder import Decoder
from mop_jax.lm.flax_lm import FlaxLM
from mop_jax.lm.planning import CHUNKS_PER_CALL, MAX_LENGTHS, TOKENS_PER_CHUNK

GRID = TemperatureGrid()
UNIT = TemperatureGrid.single(1.0)
WIDTH = 96  # of the oracle's whole prompts


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


def test_log_likelihood_is_the_sum_of_token_log_probs(tiny_lm, random_work):
    prompts, responses = whole(random_work(0))
    temperatures = [0.6, 1.0, 1.7]
    expected = brute_force(tiny_lm, prompts, responses, temperatures)
    assert np.ptp(expected, axis=1).min() > 0.05  # temperature matters
    for g, temperature in enumerate(temperatures):
        found = tiny_lm.log_likelihood(prompts, responses, temperature=temperature)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected[:, g], atol=2e-4)


@pytest.mark.parametrize("seed", [1, 2])
def test_shared_prefixes_give_the_scores_of_whole_prompts(tiny_lm, seed, random_work):
    work = random_work(seed)
    expected = brute_force(tiny_lm, *whole(work), GRID.temperatures)
    np.testing.assert_allclose(score(tiny_lm, work), expected, atol=2e-4)


@settings(max_examples=8)
@given(
    seed=st.integers(0, 10_000),
    num_pairs=st.integers(1, 25),
    memory=st.sampled_from([None, 1.0, 150_000.0]),
)
def test_lengths_order_and_memory_do_not_matter(tiny_lm, seed, num_pairs, memory, random_work):
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


def test_every_temperature_of_a_grid_is_scored_exactly(tiny_lm, random_work):
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


@pytest.mark.parametrize("memory", [None, 50_000.0])
def test_skipping_leaves_the_bits_of_the_others(tiny_lm, memory, random_work):
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


def test_nothing_is_run_where_everything_is_skipped(tiny_lm, monkeypatch, random_work):
    work = random_work(7)
    monkeypatch.setattr(scoring, "PrefixPool", None)
    assert np.isnan(score(tiny_lm, work, skip=np.ones(40, bool))).all()
    assert score(tiny_lm, (work[0], work[1], np.zeros((0, 2), int))).shape == (0, 9)


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


def test_bfloat16_scores_are_close(make_tiny_lm, random_work):
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


def test_empty_requests_and_foreign_ids_are_refused_before_scoring(tiny_lm):
    size = tiny_lm.config.vocab_size
    for prefixes, tail, message in (
        ([((5,),)], Continuation((), (4,)), "Request 0 is empty"),
        ([((5,), (size,))], Continuation((6,), (4,)), f"from 0 to {size - 1}"),
        ([((5,),)], Continuation((6, -1), (4,)), f"from 0 to {size - 1}"),
        ([((5,),)], Continuation((6,), (4, size)), f"from 0 to {size - 1}"),
    ):
        with pytest.raises(DataError, match=message):
            score(tiny_lm, (prefixes, [tail], np.zeros((1, 2), int)))


def test_one_pool_is_held_at_a_time(tiny_lm, random_work, monkeypatch):
    """The budget is for one: the last pool is gone when the next is made."""
    pools, alive = [], []

    class Watched(prefix_module.PrefixPool):
        def __init__(self, *arguments):
            gc.collect()
            alive.append(sum(pool() is not None for pool in pools))
            super().__init__(*arguments)
            pools.append(weakref.ref(self))

    monkeypatch.setattr(prefix_module, "PrefixPool", Watched)
    score(tiny_lm, random_work(14), memory=50_000.0)
    assert len(alive) > 2
    assert set(alive) == {0}


def test_a_grid_without_unit_temperature_has_no_index_of_it():
    assert TemperatureGrid().temperatures[TemperatureGrid().unit_index] == 1
    with pytest.raises(DataError, match=r"must be 1 / step = 3\.33"):
        _ = TemperatureGrid(0.3, (4, 3, 2)).unit_index


def cache_sizes():
    return np.asarray(
        [
            scoring.run_suffixes._cache_size(),
            scoring.score_states._cache_size(),
            prefix_module.run_segments._cache_size(),
            prefix_module.place_rows._cache_size(),
        ]
    )


def test_compilations_are_few_and_not_repeated(make_tiny_lm, random_work):
    lm = make_tiny_lm(vocab_size=101 * 61)  # shapes that no other test compiles
    work = random_work(5, num_pairs=150, num_trees=12, longest=(60, 70))
    lengths = {len(t.request + t.response) for t in work[1]}
    assert len(lengths) > 30
    before = cache_sizes()
    first = score(lm, work, memory=100_000.0)
    suffixes, states, segments, placed = cache_sizes() - before
    assert 1 <= suffixes <= 3
    assert states == 1
    assert 1 <= segments <= 3  # of several pools, each of three levels
    assert 1 <= placed <= 3
    middle = cache_sizes()
    np.testing.assert_array_equal(score(lm, work, memory=100_000.0), first)
    some = np.random.default_rng(0).random(150) < 0.5
    score(lm, work, memory=100_000.0, skip=some)
    assert (cache_sizes() == middle).all()


def test_large_work_is_given_shapes_that_fit_it(make_tiny_lm, random_work, monkeypatch):
    """What compiling costs is nothing beside it; the scores are those of coarse shapes."""
    lm = make_tiny_lm(vocab_size=101 * 61)
    work = random_work(5, num_pairs=150, num_trees=12, longest=(60, 70))
    expected = score(lm, work, grid=UNIT, memory=100_000.0)
    monkeypatch.setitem(TOKENS_PER_CHUNK, "cpu", 64)
    before = cache_sizes()
    table = score(lm, work, grid=UNIT)
    suffixes, states, _, _ = cache_sizes() - before
    assert 2 < suffixes <= MAX_LENGTHS
    assert states == 1
    np.testing.assert_allclose(table, expected, atol=2e-4)


def test_another_small_job_of_the_kind_compiles_nothing(make_tiny_lm, random_work):
    """Training records, held-out records: other lengths and numbers, the same programs."""
    lm = make_tiny_lm(vocab_size=101 * 62)
    prefixes, tails, pairs = random_work(5, num_pairs=150, num_trees=4)
    score(lm, (prefixes, tails, pairs))
    before = cache_sizes()
    rng = np.random.default_rng(1)
    longest = max(range(len(tails)), key=lambda i: len(tails[i].request + tails[i].response))
    for count in (120, 140):
        some = rng.choice(len(pairs), count, replace=False)
        others = [(p, longest) for p in range(len(prefixes))]
        score(lm, (prefixes, tails, np.concatenate([pairs[some], others])))
    assert (cache_sizes() == before).all()


@pytest.mark.parametrize(("tokens", "chunks"), [(1, 1), (64, 1), (64, 4), (100, 3), (4096, 1)])
def test_sizes_of_chunks_and_calls_do_not_matter(tiny_lm, random_work, monkeypatch, tokens, chunks):
    work = random_work(9)
    expected = brute_force(tiny_lm, *whole(work), GRID.temperatures)
    monkeypatch.setitem(TOKENS_PER_CHUNK, "cpu", tokens)
    monkeypatch.setitem(CHUNKS_PER_CALL, "cpu", chunks)
    np.testing.assert_allclose(score(tiny_lm, work), expected, atol=2e-4)


@pytest.mark.parametrize("poison", [jnp.nan, jnp.inf, -jnp.inf])
def test_a_pair_whose_logits_are_not_finite_is_named(make_tiny_lm, poison):
    """Token 77's embedding is poisoned: of the model's three layers, all see it in one prompt."""
    decoder = make_tiny_lm(tie_embeddings=False).decoder
    table = decoder.embed_tokens.embedding
    table[...] = table[...].at[77, 3].set(poison)
    tails = [Continuation((5,), (6, 7)), Continuation((77,), (8,)), Continuation((5,), (9, 8, 7))]
    pairs = np.asarray([[0, 0], [0, 2], [0, 1], [0, 0]])
    with pytest.raises(NotFiniteError, match="log-probability that is not finite") as caught:
        score(FlaxLM(decoder), ([((4, 5),)], tails, pairs))
    assert caught.value.pair == 2


def test_one_logit_of_plus_infinity_is_enough(make_tiny_lm):
    """A single logit of a token that is no target, among 6,060 others in another block.

    Minus infinity is no fault: such a token has no probability.
    """
    lm = make_tiny_lm(tie_embeddings=False)
    sound = lm.log_likelihood([[5]], [[6]])
    refused = []
    for poison in (np.inf, -np.inf):
        decoder = make_tiny_lm(tie_embeddings=False).decoder
        head = decoder.lm_head.embedding
        head[...] = head[...].at[4_000].set(0.0).at[4_000, 3].set(poison)
        # The hidden state's sign decides which of the two logits is + infinity.
        try:
            found = FlaxLM(decoder).log_likelihood([[5]], [[6]])
            np.testing.assert_allclose(found, sound, atol=0.05)
        except NotFiniteError as error:
            refused.append((poison, error.pair))
    assert len(refused) == 1
    assert refused[0][1] == 0


@pytest.mark.parametrize("memory", [1e9, 100_000.0])
def test_the_padding_that_is_reported_is_what_is_run(tiny_lm, random_work, monkeypatch, memory):
    prefixes, tails, pairs = work = random_work(13, num_pairs=100)
    scorer = scoring.Scorer(tiny_lm.decoder, GRID, memory)
    reported = scorer.padding_share(prefixes, tails, pairs)
    run, real = [], []

    def watch(module, name, sizes):
        function = getattr(module, name)

        def watched(*arguments, **options):
            run.append(options["packed"])
            lengths, chunks = sizes(arguments)
            run[-1] *= int(chunks)
            real.append(int(np.sum(lengths)))
            return function(*arguments, **options)

        monkeypatch.setattr(module, name, watched)

    watch(scoring, "run_suffixes", lambda a: (a[3].lengths, a[3].num_chunks))
    watch(prefix_module, "run_segments", lambda a: (a[4], 1))
    score(tiny_lm, work, memory=memory)
    assert sum(real) > 500
    assert reported == pytest.approx(1 - sum(real) / sum(run))


def full_device(monkeypatch, fits):
    """Lets `run_suffixes` fail as a full device does, for shapes that `fits` refuses."""
    real, tried = scoring.run_suffixes, []

    def limited(graph, state, pool, inputs, *, packed, **options):
        tried.append(len(inputs.tokens) * packed)
        if not fits(tried[-1]):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 GiB")
        return real(graph, state, pool, inputs, packed=packed, **options)

    monkeypatch.setattr(scoring, "run_suffixes", limited)
    return tried


def test_a_full_device_halves_the_batches_and_says_so(tiny_lm, random_work, monkeypatch):
    work = random_work(10)
    expected = brute_force(tiny_lm, *whole(work), GRID.temperatures)
    tried = full_device(monkeypatch, lambda tokens: tokens <= 80)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = score(tiny_lm, work)
    np.testing.assert_allclose(found, expected, atol=2e-4)
    assert tried[0] > 320
    assert sorted(set(tried), reverse=True) == list(dict.fromkeys(tried))
    told = [int(re.search(r"batches of ([\d,]+) tokens", str(w.message))[1]) for w in said]
    assert told == sorted(told, reverse=True)
    assert len(told) >= 3


def test_a_device_that_fills_up_midway_repeats_nothing(tiny_lm, random_work, monkeypatch):
    """Large calls go well twice and then no more; `score` refuses pairs that are reported twice."""
    monkeypatch.setitem(TOKENS_PER_CHUNK, "cpu", 64)
    monkeypatch.setitem(CHUNKS_PER_CALL, "cpu", 2)
    work = random_work(11, num_pairs=120)
    large = []
    tried = full_device(
        monkeypatch, lambda tokens: tokens < 128 or large.append(tokens) or len(large) < 3
    )
    with pytest.warns(UserWarning, match="memory is full"):
        found = score(tiny_lm, work)
    expected = brute_force(tiny_lm, *whole(work), GRID.temperatures)
    np.testing.assert_allclose(found, expected, atol=2e-4)
    assert tried[:3] == [128, 128, 128]
    assert max(tried[3:]) == 64


def test_a_device_too_small_for_one_suffix_is_an_error(tiny_lm, random_work, monkeypatch):
    full_device(monkeypatch, lambda tokens: False)
    with (
        pytest.warns(UserWarning, match="memory is full"),
        pytest.raises(FaultError, match=r"does not hold a single suffix of .* --memory"),
    ):
        score(tiny_lm, random_work(12))


def test_other_errors_of_the_device_are_not_swallowed(tiny_lm, random_work, monkeypatch):
    def broken(*_, **__):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setattr(scoring, "run_suffixes", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        score(tiny_lm, random_work(12))
