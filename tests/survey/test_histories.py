"""Earlier answers of the same people: against plain loops, and counted together again."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mop_jax.errors import DataError
from mop_jax.survey import (
    Answers,
    Items,
    Question,
    anes_1996,
    answers_from_wide,
    frame_of,
    merge_histories,
    merge_shares,
    to_cells_table,
    to_tidy_table,
)

IDS = ("a", "b", "c", "d")
QUESTIONS = tuple(Question(name, f"What of {name}?", ("Yes", "No", "Perhaps")) for name in IDS)


@st.composite
def surveys(draw) -> Answers:
    """Up to twelve people of two cells, each with answers to some questions."""
    answer = st.sampled_from([*QUESTIONS[0].options, None])
    person = st.tuples(st.sampled_from("uv"), st.floats(0.1, 9), *[answer] * len(IDS))
    rows = draw(st.lists(person, min_size=1, max_size=12))
    # A question that nobody answers is refused.
    rows.append(("u", 1.0, *["Yes"] * len(IDS)))
    table = pd.DataFrame(rows, columns=["cell", "w", *IDS], dtype=object)
    answers = answers_from_wide(table, QUESTIONS, ["cell"], weight="w")
    # A long table has answers in any order.
    order = draw(st.permutations(range(len(answers))))
    return replace(answers, frame=answers.frame.iloc[order].reset_index(drop=True))


def looped(answers: Answers, number: int, hidden: str | None) -> dict[tuple, list[float]]:
    """(cell, question, history) → counts, people: one answer after another."""
    given_by = {(r.respondent, r.question): r.option for r in answers.frame.itertuples()}
    found: dict[tuple, list[float]] = defaultdict(lambda: [0.0] * 4)
    for row in answers.frame.itertuples():
        history: list[tuple[int, int]] = []
        for question in reversed(range(row.question)):
            option = given_by.get((row.respondent, question))
            if option is not None and IDS[question] != hidden and len(history) < number:
                history.insert(0, (question, option))
        sums = found[row.cell, row.question, tuple(history)]
        sums[row.option] += row.weight
        sums[3] += 1
    return found


@settings(max_examples=40)
@given(surveys(), st.integers(0, 5), st.sampled_from([None, *IDS]))
def test_histories_are_those_of_a_loop(answers, number, hidden) -> None:
    items = answers.items(history=number, hidden=() if hidden is None else (hidden,))
    expected = looped(answers, number, hidden)
    keys = list(zip(items.cell.tolist(), items.question.tolist(), items.history, strict=True))
    assert len(keys) == len(set(keys))
    assert set(keys) == set(expected)
    for n, key in enumerate(keys):
        *counts, people = expected[key]
        np.testing.assert_allclose(items.counts[n], counts, rtol=1e-12)
        assert items.people[n] == people


@settings(max_examples=40)
@given(surveys(), st.integers(1, 5))
def test_together_they_are_the_items_without(answers, number) -> None:
    items, whole = answers.items(history=number), answers.items()
    merged = merge_histories(items)
    assert not any(merged.history)
    for name in ("cell", "question", "people"):
        np.testing.assert_array_equal(getattr(merged, name), getattr(whole, name))
    np.testing.assert_allclose(merged.counts, whole.counts, rtol=1e-12)
    # People's own shares are merged to people's own shares.
    np.testing.assert_allclose(merge_shares(items.shares, items), whole.shares, rtol=1e-9)
    np.testing.assert_allclose(frame_of(items).shares, frame_of(whole).shares, rtol=1e-12)


@settings(max_examples=40)
@given(surveys(), st.integers(0, 2**32 - 1))
def test_what_comes_later_or_is_hidden_is_in_no_history(answers, seed) -> None:
    """Answers to a question may be others: what is known before them, and with it, stays."""
    rng = np.random.default_rng(seed)
    changed = int(rng.integers(len(IDS)))
    frame = answers.frame.copy()
    own = frame["question"] == changed
    frame.loc[own, "option"] = rng.integers(0, 3, own.sum())
    other = replace(answers, frame=frame)

    def known(survey: Answers, **options) -> Counter:
        items = survey.items(history=9, **options)
        keys = zip(items.cell.tolist(), items.question.tolist(), items.history, strict=True)
        return Counter(dict(zip(keys, items.people, strict=True)))

    def until(found: Counter) -> Counter:
        return Counter({key: n for key, n in found.items() if key[1] <= changed})

    assert until(known(answers)) == until(known(other))
    hidden = (IDS[changed],)
    assert known(answers, hidden=hidden) == known(other, hidden=hidden)


@settings(max_examples=40)
@given(surveys(), st.integers(0, 2**32 - 1))
def test_predictions_are_merged_by_people(answers, seed) -> None:
    items = answers.items(history=2)
    # Nobody is left in the first cell's first question: all of its items count alike.
    empty = (items.cell == items.cell[0]) & (items.question == items.question[0])
    items = replace(items, counts=np.where(empty[:, None], 0, items.counts))
    draws = np.random.default_rng(seed).dirichlet(np.ones(3), (4, len(items)))
    merged, found = merge_histories(items), merge_shares(draws, items)
    assert found.shape == (4, len(merged), 3)
    for g in range(len(merged)):
        own = (items.cell == merged.cell[g]) & (items.question == merged.question[g])
        weight = items.counts[own].sum(1) if merged.counts[g].sum() else np.ones(own.sum())
        expected = sum(w * draws[:, n] for w, n in zip(weight, np.flatnonzero(own), strict=True))
        np.testing.assert_allclose(found[:, g], expected / weight.sum(), rtol=1e-9)
    np.testing.assert_array_equal(merge_shares(draws[0], items), found[0])


def some() -> Items:
    """Three people of one cell: two say Yes and then No, one says nothing and then Yes."""
    table = pd.DataFrame({"cell": "u", "a": ["Yes", "Yes", None], "b": ["No", "No", "Yes"]})
    return answers_from_wide(table, QUESTIONS[:2], ["cell"]).items(history=1)


def test_histories_go_with_their_items() -> None:
    items = some()
    assert items.question.tolist() == [0, 1, 1]
    assert items.history == ((), (), ((0, 0),))
    assert items.people.tolist() == [2, 1, 2]
    assert items.earlier(2) == [("What of a?", "Yes")]
    assert items.names() == ["a|u", "b|u", "b|u|a=Yes"]
    assert items.take([2, 0]).history == (((0, 0),), ())
    assert items.take(items.question == 1).history == ((), ((0, 0),))
    _, later = items.split_question("b")
    assert later.history == ((), ((0, 0),))
    assert replace(items, counts=items.counts * 2).history == items.history


def test_nobody_has_no_history() -> None:
    table = pd.DataFrame({"cell": ["u"], "a": ["Yes"], "b": ["No"]})
    answers = answers_from_wide(table, QUESTIONS[:2], ["cell"])
    nobody = answers.without(answers.respondents).items(history=2)
    assert len(nobody) == len(merge_histories(nobody)) == 0
    assert nobody.history == ()


def test_items_without_histories_are_as_they_stand() -> None:
    items = some().take([1, 0])
    assert items.history == ((), ())
    merged = merge_histories(items)
    assert merged.question.tolist() == [1, 0]
    p = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(merge_shares(p, items), p)


REFUSED = {
    "own": ((), ((1, 0),), r"question b holds questions 1; accepted are those before 1"),
    "later": ((((1, 0),),) + ((),) * 2, None, r"question a holds questions 1"),
    "twice": ((), ((0, 0), (0, 1)), "question b holds questions 0, 0"),
    "option": ((), ((0, 3),), "holds option 3 of question a, which has 3"),
    "number": (((),), None, "1 histories of 3 items"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case) -> None:
    histories, last, message = REFUSED[case]
    given_ones = histories if last is None else ((), (), last)
    with pytest.raises(DataError, match=message) as refused:
        replace(some(), history=given_ones)
    assert "\n" not in str(refused.value)


def test_more_refusals() -> None:
    items = some()
    with pytest.raises(DataError, match="of 3 items"):
        merge_shares(np.ones((2, 3)), items)
    for table in (to_cells_table, to_tidy_table):
        with pytest.raises(DataError, match="give it merge_histories"):
            table(items)
        assert len(table(merge_histories(items))) == 6
    table = pd.DataFrame({"cell": ["u"], "a": ["Yes"]})
    with pytest.raises(DataError, match="no question 'z' to hide; there are a"):
        answers_from_wide(table, QUESTIONS[:1], ["cell"]).items(hidden=["z"])


def test_a_survey_that_is_carried() -> None:
    answers = anes_1996()
    items = answers.items(history=5, hidden=["leaning"])
    whole = answers.items()
    np.testing.assert_array_equal(merge_histories(items).counts, whole.counts)
    assert {q for q, m in sum(items.history, ())} == {0}
    assert max(map(len, answers.items(history=5).history)) == 2
