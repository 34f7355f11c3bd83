"""The table of predictors: a further one is a class and one registration, and nothing else."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from mop_jax import plots
from mop_jax.errors import DataError
from mop_jax.evaluation.predictors import (
    BASELINE,
    MAIN,
    PREDICTORS,
    HeldOut,
    Predictor,
    fitted_predictors,
    is_estimated,
    register,
)
from mop_jax.pipeline import read_config
from mop_jax.pipeline.drawing import draw_figures
from mop_jax.pipeline.evaluation import evaluate_held_out
from mop_jax.pipeline.run_folder import RunFolder
from mop_jax.pipeline.summary import held_out_table
from mop_jax.pipeline.workspace import Workspace
from tests.run_fixtures import read_json

pytest_plugins = ("tests.run_fixtures",)


@pytest.fixture
def registry() -> Iterator[dict[str, Predictor]]:
    """The table, put back as it was."""
    before = dict(PREDICTORS)
    yield PREDICTORS
    PREDICTORS.clear()
    PREDICTORS.update(before)


# Whatever else there is, every run reports these, in this order.
SHIPPED = (
    "zero_shot", "persona_only", "uniform_mixture", "uniform_gate_temperature",
    "mop_no_temperature", "mop",
)  # fmt: skip


class Letters:
    """Every character of a response costs what characters cost in training: a crude baseline."""

    name, title = "letters", "letters at random"

    def log_prob(self, held_out: HeldOut) -> np.ndarray:
        """−log 27 a character, end included, whatever was learned."""
        assert len(held_out.train) > 0
        return np.asarray([-(len(y) + 1) * np.log(27.0) for y in held_out.test.responses])


class First:
    """The first candidate alone: an estimate, which fewer candidates change."""

    name, title, estimated = "first", "first candidate", True

    def log_prob(self, held_out: HeldOut) -> np.ndarray:
        """Its log-likelihood at the middle temperature."""
        table = np.asarray(held_out.data.log_likelihood)
        return table[:, 0, table.shape[2] // 2].astype(float)


def test_the_table_is_in_order():
    assert list(PREDICTORS)[-1] == MAIN
    assert [entry.name for entry in fitted_predictors()][-1] == MAIN
    assert all(name == entry.name for name, entry in PREDICTORS.items())
    assert [name for name in PREDICTORS if name in SHIPPED] == list(SHIPPED)
    estimated = {name for name, entry in PREDICTORS.items() if is_estimated(entry)}
    assert estimated >= {BASELINE, *(entry.name for entry in fitted_predictors())}
    assert not estimated & {"zero_shot", "persona_only"}


def test_a_predictor_stands_where_it_is_asked_to(registry):
    register(Letters())
    names = list(registry)
    assert names.index("letters") == names.index(BASELINE) - 1
    register(First(), before="")
    assert list(registry)[-1] == "first"


def test_bad_predictors_are_refused(registry):
    before = list(registry)
    wrong = Letters()
    wrong.name = "mop"
    with pytest.raises(DataError, match="There is a predictor 'mop' already"):
        register(wrong)
    wrong.name = "no word"
    with pytest.raises(DataError, match="accepted are letters, digits and underscores"):
        register(wrong)
    assert list(registry) == before


def test_registered_baselines_are_in_every_table_and_figure(registry, copy_of_run, monkeypatch):
    """Neither the pipeline nor the figures know of them beforehand."""
    register(Letters(), before=next(iter(registry)))
    register(First())
    space = Workspace(RunFolder(copy_of_run, read_config(copy_of_run)))
    # The run was evaluated before they were registered: what there is is shown.
    draw_figures(space)
    assert held_out_table(copy_of_run).row_count == len(registry) - 2
    evaluate_held_out(space)
    frame = pd.read_parquet(copy_of_run / "held_out.parquet")
    lengths = np.asarray([len(y) + 1 for y in space.sides["test"].records.responses])
    np.testing.assert_allclose(frame["letters"], -lengths * np.log(27))
    metrics = read_json(copy_of_run / "metrics.json")
    weights = frame["weight"]
    for name in ("letters", "first"):
        mean = np.average(frame[name], weights=weights)
        assert metrics["held_out"][name]["mean"] == pytest.approx(mean)
        assert metrics["metrics"]["held_out_log_prob"][name]["mean"] == pytest.approx(mean)
    assert "letters" not in metrics["candidate_slack"]
    assert "first" in metrics["candidate_slack"]
    out = io.StringIO()
    Console(file=out, width=140).print(held_out_table(copy_of_run))
    for entry in (Letters, First):
        assert entry.title in out.getvalue()
    seen = {}

    def remember(rows, differences, note="", **options):
        seen.update(rows=rows, differences=differences, **options)
        return drawn(rows, differences, note, **options)

    drawn = plots.held_out_comparison
    monkeypatch.setattr(plots, "held_out_comparison", remember)
    draw_figures(space)
    assert [row[0] for row in seen["rows"]] == [entry.title for entry in registry.values()]
    assert {"letters at random", "first candidate"} <= {row[0] for row in seen["differences"]}
    assert seen["headline"] == registry[MAIN].title
    assert "first candidate" in seen["hidden"]
