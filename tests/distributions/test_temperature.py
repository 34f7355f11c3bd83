"""Interpolated log-likelihoods against SciPy's spline and against exact tempering."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.interpolate import CubicSpline

from mop_jax.distributions.temperature import interpolate, spline_weights

SCORER_GRID = 1 / (np.arange(13, 4, -1) / 8)  # uniform in 1/τ, from 0.615 to 1.6


@pytest.mark.parametrize("num_points", [2, 3, 4, 5, 9])
def test_weights_are_scipys_not_a_knot_spline(num_points):
    rng = np.random.default_rng(num_points)
    grid = np.sort(rng.uniform(0.4, 2.0, num_points))
    values = rng.normal(size=num_points)
    oracle = CubicSpline(np.log(grid), values, bc_type="not-a-knot")
    temperature = np.exp(np.linspace(np.log(grid[0]), np.log(grid[-1]), 101))
    with jax.enable_x64(True):
        weights = np.asarray(spline_weights(temperature, grid))
        slope = jax.jit(jax.vmap(jax.grad(lambda t: interpolate(values, jnp.exp(t), grid))))
        slopes = np.asarray(slope(np.log(temperature[1:-1])))
    np.testing.assert_allclose(weights @ values, oracle(np.log(temperature)), atol=1e-12)
    np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-12)
    np.testing.assert_allclose(slopes, oracle(np.log(temperature[1:-1]), 1), atol=1e-10)


def test_outside_the_grid_the_end_holds():
    """A line would go on to values that are no log-probabilities: above zero, for one."""
    values = np.random.default_rng(0).normal(size=len(SCORER_GRID))
    with jax.enable_x64(True):
        for end, factor in ((0, 0.5), (-1, 2.5)):
            off = SCORER_GRID[end] * factor
            np.testing.assert_allclose(interpolate(values, off, SCORER_GRID), values[end])
            assert jax.grad(lambda t: interpolate(values, t, SCORER_GRID))(off) == 0


def test_a_grid_of_one_point_is_constant():
    assert spline_weights(jnp.array([[0.2, 1.0, 7.0]]), jnp.ones(1)).tolist() == [[[1], [1], [1]]]
    assert jax.grad(lambda t: interpolate(jnp.array([-3.0]), t, jnp.ones(1)))(1.3) == 0


def test_grid_points_are_hit_in_float32():
    values = np.linspace(-140.0, -120.0, len(SCORER_GRID)).astype(np.float32)
    found = jax.jit(jax.vmap(interpolate, (None, 0, None)))(
        values, SCORER_GRID.astype(np.float32), SCORER_GRID.astype(np.float32)
    )
    np.testing.assert_allclose(found, values, atol=1e-4)


def test_exact_tempering_of_a_softmax_between_grid_points():
    # A response of 30 tokens from sharp next-token distributions, scored exactly at any τ.
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 4, (30, 500))
    tokens = np.array([rng.choice(500, p=np.exp(row) / np.exp(row).sum()) for row in logits])

    def exact(temperature):
        tempered = logits / temperature
        log_probs = tempered - np.log(np.exp(tempered).sum(-1, keepdims=True))
        return log_probs[np.arange(30), tokens].sum()

    table = np.array([exact(t) for t in SCORER_GRID])
    assert np.ptp(table) > 2.0  # temperature matters here, so the test can fail
    between = np.sqrt(SCORER_GRID[1:] * SCORER_GRID[:-1])
    with jax.enable_x64(True):
        found = np.asarray(interpolate(table, between, SCORER_GRID))
    error = np.abs(found - np.array([exact(t) for t in between]))
    assert error.max() < 0.01
    assert error[:-1].max() < 0.003
