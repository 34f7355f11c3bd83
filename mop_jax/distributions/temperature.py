"""Log-likelihoods between the temperatures at which they were scored.

The language model scores each response once at a few temperatures; the gate's posterior then asks
for ℓ(τ) at any τ. ℓ is smooth in log τ, so a cubic spline through the scored points is enough, and
a spline is *linear in the values it interpolates*: ℓ(τ) = Σ_g w_g(τ) ℓ_g with weights that depend
on τ and the grid only. One row of weights per persona therefore serves every record at once.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Float


@jax.jit
def spline_weights(
    temperature: Float[ArrayLike, "*shape"], grid: Float[ArrayLike, " G"]
) -> Float[jax.Array, "*shape G"]:
    """Weights w(τ) for which ℓ(τ) = Σ_g w_g(τ) ℓ(τ_g), a cubic spline in log τ.

    Between grid points: the not-a-knot cubic spline (a parabola through three points, a line
    through two). Outside the grid: the value at its end, since nothing was scored beyond and any
    line would leave the log-probabilities; the model confines τ to the grid accordingly. A grid of
    one point gives the constant ℓ(τ_1). The weights sum to one, and differentiate in
    `temperature`.

    Args:
        temperature: positive temperatures τ, any shape [...].
        grid: increasing positive temperatures [G].

    Returns:
        Weights [..., G].

    Example:
        >>> import jax.numpy as jnp
        >>> from mop_jax.distributions.temperature import spline_weights
        >>> grid = jnp.array([0.5, 1.0, 2.0])
        >>> spline_weights(1.0, grid).round(3).tolist()
        [0.0, 1.0, 0.0]
    """
    temperature = jnp.asarray(temperature)
    knots = jnp.log(jnp.asarray(grid))
    num_points = knots.shape[0]
    if num_points == 1:
        return jnp.ones((*temperature.shape, 1), knots.dtype)
    position = jnp.log(temperature)
    slopes = _knot_slopes(knots)

    inside = jnp.clip(position, knots[0], knots[-1])
    left = jnp.clip(jnp.searchsorted(knots, inside, side="right") - 1, 0, num_points - 2)
    width = knots[left + 1] - knots[left]
    u = ((inside - knots[left]) / width)[..., None]
    unit = jnp.eye(num_points, dtype=knots.dtype)
    hermite = (
        (1 + 2 * u) * (1 - u) ** 2 * unit[left]
        + u**2 * (3 - 2 * u) * unit[left + 1]
        + u * (1 - u) ** 2 * width[..., None] * slopes[left]
        + u**2 * (u - 1) * width[..., None] * slopes[left + 1]
    )
    return hermite


def interpolate(log_likelihood: ArrayLike, temperature: ArrayLike, grid: ArrayLike) -> jax.Array:
    """ℓ(τ) in nats at `temperature` [...], from `log_likelihood` [..., G] scored on `grid` [G]."""
    return (spline_weights(temperature, grid) * jnp.asarray(log_likelihood)).sum(-1)


def _knot_slopes(knots: Float[jax.Array, " G"]) -> Float[jax.Array, "G G"]:
    """The matrix [G, G] that maps values at the knots to the spline's slopes there."""
    num_points = knots.shape[0]
    gaps = jnp.diff(knots)
    unit = jnp.eye(num_points, dtype=knots.dtype)
    secants = (unit[1:] - unit[:-1]) / gaps[:, None]  # [G-1, G], applied to the values
    if num_points == 2:
        return jnp.concatenate([secants, secants])
    if num_points == 3:
        # A parabola: its slope is linear, and equals each secant at the middle of its interval.
        bend = (secants[1] - secants[0]) / (gaps[0] + gaps[1])
        return jnp.stack(
            [secants[0] - gaps[0] * bend, secants[0] + gaps[0] * bend, secants[1] + gaps[1] * bend]
        )
    # Continuity of the second derivative at each inner knot, in the unknown slopes; and of the
    # third derivative at the first and last inner knots (the not-a-knot condition).
    system = jnp.zeros((num_points, num_points), knots.dtype)
    inner = jnp.arange(1, num_points - 1)
    system = system.at[inner, inner - 1].set(gaps[1:])
    system = system.at[inner, inner].set(2 * (gaps[:-1] + gaps[1:]))
    system = system.at[inner, inner + 1].set(gaps[:-1])
    right = 3 * (gaps[1:, None] * secants[:-1] + gaps[:-1, None] * secants[1:])

    def end_row(h0: jax.Array, h1: jax.Array, s0: jax.Array, s1: jax.Array) -> jax.Array:
        return ((h0 + 2 * (h0 + h1)) * h1 * s0 + h0**2 * s1) / (h0 + h1)

    system = system.at[0, 0].set(gaps[1]).at[0, 1].set(gaps[0] + gaps[1])
    system = system.at[-1, -1].set(gaps[-2]).at[-1, -2].set(gaps[-1] + gaps[-2])
    first = end_row(gaps[0], gaps[1], secants[0], secants[1])
    last = end_row(gaps[-1], gaps[-2], secants[-1], secants[-2])
    return jnp.linalg.solve(system, jnp.concatenate([first[None], right, last[None]]))
