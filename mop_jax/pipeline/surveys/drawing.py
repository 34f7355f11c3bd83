"""A survey's last step: its figures."""

from __future__ import annotations

import json

import numpy as np
from safetensors.numpy import load_file

from mop_jax import plots
from mop_jax.choices import persona_draws
from mop_jax.evaluation.surveys import SURVEY_METHODS, calibration, group_means, sample_shares
from mop_jax.inference import Posterior, load_posterior
from mop_jax.pipeline.surveys.artefacts import SurveyRun
from mop_jax.pipeline.workspace import Workspace
from mop_jax.plots.fonts import numbered
from mop_jax.plots.style import save_figure

_LEVELS = np.linspace(0.1, 0.9, 9)
_MAIN = "Mixture of personas"


def draw_survey(space: Workspace) -> None:
    """Draws the loss trace, answers and personas by group, and how well intervals cover."""
    run, seed = SurveyRun(space.path, space.config), space.config.seed
    figures = space.path / "figures"
    fit = json.loads((space.path / "fit.json").read_text("utf-8"))["mop"]
    posterior = load_posterior(space.path / "posterior.safetensors")
    save_figure(
        figures / "elbo.png",
        plots.elbo_trace(
            posterior.losses,
            converged=fit["converged"],
            reason=fit["reason"],
            windows=fit.get("windows"),
        ),
    )
    draws = load_file(space.path / "held_out.safetensors")
    draws = {name: values.astype(np.float64) for name, values in draws.items()}
    draws = {name: values / values.sum(-1, keepdims=True) for name, values in draws.items()}
    unseen = run.by_cell.take(run.by_cell_is_test)
    note = f"{len(np.unique(unseen.cell))} held-out cells; intervals with sampling error."
    covered = {
        _MAIN if name == "mop" else SURVEY_METHODS[name].title: calibration(
            values, unseen, _LEVELS.tolist(), design_effect=run.design_effect, seed=seed
        )
        for name, values in draws.items()
        if name != "uniform"
    }
    save_figure(
        figures / "calibration.png",
        plots.interval_calibration(
            _LEVELS,
            covered,
            num_shares=int((unseen.mask.sum(1) - 1).sum()),
            headline=_MAIN,
            note=note,
        ),
    )
    sampled = sample_shares(draws["mop"], unseen, design_effect=run.design_effect, seed=seed)
    drawn = False
    for q, question in enumerate(run.questions):
        own = (unseen.question == q) & (unseen.counts.sum(1) > 0)
        if not own.any():
            continue  # nobody of the held-out cells answered it
        of_question = unseen.take(own)
        options = slice(question.num_options)
        names, real = group_means(of_question.shares[:, options], of_question)
        _, simulated = group_means(sampled[:, own, options], of_question)
        everybody = draws["pooled_marginal"][:, own, options].mean(0)
        figure = plots.group_answers(
            names,
            question.options,
            real,
            simulated,
            question=question.text,
            baseline=group_means(everybody, of_question)[1],
            note=note,
        )
        # The first has the name that every run's folder has.
        name = f"shares_{question.id}" if drawn else "shares"
        save_figure(figures / f"{name}.png", figure)
        drawn = True
    _draw_personas(run, posterior)


def _draw_personas(run: SurveyRun, posterior: Posterior) -> None:
    """Which personas speak for which groups, over the items that the fit has seen."""
    seen = ~run.is_test
    items = run.items.take(seen)
    reference = posterior.data
    data = run.data(seen, feature_maps=reference.feature_maps, similarity=reference.similarity)
    names, means = group_means(persona_draws(posterior, data), items)
    figure = plots.persona_groups(
        names,
        numbered([persona.text for persona in run.personas]),
        means,
        note="Training cells, weighted by their people.",
    )
    save_figure(run.path / "figures" / "persona_groups.png", figure)
