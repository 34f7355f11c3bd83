"""Small populations for the tests of inference."""

import jax
import numpy as np
import pytest

from mop_jax.inference import fit_svi, posterior_draws
from mop_jax.models import full_table_data


@pytest.fixture(scope="session")
def rt_data(rt_table):
    """The first 40 reviews of the real table, some exemplars left out, unequal weights."""
    some = 40
    leave_out = np.zeros((some, 12), bool)
    leave_out[np.arange(some), np.arange(some) % 12] = True
    return full_table_data(
        log_likelihood=rt_table["log_likelihood"][:some],
        context_embeddings=rt_table["context_embeddings"][:some],
        persona_embeddings=rt_table["persona_embeddings"],
        exemplar_embeddings=rt_table["exemplar_embeddings"],
        leave_out=leave_out,
        weights=1 + np.arange(some) % 2,
    )


@pytest.fixture(scope="session")
def rt_posterior(rt_data):
    """Eleven draws from a short fit: not converged, and not meant to be."""
    fit = fit_svi(jax.random.key(0), rt_data, num_steps=60, progress=False)
    return posterior_draws(fit, jax.random.key(1), 11)
