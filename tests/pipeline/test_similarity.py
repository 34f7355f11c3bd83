"""A run whose gate knows similarity: its fit is new, and everything after asks the same gate."""

from __future__ import annotations

import json

import arviz
import numpy as np
import pytest

from mop_jax import pipeline
from mop_jax.inference import gate_at, load_posterior
from mop_jax.pipeline import read_config
from mop_jax.pipeline.contexts import read_contexts
from mop_jax.pipeline.pipeline import Run
from mop_jax.pipeline.run_folder import RunFolder
from mop_jax.pipeline.steps import with_needs
from mop_jax.pipeline.workspace import Workspace
from tests.run_fixtures import contents, read_json, read_lines

pytest_plugins = ("tests.run_fixtures",)


def test_a_run_from_before_similarity_stays_done(copy_of_run):
    manifest = read_json(copy_of_run / "manifest.json")
    sections = [manifest["configuration"]["model"]]
    steps = manifest["steps"].values()
    sections += [
        entry["inputs"]["configuration"]["model"]
        for entry in steps
        if "model" in entry["inputs"]["configuration"]
    ]
    assert len(sections) > 3
    for section in sections:
        del section["similarity"], section["similarity_prior_scale"]
    (copy_of_run / "manifest.json").write_text(json.dumps(manifest))
    run = Run(RunFolder(copy_of_run, read_config(copy_of_run)))
    assert [run.reasons(step) for step in with_needs("figures")] == [None] * 7


def test_the_fit_is_new_and_the_scores_are_not(copy_of_run, materials):
    """Simulation, too: every path has the probability that the gate gives it, labels and all."""
    config = materials.config(model={"similarity": True, "similarity_prior_scale": 3.0})
    run = Run(RunFolder(copy_of_run, config, update=True))
    reasons = {step.name: run.reasons(step) for step in with_needs("simulate")}
    assert reasons["personas"] is reasons["score"] is None
    assert "model.similarity is True where it was False" in reasons["fit"]
    before = contents(copy_of_run)
    new = copy_of_run.parent / "new.csv"
    new.write_text("film,mood\nSolaris,fresh\nBrazil,rotten\n")
    pipeline.simulate(config, copy_of_run, update=True)
    path = pipeline.simulate(copy_of_run, contexts=new, num_samples=6)
    pipeline.evaluate(copy_of_run)
    after = contents(copy_of_run)
    for name in ("personas.json", "embeddings.safetensors", "likelihoods/train.parquet"):
        assert after[name] == before[name]

    posterior = load_posterior(copy_of_run / "posterior.safetensors")
    # Films are kept apart, so a record's own is left out and there is no term for them.
    assert set(posterior.samples) & {f"gate.{n}" for n in ("same_label", "same_group")} == {
        "gate.same_label"
    }
    reported = read_json(copy_of_run / "metrics.json")["similarity"]
    assert set(reported) == {"context_similarity", "same_label"}
    for term, value in reported.items():
        draws = posterior.samples[f"gate.{term}"]
        assert value["mean"] == pytest.approx(draws.mean(), abs=1e-5)
        assert value["interval_94"][0] <= value["mean"] <= value["interval_94"][1]
    stored = arviz.from_netcdf(copy_of_run / "posterior.nc")
    assert {"gate.context_similarity", "gate.same_label"} <= set(stored.posterior)

    space = Workspace(RunFolder(copy_of_run, read_config(copy_of_run)))
    pool, side = space.components.exemplars, space.sides["test"]
    np.testing.assert_array_equal(
        space.components.exemplar_context_embeddings,
        space.sides["train"].context_embeddings[
            [space.sides["train"].records.ids.index(i) for i in pool.ids]
        ],
    )
    fresh = read_contexts(str(new), config.population)
    assert fresh.labels == ["fresh", "rotten"]
    for file, records, embeddings in (
        (copy_of_run / "simulated.jsonl", side.records, side.context_embeddings),
        (path, fresh, space.encoder.encode(fresh.contexts)),
    ):
        codes = np.array([pool.labels.index(label) for label in records.labels])
        # Codes are numbered as the pool's labels first come up.
        codes = np.array([sorted(set(codes)).index(code) for code in codes])
        gate = gate_at(posterior, embeddings, labels=codes)
        omega = np.asarray(gate.exemplar_log_probs())
        for row in read_lines(file):
            s, k, j = row["draw"], row["persona"], row["exemplar"]
            i = row["sample"] % len(records)
            expected = float(gate.persona_log_probs[s, i, k]) + omega[s, i, k, j]
            assert row["component_log_prob"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("content", "labels", "groups"),
    [
        ("film,mood\nSolaris,fresh\nRan,rotten\n", ["fresh", "rotten"], ["Solaris", "Ran"]),
        ("title,mood\nSolaris,fresh\nRan,rotten\n", ["fresh", "rotten"], None),
        ("title,film,mood\nA,Ran,fresh\nB,,rotten\n", ["fresh", "rotten"], None),
    ],
)
def test_what_a_table_of_contexts_knows_is_read(materials, tmp_path, content, labels, groups):
    (tmp_path / "new.csv").write_text(content)
    film = "title" if "title" in content else "film"
    template = f"A {{{{ mood }}}} review of {{{{ {film} }}}}"
    changes = {"context": ["mood", film], "template": template}
    section = materials.config(population=changes).population
    found = read_contexts(str(tmp_path / "new.csv"), section)
    assert (found.labels, found.groups) == (labels, groups)
