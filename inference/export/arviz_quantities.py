"""What of a posterior can be read number by number, beside its raw sites, in an ArviZ export."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mop_jax.distributions import PersonaMixture
from mop_jax.inference.criticism.summaries import mean_persona_probs
from mop_jax.inference.posterior import Posterior, map_draws
from mop_jax.models.data import MixtureData
from mop_jax.models.feature_maps import product

QUANTITY_DIMS = {"temperature": ["persona"], "persona_share": ["persona"]}
"""The quantities' names, and their dimensions beside chain and draw."""

DESCRIPTIONS = {
    "temperature": "the temperature of each persona, confined to the grid that was scored; what "
    "exemplars or contexts add to its logarithm, where they do, is not in it",
    "persona_share": "the mean of the gate's pi over the records, weighted by their weights",
}

NOT_IDENTIFIED = (
    "not one by one: a rotation of the kernels' common dimensions changes no logit, so means, "
    "intervals and R-hat of single entries say nothing; read persona_share, temperature and the "
    "gate itself (mop_jax.inference.gate_at, gate_summary)"
)
_KERNEL = re.compile(r"gate\.\w+_kernel")


class Quantities(NamedTuple):
    """Functions of the draws that mean something one by one.

    Attributes:
        drawn: by name, [S, K].
        fixed: by name, [K]: those that the model's arguments decide, whatever the draw, such as
            the shares under a uniform gate. They have no posterior, and R-hat none either.
    """

    drawn: dict[str, np.ndarray]
    fixed: dict[str, np.ndarray]


def quantities_of(posterior: Posterior, data: MixtureData) -> Quantities:
    """The personas' temperatures, and their shares of the population by the gate."""
    return _separated(posterior, map_draws(posterior, data, _quantities))


def with_log_likelihood(posterior: Posterior, data: MixtureData) -> tuple[np.ndarray, Quantities]:
    """Log p(y_i | x_i, θ_s), nats [S, N], and `quantities_of`, in one pass over draws."""

    def both(mixture: PersonaMixture, data: MixtureData) -> tuple[jax.Array, dict[str, jax.Array]]:
        return mixture.log_prob(data.observed), _quantities(mixture, data)

    log_likelihood, found = map_draws(posterior, data, both)
    return np.asarray(log_likelihood), _separated(posterior, found)


def _quantities(mixture: PersonaMixture, data: MixtureData) -> dict[str, jax.Array]:
    temperature = jnp.asarray(mixture.temperature)
    if temperature.ndim > 1:  # one set a record: their mean
        weights = jnp.asarray(data.weights)
        temperature = product(weights / weights.sum(), temperature)
    return {"temperature": temperature, "persona_share": mean_persona_probs(mixture, data)}


def _separated(posterior: Posterior, found: dict[str, jax.Array]) -> Quantities:
    drawn = {name: np.asarray(values) for name, values in found.items()}
    # Draws of a point estimate are all alike, and yet they are draws.
    if posterior.samples and not any(map(_varies, posterior.samples.values())):
        return Quantities(drawn, {})
    fixed = {name: values[0] for name, values in drawn.items() if not _varies(values)}
    return Quantities({k: v for k, v in drawn.items() if k not in fixed}, fixed)


def describe_variables(dataset: Any) -> None:
    """Says in the attributes of a group's variables what may be read, and what may not."""
    for name, variable in dataset.data_vars.items():
        if name in DESCRIPTIONS:
            variable.attrs["description"] = DESCRIPTIONS[name]
        if _KERNEL.fullmatch(str(name)):
            variable.attrs["identified"] = NOT_IDENTIFIED


def _varies(draws: Any) -> bool:
    """Whether draws differ by more than rounding."""
    return not np.allclose(draws, draws[0], rtol=1e-5, atol=0.0)
