"""The mixture of personas as a NumPyro program: copy it, change it, pass it to `fit_svi`.

Everything downstream (prediction, gates at new contexts, simulation, ArviZ) asks one thing of a
model: that it takes a `MixtureData`, observes `data.log_likelihood`, and returns its
`PersonaMixture`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.module import random_nnx_module

from mop_jax.distributions import PersonaMixture
from mop_jax.models.data import MixtureData
from mop_jax.models.gate import Gate, GateLogits


def mixture_of_personas(
    data: MixtureData,
    *,
    gate_width: int = 8,
    prior_scale: float = 1.0,
    temperature: bool = True,
    temperature_prior_scale: float = 0.3,
    temperature_spread: float = 0.1,
    exemplar_context: bool = True,
    exemplars: bool = True,
    uniform_gate: bool = False,
    distribution: type[PersonaMixture] = PersonaMixture,
    subsample_size: int | None = None,
) -> PersonaMixture:
    """The two-level contextual mixture with a temperature per persona (paper, section 3).

        W_x, W_g, W_e ~ Normal(0, prior_scale²)                          sites gate.*_kernel
        μ ~ Normal(0, temperature_prior_scale²)                          site mean_log_temperature
        log τ_k ~ Normal(μ, temperature_spread²)                         site log_temperature
        y_i ~ PersonaMixture(π(x_i), Ω(x_i), τ), weighted by w_i         site response

    Each ablation is one argument: `temperature=False` (τ = 1), `exemplar_context=False` (Ω without
    x̃), `exemplars=False` (Ω uniform over allowed exemplars; with a table scored without exemplars,
    J = 1, the paper's "no exemplars"), `uniform_gate=True` (π and Ω uniform).

    Args:
        data: the population, N records with C scored components each.
        gate_width: P, the dimension of the gate's inner products.
        prior_scale: standard deviation s of the gate's weights; logits then have about s².
        temperature: whether τ is learned.
        temperature_prior_scale: prior standard deviation of the personas' mean log τ.
        temperature_spread: prior standard deviation of log τ between personas.
        exemplar_context: whether Ω sees the context.
        exemplars: whether Ω is learned.
        uniform_gate: whether to do without the gate.
        distribution: `PersonaMixture`, or `RenormalisedPersonaMixture` for a gate that lives on the
            scored components only.
        subsample_size: records per step (the likelihood is scaled up to all N); all by default.

    Returns:
        The mixture of the records used, for its gate, temperatures and responsibilities.
    """
    num_personas = data.num_personas
    log_temperature = jnp.zeros(num_personas, data.log_likelihood.dtype)
    if temperature:
        mean = numpyro.sample("mean_log_temperature", dist.Normal(0.0, temperature_prior_scale))
        with numpyro.plate("persona", num_personas):
            log_temperature = numpyro.sample(
                "log_temperature", dist.Normal(mean, temperature_spread)
            )

    gate: Callable[[MixtureData], GateLogits] = uniform_gate_logits
    if not uniform_gate:
        gate = random_gate(data, gate_width, prior_scale, exemplar_context, exemplars)

    with numpyro.plate("record", data.num_records, subsample_size=subsample_size) as index:
        batch = data if subsample_size is None else data.take(index)
        logits = gate(batch)
        mixture = distribution(
            logits.persona,
            logits.exemplar_record,
            logits.exemplar_persona,
            log_temperature,
            batch.persona_index,
            batch.exemplar_index,
            batch.log_weight,
            batch.temperature_grid,
        )
        with numpyro.handlers.scale(scale=batch.weights):
            numpyro.sample("response", mixture, obs=batch.log_likelihood)
    return mixture


def random_gate(
    data: MixtureData,
    width: int,
    prior_scale: float | jax.Array,
    exemplar_context: bool = True,
    exemplars: bool = True,
) -> Callable[[MixtureData], GateLogits]:
    """A `Gate` whose weights are sample sites with independent Normal(0, prior_scale²) priors.

    Returns:
        A function from `MixtureData` to `GateLogits`.
    """
    module = Gate(data, width, exemplar_context=exemplar_context, exemplars=exemplars)

    def name_dims(site: dict[str, Any]) -> dict[str, list[str]]:
        kind = site["name"].removeprefix("gate.").removesuffix("_kernel")
        return {"event_dims": [f"{kind}_feature", "gate_dimension"]}

    with numpyro.handlers.infer_config(config_fn=name_dims):
        return random_nnx_module("gate", module, dist.Normal(0.0, prior_scale), scope_divider=".")


def uniform_gate_logits(data: MixtureData) -> GateLogits:
    """The gate that prefers nothing: π and Ω uniform over what is allowed."""
    dtype = data.log_likelihood.dtype
    return GateLogits(
        jnp.zeros((data.num_records, data.num_personas), dtype),
        jnp.where(data.leave_out, -jnp.inf, jnp.zeros((), dtype)),
        jnp.zeros((data.num_personas, data.num_exemplars), dtype),
    )
