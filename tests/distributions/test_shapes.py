"""Shapes written in annotations are enforced while tests run."""

from __future__ import annotations

import jax.numpy as jnp
import jaxtyping
import pytest

from mop_jax.distributions import log_matmul_exp, spline_weights


def test_a_wrong_shape_is_refused_by_its_annotation():
    """Guards the hook of conftest.py: without it, broadcasting would let this pass."""
    assert log_matmul_exp(jnp.zeros((5, 3)), jnp.zeros((2, 3))).shape == (5, 2)
    with pytest.raises(jaxtyping.TypeCheckError):
        log_matmul_exp(jnp.zeros((5, 3)), jnp.zeros((2, 1)))


def test_a_grid_has_one_dimension():
    with pytest.raises(jaxtyping.TypeCheckError):
        spline_weights(jnp.ones(2), jnp.ones((3, 1)))
