"""Ablations in miniature: what each changes, what they share, and resumption."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from mop_jax.benchmark import ABLATIONS, Ablation, make_table, register
from mop_jax.benchmark.ablations import GAIN, changed
from mop_jax.benchmark.tables import COLUMNS
from mop_jax.errors import DataError
from mop_jax.likelihoods import LikelihoodStore
from mop_jax.pipeline import RunFolder
from tests.run_fixtures import read_json, read_lines

pytest_plugins = ("tests.run_fixtures",)
CHOSEN = ["full", "no_exemplars", "no_temperature", "components_2"]


def ablate(folder, materials, methods=CHOSEN):
    return make_table(
        "table4", [materials.config()], folder, seeds=[3], num_samples=20, methods=methods
    )


@pytest.fixture(scope="module")
def made(materials, finished_run, tmp_path_factory):
    """The folder around a finished run, its table, keys of what was scored, steps done."""
    folder = tmp_path_factory.mktemp("ablations")
    shutil.copytree(finished_run, folder / "miniature" / "seed-3" / "run")
    scored, append = [], LikelihoodStore.append
    done, perform = {}, RunFolder.perform

    def count(self, keys, scores):
        scored.extend(keys)
        append(self, keys, scores)

    def note(self, step, *arguments):
        done.setdefault(self.path.name, []).append(step)
        perform(self, step, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LikelihoodStore, "append", count)
        patch.setattr(RunFolder, "perform", note)
        table = ablate(folder, materials)
    return folder, table, scored, done


@pytest.fixture
def runs(made):
    """The folder of each variant."""
    seed = made[0] / "miniature" / "seed-3"
    return {name: seed / "ablations" / name for name in CHOSEN} | {"full": seed / "run"}


def test_every_ablation_has_its_rows(made):
    folder, table = made[:2]
    assert list(table.columns) == COLUMNS
    for metric in ("fid", "mauve", "kl_cosine", "downstream_f1", "mean_words", "copied_4grams"):
        rows = table[table["metric"] == metric]
        assert list(rows["method"]) == CHOSEN
        assert set(rows["n"]) == {20}
    for metric in ("held_out_log_prob", GAIN.name):
        rows = table[table["metric"] == metric]
        # Several components in a prompt have no density of held-out responses.
        assert list(rows["method"]) == ["full", "no_exemplars", "no_temperature"]
        assert set(rows["n"]) == {12}
        assert (rows["low"] < rows["value"]).all()
        assert (rows["value"] < rows["high"]).all()
    pd.testing.assert_frame_equal(pd.read_csv(folder / "table4.csv"), table, check_dtype=False)
    assert (folder / "table4-miniature.png").read_bytes()[:4] == b"\x89PNG"
    text = (folder / "table4.md").read_text("utf-8")
    for name in CHOSEN:
        assert f"| {ABLATIONS[name].title} |" in text
        assert ABLATIONS[name].definition in text
    assert "without temperature: the fit is not known to have settled. 60 steps are too few" in text


def test_log_probabilities_are_those_of_the_runs(made, runs):
    table = made[1]
    for name in ("full", "no_temperature"):
        held_out = read_json(runs[name] / "metrics.json")["held_out"]
        of = table[table["method"] == name].set_index("metric")
        assert of.loc["held_out_log_prob", "value"] == held_out["mop"]["mean"]
        gain = held_out["mop_minus_uniform"]
        assert of.loc[GAIN.name, "value"] == gain["mean"]
        np.testing.assert_allclose(of.loc[GAIN.name, "high"], gain["mean"] + 1.96 * gain["se"])


def test_nothing_is_scored_twice_and_only_what_changes_is_done_again(made, runs, finished_run):
    _, _, scored, done = made
    assert scored  # without exemplars prompts are others
    assert len(set(scored)) == len(scored)
    before = {p.parent.name: p.read_bytes() for p in finished_run.glob("likelihoods/*/scores.bin")}
    (journal,) = before.values()
    assert not any(key in journal for key in scored)
    assert not list(runs["no_temperature"].glob("likelihoods/*/scores.bin"))
    assert done == {
        "no_exemplars": ["personas", "score", "fit", "evaluate", "simulate"],
        "no_temperature": ["fit", "evaluate", "simulate"],
        "components_2": ["simulate"],
    }
    for name in ("personas.json", "posterior.safetensors"):
        assert (runs["components_2"] / name).read_bytes() == (runs["full"] / name).read_bytes()


def test_variants_are_what_they_are_called(runs, made):
    full = read_lines(runs["full"] / "simulated.jsonl")
    assert len({row["temperature"] for row in full}) > 1
    cold = read_lines(runs["no_temperature"] / "simulated.jsonl")
    assert {row["temperature"] for row in cold} == {1.0}
    alone = read_lines(runs["no_exemplars"] / "simulated.jsonl")
    assert {row["exemplar_record"] for row in alone} == {None}
    assert {row["persona"] for row in alone} == {0, 1}
    table = made[1]
    copied = table[(table["method"] == "no_exemplars") & (table["metric"] == "copied_4grams")]
    assert list(copied["value"]) == [0.0]
    two = read_lines(runs["components_2"] / "simulated.jsonl")
    assert {len(row["further_exemplars"]) for row in two} == {0, 1}
    for one, other in zip(full, two, strict=True):
        same = ("sample", "record", "persona", "exemplar", "temperature")
        assert [one[k] for k in same] == [other[k] for k in same]
        # The same prompt where the second component has the exemplar of the first.
        assert other["further_exemplars"] or one["text"] == other["text"]
    assert [r["text"] for r in full] != [r["text"] for r in two]


def test_what_is_there_is_neither_made_nor_measured_again(made, materials, nothing_is_done_again):
    folder, table = made[:2]
    pd.testing.assert_frame_equal(ablate(folder, materials), table)


def test_an_ablation_that_cannot_be_is_left_out_with_a_word(made, materials, monkeypatch):
    folder = made[0]
    wrong = Ablation("too_many", "too many", "x", {"exemplars": {"num_exemplars": 30}})
    monkeypatch.setitem(ABLATIONS, "too_many", wrong)
    table = ablate(folder, materials, ["full", "too_many"])
    assert set(table["method"]) == {"full"}
    text = (folder / "table4.md").read_text("utf-8")
    assert "too many, seed 3, is left out: 30 exemplars were asked for" in text


def test_every_ablation_is_another_configuration(materials):
    config = materials.config(exemplars={"num_exemplars": 8})
    found = {name: changed(config, a.changes) for name, a in ABLATIONS.items()}
    assert found["full"] == config
    dumps = {json.dumps(c.model_dump(mode="json"), sort_keys=True) for c in found.values()}
    assert len(dumps) == len(ABLATIONS) == 11
    for name, variant in found.items():
        for section in type(config).model_fields:
            same = getattr(variant, section) == getattr(config, section)
            assert same or section in ABLATIONS[name].changes
    # What bare components there are goes with the exemplars.
    bare = materials.config(candidates={"bare": "zero_shot"}, model={"temperature": "pooled"})
    for name in ("no_exemplars", "paper_estimator"):
        assert changed(bare, ABLATIONS[name].changes).candidates.bare == "none"
    paper = found["paper_estimator"]
    assert (paper.candidates.method, paper.candidates.num_candidates) == ("renormalised", 4)
    assert paper.inference.maximum_likelihood
    assert paper.inference.initial_temperature == 0.6
    assert found["no_exemplar_context"].model.exemplar_context is False
    # Personas of one's own are replaced too.
    own = materials.config(personas={"path": "p.txt"})
    assert changed(own, ABLATIONS["no_personas"].changes).personas.texts == ["You are a person."]


def test_what_is_asked_for_wrongly_is_said(materials, tmp_path):
    with pytest.raises(DataError, match="There is no ablation 'mop' in table4; there are full, no"):
        ablate(tmp_path, materials, ["mop"])
    with pytest.raises(DataError, match="There is a ablation 'full' already"):
        register(Ablation("full", "x", "x"))
    with pytest.raises(DataError, match=r"model\.prior_scale: accepted is more than 0"):
        changed(materials.config(), {"model": {"prior_scale": -1}})
