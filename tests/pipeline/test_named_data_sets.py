"""Data sets by name as a run's population: its fields, its split, and what the run knows of it."""

from __future__ import annotations

import pytest

from mop_jax import datasets
from mop_jax.config import (
    PopulationConfig,
    RunConfig,
    SplitConfig,
    load_config,
    parse_config,
)
from mop_jax.datasets import DATASETS, Dataset, load_dataset
from mop_jax.datasets.packages import Records
from mop_jax.errors import DataError
from mop_jax.pipeline.contexts import read_contexts
from mop_jax.pipeline.inputs import Inputs

NAMES = "language_model: {path: m.gguf}\nencoder: {path: e}\n"


def records(name: str, count: int, word: str) -> Records:
    labels = ["good", "bad"] * (count // 2)
    return Records(
        name,
        [str(i) for i in range(count)],
        [f"Say something {label}." for label in labels],
        [f"Number {i} of the {word} answers is {label}." for i, label in enumerate(labels)],
        labels,
    )


@pytest.fixture
def toys(monkeypatch):
    """Two data sets, one with a split of its own; `answers` decides on what they hold."""
    answers = {"word": "first"}
    read = {
        "whole": lambda source: [records("all", 20, answers["word"])],
        "parted": lambda source: [
            records("train", 20, answers["word"]),
            records("test", 10, "held out"),
        ],
    }
    known = dict(DATASETS)
    for name, function in read.items():
        known[name] = Dataset(name, name, function, "", has_split=name == "parted")
    monkeypatch.setattr(datasets.loading, "DATASETS", known)
    monkeypatch.setattr(datasets, "DATASETS", known, raising=False)
    return answers


def configured(population: str, more: str = "") -> RunConfig:
    return parse_config(f"population: {population}\n{NAMES}{more}", "my.yaml")


def test_records_are_those_of_the_data_set(toys) -> None:
    config = configured("{dataset: whole}", "split: {test_size: 6}\nseed: 3")
    assert config.split.by == "stratified"
    for found, wanted in zip(
        Inputs(config).records(), load_dataset("whole", test_size=6, seed=3), strict=True
    ):
        assert found.fingerprint == wanted.fingerprint


def test_its_own_split_is_taken_whole_or_in_part(toys) -> None:
    train, test = Inputs(configured("{dataset: parted}")).records()
    assert (len(train), len(test)) == (20, 10)
    assert all("held out" in text for text in test.responses)
    config = configured("{dataset: parted}", "split: {train_size: 8, test_size: 0.5}")
    train, test = Inputs(config).records()
    assert (len(train), len(test)) == (8, 5)
    assert {i.partition("-")[0] for i in test.ids} == {"test"}
    with pytest.raises(DataError, match="train_size is 21; the data set has 20"):
        Inputs(configured("{dataset: parted}", "split: {train_size: 21}")).records()


def test_the_configuration_says_how_it_is_split_and_reads_itself_again(toys) -> None:
    for config in (configured("{dataset: parted, max_words: 4}"), configured("{dataset: whole}")):
        assert RunConfig.model_validate(config.model_dump(mode="json")) == config
    assert Inputs(configured("{dataset: parted, max_words: 4}")).records()[0].responses[0] == (
        "Number 0 of the"
    )


def test_sections_made_in_python_do_the_same(toys) -> None:
    rest = {"language_model": {"path": "m.gguf"}, "encoder": {"path": "e"}}
    for split in ({}, {"split": SplitConfig(train_size=8)}, {"split": {"train_size": 8}}):
        config = RunConfig(population=PopulationConfig(dataset="parted"), **rest, **split)
        assert (config.split.by, config.split.test_size) == ("stratified", None)
        assert config.split.train_size == (8 if split else None)
    config = RunConfig(population=PopulationConfig(path="a.csv", context="x", response="y"), **rest)
    assert (config.split.by, config.split.test_size) == ("record", 0.25)


def test_it_is_known_by_its_records(toys) -> None:
    def digest() -> str:
        stamp = Inputs(configured("{dataset: parted}")).stamp("population", None, needed=True)
        assert stamp is not None
        return stamp["digest"]

    before = digest()
    assert digest() == before
    toys["word"] = "second"
    assert digest() != before


def test_what_is_no_longer_at_hand_is_only_missed_where_it_is_needed(toys, monkeypatch) -> None:
    config = configured("{dataset: parted}")

    def gone(source):
        raise DataError("Nobody has it.")

    broken = Dataset("parted", "parted", gone, "", has_split=True)
    monkeypatch.setitem(datasets.loading.DATASETS, "parted", broken)
    assert Inputs(config).stamp("population", None, needed=False) is None
    with pytest.raises(DataError, match="Nobody has it"):
        Inputs(config).stamp("population", None, needed=True)


@pytest.mark.parametrize(
    ("population", "more", "message"),
    [
        ("{dataset: mnist}", "", "population.dataset: there is no data set 'mnist'; accepted are"),
        ("{dataset: sst2, path: a.csv}", "", "dataset sst2 brings its own .* leave out path"),
        ("{dataset: sst2, label: x, limit: 9}", "", "leave out label and limit, or dataset"),
        ("{dataset: sst2}", "split: {by: group}", "sst2 is split by stratified; leave out"),
        ("{path: a.csv, context: x, response: y, max_words: 3}", "", "max_words belongs to"),
        (
            "{path: a.csv, context: x, response: y}",
            "split: {test_size: null}",
            "split.test_size may be null only",
        ),
        ("{path: a.csv, response: y}", "", "population.context: this field is required"),
        ("{}", "", "population.path: this field is required.*and 2 more"),
        ("{dataset: 3}", "", "population.dataset: accepted is text"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(population, more, message) -> None:
    with pytest.raises(DataError, match=message) as caught:
        configured(population, more)
    assert "\n" not in str(caught.value)


def test_new_contexts_of_a_data_set(tmp_path, toys) -> None:
    file = tmp_path / "new.csv"
    file.write_text("context,more\nSay a.,1\nSay b.,2\n")
    found = read_contexts(file, configured("{dataset: parted}").population)
    assert found.contexts == ["Say a.", "Say b."]
    assert found.labels is None
    file.write_text("context,label\nSay a.,good\nSay b.,bad\n")
    found = read_contexts(file, configured("{dataset: parted}").population)
    assert found.labels == ["good", "bad"]


def test_the_shipped_configuration_of_reuters() -> None:
    config = load_config("reuters_r8")
    assert (config.population.dataset, config.split.by) == ("reuters_r8", "stratified")
    assert load_config("reuters_r8").split.test_size == 300
