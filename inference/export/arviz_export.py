"""A fit as ArviZ `InferenceData`: named dimensions, log-likelihoods, loss trace, provenance."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
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
from mop_jax.errors import DataError, FaultError
from mop_jax.inference.export.arviz_choices import (
    choice_constants,
    choice_coords,
    choice_dims,
    drawn_counts,
)
from mop_jax.inference.export.arviz_quantities import (
    QUANTITY_DIMS,
    describe_variables,
    quantities_of,
    with_log_likelihood,
)
from mop_jax.inference.export.netcdf_values import (
    attribute,
    attribute_name,
    coordinate,
    statistics_of,
    storable,
    storable_texts,
    variable_names,
)
from mop_jax.inference.posterior import Posterior, model_name
from mop_jax.inference.simulation import SimulatedResponse
from mop_jax.models.data import MixtureData

RESPONSE_STATISTICS: dict[str, Callable[[str], float]] = {
    "response_words": lambda text: float(len(text.split())),
    "response_characters": lambda text: float(len(text)),
}
"""What predictive checks compare by default: texts are no numbers, these are."""

# ArviZ's R-hat asks for two chains of four draws at least.
_FEWEST_DRAWS = 4


def to_inference_data(
    posterior: Posterior,
    data: MixtureData,
    *,
    num_chains: int | None = None,
    record_ids: Sequence[Any] | None = None,
    persona_names: Sequence[Any] | None = None,
    exemplar_ids: Sequence[Any] | None = None,
    responses: Sequence[str] | None = None,
    simulated: Sequence[SimulatedResponse] | None = None,
    statistics: Mapping[str, Callable[[str], float]] | None = None,
    names: Mapping[str, Sequence[Any]] | None = None,
    predictive_key: jax.Array | None = None,
    prior: Posterior | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> arviz.InferenceData:
    """The posterior in ArviZ's groups.

    `posterior` holds every site, with `persona` and any other dimension that the model names, and
    what can be read whatever the gate: `temperature`, τ_k, and `persona_share`, the mean of π_k(x)
    over the records by their weights. Where the model's arguments decide one of these whatever the
    draw (a uniform gate, τ = 1), `constant_data` has it. A site whose entries mean nothing one by
    one, a bilinear gate's kernel, says so in its attribute `identified`. `prior` holds the same of
    draws from the prior (`arviz.plot_dist_comparison` shows both);
    `log_likelihood` the response's log p(y_i | x_i, θ_s) in nats;
    `sample_stats` each draw's total `weighted_log_likelihood`; `constant_data` what the model is
    given: the table of log-likelihoods, candidates, leave-one-out mask and weights, and for a gate
    that knows similarity what it compares (`context_similarity` in standard deviations, codes of
    labels and groups); `optimization` the loss trace of SVI.

    With `responses`, `observed_data` holds statistics of the observed texts (`response_words` and
    `response_characters`); with `simulated`, `posterior_predictive` holds those of the simulated,
    so that `arviz.plot_ppc` draws the one beside the other, and the texts, personas and exemplars.

    Of closed answers `observed_data` holds the `counts` of every record's options, and
    `posterior_predictive` counts drawn for as many people; `constant_data` the table of options in
    place of that of responses, offsets, and which question and which levels a record is of, −1
    where it was not known.

    `arviz.loo` runs on this, but is exact for Markov chains, all components scored and equal
    weights only; where one of these fails, the attribute `loo` of `log_likelihood` says how.
    Held-out records are what claims should be made on. Of closed answers it leaves out a whole
    item, which the attribute says.

    Draws that are independent (SVI, Laplace) are divided into equal chains. For such draws any
    division is as good as another, R-hat is 1 up to noise, and the effective sample size is the
    number of draws: `arviz.summary` has nothing to warn of, and the attribute `draws` says why.

    Args:
        posterior: draws, chains concatenated.
        data: the records it was fitted to.
        num_chains: into how many equal chains the draws divide; by default those of the sampler,
            or, for independent draws, 4, 2 or 1 as they divide.
        record_ids: coordinate of dimension `record`; 0 … N−1 by default.
        persona_names: coordinate of dimension `persona`.
        exemplar_ids: coordinate of dimension `exemplar`.
        responses: the observed responses' texts, [N].
        simulated: responses to the contexts of `data` (their `context_index` counts its records).
            A draw of `posterior_predictive` is one response for every record that has any; where a
            record has fewer than another, the rest is NaN and empty text.
        statistics: name → number of a text; `RESPONSE_STATISTICS` by default.
        names: coordinates of further dimensions by their names, of closed answers `option`,
            `question` and, by grouping, `age_level`; questions and levels may be those that were
            known, and `unseen` is added.
        predictive_key: decides the drawn counts of closed answers; `jax.random.key(0)` by default.
        prior: draws from the prior (`prior_draws`), for the group `prior`.
        attributes: further attributes of every group; what is neither text nor number becomes JSON.

    Raises:
        DataError: naming the argument whose size does not fit.
    """
    num_chains = chains_of(posterior) if num_chains is None else num_chains
    if num_chains < 1 or posterior.num_draws % num_chains:
        raise DataError(
            f"num_chains is {num_chains}, which does not divide the {posterior.num_draws} draws; "
            "chains must be equally long."
        )
    if prior is not None and prior.data.num_personas != data.num_personas:
        raise DataError(
            f"prior is of {prior.data.num_personas} personas, and data of {data.num_personas}; "
            "draw it for the same data (prior_draws)."
        )
    statistics = RESPONSE_STATISTICS if statistics is None else statistics

    def by_chain(values: Any) -> np.ndarray:
        values = np.asarray(values)
        return values.reshape(num_chains, -1, *values.shape[1:])

    log_likelihood, quantities = with_log_likelihood(posterior, data)
    coords = {
        "record": coordinate("record_ids", record_ids, data.num_records),
        "persona": coordinate("persona_names", persona_names, data.num_personas),
        "exemplar": coordinate("exemplar_ids", exemplar_ids, data.num_exemplars),
        "grid_temperature": np.asarray(data.temperature_grid),
    }
    named = {**({} if prior is None else site_dims(prior, data)), **site_dims(posterior, data)}
    dims = {**_RECORD_DIMS, **QUANTITY_DIMS}
    sites = [*posterior.samples, *({} if prior is None else prior.samples)]
    variables = variable_names(sites, {**named, **dims}, QUANTITY_DIMS)
    dims = {variables[site]: own for site, own in named.items()} | dims
    weighted = log_likelihood * np.asarray(data.weights)
    drawn = {variables[site]: value for site, value in posterior.samples.items()} | quantities.drawn
    groups: dict[str, Any] = {
        "posterior": {name: by_chain(value) for name, value in drawn.items()},
        "log_likelihood": {"response": by_chain(log_likelihood)},
        # Not `lp`, which in ArviZ is the log joint density: priors are not in it.
        "sample_stats": {"weighted_log_likelihood": by_chain(weighted.sum(1))},
        "constant_data": {
            **(
                {"response_log_likelihood": np.asarray(data.log_likelihood)}
                if data.choices is None
                else choice_constants(data.choices)
            ),
            "persona_index": np.asarray(data.persona_index),
            "exemplar_index": np.asarray(data.exemplar_index),
            "log_weight": np.asarray(data.log_weight),
            "leave_out": np.asarray(data.leave_out),
            "weight": np.asarray(data.weights),
            **_similarity(posterior, data),
            **quantities.fixed,
        },
    }
    if prior is not None:
        told = {variables[site]: value for site, value in prior.samples.items()}
        told |= quantities_of(prior, data).drawn
        groups["prior"] = {name: np.asarray(value)[None] for name, value in told.items()}
    if data.choices is not None:
        dims |= choice_dims(data.choices)
        coords |= choice_coords(data.choices, names or {})
        groups["observed_data"] = {"counts": np.asarray(data.choices.counts)}
        key = jax.random.key(0) if predictive_key is None else predictive_key
        groups["posterior_predictive"] = {"counts": by_chain(drawn_counts(posterior, data, key))}
    elif names:
        raise DataError(f"names has {next(iter(names))!r}; only closed answers have names.")
    if responses is not None:
        texts = storable_texts("responses", responses, data.num_records)
        groups["observed_data"] = statistics_of(texts, statistics)
        groups["constant_data"]["response_text"] = texts
        dims |= {name: ["record"] for name in (*statistics, "response_text")}
    inference_data = arviz.from_dict(
        **{name: group for name, group in groups.items() if group},
        coords=coords,
        dims=dims,
    )
    if simulated is not None:
        predictive = _predictive_group(simulated, data.num_records, statistics)
        inference_data.add_groups(
            {
                "posterior_predictive": arviz.dict_to_dataset(
                    predictive, coords=coords, dims={name: ["record"] for name in predictive}
                )
            }
        )
    if len(posterior.losses):
        losses = arviz.dict_to_dataset(
            {"loss": posterior.losses}, dims={"loss": ["step"]}, default_dims=[]
        )
        inference_data.add_groups({"optimization": losses}, warn_on_custom_groups=False)
    _add_attributes(inference_data, posterior, prior, attributes or {})
    said = [_LOO_OF_ITEMS] if data.choices is not None else []
    if approximations := _loo_approximations(posterior, data):
        said.append(f"loo is approximate: {'; '.join(approximations)}")
    if said:
        inference_data["log_likelihood"].attrs["loo"] = ". ".join(said)
    return inference_data


_RECORD_DIMS: dict[str, list[str]] = {
    "response": ["record"],
    "response_log_likelihood": ["record", "candidate", "grid_temperature"],
    "leave_out": ["record", "exemplar"],
    "weight": ["record"],
    **{name: ["record", "candidate"] for name in ("persona_index", "exemplar_index")},
    "log_weight": ["record", "candidate"],
    **{name: ["record"] for name in ("label", "group")},
    **{name: ["exemplar"] for name in ("exemplar_label", "exemplar_group")},
    "context_similarity": ["record", "exemplar"],
}


def _add_attributes(
    inference_data: arviz.InferenceData,
    posterior: Posterior,
    prior: Posterior | None,
    attributes: Mapping[str, Any],
) -> None:
    """Where every group comes from, and what may be read of its variables."""
    provenance = {
        "inference_library": "numpyro",
        "inference_library_version": numpyro.__version__,
        "created_by": "mop_jax",
        "mop_jax_version": version("mop-jax"),
        "model": model_name(posterior.model),
        "sampler": posterior.sampler or "unknown",
        "draws": _INDEPENDENT if posterior.num_chains is None else "Markov chains",
        **{attribute_name(name): attribute(value) for name, value in attributes.items()},
    }
    for name in inference_data.groups():
        group = inference_data[name]
        group.attrs.update(provenance)
        # Without the time of day, the same fit makes the same file.
        group.attrs.pop("created_at", None)
        if name in ("posterior", "prior", "constant_data"):
            describe_variables(group)
        if name == "prior" and prior is not None:
            group.attrs.update(model=model_name(prior.model), sampler="prior", draws="independent")


_LOO_OF_ITEMS = "loo leaves out an item: all answers that a record counts, not one person's"


def _similarity(posterior: Posterior, data: MixtureData) -> dict[str, np.ndarray]:
    """What the posterior's gate compares contexts with exemplars by; nothing for most."""
    similarity, found = posterior.data.similarity, dict[str, Any]()
    if similarity is None:
        return {}
    if "gate.context_similarity" in posterior.samples:
        features = similarity.features(data.context_embeddings, None, None)
        found["context_similarity"] = features[0]
    if "gate.same_label" in posterior.samples:
        found |= {"label": data.labels, "exemplar_label": similarity.labels}
    if "gate.same_group" in posterior.samples:
        found |= {"group": data.groups, "exemplar_group": similarity.groups}
    return {name: np.asarray(values) for name, values in found.items() if values is not None}


def _loo_approximations(posterior: Posterior, data: MixtureData) -> list[str]:
    """Why Pareto-smoothed importance sampling on these draws is not leave-one-out."""
    log_weight, weights = np.asarray(data.log_weight), np.asarray(data.weights)
    found = []
    if posterior.num_chains is None:
        guide = posterior.sampler or "a guide"
        found.append(
            f"draws come from {guide}, not from the posterior, and no log q is here to correct it"
        )
    if np.any(np.isfinite(log_weight) & (log_weight != 0)):
        found.append(
            "components are sampled: log p-hat lies below log p, and the fit has seen its draws"
        )
    if not np.allclose(weights, weights[0]):
        found.append(
            "records have unequal weights: the posterior is to response * weight of constant_data, "
            "response itself is not weighted"
        )
    return found


_INDEPENDENT = (
    "independent; chains are an equal division of them, so R-hat and effective sample size say "
    "nothing about how near the guide is to the posterior"
)


def chains_of(posterior: Posterior) -> int:
    """The sampler's chains; for independent draws 4, 2 or 1 equal parts with draws enough."""
    if posterior.num_chains is not None:
        return posterior.num_chains
    num_draws = posterior.num_draws
    parts = (4, 2)
    return next((c for c in parts if num_draws % c == 0 and num_draws // c >= _FEWEST_DRAWS), 1)


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
    """Writes `inference_data` to a NetCDF file, atomically.

    Raises:
        FaultError: if it cannot be written there.
    """
    try:
        with atomic.replacing(path) as temporary:
            inference_data.to_netcdf(str(temporary), engine="h5netcdf")
    except OSError as error:
        raise FaultError(f"{path} could not be written: {error.strerror or error}.") from error


def _predictive_group(
    simulated: Sequence[SimulatedResponse],
    num_records: int,
    statistics: Mapping[str, Callable[[str], float]],
) -> dict[str, np.ndarray]:
    """Arrays [1, R, N]: the r-th response to each record, and how it came about."""
    beyond = [r.context_index for r in simulated if not 0 <= r.context_index < num_records]
    if beyond or not simulated:
        what = f"one answers context {beyond[0]}" if beyond else "none is given"
        raise DataError(
            f"simulated must hold responses to the {num_records} contexts of data; {what}."
        )
    by_record: list[list[SimulatedResponse]] = [[] for _ in range(num_records)]
    for response in sorted(simulated, key=lambda response: response.sample):
        by_record[response.context_index].append(response)
    shape = (1, max(len(own) for own in by_record), num_records)
    names = ("temperature", "component_log_prob", "response_log_prob")
    group = {name: np.full(shape, np.nan) for name in (*statistics, *names)}
    group |= {
        name: np.full(shape, -1) for name in ("posterior_draw", "chosen_persona", "chosen_exemplar")
    }
    group["response_text"] = np.full(shape, "", object)
    for n, own in enumerate(by_record):
        for r, response in enumerate(own):
            row = {
                **{name: number(response.text) for name, number in statistics.items()},
                **{name: getattr(response, name) for name in names},
                "posterior_draw": response.draw,
                "chosen_persona": response.persona,
                "chosen_exemplar": response.exemplar,
                "response_text": storable(response.text),
            }
            for name, value in row.items():
                group[name][0, r, n] = value
    return group
