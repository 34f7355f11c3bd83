"""Rounds: what is known counts in full, the rest is estimated without bias, and slack is told."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from mop_jax.components.candidates import (
    CandidateSet,
    TableProposal,
    importance_candidates,
    renormalised_candidates,
)
from mop_jax.components.rounds import extended_candidates, half_sets, inclusion_probabilities
from mop_jax.errors import DataError
from tests.components.test_candidates import J, K, random_table


def repeated(table: np.ndarray, repeats: int) -> TableProposal:
    """The same proposal for many records, each with draws of its own."""
    return TableProposal(
        (repeats, K, J), lambda a, b: np.broadcast_to(table, (b - a, *table.shape))
    )


@settings(max_examples=100)
@given(
    st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=30),
    st.integers(1, 35),
)
def test_inclusion_probabilities(scores: list[float], number: int) -> None:
    """They sum to the number, are proportional where they are not certain, and never exceed one."""
    score = np.asarray(scores)
    got = inclusion_probabilities(score, number)
    assert got.sum() == pytest.approx(min(number, len(score)))
    assert (got > 0).all()
    assert (got <= 1).all()
    ratio = got / score
    open_ones = got < 1
    if open_ones.any():
        np.testing.assert_allclose(ratio[open_ones], ratio[open_ones].max(), rtol=1e-6)
        # What is certain would exceed one at the others' ratio.
        assert (score[~open_ones] * ratio[open_ones].max() >= 1 - 1e-6).all()


@pytest.mark.parametrize("seed", range(3))
def test_an_extended_set_knows_the_old_pairs_and_adds_distinct_new_ones(seed: int) -> None:
    table = random_table(30, seed)
    first = importance_candidates(table, 5, seed)
    other = random_table(30, seed + 10)
    extended = extended_candidates(first, other, 9, seed + 100)
    assert extended.num_candidates == 9
    for row in range(30):
        live = extended.log_weight[row] > -np.inf
        code = extended.persona_index[row] * J + extended.exemplar_index[row]
        known = set((first.persona_index[row] * J + first.exemplar_index[row]).tolist())
        got = code[live].tolist()
        assert len(set(got)) == len(got) == 9
        assert known <= set(got)
        for one, weight in zip(got, extended.log_weight[row][live], strict=True):
            assert (weight == 0) if one in known else (weight >= 0)
            assert one in known or other[row].ravel()[one] > 0
        # Inclusion probabilities of the new ones: a systematic draw of the right number.
        expected = other[row].ravel().copy()
        expected[list(known)] = 0.0
        positive = np.flatnonzero(expected)
        inclusion = dict(
            zip(
                positive.tolist(),
                inclusion_probabilities(expected[positive], 9 - len(known)),
                strict=True,
            )
        )
        for one, weight in zip(got, extended.log_weight[row][live], strict=True):
            if one not in known:
                assert np.exp(-weight) == pytest.approx(inclusion[one])


def test_an_extended_estimate_is_unbiased_given_what_is_known() -> None:
    """Known pairs are the largest of all, and the proposal comes from them: a biased choice.

    Mean of 6,000 draws: |z| < 4.5 fails falsely once in 10^5. The second assertion says that the
    known pairs are a choice that would bias an estimate which took them for draws.
    """
    f = np.random.default_rng(8).gamma(1.0, size=(K, J))
    repeats = 6_000
    best = np.argsort(-f.ravel())[:3]
    known = CandidateSet(
        np.broadcast_to((best // J).astype(np.int32), (repeats, 3)),
        np.broadcast_to((best % J).astype(np.int32), (repeats, 3)),
        np.full((repeats, 3), np.log(K * J / 3)),
        "importance",
    )
    proposal = random_table(1, seed=3, zeros=False)[0] + 0.3 / (K * J)
    extended = extended_candidates(known, repeated(proposal, repeats), 9, seed=5)
    terms = np.exp(extended.log_weight) * f[extended.persona_index, extended.exemplar_index]
    estimate = terms.sum(axis=1)
    assert abs((estimate.mean() - f.sum()) / (estimate.std() / np.sqrt(repeats))) < 4.5
    assert f.ravel()[best].mean() * K * J > 2 * f.sum()


def test_pairs_are_included_as_often_as_their_weight_says() -> None:
    """Counts over 4,000 records within 4.5 binomial standard errors of each of 21 pairs.

    A false failure once in 7,000 seeds; draws are fixed.
    """
    table = random_table(1, seed=6, zeros=False)[0]
    nothing = CandidateSet(
        np.zeros((4_000, 1), np.int32),
        np.zeros((4_000, 1), np.int32),
        np.full((4_000, 1), -np.inf),
        "importance",
    )
    drawn = extended_candidates(nothing, repeated(table, 4_000), 8, seed=3)
    code = drawn.persona_index * J + drawn.exemplar_index
    share = np.bincount(code.ravel(), minlength=K * J) / 4_000
    expected = inclusion_probabilities(table.ravel(), 8)
    assert (expected == 1).any()
    error = np.sqrt(expected * (1 - expected) / 4_000)
    assert (np.abs(share - expected) <= 4.5 * error + 1e-12).all()


def test_a_set_extended_to_all_pairs_is_the_exact_sum() -> None:
    table = random_table(12)
    first = importance_candidates(table, 6, seed=2)
    every = extended_candidates(first, table, K * J, seed=4)
    for row in range(12):
        live = every.log_weight[row] > -np.inf
        np.testing.assert_array_equal(every.log_weight[row][live], 0.0)
        assert live.sum() == (table[row] > 0).sum()


def test_half_sets_average_to_the_whole_and_keep_what_is_certain() -> None:
    rng = np.random.default_rng(0)
    table = random_table(40, zeros=False)
    extended = extended_candidates(importance_candidates(table, 4, 1), table, 11, seed=2)
    f = rng.gamma(1.0, size=(40, K, J))[
        np.arange(40)[:, None], extended.persona_index, extended.exemplar_index
    ]
    first, second = half_sets(extended)
    whole, *halves = [(np.exp(s.log_weight) * f).sum(1) for s in (extended, first, second)]
    np.testing.assert_allclose(np.mean(halves, axis=0), whole)
    certain = extended.log_weight == 0
    for half in (first, second):
        np.testing.assert_array_equal(half.log_weight[certain], 0.0)
        assert ((half.log_weight > -np.inf) == (extended.log_weight > -np.inf)).all()


def test_halves_lie_as_far_from_the_whole_as_the_whole_from_the_truth() -> None:
    """Independent draws of 6 pairs, all 64 samples: E (p̂_half − p̂)² is Var p̂ but for crossed terms.

    Halves of opposite signs leave f_i f_j terms, which vanish over random orders of the draws: here
    over all sign patterns, by brute force.
    """
    rng = np.random.default_rng(5)
    f, inclusion = rng.gamma(1.0, size=6), np.array([0.05, 0.2, 0.5, 0.9, 0.99, 1.0])
    variance = spread = mean = 0.0
    for sample in itertools.product([False, True], repeat=6):
        drawn = np.array(sample)
        chance = np.prod(np.where(drawn, inclusion, 1 - inclusion))
        estimate = (f / inclusion)[drawn].sum()
        mean += chance * estimate
        variance += chance * (estimate - f.sum()) ** 2
        root = np.sqrt(1 - inclusion[drawn])
        squares = [
            ((np.array(signs) * root * (f / inclusion)[drawn]).sum()) ** 2
            for signs in itertools.product([-1, 1], repeat=int(drawn.sum()))
        ]
        spread += chance * np.mean(squares)
        index = np.flatnonzero(drawn).astype(np.int32)[None]
        whole = CandidateSet(index, index, -np.log(inclusion[drawn])[None], "importance")
        uncertain = np.cumsum(inclusion[drawn] < 1) % 2 == 1
        for half, mine in zip(half_sets(whole), (uncertain, ~uncertain), strict=True):
            expected = (1 + np.where(mine, 1, -1) * root) / inclusion[drawn]
            np.testing.assert_allclose(np.exp(half.log_weight[0]), expected, rtol=1e-9)
    assert mean == pytest.approx(f.sum())
    assert spread == pytest.approx(variance)


def test_a_draw_that_was_next_to_impossible_keeps_a_weight_in_both_halves() -> None:
    index = np.zeros((1, 2), np.int32)
    halves = half_sets(CandidateSet(index, index, np.array([[60.0, 1e-12]]), "importance"))
    weights = np.stack([half.log_weight for half in halves])
    assert np.isfinite(weights).all()
    np.testing.assert_allclose(logsumexp(weights, axis=0) - np.log(2), [[60.0, 1e-12]], atol=1e-9)


def test_halves_tell_how_far_the_log_estimate_lies_below() -> None:
    """Against the full sum: of 3,000 records the mean of the estimated gap is near the true one.

    It is an estimate: systematic draws do better than independent ones, and second-order terms are
    all it knows. Seen is 0.84 of the truth, with a standard error of 0.03.
    """
    repeats = 3_000
    log_f = np.random.default_rng(2).normal(0, 0.8, (K, J))
    table = np.full((K, J), 1 / (K * J))
    first = importance_candidates(repeated(table, repeats), 4, seed=1)
    extended = extended_candidates(first, repeated(table, repeats), 10, seed=2)

    def estimate(candidates: CandidateSet) -> np.ndarray:
        terms = log_f[candidates.persona_index, candidates.exemplar_index]
        return logsumexp(candidates.log_weight + terms, axis=1)

    whole = estimate(extended)
    slack = whole - np.mean([estimate(half) for half in half_sets(extended)], axis=0)
    truth = logsumexp(log_f) - whole.mean()
    assert truth > 0.005
    assert 0.7 * truth < slack.mean() < 1.3 * truth


def test_what_cannot_be_extended_is_refused() -> None:
    table = random_table(3)
    with pytest.raises(DataError, match="only importance is"):
        extended_candidates(renormalised_candidates(table, 4, 0), table, 6, 1)
    with pytest.raises(DataError, match="known already; accepted are more"):
        extended_candidates(importance_candidates(table, 9, 0), table, 2, 1)
