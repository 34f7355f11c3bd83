"""Samples follow the scored probabilities, and depend on nothing but seed and sample number.

The statistical tests fail by chance at a rate of 1e-4 for the whole file: each of the
`NUM_COMPARISONS` comparisons has its share of it. Seeds are fixed: they pass or fail for good.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, chisquare

from mop_jax.errors import DataError, FaultError
from mop_jax.lm import sampling
from mop_jax.lm.base import Truncation
from mop_jax.lm.flax_lm import FlaxLM

NUM_COMPARISONS = 8
LEVEL = 1e-4 / NUM_COMPARISONS
NUM_DRAWS = 4_000
PREFIX = ((5, 99, 234), (77, 8))
REQUEST = (42, 50)
PROMPT = [5, 99, 234, 77, 8, 42, 50]


@pytest.fixture(scope="module")
def tiny_lm(make_tiny_lm):
    """Fewer tokens than elsewhere, so that thousands of draws say something about each."""
    return make_tiny_lm(vocab_size=606)


@pytest.fixture(scope="module")
def next_log_probs(tiny_lm):
    """Scored log-probabilities of the token after PROMPT at a temperature, float64 [V]."""

    def get(temperature: float) -> np.ndarray:
        length = np.asarray([len(PROMPT)])
        logits = np.asarray(tiny_lm.logits(np.asarray([PROMPT]), length), np.float64)[0, -1]
        tempered = logits / temperature
        return tempered - np.logaddexp.reduce(tempered)

    return get


@pytest.fixture
def wide_batches(monkeypatch):
    """More rows at a time than a CPU likes, to draw thousands of one-token samples quickly."""
    monkeypatch.setitem(sampling.SLOTS, "cpu", 250)


def sample(
    lm, temperature, *, num=NUM_DRAWS, top_p=1.0, max_new_tokens=1, seed=0, ids=None, **rest
):
    return lm.sample_pairs(
        [PREFIX],
        [REQUEST],
        np.zeros((num, 2), int),
        seed=seed,
        temperature=np.broadcast_to(temperature, num),
        sample_ids=np.arange(num) if ids is None else ids,
        end_ids=(3,),
        truncation=Truncation(top_p=top_p),
        max_new_tokens=max_new_tokens,
        **rest,
    )


def assert_follow(tokens, probs):
    """Chi-square with the tokens of fewer than eight expected draws merged into one class."""
    expected = probs * len(tokens)
    counts = np.bincount(tokens, minlength=len(probs))
    rare = expected < 8
    if rare.any():
        expected = np.append(expected[~rare], expected[rare].sum())
        counts = np.append(counts[~rare], counts[rare].sum())
    assert len(expected) > 5
    assert chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > LEVEL


@pytest.mark.usefixtures("wide_batches")
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.4])
def test_first_tokens_follow_the_scored_probabilities(tiny_lm, next_log_probs, temperature):
    drawn = sample(tiny_lm, temperature)
    tokens = np.asarray(drawn.token_ids)[:, 0]
    log_probs = next_log_probs(temperature)
    assert_follow(tokens, np.exp(log_probs))
    np.testing.assert_allclose(drawn.log_probs, log_probs[tokens], atol=1e-4)
    np.testing.assert_array_equal(drawn.finished, tokens == 3)


@pytest.mark.usefixtures("wide_batches")
def test_second_tokens_follow_too(tiny_lm, next_log_probs):
    """The key is folded with the position, or a token once drawn would be drawn again too often."""
    drawn = sample(tiny_lm, 1.0, num=8_000, max_new_tokens=2)
    first, second = np.asarray([ids for ids in drawn.token_ids if len(ids) == 2]).T
    vocabulary = np.arange(606)
    prompts = np.asarray([[*PROMPT, token] for token in vocabulary])
    logits = np.asarray(tiny_lm.logits(prompts, np.full(606, len(PROMPT) + 1)), np.float64)[:, -1]
    conditional = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    weights = np.exp(next_log_probs(1.0)) * (vocabulary != 3)
    joint = weights[:, None] * conditional / weights.sum()
    assert_follow(second, joint.sum(axis=0))
    repeats = binomtest(int((first == second).sum()), len(first), np.trace(joint))
    assert repeats.pvalue > LEVEL


@pytest.mark.usefixtures("wide_batches")
@pytest.mark.parametrize(("temperature", "top_p"), [(0.7, 0.7), (1.0, 0.5), (1.4, 0.3)])
def test_nucleus_is_exact_and_renormalised(tiny_lm, next_log_probs, temperature, top_p):
    log_probs = next_log_probs(temperature)
    order = np.argsort(-log_probs)
    size = int(np.searchsorted(np.cumsum(np.exp(log_probs[order])), top_p)) + 1
    nucleus = order[:size]
    assert np.exp(log_probs[nucleus]).sum() >= top_p > np.exp(log_probs[nucleus[:-1]]).sum()
    drawn = sample(tiny_lm, temperature, top_p=top_p)
    tokens = np.asarray(drawn.token_ids)[:, 0]
    assert set(tokens.tolist()) <= set(nucleus.tolist())
    # Every token expected twenty times or more is there: a rate of misses below e^-20 each.
    expected = np.exp(log_probs[nucleus]) / np.exp(log_probs[nucleus]).sum() * NUM_DRAWS
    assert set(nucleus[expected > 20].tolist()) <= set(tokens.tolist())
    place = np.full(len(log_probs), -1)
    place[nucleus] = np.arange(size)
    assert_follow(place[tokens], expected / NUM_DRAWS)
    # Reported under the untruncated distribution.
    np.testing.assert_allclose(drawn.log_probs, log_probs[tokens], atol=1e-4)


def test_a_tiny_nucleus_is_the_likeliest_token(tiny_lm, next_log_probs):
    tokens = np.asarray(sample(tiny_lm, 1.0, num=64, top_p=1e-6).token_ids)[:, 0]
    assert set(tokens.tolist()) == {int(next_log_probs(1.0).argmax())}


def test_temperature_zero_takes_the_likeliest(tiny_lm, next_log_probs):
    mixed = np.tile([0.0, 1.3], 32)
    drawn = sample(tiny_lm, mixed, num=64, max_new_tokens=1)
    tokens = np.asarray(drawn.token_ids)[:, 0]
    best = int(next_log_probs(1.0).argmax())
    assert (tokens[::2] == best).all()
    assert len(set(tokens[1::2].tolist())) > 10
    np.testing.assert_allclose(drawn.log_probs[::2], next_log_probs(1.0)[best], atol=1e-4)


def test_reported_log_probs_are_those_of_scoring(tiny_lm):
    temperatures = np.asarray([0.7, 1.0, 1.4] * 8)
    drawn = sample(tiny_lm, temperatures, num=24, max_new_tokens=13)
    assert min(map(len, drawn.token_ids)) >= 1
    for temperature in (0.7, 1.0, 1.4):
        chosen = np.flatnonzero(temperatures == temperature)
        again = tiny_lm.log_likelihood(
            [PROMPT] * 8, [drawn.token_ids[i] for i in chosen], temperature=temperature
        )
        np.testing.assert_allclose(drawn.log_probs[chosen], again, atol=1e-3)


PROMPTS = [[5, 6, 7], [500], [31, 77, 45, 12, 8, 9, 4, 4], [10] * 20, [5, 6, 8]]


def test_a_text_depends_on_seed_and_number_only(tiny_lm):
    """Together or alone, in any order, with long neighbours, or with some left out."""
    settings = {"max_new_tokens": 9, "temperature": 1.1, "top_p": 0.9}
    together = tiny_lm.generate(PROMPTS, seed=3, **settings)
    assert len({tuple(ids) for ids in together.token_ids}) == 5

    def draw(chosen, sample_ids, num=5, **rest):
        return tiny_lm.sample_pairs(
            [()], PROMPTS, np.asarray([(0, i) for i in chosen]), seed=3, end_ids=(3,),
            temperature=np.full(num, 1.1), sample_ids=np.asarray(sample_ids),
            max_new_tokens=9, truncation=Truncation(top_p=0.9), **rest,
        )  # fmt: skip

    for i in (0, 2, 4):
        assert draw([i], [i], num=1).token_ids == [together.token_ids[i]]
    order = [3, 1, 4, 0, 2]
    mixed = draw(order, order)
    assert mixed.token_ids == [together.token_ids[i] for i in order]
    np.testing.assert_allclose(mixed.log_probs, together.log_probs[order], atol=1e-4)
    many = tiny_lm.generate([*PROMPTS, *[[50 + i] for i in range(40)]], seed=3, **settings)
    assert many.token_ids[:5] == together.token_ids
    assert tiny_lm.generate(PROMPTS, seed=4, **settings).token_ids != together.token_ids
    repeated = tiny_lm.generate([PROMPTS[0]] * 8, seed=3, **settings)
    assert len({tuple(ids) for ids in repeated.token_ids}) == 8


def test_skipped_samples_change_no_bit_of_the_others(tiny_lm):
    everything = sample(tiny_lm, 1.0, num=50, max_new_tokens=7)
    skip = np.random.default_rng(0).random(50) < 0.4
    skip[:20] = True  # a whole batch
    reported = []
    some = sample(
        tiny_lm, 1.0, num=50, max_new_tokens=7, skip=skip,
        on_generated=lambda indices, generation: reported.append((indices, generation)),
    )  # fmt: skip
    for i in np.flatnonzero(~skip):
        assert some.token_ids[i] == everything.token_ids[i]
        assert some.log_probs[i] == everything.log_probs[i]
    indices = np.concatenate([indices for indices, _ in reported])
    assert len(set(indices.tolist())) == len(indices)
    assert set(np.flatnonzero(~skip)) <= set(indices.tolist())
    assert not set(range(16)) & set(indices.tolist())  # that batch was not run
    for indices, generation in reported:
        for row, i in enumerate(indices):
            assert generation.token_ids[row] == everything.token_ids[i]
            assert generation.log_probs[row] == everything.log_probs[i]


def test_samples_after_shared_prefixes_are_those_of_whole_prompts(tiny_lm):
    drawn = sample(tiny_lm, 1.0, num=12, max_new_tokens=6, seed=5)
    again = tiny_lm.generate([PROMPT] * 12, seed=5, max_new_tokens=6)
    assert drawn.token_ids == again.token_ids
    np.testing.assert_allclose(drawn.log_probs, again.log_probs, atol=1e-4)


def test_length_and_end_of_responses(make_tiny_lm, word_tokenizer):
    """A third of the vocabulary ends the turn, so that responses of every length occur."""
    lm = make_tiny_lm(tokenizer=word_tokenizer)
    ends = list(range(0, 6060, 3))
    drawn = lm.generate([[5, 6, 7]] * 40, seed=1, max_new_tokens=4, end_ids=ends)
    lengths = np.asarray([len(ids) for ids in drawn.token_ids])
    assert set(lengths.tolist()) == {1, 2, 3, 4}
    for ids, done, text in zip(drawn.token_ids, drawn.finished, drawn.texts, strict=True):
        assert done == (ids[-1] % 3 == 0)
        assert done or len(ids) == 4
        assert all(i % 3 for i in ids[:-1])
        assert len(text.split()) == len(ids) - done
    assert 0 < drawn.finished.sum() < 40


def test_ends_of_several_tokens(make_tiny_lm, word_tokenizer):
    """Responses stop where an end is complete, as if it were looked for in what goes on for ever.

    Tokens of three classes, drawn without looking back: ends occur, overlap, and are cut off.
    """
    lm = make_tiny_lm(tokenizer=word_tokenizer)
    prompts, longest = [[5, 6, 7]] * 40, 12
    endless = lm.generate(prompts, seed=1, max_new_tokens=longest, end_ids=(), top_k=3)
    flat = [tuple(ids[i : i + 2]) for ids in endless.token_ids for i in range(longest - 1)]
    pair = max(set(flat), key=flat.count)
    triple = tuple(endless.token_ids[0][4:7])
    ends = (triple, pair)
    drawn = lm.generate(prompts, seed=1, max_new_tokens=longest, end_ids=ends, top_k=3)
    ended = 0
    for ids, whole, done, text in zip(
        drawn.token_ids, endless.token_ids, drawn.finished, drawn.texts, strict=True
    ):
        stops = [
            n for n in range(1, longest + 1) if any(tuple(whole[:n][-len(e) :]) == e for e in ends)
        ]
        assert ids == whole[: min(stops, default=longest)]
        assert done == bool(stops)
        ended += done
        end = next((e for e in ends if done and tuple(ids[-len(e) :]) == e), ())
        assert len(text.split()) == len(ids) - len(end)
    assert 0 < ended < 40
    # One id, alone or as a sequence of its own, and beside longer ends.
    one = pair[1]
    by_id = lm.generate(prompts, seed=1, max_new_tokens=longest, end_ids=[one], top_k=3)
    for ends in ([[one]], [one, (one, one)]):
        again = lm.generate(prompts, seed=1, max_new_tokens=longest, end_ids=ends, top_k=3)
        assert again.token_ids == by_id.token_ids


def test_end_tokens_come_from_the_checkpoint(make_tiny_lm):
    lm = make_tiny_lm(eos_token_ids=tuple(range(6060)))
    drawn = lm.generate([[5]] * 4, max_new_tokens=5)
    assert [len(ids) for ids in drawn.token_ids] == [1] * 4
    assert drawn.finished.all()


def test_texts_are_prompted_as_ids(tiny_chat_lm):
    by_text = tiny_chat_lm.generate(["w1 w2"], max_new_tokens=4)
    assert by_text.token_ids == tiny_chat_lm.generate([[8, 9]], max_new_tokens=4).token_ids
    words = [tiny_chat_lm.tokenizer.convert_ids_to_tokens(i) for i in by_text.token_ids[0]]
    assert by_text.texts[0].split() == [w for w in words if w != "<end>"]


def test_prompts_beyond_the_window_are_refused(tiny_lm):
    tiny_lm.generate([[5] * 201], max_new_tokens=10)
    with pytest.raises(DataError, match=r"Request 1 takes 212 tokens .* window holds 211"):
        tiny_lm.generate([[5], [5] * 202], max_new_tokens=10)
    with pytest.raises(DataError, match="needs at least one token"):
        tiny_lm.generate([[]])


def test_logits_that_are_not_finite_are_refused(make_tiny_lm):
    decoder = make_tiny_lm().decoder
    decoder.norm.scale[...] = decoder.norm.scale[...].at[3].set(np.nan)
    with pytest.raises(FaultError, match=r"not finite in sample 0"):
        FlaxLM(decoder).generate([[5]], max_new_tokens=2)
