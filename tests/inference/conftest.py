"""Small populations for the tests of inference."""

from pathlib import Path

import jax
import numpy as np
import pytest

from mop_jax.inference import fit_svi, posterior_draws
from mop_jax.models import full_table_data


@pytest.fixture(scope="session")
def rt_table():
    """The real table of 160 reviews × 4 personas × 12 exemplars (see tests/data/README.md)."""
    with np.load(Path(__file__).parents[1] / "data" / "rt_table.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="session")
def make_data():
    """Makes full-table data of chosen size from a seed; arrays can be given instead."""

    def make(seed=0, num_records=6, num_personas=3, num_exemplars=5, dtype=np.float32, **arrays):
        rng = np.random.default_rng(seed)
        width = 8
        made = {
            "log_likelihood": rng.normal(-20, 2, (num_records, num_personas, num_exemplars, 4)),
            "temperature_grid": np.array([0.7, 0.9, 1.2, 1.6]),
            "context_embeddings": rng.normal(size=(num_records, width)),
            "persona_embeddings": rng.normal(size=(num_personas, width)),
            "exemplar_embeddings": rng.normal(size=(num_exemplars, width)),
            "leave_out": np.arange(num_exemplars) == np.arange(num_records)[:, None],
        }
        return full_table_data(**{**made, **arrays}, dtype=dtype)

    return make


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
