"""The gate's law of a component: persona, then exemplar, in the additive form that scales.

The logits of an exemplar under a persona are a_j + b_kj. That form is what makes large pools
affordable: the normaliser of Ω is the matrix product exp(a)·exp(b)ᵀ, so nothing of size N×K×J is
ever built (only `mixing_log_probs`, made for small cases and tests, is that large).
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike
from jaxtyping import Float, Int
from numpyro.distributions import Distribution, constraints
from numpyro.util import is_prng_key


class _LogWeight(constraints.ParameterFreeConstraint):
    """Any number below +∞, −∞ included: the logarithm of a non-negative weight."""

    def __call__(self, x: Any) -> Any:
        return x < jnp.inf

    def feasible_like(self, prototype: Any) -> Any:
        return jnp.zeros_like(prototype)


log_weight_vector = constraints.independent(_LogWeight(), 1)
index_vector = constraints.independent(constraints.nonnegative_integer, 1)


# Pure helpers are jitted one by one: guides and NUTS trace a model eagerly once before they compile
# it whole, and op-by-op that costs half a minute of tiny compilations on a slow CPU.
@jax.jit
def log_matmul_exp(
    left: Float[jax.Array, "... J"], right: Float[jax.Array, "K J"]
) -> Float[jax.Array, "... K"]:
    """logsumexp_j( left_j + right_kj ) as a matrix product, for left [..., J] and right [K, J].

    Each exemplar's largest entry over personas moves from `right` into `left` first: an exemplar
    that every persona favours and that is left out (−∞ in `left`) must not set the scale for those
    that remain. What is still lost to underflow is a persona that puts the record's allowed
    exemplars more than about 80 nats (float32) below another persona's; it is held at the smallest
    positive float, so values and gradients stay finite. All entries −∞ give about −87, not NaN.

    Returns:
        Log-sums [..., K].
    """
    # Where `right` is a constant, XLA makes of the product with ones a sum over exemplars, which
    # its CPU backend (jax 0.10.2) fuses wrongly with what follows for thousands of rows. Behind
    # the barrier it is no constant.
    right = jax.lax.optimization_barrier(right)
    column = jax.lax.stop_gradient(_finite_max(right, axis=0))  # [J]
    left, right = left + column, right - column
    left_max = jax.lax.stop_gradient(_finite_max(left, axis=-1))  # [...]
    right_max = jax.lax.stop_gradient(_finite_max(right, axis=-1))  # [K]
    product = jnp.matmul(
        jnp.exp(left - left_max[..., None]),
        jnp.exp(right - right_max[:, None]).T,
        # The default on accelerators rounds to 8 or 10 bits, and a likelihood would follow it.
        precision=jax.lax.Precision.HIGHEST,
    )
    smallest = jnp.finfo(product.dtype).tiny
    log_product = jnp.log(jnp.maximum(product, smallest))
    return log_product + left_max[..., None] + right_max


def _finite_max(x: jax.Array, axis: int) -> jax.Array:
    # A row of −∞ has no scale of its own; 0 keeps −∞ − (−∞) from becoming NaN.
    largest = jnp.max(x, axis=axis)
    return jnp.where(jnp.isfinite(largest), largest, 0.0)


class MixingDistribution(Distribution):
    """The gate's law of a component: persona k ~ Categorical(π), exemplar j ~ Categorical(Ω_k).

    Paper, section 3. A value is the pair (k, j), of event shape (2,) and integer dtype.

    Args:
        persona_logits: log π up to a constant, [..., K].
        exemplar_record_logits: a, the record's part of log Ω, [..., J]; −∞ leaves an exemplar out.
        exemplar_persona_logits: b, the personas' part of log Ω, [K, J].

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from mop_jax.distributions import MixingDistribution
        >>> gate = MixingDistribution(jnp.zeros((5, 2)), jnp.zeros((5, 3)), jnp.zeros((2, 3)))
        >>> gate.sample(jax.random.key(0)).shape
        (5, 2)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "persona_logits": constraints.real_vector,
        "exemplar_record_logits": log_weight_vector,
        "exemplar_persona_logits": constraints.real_matrix,
    }
    support = index_vector

    def __init__(
        self,
        persona_logits: ArrayLike,
        exemplar_record_logits: ArrayLike,
        exemplar_persona_logits: ArrayLike,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.persona_logits = as_array(persona_logits)
        self.exemplar_record_logits = as_array(exemplar_record_logits)
        self.exemplar_persona_logits = as_array(exemplar_persona_logits)
        expected = (self.persona_logits.shape[-1], self.exemplar_record_logits.shape[-1])
        if self.exemplar_persona_logits.shape != expected:
            raise ValueError(
                f"exemplar_persona_logits has shape {self.exemplar_persona_logits.shape}; with "
                f"{expected[0]} persona logits and {expected[1]} exemplar logits per record it "
                f"must be {expected}."
            )
        batch_shape = jnp.broadcast_shapes(
            self.persona_logits.shape[:-1], self.exemplar_record_logits.shape[:-1]
        )
        super().__init__(batch_shape, (2,), validate_args=validate_args)

    @property
    def persona_log_probs(self) -> jax.Array:
        """Log π, [..., K]."""
        return jax.nn.log_softmax(self.persona_logits, axis=-1)

    @property
    def exemplar_log_normaliser(self) -> jax.Array:
        """logsumexp_j(a_j + b_kj), [..., K]."""
        return log_matmul_exp(self.exemplar_record_logits, self.exemplar_persona_logits)

    @property
    def mixing_log_probs(self) -> jax.Array:
        """Log π_k + log Ω_kj of every component, [..., K, J]: for small pools, plots and tests."""
        joint = self.exemplar_record_logits[..., None, :] + self.exemplar_persona_logits
        exemplar_log_probs = joint - logsumexp(joint, axis=-1, keepdims=True)
        return self.persona_log_probs[..., None] + exemplar_log_probs

    def pair_log_probs(self, persona_index: ArrayLike, exemplar_index: ArrayLike) -> jax.Array:
        """Log π + log Ω at chosen pairs: indices [..., C] (batch shape first) to nats [..., C]."""
        return pair_log_probs_of(
            self.persona_logits,
            self.exemplar_record_logits,
            self.exemplar_persona_logits,
            as_array(persona_index),
            as_array(exemplar_index),
        )

    def log_prob(self, value: ArrayLike) -> jax.Array:
        """Log π_k + log Ω_kj of the pair (k, j) in `value` [..., 2]."""
        value = jnp.asarray(value)
        return self.pair_log_probs(value[..., :1], value[..., 1:])[..., 0]

    def sample(self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Draws a persona, then an exemplar given the persona: int32 [..., 2]."""
        assert key is not None
        assert is_prng_key(key)
        persona_key, exemplar_key = jax.random.split(key)
        shape = sample_shape + self.batch_shape
        persona = jax.random.categorical(persona_key, self.persona_logits, shape=shape)
        logits = self.exemplar_record_logits + jnp.asarray(self.exemplar_persona_logits)[persona]
        exemplar = jax.random.categorical(exemplar_key, logits)
        return jnp.stack([persona, exemplar], axis=-1).astype(jnp.int32)


def as_array(values: ArrayLike) -> Any:
    """An array; NumPy's stay NumPy's, so that their values are checked without compiling."""
    return values if isinstance(values, np.ndarray | jax.Array) else jnp.asarray(values)


@jax.jit
def pair_log_probs_of(
    persona_logits: Float[jax.Array, "... K"],
    exemplar_record_logits: Float[jax.Array, "... J"],
    exemplar_persona_logits: Float[jax.Array, "K J"],
    persona_index: Int[jax.Array, "... C"],
    exemplar_index: Int[jax.Array, "... C"],
) -> Float[jax.Array, "... C"]:
    """Log π + log Ω at chosen pairs; see `MixingDistribution.pair_log_probs`."""
    normaliser = log_matmul_exp(exemplar_record_logits, exemplar_persona_logits)
    return (
        gather(jax.nn.log_softmax(persona_logits, axis=-1) - normaliser, persona_index)
        + gather(exemplar_record_logits, exemplar_index)
        + exemplar_persona_logits[persona_index, exemplar_index]
    )


def gather(
    values: Float[jax.Array, "... n"], index: Int[jax.Array, "... C"]
) -> Float[jax.Array, "... C"]:
    """values[..., index] along the last axis, with the leading axes of both broadcast."""
    shape = jnp.broadcast_shapes(values.shape[:-1], index.shape[:-1])
    values = jnp.broadcast_to(values, (*shape, values.shape[-1]))
    index = jnp.broadcast_to(index, (*shape, index.shape[-1]))
    return jnp.take_along_axis(values, index, axis=-1)
