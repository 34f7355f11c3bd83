"""Bad input through the command line: one clear sentence, the right status, nothing lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mop_jax.population import Population
from tests.run_fixtures import (
    Materials,
    contents,
    records,
    undo,
    unfinished_files,
    write_language_model,
    write_yaml,
)

pytest_plugins = ("tests.run_fixtures",)

Change = Callable[[Materials, Path], dict[str, Any]]


def text_file(content: bytes, name: str = "bad.csv") -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        (folder / name).write_bytes(content)
        return str(folder / name)

    return write


def population(content: bytes, **fields: Any) -> Change:
    return lambda materials, folder: {"population": {"path": text_file(content)(folder), **fields}}


def csv_of(change: Callable[[Any], Any]) -> bytes:
    frame = records()
    changed = change(frame)
    return (frame if changed is None else changed).to_csv(index=False).encode()


def blank_response(frame):
    frame.loc[6, "review"] = "   "


def duplicate_id(frame):
    frame.loc[9, "id"] = "r04"


def negative_weight(frame):
    frame.loc[2, "weight"] = -1


def no_model(materials, folder):
    return {"language_model": {"path": str(folder / "nowhere")}}


def copied(part: str, break_it: Callable[[Path], None]) -> Change:
    """A checkpoint with something broken in it."""

    def change(materials: Materials, folder: Path) -> dict[str, Any]:
        target = folder / part
        shutil.copytree(getattr(materials, part), target)
        break_it(target)
        return {part: {"path": str(target)}}

    return change


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def garble(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(b"{ not json")


def other_model_type(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "phi3"}))


def gguf(materials: Materials, folder: Path) -> dict[str, Any]:
    from gguf import GGUFWriter

    path = folder / "model.gguf"
    writer = GGUFWriter(path, "mamba")
    writer.add_context_length(128)
    writer.add_tensor("token_embd.weight", np.zeros((4, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {"language_model": {"path": str(path)}}


def not_gguf(materials: Materials, folder: Path) -> dict[str, Any]:
    return {"language_model": {"path": text_file(b"GGUF but not really", "model.gguf")(folder)}}


def personas_file(content: bytes, name: str = "personas.txt") -> Change:
    return lambda materials, folder: {"personas": {"path": text_file(content, name)(folder)}}


# What is wrong, the exit status, and what the sentence must say.
CASES: dict[str, tuple[Change, int, list[str]]] = {
    "empty file": (population(b""), 2, ["bad.csv is empty", "at least one record"]),
    "header only": (population(b"id,film,mood,review,weight\n"), 2, ["bad.csv", "no records"]),
    "no such file": (
        lambda m, f: {"population": {"path": "none.csv"}}, 2, ["none.csv", "not found"],
    ),
    "missing column": (
        lambda m, f: {"population": {"response": "verdict"}}, 2, ["reviews.csv", "'verdict'"],
    ),
    "empty response": (population(csv_of(blank_response)), 2, ["Row 7", "empty response"]),
    "duplicate ids": (population(csv_of(duplicate_id)), 2, ["Rows 5 and 10", "'r04'"]),
    "negative weight": (population(csv_of(negative_weight)), 2, ["Row 3", "weight", "positive"]),
    "wrong encoding": (
        population("id,film,mood,review,weight\na,Ran,é,äöü,1\n".encode() + b"b,Ran,x,tr\xe8s,1\n"),
        2,
        ["bad.csv is not UTF-8", "0xe8", "line 3"],
    ),
    "ragged rows": (population(b"id,film\na,b\nc,d,e,f\n"), 2, ["bad.csv is malformed"]),
    "template": (
        lambda m, f: {"population": {"template": "{{ nothing }}"}}, 2, ["template", "nothing"],
    ),
    "more personas than records": (
        lambda m, f: {"personas": {"num_personas": 25}}, 2, ["25 personas", "24"],
    ),
    "more exemplars than records": (
        lambda m, f: {"exemplars": {"num_exemplars": 25}}, 2, ["25 exemplars", "24"],
    ),
    "test part too large": (lambda m, f: {"split": {"test_size": 40}}, 2, ["test", "records"]),
    "blank persona": (personas_file(b"You are warm.\n\nYou are cold.\n"), 2, ["line 2", "blank"]),
    "blank persona in JSON": (
        personas_file(b'["You are warm.", " "]', "p.json"), 2, ["p.json, entry 2", "blank"],
    ),
    "no personas": (personas_file(b""), 2, ["personas.txt", "no personas"]),
    "missing checkpoint": (no_model, 2, ["nowhere", "not found"]),
    "missing weights": (
        copied("language_model", remove("model.safetensors")), 1, ["model.safetensors"],
    ),
    "missing configuration": (
        copied("language_model", remove("config.json")), 1, ["config.json is missing"],
    ),
    "truncated weights": (copied("language_model", truncate), 1, ["no readable safetensors"]),
    "garbled configuration": (
        copied("language_model", garble("config.json")), 1, ["config.json is not valid JSON"],
    ),
    "garbled tokenizer": (
        copied("language_model", garble("tokenizer.json")), 1, ["tokenizer could not be read"],
    ),
    "no tokenizer": (
        copied("language_model", remove("tokenizer.json")), 2, ["tokenizer"],
    ),
    "another architecture": (
        copied("language_model", other_model_type), 2, ["model_type 'phi3'", "supported: 'llama'"],
    ),
    "gguf of another architecture": (gguf, 2, ["'mamba' is not supported", "supported: 'llama'"]),
    "no gguf": (not_gguf, 1, ["model.gguf is no readable GGUF file"]),
    "missing encoder": (lambda m, f: {"encoder": {"path": str(f / "no")}}, 2, ["not found"]),
    "missing personas": (
        lambda m, f: {"personas": {"path": str(f / "p.txt")}}, 2, ["p.txt", "not found"],
    ),
    "one record held out": (
        lambda m, f: {"split": {"by": "record", "test_size": 1}, "population": {"group": None}},
        2, ["at least 2 held-out records", "split.test_size"],
    ),
    "one group to train with": (
        lambda m, f: {"population": {"query": "film in ('Alien', 'Ran')"},
                      "split": {"by": "group", "test_size": 4, "train_size": 4}},
        2, ["of one group", "exemplars.leave_out: record"],
    ),
    "no groups to leave out": (
        lambda m, f: {"split": {"by": "record"}, "exemplars": {"leave_out": "group"},
                      "population": {"group": None}},
        2, ["needs groups", "population.group"],
    ),
    "one record to train with": (
        lambda m, f: {"split": {"by": "record", "test_size": 3, "train_size": 1},
                      "personas": {"num_personas": 1}, "exemplars": {"num_exemplars": 2}},
        2, ["2 exemplars", "only 1 distinct", "more records are needed"],
    ),
    "truncated encoder": (copied("encoder", truncate), 1, ["model.safetensors is corrupt"]),
    "encoder of another kind": (copied("encoder", other_model_type), 2, ["'phi3'", "bert"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_sentence(mop, materials, tmp_path, case):
    change, status, words = CASES[case]
    settings = materials.settings(**change(materials, tmp_path))
    path = write_yaml(tmp_path / "config.yaml", settings)
    folder = tmp_path / "run"
    given = contents(materials.folder)
    ended = mop("run", path, "--out", folder)
    assert ended.status == status, ended.err
    for word in words:
        assert word in ended.sentence
    assert ended.sentence.endswith(".") or ended.sentence.endswith(")")
    assert ended.out == ""
    # Nothing written, and the user's own files as they were.
    assert not folder.exists()
    assert contents(materials.folder) == given


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("name: [", ["not valid YAML"]),
        ("- a\n- b\n", ["must hold named sections"]),
        ("", ["must hold named sections"]),
        ("name: x\n", ["population", "required"]),
        ("name: x\nname: y\n", ["line 2", "'name' is given a second time"]),
        (None, ["was not found", "demo, paper, reuters_r8, rotten_tomatoes"]),
    ],
)
def test_a_bad_configuration_file(mop, tmp_path, content, words):
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    ended = mop("run", path, "-o", tmp_path / "run")
    assert ended.status == 2
    assert all(word in ended.sentence for word in [str(path), *words])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"personas": {"number": 3}}, ["personas.number", "no field", "num_personas"]),
        ({"seeds": 3}, ["seeds", "no field; the nearest is seed"]),
        ({"inference": {"num_steps": "many"}}, ["inference.num_steps", "integer", "line"]),
        ({"candidates": {"method": "best"}}, ["candidates.method", "'importance'"]),
        ({"prompt": {"form": "custom"}}, ["prompt", "custom needs component"]),
    ],
)
def test_a_bad_field_is_named(mop, materials, tmp_path, changes, words):
    path = write_yaml(tmp_path / "config.yaml", materials.settings(**changes))
    ended = mop("run", path, "-o", tmp_path / "run")
    assert ended.status == 2
    assert all(word in ended.sentence for word in [str(path), *words])
    assert not (tmp_path / "run").exists()


def test_a_response_beyond_the_context_window_names_its_record(mop, materials, tmp_path):
    """Found before any scoring starts, so nothing is scored in vain."""
    settings = materials.settings()
    fields = {k: v for k, v in settings["population"].items() if k != "path"}
    whole = Population.from_file(materials.records, seed=3, **fields)
    train = whole.split(12, by="group", seed=3, train_size=24)[0].ids
    frame = records().set_index("id")
    long = train[5]
    frame.loc[long, "review"] = "A warm film with a tender plot. " * 120
    frame.to_csv(tmp_path / "long.csv")
    settings = materials.settings(population={"path": str(tmp_path / "long.csv")})
    folder = tmp_path / "run"
    ended = mop("run", write_yaml(tmp_path / "config.yaml", settings), "-o", folder)
    assert ended.status == 2
    assert f"Record {long}" in ended.sentence
    assert "context window holds 640" in ended.sentence
    assert not list(folder.glob("likelihoods/train.parquet"))
    assert all(p.stat().st_size == 0 for p in folder.glob("likelihoods/*/scores.bin"))
    assert not unfinished_files(folder)


def test_a_response_with_the_end_of_a_turn_is_refused(mop, materials, tmp_path):
    frame = records()
    frame["review"] += " <|im_end|> And so on."
    frame.to_csv(tmp_path / "turns.csv", index=False)
    settings = materials.settings(
        population={"path": str(tmp_path / "turns.csv")},
        personas={"path": text_file(b"You are warm.\nYou are cold.\n", "p.txt")(tmp_path)},
    )
    ended = mop("score", write_yaml(tmp_path / "c.yaml", settings), "-o", tmp_path / "run")
    assert ended.status == 2
    assert "<|im_end|>" in ended.sentence
    assert "special token" in ended.sentence


# Run folders


def test_another_configuration_leaves_the_folder_as_it_is(mop, materials, finished_run, tmp_path):
    path = write_yaml(tmp_path / "c.yaml", materials.settings(exemplars={"num_exemplars": 5}))
    before = contents(finished_run, hidden=True)
    exact = (finished_run / "manifest.json").read_bytes()
    ended = mop("run", path, "--out", finished_run)
    assert ended.status == 2
    assert "exemplars.num_exemplars is 4 there and 5 here" in ended.sentence
    assert "--update" in ended.sentence
    assert contents(finished_run, hidden=True) == before
    assert (finished_run / "manifest.json").read_bytes() == exact


def test_a_source_that_changed_leaves_finished_work_as_it_is(mop, materials, copy_of_run, tmp_path):
    """Another model behind the same path: its scores must not be mixed with the old ones."""
    undo(copy_of_run, "evaluate", "simulate", "likeness", "figures")
    before = contents(copy_of_run)
    moved = materials.folder / "aside"
    materials.language_model.rename(moved)
    try:
        write_language_model(materials.language_model, seed=9)
        ended = mop("evaluate", copy_of_run)
    finally:
        shutil.rmtree(materials.language_model)
        moved.rename(materials.language_model)
    assert ended.status == 2
    assert "language model has changed" in ended.sentence
    assert "--update" in ended.sentence
    assert contents(copy_of_run) == before


def test_somebody_elses_folder_is_left_alone(mop, materials, tmp_path):
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "thesis.tex").write_text("x")
    config = write_yaml(tmp_path / "c.yaml", materials.settings())
    ended = mop("run", config, "--out", folder)
    assert ended.status == 2
    assert "no run folder" in ended.sentence
    assert list(folder.iterdir()) == [folder / "thesis.tex"]
    ended = mop("run", config, "--out", folder / "thesis.tex")
    assert ended.status == 2
    assert "is a file" in ended.sentence


@pytest.mark.parametrize("content", [b"", b"{}", b'{"format": "mop-jax run 1"'])
def test_a_damaged_manifest_is_a_fault(mop, copy_of_run, content):
    (copy_of_run / "manifest.json").write_bytes(content)
    before = contents_without_manifest(copy_of_run)
    ended = mop("run", copy_of_run)
    assert ended.status == 1
    assert "manifest.json is damaged" in ended.sentence
    assert contents_without_manifest(copy_of_run) == before
    assert (copy_of_run / "manifest.json").read_bytes() == content


def test_a_manifest_of_another_version_is_a_fault(mop, copy_of_run):
    path = copy_of_run / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["configuration"]["telepathy"] = {"level": 3}
    path.write_text(json.dumps(manifest))
    ended = mop("run", copy_of_run)
    assert ended.status == 1
    assert "another version" in ended.sentence


def contents_without_manifest(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.name != "manifest.json"
    }


def test_a_damaged_store_is_a_fault_that_says_what_to_do(mop, copy_of_run):
    undo(copy_of_run, "evaluate", "figures")
    (path,) = copy_of_run.glob("likelihoods/*/scores.bin")
    data = bytearray(path.read_bytes())
    data[100] ^= 0xFF
    path.write_bytes(data)
    ended = mop("evaluate", copy_of_run)
    assert ended.status == 1
    assert "scores.bin: entry 1" in ended.sentence
    assert "delete the file" in ended.sentence
    assert path.read_bytes() == bytes(data)
