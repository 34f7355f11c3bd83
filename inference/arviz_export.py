"""A fit as ArviZ `InferenceData`: named dimensions, log-likelihoods, loss trace, provenance."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import jax
import numpy as np
import numpyro

with warnings.catch_warnings():
    # ArviZ 0.x announces its successor at every import.
    warnings.simplefilter("ignore", FutureWarning)
    import arviz

from mop_jax import atomic
from mop_jax.inference.posterior import Posterior
from mop_jax.inference.predictive import log_likelihood_draws
from mop_jax.models.data import MixtureData


def to_inference_data(
    posterior: Posterior,
    data: MixtureData,
    *,
    num_chains: int = 1,
    record_ids: Sequence[str] | None = None,
    persona_names: Sequence[str] | None = None,
    exemplar_ids: Sequence[str] | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> arviz.InferenceData:
    """The posterior in ArviZ's groups.

    `posterior` holds every site, with `persona` and any other dimension that the model names;
    `log_likelihood` the response's log p(y_i | x_i, θ_s) in nats (so `arviz.loo` runs);
    `sample_stats` each draw's total `weighted_log_likelihood`; `observed_data` the table of
    log-likelihoods; `constant_data` candidates, leave-one-out mask and weights; `optimization` the
    loss trace of SVI.

    Args:
        posterior: draws, chains concatenated.
        data: the records it was fitted to.
        num_chains: into how many equal chains the draws divide.
        record_ids: coordinate of dimension `record`; 0 … N−1 by default.
        persona_names: coordinate of dimension `persona`.
        exemplar_ids: coordinate of dimension `exemplar`.
        attributes: further attributes of every group.
    """
    num_draws = posterior.num_draws // num_chains

    def by_chain(values: Any) -> np.ndarray:
        values = np.asarray(values)
        return values.reshape(num_chains, num_draws, *values.shape[1:])

    log_likelihood = log_likelihood_draws(posterior, data)
    coords = {
        "record": _coordinate(record_ids, data.num_records),
        "persona": _coordinate(persona_names, data.num_personas),
        "exemplar": _coordinate(exemplar_ids, data.num_exemplars),
        "grid_temperature": np.asarray(data.temperature_grid),
    }
    dims = {
        **site_dims(posterior, data),
        "response": ["record"],
        "response_log_likelihood": ["record", "candidate", "grid_temperature"],
        "leave_out": ["record", "exemplar"],
        "weight": ["record"],
        **{name: ["record", "candidate"] for name in ("persona_index", "exemplar_index")},
        "log_weight": ["record", "candidate"],
    }
    weighted = np.asarray(log_likelihood) * np.asarray(data.weights)
    inference_data = arviz.from_dict(
        posterior={name: by_chain(value) for name, value in posterior.samples.items()},
        log_likelihood={"response": by_chain(log_likelihood)},
        # Not `lp`, which in ArviZ is the log joint density: priors are not in it.
        sample_stats={"weighted_log_likelihood": by_chain(weighted.sum(1))},
        observed_data={"response_log_likelihood": np.asarray(data.log_likelihood)},
        constant_data={
            "persona_index": np.asarray(data.persona_index),
            "exemplar_index": np.asarray(data.exemplar_index),
            "log_weight": np.asarray(data.log_weight),
            "leave_out": np.asarray(data.leave_out),
            "weight": np.asarray(data.weights),
        },
        coords=coords,
        dims=dims,
    )
    if len(posterior.losses):
        losses = arviz.dict_to_dataset(
            {"loss": posterior.losses}, dims={"loss": ["step"]}, default_dims=[]
        )
        inference_data.add_groups({"optimization": losses}, warn_on_custom_groups=False)
    provenance = {
        "inference_library": "numpyro",
        "inference_library_version": numpyro.__version__,
        "created_by": "mop_jax",
        "mop_jax_version": version("mop-jax"),
        "model": posterior.model.__name__,
        **(attributes or {}),
    }
    for group in inference_data.groups():
        inference_data[group].attrs.update(provenance)
        # Without the time of day, the same fit makes the same file.
        inference_data[group].attrs.pop("created_at", None)
    return inference_data


def site_dims(posterior: Posterior, data: MixtureData) -> dict[str, list[str]]:
    """The names of each latent site's dimensions: its plates, then its `event_dims`."""
    named: dict[str, list[str]] = {}

    # Noted on the way rather than returned: JAX compares what it is returned with earlier calls',
    # and cannot compare the arrays among a site's settings (such as the scale by weights).
    def note_dims() -> None:
        model = numpyro.handlers.substitute(
            numpyro.handlers.seed(posterior.model, 0), substitute_fn=numpyro.infer.init_to_sample
        )
        trace = numpyro.handlers.trace(model).get_trace(data, **posterior.model_kwargs)
        for name, site in trace.items():
            if site["type"] in ("sample", "deterministic") and not site.get("is_observed", False):
                plates = [f.name for f in sorted(site["cond_indep_stack"], key=lambda f: f.dim)]
                named[name] = plates + list(site.get("infer", {}).get("event_dims", []))

    jax.eval_shape(note_dims)
    return {name: dims for name, dims in named.items() if dims and name in posterior.samples}


def write_netcdf(path: Any, inference_data: arviz.InferenceData) -> None:
    """Writes `inference_data` to a NetCDF file, atomically."""
    with atomic.replacing(path) as temporary:
        inference_data.to_netcdf(str(temporary), engine="h5netcdf")


def _coordinate(names: Sequence[str] | None, size: int) -> list[Any]:
    coordinate = list(range(size)) if names is None else list(names)
    if len(coordinate) != size:
        raise ValueError(f"{len(coordinate)} names were given for a dimension of size {size}.")
    return coordinate
