"""A survey's fourth step: held-out cells and questions, beside methods with and without a model.

Shares are judged by cell. Where histories are known, people are scored one by one besides: what
somebody answered before says more of them than of their cell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from mop_jax import atomic
from mop_jax.choices import ShareDraws, share_draws
from mop_jax.evaluation.surveys import (
    MRP,
    SURVEY_MEASURES,
    SURVEY_METHODS,
    Estimate,
    compare,
    coverage,
    estimate,
    noise_floor,
    overall,
    paired_difference,
)
from mop_jax.evaluation.surveys.intervals import FEWEST_CELLS
from mop_jax.inference import Posterior, load_posterior
from mop_jax.pipeline.surveys.artefacts import SurveyRun
from mop_jax.pipeline.surveys.fitting import unseen_path
from mop_jax.pipeline.workspace import Workspace, write_arrays
from mop_jax.survey import Items, merge_histories, merge_shares
from mop_jax.survey.export import to_tidy_table, write_cells_table
from mop_jax.survey.histories import cell_groups

PROMPTED = ("zero_shot", "demographic_persona", "few_shot", "verbalised")
"""The same language model without a mixture; see `prompted_shares`."""
_INDIVIDUAL = "log_score_individual"
# A stream of random numbers.
_CELLS = 41


def evaluate_survey(space: Workspace) -> None:
    """Writes measures, shares by cell as tidy and as exchangeable tables, and draws for figures."""
    run, seed = SurveyRun(space.path, space.config), space.config.seed
    prompted = load_file(space.path / "prompted.safetensors")
    posterior = load_posterior(space.path / "posterior.safetensors")
    rng = np.random.default_rng([seed, _CELLS])
    everything = np.ones(len(run.items), bool)
    predicted = predict_items(run, posterior, everything)
    drawn = _of_cells(predicted, run.items).cells(rng)

    by_cell, test = run.by_cell, run.by_cell_is_test
    unseen = by_cell.take(test)
    draws: dict[str, np.ndarray] = {"mop": drawn[:, test]}
    deff = run.design_effect
    for name, method in SURVEY_METHODS.items():
        if isinstance(method, MRP):
            method = replace(method, design_effect=deff)
        fitted = method.fit(by_cell.take(~test), seed=seed)
        draws[name] = fitted.predict(unseen)
    shares: dict[str, np.ndarray] = {
        **draws,
        **{name: merge_shares(prompted[name], run.items)[test] for name in PROMPTED},
    }
    measures, differences = _judged_together(shares, unseen)
    report: dict[str, Any] = {
        "unseen_cells": measures,
        "differences": differences,
        "coverage_90": {
            name: coverage(values, unseen, 0.9, design_effect=deff, seed=seed)
            for name, values in draws.items()
            if name != "uniform"
        },
        "noise_floor": noise_floor(unseen, design_effect=deff, seed=seed).to_dict("records"),
        "design_effect": deff,
        "option_mass": float(np.nanmean(np.exp(run.table.log_mass))),
        "order_effect": dict(zip(("single", "averaged"), run.table.order_effect(), strict=True)),
        "verbalised_read": float(np.nanmean(prompted["verbalised_read"])),
    }
    if run.section.history:
        people = run.items.take(run.is_test)
        told = {"mop": _of_an_answer(predicted)[run.is_test]}
        told |= {name: prompted[name][run.is_test] for name in PROMPTED}
        _add_individuals(report["unseen_cells"], report["differences"], told, draws, people)
    asked = run.section.hold_out_question
    if asked is not None:
        index = np.flatnonzero(
            run.items.question == [question.id for question in run.questions].index(asked)
        )
        people = run.items.take(index)
        items = merge_histories(people)
        second = load_posterior(unseen_path(space.path))
        which = np.isin(np.arange(len(run.items)), index)
        predicted = predict_items(run, second, which)
        uniform = SURVEY_METHODS["uniform"].fit(by_cell, seed=seed).predict(items)
        others = {
            "mop": _of_cells(predicted, people).cells(rng),
            "uniform": uniform,
            **{name: merge_shares(prompted[name][index], people) for name in PROMPTED},
        }
        measures, differences = _judged_together(others, items)
        if run.section.history:
            told = {"mop": _of_an_answer(predicted)}
            told |= {name: prompted[name][index] for name in PROMPTED}
            _add_individuals(measures, differences, told, {"uniform": uniform}, people)
        report["unseen_question"] = {"question": asked, **measures}
        report["unseen_question_differences"] = differences
    atomic.write_json(space.path / "metrics.json", _jsonable(report))
    low, high = np.quantile(drawn, [0.05, 0.95], axis=0)
    table = to_tidy_table(by_cell, drawn.mean(0), low, high)
    table["real_share"] = to_tidy_table(by_cell)["share"]
    # Items whose people are all shown have no rows.
    table["held_out"] = np.repeat(test, by_cell.mask.sum(1) * (by_cell.people > 0))
    atomic.write_text(space.path / "shares.csv", table.to_csv(index=False, lineterminator="\n"))
    write_cells_table(space.path / "cells.csv", by_cell, drawn.mean(0))
    write_arrays(space.path / "held_out.safetensors", draws)


def predict_items(run: SurveyRun, posterior: Posterior, which: np.ndarray) -> ShareDraws:
    """Posterior draws of the shares of items, which the fit may not have seen."""
    reference = posterior.data
    data = run.data(which, feature_maps=reference.feature_maps, similarity=reference.similarity)
    return share_draws(posterior, data)


def _judged_together(
    shares: Mapping[str, np.ndarray], items: Items
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Every measure of every method with the interval over cells, and the mixture less the others.

    No differences where cells are too few to be drawn anew.
    """
    measures: dict[str, Any] = {name: {} for name in shares}
    differences: dict[str, Any] = {}
    for measure in _judging(items):
        if not _resampled(items):
            for name, values in shares.items():
                measures[name][measure] = _judged(measure, values, items)
            continue
        alone, less = compare(measure, shares, items, "mop", replicates=_replicates(measure))
        for name, found in alone.items():
            measures[name][measure] = found._asdict()
        for name, found in less.items():
            differences.setdefault(name, {})[measure] = found._asdict()
    return measures, differences


def _of_cells(predicted: ShareDraws, items: Items) -> ShareDraws:
    """Draws of whole cells, whatever their people answered before.

    Cells differ from the model as one: if every history of a cell did so by itself, what they do
    would average out, and intervals be too narrow.
    """
    first, _ = cell_groups(items)
    return ShareDraws(merge_shares(predicted.probs, items), predicted.concentration[:, first])


def _of_an_answer(predicted: ShareDraws) -> np.ndarray:
    """How one person's answer is distributed, float64 [N, M]: dispersion has no bearing on it."""
    mean = predicted.probs.mean(0, dtype=np.float64)
    return mean / mean.sum(-1, keepdims=True)


def _add_individuals(
    measures: dict[str, Any],
    differences: dict[str, Any],
    told: Mapping[str, np.ndarray],
    untold: Mapping[str, np.ndarray],
    items: Items,
) -> None:
    """Adds the log score of respondents, whose earlier answers those who were told them know.

    It is a mean over the same respondents for all; methods that predict cells give all people of a
    cell the same shares, so that theirs is their log score.

    Args:
        measures: of every method, to which it is added.
        differences: likewise; may be empty.
        told: shares of the items by methods that know histories, [N, M].
        untold: draws of shares of the items' cells by those that do not, [S, G, M].
        items: N items with their histories.
    """
    _, group = cell_groups(items)
    shares = {name: draws.mean(0)[group] for name, draws in untold.items()} | dict(told)
    for name in measures:
        measures[name][_INDIVIDUAL] = _judged("log_score", shares[name], items)
    for name in differences:
        found = paired_difference("log_score", shares["mop"], shares[name], items)
        differences[name][_INDIVIDUAL] = found._asdict()


def _judged(measure: str, values: np.ndarray, items: Items) -> dict[str, Any]:
    """A measure with its interval; without one where cells are too few to be drawn anew."""
    if _resampled(items):
        return estimate(measure, values, items, replicates=_replicates(measure))._asdict()
    return {"mean": overall(measure, values, items), "low": None, "high": None}


def _replicates(measure: str) -> int:
    """Fewer for measures that compare all cells with one another, which takes long."""
    return 1000 if SURVEY_MEASURES[measure].of == "item" else 100


def _resampled(items: Items) -> bool:
    return len(np.unique(items.cell)) >= FEWEST_CELLS


def _judging(items: Items) -> list[str]:
    """Measures that are defined for these items."""
    ordered = any(items.questions[q].ordered for q in np.unique(items.question))
    return [name for name, m in SURVEY_MEASURES.items() if ordered or not m.needs_order]


def _jsonable(value: Any) -> Any:
    """JSON has no NaN and no infinity: the one is null, the other a text."""
    if isinstance(value, Estimate):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {str(key): _jsonable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(entry) for entry in value]
    if isinstance(value, float | np.floating):
        if np.isnan(value):
            return None
        return float(value) if np.isfinite(value) else str(float(value))
    return value.item() if isinstance(value, np.generic) else value
