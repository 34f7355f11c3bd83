"""A fitted mixture that speaks through another language model, one without a chat template."""

from __future__ import annotations

import shutil

import pandas as pd
import pytest

from mop_jax import pipeline
from mop_jax.benchmark import TRANSFERS, make_table
from mop_jax.errors import DataError
from mop_jax.lm.flax_lm import FlaxLM
from mop_jax.pipeline import RunFolder, Workspace
from mop_jax.pipeline.further import name_of_model
from mop_jax.prompts import PromptBuilder, PromptTemplate
from tests.run_fixtures import read_json, read_lines, write_language_model

pytest_plugins = ("tests.run_fixtures",)
SAME = ("sample", "record", "draw", "persona", "exemplar", "temperature", "component_log_prob")


@pytest.fixture(scope="module")
def base_model(tmp_path_factory):
    """Another language model, without a chat template."""
    folder = tmp_path_factory.mktemp("models") / "base"
    return write_language_model(folder, seed=5, chat_template=None)


def transfer(folder, materials, base_model, **options):
    options = {"seeds": [3], "num_samples": 20, "language_model": str(base_model), **options}
    return make_table("table3", [materials.config()], folder, **options)


@pytest.fixture(scope="module")
def made(materials, finished_run, base_model, tmp_path_factory):
    """The benchmark's folder around a finished run, and its table."""
    folder = tmp_path_factory.mktemp("transfer")
    shutil.copytree(finished_run, folder / "miniature" / "seed-3" / "run")
    return folder, transfer(folder, materials, base_model)


def test_every_row_is_there(made):
    folder, table = made
    for metric in ("fid", "mauve", "kl_cosine", "downstream_f1", "mean_words"):
        assert list(table[table["metric"] == metric]["method"]) == list(TRANSFERS)
    pd.testing.assert_frame_equal(pd.read_csv(folder / "table3.csv"), table, check_dtype=False)
    text = (folder / "table3.md").read_text("utf-8")
    assert "The first language model is llama; responses are written by base." in text
    assert "temperatures of that fit" in text
    assert (folder / "table3-miniature.png").read_bytes()[:4] == b"\x89PNG"


def test_components_stay_and_the_other_model_speaks(
    made, base_model, materials, copy_of_run, tmp_path, monkeypatch
):
    run = made[0] / "miniature" / "seed-3" / "run"
    own, other = (read_lines(run / n) for n in ("simulated.jsonl", "simulated-base.jsonl"))
    assert [[row[k] for k in SAME] for row in own] == [[row[k] for k in SAME] for row in other]
    assert [row["text"] for row in own] != [row["text"] for row in other]
    # Once more, listening: prompts are in the plain form of the other model's own tokenizer.
    asked, drawn, sample = [], {}, FlaxLM.sample_pairs

    def listen(self, prefixes, requests, pairs, *, on_generated, **options):
        asked.extend([i for s in (*prefixes[p], requests[r]) for i in s] for p, r in pairs)

        def note(indices, generation):
            drawn.update(zip(indices.tolist(), generation.token_ids, strict=True))
            on_generated(indices, generation)

        return sample(self, prefixes, requests, pairs, on_generated=note, **options)

    monkeypatch.setattr(FlaxLM, "sample_pairs", listen)
    again = tmp_path / "again.jsonl"
    pipeline.simulate(copy_of_run, language_model=base_model, output=again)
    assert read_lines(again) == other
    lm = FlaxLM.from_pretrained(base_model)
    prompts = PromptBuilder(lm.tokenizer, PromptTemplate.plain())
    components = Workspace(RunFolder(run, materials.config())).components
    for row, ids in zip(other, asked, strict=True):
        expected = prompts.component(
            components.persona_texts[row["persona"]],
            components.exemplar_texts[row["exemplar"]],
            row["context"],
        )
        assert ids == expected.token_ids
    for row in other[:2]:
        ids = drawn[row["sample"]]
        exact = lm.log_likelihood([asked[row["sample"]]], [ids], temperature=row["temperature"])
        assert row["response_log_prob"] == pytest.approx(exact[0], abs=1e-3)


def test_the_refitted_run_has_the_personas_of_the_first(made):
    seed = made[0] / "miniature" / "seed-3"
    first = seed / "run"
    folder = seed / "transfer" / "base"
    for name in ("refitted", "uniform_gate"):
        for file in ("personas.json", "exemplars.parquet"):
            assert (folder / name / file).read_bytes() == (first / file).read_bytes()
    steps = [
        read_json(folder / name / "manifest.json")["steps"] for name in ("refitted", "uniform_gate")
    ]
    assert steps[0]["score"]["outputs"] == steps[1]["score"]["outputs"]
    assert steps[0]["fit"]["outputs"] != steps[1]["fit"]["outputs"]
    own = read_json(first / "manifest.json")["steps"]
    assert steps[0]["score"]["outputs"] != own["score"]["outputs"]
    # One journal for each language model, in one store.
    assert len(list(first.glob("likelihoods/*/scores.bin"))) == 2


def test_what_is_there_is_neither_made_nor_measured_again(
    made, materials, base_model, nothing_is_done_again
):
    folder, table = made
    pd.testing.assert_frame_equal(transfer(folder, materials, base_model), table)


def test_a_run_is_simulated_with_another_model_by_one_flag(
    mop, made, copy_of_run, base_model, tmp_path
):
    before = (copy_of_run / "simulated.jsonl").read_bytes()
    path = copy_of_run / "simulated-base.jsonl"
    ended = mop("simulate", copy_of_run, "--lm", base_model)
    assert ended.status == 0, ended.err
    assert "has no chat template" in ended.err
    assert "temperatures fitted with the run's own model" in ended.err
    assert str(path) in ended.out.replace("\n", "")
    there = made[0] / "miniature" / "seed-3" / "run" / "simulated-base.jsonl"
    assert path.read_bytes() == there.read_bytes()
    assert (copy_of_run / "simulated.jsonl").read_bytes() == before
    stamp = path.stat().st_mtime_ns
    assert mop("simulate", copy_of_run, "--lm", base_model).status == 0
    assert path.stat().st_mtime_ns == stamp
    # Killed half-way it goes on to the same bytes; what was drawn is not drawn again.
    whole = path.read_text("utf-8")
    path.unlink()
    assert mop("simulate", copy_of_run, "--lm", base_model).status == 0
    assert path.read_text("utf-8") == whole
    # Another model of the same name does not write over it.
    other = write_language_model(tmp_path / "base", seed=6)
    ended = mop("simulate", copy_of_run, "--lm", other)
    assert ended.status == 2
    assert "was written by another language model of that name" in ended.sentence
    assert path.read_text("utf-8") == whole
    ended = mop("simulate", copy_of_run, "--lm", other, "--output", tmp_path / "o.jsonl")
    assert ended.status == 0
    assert len(read_lines(tmp_path / "o.jsonl")) == 20


def test_what_is_asked_for_wrongly_is_said(materials, base_model, copy_of_run, tmp_path):
    with pytest.raises(DataError, match=r"table3 needs the language model .* --lm"):
        transfer(tmp_path, materials, base_model, language_model=None)
    with pytest.raises(DataError, match="There is no row 'mop' in table3; there are transferred"):
        transfer(tmp_path, materials, base_model, methods=["mop"])
    with pytest.raises(DataError, match="needs another language model than"):
        transfer(tmp_path, materials, materials.language_model)
    with pytest.raises(DataError, match=r"nowhere\.gguf was not found"):
        pipeline.simulate(copy_of_run, language_model="nowhere.gguf")
    with pytest.raises(DataError, match="output is for new contexts or another language model"):
        pipeline.simulate(copy_of_run, output=tmp_path / "x.jsonl")


def test_names_of_models():
    assert name_of_model("google/gemma-3-270m") == "gemma-3-270m"
    assert name_of_model("package:a_b/Model.Q4_1.gguf") == "Model.Q4_1"
    assert name_of_model("models/My model/") == "My-model"
