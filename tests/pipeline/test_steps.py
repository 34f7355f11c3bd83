"""Steps: each done once, in any order, again only where something concerns it; other settings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from pkgutil import resolve_name

import arviz
import numpy as np
import pandas as pd
import pytest
from scipy.special import logsumexp

from mop_jax import pipeline
from mop_jax.encoder.encoder import SentenceEncoder
from mop_jax.lm.flax_lm import FlaxLM
from mop_jax.pipeline import simulation
from mop_jax.pipeline.steps import BY_NAME
from tests.run_fixtures import contents, read_json, read_lines, undo, unfinished_files

pytest_plugins = ("tests.run_fixtures",)


@pytest.fixture
def performed(monkeypatch) -> list[str]:
    """Names of the steps whose work is done from now on."""
    names: list[str] = []

    def counted(name, work):
        def wrapper(space):
            names.append(name)
            work(space)

        return wrapper

    for step in pipeline.STEPS:
        module, _, function = step.work.partition(":")
        monkeypatch.setattr(f"{module}.{function}", counted(step.name, resolve_name(step.work)))
    return names


@pytest.fixture
def no_models(monkeypatch):
    """Loading a language model or an encoder fails the test."""

    def refuse(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(FlaxLM, "from_pretrained", refuse)
    monkeypatch.setattr(SentenceEncoder, "from_pretrained", refuse)


def test_a_second_run_loads_no_model_and_changes_nothing(finished_run, performed, no_models):
    before = contents(finished_run, hidden=True)
    exact = (finished_run / "manifest.json").read_bytes()
    assert pipeline.run(finished_run) == finished_run
    assert performed == []
    assert contents(finished_run, hidden=True) == before
    assert (finished_run / "manifest.json").read_bytes() == exact


def test_steps_one_after_the_other_equal_the_whole_run(
    finished_run, materials, performed, tmp_path
):
    folder, config = tmp_path / "run", materials.config()
    for name in ("personas", "score", "fit", "evaluate", "simulate", "likeness"):
        step = getattr(pipeline, name)
        assert step(config, folder) == folder
        assert performed == [name]
        step(folder)  # done already
        assert performed == [name]
        performed.clear()
    pipeline.run(config, folder)
    assert performed == ["figures"]
    assert contents(folder) == contents(finished_run)


def test_a_step_first_does_those_that_it_needs(copy_of_run, finished_run, performed):
    undo(copy_of_run, "fit", "evaluate", "simulate", "likeness", "figures")
    pipeline.simulate(copy_of_run)
    assert performed == ["fit", "simulate"]
    names = ("posterior.safetensors", "posterior.nc", "simulated.jsonl")
    for name in names:
        assert (copy_of_run / name).read_bytes() == (finished_run / name).read_bytes()


def test_damaged_and_missing_artefacts_are_made_again(copy_of_run, finished_run, performed):
    (copy_of_run / "figures" / "elbo.png").unlink()
    with open(copy_of_run / "simulated.jsonl", "ab") as handle:
        handle.write(b"x")
    pipeline.run(copy_of_run)
    assert performed == ["simulate", "figures"]
    assert contents(copy_of_run) == contents(finished_run) | {
        "manifest.json": contents(copy_of_run)["manifest.json"]
    }


def test_update_redoes_only_what_the_change_concerns(copy_of_run, materials, performed):
    before = {p: p.stat().st_mtime_ns for p in copy_of_run.rglob("*") if p.is_file()}
    old = read_lines(copy_of_run / "simulated.jsonl")
    config = materials.config(simulation={"num_samples": 23})
    pipeline.run(config, copy_of_run, update=True)
    assert performed == ["simulate", "likeness", "figures"]
    new = read_lines(copy_of_run / "simulated.jsonl")
    # A sample's text depends on the seed and its number alone.
    assert [row["text"] for row in new[:20]] == [row["text"] for row in old]
    assert len(new) == 23
    touched = {p.relative_to(copy_of_run).as_posix() for p, t in before.items()
               if p.stat().st_mtime_ns != t}  # fmt: skip
    figures = set(BY_NAME["figures"].outputs)
    assert touched - {".lock"} == {"simulated.jsonl", "likeness.json", "manifest.json", *figures}
    stored = read_json(copy_of_run / "manifest.json")["configuration"]
    assert stored["simulation"]["num_samples"] == 23


def test_an_interrupted_simulation_of_another_configuration_is_not_taken_over(
    copy_of_run, materials, monkeypatch
):
    """Its journal holds responses that the new configuration would not have given."""
    undo(copy_of_run, "simulate", "likeness", "figures")
    rows = iter(range(1000))
    make_row = simulation._simulated_row

    def interrupted(*args):
        if next(rows) == 17:  # the first batch of 16 is in the journal
            raise KeyboardInterrupt
        return make_row(*args)

    with monkeypatch.context() as patch:
        patch.setattr(simulation, "_simulated_row", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pipeline.simulate(copy_of_run)
    (journal,) = copy_of_run.glob(".simulated*")
    lines = journal.read_text("utf-8").split("\n")
    assert len(lines) > 16
    assert max(len(json.loads(line)["text"].split()) for line in lines[1:-1]) > 1
    config = materials.config(simulation={"max_new_tokens": 1})
    pipeline.simulate(config, copy_of_run, update=True)
    for row in read_lines(copy_of_run / "simulated.jsonl"):
        assert len(row["text"].split()) <= 1
    assert not unfinished_files(copy_of_run)


def test_update_may_bring_another_population(copy_of_run, materials, performed):
    pipeline.personas(
        materials.config(population={"query": "film != 'Jaws'"}), copy_of_run, update=True
    )
    assert performed == ["personas"]
    frame = pd.read_parquet(copy_of_run / "records.parquet")
    assert "Jaws" not in set(frame["group"])


# Other settings


def test_full_tables_the_plain_form_and_the_users_own_personas(materials, tmp_path):
    """Everything scored, so that the uniform mixture follows from the artefacts alone."""
    personas = tmp_path / "mine.txt"
    personas.write_text("You love every film.\nYou are hard to please.\n", encoding="utf-8")
    config = materials.config(
        split={"by": "stratified"},
        personas={"path": str(personas)},
        prompt={"form": "plain", "end": "\n"},
        candidates={"method": "full"},
        inference={"guide": "AutoDelta"},  # which is compiled in a moment
        evaluation={"num_candidates": 8},
    )
    folder = pipeline.evaluate(config, tmp_path / "run")
    stored = read_json(folder / "personas.json")
    assert [p["text"] for p in stored] == ["You love every film.", "You are hard to please."]
    assert {p["source"] for p in stored} == {"user"}
    train = pd.read_parquet(folder / "likelihoods" / "train.parquet")
    pool = pd.read_parquet(folder / "exemplars.parquet")
    own = train["record"].to_numpy() == pool["id"].to_numpy()[train["exemplar"]]
    assert not own.any()
    assert len(train) == 2 * (24 * 4 - 4)  # all pairs but each exemplar's own record
    table = pd.read_parquet(folder / "likelihoods" / "held_out.parquet")
    scores = table["log_likelihood_1.0000"].groupby(table["record"])
    expected = scores.apply(lambda terms: logsumexp(terms) - np.log(len(terms)))
    frame = pd.read_parquet(folder / "held_out.parquet").set_index("record")
    assert (scores.size() == 8).all()
    np.testing.assert_allclose(
        frame["uniform_mixture"], expected.loc[frame.index], atol=1e-4
    )  # fmt: skip
    check = read_json(folder / "metrics.json")["candidate_check"]
    assert (check["candidates"], check["compared_candidates"]) == (8, 4)


def test_renormalised_candidates_and_a_refreshed_fit(materials, copy_of_run, performed):
    config = materials.config(
        candidates={"method": "renormalised", "refresh": 1},
        inference={"guide": "AutoDelta", "batch_size": 12, "num_steps": 40},
    )
    pipeline.evaluate(config, copy_of_run, update=True)
    assert performed == ["score", "fit", "evaluate"]
    stored = arviz.from_netcdf(copy_of_run / "posterior.nc").constant_data
    weights = stored["log_weight"].to_numpy()
    assert set(np.unique(weights)) <= {0.0, -np.inf}
    # The fit is to the refreshed candidates, which are scored and on disk.
    table = pd.read_parquet(copy_of_run / "likelihoods" / "train_refreshed.parquet")
    scored = set(zip(table["record"], table["persona"], table["exemplar"], strict=True))
    used = {
        (record, int(k), int(j))
        for i, record in enumerate(stored["record"].to_numpy())
        for k, j, w in zip(
            stored["persona_index"][i], stored["exemplar_index"][i], weights[i], strict=True
        )
        if w > -np.inf
    }
    assert used == scored
    held_out = read_json(copy_of_run / "metrics.json")["held_out"]
    assert all(np.isfinite(value["mean"]) for value in held_out.values())
    performed.clear()
    pipeline.evaluate(config, copy_of_run)
    assert performed == []


def test_a_copied_run_folder_goes_on_elsewhere(finished_run, tmp_path, performed, no_models):
    moved = Path(shutil.copytree(finished_run, tmp_path / "elsewhere" / "run"))
    pipeline.run(moved)
    assert performed == []
