"""A whole benchmark in miniature: rows, resumption, what is asked for wrongly."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from mop_jax.benchmark import make_table, responses, tables
from mop_jax.benchmark.tables import COLUMNS
from mop_jax.benchmark.writing import markdown
from mop_jax.errors import DataError
from mop_jax.pipeline import RunFolder, Workspace
from mop_jax.population import Population

pytest_plugins = ("tests.run_fixtures",)
METHODS = ["zero_shot", "few_shot_1", "uniform_mixture", "mop"]


@pytest.fixture(scope="module")
def made(materials, tmp_path_factory):
    """The benchmark's folder and its table."""
    folder = tmp_path_factory.mktemp("benchmark")
    table = make_table(
        "table1", [materials.config()], folder, seeds=[0, 1], num_samples=14, methods=METHODS
    )
    return folder, table


def test_every_method_metric_and_seed_has_a_row(made, materials):
    folder, table = made
    assert list(table.columns) == COLUMNS
    name = materials.config().name
    assert set(table["data"]) == {name}
    for metric in ("fid", "mauve", "kl_cosine", "downstream_f1", "mean_words"):
        rows = table[table["metric"] == metric]
        assert sorted(zip(rows["method"], rows["seed"])) == sorted(
            (method, seed) for method in METHODS for seed in (0, 1)
        )
    assert set(table["n"]) == {14}
    written = pd.read_csv(folder / "table1.csv")
    pd.testing.assert_frame_equal(written, table, check_dtype=False)
    assert (folder / f"table1-{name}.png").read_bytes()[:4] == b"\x89PNG"
    text = (folder / "table1.md").read_text("utf-8")
    assert "| mixture of personas |" in text
    assert "against the best baseline" in text


def test_zero_shot_shows_nothing_and_the_others_their_exemplars(made, materials):
    folder = made[0] / materials.config().name / "seed-0"
    train = set()
    for method, number in (("zero_shot", 0), ("few_shot_1", 1), ("uniform_mixture", 1)):
        lines = (folder / "responses" / f"{method}.jsonl").read_text("utf-8").split("\n")
        rows = [json.loads(line) for line in lines[2:] if line]
        assert [row["sample"] for row in sorted(rows, key=lambda r: r["sample"])] == [*range(14)]
        assert {len(row["shown"]) for row in rows} == {number}
        train |= {text for row in rows for text in row["shown"]}
    assert len(train) > 3


def test_what_is_there_is_neither_drawn_nor_measured_again(made, materials, nothing_is_done_again):
    folder, table = made
    again = make_table(
        "table1", [materials.config()], folder, seeds=[0, 1], num_samples=14, methods=METHODS
    )
    pd.testing.assert_frame_equal(again, table)


def test_a_job_that_was_killed_goes_on_to_the_same_texts(made, materials):
    folder, table = made
    path = folder / materials.config().name / "seed-1" / "responses" / "few_shot_1.jsonl"
    whole = path.read_text("utf-8")
    lines = whole.split("\n")
    path.write_text("\n".join(lines[:7]) + "\n" + lines[7][:20], encoding="utf-8")
    again = make_table(
        "table1", [materials.config()], folder, seeds=[1], num_samples=14, methods=["few_shot_1"]
    )

    def by_sample(text):
        rows = [json.loads(line) for line in text.split("\n")[2:] if line]
        return {row["sample"]: row["text"] for row in rows}

    assert by_sample(path.read_text("utf-8")) == by_sample(whole)
    rows = table[(table["method"] == "few_shot_1") & (table["seed"] == 1)]
    np.testing.assert_allclose(again["value"], rows["value"])


def test_margins_are_those_against_the_best_baseline():
    def row(method, seed, value):
        return dict(zip(COLUMNS, ["d", method, "fid", seed, value, 0.0, 1.0, 0.1, 9]))

    rows = [row("zero_shot", 0, 2.0), row("zero_shot", 1, 2.2), row("few_shot_1", 0, 1.0),
            row("few_shot_1", 1, 1.4), row("mop", 0, 0.5), row("mop", 1, 0.7)]  # fmt: skip
    text = markdown("table1", pd.DataFrame(rows, columns=COLUMNS))
    title = responses.title_of("few_shot_1")
    assert (
        f"mixture of personas -50% against the best baseline, {title} (by seed -50%, -50%)" in text
    )
    assert "| mixture of personas | 0.600 ± 0.141 |" in text


def test_margins_are_paired_by_seeds_that_all_have():
    def row(method, seed, value):
        return dict(zip(COLUMNS, ["d", method, "fid", seed, value, 0.0, 1.0, 0.1, 9]))

    rows = [row("mop", 0, 1.0), row("mop", 1, 2.0), row("zero_shot", 0, 1.2),
            row("few_shot_1", 0, 1.5), row("few_shot_1", 1, 2.1)]  # fmt: skip
    text = markdown("table1", pd.DataFrame(rows, columns=COLUMNS), {"d": ["A floor.", "A floor."]})
    assert "mixture of personas -17% against the best baseline, zero-shot" in text
    assert text.count("- A floor.") == 1


def test_columns_of_a_table_are_as_many_as_its_metrics():
    """A title may hold a bar, as a conditional probability does."""
    names = ["fid", "held_out_log_prob", "held_out_gain"]
    rows = [
        dict(zip(COLUMNS, ["d", method, name, 0, value, value - 1, value + 1, None, n]))
        for method, value in (("full", -3.0), ("no_personas", -4.0))
        for name, n in zip(names, (20, 12, 12))
    ]
    text = markdown("table4", pd.DataFrame(rows, columns=COLUMNS))
    lines = [line for line in text.split("\n") if line.startswith("|")]
    assert len(lines) == 5
    assert {line.replace(r"\|", "").count("|") for line in lines} == {5}
    assert "| without personas | -4.000 (-5.000 to -3.000) | -4.000" in text
    assert "20 simulated responses per ablation" in text
    # No share of a log-probability is told.
    assert text.count("against the best ablation") == 1


def test_measures_follow_the_records_that_they_compare_with(made, materials, monkeypatch):
    """The same responses beside other real ones are measured anew."""
    folder, table = made
    monkeypatch.setattr(Population, "fingerprint", "0" * 64)
    counted = []
    measure = tables._measure
    monkeypatch.setattr(tables, "_measure", lambda *a: counted.append(1) or measure(*a))
    seed = folder / materials.config().name / "seed-0"
    config = tables._configured(materials.config(), None, 0, 14)
    space = Workspace(RunFolder(seed / "run", config))
    found = responses.respond(space, "mop", seed)
    rows, _ = tables._measured(space, found, "d", "mop", 0, seed)
    assert counted == [1]
    assert len(rows) == len(table[(table["method"] == "mop") & (table["seed"] == 0)])


@pytest.mark.parametrize(
    ("table", "options", "said"),
    [
        ("table9", {}, "There is no table 'table9'; there are table1"),
        (
            "table1",
            {"methods": ["few_shot_2"]},
            "There is no method 'few_shot_2' in table1; there are zero",
        ),
        ("table1", {"seeds": []}, "at least one data set, one seed and one method"),
        ("table1", {"num_samples": 1}, "num_samples is 1"),
        ("table1", {"seeds": [1, 1]}, "seeds .* repeat themselves"),
    ],
)
def test_what_is_asked_for_wrongly_is_said(table, options, said, materials, tmp_path):
    with pytest.raises(DataError, match=said):
        make_table(table, [materials.config()], tmp_path, **options)
