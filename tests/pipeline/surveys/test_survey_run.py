"""A survey's run in miniature: from a table of respondents to shares of a population."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from mop_jax import pipeline
from mop_jax.choices import ChoiceComponents
from mop_jax.components.personas import Persona
from mop_jax.config import PersonasConfig, SurveyConfig
from mop_jax.errors import DataError
from mop_jax.evaluation.surveys import SURVEY_METHODS
from mop_jax.pipeline.run_folder import RunFolder
from mop_jax.pipeline.running import Run
from mop_jax.pipeline.steps import SURVEY_STEPS
from mop_jax.pipeline.surveys import preparation
from mop_jax.pipeline.surveys.artefacts import SurveyRun
from mop_jax.pipeline.surveys.fitting import model_arguments
from tests.run_fixtures import contents, write_encoder, write_language_model, write_yaml

pytest_plugins = ("tests.run_fixtures",)
AGES, SEXES = ("young", "middle", "old"), ("woman", "man")
CODEBOOK = """
questions:
  - id: film
    text: Which film is the best?
    options: [Alien, Vertigo, Ran]
  - id: mood
    text: How was it?
    ordered: true
    options: [warm, clever, dull, cold]
    missing: [no answer]
"""


def respondents(number: int = 90) -> pd.DataFrame:
    """People of six cells; the old like Vertigo, and say so."""
    rng = np.random.default_rng(3)
    age, sex = rng.choice(AGES, number), rng.choice(SEXES, number)
    film = np.where((age == "old") & (rng.random(number) < 0.7), "Vertigo", "")
    film = np.where(film == "", rng.choice(["Alien", "Vertigo", "Ran"], number), film)
    mood = rng.choice(["warm", "clever", "dull", "cold", "no answer"], number)
    weight = rng.uniform(0.5, 2, number).round(3)
    return pd.DataFrame(
        {"id": range(number), "age": age, "sex": sex, "film": film, "mood": mood, "w": weight}
    )


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """A folder with the answers, the codebook, the models and the configuration."""
    folder = tmp_path_factory.mktemp("survey")
    respondents().to_csv(folder / "answers.csv", index=False)
    (folder / "codebook.yaml").write_text(CODEBOOK, "utf-8")
    write_language_model(folder / "lm")
    write_encoder(folder / "encoder")
    write_yaml(
        folder / "survey.yaml",
        {
            "survey": {
                "path": "answers.csv",
                "questions": "codebook.yaml",
                "covariates": ["age", "sex"],
                "id": "id",
                "weight": "w",
                "template": "a {{ age }} {{ sex }}",
                "groups": ["age", "age:sex"],
                "hold_out_cells": 0.34,
                "hold_out_question": "mood",
                "num_orders": 2,
            },
            "language_model": {"path": "lm"},
            "encoder": {"path": "encoder"},
            "personas": {"texts": ["You are warm.", "You are cold."]},
            "exemplars": {"num_exemplars": 4},
            "candidates": {"num_candidates": 2},
            "inference": {"num_steps": 60, "num_draws": 40},
        },
    )
    return folder


@pytest.fixture(scope="module")
def finished(sources) -> Path:
    """The finished run; MRP, which takes long to compile, has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(SURVEY_METHODS, "mrp")
        return pipeline.run(sources / "survey.yaml", sources / "run")


def test_a_run_writes_what_its_steps_name(finished) -> None:
    for step in SURVEY_STEPS:
        for name in step.outputs:
            assert (finished / name).exists(), name
    assert (finished / "figures" / "shares_mood.png").exists()
    metrics = json.loads((finished / "metrics.json").read_text("utf-8"))
    wanted = {"mop", "uniform", "pooled_marginal", "logistic_regression", "zero_shot",
              "demographic_persona", "few_shot", "verbalised"}  # fmt: skip
    assert set(metrics["unseen_cells"]) == wanted
    assert metrics["unseen_question"]["question"] == "mood"
    for measures in metrics["unseen_cells"].values():
        assert 0 <= measures["total_variation"]["mean"] <= 1
        assert measures["log_score"]["mean"] < 0
    assert 0 < metrics["option_mass"] < 1


def test_shares_of_every_item_sum_to_one_and_held_out_cells_are_whole(finished) -> None:
    table = pd.read_csv(finished / "shares.csv")
    sums = table.groupby(["age", "sex", "question"])["share"].sum()
    np.testing.assert_allclose(sums, 1, atol=1e-6)
    assert ((table["low"] <= table["share"]) & (table["share"] <= table["high"])).mean() > 0.95
    assert table.groupby(["age", "sex"])["held_out"].nunique().eq(1).all()
    assert 0 < table["held_out"].mean() < 1
    cells = pd.read_csv(finished / "cells.csv")
    assert list(cells) == ["cell_id", "question", "option", "share", "n"]


def test_people_are_counted_or_shown_and_never_both(finished) -> None:
    items = pd.read_parquet(finished / "items.parquet")
    frame = respondents()
    answered = (frame["film"] != "").sum() + (frame["mood"] != "no answer").sum()
    exemplars = pd.read_parquet(finished / "exemplars.parquet")
    assert items["people"].sum() == answered - len(exemplars)
    assert (exemplars["question"] == 0).all(), "the held-out question has no exemplars"
    held_out = set(items.loc[items["held_out"], "cell"])
    assert not held_out & set(exemplars["cell"])


def test_a_second_run_finds_all_and_one_that_was_stopped_ends_alike(
    sources, finished, tmp_path, monkeypatch
) -> None:
    done = []
    monkeypatch.delitem(SURVEY_METHODS, "mrp")
    pipeline.run(sources / "survey.yaml", finished, on_step=lambda *step: done.append(step))
    assert {name for name, _ in done} == {step.name for step in SURVEY_STEPS}
    other = pipeline.fit(sources / "survey.yaml", tmp_path / "run")
    assert not (other / "metrics.json").exists()
    pipeline.run(other)
    one, two = contents(finished), contents(other)
    differing = {
        name for name in one.keys() & two.keys()
        if one[name] != two[name] and name != "manifest.json"
    }  # fmt: skip
    assert not {name for name in differing if not name.endswith((".png", ".nc"))}


def test_poststratification_by_the_surveys_own_cells_and_by_a_frame(finished, tmp_path) -> None:
    path, table = pipeline.poststratify(finished, by=["age"], output=tmp_path / "out.csv")
    assert path.exists()
    assert set(table["age"]) == {"all", *AGES}
    sums = table.groupby(["question", "age"])["share"].sum()
    np.testing.assert_allclose(sums, 1, atol=1e-6)
    frame = pd.DataFrame(
        [(age, sex, 1.0 if age == "old" else 0.0) for age in AGES for sex in SEXES],
        columns=["age", "sex", "count"],
    )
    frame.to_csv(tmp_path / "frame.csv", index=False)
    _, old = pipeline.poststratify(finished, frame=tmp_path / "frame.csv", by=["age"])
    whole = old[old["age"] == "all"].reset_index(drop=True)
    part = old[old["age"] == "old"].reset_index(drop=True)
    np.testing.assert_allclose(whole["share"], part["share"], atol=1e-9)
    margins = pd.DataFrame({"variable": ["age"] * 3, "level": AGES, "share": [0.2, 0.3, 0.5]})
    margins.to_csv(tmp_path / "margins.csv", index=False)
    _, raked = pipeline.poststratify(finished, margins=tmp_path / "margins.csv", by=["age"])
    found = raked.groupby("age")["population"].first()
    np.testing.assert_allclose(found[list(AGES)], [0.2, 0.3, 0.5], atol=1e-9)


def test_a_new_question_and_a_cell_that_was_never_seen(finished, tmp_path) -> None:
    frame = pd.DataFrame({"age": ["ancient", "old"], "sex": ["man", "man"], "count": [3, 1]})
    frame.to_csv(tmp_path / "frame.csv", index=False)
    path, table = pipeline.ask(
        finished, "Is it funny?", ["yes", "no"], frame=tmp_path / "frame.csv", by=["age"]
    )
    assert path.name == "asked.csv"
    assert set(table["age"]) == {"all", "ancient", "old"}
    assert set(table["question"]) == {"asked"}
    # Nothing is known of a new question, whatever two short questions taught.
    assert (table["high"] - table["low"]).min() > 0.2


def test_commands_print_tables(mop, finished, monkeypatch) -> None:
    monkeypatch.delitem(SURVEY_METHODS, "mrp")
    ended = mop("run", finished)
    assert ended.status == 0
    assert "Held-out cells" in ended.out
    assert "Held-out question mood" in ended.out
    ended = mop("ask", finished, "Is it funny?", "--options", "yes|no, never")
    assert "no, never" in ended.out
    ended = mop("poststratify", finished, "--by", "height")
    assert ended.sentence == "There is no covariate 'height' to report by; there are age, sex."
    ended = mop("simulate", finished)
    assert "has no step 'simulate'" in ended.sentence


def test_weights_widen_what_is_said_of_shares(finished) -> None:
    about = json.loads((finished / "survey.json").read_text("utf-8"))
    weight = respondents()["w"].to_numpy()
    kish = 1 + np.var(weight) / np.mean(weight) ** 2
    assert about["design_effect"] == pytest.approx(kish, rel=0.2)
    run = SurveyRun(finished, pipeline.read_config(finished))
    data = run.data(np.ones(len(run.items), bool))
    np.testing.assert_allclose(
        data.choices.counts.sum(), run.items.counts.sum() / about["design_effect"], rtol=1e-6
    )
    assert json.loads((finished / "metrics.json").read_text("utf-8"))["design_effect"] > 1


def test_what_the_model_prefers_of_words_alone_is_taken_off(finished, tmp_path) -> None:
    config = pipeline.read_config(finished)
    assert config.survey is not None
    survey = config.survey.model_copy(update={"calibration": "content_free"})
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    changed = config.model_copy(update={"survey": survey})
    pipeline.score(changed, folder, update=True)
    run = SurveyRun(folder, changed)
    choices = run.data(np.ones(len(run.items), bool)).choices
    assert choices is not None
    # Among the log-likelihoods, which a temperature divides, and not beside them.
    mask = run.items.mask
    assert not np.asarray(choices.option_offset)[mask].any()
    offset = np.asarray(choices.option_log_likelihood) - run.table.log_likelihood
    np.testing.assert_allclose(offset, np.broadcast_to(offset[:, :1], offset.shape), atol=1e-4)
    # Probabilities of the options when nobody in particular is asked.
    np.testing.assert_allclose(np.exp(-offset[:, 0]).sum(1, where=mask), 1, atol=1e-3)
    assert np.ptp(offset[run.items.question == 1, 0], axis=0).max() < 1e-4
    assert model_arguments(changed)["option_bias"] is False
    path, table = pipeline.ask(changed, "Is it funny?", ["yes", "no"], folder, update=True)
    assert path.parent == folder
    np.testing.assert_allclose(table["share"].sum(), 1, atol=1e-6)


def test_a_run_from_before_there_were_histories_is_finished_all_the_same(
    finished, tmp_path
) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    for field in ("history", "history_template"):
        del manifest["configuration"]["survey"][field]
        for entry in manifest["steps"].values():
            del entry["inputs"]["configuration"][f"survey.{field}"]
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    config = pipeline.read_config(finished)
    run = Run(RunFolder(folder, config))
    assert not [step.name for step in SURVEY_STEPS if run.reasons(step) is not None]
    assert "history" not in pd.read_parquet(folder / "items.parquet")
    # What is asked for now is another thing than what was done then.
    assert config.survey is not None
    survey = config.survey.model_copy(update={"history": 1})
    changed = RunFolder(folder, config.model_copy(update={"survey": survey}), update=True)
    reasons = Run(changed).reasons(SURVEY_STEPS[0])
    assert reasons == ["survey.history is 1 where it was 0"]


def test_a_run_from_before_preferences_had_a_temperature_is_what_it_was(finished, tmp_path) -> None:
    """Until another is asked for: its scores are kept then."""
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    del manifest["configuration"]["survey"]["preference"]
    del manifest["steps"]["fit"]["inputs"]["configuration"]["survey.preference"]
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    config = pipeline.read_config(finished)
    run = Run(RunFolder(folder, config, update=True))
    reasons = {step.name: run.reasons(step) for step in SURVEY_STEPS}
    assert reasons["personas"] is None
    assert reasons["score"] is None
    assert reasons["fit"] == ["survey.preference is True where it was False"]
    own = pipeline.read_config(folder)
    assert config.survey is not None
    assert own.survey == config.survey.model_copy(update={"preference": False})
    as_it_was = Run(RunFolder(folder, own))
    assert not [step.name for step in SURVEY_STEPS if as_it_was.reasons(step) is not None]


def test_an_opinion_of_a_question_hangs_on_no_frame(finished, tmp_path, monkeypatch) -> None:
    """The survey's cells say what the model prefers whoever answers, one cell asked or all."""
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    found: list[np.ndarray] = []
    real = ChoiceComponents.data

    def spy(self, *arguments, preferences, **options):
        found.append(preferences)
        return real(self, *arguments, preferences=preferences, **options)

    monkeypatch.setattr(ChoiceComponents, "data", spy)
    cells = pd.DataFrame({"age": ["old", "young"], "sex": ["man", "woman"], "share": [0.5, 0.5]})
    for number in (1, 2):
        frame = tmp_path / f"{number}.csv"
        cells.head(number).assign(share=1 / number).to_csv(frame, index=False)
        for call in (
            lambda frame=frame: pipeline.ask(folder, "Is it funny?", ["yes", "no"], frame=frame),
            lambda frame=frame: pipeline.poststratify(folder, frame=frame),
        ):
            call()
    asked, known = found[0], found[1]
    np.testing.assert_array_equal(found[2], asked)
    np.testing.assert_array_equal(found[3], known)
    assert abs(asked[2]).max() > 0.01
    run = SurveyRun(folder, pipeline.read_config(folder))
    np.testing.assert_array_equal(known, run.preferences)


def test_every_field_of_the_section_matters_to_a_step() -> None:
    named = {
        entry.partition(".")[2]
        for step in SURVEY_STEPS
        for entry in step.sections
        if entry.startswith("survey.")
    }
    assert named == set(SurveyConfig.model_fields)


def test_what_the_model_is_told_leaves_scores_as_they_are(finished, tmp_path) -> None:
    config = pipeline.read_config(finished)
    assert config.survey is not None
    survey = config.survey.model_copy(update={"groups": ["sex"], "option_effects": True})
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    run = Run(RunFolder(folder, config.model_copy(update={"survey": survey}), update=True))
    due = {step.name for step in SURVEY_STEPS if run.reasons(step) is not None}
    assert "personas" not in due
    assert "score" not in due
    assert "fit" in due


def test_few_items_make_as_many_personas(finished, caplog, tmp_path) -> None:
    """A small survey runs with the defaults of large ones; what is done less is said."""
    config = pipeline.read_config(finished)
    assert config.survey is not None
    settings = config.model_copy(
        update={
            "personas": PersonasConfig(num_personas=500),
            "survey": config.survey.model_copy(update={"hold_out_question": None}),
        }
    )
    run = SurveyRun(finished, config)
    items = run.items.take(~run.is_test)
    made: list[int] = []

    def synthesise(records, embeddings, language_model, number, **options):
        made.append(number)
        return [Persona(f"Persona {k}.") for k in range(number)], None

    space = SimpleNamespace(
        config=settings,
        encoder=SimpleNamespace(encode=lambda texts: np.zeros((len(texts), 2))),
        language_model=None,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "synthesise_personas", synthesise)
        personas = preparation._personas(space, items, run.wording)
    assert made == [len(personas)]
    assert 1 < len(personas) <= len(items)
    assert f"500 personas were asked for; {len(personas)} are written" in caplog.text


def test_a_run_of_free_texts_has_no_shares() -> None:
    with pytest.raises(DataError, match="free texts"):
        pipeline.ask("demo", "?", ["a", "b"])


def test_refusals_before_anything_is_computed(sources, tmp_path) -> None:
    import yaml

    settings = yaml.safe_load((sources / "survey.yaml").read_text("utf-8"))
    for folder in ("lm", "encoder"):
        settings["language_model" if folder == "lm" else "encoder"]["path"] = str(sources / folder)
    settings["survey"] |= {"path": str(sources / "answers.csv"),
                           "questions": str(sources / "codebook.yaml")}  # fmt: skip

    def refused(**changes) -> str:
        changed = {**settings, "survey": {**settings["survey"], **changes}}
        with pytest.raises(DataError) as error:
            pipeline.personas(
                write_yaml(tmp_path / "s.yaml", changed), tmp_path / "run", update=True
            )
        return str(error.value)

    assert "'wt'" in refused(weight="wt")
    assert "hold_out_question" in refused(hold_out_question="movie")
    assert "'height'" in refused(covariates=["age", "height"])
    assert "leaves none on one side" in refused(hold_out_cells=0.01)
    frame = respondents()
    frame.loc[4, "film"] = "Aliens"
    frame.to_csv(tmp_path / "bad.csv", index=False)
    message = refused(path=str(tmp_path / "bad.csv"))
    assert "'Aliens' is no option of question film; the nearest is 'Alien'" in message
    assert "Row 5, column 'film'" in message
