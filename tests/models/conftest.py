"""Small populations for the models' tests."""

from pathlib import Path

import numpy as np
import pytest

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
