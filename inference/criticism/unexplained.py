"""Records that no component explains: whom to write new personas for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from mop_jax.distributions import PersonaMixture
from mop_jax.distributions.temperature import interpolate
from mop_jax.errors import DataError
from mop_jax.inference.criticism.intervals import interval, tails
from mop_jax.inference.criticism.summaries import draws_at_a_time
from mop_jax.inference.posterior import Posterior, map_draws
from mop_jax.inference.predictive import log_likelihood_draws, persona_responsibilities
from mop_jax.models.data import MixtureData

# Variance of a response's log-probability below which a surprise is not divided by it, nats².
_LEAST_VARIANCE = 1.0
# Arrays of the table's size that a surprise takes, about.
_TABLES = 8
# The spline's second derivative says something from here on.
_FEWEST_TEMPERATURES = 3


def unexplained_records(
    posterior: Posterior,
    data: MixtureData,
    *,
    baseline: Sequence[float] | None = None,
    number: int = 10,
    level: float = 0.9,
) -> pd.DataFrame:
    """The records that no component explains, the worst first: whom to write new personas for.

    Log p(y_i | x_i) alone would rank the longest responses first. They are compared with what the
    components that answer for a record, by their responsibilities r_c, say themselves:

        surprise_i = (E_i − log p(y_i | x_i)) / sd_i
        E_i − log p(y_i | x_i) = Σ_c r_c ℓ_c′        sd_i² = −Σ_c r_c (ℓ_c′ + ℓ_c″)

    with derivatives of ℓ_c(τ) in log τ. Tokens' distributions at temperature τ are an exponential
    family in 1/τ, so −ℓ′ is the sum over a response's tokens of log p + entropy, and −(ℓ′ + ℓ″)
    that of the variances of log p. A response that a component wrote itself has surprise zero on
    average, with standard deviation one, whatever its length; and the fit of τ makes the whole
    population's Σ_i Σ_c r_c ℓ_c′ about zero. On 600 film reviews surprises have mean 0.01 and
    standard deviation 0.97; their rank correlation with the number of words is −0.11, where that
    of log p is −0.87. So the first records are those with words that nobody here would use. A
    variance below 1 nat² counts as 1, or else every unlikely "yes" would come first.

    Of closed answers people's own shares s take the place of E_i: the surprise is
    Σ_m n_m log(s_m / p_m), in nats, half the deviance of a record's counts (without dispersion,
    so that many people weigh more than few).

    Args:
        posterior: draws of the gate and temperatures.
        data: the records.
        baseline: log-probabilities to compare with instead, nats [N], such as the zero-shot ones:
            the records that components help least. The surprise is then baseline − log p, in nats.
        number: how many records; all where there are fewer.
        level: of the intervals.

    Returns:
        Columns `record`; `surprise` with `low` and `high`; `log_prob` and `baseline`, nats, means
        over draws; `persona`, the most responsible, and its `responsibility`; `weight`.

    Raises:
        DataError: if a size does not fit, or, without a baseline, the log-likelihoods are those of
            fewer than three temperatures, which say nothing of how probable a response should be.
    """
    tails(level)  # refused before anything is computed
    size = draws_at_a_time(data)
    if number < 1:
        raise DataError(f"number is {number}; at least 1 is needed.")
    if baseline is not None:
        given = np.asarray(baseline, np.float64)
        if given.shape != (data.num_records,) or not np.isfinite(given).all():
            raise DataError(f"baseline must be {data.num_records} finite numbers, one a record.")
        log_prob = np.asarray(log_likelihood_draws(posterior, data, chunk_size=size), np.float64)
        draws = (given - log_prob, log_prob, np.broadcast_to(given, log_prob.shape))
    elif data.choices is not None:
        draws = map_draws(posterior, data, _against_own_shares, chunk_size=size)
    elif len(data.temperature_grid) < _FEWEST_TEMPERATURES:
        raise DataError(
            f"Log-likelihoods at {len(data.temperature_grid)} of the {_FEWEST_TEMPERATURES} "
            "temperatures needed do not say how probable a response should be; score at more, or "
            "pass baseline=, such as zero-shot log-likelihoods."
        )
    else:
        # Weights of the spline, and their derivatives, are as large as the table each.
        few = max(1, size // _TABLES)
        draws = map_draws(posterior, data, _against_own_responses, chunk_size=few)
    surprise, log_prob, expected = (np.asarray(values) for values in draws)
    found = interval(surprise, level)
    rows = np.argsort(-found["mean"], kind="stable")[:number]
    by_persona = persona_responsibilities(posterior, data.take(rows))
    return pd.DataFrame(
        {
            "record": rows,
            "surprise": found["mean"][rows],
            "low": found["low"][rows],
            "high": found["high"][rows],
            "log_prob": log_prob.mean(0)[rows],
            "baseline": expected.mean(0)[rows],
            "persona": by_persona.argmax(1),
            "responsibility": by_persona.max(1),
            "weight": np.asarray(data.weights)[rows],
        }
    )


def _against_own_responses(mixture: PersonaMixture, data: MixtureData) -> tuple[jax.Array, ...]:
    """Surprise in standard deviations, log p and E, [N] each."""
    table, grid = jnp.asarray(data.log_likelihood), jnp.asarray(data.temperature_grid)
    ends = jnp.log(grid[jnp.array([0, -1])])
    # The spline has no slope beyond the grid; a temperature at its end takes the one just inside.
    margin = 1e-3 * (ends[1] - ends[0])
    log_temperature = jnp.log(mixture.candidate_temperature)
    log_temperature = jnp.clip(log_temperature, ends[0] + margin, ends[1] - margin)
    zero, one = jnp.zeros((), table.dtype), jnp.ones((), table.dtype)

    def tempered(shift: jax.Array) -> jax.Array:
        return interpolate(table, jnp.exp(log_temperature + shift), grid)

    def slope_at(shift: jax.Array) -> jax.Array:
        return jax.jvp(tempered, (shift,), (one,))[1]

    slope, bend = jax.jvp(slope_at, (zero,), (one,))  # [N, C]
    responsibilities = mixture.responsibilities(table)
    below = (responsibilities * slope).sum(-1)
    variance = -(responsibilities * (slope + bend)).sum(-1)
    log_prob = mixture.log_prob(table)
    deviation = jnp.sqrt(jnp.maximum(variance, _LEAST_VARIANCE))
    return below / deviation, log_prob, log_prob + below


def _against_own_shares(mixture: Any, data: MixtureData) -> tuple[jax.Array, ...]:
    """Surprise, Σ n log p and Σ n log s, nats, [N] each, of closed answers."""
    counts = jnp.asarray(data.observed)
    total = counts.sum(-1, keepdims=True)
    # Options that nobody chose, padding among them, say nothing whatever their log p.
    log_probs = jnp.where(counts > 0, mixture.option_log_probs, 0.0)
    shares = jnp.where(counts > 0, counts / jnp.where(total > 0, total, 1.0), 1.0)
    said, possible = (counts * log_probs).sum(-1), (counts * jnp.log(shares)).sum(-1)
    return possible - said, said, possible
