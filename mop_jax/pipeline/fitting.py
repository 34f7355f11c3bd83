"""The third step of a run: the posterior, and those of the ablations reported beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mop_jax import atomic
from mop_jax.config import RunConfig
from mop_jax.distributions import PersonaMixture, RenormalisedPersonaMixture
from mop_jax.evaluation.predictors import MAIN, fitted_predictors
from mop_jax.inference import (
    Posterior,
    SVIFit,
    checkpoints,
    default_optimizer,
    fit_svi,
    posterior_draws,
    prior_draws,
    save_posterior,
    to_inference_data,
    write_netcdf,
)
from mop_jax.models import MixtureData
from mop_jax.pipeline.scoring import (
    Round,
    RoundReport,
    first_rounds,
    gate_levels,
    refreshed_round,
    round_plan,
    round_report,
    training_data,
    write_pairs,
)
from mop_jax.pipeline.workspace import Workspace

# Independent streams of random numbers, one for each use.
# Far from small numbers: those are samples' own keys when responses are simulated.
_FIT, _DRAWS, _ABLATION, _PRIOR = 2**31 + 1, 2**31 + 2, 2**31 + 3, 2**31 + 4
# Enough for the density of a share beside that of its posterior; they take two seconds.
_PRIOR_DRAWS = 200
# From there a fit that was killed goes on, and one that was finished before comes back.
CHECKPOINTS = ".fit"


def fit_models(space: Workspace) -> None:
    """Writes the posteriors, their convergence, and the main one as ArviZ's InferenceData."""
    config = space.config
    known, main, rounds = fit_in_rounds(space)
    data = training_data(space, known)
    posterior = posterior_of(space, main)
    ablations = {
        entry.name: _fit_model(space, data, _ABLATION, entry.model_kwargs)
        for entry in fitted_predictors()
        if entry.name != MAIN
    }
    inference_data = to_inference_data(
        posterior,
        data,
        responses=space.sides["train"].records.responses,
        record_ids=space.sides["train"].records.ids,
        exemplar_ids=exemplar_ids(space),
        prior=_prior(space, data, posterior),
        attributes={"configuration": json.dumps(config.model_dump(mode="json"))},
    )
    write_pairs(space, space.sides["train"], known, "train_refreshed.parquet")
    report = {MAIN: convergence_of(main)}
    save_posterior(posterior_path(space, MAIN), posterior)
    for name, ablation in ablations.items():
        report[name] = convergence_of(ablation)
        save_posterior(posterior_path(space, name), posterior_of(space, ablation))
    write_netcdf(space.path / "posterior.nc", inference_data)
    atomic.write_json(space.path / "fit.json", report)
    atomic.write_json(space.path / "rounds.json", [made._asdict() for made in rounds])
    checkpoints.remove(space.path / CHECKPOINTS)


def _prior(space: Workspace, data: MixtureData, posterior: Posterior) -> Posterior | None:
    """Draws from the prior that the fit had; a fit of the likelihood alone had none."""
    if space.config.inference.maximum_likelihood:
        return None
    return prior_draws(
        jax.random.fold_in(jax.random.key(space.config.seed), _PRIOR),
        data,
        model=posterior.model,
        model_kwargs=posterior.model_kwargs,
        num_draws=_PRIOR_DRAWS,
    )


def fit_in_rounds(space: Workspace) -> tuple[Round, SVIFit, list[RoundReport]]:
    """Fits, proposes from the fit, scores what is new and fits again, as the configuration says.

    Rounds end early when one is sure to have moved the bound by less than `refresh_tolerance`; see
    `RoundReport.settled` for what that costs.
    """
    tolerance, unit_index = space.config.candidates.refresh_tolerance, space.grid.unit_index
    records = space.sides["train"].records
    made = first_rounds(space)
    rounds = [
        round_report(before, after, unit_index, records)
        for before, after in zip([None, *made], made, strict=False)
    ]
    known = made[-1]
    main = _fit_model(space, training_data(space, known), _FIT, {})
    for number, size in enumerate(round_plan(space).refreshed, start=1):
        if rounds[-1].settled(tolerance):
            break
        proposing = posterior_of(space, main)
        after = refreshed_round(space, known, size, proposing, number)
        gate = partial(gate_levels, space, proposing)
        rounds.append(round_report(known, after, unit_index, records, gate))
        known = after
        main = _fit_model(space, training_data(space, known), _FIT, {})
    return known, main, rounds


def exemplar_ids(space: Workspace) -> list[str]:
    """The ids of the gate's exemplars; that of none at all, where there is one, is "none"."""
    components = space.components
    return components.exemplars.ids + (["none"] if components.bare != "none" else [])


def convergence_of(fitted: SVIFit) -> dict[str, Any]:
    """A fit's convergence for a JSON file."""
    # Too short a run has no improvement to speak of; JSON has no NaN.
    report = fitted.convergence._asdict()
    return {k: None if isinstance(v, float) and np.isnan(v) else v for k, v in report.items()}


def posterior_path(space: Workspace, name: str) -> Path:
    """Where the posterior of a fitted predictor is kept."""
    if name == MAIN:
        return space.path / "posterior.safetensors"
    return space.path / "ablations" / f"{name}.safetensors"


def _fit_model(
    space: Workspace, data: MixtureData, stream: int, changes: Mapping[str, Any]
) -> SVIFit:
    config = space.config
    arguments: dict[str, Any] = {**config.model.model_dump(), **changes}
    arguments["distribution"] = mixture_class(config)
    if config.candidates.num_kept is not None:
        arguments["num_kept"] = config.candidates.num_kept
    section = config.inference
    start = {}
    kind = arguments["temperature"]
    if section.initial_temperature is not None and kind not in (False, "fixed"):
        level = float(np.log(section.initial_temperature))
        start = {"mean_log_temperature": level}
        if kind in (True, "persona"):
            start["log_temperature"] = level
    return fit_svi(
        jax.random.fold_in(jax.random.key(config.seed), stream),
        data,
        model_kwargs=arguments,
        guide=section.guide,
        optimizer=default_optimizer(section.num_steps, section.learning_rate),
        num_steps=section.num_steps,
        batch_size=section.batch_size,
        num_particles=section.num_particles,
        checkpoint=space.path / CHECKPOINTS,
        maximum_likelihood=section.maximum_likelihood,
        initial_values=start,
    )


def mixture_class(config: RunConfig) -> type[PersonaMixture]:
    """The distribution that belongs to a candidate method."""
    renormalised = config.candidates.method == "renormalised"
    return RenormalisedPersonaMixture if renormalised else PersonaMixture


def posterior_of(space: Workspace, fitted: Any) -> Posterior:
    """Posterior draws of a fit."""
    key = jax.random.fold_in(jax.random.key(space.config.seed), _DRAWS)
    return posterior_draws(fitted, key, space.config.inference.num_draws)
