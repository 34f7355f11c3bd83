"""Rounds of scoring: their sizes, what a round reports, and when no further one is needed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mop_jax.components.candidates import CandidateSet
from mop_jax.components.components import SECOND_ROUND
from mop_jax.evaluation.held_out import mean_and_error
from mop_jax.likelihoods.scoring import ScoredCandidates
from mop_jax.pipeline.evaluation import _HELD_OUT
from mop_jax.pipeline.scoring import REFRESHED, Round, RoundReport, round_report, round_sizes
from mop_jax.population import Population


@given(st.integers(1, 200), st.integers(1, 6))
def test_rounds_never_score_more_than_was_asked_for(num_candidates: int, num_rounds: int) -> None:
    sizes = round_sizes(num_candidates, num_rounds)
    assert 1 <= len(sizes) <= num_rounds
    assert sizes[-1] == num_candidates
    assert sizes[0] >= 1
    # Each round adds something, and the last one no less than any other.
    added = np.diff([0, *sizes])
    assert (added > 0).all()
    assert added[-1] == added.max()


def a_round(log_weight: np.ndarray, scores: np.ndarray, method: str = "importance") -> Round:
    index = np.tile(np.arange(log_weight.shape[1], dtype=np.int32), (len(log_weight), 1))
    candidates = CandidateSet(index, index, log_weight, method)
    triples = candidates.triples()
    return Round(candidates, ScoredCandidates(triples, np.zeros((len(triples), 1)), scores))


def test_a_round_says_how_far_it_tightened_the_bound() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(5, 2, 3))
    before = a_round(np.array([[0.0, -np.inf]] * 5), scores)
    after = a_round(np.zeros((5, 2)), scores)
    people = Population(list("abcde"), ["x"] * 5, ["y"] * 5)
    assert round_report(None, before, 1, people) == RoundReport(5, 5)
    got = round_report(before, after, 1, people)
    moved = np.logaddexp(scores[:, 0, 1], scores[:, 1, 1]) - scores[:, 0, 1]
    assert (got.pairs, got.new) == (10, 5)
    assert got.tightened == pytest.approx(moved.mean())
    assert got.standard_error == pytest.approx(moved.std(ddof=1) / np.sqrt(5))
    renormalised = a_round(np.zeros((5, 2)), scores, "renormalised")
    assert round_report(before, renormalised, 1, people) == RoundReport(10, 5)


def test_a_round_is_judged_by_weights_and_groups_and_by_its_gate() -> None:
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(5, 2, 3))
    before = a_round(np.array([[0.0, -np.inf]] * 5), scores)
    after = a_round(np.zeros((5, 2)), scores)
    weights, groups = np.array([1.0, 2.0, 3.0, 1.0, 5.0]), list("aabbc")
    people = Population(list("abcde"), ["x"] * 5, ["y"] * 5, groups=groups, weights=weights)
    moved = np.logaddexp(scores[:, 0, 1], scores[:, 1, 1]) - scores[:, 0, 1]
    gate = {id(before): rng.normal(size=5), id(after): rng.normal(size=5)}
    got = round_report(before, after, 1, people, lambda known: gate[id(known)])
    expected = mean_and_error(moved, weights, groups)
    assert (got.tightened, got.standard_error) == pytest.approx(tuple(expected.values()))
    expected = mean_and_error(gate[id(after)] - gate[id(before)], weights, groups)
    assert (got.gate_tightened, got.gate_standard_error) == pytest.approx(tuple(expected.values()))
    one = Population(list("abcde"), ["x"] * 5, ["y"] * 5, groups=["a"] * 5)
    alone = round_report(before, after, 1, one)
    assert (alone.tightened, alone.standard_error) == (pytest.approx(moved.mean()), None)
    assert not alone.settled(np.inf)


@pytest.mark.parametrize(
    ("tightened", "error", "settled"),
    [
        (0.001, 0.002, True),
        (0.001, 0.02, False),
        (0.03, 0.001, False),
        (-0.1, 0.01, False),
        (-0.001, 0.002, True),
    ],
)
def test_rounds_end_when_one_surely_moved_little(tightened, error, settled) -> None:
    assert RoundReport(10, 5, tightened, error).settled(0.02) is settled
    assert not RoundReport(10, 10).settled(0.02)
    # However little the uniform mixture moved, the gate's must not have moved either.
    assert RoundReport(10, 5, tightened, error, -0.001, 0.002).settled(0.02) is settled
    assert not RoundReport(10, 5, tightened, error, -0.5, 0.01).settled(0.02)


def test_no_two_rounds_share_their_draws_in_runs_of_neighbouring_seeds() -> None:
    offsets = [0, *(SECOND_ROUND * n for n in range(1, 10)), *(REFRESHED * n for n in range(1, 10))]
    offsets += [_HELD_OUT, _HELD_OUT + SECOND_ROUND]
    assert np.diff(sorted(offsets)).min() > 10**8
