"""The survey section: what it may say, and how a mistake in it is named."""

from __future__ import annotations

import re

import pytest
from pydantic import ValidationError

from mop_jax.config import InferenceConfig, RunConfig, SurveyConfig
from mop_jax.config.run_config import SURVEY_DEFAULTS
from mop_jax.config.validation import explain
from mop_jax.survey import codebook_of

WIDE = {"path": "a.csv", "covariates": ["age"]}
ASKED = {**WIDE, "questions": "book.yaml"}
LONG = {**ASKED, "layout": "long", "id": "i", "question_column": "q", "answer_column": "a"}
CELLS = {**ASKED, "layout": "cells", "share": "share", "n": "n"}


KNOWN = {"history": 3, "history_template": "{{ person }} {{ answers }}"}
ANES = {"sample": "anes_1996", **KNOWN}


@pytest.mark.parametrize("values", [WIDE, ASKED, LONG, CELLS, WIDE | KNOWN, LONG | KNOWN, ANES])
def test_valid_sections(values) -> None:
    config = SurveyConfig.model_validate(values)
    assert SurveyConfig.model_validate(config.model_dump(mode="json")) == config


def test_questions_written_in_it() -> None:
    entries = [
        {"id": "vote", "text": "x", "recode": {"1": "Yes", "2": "No", "9": None}},
        {"id": "trust", "text": "y", "options": [1, 2, "Other"], "ordered": True, "missing": [-9]},
    ]
    config = SurveyConfig.model_validate({**WIDE, "questions": entries})
    book = codebook_of([question.model_dump() for question in config.questions])
    assert [q.options for q in book.questions] == [("Yes", "No"), ("1", "2", "Other")]
    assert book.codings[1].option("-9.0") is None


REFUSED = [
    ({"path": "a.csv"}, "covariates are missing"),
    (WIDE | {"covariates": []}, "covariates are missing"),
    ({}, "give one of them"),
    (WIDE | {"sample": "ces_2024"}, "give one of them"),
    ({"sample": "ces_2024", "covariates": ["age"]}, "leave out covariates"),
    ({"sample": "ces_2023"}, "'ces_2024' or 'anes_1996'"),
    (WIDE | {"hold_out_cells": 1}, "less than 1"),
    (WIDE | {"covariates": ["a", "a"]}, "'a' is named twice"),
    (WIDE | {"wieght": "w"}, "the nearest is weight"),
    (WIDE | {"questions": [{"id": "a"}] * 2}, "question a is there twice"),
    (
        WIDE | {"questions": [{"id": "a", "optons": ["x"]}]},
        "question 1, optons: .*nearest is options",
    ),
    (WIDE | {"questions": [{"id": "a"}, {"id": "b", "options": [True]}]}, "question 2, options"),
    (WIDE | {"questions": [{"id": ""}]}, "question 1, id"),
    (WIDE | {"questions": ["vote"]}, "question 1, it: accepted is named fields, not 'vote'"),
    (WIDE | {"questions": []}, "the list is empty"),
    (WIDE | {"template": "{{ age"}, "the template is malformed"),
    (WIDE | {"layout": "tall"}, "'wide', 'long' or 'cells'"),
    (WIDE | {"num_orders": 0}, "at least 1"),
    (WIDE | {"covariate_missing": "no"}, "'refuse', 'keep' or 'drop'"),
    (WIDE | {"share": "s"}, "share has no meaning for layout wide; leave it out, or choose cells"),
    (CELLS | {"weight": "w"}, "weight has no meaning for layout cells.*choose wide or long"),
    (CELLS | {"n": None}, "share and n belong together"),
    (CELLS | {"count": "c"}, "needs the columns share and n, or count"),
    (CELLS | {"share": None, "n": None}, "needs the columns share and n, or count"),
    (LONG | {"id": None}, "layout long needs id"),
    (LONG | {"questions": None}, "layout long needs questions"),
    (WIDE | {"separator": "ab"}, "separator"),
    (WIDE | {"history": -1}, "at least 0"),
    (WIDE | {"history_template": "{{ person }}"}, "no meaning without history"),
    (WIDE | {"history": 2, "history_template": "{{ a"}, "the template is malformed"),
    (CELLS | {"history": 2}, "individuals' earlier answers, and layout cells has shares of groups"),
    ({"sample": "ces_2024", "history": 2}, "and sample ces_2024 has shares of groups; leave it"),
    (WIDE | {"encoding": "utf-99"}, "utf-99"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED)
def test_refusals(values, message) -> None:
    with pytest.raises(ValidationError) as refused:
        SurveyConfig.model_validate(values)
    assert re.search(message, explain(refused.value.errors()[0], SurveyConfig))


def test_defaults_of_surveys_are_in_the_configuration_itself() -> None:
    """So that a folder that is opened again has them, whatever was given."""
    base = {"survey": WIDE, "language_model": {"path": "lm"}, "encoder": {"path": "e"}}
    config = RunConfig.model_validate(base)
    assert config.candidates.num_candidates == SURVEY_DEFAULTS["candidates"]["num_candidates"]
    assert config.inference.num_particles == 16
    assert config.model.temperature_spread == 0.5
    given = RunConfig.model_validate(
        {**base, "inference": InferenceConfig(num_particles=2), "model": {"gate_width": 3}}
    )
    assert (given.inference.num_particles, given.inference.learning_rate) == (2, 0.003)
    assert (given.model.gate_width, given.model.temperature_prior_scale) == (3, 1.0)
    again = RunConfig.model_validate(config.model_dump(mode="json"))
    assert again == config
    free = RunConfig.model_validate(
        {**base, "survey": None, "population": {"path": "a", "context": "b", "response": "c"}}
    )
    assert free.inference.num_particles == 4
