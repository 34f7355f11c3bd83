"""Candidates: systematic draws are exact in expectation, unbiased, nested and per record."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import logsumexp

from mop_jax.components.candidates import (
    CandidateSet,
    FactorisedProposal,
    TableProposal,
    defensive_proposal,
    full_candidates,
    gate_proposal,
    importance_candidates,
    renormalised_candidates,
    systematic_pairs,
)
from mop_jax.components.candidates import _random_walk as random_walk
from mop_jax.errors import DataError

K, J = 3, 7


def random_table(num_records: int, seed: int = 0, zeros: bool = True) -> np.ndarray:
    """A proposal table [N, K, J] with structure between personas and exemplars, some pairs zero."""
    rng = np.random.default_rng(seed)
    table = rng.gamma(0.5, size=(num_records, K, J)) + 1e-3
    if zeros:
        table[:, :, 0] = 0.0
        table[:, 1, 4] = 0.0
        table[:, :, -1] = 0.0
    return table / table.sum(axis=(1, 2), keepdims=True)


@pytest.mark.parametrize("factorised", [False, True])
@pytest.mark.parametrize("num_candidates", [1, 4, 5, 40])
def test_expected_counts_are_exact(num_candidates: int, factorised: bool) -> None:
    """Averaged over a fine grid of offsets, the count of every pair is C q(k, j)."""
    table = random_table(1)[0]
    if factorised:
        table = table.sum(1, keepdims=True) * table.sum(0, keepdims=True)
    exemplar = table.sum(axis=0)
    if factorised:
        persona = table.sum(axis=1, keepdims=True)
    else:
        persona = np.where(exemplar > 0, table / np.where(exemplar > 0, exemplar, 1), 0)
    walk = random_walk(np.random.default_rng(3), K, J)
    counts = np.zeros((K, J))
    grid = 4_000
    for offset in (np.arange(grid) + 0.5) / grid:
        points = (offset + np.arange(num_candidates) / num_candidates) % 1.0
        k, j = systematic_pairs(exemplar, persona, points, walk)
        np.add.at(counts, (k, j), 1)
    # The count is a step function of the offset with at most 2 (C + 2) steps per pair.
    tolerance = 4 * (num_candidates + 2) / grid
    np.testing.assert_allclose(counts / grid, num_candidates * table, atol=tolerance)
    assert counts[table == 0].sum() == 0


def test_counts_differ_from_expectation_by_little() -> None:
    """Exemplars are stratified: the count of exemplar j is within one of C q(j)."""
    proposal = random_table(50)
    drawn = importance_candidates(proposal, 40, seed=1)
    for row in range(50):
        counts = np.bincount(drawn.exemplar_index[row], minlength=J)
        assert (np.abs(counts - 40 * proposal[row].sum(axis=0)) < 1 + 1e-9).all()


def test_uniform_draws_cover_personas_evenly() -> None:
    """With one candidate per exemplar, the golden-ratio turn still spreads over the personas."""
    drawn = importance_candidates(np.full((20, 5, 40), 1 / 200), 40, seed=0)
    for row in range(20):
        assert np.abs(np.bincount(drawn.persona_index[row], minlength=5) - 8).max() <= 3


@pytest.mark.parametrize("as_table", [False, True])
def test_all_pairs_once_when_uniform(as_table: bool) -> None:
    if as_table:
        proposal = np.full((9, K, J), 1 / (K * J))
    else:
        proposal = FactorisedProposal(np.full((1, K), 1 / K), np.full((9, J), 1 / J))
    drawn = importance_candidates(proposal, K * J, seed=5)
    code = np.sort(drawn.persona_index * J + drawn.exemplar_index, axis=1)
    np.testing.assert_array_equal(code, np.broadcast_to(np.arange(K * J), (9, K * J)))
    # Then the importance estimate is the full sum: every log-weight is zero.
    np.testing.assert_allclose(drawn.log_weight, 0.0, atol=1e-12)


@pytest.mark.parametrize("num_candidates", [4, 10])
def test_importance_estimate_is_unbiased(num_candidates: int) -> None:
    """(1/C) Σ f/q has expectation Σ f, and systematic draws beat independent ones.

    Mean of 4,000 independent records with the same table: |z| < 4.5 fails falsely once in 10^5.
    """
    table = random_table(1, seed=2)[0]
    # A defensive share bounds f/q; without it one rare pair decides the variance of any scheme.
    table = 0.5 * table + 0.5 * (table > 0) / (table > 0).sum()
    f = np.random.default_rng(8).gamma(1.0, size=(K, J)) * (table > 0)
    repeats = 4_000
    drawn = importance_candidates(
        TableProposal((repeats, K, J), lambda a, b: np.broadcast_to(table, (b - a, K, J))),
        num_candidates,
        seed=11,
    )
    estimate = (np.exp(drawn.log_weight) * f[drawn.persona_index, drawn.exemplar_index]).sum(1)
    z = (estimate.mean() - f.sum()) / (estimate.std() / np.sqrt(repeats))
    assert abs(z) < 4.5
    ratio = np.where(table > 0, f / np.where(table > 0, table, 1), 0)
    independent_variance = ((table * ratio**2).sum() - f.sum() ** 2) / num_candidates
    assert estimate.var() < independent_variance


def test_log_of_estimate_is_a_lower_bound_that_tightens() -> None:
    table = random_table(400, seed=4, zeros=False)
    log_f = np.random.default_rng(1).normal(size=(400, K, J)) * 2
    full = logsumexp(log_f, axis=(1, 2))
    gaps = []
    for num_candidates in (2, 8, 32):
        drawn = importance_candidates(table, num_candidates, seed=0)
        rows = np.arange(400)[:, None]
        terms = drawn.log_weight + log_f[rows, drawn.persona_index, drawn.exemplar_index]
        gaps.append(np.mean(full - logsumexp(terms, axis=1)))
    assert gaps[0] > gaps[1] > gaps[2] > 0


def test_padding_changes_no_estimate() -> None:
    drawn = importance_candidates(random_table(5), 4, seed=0)
    wide = drawn.padded(7)
    assert wide.num_candidates == 7
    np.testing.assert_array_equal(wide.triples(), drawn.triples())
    np.testing.assert_array_equal(wide.log_weight[:, :4], drawn.log_weight)
    assert np.isneginf(wide.log_weight[:, 4:]).all()


def test_left_out_pairs_are_never_drawn() -> None:
    rng = np.random.default_rng(0)
    leave_out = rng.random((60, J)) < 0.4
    leave_out[np.arange(60), rng.integers(J, size=60)] = False
    proposal = defensive_proposal(
        rng.normal(size=(60, 5)), rng.normal(size=(J, 5)), K, leave_out, temperature=0.05
    )
    np.testing.assert_allclose(proposal.dense().sum(axis=(1, 2)), 1.0, atol=1e-12)
    assert (proposal.exemplar_probs[leave_out] == 0).all()
    assert (proposal.exemplar_probs[~leave_out] > 0).all()
    for method in (importance_candidates, renormalised_candidates):
        drawn = method(proposal, 30, seed=0)
        assert not leave_out[np.arange(60)[:, None], drawn.exemplar_index].any()


def test_defensive_proposal_prefers_similar_and_bounds_weights() -> None:
    exemplars = np.eye(4)
    record = np.array([[0.9, 0.1, 0.0, 0.0]])
    proposal = defensive_proposal(record, exemplars, 2, uniform_share=0.5, temperature=0.1)
    b = proposal.exemplar_probs[0]
    assert b[0] > b[1] > b[2]
    assert b[2] == pytest.approx(b[3])
    assert b.min() >= 0.5 / 4
    cosine = record @ exemplars.T / np.linalg.norm(record)
    expected = 0.5 / 4 + 0.5 * np.exp(cosine / 0.1)[0] / np.exp(cosine / 0.1).sum()
    np.testing.assert_allclose(b, expected, rtol=1e-12)


def test_gate_proposal_masks_and_defends() -> None:
    leave_out = np.zeros((5, J), bool)
    leave_out[2, 3] = True
    gate = random_table(5, zeros=False)
    proposal = gate_proposal(lambda a, b: gate[a:b], K, leave_out, uniform_share=0.25)
    table = proposal.table(0, 5)
    np.testing.assert_allclose(table.sum(axis=(1, 2)), 1.0, atol=1e-12)
    assert (table[2, :, 3] == 0).all()
    np.testing.assert_allclose(table[0], 0.25 / (K * J) + 0.75 * gate[0], atol=1e-12)
    assert table[2][:, [0, 1, 2, 4, 5, 6]].min() >= 0.25 / (K * (J - 1))
    drawn = importance_candidates(proposal, 9, seed=0)
    rows = np.arange(5)[:, None]
    expected = -np.log(table[rows, drawn.persona_index, drawn.exemplar_index]) - np.log(9)
    np.testing.assert_allclose(drawn.log_weight, expected, atol=1e-10)
    with pytest.raises(DataError, match="not all finite"):
        gate_proposal(lambda a, b: gate[a:b] * np.nan, K, leave_out).table(0, 5)


def test_factorised_and_table_proposals_agree() -> None:
    rng = np.random.default_rng(5)
    personas = rng.dirichlet(np.ones(K), size=8)
    exemplars = rng.dirichlet(np.ones(J), size=8)
    factorised = FactorisedProposal(personas, exemplars)
    a = importance_candidates(factorised, 16, seed=4)
    b = importance_candidates(factorised.dense(), 16, seed=4)
    for left, right in zip(a[:2], b[:2], strict=True):
        np.testing.assert_array_equal(left, right)
    np.testing.assert_allclose(a.log_weight, b.log_weight, atol=1e-10)


def test_candidates_belong_to_the_record_alone() -> None:
    """Adding or reordering records changes nobody else's candidates; the seed changes them."""
    table = random_table(10)
    keys = [f"r{i}" for i in range(10)]
    whole = importance_candidates(table, 8, seed=1, record_keys=keys)
    order = np.array([7, 2, 9, 0])
    part = importance_candidates(table[order], 8, seed=1, record_keys=[keys[i] for i in order])
    for left, right in zip(whole.take(order)[:3], part[:3], strict=True):
        np.testing.assert_array_equal(left, right)
    again = importance_candidates(table, 8, seed=1, record_keys=keys)
    np.testing.assert_array_equal(whole.exemplar_index, again.exemplar_index)
    other = importance_candidates(table, 8, seed=2, record_keys=keys)
    assert (whole.exemplar_index != other.exemplar_index).any()
    same_table = np.broadcast_to(table[:1], table.shape)
    drawn = importance_candidates(same_table, 8, seed=1, record_keys=keys)
    assert len({row.tobytes() for row in drawn.exemplar_index}) > 5


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    table = random_table(11)
    whole = importance_candidates(table, 8, seed=1)
    monkeypatch.setattr("mop_jax.components.candidates._CHUNK_ENTRIES", 3 * K * J)
    pieces = importance_candidates(table, 8, seed=1)
    np.testing.assert_array_equal(whole.persona_index, pieces.persona_index)
    np.testing.assert_array_equal(whole.log_weight, pieces.log_weight)


def test_full_candidates() -> None:
    leave_out = np.zeros((2, J), bool)
    leave_out[1, 2] = True
    every = full_candidates(K, J, leave_out)
    assert every.method == "full"
    assert every.num_candidates == K * J
    assert every.num_records == 2
    assert every.persona_index.dtype == every.exemplar_index.dtype == np.int32
    np.testing.assert_array_equal(every.persona_index[0] * J + every.exemplar_index[0], range(21))
    np.testing.assert_array_equal(every.log_weight[0], 0.0)
    np.testing.assert_array_equal(every.log_weight[1] == -np.inf, every.exemplar_index[1] == 2)
    pairs = every.triples()
    assert len(pairs) == 2 * K * J - K
    assert not ((pairs[:, 0] == 1) & (pairs[:, 2] == 2)).any()


def test_pairs_are_distinct_and_cover() -> None:
    drawn = CandidateSet(
        np.array([[1, 1, 0]], np.int32),
        np.array([[2, 2, 1]], np.int32),
        np.array([[0.5, 0.5, -np.inf]]),
        "importance",
    )
    np.testing.assert_array_equal(drawn.triples(), [[0, 1, 2]])


def test_renormalised_counts_each_pair_once() -> None:
    proposal = random_table(20)
    drawn = renormalised_candidates(proposal, 30, seed=0)
    same = importance_candidates(proposal, 30, seed=0)
    for row in range(20):
        live = drawn.log_weight[row] == 0
        assert np.isneginf(drawn.log_weight[row][~live]).all()
        code = drawn.persona_index[row] * J + drawn.exemplar_index[row]
        assert len(set(code[live])) == live.sum() == len(set(code))
    np.testing.assert_array_equal(drawn.triples(), same.triples())


@pytest.mark.parametrize("bad", ["negative", "nan", "zero", "flat"])
def test_bad_proposals_are_refused(bad: str) -> None:
    table = random_table(3)
    if bad == "negative":
        table[1, 0, 2] = -0.1
    elif bad == "nan":
        table[1, 0, 2] = np.nan
    elif bad == "zero":
        table[1] = 0.0
    else:
        table = table[0]
    with pytest.raises(DataError, match="shape" if bad == "flat" else "record 1"):
        importance_candidates(table, 4, seed=0)


def test_bad_arguments_are_refused() -> None:
    table = random_table(3)
    with pytest.raises(DataError, match="num_candidates is 0"):
        importance_candidates(table, 0, seed=0)
    with pytest.raises(DataError, match="seed is -1"):
        importance_candidates(table, 4, seed=-1)
    with pytest.raises(DataError, match="3 distinct strings"):
        importance_candidates(table, 4, seed=0, record_keys=["a", "b", "b"])
    with pytest.raises(DataError, match="uniform_share is 0"):
        defensive_proposal(np.ones((2, 3)), np.ones((4, 3)), 2, uniform_share=0.0)
    with pytest.raises(DataError, match="temperature is 0"):
        defensive_proposal(np.ones((2, 3)), np.ones((4, 3)), 2, temperature=0.0)
    with pytest.raises(DataError, match="same encoder"):
        defensive_proposal(np.ones((2, 3)), np.ones((4, 5)), 2)
    with pytest.raises(DataError, match="finite table"):
        defensive_proposal(np.full((2, 3), np.nan), np.ones((4, 3)), 2)
    leave_out = np.zeros((2, 4), bool)
    leave_out[1] = True
    with pytest.raises(DataError, match="left out for record 1"):
        defensive_proposal(np.ones((2, 3)), np.ones((4, 3)), 2, leave_out)
    with pytest.raises(DataError, match="left out for record 1"):
        full_candidates(2, 4, leave_out)
    with pytest.raises(DataError, match="leave_out has shape"):
        full_candidates(2, 5, leave_out)


def test_large_problem_stays_small() -> None:
    """The paper's pool (K = 100, J = 1,000) for 300 records: nothing of size N·K·J is built."""
    import tracemalloc

    rng = np.random.default_rng(0)
    proposal = defensive_proposal(rng.normal(size=(300, 8)), rng.normal(size=(1000, 8)), 100)
    tracemalloc.start()
    importance_candidates(proposal, 64, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300 * 100 * 1000 * 8 / 20
