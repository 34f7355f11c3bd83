"""Runs made by the first version: they open, and what has changed since is said and done again.

`tests/data/old_run` was made at c51bdce by the miniature run of `tests/run_fixtures.py`, from the
folder in which its inputs lay; its figures are left out.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from mop_jax import pipeline
from mop_jax.config import RunConfig
from mop_jax.errors import DataError, FaultError
from mop_jax.inference import gate_at, load_posterior
from mop_jax.pipeline import read_config
from mop_jax.pipeline.manifest import read_manifest
from mop_jax.pipeline.pipeline import Run
from mop_jax.pipeline.run_folder import RunFolder
from mop_jax.pipeline.steps import with_needs
from tests.run_fixtures import REPOSITORY, contents, read_json, records, write_yaml

pytest_plugins = ("tests.run_fixtures",)
OLD = REPOSITORY / "tests" / "data" / "old_run"
STEPS = ("personas", "score", "fit", "evaluate", "simulate")


@pytest.fixture
def old(tmp_path, monkeypatch) -> Path:
    """An old run where it was made, in `runs/miniature` of a project; its models are gone."""
    monkeypatch.chdir(tmp_path)
    records().to_csv(tmp_path / "reviews.csv", index=False)
    return Path(shutil.copytree(OLD, tmp_path / "runs" / "miniature"))


@pytest.fixture
def settings(old) -> dict:
    """The configuration that it was made with, as its file held it."""
    return yaml.safe_load(OLD.with_suffix(".yaml").read_text("utf-8"))


def due(folder: Path, config: RunConfig, **options) -> dict[str, list[str]]:
    """The steps that must be done, and why."""
    run = Run(RunFolder(folder, config, **options))
    found = {step.name: run.reasons(step) for step in with_needs("simulate")}
    found |= {"evaluate": run.reasons(with_needs("evaluate")[-1])}
    return {name: reasons for name, reasons in found.items() if reasons is not None}


def unchanged_steps() -> set[str]:
    """Steps that do what they did then, as do those that they need."""
    return {name for name in STEPS if all(step.version == 1 for step in with_needs(name))}


def test_an_old_run_opens(old):
    config = read_config(old)
    assert config.name == "miniature"
    reasons = due(old, config)
    assert unchanged_steps().isdisjoint(reasons), reasons
    for name in set(reasons) - unchanged_steps():
        assert reasons[name], f"{name} is done again without a word"


def test_an_old_run_opens_with_the_file_that_it_was_made_with(old, settings):
    config = pipeline.read_config(write_yaml(Path("c.yaml"), settings))
    reasons = due(old, config)
    for name, why in reasons.items():
        assert why, f"{name} is done again without a word"
    # Whatever is done again is so because a default or a step is another one now.
    assert not any("population" in clause for why in reasons.values() for clause in why)


def test_another_setting_than_then_is_another_configuration(old, settings):
    settings["exemplars"]["num_exemplars"] = 5
    with pytest.raises(DataError, match=r"num_exemplars is 4 there and 5 here"):
        RunFolder(old, RunConfig.model_validate(settings))


def test_a_default_that_has_changed_since_is_said_and_its_steps_are_done_again(old, settings):
    manifest = read_json(old / "manifest.json")
    stored = manifest["configuration"]["inference"]
    assert "learning_rate" not in settings["inference"]
    before = stored["learning_rate"] = 0.5
    rewrite(old, manifest, "fit")
    config = RunConfig.model_validate(settings)
    (reason,) = [r for r in due(old, config)["fit"] if "learning_rate" in r]
    now = config.inference.learning_rate
    assert reason == f"inference.learning_rate is {now} where it was {before}"


def rewrite(folder: Path, manifest: dict, changed: str) -> None:
    """A manifest as the first version would have written it with another setting."""
    from mop_jax.pipeline import manifest as module

    prints: dict[str, str] = {}
    for name, entry in manifest["steps"].items():
        sections = {s: manifest["configuration"][s] for s in module._FIRST_SECTIONS[name]}
        if "language_model" in sections:
            kept = sections["language_model"].items()
            sections["language_model"] = {k: v for k, v in kept if k not in ("mesh", "memory_gib")}
        needs = [prints[other] for other in module._FIRST_NEEDS[name]]
        prints[name] = module._first_fingerprint(name, sections, needs)
        if changed == "nothing":
            assert prints[name] == entry["fingerprint"]
        entry["fingerprint"] = prints[name]
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_fingerprints_of_the_first_version_are_understood(old):
    """Guards the test above: computed anew they are those of the real run."""
    rewrite(old, read_json(old / "manifest.json"), "nothing")


def test_steps_of_another_configuration_than_the_stored_one_are_not_done(old):
    manifest = read_json(old / "manifest.json")
    manifest["steps"]["fit"]["fingerprint"] = "0" * 64
    manifest["steps"]["simulate"]["state"] = "running"
    (old / "manifest.json").write_text(json.dumps(manifest))
    assert set(read_manifest(old)["steps"]) == {"personas", "score", "evaluate", "figures"}


def test_new_records_are_seen(old, settings):
    frame = records()
    frame.loc[0, "review"] = "Another one."
    frame.to_csv("reviews.csv", index=False)
    config = RunConfig.model_validate(settings)
    run = Run(RunFolder(old, config))
    with pytest.raises(DataError, match=r"The population has changed since .*--update"):
        run.check(with_needs("personas"))


def test_steps_that_are_done_stay_done(mop, old):
    """The artefacts are found, under their names of today; models are not even looked for."""
    last = [name for name in STEPS if name in unchanged_steps()][-1]
    before = contents(old)
    ended = mop(last, old)
    assert ended.status == 0, ended.err
    assert "is not there any more" in ended.err
    after = contents(old)
    assert after.pop("posterior.safetensors") == before.pop("gate.safetensors")
    manifest = json.loads(after.pop("manifest.json"))
    before.pop("manifest.json")
    assert after == before
    assert manifest["format"] == "mop-jax run 2"
    assert mop(last, old).status == 0


def test_the_posterior_of_an_old_run_can_be_used(old):
    posterior = load_posterior(old / "gate.safetensors")
    assert posterior.num_draws == 8
    contexts = load_file(old / "embeddings.safetensors")["test_context"]
    gate = gate_at(posterior, contexts)
    assert gate.persona_log_probs.shape == (8, 12, 2)
    np.testing.assert_allclose(np.exp(gate.persona_log_probs).sum(axis=-1), 1, rtol=1e-5)
    # What was simulated then follows from it.
    for line in (old / "simulated.jsonl").read_text("utf-8").split("\n")[:5]:
        row = json.loads(line)
        heat = float(gate.temperature[row["draw"], row["persona"]])
        assert row["temperature"] == pytest.approx(heat, rel=1e-5)


def test_a_configuration_that_nobody_understands_is_a_fault(old):
    manifest = read_json(old / "manifest.json")
    manifest["configuration"]["telepathy"] = {"level": 3}
    (old / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(FaultError, match="another version"):
        read_config(old)


def test_a_run_without_a_name_goes_on_where_such_were_kept(old, settings, caplog):
    del settings["name"]
    old.rename(old.parent / "run")
    manifest = read_json(old.parent / "run" / "manifest.json")
    manifest["configuration"]["name"] = manifest["name"] = "run"
    (old.parent / "run" / "manifest.json").write_text(json.dumps(manifest))
    file = write_yaml(Path("first.yaml"), settings)
    from mop_jax.pipeline.pipeline import _default_folder

    assert _default_folder(read_config(file)) == Path("runs") / "run"
    assert "Going on in runs/run" in caplog.text
    settings["exemplars"]["num_exemplars"] = 5
    other = write_yaml(Path("second.yaml"), settings)
    assert _default_folder(read_config(other)) == Path("runs") / "second"
