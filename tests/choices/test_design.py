"""Exemplars, components, groupings, and the data of a fit."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mop_jax.choices import (
    ChoiceDesign,
    Grouping,
    OptionTable,
    Wording,
    choose_components,
    draw_exemplars,
    new_items,
)
from mop_jax.errors import DataError


def test_exemplars_are_answers_that_were_given(items) -> None:
    pool = draw_exemplars(items, 6, Wording(), seed=1)
    assert len(pool) == 6
    assert not pool.duplicated(["cell", "question"]).any()
    assert (pool["question"].value_counts() == 3).all()
    for row in pool.itertuples():
        question = items.questions[row.question]
        item = np.flatnonzero((items.cell == row.cell) & (items.question == row.question))[0]
        assert items.counts[item, row.option] > 0
        assert row.response == question.options[row.option]
        assert question.text in row.context
    assert pool.equals(draw_exemplars(items, 6, Wording(), seed=1))
    with pytest.raises(DataError, match="only 8 items"):
        draw_exemplars(items, 9, Wording())


@settings(max_examples=40)
@given(
    personas=st.integers(1, 5),
    exemplars=st.integers(2, 6),
    number=st.integers(1, 12),
    seed=st.integers(0, 1_000),
)
def test_components_are_spread_evenly(personas, exemplars, number, seed) -> None:
    rng = np.random.default_rng(seed)
    leave_out = rng.random((7, exemplars)) < 0.4
    leave_out[:, 0] = False
    chosen = choose_components(leave_out, personas, number, seed=seed)
    if number >= personas * exemplars:
        assert chosen.shape[1] == personas * exemplars
        return
    assert chosen.shape == (7, number, 2)
    for n in range(7):
        assert not leave_out[n, chosen[n, :, 1]].any()
        uses = np.bincount(chosen[n, :, 0], minlength=personas)
        assert np.ptp(uses) <= 1
        allowed = (~leave_out[n]).sum()
        pairs = {tuple(pair) for pair in chosen[n].tolist()}
        assert len(pairs) == min(number, personas * allowed)


def test_items_of_one_key_see_the_same_as_far_as_they_may() -> None:
    leave_out = np.zeros((6, 9), bool)
    keys = ["a", "b", "a", "b", "a", "a"]
    chosen = choose_components(leave_out, 3, 6, keys=keys)
    assert (chosen[[2, 4, 5]] == chosen[0]).all()
    assert (chosen[3] == chosen[1]).all()
    assert (chosen[0] != chosen[1]).any()
    leave_out[4, chosen[0, 0, 1]] = True
    other = choose_components(leave_out, 3, 6, keys=keys)
    assert (other[[0, 2, 5]] == chosen[0]).all()
    assert chosen[0, 0, 1] not in other[4, :, 1]


def test_an_item_without_exemplars_is_refused() -> None:
    with pytest.raises(DataError, match="Item 1 may see no exemplar"):
        choose_components(np.array([[False, True], [True, True]]), 2, 2)


def test_groupings_code_levels_and_their_combinations() -> None:
    cells = pd.DataFrame({"age": ["a", "b", "a"], "sex": ["w", "w", "m"]})
    both = Grouping.of("age:sex", cells)
    assert both.levels == ("a:w", "b:w", "a:m")
    later = pd.DataFrame({"sex": ["m", "m"], "age": ["a", "b"]})
    assert both.codes(later).tolist() == [2, -1]
    with pytest.raises(DataError, match=r"'income'.*age, sex"):
        Grouping.of("age:income", cells)


def test_data_leave_out_exemplars_of_the_same_cell(items) -> None:
    rng = np.random.default_rng(0)
    pool = draw_exemplars(items, 4, Wording())
    design = ChoiceDesign(
        2,
        (Grouping.of("age", items.cells),),
        rng.normal(size=(2, 5)),
        rng.normal(size=(4, 5)),
        items.cells.iloc[pool["cell"]].reset_index(drop=True),
        rng.normal(size=(4, 5)),
    )
    mask = design.leave_out(items)
    assert (mask == (items.cell[:, None] == pool["cell"].to_numpy())).all()
    pairs = np.broadcast_to(np.stack(np.divmod(np.arange(8), 4), 1), (8, 8, 2))
    table = OptionTable(
        rng.normal(size=(8, 8, 4)),
        pairs[..., 0].astype(np.int32),
        pairs[..., 1].astype(np.int32),
        np.zeros((8, 8), np.int32),
        np.zeros((8, 8)),
        items.mask,
    )
    assert design.data(items, table, rng.normal(size=(8, 5))).choices.option_preference is None
    preferences = items.mask[[0, 4]] * rng.normal(size=(2, 4))
    data = design.data(items, table, rng.normal(size=(8, 5)), preferences=preferences)
    centred = preferences - preferences.sum(1, keepdims=True) / items.mask[[0, 4]].sum(
        1, keepdims=True
    )
    expected = np.where(items.mask, centred[items.question], 0)
    np.testing.assert_allclose(data.choices.option_preference, expected, atol=1e-6)
    np.testing.assert_array_equal(data.leave_out, mask)
    assert (np.isinf(data.log_weight) == np.take_along_axis(mask, pairs[..., 1], 1)).all()
    np.testing.assert_array_equal(data.choices.counts, items.counts.astype(np.float32))
    assert data.choices.groups["age"].argmax(1).tolist() == [0, 1, 0, 1] * 2
    assert data.choices.question.argmax(1).tolist() == [0] * 4 + [1] * 4
    # Cells and questions that the fit does not know have the last column.
    cells = pd.DataFrame({"age": ["65+"], "sex": ["w"]})
    questions = (*items.questions, items.questions[1])
    later = new_items(cells, questions, [2])
    one = table.take([4])
    new = design.data(later, one, rng.normal(size=(1, 5)), feature_maps=data.feature_maps)
    assert new.choices.groups["age"].argmax(1).tolist() == [2]
    assert new.choices.question.argmax(1).tolist() == [2]
