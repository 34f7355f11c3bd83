"""The guess of unscored log-likelihoods: against what made the data, and a dense Gaussian."""

from __future__ import annotations

import numpy as np
import pytest

from mop_jax.components.candidates import CandidateSet
from mop_jax.components.surrogate import Scores, Surrogate, fit_surrogate, scores_of

K, J = 3, 8


def made(num_records: int, per_record: int, seed: int = 0) -> tuple[Scores, Surrogate, np.ndarray]:
    """Scores drawn from the surrogate's own model, the model, and the whole table [N, K, J]."""
    rng = np.random.default_rng(seed)
    truth = Surrogate(rng.normal(0, 0.5, K), rng.normal(0, 1, J), 4.0, 1.5**2, 0.4**2)
    similarity = rng.uniform(-0.2, 0.8, (num_records, J))
    table = (
        rng.normal(-80, 20, (num_records, 1, 1))
        + truth.persona[:, None]
        + (truth.exemplar + truth.slope * similarity + rng.normal(0, 1.5, similarity.shape))[
            :, None
        ]
        + rng.normal(0, 0.4, (num_records, K, J))
    )
    triples = np.asarray(
        [
            (i, *divmod(int(code), J))
            for i in range(num_records)
            for code in np.sort(rng.choice(K * J, per_record, replace=False))
        ]
    )
    return Scores(triples, table[tuple(triples.T)], similarity), truth, table


def test_effects_and_variances_are_recovered() -> None:
    """800 records: standard errors of effects are about 0.03, of the slope 0.1."""
    known, truth, _ = made(800, 10)
    got = fit_surrogate(known, K)
    for effects, expected in ((got.persona, truth.persona), (got.exemplar, truth.exemplar)):
        np.testing.assert_allclose(effects - effects.mean(), expected - expected.mean(), atol=0.15)
    assert got.slope == pytest.approx(4.0, abs=0.5)
    assert got.between == pytest.approx(1.5**2, rel=0.15)
    assert got.within == pytest.approx(0.4**2, rel=0.25)


def test_what_a_record_is_known_for_counts_as_in_a_dense_gaussian() -> None:
    """Conditional mean and variance by the whole 24 × 24 covariance, given level and effects."""
    known, truth, _ = made(3, 5, seed=1)
    got = truth.log_score(known, 0, 3)
    person, piece = np.divmod(np.arange(K * J), J)
    covariance = truth.between * (piece[:, None] == piece) + truth.within * np.eye(K * J)
    for i in range(3):
        fixed = (
            truth.persona[person] + truth.exemplar[piece] + truth.slope * known.similarity[i, piece]
        )
        mine = known.triples[:, 0] == i
        at = known.triples[mine, 1] * J + known.triples[mine, 2]
        residual = known.log_likelihood[mine] - fixed[at]
        weights = covariance[:, at] @ np.linalg.inv(covariance[np.ix_(at, at)])
        mean = fixed + weights @ (residual - residual.mean())
        left = np.diag(covariance - weights @ covariance[at])
        new = np.setdiff1d(np.arange(K * J), at)
        expected = (mean + np.minimum(left, 1.5))[new]
        np.testing.assert_allclose(got[i].ravel()[new], expected, atol=1e-9)


def test_ranges_of_records_are_rows_of_the_whole() -> None:
    known, truth, _ = made(9, 4)
    whole = truth.log_score(known, 0, 9)
    np.testing.assert_array_equal(truth.log_score(known, 4, 7), whole[4:7])


def test_the_guess_is_nearer_than_none() -> None:
    """Squared error on unscored pairs, record by record about its mean: less than half."""
    known, _, table = made(100, 6, seed=2)
    guess = fit_surrogate(known, K).log_score(known, 0, 100)
    unknown = np.ones(table.shape, bool)
    unknown[tuple(known.triples.T)] = False

    def spread(values: np.ndarray) -> float:
        return np.mean([np.var(values[i][unknown[i]]) for i in range(100)])

    assert spread(table - guess) < 0.6 * spread(table)


@pytest.mark.parametrize("per_record", [1, 2])
def test_few_scores_still_give_a_finite_guess(per_record: int) -> None:
    known, _, _ = made(2, per_record)
    got = fit_surrogate(known, K)
    assert np.isfinite(got.log_score(known, 0, 2)).all()
    assert got.between > 0
    assert got.within > 0


def test_scores_of_a_candidate_set_are_distinct_and_without_padding() -> None:
    candidates = CandidateSet(
        np.array([[1, 1, 0], [2, 0, 0]], np.int32),
        np.array([[2, 2, 1], [3, 0, 0]], np.int32),
        np.array([[0.5, 0.5, -np.inf], [0.0, -np.inf, 1.0]]),
        "importance",
    )
    scores = np.array([[-3.0, -3.0, 9.0], [-4.0, 9.0, -5.0]])
    records = np.array([[2.0, 0.0], [0.0, 1.0]])
    exemplars = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 3.0], [-1.0, 0.0]])
    got = scores_of(candidates, scores, records, exemplars)
    np.testing.assert_array_equal(got.triples, [[0, 1, 2], [1, 0, 0], [1, 2, 3]])
    np.testing.assert_array_equal(got.log_likelihood, [-3.0, -5.0, -4.0])
    half = np.sqrt(0.5)
    np.testing.assert_allclose(got.similarity, [[1, half, 0, -1], [0, half, 1, 0]], atol=1e-12)
