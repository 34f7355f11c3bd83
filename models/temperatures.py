"""How a model's temperatures hang together: what its `temperature` argument accepts.

A temperature model declares its sample sites and returns the parts of log τ as a function of
records, as a gate does with its logits:

    log τ_ikj = log τ_k + η_j + ζ(x_i)

where η and ζ may be absent. Another one is a function as those below and a line in `TEMPERATURES`;
it can also be passed to the model as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from mop_jax.errors import DataError
from mop_jax.models.data import MixtureData
from mop_jax.models.feature_maps import product
from mop_jax.models.scales import learnt_scale, standard_normals


class LogTemperatures(NamedTuple):
    """The parts of log τ.

    Attributes:
        persona: log τ_k, [K].
        exemplar: η_j, [J]; None for none.
        record: ζ(x_i), [N]; None for none.
    """

    persona: jax.Array
    exemplar: jax.Array | None = None
    record: jax.Array | None = None


TemperatureFunction = Callable[[MixtureData], LogTemperatures]
"""The temperatures of the records of a `MixtureData`."""


class TemperatureModel(Protocol):
    """What declares the sites of temperatures and returns them as a function of records."""

    def __call__(
        self, data: MixtureData, *, width: int, prior_scale: float, spread: float
    ) -> TemperatureFunction:
        """The temperatures of the population `data`.

        Args:
            data: the population, all N records.
            width: context features that are looked at, at most (`gate_width` of the model).
            prior_scale: prior standard deviation of the mean log τ.
            spread: how much log τ differs between personas, about.
        """
        ...


def fixed_temperature(
    data: MixtureData, *, width: int = 0, prior_scale: float = 0.0, spread: float = 0.0
) -> TemperatureFunction:
    """τ = 1: the language model as it is."""
    del width, prior_scale, spread
    ones = LogTemperatures(jnp.zeros(data.num_personas, data.log_likelihood.dtype))
    return lambda batch: ones


def persona_temperatures(
    data: MixtureData, *, width: int = 0, prior_scale: float, spread: float
) -> TemperatureFunction:
    """A temperature per persona, with a spread that is given:

    μ ~ Normal(0, prior_scale²)              site mean_log_temperature
    log τ_k ~ Normal(μ, spread²)             site log_temperature
    """
    del width
    mean = numpyro.sample("mean_log_temperature", dist.Normal(0.0, prior_scale))
    with numpyro.plate("persona", data.num_personas):
        found = LogTemperatures(numpyro.sample("log_temperature", dist.Normal(mean, spread)))
    return lambda batch: found


def pooled_temperatures(
    data: MixtureData, *, width: int = 0, prior_scale: float, spread: float
) -> TemperatureFunction:
    """Temperatures of personas and of exemplars, partially pooled: the data say how much.

    log τ_kj = μ + σ_g u_k + σ_e v_j,   u, v ~ Normal(0, 1)     sites temperature_effect.*
    log σ_g, log σ_e ~ Normal(log spread, 1)                    sites temperature_scale.*
    μ ~ Normal(0, prior_scale²)                                 site mean_log_temperature

    The groups are `persona` and `exemplar`. What a component is too sure of may lie in the record
    that it shows as well as in who it is.
    """
    del width
    found = _pooled(data, prior_scale, spread)
    return lambda batch: found


def contextual_temperatures(
    data: MixtureData, *, width: int, prior_scale: float, spread: float
) -> TemperatureFunction:
    """`pooled_temperatures`, and a part that depends on the context linearly:

    log τ_ikj = … + σ_x ⟨f(x_i), w⟩,   w ~ Normal(0, 1)         site temperature_effect.context
    log σ_x ~ Normal(log spread, 1)                             site temperature_scale.context

    f are the first `width` features of the context's embedding, as a linear gate sees them. All
    features together have variance one, so that log τ varies by less than σ_x between contexts.
    """
    found = _pooled(data, prior_scale, spread)
    size = min(width, data.feature_maps.context.basis.shape[1])
    scale = learnt_scale("temperature_scale.context", spread)
    weight = scale * standard_normals("temperature_effect.context", ("context_feature",), (size,))

    def log_temperatures(batch: MixtureData) -> LogTemperatures:
        features = batch.feature_maps.context(batch.context_embeddings)[:, :size]
        return found._replace(record=product(features, weight))

    return log_temperatures


def _pooled(data: MixtureData, prior_scale: float, spread: float) -> LogTemperatures:
    mean = numpyro.sample("mean_log_temperature", dist.Normal(0.0, prior_scale))

    def effect(kind: str, size: int) -> jax.Array:
        scale = learnt_scale(f"temperature_scale.{kind}", spread)
        return scale * standard_normals(f"temperature_effect.{kind}", (kind,), (size,))

    persona = mean + effect("persona", data.num_personas)
    return LogTemperatures(persona, effect("exemplar", data.num_exemplars))


TEMPERATURES: dict[str, TemperatureModel] = {
    "fixed": fixed_temperature,
    "persona": persona_temperatures,
    "pooled": pooled_temperatures,
    "contextual": contextual_temperatures,
}
"""Temperature models that `temperature=` accepts by name."""


def find_temperatures(temperature: bool | str | TemperatureModel) -> TemperatureModel:
    """A temperature model by name, or as a function; True is "persona" and False "fixed".

    Raises:
        DataError: if there is none of that name.
    """
    if isinstance(temperature, bool):
        return persona_temperatures if temperature else fixed_temperature
    if isinstance(temperature, str):
        if temperature not in TEMPERATURES:
            raise DataError(
                f"Unknown temperature {temperature!r}; accepted: true, false, "
                f"{', '.join(TEMPERATURES)}, or a function."
            )
        return TEMPERATURES[temperature]
    return temperature


def temperature_arguments(found: LogTemperatures) -> dict[str, Any]:
    """The parts beside the personas' as arguments of `PersonaMixture`."""
    return {
        "exemplar_log_temperature": found.exemplar,
        "record_log_temperature": found.record,
    }
