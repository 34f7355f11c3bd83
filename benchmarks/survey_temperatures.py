"""How far to believe a language model's answers: temperatures, calibration, and where fits start.

    mop run ces && python benchmarks/survey_temperatures.py runs/ces --starts prior,2.0

First the run's own prompts with nothing learned, at one temperature for all: total variation from
people by question, over the items of all cells, with and without what the model prefers of an
option's words when nobody in particular is asked. Then, for each of `--starts`, the fit without the
held-out question, from a draw of the prior or from that log temperature: its loss, its temperatures
and how it answers the question. Nothing here is a choice made for a run: held-out people are looked
at.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd

from mop_jax import pipeline
from mop_jax.choices import OptionTable, share_draws
from mop_jax.evaluation.surveys import total_variation
from mop_jax.inference import default_optimizer, fit_svi, posterior_draws
from mop_jax.models import mixture_of_choices
from mop_jax.pipeline import RunFolder, Workspace
from mop_jax.pipeline.surveys.artefacts import SurveyRun
from mop_jax.pipeline.surveys.fitting import model_arguments
from mop_jax.pipeline.surveys.prompted import content_free_offsets
from mop_jax.pipeline.surveys.scoring import option_store

TEMPERATURES = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0)


def at_temperature(table: OptionTable, temperature: float) -> np.ndarray:
    """Shares of the unfitted mixture, [N, M]."""
    return replace(table, log_likelihood=table.log_likelihood / temperature).shares()


def unfitted(space: Workspace, run: SurveyRun) -> pd.DataFrame:
    """Total variation by question, calibration and temperature."""
    questions = run.questions
    with option_store(space) as store:
        offsets = content_free_offsets(space, run, questions, range(len(questions)), store)
    tables = {"none": run.table, "content_free": run.table.calibrated(offsets[run.items.question])}
    rows = []
    for name, table in tables.items():
        for temperature in TEMPERATURES:
            distances = total_variation(at_temperature(table, temperature), run.items)
            rows += [
                (question.id, name, temperature, np.nanmean(distances[run.items.question == q]))
                for q, question in enumerate(questions)
            ]
    return pd.DataFrame(rows, columns=["question", "calibration", "temperature", "value"])


def refitted(run: SurveyRun, start: str, num_steps: int, seed: int) -> dict[str, Any]:
    """The fit without the held-out question, from one start."""
    asked = [q.id for q in run.questions].index(run.section.hold_out_question)
    own = run.items.question == asked
    data = run.data(~run.is_test & ~own)
    values = {}
    if start != "prior":
        hot = np.float32(start)
        values = {
            "mean_log_temperature": hot,
            "log_temperature": np.full(len(run.personas), hot, np.float32),
        }
    fit = fit_svi(
        jax.random.key(seed),
        data,
        model=mixture_of_choices,
        model_kwargs=model_arguments(run.config),
        optimizer=default_optimizer(num_steps, run.config.inference.learning_rate),
        num_steps=num_steps,
        num_particles=run.config.inference.num_particles,
        initial_values=values,
    )
    posterior = posterior_draws(fit, jax.random.key(seed + 1), 200)
    maps = {"feature_maps": posterior.data.feature_maps, "similarity": posterior.data.similarity}

    def distance(which: np.ndarray) -> float:
        shares = share_draws(posterior, run.data(which, **maps)).probs.mean(0, dtype=np.float64)
        shares /= shares.sum(-1, keepdims=True)
        return float(np.nanmean(total_variation(shares, run.items.take(which))))

    temperatures = np.exp(np.asarray(posterior.samples["log_temperature"])).mean(0)
    return {
        "start": start,
        "loss": float(fit.losses[-200:].mean()),
        "temperatures": temperatures.round(2).tolist(),
        "held_out_question": distance(own),
        "held_out_cells": distance(run.is_test & ~own),
    }


def main() -> None:
    """Prints both tables and writes them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--starts", default="")
    parser.add_argument("--num-steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    config = pipeline.read_config(arguments.run)
    run = SurveyRun(arguments.run, config)
    table = unfitted(Workspace(RunFolder(arguments.run, config)), run)
    shown = table.pivot_table("value", ["question", "calibration"], "temperature", sort=False)
    print(shown.round(3).to_string())
    starts = [text for text in arguments.starts.split(",") if text]
    fits = [refitted(run, start, arguments.num_steps, arguments.seed) for start in starts]
    for fit in fits:
        print(fit)
    report = {"unfitted": table.to_dict("records"), "fits": fits}
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"survey_temperatures_{config.name}.json"
    path.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
