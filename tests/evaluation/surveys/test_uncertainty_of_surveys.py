"""Intervals over cells, coverage, noise floors: what they promise, counted on simulated surveys."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from mop_jax.errors import DataError
from mop_jax.evaluation import surveys
from tests.evaluation.surveys.surveys import SCALE, VOTE, survey


def correct(num_cells: int, people: int, seed: int, num_draws: int = 199):
    """Draws of a correctly specified posterior predictive: truth and draws are exchangeable."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(3, 2.0), size=(num_draws + 1, num_cells))
    return survey(rng.multinomial(people, shares[0]), (VOTE,)), shares[1:]


@pytest.mark.parametrize("people", [3, 200])
def test_a_correct_prediction_is_covered_as_often_as_it_says(people):
    """One option of each of 800 cells: independent, so binomial. It fails falsely once in 10⁴.

    With three people a cell a share has four values; ties must not count as covered.
    """
    items, draws = correct(800, people, seed=people)
    for level in (0.5, 0.9):
        # The first option alone: those of one cell depend on each other.
        low, high = binom.interval(1 - 1e-4, 800, level)
        merged = items.counts.copy()
        merged = np.stack([merged[:, 0], merged[:, 1:].sum(1)], 1)
        yes_no = survey(merged, (type(VOTE)("yes", "Red?", ("yes", "no")),))
        pairs = np.stack([draws[..., 0], draws[..., 1:].sum(-1)], -1)
        found = surveys.coverage(pairs, yes_no, level)
        # Both options of a cell are in or out together up to ties broken apart.
        assert low / 800 <= found <= high / 800


def test_sampling_error_belongs_into_the_interval():
    rng = np.random.default_rng(0)
    shares = np.tile([0.1, 0.2, 0.3, 0.4], (300, 1))
    items = survey(rng.multinomial(50, shares))
    draws = np.tile(shares, (199, 1, 1))
    assert 0.86 < surveys.coverage(draws, items) < 0.94
    # Without it the draws are a point that no sample hits.
    assert surveys.coverage(draws, items, sampled=True) < 0.15
    sampled = surveys.sample_shares(draws, items, seed=3)
    np.testing.assert_allclose(sampled.mean(0), shares, atol=0.03)
    np.testing.assert_allclose(sampled.std(0).mean(0), np.sqrt(shares[0] * (1 - shares[0]) / 50),
                               rtol=0.02)  # fmt: skip
    assert surveys.coverage(sampled, items, sampled=True) == pytest.approx(0.9, abs=0.04)
    # Weighted answers of as many people scatter as those of fewer.
    assert surveys.coverage(draws, items, design_effect=4) > 0.97


def test_calibration_is_coverage_at_every_level():
    items, draws = correct(100, 30, seed=1)
    curve = surveys.calibration(draws, items, [0.5, 0.9])
    assert curve.tolist() == [surveys.coverage(draws, items, level) for level in (0.5, 0.9)]
    assert (np.diff(surveys.calibration(draws, items)) >= 0).all()


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"level": 1.0}, "between 0 and 1"),
        ({"level": 0.999}, "199 draws have no interval of level 0.999; at least 999"),
        ({"design_effect": 0.0}, "positive number"),
    ],
)
def test_bad_intervals_are_refused(keywords, words):
    items, draws = correct(10, 30, seed=1)
    with pytest.raises(DataError, match=words):
        surveys.coverage(draws, items, **keywords)


def test_cells_without_people_have_nothing_to_cover():
    items, draws = correct(2, 30, seed=1)
    empty = survey(np.zeros((2, 3)), (VOTE,))
    with pytest.raises(DataError, match="Nobody answered"):
        surveys.coverage(draws, empty)
    half = survey([items.counts[0], [0, 0, 0]], (VOTE,))
    alone = surveys.coverage(draws[:, :1], items.take([0]), seed=5)
    assert abs(surveys.coverage(draws, half, seed=5) - alone) <= 1 / 3


# --- Intervals ----------------------------------------------------------------------------------


def test_an_interval_holds_the_mean_of_the_cells_that_were_drawn_from():
    """100 surveys of 40 cells, 90 % intervals; a percentile bootstrap of 40 has about 88 %.

    Fewer than 78 of 100 covered, or more than 98, happen once in 500 at 88 to 90 %.
    """
    rng = np.random.default_rng(0)
    p = np.full((40, 4), 0.25)
    big = survey(rng.multinomial(30, rng.dirichlet(np.ones(4), 4000)))
    truth = surveys.overall("total_variation", np.full((4000, 4), 0.25), big)
    covered = 0
    for repeat in range(100):
        items = survey(rng.multinomial(30, rng.dirichlet(np.ones(4), 40)))
        found = surveys.estimate(
            "total_variation", p, items, level=0.9, replicates=200, seed=repeat
        )
        assert found.low <= found.mean <= found.high
        covered += found.low <= truth <= found.high
    assert 78 <= covered <= 98


def test_what_is_hard_for_both_cancels_in_a_paired_difference():
    rng = np.random.default_rng(1)
    shares = rng.dirichlet(np.ones(4), 60)
    items = survey(rng.multinomial(100, shares))
    flat = np.full((60, 4), 0.25)
    nearer = 0.9 * flat + 0.1 * shares
    difference = surveys.paired_difference("total_variation", nearer, flat, items)
    assert difference.high < 0
    alone = [surveys.estimate("total_variation", p, items) for p in (nearer, flat)]
    assert difference.mean == pytest.approx(alone[0].mean - alone[1].mean)
    assert difference.high - difference.low < 0.3 * (alone[0].high - alone[0].low)
    same = surveys.paired_difference("log_score", flat, flat, items)
    assert same == (0, 0, 0)


def test_measures_of_questions_have_intervals_too():
    rng = np.random.default_rng(2)
    shares = rng.dirichlet(np.ones(4), 30)
    items = survey(rng.multinomial(300, shares))
    found = surveys.estimate("variance_ratio", shares, items, replicates=50)
    assert found.low < 1 < found.high
    assert found.high - found.low < 0.4


def test_a_cell_is_drawn_with_all_its_questions():
    counts = np.tile([[5, 5, 0, 0], [5, 5, 0, 0]], (5, 1))
    items = survey(counts, (SCALE, VOTE))
    p = np.tile([[1.0, 0, 0, 0], [0.5, 0.5, 0, 0]], (5, 1))
    # Every cell has 0.5 and 0: without pairs of items the mean would vary.
    assert surveys.estimate("total_variation", p, items) == pytest.approx((0.25, 0.25, 0.25))


def test_minus_infinity_stays():
    items = survey([[1, 1, 0, 0]] * 6)
    p = np.tile([1.0, 0, 0, 0], (6, 1))
    found = surveys.estimate("log_score", p, items)
    assert found == (-np.inf, -np.inf, -np.inf)
    assert np.isnan(surveys.paired_difference("log_score", p, p, items).mean)


@pytest.mark.parametrize("measure", ["log_score", "variance_ratio"])
def test_several_together_are_what_they_are_one_by_one(measure):
    """Of items and of whole questions, to the last bit."""
    rng = np.random.default_rng(3)
    items = survey(rng.multinomial(50, rng.dirichlet(np.ones(4), 12)))
    named = {name: rng.dirichlet(np.ones(4), 12) for name in "abc"}
    alone, less = surveys.compare(measure, named, items, "b", replicates=30, seed=2)
    kwargs = {"replicates": 30, "seed": 2}
    assert alone == {
        name: surveys.estimate(measure, p, items, **kwargs) for name, p in named.items()
    }
    assert less == {
        name: surveys.paired_difference(measure, named["b"], named[name], items, **kwargs)
        for name in "ac"
    }


def test_few_cells_have_no_interval():
    items = survey([[1, 1, 0, 0]] * 3)
    with pytest.raises(DataError, match="needs 4 cells at least; there are 3"):
        surveys.estimate("brier", np.full((3, 4), 0.25), items)


# --- The noise floor ----------------------------------------------------------------------------


def floor_of(people: int, name: str = "total_variation", seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    items = survey(rng.multinomial(people, np.tile([0.1, 0.2, 0.3, 0.4], (200, 1))))
    table = surveys.noise_floor(items, [name], repeats=10)
    return table[table.average == "cells"].iloc[0].to_dict()


def test_the_noise_floor_falls_with_the_root_of_the_people():
    few, many = floor_of(100), floor_of(1600)
    assert few["halves"] / many["halves"] == pytest.approx(4, rel=0.05)
    assert few["people_per_half"] == 50
    assert few["true_shares"] == pytest.approx(few["halves"] / 2)


def test_the_noise_floor_tells_where_truth_and_a_second_survey_stand():
    rng = np.random.default_rng(3)
    shares = np.tile([0.1, 0.2, 0.3, 0.4], (2000, 1))
    items, again = (survey(rng.multinomial(100, shares)) for _ in range(2))
    floor = surveys.noise_floor(items, ["total_variation", "nemd"], repeats=5).set_index("measure")
    for name in ("total_variation", "nemd"):
        row = floor[floor.average == "cells"].loc[name]
        assert row.true_shares == pytest.approx(surveys.overall(name, shares, items), rel=0.04)
        second = surveys.overall(name, again.shares, items)
        assert row.second_survey == pytest.approx(second, rel=0.04)


def test_the_noise_floor_by_hand():
    # Two people who differ: each half is one of them.
    items = survey([[1, 1, 0, 0], [0, 0, 0, 2], [0, 1, 0, 0]])
    table = surveys.noise_floor(items, ["total_variation", "nemd"], repeats=3)
    by = table.set_index(["measure", "average"]).halves
    assert by["total_variation", "cells"] == pytest.approx(0.5)
    assert by["nemd", "people"] == pytest.approx(1 / 6)
    # Nobody's answer is impossible, though the other half never gave it.
    score = surveys.noise_floor(items, ["log_score"], repeats=3).halves
    np.testing.assert_allclose(score, [np.log(0.5 / 3) / 2 + np.log(1.5 / 3) / 2] * 2)


def test_weighted_counts_are_those_of_their_people():
    items = survey([[3.3, 3.3, 3.4, 0]], people=[20])
    assert surveys.noise_floor(items, ["brier"]).people_per_half[0] == 10
    assert surveys.noise_floor(items, ["brier"], design_effect=2).people_per_half[0] == 5
    np.testing.assert_allclose(surveys.effective_counts(items), [[6.6, 6.6, 6.8, 0]])


def test_nothing_to_cut_is_refused():
    with pytest.raises(DataError, match="No item has two respondents"):
        surveys.noise_floor(survey([[1, 0, 0, 0]]))
    with pytest.raises(DataError, match="at least 2"):
        surveys.noise_floor(survey([[2, 0, 0, 0]]), repeats=1)
