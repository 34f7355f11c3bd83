"""A survey's third step: the posterior, and a second one without the question that is held out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax

from mop_jax import atomic
from mop_jax.config import RunConfig
from mop_jax.inference import (
    SVIFit,
    checkpoints,
    default_optimizer,
    fit_svi,
    save_posterior,
    to_inference_data,
    write_netcdf,
)
from mop_jax.models import MixtureData, mixture_of_choices
from mop_jax.pipeline.fitting import CHECKPOINTS, convergence_of, posterior_of
from mop_jax.pipeline.surveys.artefacts import SurveyRun
from mop_jax.pipeline.workspace import Workspace

# Streams of random numbers; see `mop_jax.pipeline.fitting`.
_FIT, _UNSEEN = 2**31 + 11, 2**31 + 13


def fit_survey(space: Workspace) -> None:
    """Writes the posteriors, their convergence, and the main one as ArviZ's InferenceData."""
    run, config = SurveyRun(space.path, space.config), space.config
    training = ~run.is_test
    data = run.data(training)
    main = fit_data(run, data, _key(config, _FIT), checkpoint=space.path / CHECKPOINTS)
    posterior = posterior_of(space, main)
    report = {"mop": convergence_of(main)}
    save_posterior(space.path / "posterior.safetensors", posterior)
    inference_data = to_inference_data(
        posterior,
        data,
        record_ids=run.items.take(training).names(),
        attributes={"configuration": json.dumps(config.model_dump(mode="json"))},
    )
    write_netcdf(space.path / "posterior.nc", inference_data)
    if run.section.hold_out_question is not None:
        ids = [question.id for question in run.questions]
        rest = training & (run.items.question != ids.index(run.section.hold_out_question))
        key = _key(config, _UNSEEN)
        second = fit_data(run, run.data(rest), key, checkpoint=space.path / CHECKPOINTS)
        report["mop_without_question"] = convergence_of(second)
        save_posterior(unseen_path(space.path), posterior_of(space, second))
    atomic.write_json(space.path / "fit.json", report)
    checkpoints.remove(space.path / CHECKPOINTS)


def unseen_path(folder: Path) -> Path:
    """Where the posterior without the held-out question is kept."""
    return folder / "ablations" / "without_question.safetensors"


def model_arguments(config: RunConfig) -> dict[str, Any]:
    """Arguments of `mixture_of_choices`."""
    survey = config.survey
    assert survey is not None
    return {
        **config.model.model_dump(),
        "option_bias": survey.calibration == "learned",
        "dispersion": survey.dispersion,
        "option_preference": survey.preference,
        "option_effects": survey.option_effects,
    }


def fit_data(run: SurveyRun, data: MixtureData, key: jax.Array, **options: Any) -> SVIFit:
    """Fits the run's model to some of its data, as its configuration says.

    Args:
        run: whose configuration it is.
        data: see `SurveyRun.data`.
        key: of the fit.
        options: further arguments of `fit_svi`.
    """
    section = run.config.inference
    return fit_svi(
        key,
        data,
        model=mixture_of_choices,
        model_kwargs=model_arguments(run.config),
        guide=section.guide,
        optimizer=default_optimizer(section.num_steps, section.learning_rate),
        num_steps=section.num_steps,
        batch_size=section.batch_size,
        num_particles=section.num_particles,
        maximum_likelihood=section.maximum_likelihood,
        **options,
    )


def _key(config: RunConfig, stream: int) -> jax.Array:
    return jax.random.fold_in(jax.random.key(config.seed), stream)
