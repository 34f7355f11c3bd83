"""Long answers that many give are options of a closed question, not one record written twice."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mop_jax.components.exemplars import leave_out_mask, refuse_twins, select_exemplars
from mop_jax.errors import DataError
from mop_jax.pipeline.workspace import population_of
from mop_jax.population import Population, is_long, response_key, twin_keys

OPTIONS = [
    "The government should provide many fewer services to reduce spending",
    "The government should keep its services and spending as they are",
    "The government should provide many more services and increase spending",
]
REVIEW = "A film that I would happily see again tomorrow."


def survey(num_people: int = 300) -> Population:
    """A closed question of long options, and one answer in people's own words, stored twice."""
    answers = [OPTIONS[i % 3] for i in range(num_people - 2)] + [REVIEW, REVIEW.upper()]
    contexts = ["Services?"] * (num_people - 1) + ["Services? (other)"]
    return Population([f"p{i}" for i in range(num_people)], contexts, answers)


def test_long_options_of_a_closed_question_are_split_as_short_ones_are():
    assert all(is_long(option) for option in OPTIONS)
    for seed in range(4):
        train, test = survey().split(0.25, seed=seed)
        assert len(test) == 75
        assert len(train) >= 224
        assert set(train.responses) >= set(OPTIONS)
        # Both sides know that the options are common, and the review is not.
        for side in (train, test):
            for response, key in zip(side.responses, side.response_keys, strict=True):
                assert (key is None) == (response in OPTIONS)
        keys = [set(side.response_keys) - {None} for side in (train, test)]
        assert not keys[0] & keys[1]


def test_a_mask_does_not_tell_which_option_a_record_chose():
    train, test = survey().split(0.25, seed=1)
    pool = train.take(select_exemplars(train, [0] * len(train), 3))
    refuse_twins(test, pool)
    mask = leave_out_mask(train, pool)
    own = np.array(train.ids)[:, None] == np.array(pool.ids)[None, :]
    rare = np.array([key is not None for key in train.response_keys])
    np.testing.assert_array_equal(mask[~rare], own[~rare])


def test_a_small_part_keeps_what_was_judged_on_the_whole():
    """Alone, three people with three options would be taken for three texts nobody else has."""
    few = survey().take([0, 1, 2, 298])
    assert few.response_keys == [None, None, None, response_key(REVIEW)]
    assert few.sample(2, seed=0).take([0]).twins is not None
    again = population_of(few.frame)
    assert again.response_keys == few.response_keys
    older = population_of(few.frame.drop(columns="twin"))
    assert None not in older.response_keys
    assert few.fingerprint == older.fingerprint == again.fingerprint


def test_twins_survive_a_file(tmp_path):
    few = survey().take([0, 298])
    few.frame.to_parquet(tmp_path / "few.parquet")
    back = population_of(pd.read_parquet(tmp_path / "few.parquet"))
    assert back.response_keys == few.response_keys
    none = survey().take([0, 1])
    none.frame.to_parquet(tmp_path / "none.parquet")
    assert population_of(pd.read_parquet(tmp_path / "none.parquet")).response_keys == [None, None]


@given(st.integers(1, 8), st.integers(0, 1200))
def test_rare_is_at_most_two_or_one_in_two_hundred(count: int, others: int):
    responses = [REVIEW] * count + [f"{REVIEW} {i}" for i in range(others)]
    keys = twin_keys(responses)
    common = count > max(2, 0.005 * len(responses))
    assert keys[:count] == [None if common else response_key(REVIEW)] * count
    assert None not in keys[count:]


def test_a_split_that_leaves_only_twins_says_why():
    population = Population(list("ab"), ["x", "z"], [REVIEW, REVIEW])
    with pytest.raises(DataError, match="No training record is left: the 1 that the split"):
        population.split(1)
