"""Earlier answers of the same person: who is known to have said what before a question was put.

Of an answer to question q the history is the person's last n answers to questions that come before
q in the questionnaire, which is the order of the codebook. Missing answers are passed over. Neither
the answer itself nor a later one is ever in it: nobody could have known them.

Items with histories are counted apart. What is judged by cell needs them together again, exactly
as if histories had never been told apart: `merge_histories` for counts, `merge_shares` for
predictions.

Most items are then of few people. Dispersion between cells (`ChoiceCounts`) becomes dispersion
between those of a cell who answered alike before, of which an item of one person says nothing: with
long histories it stays near its prior. Shares of cells are drawn as if it were between cells.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from mop_jax.errors import DataError
from mop_jax.survey.items import Items


def earlier_answers(frame: pd.DataFrame, number: int, shown: np.ndarray) -> np.ndarray:
    """Every answer's history: questions and options, int [A, n, 2], later ones last.

    Args:
        frame: A answers, `Answers.frame`.
        number: n, how many earlier answers are known at most.
        shown: which questions' answers may be in histories, bool [Q].

    Returns:
        (question, option) pairs; −1 in the first places where a person answered less before.
    """
    person, _ = pd.factorize(frame["respondent"])
    question, option = frame["question"].to_numpy(), frame["option"].to_numpy()
    length = min(number, max(len(shown) - 1, 0))
    found = np.full((len(frame), length, 2), -1)
    order = np.lexsort((question, person))
    may = shown[question[order]]
    source = order[may]  # answers that may be shown, each person's in the questionnaire's order
    before = np.cumsum(may) - may
    for lag in range(1, length + 1):
        place = before - lag
        there = np.flatnonzero(place >= 0)
        there = there[person[source[place[there]]] == person[order[there]]]
        known = source[place[there]]
        found[order[there], length - lag, 0] = question[known]
        found[order[there], length - lag, 1] = option[known]
    return found


def cell_groups(items: Items) -> tuple[np.ndarray, np.ndarray]:
    """Which items are of one cell and question: the first of each group, and each item's group.

    Groups are in the order of cells, then of questions. Where no item has a history each is a group
    of its own, as it stands.

    Returns:
        int [G] and int [N].
    """
    if not any(items.history):
        return np.arange(len(items)), np.arange(len(items))
    key = items.cell * len(items.questions) + items.question
    _, first, group = np.unique(key, return_index=True, return_inverse=True)
    return first, group


def merge_histories(items: Items) -> Items:
    """The items counted by cell and question alone: G items, without histories."""
    first, group = cell_groups(items)
    counts = np.zeros((len(first), items.counts.shape[1]))
    np.add.at(counts, group, items.counts)
    return Items(
        items.questions,
        items.cells,
        items.cell[first],
        items.question[first],
        counts,
        np.bincount(group, weights=items.people, minlength=len(first)),
    )


def merge_shares(shares: ArrayLike, items: Items) -> np.ndarray:
    """Predicted shares of cells, from those of their people by history:

        p_cell = Σ_i n_i p_i / Σ_i n_i      over the items of one cell and question,

    n_i the (weighted) people of an item, as people's own shares of a cell are made of those of its
    items. Items of a cell and question that nobody is counted in count alike.

    Args:
        shares: of N items, [N, M], or draws of them, [S, N, M].
        items: the N items.

    Returns:
        Shares of the items of `merge_histories`, float64 [G, M], or draws [S, G, M].

    Raises:
        DataError: if shares are of another number of items.
    """
    array = np.asarray(shares, np.float64)
    if array.ndim < 2 or array.shape[-2] != len(items):
        raise DataError(
            f"The shares have shape {list(array.shape)}; they must be of {len(items)} items."
        )
    first, group = cell_groups(items)
    if len(first) == len(items):
        return array[..., first, :]
    weight = items.counts.sum(1)
    total = np.bincount(group, weights=weight, minlength=len(first))[group]
    alike = 1 / np.bincount(group)[group]
    weight = np.divide(weight, total, out=alike, where=total > 0)
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(len(first)))
    return np.add.reduceat(array[..., order, :] * weight[order][:, None], starts, axis=-2)


def shown_questions(ids: list[str], hidden: Collection[str]) -> np.ndarray:
    """Which questions' answers histories may show, bool [Q].

    Raises:
        DataError: if a question that is hidden is not there.
    """
    for name in hidden:
        if name not in ids:
            raise DataError(f"There is no question {name!r} to hide; there are {', '.join(ids)}.")
    return np.asarray([name not in hidden for name in ids], bool)
