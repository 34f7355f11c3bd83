"""A survey's run that knows earlier answers of the same people, in miniature."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mop_jax import pipeline
from mop_jax.choices import without_shown
from mop_jax.evaluation.surveys import SURVEY_METHODS
from mop_jax.pipeline.surveys.artefacts import SurveyRun, history_of, write_items
from mop_jax.pipeline.surveys.preparation import read_answers
from mop_jax.survey import Items, Question, merge_histories
from tests.run_fixtures import write_encoder, write_language_model, write_yaml

pytest_plugins = ("tests.run_fixtures",)
AGES, SEXES = ("young", "old"), ("woman", "man", "other")
OPTIONS = {"film": ["Alien", "Ran"], "mood": ["warm", "dull"], "again": ["yes", "no"]}


def respondents(number: int = 72) -> pd.DataFrame:
    """People of six cells; a tenth of the answers are missing."""
    rng = np.random.default_rng(3)
    columns = {"age": np.tile(AGES, number // 2), "sex": np.repeat(SEXES, number // 3)}
    for name, options in OPTIONS.items():
        given = rng.choice(options, number).astype(object)
        given[rng.random(number) < 0.1] = None
        columns[name] = given
    return pd.DataFrame(columns)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("history")
    respondents().to_csv(folder / "answers.csv", index=False)
    write_language_model(folder / "lm")
    write_encoder(folder / "encoder")
    questions = [{"id": q, "text": f"What of {q}?", "options": o} for q, o in OPTIONS.items()]
    write_yaml(
        folder / "survey.yaml",
        {
            "survey": {
                "path": "answers.csv",
                "questions": questions,
                "covariates": ["age", "sex"],
                "template": "a {{ age }} {{ sex }}",
                "groups": ["age"],
                "hold_out_cells": 0.67,
                "hold_out_question": "mood",
                "history": 2,
            },
            "language_model": {"path": "lm"},
            "encoder": {"path": "encoder"},
            "personas": {"texts": ["You are warm.", "You are cold."]},
            "exemplars": {"num_exemplars": 3},
            "candidates": {"num_candidates": 2},
            # A point is compiled in a moment.
            "inference": {"guide": "AutoDelta", "num_steps": 20, "num_draws": 40},
        },
    )
    return folder


@pytest.fixture(scope="module")
def finished(sources) -> Path:
    """The finished run, judged beside methods that are fitted in a moment."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("mrp", "logistic_regression"):
            patch.delitem(SURVEY_METHODS, name)
        return pipeline.run(sources / "survey.yaml", sources / "run")


@pytest.fixture
def run(finished) -> SurveyRun:
    return SurveyRun(finished, pipeline.read_config(finished))


def test_items_are_told_apart_and_the_held_out_question_is_in_no_history(run) -> None:
    assert {q for earlier in run.items.history for q, _ in earlier} == {0}
    assert len(run.items) > len(run.by_cell) == 3 * 6
    answers = read_answers(run.section)
    shown = np.zeros_like(run.by_cell.counts)
    for row in run.exemplars.itertuples():
        own = (run.by_cell.cell == row.cell) & (run.by_cell.question == row.question)
        shown[np.flatnonzero(own)[0], row.option] += 1
    # Nobody is shown and counted, and all others are counted once.
    np.testing.assert_allclose(run.by_cell.counts + shown, answers.items().counts)
    assert run.by_cell.people.sum() == len(answers) - len(run.exemplars)


def test_whoever_is_shown_goes_with_the_whole_weight() -> None:
    """One person of weight 2.5 with a history, and two of 0.5 without, all of one cell."""
    questions = (Question("a", "?", ("x", "y")), Question("b", "?", ("x", "y")))
    items = Items(
        questions, pd.DataFrame({"age": ["young"]}), np.array([0, 0]), np.array([1, 1]),
        np.array([[0.0, 1.0], [2.5, 0.0]]), np.array([2.0, 1.0]), ((), ((0, 1),)),
    )  # fmt: skip
    shown = pd.DataFrame({"cell": [0], "question": [1], "option": [0]})
    left = without_shown(items, shown, seed=0)
    assert left.counts.tolist() == [[0, 1], [0, 0]]
    assert left.people.tolist() == [2, 0]
    assert left.history == items.history
    # Those who chose the same are as likely to be shown as they are many.
    many = replace(items, counts=np.array([[30.0, 0], [10.0, 0]]), people=np.array([30.0, 10]))
    first = [without_shown(many, shown, seed=seed).people[0] == 29 for seed in range(200)]
    # Binomial(200, 3/4): outside of five standard deviations once in a million seeds.
    assert abs(np.mean(first) - 0.75) < 5 * np.sqrt(0.75 * 0.25 / 200)


def test_prompts_and_contexts_say_what_was_answered_before(run) -> None:
    """Items that differ in their histories alone are scored and embedded differently."""
    items = run.items
    for q, differ in ((0, False), (1, True), (2, True)):
        own = np.flatnonzero((items.cell == 0) & (items.question == q))
        assert (len(own) > 1) == differ
        for array in (run.table.log_likelihood, run.vectors["context"]):
            assert len(np.unique(array[own].reshape(len(own), -1), axis=0)) == len(own)
    assert not any("earlier" in text for text in run.exemplars["context"])


def test_items_are_read_as_they_were_written(run, tmp_path) -> None:
    write_items(tmp_path, run.items, run.is_test, run.design_effect)
    frame = pd.read_parquet(tmp_path / "items.parquet")
    assert history_of(frame) == run.items.history
    plain = merge_histories(run.items)
    write_items(tmp_path, plain, run.by_cell_is_test, 1.0)
    frame = pd.read_parquet(tmp_path / "items.parquet")
    # Without histories the file is what it was before there were any.
    assert list(frame)[-1] == "count_1"
    assert history_of(frame) == ()


def test_cells_are_judged_as_cells_and_people_one_by_one(run) -> None:
    cells = pd.read_csv(run.path / "cells.csv")
    assert not cells.duplicated(["cell_id", "question", "option"]).any()
    np.testing.assert_allclose(cells.groupby(["cell_id", "question"])["share"].sum(), 1, atol=1e-6)
    shares = pd.read_csv(run.path / "shares.csv")
    assert len(shares) == len(cells)
    assert shares.groupby(["age", "sex"])["held_out"].first().sum() == 4
    metrics = json.loads((run.path / "metrics.json").read_text("utf-8"))
    methods = metrics["unseen_cells"]
    for measures in methods.values():
        found = measures["log_score_individual"]
        assert found["low"] <= found["mean"] <= found["high"] < 0
    # All people of a cell are alike to those who are told of cells; the others are told more.
    for name in ("pooled_marginal", "uniform"):
        for part in ("mean", "low", "high"):
            found = methods[name]["log_score_individual"][part]
            assert found == pytest.approx(methods[name]["log_score"][part], abs=1e-9)
    for name in ("mop", "zero_shot", "demographic_persona", "few_shot"):
        assert methods[name]["log_score_individual"] != methods[name]["log_score"]
    difference = metrics["differences"]["uniform"]["log_score_individual"]["mean"]
    own = [methods[name]["log_score_individual"]["mean"] for name in ("mop", "uniform")]
    assert difference == pytest.approx(own[0] - own[1])
    unseen = metrics["unseen_question"]
    assert unseen["question"] == "mood"
    assert unseen["uniform"]["log_score_individual"]["mean"] == pytest.approx(np.log(0.5))


def test_the_individual_score_is_that_of_a_loop(run) -> None:
    from mop_jax.inference import load_posterior
    from mop_jax.pipeline.surveys.evaluation import predict_items

    posterior = load_posterior(run.path / "posterior.safetensors")
    probs = predict_items(run, posterior, run.is_test).probs.astype(float).mean(0)
    items, total = run.items.take(run.is_test), 0.0
    for n in range(len(items)):
        total += sum(c * np.log(p) for c, p in zip(items.counts[n], probs[n], strict=True) if c)
    metrics = json.loads((run.path / "metrics.json").read_text("utf-8"))
    found = metrics["unseen_cells"]["mop"]["log_score_individual"]["mean"]
    assert found == pytest.approx(total / items.counts.sum(), rel=1e-5)


def test_a_population_has_no_earlier_answers(finished, caplog) -> None:
    caplog.set_level(logging.WARNING, logger="mop_jax")
    _, table = pipeline.poststratify(finished, by=["age"])
    np.testing.assert_allclose(table.groupby(["question", "age"])["share"].sum(), 1, atol=1e-6)
    assert set(table["question"]) == set(OPTIONS)
    assert "these shares are of people of whom none is known" in caplog.text
    _, asked = pipeline.ask(finished, "Is it funny?", ["yes", "no"])
    assert asked["share"].sum() == pytest.approx(1)
    # A cell is as large as its people, however many histories they have.
    weight = table[table["question"] == "film"].groupby("age")["population"].first()
    assert weight[list(AGES)].to_numpy() == pytest.approx([0.5, 0.5], abs=0.05)


def test_the_terminal_shows_the_score_of_individuals(mop, finished, monkeypatch) -> None:
    for name in ("mrp", "logistic_regression"):
        monkeypatch.delitem(SURVEY_METHODS, name)
    ended = mop("run", finished)
    assert ended.status == 0
    assert "individuals" in ended.out
