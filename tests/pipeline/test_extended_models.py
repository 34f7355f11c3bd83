"""A run with all that a model may have besides: from the configuration to the simulated rows."""

from __future__ import annotations

import shutil

import arviz
import numpy as np
import pytest
from pydantic import ValidationError

from mop_jax import pipeline
from mop_jax.inference import gate_at, load_posterior
from mop_jax.pipeline.pipeline import Run
from mop_jax.pipeline.run_folder import RunFolder
from mop_jax.pipeline.steps import with_needs
from mop_jax.pipeline.workspace import Workspace
from tests.run_fixtures import read_json, read_lines

pytest_plugins = ("tests.run_fixtures",)

EXTENDED = {
    "model": {"gate": "hierarchical", "temperature": "contextual", "sparse_personas": True},
    "candidates": {"bare": "zero_shot"},
    "simulation": {"num_samples": 60},
}


@pytest.fixture(scope="module")
def extended(finished_run, materials, tmp_path_factory):
    """A run of the extended model, made of a finished one."""
    path = tmp_path_factory.mktemp("extended") / "run"
    shutil.copytree(finished_run, path)
    config = materials.config(**EXTENDED)
    run = Run(RunFolder(path, config, update=True))
    reasons = {step.name: run.reasons(step) for step in with_needs("figures")}
    assert reasons["personas"] is None
    assert "candidates.bare is 'zero_shot' where it was 'none'" in reasons["score"]
    return pipeline.run(config, path, update=True)


def test_bare_components_are_scored_and_the_others_keep_their_scores(extended, finished_run):
    space = Workspace(RunFolder(extended, pipeline.read_config(extended)))
    number = len(space.components.personas)
    assert space.components.speakers[number:] == [None]
    assert space.components.shown_exemplars[-1] is None
    posterior = load_posterior(extended / "posterior.safetensors")
    assert posterior.data.num_personas == number + 1
    assert posterior.data.num_exemplars == len(space.components.exemplars) + 1
    assert {"gate.no_exemplar", "gate.no_persona", "gate.exemplar_scale"} < set(posterior.samples)
    # The zero-shot component says what the zero-shot predictor says.
    records = space.sides["test"].records
    found = space.score_prompts(records, space.components.bare_prompts(records, space.prompts), "")
    metrics = read_json(extended / "metrics.json")
    mean = np.average(found[:, number, space.grid.unit_index], weights=records.weights)
    np.testing.assert_allclose(metrics["held_out"]["zero_shot"]["mean"], mean, rtol=1e-6)
    before = read_json(finished_run / "metrics.json")["held_out"]
    assert before["zero_shot"]["mean"] == metrics["held_out"]["zero_shot"]["mean"]


def test_the_share_that_needs_no_exemplar_is_reported(extended):
    space = Workspace(RunFolder(extended, pipeline.read_config(extended)))
    posterior = load_posterior(extended / "posterior.safetensors")
    side = space.sides["test"]
    gate = gate_at(posterior, side.context_embeddings)
    weights = side.records.weights / side.records.weights.sum()
    shares = [
        weights @ np.exp(np.asarray(gate.mixing_distribution(s).mixing_log_probs))[:, :, -1].sum(1)
        for s in range(posterior.num_draws)
    ]
    found = read_json(extended / "metrics.json")["bare"]
    np.testing.assert_allclose(found["no_exemplar"]["mean"], np.mean(shares), rtol=1e-4)
    assert found["no_exemplar_and_no_persona"]["mean"] < found["no_exemplar"]["mean"]


def test_simulated_rows_say_what_was_shown(extended):
    space = Workspace(RunFolder(extended, pipeline.read_config(extended)))
    rows = read_lines(extended / "simulated.jsonl")
    number, exemplars = len(space.components.personas), len(space.components.exemplars)
    for row in rows:
        bare = row["exemplar"] == exemplars
        assert (row["exemplar_record"] is None) == bare
        assert (row["persona_text"] is None) == (row["persona"] == number)
        assert bare or row["persona"] < number
    assert 0 < sum(row["exemplar"] == exemplars for row in rows) < len(rows)
    # The random model's temperatures press against the grid's end, but not all do.
    assert len({row["temperature"] for row in rows}) > 5


def test_the_posterior_is_exported_with_the_places_that_stand_for_none(extended):
    exported = arviz.from_netcdf(extended / "posterior.nc")
    assert exported.constant_data["exemplar"].values[-1] == "none"
    assert exported.posterior["temperature_effect.exemplar"].dims[-1] == "exemplar"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"model": {"gate": "hierarchical"}, "inference": {"guide": "AutoDelta"}},
            "model.gate is hierarchical, which learns the scale of a prior",
        ),
        (
            {"candidates": {"bare": "persona_only"}, "exemplars": {"num_exemplars": 0}},
            "candidates.bare adds components without an exemplar",
        ),
        (
            {"candidates": {"bare": "zero_shot", "method": "renormalised"}},
            "nearly all would be bare",
        ),
        ({"model": {"temperature": "hot"}}, "temperature"),
    ],
)
def test_what_does_not_go_together_is_refused(materials, changes, said):
    with pytest.raises(ValidationError, match=said):
        materials.config(**changes)
