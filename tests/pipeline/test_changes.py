"""What a run was made from changes: it is said, and what depends on it is done again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from pkgutil import resolve_name

import pandas as pd
import pytest

from mop_jax import pipeline
from mop_jax.config import RunConfig
from mop_jax.likelihoods import LikelihoodStore
from tests.run_fixtures import (
    contents,
    read_json,
    read_lines,
    records,
    write_encoder,
    write_language_model,
    write_yaml,
)

pytest_plugins = ("tests.run_fixtures",)
ALL = [step.name for step in pipeline.STEPS]


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
def own(materials, copy_of_run, tmp_path) -> RunConfig:
    """The configuration of the finished run, on inputs that a test may change; not yet run."""
    folder = tmp_path / "inputs"
    shutil.copytree(materials.folder, folder)
    return materials.config(
        population={"path": str(folder / materials.records.name)},
        language_model={"path": str(folder / materials.language_model.name)},
        encoder={"path": str(folder / materials.encoder.name)},
    )


def test_inputs_are_known_by_their_content_wherever_they_lie(copy_of_run, own, performed):
    """A copy of the whole project, with other paths and times, is the same run."""
    before = contents(copy_of_run)
    pipeline.run(own, copy_of_run)
    assert performed == []
    after = contents(copy_of_run)
    assert {n: b for n, b in after.items() if n != "manifest.json"} == {
        n: b for n, b in before.items() if n != "manifest.json"
    }
    stored = read_json(copy_of_run / "manifest.json")["configuration"]
    assert stored["population"]["path"] == own.population.path


def change_records(config: RunConfig) -> str:
    frame = records()
    frame.loc[3, "review"] = "A dull film with a noisy plot and a cold camera."
    frame.to_csv(config.population.path, index=False)
    return "population has changed"


def change_language_model(config: RunConfig) -> str:
    shutil.rmtree(config.language_model.path)
    write_language_model(Path(config.language_model.path), seed=9)
    return "language model has changed"


def change_encoder(config: RunConfig) -> str:
    path = Path(config.encoder.path) / "1_Pooling" / "config.json"
    path.write_text('{"pooling_mode_cls_token": true}')
    return "sentence encoder has changed"


@pytest.mark.parametrize("change", [change_records, change_language_model, change_encoder])
def test_another_input_is_refused_before_anything_is_done(
    mop, copy_of_run, own, performed, change, tmp_path
):
    sentence = change(own)
    config = write_yaml(tmp_path / "c.yaml", own.model_dump(mode="json"))
    before = contents(copy_of_run, hidden=True)
    ended = mop("run", config, "--out", copy_of_run)
    assert ended.status == 2
    assert sentence in ended.sentence
    assert "--update" in ended.sentence
    assert performed == []
    assert contents(copy_of_run, hidden=True) == before


def test_new_data_are_taken_and_only_what_is_new_is_scored(
    copy_of_run, own, performed, monkeypatch
):
    change_records(own)
    appended, append = [], LikelihoodStore.append

    def count(self, keys, scores):
        appended.extend(keys)
        append(self, keys, scores)

    monkeypatch.setattr(LikelihoodStore, "append", count)
    pipeline.evaluate(own, copy_of_run, update=True)
    assert performed == ["personas", "score", "fit", "evaluate"]
    table = pd.read_parquet(copy_of_run / "records.parquet").set_index("id")
    assert table.loc["r03", "response"].startswith("A dull film with a noisy plot")
    # One of 24 + 12 records is another, and it may have changed an exemplar and the candidates.
    scored = sum(len(pd.read_parquet(copy_of_run / "likelihoods" / f"{side}.parquet"))
                 for side in ("train", "held_out"))  # fmt: skip
    assert 0 < len(appended) < scored
    performed.clear()
    pipeline.evaluate(own, copy_of_run)
    assert performed == []


def test_another_model_scores_everything_anew(copy_of_run, own, performed):
    change_language_model(own)
    pipeline.score(own, copy_of_run, update=True)
    assert performed == ["personas", "score"]
    assert len(list(copy_of_run.glob("likelihoods/*/scores.bin"))) == 2


def test_personas_of_ones_own_are_known_by_their_content(mop, own, copy_of_run, tmp_path):
    mine = tmp_path / "p.txt"
    mine.write_text("You are warm.\nYou are cold.\n")
    settings = own.model_dump(mode="json")
    settings["personas"]["path"] = str(mine)
    config = write_yaml(tmp_path / "c.yaml", settings)
    assert mop("fit", config, "-o", copy_of_run, "--update").status == 0
    gate = (copy_of_run / "posterior.safetensors").read_bytes()
    mine.write_text("You are rude.\nYou are cold.\n")
    for command in ("run", "simulate", "fit", "personas"):
        ended = mop(command, config, "-o", copy_of_run)
        assert ended.status == 2
        assert "personas file has changed" in ended.sentence
    assert mop("fit", config, "-o", copy_of_run, "--update").status == 0
    assert (copy_of_run / "posterior.safetensors").read_bytes() != gate
    assert read_json(copy_of_run / "personas.json")[0]["text"] == "You are rude."


def test_artefacts_that_were_edited_or_deleted(mop, copy_of_run, finished_run, performed):
    path = copy_of_run / "personas.json"
    stored = json.loads(path.read_text())
    stored[0]["text"] = "You are somebody else."
    path.write_text(json.dumps(stored))
    before = contents(copy_of_run, hidden=True)
    ended = mop("run", copy_of_run)
    assert ended.status == 2
    assert "personas.json was changed by hand" in ended.sentence
    assert contents(copy_of_run, hidden=True) == before
    path.unlink()
    ended = mop("run", copy_of_run)
    assert ended.status == 0
    assert performed == ["personas"]  # the same personas, so all else is as it should be
    assert "done again, since personas.json is gone" in ended.err
    assert contents(copy_of_run) == contents(finished_run)


def test_an_input_that_is_gone_is_not_needed_by_a_finished_run(mop, copy_of_run, own, tmp_path):
    config = write_yaml(tmp_path / "c.yaml", own.model_dump(mode="json"))
    Path(own.population.path).unlink()
    shutil.rmtree(own.language_model.path)
    ended = mop("run", config, "-o", copy_of_run)
    assert ended.status == 0
    assert "is not there any more" in ended.err
    ended = mop("run", config, "-o", tmp_path / "new")
    assert ended.status == 2
    assert "was not found" in ended.sentence


def test_a_first_run_that_was_refused_is_corrected_and_goes_on(mop, materials, tmp_path):
    config = tmp_path / "c.yaml"
    for wrong in ({"population": {"response": "verdict"}}, {"exemplars": {"num_exemplars": 30}}):
        write_yaml(config, materials.settings(**wrong))
        assert mop("personas", config, "-o", tmp_path / "run").status == 2
    write_yaml(config, materials.settings())
    assert mop("personas", config, "-o", tmp_path / "run").status == 0


def test_a_finished_run_on_a_disk_that_takes_no_writes_is_read(mop, copy_of_run, monkeypatch):
    before = contents(copy_of_run, hidden=True)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    ended = mop("run", copy_of_run)
    assert ended.status == 0
    assert "mixture of personas" in ended.out
    assert contents(copy_of_run, hidden=True) == before
    (copy_of_run / "metrics.json").unlink()
    ended = mop("run", copy_of_run)
    assert ended.status == 1
    assert "cannot be written to" in ended.sentence


def test_a_lost_manifest_keeps_its_scores(mop, copy_of_run, finished_run, monkeypatch, tmp_path):
    settings = read_json(copy_of_run / "manifest.json")["configuration"]
    config = write_yaml(tmp_path / "c.yaml", settings)
    (copy_of_run / "manifest.json").unlink()
    ended = mop("score", config, "-o", copy_of_run)
    assert ended.status == 2
    assert "--update begins anew there and keeps the scores" in ended.sentence
    monkeypatch.setattr(LikelihoodStore, "append", None)  # nothing is scored
    assert mop("score", config, "-o", copy_of_run, "--update").status == 0
    for name in ("personas.json", "records.parquet", "likelihoods/train.parquet"):
        assert (copy_of_run / name).read_bytes() == (finished_run / name).read_bytes()


# Figures and new contexts


def test_figures_are_drawn_again(mop, copy_of_run, finished_run):
    (copy_of_run / "figures" / "held_out.png").unlink()
    ended = mop("figures", copy_of_run)
    assert ended.status == 0
    name = "figures/held_out.png"
    assert (copy_of_run / name).read_bytes() == (finished_run / name).read_bytes()


def test_new_contexts_are_answered(mop, copy_of_run, tmp_path):
    new = tmp_path / "new.csv"
    new.write_text("film,mood\nSolaris,fresh\nBrazil,rotten\nTampopo,fresh\n")
    ended = mop("simulate", copy_of_run, "--contexts", new, "--num-samples", 5)
    assert ended.status == 0, ended.err
    (path,) = copy_of_run.glob("simulated-*.jsonl")
    assert str(path) in ended.out
    rows = read_lines(path)
    assert [row["sample"] for row in rows] == list(range(5))
    assert [row["record"] for row in rows] == ["1", "2", "3", "1", "2"]
    assert rows[1]["context"] == "Write a rotten review of the film Brazil."
    assert all(row["response_log_prob"] < 0 for row in rows)
    stamp = path.stat().st_mtime_ns
    assert mop("simulate", copy_of_run, "--contexts", new, "--num-samples", 5).status == 0
    assert path.stat().st_mtime_ns == stamp
    # A whole run goes on as if nothing had been added.
    assert mop("run", copy_of_run).status == 0
    assert path.stat().st_mtime_ns == stamp


def test_new_contexts_as_texts_in_a_file_of_ones_own(copy_of_run, tmp_path):
    output = tmp_path / "answers.jsonl"
    contexts = ["Write a review of Solaris.", "Write a review of Tampopo."]
    path = pipeline.simulate(copy_of_run, contexts=contexts, num_samples=3, output=output)
    assert path == output
    rows = read_lines(output)
    assert [row["context"] for row in rows] == [contexts[0], contexts[1], contexts[0]]
    again = pipeline.simulate(copy_of_run, contexts=contexts, num_samples=2, output=output)
    # A response depends on its number and the seed, not on how many there are.
    assert [row["text"] for row in read_lines(again)] == [row["text"] for row in rows[:2]]


def test_somebody_elses_file_is_not_written_over(mop, copy_of_run, tmp_path):
    new, output = tmp_path / "new.txt", tmp_path / "mine.jsonl"
    new.write_text("Write a review of Solaris.\n\n")
    output.write_text("mine")
    ended = mop("simulate", copy_of_run, "--contexts", new, "--output", output)
    assert ended.status == 2
    assert "mine.jsonl is there already" in ended.sentence
    assert output.read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("new.txt", "One?\n\nTwo?\n", ["new.txt, line 2, is blank"]),
        ("new.txt", "\n", ["new.txt holds no contexts"]),
        ("new.csv", "film\nSolaris\n", ["new.csv", "no column 'mood'", "film"]),
        ("new.csv", "film,mood\nSolaris,\n", ["new.csv", "Row 1", "empty context"]),
        ("gone.csv", None, ["gone.csv was not found"]),
    ],
)
def test_contexts_that_cannot_be_read(mop, copy_of_run, tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_text(content)
    before = contents(copy_of_run, hidden=True)
    ended = mop("simulate", copy_of_run, "--contexts", tmp_path / name)
    assert ended.status == 2
    assert all(word in ended.sentence for word in words), ended.sentence
    assert contents(copy_of_run, hidden=True) == before


def test_options_of_new_contexts_need_them(mop, copy_of_run):
    ended = mop("simulate", copy_of_run, "--num-samples", 3)
    assert ended.status == 2
    assert "set simulation.num_samples" in ended.sentence


def test_an_encoder_that_cannot_be_used_leaves_a_new_folder_unmade(mop, own, tmp_path):
    write_encoder(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").write_bytes(b"x")
    settings = own.model_dump(mode="json")
    settings["encoder"]["path"] = str(tmp_path / "other")
    ended = mop("run", write_yaml(tmp_path / "c.yaml", settings), "-o", tmp_path / "new")
    assert ended.status == 1
    assert not (tmp_path / "new").exists()
