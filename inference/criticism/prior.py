"""What a prior says before anything is fitted: draws of it, and the gates that they imply."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd
from numpyro import handlers

from mop_jax.distributions import PersonaMixture
from mop_jax.errors import DataError
from mop_jax.inference.criticism.intervals import interval, tails
from mop_jax.inference.criticism.summaries import draws_at_a_time, gate_summary, mean_persona_probs
from mop_jax.inference.posterior import Posterior, make_posterior, map_draws
from mop_jax.models import checks
from mop_jax.models.data import MixtureData
from mop_jax.models.mixture import mixture_of_personas


class PriorGate(NamedTuple):
    """What a prior says of a population's gate.

    Attributes:
        summary: see `gate_summary`.
        shares: the personas' shares by the gate, as `persona_shares` has them.
        prior: the draws.
    """

    summary: pd.DataFrame
    shares: pd.DataFrame
    prior: Posterior


def prior_predictive_gate(
    rng_key: jax.Array,
    data: MixtureData,
    *,
    model: Callable[..., PersonaMixture] = mixture_of_personas,
    model_kwargs: Mapping[str, Any] | None = None,
    num_draws: int = 200,
    level: float = 0.9,
) -> PriorGate:
    """What π and Ω are under the prior, at the records' contexts: to be looked at before a fit.

    A prior too wide lets one persona have each context to itself (`effective_personas` near 1), one
    too narrow says that contexts tell nothing (`persona_between_contexts` near 0).

    Args:
        rng_key: decides the draws.
        data: the population; responses are not read.
        model: a NumPyro model of `data` that returns its `PersonaMixture`.
        model_kwargs: further arguments of the model.
        num_draws: S.
        level: of the intervals.

    Raises:
        DataError: if there is no draw, no random key, or the level is none.
    """
    tails(level)  # refused before anything is drawn
    prior = prior_draws(rng_key, data, model=model, model_kwargs=model_kwargs, num_draws=num_draws)
    summary = gate_summary(prior, data, level=level)
    # By the gate alone: responsibilities under draws that saw no response are nobody's opinion.
    draws = map_draws(prior, data, mean_persona_probs, chunk_size=draws_at_a_time(data))
    shares = pd.DataFrame({"persona": np.arange(data.num_personas), **interval(draws, level)})
    return PriorGate(summary, shares, prior)


def prior_draws(
    rng_key: jax.Array,
    data: MixtureData,
    *,
    model: Callable[..., PersonaMixture] = mixture_of_personas,
    model_kwargs: Mapping[str, Any] | None = None,
    num_draws: int = 200,
) -> Posterior:
    """`num_draws` independent draws of the model's sites from their prior, as a `Posterior`.

    Whatever takes a posterior takes this too: `gate_at`, `simulate`, `to_inference_data(prior=)`.
    A model without latent sites has one draw, of nothing.

    Raises:
        DataError: if there is no draw, or no random key.
    """
    checks.random_key(rng_key)
    if num_draws < 1:
        raise DataError(f"num_draws is {num_draws}; at least 1 is needed.")
    kwargs = {k: v for k, v in (model_kwargs or {}).items() if k != "subsample_size"}

    # Compiled whole, so that likelihoods, which nobody asks for, are never computed.
    @jax.jit
    def draw(keys: jax.Array, data: MixtureData) -> dict[str, jax.Array]:
        def one(key: jax.Array) -> dict[str, jax.Array]:
            trace = handlers.trace(handlers.seed(model, key)).get_trace(data, **kwargs)
            return {
                name: site["value"]
                for name, site in trace.items()
                if site["type"] == "sample" and not site["is_observed"]
            }

        return jax.lax.map(one, keys)

    samples = draw(jax.random.split(rng_key, num_draws), data)
    return make_posterior(samples, data, model, kwargs, sampler="prior")
