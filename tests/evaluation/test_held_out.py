"""Held-out evidence: means, standard errors, paired differences, the check of the candidates."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mop_jax.errors import DataError
from mop_jax.evaluation.held_out import (
    candidate_check,
    mean_and_error,
    summarise,
    summarise_slack,
)
from mop_jax.evaluation.predictors import uniform_over_prompts

VALUES = np.random.default_rng(0).normal(-40, 3, 17)


def test_equal_weights_give_the_usual_mean_and_standard_error():
    for weights in (None, np.ones(17), np.full(17, 0.3)):
        got = mean_and_error(VALUES, weights)
        assert got["mean"] == pytest.approx(pd.Series(VALUES).mean(), rel=1e-12)
        assert got["se"] == pytest.approx(stats.sem(VALUES), rel=1e-12)
        assert {type(v) for v in got.values()} == {float}


def test_unequal_weights_by_hand():
    # Shares 1/4, 1/4, 1/2; mean 1/4·0 + 1/4·4 + 1/2·6 = 4; squared deviations 16, 0, 4.
    got = mean_and_error(np.array([0.0, 4.0, 6.0]), np.array([1.0, 1.0, 2.0]))
    assert got["mean"] == pytest.approx(4.0)
    assert got["se"] == pytest.approx(np.sqrt(3 / 2 * (16 / 16 + 0 / 16 + 4 / 4)))


def test_the_standard_error_covers_the_mean():
    """95 % intervals of weighted means cover the truth; 2,000 repeats, expected share 0.95 ± 0.005.

    The bounds are 6 standard errors away (t against normal quantiles at n = 100 costs 0.003): a
    right implementation fails less than once in a million seeds.
    """
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(2000):
        weights = rng.uniform(0.5, 2, 100)
        got = mean_and_error(rng.normal(2.0, 1.5, 100), weights)
        covered += abs(got["mean"] - 2.0) < 1.96 * got["se"]
    assert 0.92 < covered / 2000 < 0.98


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_records_have_no_standard_error(count):
    with pytest.raises(DataError, match=f"at least 2 held-out records; there is {count}"):
        mean_and_error(np.zeros(count))


def test_groups_by_hand():
    # Deviations from the mean 4 are -4, 0, 2 and 2, a quarter each; groups sum to -1 and 1.
    values = np.array([0.0, 4.0, 6.0, 6.0])
    got = mean_and_error(values, groups=["a", "a", "b", "b"])
    assert got == {"mean": 4.0, "se": pytest.approx(np.sqrt(2 / 1 * (1 + 1)))}
    assert mean_and_error(values, groups=list("abcd")) == pytest.approx(mean_and_error(values))


def test_with_groups_the_standard_error_covers_the_mean_of_clustered_records():
    """Records of a group share half their variance; 1,000 repeats, bounds as in the test above.

    60 unequal groups cost a percent or two of coverage. Taken as independent, records would give
    an interval that covers some 0.7: the second assertion says that the test can tell.
    """
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(60), np.arange(60) % 10 + 1)
    covered = np.zeros(2)
    for _ in range(1000):
        values = rng.normal(size=60)[groups] + rng.normal(size=len(groups)) + 2.0
        for way, given in enumerate((groups.astype(str), None)):
            got = mean_and_error(values, groups=given)
            covered[way] += abs(got["mean"] - 2.0) < 1.96 * got["se"]
    assert 0.90 < covered[0] / 1000 < 0.98
    assert covered[1] / 1000 < 0.8


def test_one_group_has_no_standard_error():
    with pytest.raises(DataError, match="at least 2 held-out groups; there is 1"):
        mean_and_error(VALUES, groups=["Jaws"] * 17)


def test_differences_are_paired():
    rng = np.random.default_rng(2)
    hard = rng.normal(0, 20, 50)  # what all predictors share: cancels in pairs only
    gain = rng.normal(0.7, 0.1, 50)
    weights = rng.uniform(1, 3, 50)
    summary = summarise({"uniform_mixture": hard, "mop": hard + gain}, weights)
    assert set(summary) == {"uniform_mixture", "mop", "mop_minus_uniform"}
    assert summary["mop_minus_uniform"] == pytest.approx(mean_and_error(gain, weights))
    assert summary["mop_minus_uniform"]["se"] < 0.1 < summary["mop"]["se"]
    difference = summary["mop"]["mean"] - summary["uniform_mixture"]["mean"]
    assert summary["mop_minus_uniform"]["mean"] == pytest.approx(difference)
    unpaired = stats.ttest_rel(hard + gain, hard)
    equal = summarise({"uniform_mixture": hard, "mop": hard + gain})["mop_minus_uniform"]
    assert equal["mean"] / equal["se"] == pytest.approx(unpaired.statistic)


def test_a_summary_needs_the_baseline():
    with pytest.raises(KeyError, match="uniform_mixture"):
        summarise({"mop": VALUES})


def test_the_mixture_over_prompts_averages_probabilities():
    log_probs = np.log(np.array([[0.1, 0.3], [0.2, 0.2]]))
    np.testing.assert_allclose(uniform_over_prompts(log_probs), np.log([0.2, 0.2]))
    far = uniform_over_prompts(np.array([[-5000.0, -5001.0]]))  # underflows outside log space
    np.testing.assert_allclose(far, [-5000 + np.log((1 + np.exp(-1)) / 2)])


@pytest.mark.parametrize(("moved", "passed"), [(0.0, True), (0.9, True), (1.1, False)])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_candidate_check_compares_the_move_with_the_standard_error(moved, passed, sign):
    error = mean_and_error(VALUES)["se"]
    check = candidate_check(
        (12, 24),
        {"mop": VALUES, "mop_no_temperature": VALUES},
        {"mop": VALUES + sign * moved * error, "mop_no_temperature": VALUES + 2 * error},
    )
    assert check["passed"] is passed
    assert (check["candidates"], check["compared_candidates"]) == (12, 24)
    assert check["moved"] == pytest.approx(sign * moved * error, abs=1e-12)
    other = check["predictors"]["mop_no_temperature"]
    assert (other["passed"], other["moved"]) == (False, pytest.approx(2 * error))
    assert check["mop_minus_uniform"] == mean_and_error(VALUES)
    assert check["mop_minus_uniform_compared"] == mean_and_error(VALUES + sign * moved * error)


def test_the_candidate_check_weighs_its_records():
    weights = np.arange(1.0, 18.0)
    check = candidate_check(
        (4, 8), {"mop": VALUES}, {"mop": VALUES + np.linspace(0, 2, 17)}, weights
    )
    moved = np.average(np.linspace(0, 2, 17), weights=weights)
    assert check["moved"] == pytest.approx(moved)
    assert check["mop_minus_uniform"] == mean_and_error(VALUES, weights)


@pytest.mark.parametrize(
    ("hidden", "moved", "foreseen", "passed"),
    [
        (0.0, 5.0, None, True),  # all components are scored
        (0.9, -0.5, None, True),
        (-0.9, -3.0, None, True),
        (1.1, 0.0, None, False),
        (0.1, -0.9, None, True),  # within a standard error of the claim
        (0.1, -1.4, None, False),
        (0.1, 1.4, None, False),
        (0.1, -1.4, -1.0, True),  # the half is poor, and its own estimate says so
        (0.1, -1.4, 0.6, False),
        (0.1, -5.0, 1.0, False),
    ],
)
def test_the_check_is_of_what_is_left_unless_the_move_belies_it(hidden, moved, foreseen, passed):
    error = mean_and_error(VALUES)["se"]
    given = {} if foreseen is None else {"compared_slack": {"mop": np.full(17, foreseen * error)}}
    check = candidate_check(
        (12, 6),
        {"mop": VALUES},
        {"mop": VALUES + moved * error},
        slack={"mop": np.full(17, hidden * error)},
        **given,
    )
    assert check["left"] == pytest.approx(abs(hidden) * error, abs=1e-12)
    assert check["passed"] is passed
    assert check["moved"] == pytest.approx(moved * error)
    expected = None if foreseen is None else pytest.approx(abs(foreseen) * error)
    assert check["foreseen"] == expected


def test_what_is_left_counts_its_own_error():
    slack = np.random.default_rng(4).normal(0.1, 1.0, 17)
    check = candidate_check((12, 6), {"mop": VALUES}, {"mop": VALUES}, slack={"mop": slack})
    got = mean_and_error(slack)
    assert check["left"] == pytest.approx(abs(got["mean"]) + 2 * got["se"])


def test_slack_is_summarised_as_the_figures_are():
    slack = {"uniform_mixture": np.linspace(0, 1, 17), "mop": np.linspace(0, 2, 17)}
    weights = np.arange(1.0, 18.0)
    summary = summarise_slack(slack, weights)
    assert set(summary) == {"uniform_mixture", "mop", "mop_minus_uniform"}
    assert summary["mop"] == mean_and_error(slack["mop"], weights)
    expected = mean_and_error(np.linspace(0, 1, 17), weights)
    assert summary["mop_minus_uniform"] == pytest.approx(expected)
    assert summarise_slack({}) == {}
