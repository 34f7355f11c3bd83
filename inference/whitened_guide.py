"""The default guide: a full-covariance Gaussian, whitened by a Laplace approximation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.distributions.transforms import ComposeTransform, LowerCholeskyAffine
from numpyro.infer.autoguide import AutoMultivariateNormal
from numpyro.infer.util import potential_energy
from threadpoolctl import threadpool_limits

from mop_jax.errors import FaultError
from mop_jax.models.data import MixtureData
from mop_jax.models.scales import LEARNT_SCALE

_MODE_STEPS = 400
_DIRECTIONS = 16  # of the Hessian, at a time
_LOWEST_PRECISION = 0.1  # of the prior's: what the posterior has at least, in any direction
_LOWEST_OF_LARGEST = 1e-6  # of the largest precision, where the prior has none to compare with


class _PathwiseNormal(dist.MultivariateNormal):
    """A Gaussian whose density hides its parameters from the gradient ("sticking the landing").

    The score has expectation zero, and without it the ELBO's gradient is free of noise where the
    guide equals the posterior (Roeder, Wu, Duvenaud 2017, arXiv 1703.09194).
    """

    def log_prob(self, value: jax.Array) -> jax.Array:
        loc, scale_tril = jax.lax.stop_gradient((self.loc, self.scale_tril))
        return dist.MultivariateNormal(loc, scale_tril=scale_tril).log_prob(value)


class AutoWhitenedNormal(AutoMultivariateNormal):
    """A full-covariance Gaussian in coordinates whitened by a Laplace approximation:

        z = ẑ + L (m + T ε),   L Lᵀ = H⁻¹,   ε ~ Normal(0, I)

    with ẑ the posterior's mode, H the Hessian of the negative log joint density there (where it has
    less than a tenth of the prior's precision in a direction, that tenth), and m and the lower
    triangular T to be learned, from 0 and I. The family is that of
    `AutoMultivariateNormal`; but one step of the optimiser means the same in every direction, and
    the fit starts at the Laplace approximation instead of at a narrow ball around a draw from the
    prior. Where the posterior is nearly Gaussian, a few hundred steps do.

    Scales of priors that are learnt (`mop_jax.models.learnt_scale`) are held at their prior median
    while ẑ is searched for: the mode of a hierarchical posterior is one of huge scales and tiny
    effects, far from where its probability is. In their directions H is that of the prior.

    `prepare_guide` finds ẑ and L before the first step; they are the same whenever key and data
    are, so a fit that is resumed finds them again.
    """

    def __init__(self, model: Callable[..., Any], **kwargs: Any) -> None:
        super().__init__(model, **kwargs)
        self._whitening: LowerCholeskyAffine | None = None

    def whiten(self, data: MixtureData, model_kwargs: Mapping[str, Any]) -> None:
        """Finds the mode and the Hessian, from the start that the prototype drew."""
        model, unpack = self.model, self._unpack_latent
        # With the Hessian of all records there is nothing to subsample.
        kwargs = {k: v for k, v in model_kwargs.items() if k != "subsample_size"}

        def potential_of(model: Callable[..., Any]) -> Callable[..., jax.Array]:
            return lambda latent, data: potential_energy(model, (data,), kwargs, unpack(latent))

        prior = numpyro.handlers.block(model, hide_fn=_is_observed)
        start, held = self._scales_at_their_median()
        mode, hessian, prior_hessian = _mode_and_hessians(
            potential_of(model), potential_of(prior), start, data, held
        )
        if held is not None:
            # No minimum in their directions, and so no curvature to go by: as wide as the prior.
            apart = np.asarray(held)[:, None] | np.asarray(held)
            hessian = np.where(apart, prior_hessian, hessian)
        if not (np.isfinite(mode).all() and np.isfinite(hessian).all()):
            raise FaultError(
                "The log joint density has no finite mode: the search ended at a value or second "
                "derivative that is no finite number. A tighter prior usually helps."
            )
        # One thread: sums in another order would move a fit that is resumed in its last bits.
        with threadpool_limits(limits=1):
            scale_tril = _scale_tril(hessian, prior_hessian)
        dtype = self._init_latent.dtype
        self._whitening = LowerCholeskyAffine(
            jnp.asarray(mode, dtype), jnp.asarray(scale_tril, dtype)
        )

    def _scales_at_their_median(self) -> tuple[jax.Array, jax.Array | None]:
        """The start with learnt scales at their prior median, and where they are in it."""
        start = self._init_latent
        place = self._unpack_latent(jnp.arange(start.size, dtype=start.dtype))
        held = jnp.zeros(start.size, bool)
        for name, site in self.prototype_trace.items():
            if site["type"] == "sample" and LEARNT_SCALE in site["infer"]:
                index, median = place[name].astype(int), site["infer"][LEARNT_SCALE]
                # Positive numbers are searched for by their logarithm.
                start, held = start.at[index].set(np.log(median)), held.at[index].set(True)
        return start, held if held.any() else None

    def _get_posterior(self) -> dist.Distribution:
        loc = numpyro.param(f"{self.prefix}_loc", jnp.zeros_like(self._init_latent))
        scale_tril = numpyro.param(
            f"{self.prefix}_scale_tril",
            jnp.identity(self.latent_dim, loc.dtype),
            constraint=self.scale_tril_constraint,
        )
        normal = _PathwiseNormal(loc, scale_tril=scale_tril)
        # Without `prepare_guide` there is nothing to whiten with.
        return normal if self._whitening is None else _affine(normal, self._whitening)

    def get_transform(self, params: dict[str, Any]) -> LowerCholeskyAffine:
        """The affine map from ε to the unconstrained latent vector."""
        learned = super().get_transform(params)
        if self._whitening is None:
            return learned
        outer = self._whitening
        return LowerCholeskyAffine(outer(learned.loc), outer.scale_tril @ learned.scale_tril)

    def median(self, params: dict[str, Any]) -> dict[str, Any]:
        """The posterior median of every site."""
        return self._unpack_and_constrain(self.get_transform(params).loc, params)


def _affine(normal: dist.Distribution, transform: LowerCholeskyAffine) -> dist.Distribution:
    return dist.TransformedDistribution(normal, ComposeTransform([transform]))


def _is_observed(site: dict[str, Any]) -> bool:
    return site["type"] == "sample" and bool(site["is_observed"])


def _scale_tril(hessian: np.ndarray, prior_hessian: np.ndarray) -> np.ndarray:
    """L with L Lᵀ = H⁻¹, where H is made positive definite if it is not.

    Relative to the prior, H has eigenvalues that mean the same whatever the sites' units: 1 where
    the data say nothing, N·J where every record speaks of a direction. Relative to the largest one
    they do not: temperatures are known a hundred thousand times better than some gate weights.

    Args:
        hessian: second derivatives of −log p(y, z) at the mode, [D, D].
        prior_hessian: those of −log p(z), [D, D].
    """
    hessian = (hessian + hessian.T) / 2
    try:
        prior_tril = _inverse_tril((prior_hessian + prior_hessian.T) / 2)
    except np.linalg.LinAlgError:
        # A prior that is improper, or not log-concave here: there is no scale but H's own.
        precision, axes = np.linalg.eigh(hessian)
        precision = np.abs(precision)
        largest = precision.max() or 1.0
        precision = np.maximum(precision, _LOWEST_OF_LARGEST * largest)
        return np.linalg.cholesky((axes / precision) @ axes.T)
    precision, axes = np.linalg.eigh(prior_tril.T @ hessian @ prior_tril)
    # Below the prior's precision only near a saddle, where H is no guide to the posterior's width.
    axes = prior_tril @ axes
    return np.linalg.cholesky((axes / np.maximum(precision, _LOWEST_PRECISION)) @ axes.T)


def _inverse_tril(precision: np.ndarray) -> np.ndarray:
    """L with L Lᵀ = P⁻¹; LinAlgError where P is not positive definite."""
    tril = np.linalg.cholesky(precision)
    if not (np.diag(tril) > 0).all():  # NaN
        raise np.linalg.LinAlgError("not positive definite")
    return np.linalg.cholesky(np.linalg.inv(precision))


def _mode_and_hessians(
    potential: Callable[..., jax.Array],
    prior_potential: Callable[..., jax.Array],
    start: jax.Array,
    data: MixtureData,
    held: jax.Array | None,
) -> tuple[np.ndarray, ...]:
    """The minimum of `potential(latent, data)` near `start`, and both second derivatives there.

    Entries that are `held`, bool [D], stay where they are; none without it.
    """
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, _MODE_STEPS, alpha=0.01))
    gradient = jax.grad(potential)

    @jax.jit
    def run(start: jax.Array, data: MixtureData) -> tuple[jax.Array, ...]:
        def step(_: int, carry: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
            latent, state = carry
            slope = gradient(latent, data)
            if held is not None:
                slope = jnp.where(held, 0.0, slope)
            updates, state = optimizer.update(slope, state)
            return latent + updates, state

        mode, _ = jax.lax.fori_loop(0, _MODE_STEPS, step, (start, optimizer.init(start)))

        def hessian(gradient: Callable[..., jax.Array]) -> jax.Array:
            def column(direction: jax.Array) -> jax.Array:
                return jax.jvp(lambda z: gradient(z, data), (mode,), (direction,))[1]

            # Whole batches: a last one that is smaller would be compiled as well.
            directions = jnp.eye(-(-mode.size // _DIRECTIONS) * _DIRECTIONS, mode.size)
            columns = jax.lax.map(column, directions.astype(mode.dtype), batch_size=_DIRECTIONS)
            return columns[: mode.size]

        return mode, hessian(gradient), hessian(jax.grad(prior_potential))

    found = compiled_quickly(run, start, data)(start, data)
    return tuple(np.asarray(values, np.float64) for values in found)


def compiled_quickly(function: Any, *args: Any) -> Callable[..., Any]:
    """A jitted function, compiled for its arguments with little optimisation.

    For programs that run for less time than a CPU takes to compile them well.
    """
    level = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    return cast(Callable[..., Any], function.lower(*args).compile(compiler_options=level))
