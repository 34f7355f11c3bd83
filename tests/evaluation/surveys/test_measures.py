"""Measures of shares: by hand, beside popfidelity, and what is refused."""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest

from mop_jax.errors import DataError
from mop_jax.evaluation import surveys
from mop_jax.evaluation.surveys import SURVEY_MEASURES, SurveyMeasure
from mop_jax.survey import Items, ces_2024
from tests.evaluation.surveys.surveys import SCALE, VOTE, grid, simulated, survey

# Two questions, two cells; of `vote` the fourth place holds no option.
TWO = survey(
    [[10, 0, 0, 0], [2, 6, 2, 0], [0, 0, 10, 10], [0, 30, 0, 0]],
    (SCALE, VOTE),
    cells=pd.DataFrame({"age": ["young", "old"]}),
)
P = np.array([[0.5, 0.5, 0, 0], [0.2, 0.6, 0.2, 0], [0, 0, 0.5, 0.5], [0.5, 0.5, 0, 0]])


def test_values_by_hand():
    nan = np.nan
    np.testing.assert_allclose(surveys.total_variation(P, TWO), [0.5, 0, 0, 0.5])
    np.testing.assert_allclose(surveys.normalized_wasserstein(P, TWO), [0.5 / 3, nan, 0, nan])
    # JSD of (½, ½) and (1, 0): h(¾) − ½ h(½) in bits.
    divergence = -(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25)) - 0.5
    np.testing.assert_allclose(
        surveys.jensen_shannon(P, TWO), np.sqrt([divergence, 0, 0, divergence]), atol=1e-9
    )
    entropy = 0.4 * np.log(0.2) + 0.6 * np.log(0.6)
    half = np.log(0.5)
    np.testing.assert_allclose(surveys.log_score(P, TWO), [half, entropy, half, half])
    np.testing.assert_allclose(surveys.brier(P, TWO), [0.5, 0.56, 0.5, 0.5])
    np.testing.assert_allclose(surveys.sd_ratio(P, TWO), [nan, nan, 1, nan])


def test_what_nobody_gave_may_have_no_probability_and_what_somebody_gave_may_not():
    items = survey([[0, 1, 0, 0], [1, 1, 0, 0]])
    p = np.array([[0, 1.0, 0, 0], [1.0, 0, 0, 0]])
    np.testing.assert_array_equal(surveys.log_score(p, items), [0, -np.inf])
    assert surveys.overall("log_score", p, items) == -np.inf


def test_averages_by_cell_and_by_people():
    assert surveys.overall("total_variation", P, TWO) == pytest.approx(0.25)
    people = surveys.overall("total_variation", P, TWO, average="people")
    assert people == pytest.approx((10 * 0.5 + 30 * 0.5) / 70)
    score = (TWO.counts * np.log(np.where(P > 0, P, 1))).sum() / TWO.counts.sum()
    assert surveys.overall("log_score", P, TWO) == pytest.approx(score)
    # Only the ordered question counts for the earth mover.
    assert surveys.overall("nemd", P, TWO) == pytest.approx(0.5 / 6)
    with pytest.raises(DataError, match="accepted are 'cells' and 'people'"):
        surveys.overall("nemd", P, TWO, average="median")  # type: ignore[arg-type]


def test_by_item_question_and_group():
    table = surveys.by_item(P, TWO, ["total_variation"])
    assert table["age"].tolist() == ["young", "young", "old", "old"]
    assert table["question"].tolist() == ["scale", "vote"] * 2
    assert table["people"].tolist() == [10, 10, 20, 30]
    np.testing.assert_allclose(table["total_variation"], [0.5, 0, 0, 0.5])
    questions = surveys.by_question(P, TWO).set_index("question")
    assert questions.loc["scale", "total_variation"] == pytest.approx(0.25)
    assert np.isnan(questions.loc["vote", "nemd"])
    groups = surveys.by_group(P, TWO, "age", average="people").set_index("age")
    assert groups.loc["old", "total_variation"] == pytest.approx(0.3)
    # One cell a question: nothing to compare it with.
    assert np.isnan(groups.loc["old", "variance_ratio"])
    with pytest.raises(DataError, match="no covariate 'sex'; there are age"):
        surveys.by_group(P, TWO, "sex")
    with pytest.raises(DataError, match="judges questions"):
        surveys.by_item(P, TWO, ["variance_ratio"])


def test_draws_are_judged_by_their_mean():
    rng = np.random.default_rng(0)
    draws = rng.dirichlet(np.ones(4), size=(7, 2))
    items = survey([[1, 2, 3, 4], [4, 3, 2, 1]])
    for name in SURVEY_MEASURES:
        mean = surveys.overall(name, draws.mean(0), items)
        np.testing.assert_equal(surveys.overall(name, draws, items), mean)


def test_differences_between_cells_by_hand():
    items = survey([[10, 0, 0, 0], [0, 0, 0, 10], [0, 10, 0, 0]])
    # Distances 1, ⅓, ⅔; the predicted ones are half of them, and in the same order.
    p = 0.5 * items.shares + 0.125
    assert surveys.variance_ratio(p, items) == pytest.approx(0.5)
    assert surveys.between_group_structure(p, items) == pytest.approx(1)
    # Cells 0 and 1 change places with cell 2: distances ⅓, 1, ⅔ → ranks 1, 3, 2 beside 3, 1, 2.
    swapped = items.shares[[0, 2, 1]]
    assert surveys.between_group_structure(swapped, items) == pytest.approx(-1)
    flat = np.full((3, 4), 0.25)
    assert surveys.variance_ratio(flat, items) == 0
    assert np.isnan(surveys.between_group_structure(flat, items))
    # A cell drawn twice is not compared to itself.
    twice = np.array([0, 1, 2, 2])
    assert surveys.variance_ratio(p[twice], items.take(twice)) == pytest.approx(0.5)


@pytest.mark.parametrize("seed", range(3))
def test_popfidelity_has_the_same_numbers(seed):
    pf = pytest.importorskip("popfidelity")
    rng = np.random.default_rng(seed)
    # Weighted: counts that are no whole numbers leave no distances equal, where ranks round apart.
    items = survey(50 * rng.dirichlet(np.full(4, 3.0), size=12))
    p = rng.dirichlet(np.ones(4), size=len(items))
    s = items.shares
    distance = pf.metrics.distance
    for ours, theirs in (
        (surveys.total_variation, distance(s, p, "total_variation")),
        (surveys.jensen_shannon, distance(s, p, "js_distance", base=2.0)),
        (surveys.normalized_wasserstein, distance(s, p, "nemd")),
        (surveys.sd_ratio, distance(s, p, "sd_ratio", positions=range(4))),
    ):
        np.testing.assert_allclose(ours(p, items), theirs, atol=1e-9)
    labels = tuple(f"{i:02d}" for i in range(len(items)))
    real, simulation = (pf.Cells(labels, SCALE.options, x) for x in (s, p))
    scored = pf.score(real, simulation)
    assert surveys.variance_ratio(p, items) == pytest.approx(scored["adaptability_ratio"])
    assert surveys.between_group_structure(p, items) == pytest.approx(scored["rho_structure"])
    ours = surveys.population_fidelity(p, items)
    assert ours.loc[0, "pfs"] == pytest.approx(scored["pfs"])


def test_population_fidelity_says_what_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "popfidelity", None)
    with pytest.raises(DataError, match=r"install mop-jax\[survey\]"):
        surveys.population_fidelity(P, TWO)


def test_population_fidelity_is_of_scales():
    pytest.importorskip("popfidelity")
    votes = survey([[1, 2, 3], [3, 2, 1]], (VOTE,))
    with pytest.raises(DataError, match="No question here is ordered"):
        surveys.population_fidelity(votes.shares, votes)
    assert surveys.population_fidelity(TWO.shares, TWO)["question"].tolist() == ["scale"]


def test_anchors_of_the_ces():
    """The pooled marginal weights cells by people, its errors count every cell the same."""
    items = ces_2024()
    expected = {"uniform": (0.113, 0.136, 0.155), "pooled_marginal": (0.080, 0.064, 0.096)}
    for name, values in expected.items():
        draws = surveys.SURVEY_METHODS[name].fit(items).predict(items)
        found = surveys.by_question(draws, items, ["nemd"])["nemd"]
        # 0.1545 and 0.1134 are what stands behind the rounded anchors.
        np.testing.assert_allclose(found, values, atol=0.00051)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: p[:3], r"shape \[3, 4\]; accepted is \[4, 4\]"),
        (lambda p: p * [[1], [np.nan], [1], [1]], "item 1 are not finite"),
        (lambda p: p + [[0.5, -0.5, 0, 0]] * 4, "item 1|item 2|negative"),
        (lambda p: p * 0.9, "item 0 sum to 0.9; they must sum to one"),
        (lambda p: np.array([*p[:1], [0.2, 0.6, 0.1, 0.1], *p[2:]]), "behind the 3 options"),
    ],
)
def test_bad_predictions_are_refused(change, words):
    for measure in (surveys.total_variation, surveys.log_score):
        with pytest.raises(DataError, match=words):
            measure(change(P), TWO)


def test_items_without_people_are_passed_over():
    items = survey([[1, 1, 0, 0], [0, 0, 0, 0]])
    p = np.full((2, 4), 0.25)
    assert surveys.overall("total_variation", p, items) == pytest.approx(0.5)
    for average in ("cells", "people"):
        assert surveys.overall("log_score", p, items, average=average) == pytest.approx(-np.log(4))
    empty = survey(np.zeros((2, 4)))
    with pytest.raises(DataError, match="defined for none of the 2 items"):
        surveys.overall("total_variation", p, empty)
    nothing = items.take(np.zeros(2, bool))
    with pytest.raises(DataError, match="no items to judge"):
        surveys.total_variation(np.zeros((0, 4)), nothing)
    # A question of which there are no items has a row, and no values.
    one = TWO.take(TWO.question == 0)
    table = surveys.by_question(P[[0, 2]], one).set_index("question")
    assert table.loc["vote", "items"] == 0
    assert np.isnan(table.loc["vote", "total_variation"])


def test_measures_without_an_order_are_refused():
    votes = survey([[1, 2, 3], [3, 2, 1]], (VOTE,))
    with pytest.raises(DataError, match="'nemd' needs ordered options"):
        surveys.overall("nemd", votes.shares, votes)
    with pytest.raises(DataError, match="several questions"):
        surveys.variance_ratio(P, TWO)
    with pytest.raises(DataError, match="no survey measure 'tv'; there are total_variation"):
        surveys.overall("tv", P, TWO)


def test_measures_stay_in_their_range_and_are_best_at_the_truth():
    items, _ = simulated(grid(age=4, sex=3), 50, 5)
    p = np.random.default_rng(1).dirichlet(np.ones(4), size=len(items))
    for measure in SURVEY_MEASURES.values():
        value, best = (surveys.overall(measure, x, items) for x in (p, items.shares))
        assert measure.range[0] <= value <= measure.range[1]
        assert {"lower": best < value, "higher": best > value, "match": best == pytest.approx(1)}[
            measure.direction
        ]


def test_a_measure_of_ones_own():
    measure = SurveyMeasure(
        "top", "top answers", lambda p, items: p.argmax(1) == items.counts.argmax(1),
        of="item", direction="higher", range=(0.0, 1.0), reference="—",
    )  # fmt: skip
    assert surveys.overall(measure, P, TWO) == 0.75
    with pytest.raises(DataError, match="already"):
        surveys.register_measure(SURVEY_MEASURES["nemd"])
    with pytest.raises(DataError, match="it is empty"):
        surveys.register_measure(
            SurveyMeasure("x", "x", len, of="item", direction="lower", range=(1, 0), reference="")
        )


def test_group_shares_weigh_cells_by_people():
    items = survey([[1, 1, 0, 0], [6, 0, 0, 0]], cells=pd.DataFrame({"a": ["x", "x"]}))
    assert isinstance(items, Items)
    found = surveys.group_shares(items.shares, items, "a")
    np.testing.assert_allclose(found["scale", "x"], [7 / 8, 1 / 8, 0, 0])
    draws = np.stack([items.shares, items.shares[::-1]])
    assert surveys.group_shares(draws, items, "a")["scale", "x"].shape == (2, 4)


def test_group_means_weigh_cells_by_people():
    """As a plain loop does, for values of any width, and as `group_shares` for shares."""
    cells = grid(a=2, b=3)
    items = survey([[1, 2, 3, i] for i in range(1, 6)] + [[0, 0, 0, 0]], cells=cells)
    values = np.random.default_rng(0).normal(size=(7, 6, 2))
    names, means = surveys.group_means(values, items)
    assert names == ["a: a0", "a: a1", "b: b0", "b: b1", "b: b2"]
    assert means.shape == (7, 5, 2)
    people = items.counts.sum(1)
    for g, name in enumerate(names):
        covariate, level = name.split(": ")
        own = [i for i in range(6) if cells[covariate][i] == level]
        expected = sum(people[i] * values[:, i] for i in own) / sum(people[i] for i in own)
        np.testing.assert_allclose(means[:, g], expected)
    shares = np.nan_to_num(items.shares)
    names, means = surveys.group_means(shares, items, ["b"])
    by_level = surveys.group_shares(shares, items, "b")
    assert names == [f"b: {level}" for _, level in by_level]
    np.testing.assert_allclose(means, np.stack(list(by_level.values())))
    # What nobody answered has no share, and no weight.
    np.testing.assert_allclose(surveys.group_means(items.shares, items, ["b"])[1], means)
    with pytest.raises(DataError, match="no covariate 'c'"):
        surveys.group_means(values, items, ["c"])
    with pytest.raises(DataError, match="Nobody answered"):
        surveys.group_means(values[:, 5:], items.take([5]))
