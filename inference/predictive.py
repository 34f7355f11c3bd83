"""What a posterior says of responses, seen or held out: log-probabilities and responsibilities."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from mop_jax.distributions import PersonaMixture
from mop_jax.inference.posterior import Posterior, make_posterior, map_draws
from mop_jax.models.data import MixtureData
from mop_jax.models.mixture import mixture_of_personas


def log_likelihood_draws(
    posterior: Posterior, data: MixtureData, *, chunk_size: int | None = None
) -> jax.Array:
    """Log p(y_i | x_i, θ_s) in nats, [S, N]."""

    def log_prob(mixture: PersonaMixture, data: MixtureData) -> jax.Array:
        return mixture.log_prob(data.observed)

    return map_draws(posterior, data, log_prob, chunk_size=chunk_size)


def posterior_predictive_log_prob(
    posterior: Posterior, data: MixtureData, *, chunk_size: int | None = None
) -> np.ndarray:
    """Log p(y_i | x_i, training data) = log mean_s p(y_i | x_i, θ_s), nats, [N].

    Args:
        posterior: draws θ_s.
        data: records that the posterior was not fitted to (for those it was, this is not held-out).
        chunk_size: draws at a time; see `map_draws`.
    """
    log_probs = log_likelihood_draws(posterior, data, chunk_size=chunk_size)
    return np.asarray(logsumexp(log_probs, axis=0) - np.log(len(log_probs)))


UNIFORM = {"uniform_gate": True, "temperature": False}
"""The model arguments of the uniform mixture at τ = 1."""


def uniform_log_prob(
    data: MixtureData, *, distribution: type[PersonaMixture] = PersonaMixture
) -> np.ndarray:
    """Log p(y_i | x_i) of the uniform mixture at τ = 1 over the allowed components, nats, [N].

    The baseline of every claim: the same components, candidates and weights, but nothing learned.
    With renormalised candidates pass `distribution=RenormalisedPersonaMixture`, as to the model.
    """
    kwargs = {**UNIFORM, "distribution": distribution}
    nothing = make_posterior({}, data, mixture_of_personas, kwargs)
    return np.asarray(log_likelihood_draws(nothing, data)[0])


def responsibilities(
    posterior: Posterior, data: MixtureData, *, chunk_size: int | None = None
) -> np.ndarray:
    """p(k, j | x_i, y_i) of each candidate, averaged over draws, [N, C].

    The average is the posterior responsibility for records the posterior was fitted to.
    """

    def candidate(mixture: PersonaMixture, data: MixtureData) -> jax.Array:
        return mixture.responsibilities(data.observed)

    return np.asarray(map_draws(posterior, data, candidate, chunk_size=chunk_size).mean(0))


def persona_responsibilities(
    posterior: Posterior, data: MixtureData, *, chunk_size: int | None = None
) -> np.ndarray:
    """p(k | x_i, y_i) averaged over draws, [N, K]: responsibilities summed over exemplars."""
    per_candidate = responsibilities(posterior, data, chunk_size=chunk_size)
    one_hot = jax.nn.one_hot(data.persona_index, data.num_personas, dtype=per_candidate.dtype)
    return np.asarray(jnp.einsum("nc,nck->nk", per_candidate, one_hot))
