"""Exemplar pool: exact allocation, no text twice, and nobody their own exemplar."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mop_jax.components.exemplars import (
    cross_strata,
    group_mask,
    leave_out_mask,
    refuse_twins,
    select_exemplars,
)
from mop_jax.errors import DataError
from mop_jax.population import Population


def population(responses: list[str], groups: list[str] | None = None) -> Population:
    n = len(responses)
    return Population([f"r{i}" for i in range(n)], ["x"] * n, responses, groups=groups)


def sized(*sizes: int) -> tuple[Population, list[int]]:
    strata = [s for s, size in enumerate(sizes) for _ in range(size)]
    return population([f"y{i}" for i in range(len(strata))]), strata


def counts(rows: np.ndarray, strata: list[int], num_strata: int) -> list[int]:
    return np.bincount(np.asarray(strata)[rows], minlength=num_strata).tolist()


def test_proportional_allocation() -> None:
    records, strata = sized(50, 30, 20)
    assert counts(select_exemplars(records, strata, 10), strata, 3) == [5, 3, 2]
    # Quotas 6.5, 3.9, 2.6: the two places left go to the remainders .9 and .6.
    assert counts(select_exemplars(records, strata, 13), strata, 3) == [6, 4, 3]


def test_equal_allocation_with_small_strata() -> None:
    records, strata = sized(50, 30, 2)
    assert counts(select_exemplars(records, strata, 12, allocation="equal"), strata, 3) == [5, 5, 2]
    thirteen = counts(select_exemplars(records, strata, 13, allocation="equal"), strata, 3)
    assert sorted(thirteen) == [2, 5, 6]
    everything = select_exemplars(records, strata, 82, allocation="equal")
    np.testing.assert_array_equal(everything, np.arange(82))


def test_more_strata_than_exemplars_are_drawn_evenly() -> None:
    """40 singletons, 4 places: over 400 seeds each is drawn 40 times, sd 6; 6 sd never fail."""
    records, strata = sized(*[1] * 40)
    for allocation in ("proportional", "equal"):
        drawn = Counter(
            int(row)
            for seed in range(400)
            for row in select_exemplars(records, strata, 4, allocation=allocation, seed=seed)  # type: ignore[arg-type]
        )
        assert len(drawn) == 40
        assert max(abs(n - 40) for n in drawn.values()) < 36


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=40),
    st.sampled_from(["proportional", "equal"]),
    st.data(),
)
def test_no_text_twice(texts: list[int], allocation: str, data: st.DataObject) -> None:
    responses = [f"Text {t}" if i % 2 else f"text  {t}" for i, t in enumerate(texts)]
    records = population(responses)
    strata = data.draw(
        st.lists(st.integers(0, 3), min_size=len(texts), max_size=len(texts)), label="strata"
    )
    most = len(set(texts))
    num_exemplars = data.draw(st.integers(1, most))
    rows = select_exemplars(records, strata, num_exemplars, allocation=allocation)  # type: ignore[arg-type]
    assert len(rows) == num_exemplars
    assert (np.diff(rows) > 0).all()
    assert len({records.text_keys[row] for row in rows}) == num_exemplars
    with pytest.raises(DataError, match=f"only {most} distinct"):
        select_exemplars(records, strata, most + 1, allocation=allocation)  # type: ignore[arg-type]


def test_seeded() -> None:
    records, strata = sized(20, 20)
    first = select_exemplars(records, strata, 6, seed=1)
    np.testing.assert_array_equal(first, select_exemplars(records, strata, 6, seed=1))
    assert any((first != select_exemplars(records, strata, 6, seed=s)).any() for s in (2, 3))


def test_cross_strata() -> None:
    assert cross_strata(np.array([0, 1]), None, ["a", "b"]) == [(0, "a"), (1, "b")]
    assert cross_strata([2, 1]) == [(2,), (1,)]
    with pytest.raises(DataError, match="different lengths"):
        cross_strata([0, 1], ["a"])


def test_leave_out_mask() -> None:
    records = population(["One", "two", "three", "ONE "], groups=["f", "f", "g", "h"])
    pool = records.take([0, 2])
    # "ONE " is another person's answer; only the record itself is left out.
    expected = np.array([[1, 0], [0, 0], [0, 1], [0, 0]], bool)
    np.testing.assert_array_equal(leave_out_mask(records, pool), expected)
    expected[1, 0] = True  # the same film
    np.testing.assert_array_equal(leave_out_mask(records, pool, by="group"), expected)
    np.testing.assert_array_equal(
        group_mask(records, pool, by="group"),
        np.array([[1, 0], [1, 0], [0, 1], [0, 0]], bool),
    )
    # The same ids in another population are not the same records.
    other = population(["four", "five", "six", "seven"])
    assert not leave_out_mask(other, pool).any()
    with pytest.raises(DataError, match="needs groups"):
        leave_out_mask(other, pool, by="group")
    with pytest.raises(DataError, match="by is 'film'"):
        leave_out_mask(records, pool, by="film")  # type: ignore[arg-type]


def test_the_same_long_response_under_another_context_is_left_out() -> None:
    long = "A film that I would happily see again tomorrow."
    contexts = ["El Crimen", "The Crime", "El Crimen", "The Crime"]
    records = Population(list("abcd"), contexts, [long, long.upper(), "Good.", "Good."])
    expected = np.zeros((4, 4), bool)
    expected[:2, :2] = True
    # Two people may well say "Good.", of two films or of one.
    expected[2, 2] = expected[3, 3] = True
    np.testing.assert_array_equal(leave_out_mask(records, records), expected)


def test_a_closed_question_is_left_out_by_record() -> None:
    """200 people, 80 % Yes: the two whose records are the exemplars miss their own, nobody else."""
    answers = ["Yes"] * 160 + ["No"] * 40
    records = Population([f"p{i}" for i in range(200)], ["Do you own a car?"] * 200, answers)
    pool = records.take(select_exemplars(records, [0] * 200, 2))
    assert sorted(pool.responses) == ["No", "Yes"]
    mask = leave_out_mask(records, pool)
    assert mask.sum() == 2
    for j, name in enumerate(pool.ids):
        assert mask[records.ids.index(name), j]


@given(st.lists(st.sampled_from(["Yes", "No", "maybe so", "ja ja ja"]), min_size=2, max_size=8))
def test_masks_of_held_out_records_do_not_depend_on_their_answers(answers: list[str]) -> None:
    pool = population(["Yes", "No", "maybe so"], groups=["a", "b", "c"])
    groups = [("a", "b", "z")[i % 3] for i in range(len(answers))]
    for by in ("record", "group"):
        mask = group_mask(population(answers, groups), pool, by=by)  # type: ignore[arg-type]
        other = group_mask(population(["Yes"] * len(answers), groups), pool, by=by)  # type: ignore[arg-type]
        np.testing.assert_array_equal(mask, other)
        assert mask.any() == (by == "group")


def test_a_held_out_record_with_an_exemplars_long_response_is_refused() -> None:
    long = "A film that I would happily see again tomorrow."
    pool = population(["Yes", long])
    refuse_twins(population(["Yes", "No"]), pool)
    with pytest.raises(DataError, match="Held-out record r1 has the same long response as exempl"):
        refuse_twins(population(["Yes", long.upper()]), pool)


def test_bad_arguments() -> None:
    records, strata = sized(3)
    with pytest.raises(DataError, match="2 strata are given for 3 records"):
        select_exemplars(records, strata[:2], 1)
    with pytest.raises(DataError, match="num_exemplars is 0"):
        select_exemplars(records, strata, 0)
    with pytest.raises(DataError, match="allocation is 'fair'"):
        select_exemplars(records, strata, 1, allocation="fair")  # type: ignore[arg-type]
