"""Design effects against what is known of weights, clusters and strata."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mop_jax.survey import Answers, Question, design_effect

VOTE = Question("vote", "Did you vote?", ("Yes", "No", "Perhaps"))


def answers(option, weight=None, strata=None, psu=None) -> Answers:
    """One question's answers of so many respondents in one cell."""
    number = len(option)
    ids = [f"p{i}" for i in range(number)]
    weight = np.ones(number) if weight is None else weight / np.mean(weight)
    frame = pd.DataFrame(
        {"respondent": ids, "cell": 0, "question": 0, "option": option, "weight": weight}
    )

    def by_person(values):
        return None if values is None else pd.Series(values, ids)

    cells = pd.DataFrame({"age": ["all"]})
    return Answers((VOTE,), cells, frame, by_person(strata), by_person(psu))


def test_a_simple_random_sample_has_none() -> None:
    option = np.random.default_rng(0).integers(0, 3, 500)
    assert design_effect(answers(option)) == pytest.approx(1, rel=1e-9)


def test_weights_that_say_nothing_of_answers_cost_what_kish_says() -> None:
    rng = np.random.default_rng(1)
    option, weight = rng.integers(0, 3, 20_000), rng.lognormal(0, 0.7, 20_000)
    kish = 1 + np.var(weight) / np.mean(weight) ** 2
    assert design_effect(answers(option, weight)) == pytest.approx(kish, rel=0.05)


def test_clusters_that_answer_alike_count_once() -> None:
    option = np.repeat(np.random.default_rng(2).integers(0, 3, 400), 5)
    psu = np.repeat(np.arange(400), 5)
    # 400 units of five equal answers; the ratio of their degrees of freedom remains.
    expected = 5 * 400 / 399 * (2000 - 1) / 2000
    assert design_effect(answers(option, psu=psu)) == pytest.approx(expected, rel=1e-9)


def test_strata_that_explain_answers_leave_nothing_to_chance() -> None:
    option = np.repeat([0, 1, 2], 100)
    assert design_effect(answers(option, strata=option)) == pytest.approx(0, abs=1e-12)
    numbered_anew = np.tile(np.repeat(np.arange(20), 5), 3)
    mixed = np.tile([0, 1, 2, 0, 1], 60)
    found = design_effect(answers(mixed, strata=np.repeat(["a", "b", "c"], 100), psu=numbered_anew))
    assert found == pytest.approx(0, abs=1e-12)  # all units are alike


def test_it_equals_a_loop() -> None:
    rng = np.random.default_rng(3)
    number = 120
    option, weight = rng.integers(0, 3, number), rng.uniform(0.5, 2, number)
    strata, psu = rng.integers(0, 4, number), rng.integers(0, 6, number)
    strata[0], psu[0] = 9, 0  # a stratum of one unit
    weight = weight / weight.mean()
    total = simple = 0.0
    for m in range(3):
        y = (option == m).astype(float)
        p = (weight * y).sum() / weight.sum()
        u = weight * (y - p) / weight.sum()
        for h in np.unique(strata):
            units = [u[(strata == h) & (psu == j)].sum() for j in np.unique(psu[strata == h])]
            if len(units) == 1:
                total += units[0] ** 2
                continue
            n = len(units)
            total += n / (n - 1) * sum((x - np.mean(units)) ** 2 for x in units)
        simple += p * (1 - p) / (number - 1)
    found = design_effect(answers(option, weight, strata, psu))
    assert found == pytest.approx(total / simple, rel=1e-9)


def test_an_answer_that_all_give_has_none() -> None:
    assert design_effect(answers(np.zeros(10, int))) == 1.0
