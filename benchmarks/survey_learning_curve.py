"""How much a survey's mixture, and methods without a language model, gain from more cells.

    mop run ces && python benchmarks/survey_learning_curve.py runs/ces --out docs/studies/ces

Refits the finished run to the first 8, 16, 32 and 72 of its training cells, in an order for each
seed, and judges the run's held-out cells each time. Options are not scored anew: the cells that the
run's exemplars are of come first, for all methods, and a mixture of few cells shows the exemplars
of those cells alone. MRP is refitted for one order only unless `--mrp-seeds` says more; it takes
most of the time.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import numpy as np
import pandas as pd

from mop_jax import pipeline, plots
from mop_jax.choices import share_draws
from mop_jax.evaluation.surveys import SURVEY_MEASURES, SURVEY_METHODS, learning_curve, noise_floor
from mop_jax.inference import posterior_draws
from mop_jax.pipeline.surveys.artefacts import SurveyRun
from mop_jax.pipeline.surveys.fitting import fit_data
from mop_jax.survey import Items

MEASURES = ("total_variation", "nemd", "log_score")
TITLES = {"mop": "Mixture of personas"}


def mixture(run: SurveyRun):
    """The run's mixture as a function of training items, test items and seed."""
    places = {key: n for n, key in enumerate(zip(run.items.cell, run.items.question, strict=True))}

    def rows(items: Items) -> np.ndarray:
        which = np.zeros(len(run.items), bool)
        which[[places[key] for key in zip(items.cell, items.question, strict=True)]] = True
        return which

    def predict(train: Items, test: Items, seed: int) -> np.ndarray:
        shown = np.isin(run.exemplars["cell"], train.cell)
        fit = fit_data(run, run.data(rows(train), shown), jax.random.key(seed), progress=False)
        posterior = posterior_draws(fit, jax.random.key(seed + 1), 200)
        maps = posterior.data
        data = run.data(
            rows(test), shown, feature_maps=maps.feature_maps, similarity=maps.similarity
        )
        return share_draws(posterior, data).cells(np.random.default_rng(seed))

    return predict


def main() -> None:
    """Writes learning_curve.csv and its figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--mrp-seeds", type=int, default=1)
    parser.add_argument("--sizes", default="8,16,32,72")
    arguments = parser.parse_args()
    run = SurveyRun(arguments.run, pipeline.read_config(arguments.run))
    if run.section.history:
        parser.error("a learning curve is of cells; give a run without history")
    train, test = run.items.take(~run.is_test), run.items.take(run.is_test)
    sizes = [int(size) for size in arguments.sizes.split(",")]
    methods = {
        "mop": mixture(run),
        **{name: SURVEY_METHODS[name] for name in ("pooled_marginal", "logistic_regression")},
    }
    first = np.unique(run.exemplars["cell"])
    parts = [(methods, arguments.seeds), ({"mrp": SURVEY_METHODS["mrp"]}, arguments.mrp_seeds)]
    tables = [
        learning_curve(some, train, test, sizes=sizes, seeds=range(seeds), first=first)
        for some, seeds in parts
        if seeds
    ]
    curve = pd.concat(tables, ignore_index=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    curve.to_csv(arguments.out / "learning_curve.csv", index=False)
    means = curve.groupby(["measure", "method", "num_cells", "seed"])["value"].mean()
    print(means.groupby(["measure", "method", "num_cells"]).mean().unstack().round(4))
    titles = {name: SURVEY_MEASURES[name].title for name in MEASURES}
    curves = {
        titles[measure]: {
            TITLES.get(name) or SURVEY_METHODS[name].title: means[measure, name]
            .unstack()
            .loc[sizes]
            .to_numpy()
            for name in [*methods, *(["mrp"] if arguments.mrp_seeds else [])]
        }
        for measure in MEASURES
    }
    floors = noise_floor(test, list(MEASURES[:2])).query("average == 'cells'")
    figure = plots.cells_learning_curve(
        sizes,
        curves,
        {titles[name]: SURVEY_MEASURES[name].direction for name in MEASURES},
        floors=dict(zip(floors["measure"].map(titles), floors["true_shares"], strict=True)),
        headline=TITLES["mop"],
    )
    plots.save_figure(arguments.out / "learning_curve.png", figure)


if __name__ == "__main__":
    main()
