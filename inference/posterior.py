"""Draws from a fitted posterior, the gate they imply at any context, and their file.

A `Posterior` is everything that a simulation needs besides the language model: draws of the model's
sites, the model they belong to, and the personas, exemplars and feature maps it was fitted with.
The same functions serve every model that returns its `PersonaMixture`, a researcher's own included.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

import mop_jax.distributions
from mop_jax import atomic, models
from mop_jax.distributions import MixingDistribution, PersonaMixture
from mop_jax.errors import DataError, FaultError
from mop_jax.inference.guides import sample_guide
from mop_jax.inference.svi import SVIFit
from mop_jax.models.data import FeatureMap, FeatureMaps, MixtureData

_FORMAT = "mop-jax posterior 1"
_HEADER_KEY = "mop_jax"


class Posterior(NamedTuple):
    """Draws from the posterior of a mixture-of-personas model.

    Attributes:
        samples: draws of each latent site, [S, ...].
        model: the NumPyro model.
        model_kwargs: what it was called with, besides the data.
        data: personas, exemplars, feature maps and temperature grid of the fit (one placeholder
            record).
        params: the guide's parameters, where there was a guide.
        losses: the fit's loss trace [num_steps], where there was one.
    """

    samples: dict[str, Any]
    model: Callable[..., PersonaMixture]
    model_kwargs: dict[str, Any]
    data: MixtureData
    params: dict[str, Any]
    losses: np.ndarray

    @property
    def num_draws(self) -> int:
        """S."""
        return len(next(iter(self.samples.values()))) if self.samples else 1


class GateDraws(NamedTuple):
    """The gate at some contexts, under each of S posterior draws.

    Attributes:
        persona_log_probs: log π_k(x), [S, N, K].
        exemplar_record_logits: a, the contexts' part of log Ω, [S, N, J]; −∞ where left out.
        exemplar_persona_logits: b, the personas' part, [S, K, J].
        temperature: τ_k, [S, K].
    """

    persona_log_probs: jax.Array
    exemplar_record_logits: jax.Array
    exemplar_persona_logits: jax.Array
    temperature: jax.Array

    def mixing_distribution(self, draw: int) -> MixingDistribution:
        """The law of (persona, exemplar) under one draw, batch shape (N,)."""
        return MixingDistribution(
            self.persona_log_probs[draw],
            self.exemplar_record_logits[draw],
            self.exemplar_persona_logits[draw],
        )

    def exemplar_log_probs(self) -> jax.Array:
        """Log Ω_kj(x), [S, N, K, J]: for small pools and plots."""
        joint = self.exemplar_record_logits[:, :, None] + self.exemplar_persona_logits[:, None]
        return jax.nn.log_softmax(joint, axis=-1)


def posterior_draws(fit: SVIFit, rng_key: jax.Array, num_draws: int = 200) -> Posterior:
    """`num_draws` independent draws from the fitted guide (all equal under "AutoDelta")."""
    if num_draws < 1:
        raise DataError(f"num_draws is {num_draws}; at least 1 is needed.")
    samples = sample_guide(fit.guide, rng_key, fit.params, fit.data, fit.model_kwargs, num_draws)
    return make_posterior(
        samples, fit.data, fit.model, fit.model_kwargs, params=fit.params, losses=fit.losses
    )


def make_posterior(
    samples: Mapping[str, Any],
    data: MixtureData,
    model: Callable[..., PersonaMixture] = models.mixture_of_personas,
    model_kwargs: Mapping[str, Any] | None = None,
    *,
    params: Mapping[str, Any] | None = None,
    losses: np.ndarray | None = None,
) -> Posterior:
    """A `Posterior` from draws [S, ...] however they were made (`fit_nuts` uses it)."""
    kwargs = {k: v for k, v in (model_kwargs or {}).items() if k != "subsample_size"}
    reference = data.at_contexts(np.zeros_like(np.asarray(data.context_embeddings[:1])))
    return Posterior(
        {name: np.asarray(value) for name, value in samples.items()},
        model,
        kwargs,
        jax.tree.map(np.asarray, reference),
        jax.tree.map(np.asarray, dict(params or {})),  # a flow's parameters are nested
        np.zeros(0, np.float32) if losses is None else np.asarray(losses),
    )


def mixture_at(
    model: Callable[..., PersonaMixture],
    draw: Mapping[str, Any],
    data: MixtureData,
    model_kwargs: Mapping[str, Any],
) -> PersonaMixture:
    """The mixture that one `draw` of the sites implies for the records of `data`."""

    def refuse(site: dict[str, Any]) -> None:
        # Without this a site that the draw lacks would silently be drawn from its prior.
        if site["type"] == "sample" and site["value"] is None:
            raise DataError(
                f"The draws hold no site {site['name']!r}, which the model has; they have "
                f"{', '.join(draw) or 'no site at all'}."
            )

    model = numpyro.handlers.substitute(model, data=dict(draw))
    mixture = numpyro.handlers.substitute(model, substitute_fn=refuse)(data, **model_kwargs)
    if mixture is None:
        raise DataError("The model returned None; it must return its PersonaMixture.")
    return mixture


def map_draws(
    posterior: Posterior,
    data: MixtureData,
    function: Callable[[PersonaMixture, MixtureData], Any],
    *,
    chunk_size: int | None = None,
) -> Any:
    """function(mixture, data) under every draw, stacked to [S, ...].

    Draws run `chunk_size` at a time, so that memory does not grow with S beyond the results; by
    default as many as keep a chunk's tables near 64 MB. `data` is read through the posterior's
    feature maps, whatever its own.
    """
    if chunk_size is None:
        chunk_size = max(1, 16_000_000 // max(1, np.size(data.log_likelihood)))
    data = data._replace(feature_maps=posterior.data.feature_maps)

    @jax.jit
    def run(samples: dict[str, Any], data: MixtureData) -> Any:
        def one(draw: dict[str, Any]) -> Any:
            mixture = mixture_at(posterior.model, draw, data, posterior.model_kwargs)
            return function(mixture, data)

        if not samples:  # a model without latent sites: one draw of nothing
            return jax.tree.map(lambda x: x[None], one({}))
        return jax.lax.map(one, samples, batch_size=min(chunk_size, posterior.num_draws))

    return run(posterior.samples, data)


def gate_at(
    posterior: Posterior, context_embeddings: Any, *, leave_out: Any | None = None
) -> GateDraws:
    """The gate at contexts [N, D] under every draw (`leave_out` [N, J] masks exemplars)."""

    def gate(mixture: PersonaMixture, data: MixtureData) -> GateDraws:
        mixing = mixture.mixing_distribution
        return GateDraws(
            mixing.persona_log_probs,
            jnp.asarray(mixing.exemplar_record_logits),
            jnp.asarray(mixing.exemplar_persona_logits),
            jnp.asarray(mixture.temperature),
        )

    contexts = np.asarray(context_embeddings, posterior.data.context_embeddings.dtype)
    return map_draws(posterior, posterior.data.at_contexts(contexts, leave_out), gate)


def save_posterior(
    path: Any, posterior: Posterior, *, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes `posterior` to one safetensors file, atomically; no pickles.

    Args:
        path: where to.
        posterior: what.
        metadata: further strings to keep in the file's header (`read_metadata` returns them).

    Raises:
        DataError: if an argument of the model cannot be written as JSON.
    """
    header = {
        "format": _FORMAT,
        "model": posterior.model.__name__,
        "model_kwargs": _encode_kwargs(posterior.model_kwargs),
        "metadata": dict(metadata or {}),
    }
    tensors = {name: np.array(value, order="C") for name, value in _tensors(posterior)}
    # One key: safetensors writes several in an order that changes from run to run.
    text = json.dumps(header, sort_keys=True)
    atomic.write_bytes(path, save(tensors, metadata={_HEADER_KEY: text}))


def load_posterior(path: Any, *, model: Callable[..., PersonaMixture] | None = None) -> Posterior:
    """Reads what `save_posterior` wrote, bit for bit.

    Args:
        path: the file.
        model: the model function; needed for a model of one's own, since files never hold code.

    Raises:
        FaultError: if the file is missing, damaged, or of another kind.
        DataError: if it names a model that `mop_jax.models` lacks and none is given.
    """
    with _open(path) as file:
        header = _header(path, file)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if model is None:
        model = getattr(models, header["model"], None)
        if model is None:
            raise DataError(
                f"{path} was fitted with a model named {header['model']!r}, which mop_jax.models "
                "does not have; pass the function as model=…"
            )

    def group(prefix: str) -> dict[str, np.ndarray]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    arrays, maps = group("data/"), group("feature_map/")
    feature_maps = FeatureMaps(
        *(FeatureMap(maps[f"{kind}/mean"], maps[f"{kind}/basis"]) for kind in FeatureMaps._fields)
    )
    data = MixtureData(**arrays, feature_maps=feature_maps)
    samples, kwargs = group("samples/"), _decode_kwargs(header["model_kwargs"])
    if model is models.mixture_of_personas and "gate.context_kernel" in samples:
        # Files from before there was a choice of gates do not name the paper's.
        kwargs.setdefault("gate", "bilinear")
    return Posterior(
        samples,
        model,
        kwargs,
        data,
        group("params/"),
        tensors["losses"],
    )


def read_metadata(path: Any) -> dict[str, str]:
    """The strings that `save_posterior` was given as `metadata`."""
    with _open(path) as file:
        return _header(path, file)["metadata"]


@contextmanager
def _open(path: Any) -> Iterator[Any]:
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise FaultError(f"{path} is not a readable safetensors file ({error}).") from error


def _header(path: Any, file: Any) -> dict[str, Any]:
    header = json.loads((file.metadata() or {}).get(_HEADER_KEY, "{}"))
    if header.get("format") != _FORMAT:
        raise FaultError(f"{path} is not a saved posterior (its header does not say {_FORMAT!r}).")
    return header


def _tensors(posterior: Posterior) -> Iterator[tuple[str, np.ndarray]]:
    for kind, arrays in (("samples", posterior.samples), ("params", posterior.params)):
        for name, value in arrays.items():
            yield f"{kind}/{name}", value
    for name, value in posterior.data._asdict().items():
        if name != "feature_maps":
            yield f"data/{name}", value
    for kind, feature_map in posterior.data.feature_maps._asdict().items():
        yield f"feature_map/{kind}/mean", feature_map.mean
        yield f"feature_map/{kind}/basis", feature_map.basis
    yield "losses", posterior.losses


def _encode_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    # The one class among a shipped model's arguments, its distribution, is kept by its name; a gate
    # of one's own is code, which no file holds.
    plain = {
        name: {"distribution": value.__name__}
        if isinstance(value, type) and issubclass(value, PersonaMixture)
        else value
        for name, value in kwargs.items()
    }
    try:
        return json.loads(json.dumps(plain))
    except TypeError as error:
        raise DataError(
            f"A model argument cannot be written as JSON ({error}); numbers, strings, booleans and "
            "distribution classes of mop_jax.distributions can. A gate of your own belongs into "
            "the registry mop_jax.models.GATES, to be given by its name, or into a model of yours."
        ) from error


def _decode_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: getattr(mop_jax.distributions, value["distribution"])
        if isinstance(value, dict) and set(value) == {"distribution"}
        else value
        for name, value in kwargs.items()
    }
