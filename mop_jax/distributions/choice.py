"""Closed answers under a mixture of personas: which option is chosen, by one person or by many.

The components are those of `PersonaMixture`; what a component gives here is not one response's
log-likelihood but those of all M options of a question, normalised over the options. The answer is
therefore a proper random variable that can be drawn: prior and posterior predictive checks,
simulation-based calibration and `numpyro.infer.Predictive` work as with any other distribution.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike
from jaxtyping import Float, Int
from numpyro.distributions import Distribution, constraints
from numpyro.distributions.util import validate_sample
from numpyro.util import is_prng_key

from mop_jax.distributions.mixing import (
    MixingDistribution,
    as_array,
    gather,
    index_vector,
    log_weight_vector,
)

# Of persons that choose; survey weights make them fractions.
_counts_vector = constraints.independent(constraints.nonnegative, 1)
# Terms after which Stirling's series is exact to float32.
_SHIFT = 8


class ChoiceMixture(Distribution):
    """The option that a person chooses, persona and exemplar summed out:

        p(y = m | x) = Σ_c w_c softmax_m( ℓ_cm / τ_k(c) + b_m )
        w = softmax_c( log π_k(c) + log Ω_k(c)j(c) + log_weight_c )

    ℓ_cm is the language model's log-probability of option m's whole text, its end included, after
    component c's prompt. The mixture lives on the candidates listed: with all components listed
    w is the gate's law, and with some of them its self-normalised importance estimate, so that the
    options' probabilities sum to one either way.

    Args:
        persona_logits: log π up to a constant, [..., K].
        exemplar_record_logits: a, the record's part of log Ω, [..., J]; −∞ leaves an exemplar out.
        exemplar_persona_logits: b, the personas' part of log Ω, [K, J].
        log_temperature: log τ of each persona, [K].
        persona_index: k of each candidate, [..., C].
        exemplar_index: j of each candidate, [..., C].
        log_weight: log importance weight of each candidate, [..., C]; −∞ for padding.
        option_log_likelihood: ℓ in nats, finite, [..., C, M].
        option_logits: b, what an option has beyond the language model's preference, [..., M]; −∞
            where a question has fewer than M options.

    Example:
        >>> import jax.numpy as jnp
        >>> from mop_jax.distributions import ChoiceMixture
        >>> choice = ChoiceMixture(  # 1 record, 2 personas, 1 exemplar, 2 options
        ...     jnp.zeros((1, 2)), jnp.zeros((1, 1)), jnp.zeros((2, 1)), jnp.zeros(2),
        ...     jnp.array([[0, 1]]), jnp.array([[0, 0]]), jnp.zeros((1, 2)),
        ...     jnp.log(jnp.array([[[0.1, 0.3], [0.4, 0.4]]])), jnp.zeros((1, 2)),
        ... )
        >>> jnp.exp(choice.option_log_probs).round(4).tolist()
        [[0.375, 0.625]]
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        **MixingDistribution.arg_constraints,
        "log_temperature": constraints.real_vector,
        "persona_index": index_vector,
        "exemplar_index": index_vector,
        "log_weight": log_weight_vector,
        "option_log_likelihood": constraints.real_matrix,
        "option_logits": log_weight_vector,
    }
    has_enumerate_support = True

    def __init__(
        self,
        persona_logits: ArrayLike,
        exemplar_record_logits: ArrayLike,
        exemplar_persona_logits: ArrayLike,
        log_temperature: ArrayLike,
        persona_index: ArrayLike,
        exemplar_index: ArrayLike,
        log_weight: ArrayLike,
        option_log_likelihood: ArrayLike,
        option_logits: ArrayLike,
        *,
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
        self.option_log_likelihood = as_array(option_log_likelihood)
        self.option_logits = as_array(option_logits)
        options = self.option_log_likelihood.shape[-1]
        if self.option_logits.shape[-1] != options:
            raise ValueError(
                f"option_logits has {self.option_logits.shape[-1]} options and "
                f"option_log_likelihood {options}; they must agree."
            )
        batch_shape = jnp.broadcast_shapes(
            gate.batch_shape,
            self.persona_index.shape[:-1],
            self.log_weight.shape[:-1],
            self.option_log_likelihood.shape[:-2],
            self.option_logits.shape[:-1],
        )
        super().__init__(batch_shape, self._event_shape_of(options), validate_args=validate_args)

    @staticmethod
    def _event_shape_of(num_options: int) -> tuple[int, ...]:
        return ()

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Any:
        """Options are counted from 0."""
        return constraints.integer_interval(0, self.num_options - 1)

    @property
    def num_options(self) -> int:
        """M, padding included."""
        return self.option_log_likelihood.shape[-1]

    @property
    def mixing_distribution(self) -> MixingDistribution:
        """The gate's law of (persona, exemplar) before the answer is seen."""
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
        """τ of each persona, [K]."""
        return jnp.exp(self.log_temperature)

    @property
    def candidate_log_probs(self) -> jax.Array:
        """Log w, [..., C]: sums to one over the candidates; −∞ for padding."""
        pairs = self.mixing_distribution.pair_log_probs(self.persona_index, self.exemplar_index)
        return jax.nn.log_softmax(pairs + self.log_weight, axis=-1)

    @property
    def component_option_log_probs(self) -> jax.Array:
        """Log-probabilities of the options under each candidate, [..., C, M]."""
        return _option_log_probs(
            self.option_log_likelihood,
            self.log_temperature,
            self.persona_index,
            self.option_logits,
        )

    @property
    def option_log_probs(self) -> jax.Array:
        """Log p(y = m | x), [..., M]; −∞ where there is no option."""
        return _mixed(self.candidate_log_probs, self.component_option_log_probs)

    @property
    def probs(self) -> jax.Array:
        """p(y = m | x), [..., M]."""
        return jnp.exp(self.option_log_probs)

    @validate_sample
    def log_prob(self, value: ArrayLike) -> jax.Array:
        """Log p(y = value | x) in nats, of options counted from 0."""
        value = jnp.asarray(value)
        log_probs = self.option_log_probs
        shape = jnp.broadcast_shapes(value.shape, log_probs.shape[:-1])
        log_probs = jnp.broadcast_to(log_probs, (*shape, log_probs.shape[-1]))
        index = jnp.broadcast_to(value, shape)[..., None]
        return jnp.take_along_axis(log_probs, index, axis=-1)[..., 0]

    def responsibilities(self, value: ArrayLike) -> jax.Array:
        """p(c | x, y) of each candidate, [..., C], for options counted from 0."""
        posterior = self._component_posteriors()  # [..., C, M]
        index = jnp.broadcast_to(jnp.asarray(value), posterior.shape[:-2])[..., None, None]
        index = jnp.broadcast_to(index, (*posterior.shape[:-1], 1))
        return jnp.take_along_axis(posterior, index, axis=-1)[..., 0]

    def _component_posteriors(self) -> jax.Array:
        """p(c | x, y = m), [..., C, M]; zero where there is no option."""
        joint = self.candidate_log_probs[..., None] + self.component_option_log_probs
        total = self.option_log_probs[..., None, :]
        possible = total > -jnp.inf
        return jnp.where(possible, jnp.exp(joint - jnp.where(possible, total, 0.0)), 0.0)

    def sample(self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Draws an option, counted from 0: int32 [...]."""
        assert key is not None
        assert is_prng_key(key)
        shape = sample_shape + self.batch_shape
        log_probs = jnp.broadcast_to(self.option_log_probs, (*self.batch_shape, self.num_options))
        return jax.random.categorical(key, log_probs, shape=shape).astype(jnp.int32)

    def enumerate_support(self, expand: bool = True) -> jax.Array:
        """All options, [M, ...]; those that a question lacks have probability zero."""
        values = jnp.arange(self.num_options).reshape((-1,) + (1,) * len(self.batch_shape))
        return jnp.broadcast_to(values, (len(values), *self.batch_shape)) if expand else values


class ChoiceCounts(ChoiceMixture):
    """How many of a record's people choose each option: `ChoiceMixture` for a whole cell.

        p̃ ~ Dirichlet(φ p(· | x)),   counts ~ Multinomial(n, p̃)        (p̃ = p without dispersion)

    People who share a prompt are one record with counts [..., M]. A cell's shares differ from any
    model's by more than their sampling error; the concentration φ says by how much, and without it
    a cell of thousands would be fitted at the price of all others. With n = 1 this is
    `ChoiceMixture`, whatever φ.

    Counts may be fractions, as survey weights make them; factorials are then gamma functions.

    Args:
        *parameters: those of `ChoiceMixture`.
        total_count: n, how many choose when counts are drawn, whole numbers [...].
        concentration: φ, positive [...]; None for no dispersion.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        **ChoiceMixture.arg_constraints,
        "total_count": constraints.nonnegative,
        "concentration": constraints.positive,
    }
    pytree_aux_fields = ("dispersed",)
    has_enumerate_support = False
    support = _counts_vector  # type: ignore[assignment]

    def __init__(
        self,
        *parameters: ArrayLike,
        total_count: ArrayLike = 1,
        concentration: ArrayLike | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.total_count = as_array(total_count)
        self.dispersed = concentration is not None
        self.concentration = as_array(jnp.inf if concentration is None else concentration)
        super().__init__(*parameters, validate_args=validate_args)  # type: ignore[arg-type]

    @staticmethod
    def _event_shape_of(num_options: int) -> tuple[int, ...]:
        return (num_options,)

    @validate_sample
    def log_prob(self, value: ArrayLike) -> jax.Array:
        """Log-probability in nats of the counts `value` [..., M]."""
        counts = jnp.asarray(value, jnp.result_type(float))
        log_probs = self.option_log_probs
        ways = _log_rising(0.0, counts.sum(-1)) - _log_rising(0.0, counts).sum(-1)
        if not self.dispersed:
            chosen = counts > 0
            return (
                ways
                + jnp.where(chosen, counts * jnp.where(chosen, log_probs, 0.0), 0.0).sum(-1)
                + jnp.where((chosen & (log_probs == -jnp.inf)).any(-1), -jnp.inf, 0.0)
            )
        return ways + _dirichlet_multinomial(counts, log_probs, self.concentration)

    def responsibilities(self, value: ArrayLike) -> jax.Array:
        """p(c | x, y) averaged over the people counted, [..., C]; the gate's where nobody is."""
        counts = jnp.asarray(value, jnp.result_type(float))
        total = counts.sum(-1, keepdims=True)
        shares = counts / jnp.where(total > 0, total, 1.0)
        mean = (self._component_posteriors() * shares[..., None, :]).sum(-1)
        return jnp.where(total > 0, mean, jnp.exp(self.candidate_log_probs))

    def sample_probs(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Draws the shares of whole cells, p̃ [..., M]: what n → ∞ people would choose."""
        shape = (*sample_shape, *self.batch_shape, self.num_options)
        probs = jnp.broadcast_to(self.probs, shape)
        if not self.dispersed:
            return probs
        concentration = jnp.broadcast_to(self.concentration, shape[:-1])[..., None]
        # Gammas by their logarithms: small ones would vanish.
        gammas = jax.random.loggamma(key, jnp.maximum(concentration * probs, 1e-6))
        return jax.nn.softmax(jnp.where(probs > 0, gammas, -jnp.inf), axis=-1)

    def sample(self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Draws counts, [..., M], of the floating-point type of the table."""
        assert key is not None
        assert is_prng_key(key)
        probs_key, counts_key = jax.random.split(key)
        probs = self.sample_probs(probs_key, sample_shape)
        left = jnp.broadcast_to(self.total_count, probs.shape[:-1]).astype(probs.dtype)
        rest = jnp.flip(jnp.cumsum(jnp.flip(probs, -1), -1), -1)  # from this option on
        counts = []
        for m, one in enumerate(jax.random.split(counts_key, self.num_options)):
            share = jnp.clip(probs[..., m] / jnp.maximum(rest[..., m], 1e-30), 0.0, 1.0)
            drawn = jax.random.binomial(one, left, share)
            drawn = jnp.where((left > 0) & (probs[..., m] > 0), drawn, 0.0)
            # Whoever chose none of the others chose the last that there is.
            last = ~(probs[..., m + 1 :] > 0).any(-1)
            drawn = jnp.where(last & (probs[..., m] > 0), left, drawn)
            counts.append(drawn)
            left = left - drawn
        return jnp.stack(counts, axis=-1)


@jax.jit
def _option_log_probs(
    table: Float[jax.Array, "... C M"],
    log_temperature: Float[jax.Array, " K"],
    persona_index: Int[jax.Array, "... C"],
    option_logits: Float[jax.Array, "... M"],
) -> Float[jax.Array, "... C M"]:
    temperature = jnp.exp(gather(log_temperature, persona_index))[..., None]
    present = (option_logits > -jnp.inf)[..., None, :]
    logits = table / temperature + jnp.where(present, option_logits[..., None, :], 0.0)
    # −∞ is put back last, so that no gradient is ever a product with infinity.
    logits = jnp.where(present, logits, -1e30)
    return jnp.where(present, jax.nn.log_softmax(logits, axis=-1), -jnp.inf)


@jax.jit
def _mixed(
    candidates: Float[jax.Array, "*#batch C"], options: Float[jax.Array, "*#batch C M"]
) -> Float[jax.Array, "... M"]:
    present = (options > -jnp.inf).any(-2)
    allowed = (candidates > -jnp.inf)[..., None]
    # Padding far below all else, but finite: gradients of −∞ − (−∞) are NaN.
    weights = jnp.where(allowed, candidates[..., None], -1e30)
    joint = jnp.where(present[..., None, :] & allowed, weights + options, -1e30)
    return jnp.where(present, logsumexp(joint, axis=-2), -jnp.inf)


@jax.jit
def _dirichlet_multinomial(
    counts: Float[jax.Array, "*#batch M"],
    log_probs: Float[jax.Array, "*#batch M"],
    concentration: Float[jax.Array, "*#batch"],
) -> Float[jax.Array, "*batch"]:
    """Log of Γ(φ)/Γ(φ + n) Π_m Γ(φ p_m + n_m)/Γ(φ p_m)."""
    possible = log_probs > -jnp.inf
    log_concentration = jnp.log(concentration)
    pseudo = log_concentration[..., None] + jnp.where(possible, log_probs, 0.0)
    rising = jnp.where(possible, _log_rising(pseudo, jnp.where(possible, counts, 0.0)), 0.0)
    impossible = (~possible & (counts > 0)).any(-1)
    total = rising.sum(-1) - _log_rising(log_concentration, counts.sum(-1))
    return jnp.where(impossible, -jnp.inf, total)


def _log_rising(log_start: ArrayLike, by: ArrayLike) -> jax.Array:
    """Log Γ(start + by) − log Γ(start), for start > 0 and by ≥ 0.

    The difference of two gamma functions of thousands has lost its digits in float32: Stirling's
    series is subtracted term by term, behind the first few factors. The first of these is taken
    from logarithms, so that a start that underflows still has a gradient.
    """
    log_start, by = jnp.broadcast_arrays(*map(jnp.asarray, (log_start, by)))
    dtype = jnp.result_type(log_start, by, jnp.float32)
    log_start, by = log_start.astype(dtype), by.astype(dtype)
    start = jnp.exp(log_start)
    one = jnp.logaddexp(log_start, jnp.log(jnp.maximum(by, jnp.finfo(dtype).tiny))) - log_start
    steps = jnp.arange(1, _SHIFT, dtype=dtype)
    factors = jnp.where(by > 0, one, 0.0) + jnp.log1p(
        by[..., None] / (start[..., None] + steps)
    ).sum(-1)
    first, last = start + _SHIFT, start + _SHIFT + by

    def correction(x: jax.Array) -> jax.Array:
        return (1 / 12 - (1 / 360 - 1 / (1260 * x**2)) / x**2) / x

    difference = (
        (last - 0.5) * jnp.log1p(by / first)
        + by * jnp.log(first)
        - by
        + correction(last)
        - correction(first)
    )
    return difference - factors
