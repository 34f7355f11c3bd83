"""Parts of what was counted: some questions, and some people."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mop_jax.errors import DataError
from mop_jax.survey import Items, Question, merge_histories

QUESTIONS = (
    Question("vote", "Did you vote?", ("Yes", "No")),
    Question("trust", "Do you trust it?", ("a lot", "some", "little", "none"), ordered=True),
    Question("mood", "How was it?", ("warm", "clever", "dull")),
)
CELLS = pd.DataFrame({"age": ["young", "middle", "old"] * 2, "sex": ["w"] * 3 + ["m"] * 3})


@pytest.fixture(scope="module")
def items() -> Items:
    """All cells but the first answered all questions; the first only the last two."""
    cell, question = np.tile(np.arange(6), 3)[1:], np.repeat([0, 1, 2], 6)[1:]
    counts = np.arange(1.0, len(cell) * 4 + 1).reshape(-1, 4)
    counts[question == 0, 2:] = 0
    counts[question == 2, 3:] = 0
    return Items(QUESTIONS, CELLS, cell, question, counts, counts.sum(1) + 0.5)


def answers(items: Items) -> dict[str, tuple]:
    """Everything that items say, by their names."""
    rows = zip(items.names(), items.counts, items.people, items.question, strict=True)
    return {
        name: (*counts[: items.questions[q].num_options], people)
        for name, counts, people, q in rows
    }


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        ({}, lambda question, age, sex: True),
        ({"questions": ["mood", "vote"]}, lambda question, age, sex: question != "trust"),
        ({"sex": "m"}, lambda question, age, sex: sex == "m"),
        (
            {"questions": ["trust"], "age": ["old", "young"], "sex": "w"},
            lambda question, age, sex: question == "trust" and age != "middle" and sex == "w",
        ),
    ],
)
def test_some_questions_of_some_people(items, arguments, kept) -> None:
    part = items.where(**arguments)
    whole = answers(items)
    assert answers(part) == {n: a for n, a in whole.items() if kept(*n.split("|"))}
    assert [q.id for q in part.questions] == arguments.get("questions", ["vote", "trust", "mood"])
    assert part.counts.shape[1] == max(q.num_options for q in part.questions)
    expected = CELLS[[kept(part.questions[0].id, *row) for row in CELLS.to_numpy()]]
    assert part.cells.to_numpy().tolist() == expected.to_numpy().tolist()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"questions": ["tax"]}, "no question 'tax'; there are vote, trust, mood"),
        ({"income": "high"}, "no covariate 'income'; there are age, sex"),
        ({"age": "ancient"}, "No cell has age 'ancient'; there are young, middle, old"),
        ({"questions": ["vote"], "age": "young", "sex": "w"}, "Nobody is left"),
    ],
)
def test_what_is_not_there_is_refused(items, arguments, words) -> None:
    with pytest.raises(DataError, match=words):
        items.where(**arguments)


def test_earlier_answers_are_not_forgotten_in_silence(items) -> None:
    known = replace(items, history=tuple(((0, 0),) if q else () for q in items.question))
    with pytest.raises(DataError, match="merge_histories"):
        known.where(["trust"])
    assert len(merge_histories(known).where(["trust"])) == len(items.where(["trust"]))
