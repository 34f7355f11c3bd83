"""The two-level contextual mixture as NumPyro distributions.

A component is a (persona, exemplar) pair. The gate gives each record two sets of logits,

    π_k(x)  = softmax_k( persona_logits_k )                          which persona speaks
    Ω_kj(x) = softmax_j( a_j + b_kj )                                and from which exemplar,

with a the record's part (−∞ at exemplars left out for it) and b the persona's; that law can be
sampled (`MixingDistribution`). `PersonaMixture` sums it out against a language model's
log-likelihoods, and `RenormalisedPersonaMixture` does so over the scored components only.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike
from jaxtyping import Float, Int
from numpyro.distributions import Distribution, constraints
from numpyro.distributions.util import validate_sample

from mop_jax.distributions.mixing import (
    MixingDistribution,
    as_array,
    gather,
    index_vector,
    log_weight_vector,
)
from mop_jax.distributions.temperature import interpolate, spline_weights


class PersonaMixture(Distribution):
    """The collapsed mixture of personas: persona and exemplar summed out (paper, section 3).

        log p(y | x) = logsumexp_c [ log π_k(c) + log Ω_k(c)j(c) + ℓ_c(τ_k(c)) + log_weight_c ]

    The observed value is not the response's text but what the frozen language model says about it:
    the table of log-likelihoods ℓ [C, G], one row for each of the record's candidate components and
    one column for each temperature of the grid (nats, summed over response tokens, end-of-turn
    token included). The text enters the posterior through this table only, which makes it a
    sufficient statistic, so no language model runs while a gate is being fitted.

    Candidates carry a `log_weight`: 0 when all components are listed, −log(C q_c) for C components
    drawn with known probability q_c (then p is estimated without bias), −∞ for padding and for
    left-out exemplars. Table entries must be finite even there, where they are ignored.

    Texts cannot be drawn from a table, so `sample` refuses; `mixing_distribution.sample` draws the
    component, and `mop_jax.inference.simulate` goes on to the response.

    Args:
        persona_logits: log π up to a constant, [..., K].
        exemplar_record_logits: a, the record's part of log Ω, [..., J]; −∞ leaves an exemplar out.
        exemplar_persona_logits: b, the personas' part of log Ω, [K, J].
        log_temperature: log τ of each persona, [K] or, one set per record, [..., K]; a τ beyond
            the grid counts as the grid's end.
        persona_index: k of each candidate, [..., C].
        exemplar_index: j of each candidate, [..., C].
        log_weight: log importance weight of each candidate, [..., C].
        temperature_grid: increasing temperatures at which ℓ was scored, [G].
        exemplar_log_temperature: added to log τ of a component with that exemplar, [J].
        record_log_temperature: added to log τ of all components of a record, [...].

    Example:
        >>> import jax.numpy as jnp
        >>> from mop_jax.distributions import PersonaMixture
        >>> mixture = PersonaMixture(  # 1 record, 2 personas, 1 exemplar, τ = 1
        ...     jnp.zeros((1, 2)), jnp.zeros((1, 1)), jnp.zeros((2, 1)), jnp.zeros(2),
        ...     jnp.array([[0, 1]]), jnp.array([[0, 0]]), jnp.zeros((1, 2)), jnp.ones(1),
        ... )
        >>> round(float(mixture.log_prob(jnp.log(jnp.array([[[0.2], [0.4]]])))[0]), 4)
        -1.204
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        **MixingDistribution.arg_constraints,
        "log_temperature": constraints.real_vector,
        "persona_index": index_vector,
        "exemplar_index": index_vector,
        "log_weight": log_weight_vector,
        "temperature_grid": constraints.independent(constraints.positive, 1),
    }
    support = constraints.real_matrix
    # The last two may be absent, so they are no parameters with constraints.
    pytree_data_fields = (
        *arg_constraints,
        "exemplar_log_temperature",
        "record_log_temperature",
    )

    def __init__(
        self,
        persona_logits: ArrayLike,
        exemplar_record_logits: ArrayLike,
        exemplar_persona_logits: ArrayLike,
        log_temperature: ArrayLike,
        persona_index: ArrayLike,
        exemplar_index: ArrayLike,
        log_weight: ArrayLike,
        temperature_grid: ArrayLike,
        *,
        exemplar_log_temperature: ArrayLike | None = None,
        record_log_temperature: ArrayLike | None = None,
        validate_args: bool | None = None,
    ) -> None:
        gate = MixingDistribution(
            persona_logits, exemplar_record_logits, exemplar_persona_logits, validate_args=False
        )
        self.persona_logits = gate.persona_logits
        self.exemplar_record_logits = gate.exemplar_record_logits
        self.exemplar_persona_logits = gate.exemplar_persona_logits
        self.log_temperature = as_array(log_temperature)
        self.persona_index = as_array(persona_index)
        self.exemplar_index = as_array(exemplar_index)
        self.log_weight = as_array(log_weight)
        self.temperature_grid = as_array(temperature_grid)
        given = (exemplar_log_temperature, record_log_temperature)
        self.exemplar_log_temperature, self.record_log_temperature = (
            None if values is None else as_array(values) for values in given
        )
        batch_shape = jnp.broadcast_shapes(
            gate.batch_shape, self.persona_index.shape[:-1], self.log_weight.shape[:-1]
        )
        event_shape = (self.persona_index.shape[-1], self.temperature_grid.shape[0])
        super().__init__(batch_shape, event_shape, validate_args=validate_args)

    @property
    def mixing_distribution(self) -> MixingDistribution:
        """The gate's law of (persona, exemplar) before the response is seen."""
        return MixingDistribution(
            self.persona_logits,
            self.exemplar_record_logits,
            self.exemplar_persona_logits,
            validate_args=False,
        )

    @property
    def mixing_log_probs(self) -> jax.Array:
        """Log π_k + log Ω_kj of every component, [..., K, J]: for small pools, plots and tests."""
        return self.mixing_distribution.mixing_log_probs

    @property
    def temperature(self) -> jax.Array:
        """τ of each persona, [K] or [..., K], confined to the grid: nothing is scored beyond.

        Where exemplars and records have temperatures of their own, it is that of an exemplar and a
        record whose parts are zero; see `candidate_temperature`.
        """
        grid = self.temperature_grid
        return jnp.clip(jnp.exp(self.log_temperature), grid[..., 0], grid[..., -1])

    @property
    def candidate_temperature(self) -> jax.Array:
        """τ of each candidate, [..., C]: persona's × exemplar's × record's, confined to the grid.

        The persona's is confined before the others multiply it, so that it means the same alone.
        """
        return _candidate_temperature(
            jnp.asarray(self.log_temperature),
            self.exemplar_log_temperature,
            self.record_log_temperature,
            self.persona_index,
            self.exemplar_index,
            self.temperature_grid,
        )

    @property
    def candidate_log_probs(self) -> jax.Array:
        """Log π + log Ω + log_weight of each candidate, [..., C]."""
        return (
            self.mixing_distribution.pair_log_probs(self.persona_index, self.exemplar_index)
            + self.log_weight
        )

    def tempered_log_likelihood(self, value: ArrayLike) -> jax.Array:
        """ℓ_c(τ_c) in nats: the table `value` [..., C, G] at each candidate's temperature."""
        if self.exemplar_log_temperature is not None or self.record_log_temperature is not None:
            return interpolate(value, self.candidate_temperature, self.temperature_grid)
        return _tempered_log_likelihood(
            jnp.asarray(value), self.log_temperature, self.persona_index, self.temperature_grid
        )

    def component_log_probs(self, value: ArrayLike) -> jax.Array:
        """Log of each candidate's share of p(y | x), [..., C]; −∞ where it has no weight."""
        return _add_where_allowed(self.candidate_log_probs, self.tempered_log_likelihood(value))

    @validate_sample
    def log_prob(self, value: ArrayLike) -> jax.Array:
        """Log p(y | x) in nats, [...], for the table `value` [..., C, G].

        A record without any allowed candidate has probability zero, and gradients of zero.
        """
        return _masked_logsumexp(self.component_log_probs(value))[..., 0]

    def responsibilities(self, value: ArrayLike) -> jax.Array:
        """p(k, j | x, y) over the record's candidates, [..., C]; zero for padding.

        With importance candidates these are self-normalised importance weights: pairs drawn several
        times appear several times, and their sum is the pair's responsibility.
        """
        log_probs = self.component_log_probs(value)
        return jnp.where(log_probs > -jnp.inf, jnp.exp(log_probs - _masked_logsumexp(log_probs)), 0)

    def sample(self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Refuses: a table of log-likelihoods cannot be drawn without the language model."""
        raise NotImplementedError(
            f"{type(self).__name__} observes log-likelihoods of a response and cannot draw one; "
            "draw the component with .mixing_distribution.sample(key), or responses with "
            "mop_jax.inference.simulate."
        )


class RenormalisedPersonaMixture(PersonaMixture):
    """`PersonaMixture` whose gate lives on the scored components only, as the paper's top-M gate.

        log p(y | x) = logsumexp_c [ log softmax_c( log π_k + log Ω_kj + log_weight_c ) + ℓ_c(τ_k) ]

    The scored components are the whole world: their probabilities sum to one whatever was left
    unscored. This is the law of the full mixture *given* that the component was scored, not an
    estimate of the full mixture. Arguments are those of `PersonaMixture`; `log_weight` is 0, or −∞
    for padding.

    Args:
        num_kept: M, how many components of each record, those that the gate prefers, are the whole
            world; all that are scored by default. Which they are is not differentiated.
    """

    pytree_aux_fields = ("num_kept",)

    def __init__(self, *args: Any, num_kept: int | None = None, **kwargs: Any) -> None:
        self.num_kept = num_kept
        super().__init__(*args, **kwargs)

    @property
    def candidate_log_probs(self) -> jax.Array:
        """Log π + log Ω over the components that are kept, normalised, [..., C]."""
        log_probs = super().candidate_log_probs
        if self.num_kept is not None and self.num_kept < log_probs.shape[-1]:
            log_probs = _kept(log_probs, self.num_kept)
        return _add_where_allowed(log_probs, -_masked_logsumexp(log_probs))


@partial(jax.jit, static_argnames="number")
def _kept(log_probs: Float[jax.Array, "*batch C"], number: int) -> Float[jax.Array, "*batch C"]:
    """The largest log-probabilities of each row; −∞ in the place of the others."""
    # By their places: of equals the first are kept, and no more than M.
    place = jax.lax.top_k(jax.lax.stop_gradient(log_probs), number)[1]
    kept = jax.nn.one_hot(place, log_probs.shape[-1], dtype=bool).any(-2)
    return jnp.where(kept, log_probs, -jnp.inf)


@jax.jit
def _tempered_log_likelihood(
    table: Float[jax.Array, "... C G"],
    log_temperature: Float[jax.Array, "... K"],
    persona_index: Int[jax.Array, "... C"],
    grid: Float[jax.Array, " G"],
) -> Float[jax.Array, "... C"]:
    if log_temperature.ndim == 1:
        weights = spline_weights(jnp.exp(log_temperature), grid)[persona_index]
    else:
        weights = spline_weights(jnp.exp(gather(log_temperature, persona_index)), grid)
    return (weights * table).sum(-1)


@jax.jit
def _candidate_temperature(
    log_temperature: Float[jax.Array, "... K"],
    exemplar: Float[jax.Array, "... J"] | None,
    record: Float[jax.Array, ...] | None,
    persona_index: Int[jax.Array, "... C"],
    exemplar_index: Int[jax.Array, "... C"],
    grid: Float[jax.Array, " G"],
) -> Float[jax.Array, "... C"]:
    lowest, highest = jnp.log(grid[0]), jnp.log(grid[-1])
    found = gather(jnp.clip(log_temperature, lowest, highest), persona_index)
    if exemplar is not None:
        found = found + gather(exemplar, exemplar_index)
    if record is not None:
        found = found + record[..., None]
    return jnp.exp(jnp.clip(found, lowest, highest))


@jax.jit
def _add_where_allowed(
    prior: Float[jax.Array, "*#batch C"], log_likelihood: Float[jax.Array, "*#batch #C"]
) -> Float[jax.Array, "... C"]:
    allowed = prior > -jnp.inf
    # −∞ is put back last, so that no gradient is ever a product with infinity.
    return jnp.where(allowed, jnp.where(allowed, prior, 0.0) + log_likelihood, -jnp.inf)


@jax.jit
def _masked_logsumexp(log_probs: Float[jax.Array, "*batch C"]) -> Float[jax.Array, "*batch 1"]:
    """Logsumexp over the last axis, kept; −∞ with zero gradient (never NaN) where all are −∞."""
    allowed = log_probs > -jnp.inf
    any_allowed = allowed.any(-1, keepdims=True)
    total = logsumexp(jnp.where(any_allowed, log_probs, 0.0), axis=-1, keepdims=True)
    return jnp.where(any_allowed, total, -jnp.inf)
