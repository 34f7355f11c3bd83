"""Likeness of a finished run: what is compared, what is written, what is said."""

from __future__ import annotations

import json

import numpy as np

from mop_jax import pipeline
from mop_jax.evaluation.metrics import METRICS, Comparison
from mop_jax.pipeline import RunFolder, Workspace
from mop_jax.pipeline.judging import compared, labels_of_contexts
from mop_jax.pipeline.summary import FAMILIES, likeness_tables
from mop_jax.population import Population
from tests.run_fixtures import read_json, read_lines

pytest_plugins = ("tests.run_fixtures",)


def test_every_metric_of_texts_has_its_value_interval_and_floor(finished_run):
    found = read_json(finished_run / "likeness.json")
    names = {name for name, metric in METRICS.items() if metric.takes is Comparison}
    # What refuses so few texts is said.
    left_out = names - set(found["metrics"])
    assert left_out <= {"classifier_accuracy"}
    for name in left_out:
        assert any(f"Metric '{name}' is left out" in note for note in found["notes"])
    for name, value in found["metrics"].items():
        low, high = METRICS[name].range
        assert low <= value["value"] <= high
        assert value["n"] == found["num_simulated"] == 20
        if value["low"] is not None:
            assert value["low"] <= value["high"]
    texts = [row["text"] for row in read_lines(finished_run / "simulated.jsonl")]
    words = np.mean([len((text or "…").split()) for text in texts])
    np.testing.assert_allclose(found["metrics"]["mean_words"]["value"], words)
    assert set(found["by_label"]["energy_distance"]) == {"fresh", "rotten"}


def test_tables_stand_together_by_family(finished_run):
    tables = likeness_tables(finished_run)
    assert [str(table.title).split(" (")[0] for table in tables] == [*FAMILIES.values()]
    shown = sum(table.row_count for table in tables)
    assert shown == len(read_json(finished_run / "likeness.json")["metrics"])
    assert "as well as" in str(tables[-1].caption)


def test_the_file_is_plain_json(finished_run):
    text = (finished_run / "likeness.json").read_text("utf-8")
    json.loads(text, parse_constant=lambda name: 1 / 0)  # neither NaN nor Infinity


def test_labels_count_where_contexts_ask_for_them():
    told = Population(["a", "b", "c"], ["praise", "blame", "praise"], list("xyz"),
                      labels=["good", "bad", "good"])  # fmt: skip
    assert labels_of_contexts(told) == ["good", "bad", "good"]
    answer = Population(["a", "b"], ["how was it?"] * 2, list("xy"), labels=["good", "bad"])
    assert labels_of_contexts(answer) is None


def test_only_contexts_that_were_answered_are_compared(copy_of_run):
    space = Workspace(RunFolder(copy_of_run, pipeline.read_config(copy_of_run)))
    test = space.sides["test"].records
    rows = [4, 0, 4]
    found = compared(space, rows, ["one", "", "three"], [("e",), (), ()])
    assert found.real.texts == (test.responses[0], test.responses[4])
    assert found.simulated.texts == ("one", "…", "three")
    assert found.simulated.groups == tuple(test.groups[row] for row in rows)
    assert found.simulated.labels == tuple(test.labels[row] for row in rows)
