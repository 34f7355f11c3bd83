"""Scales of priors that are learnt, and standardised effects that they are the scale of."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

LEARNT_SCALE = "learnt_scale"
"""In a site's `infer`, with its prior median: the scale of other sites' prior.

A point estimate of it is of no use; `fit_svi` refuses one.
"""

SCALE_SPREAD = 1.0
"""Standard deviation of a scale's logarithm: data may move it by a factor of seven either way."""


def learnt_scale(name: str, median: float, spread: float = SCALE_SPREAD) -> jax.Array:
    """A site of a positive scale: log s ~ Normal(log median, spread²).

    A half-normal would let it come nearer to zero; but its logarithm, in which guides and samplers
    move, then has a long tail that no Gaussian follows.
    """
    prior = dist.LogNormal(jnp.log(median), spread)
    return numpyro.sample(name, prior, infer={LEARNT_SCALE: median})


def standard_normals(name: str, dims: tuple[str, ...], shape: tuple[int, ...]) -> jax.Array:
    """A site of independent standard normals with named dimensions.

    Times their scale they are effects: the non-centred form, which a sampler and a Gaussian guide
    can follow where the scale is small.
    """
    return numpyro.sample(
        name,
        dist.Normal(0.0, 1.0).expand(shape).to_event(len(shape)),
        infer={"event_dims": list(dims)},
    )
