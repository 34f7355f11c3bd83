"""MixtureData: what it refuses, and what its feature maps keep of the embeddings."""

import numpy as np
import pytest

from mop_jax.errors import DataError
from mop_jax.models import fit_feature_maps, full_table_data, mixture_data


def arrays(**changes):
    rng = np.random.default_rng(0)
    made = {
        "context_embeddings": rng.normal(size=(4, 6)),
        "persona_embeddings": rng.normal(size=(2, 6)),
        "exemplar_embeddings": rng.normal(size=(3, 6)),
        "persona_index": np.array([[0, 1, 1]] * 4),
        "exemplar_index": np.array([[0, 1, 2]] * 4),
        "log_weight": np.zeros((4, 3)),
        "log_likelihood": rng.normal(-9, 1, (4, 3, 2)),
        "temperature_grid": np.array([0.8, 1.2]),
    }
    return {**made, **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"log_likelihood": np.full((4, 3, 2), np.nan)}, "log_likelihood is nan at index"),
        ({"log_likelihood": np.zeros((4, 3))}, r"log_likelihood has shape \(4, 3, 1\)"),
        ({"context_embeddings": np.zeros((4, 5))}, "persona_embeddings has width 6"),
        ({"persona_embeddings": np.zeros((0, 6))}, "persona_embeddings must have 2 non-empty"),
        ({"persona_index": np.full((4, 3), 2)}, "persona_index must hold integers from 0 to 1"),
        ({"exemplar_index": np.zeros((4, 3))}, "exemplar_index must hold integers"),
        ({"log_weight": np.full((4, 3), np.inf)}, "log_weight must be below"),
        ({"log_weight": np.full((4, 3), -np.inf)}, "Record 0 .*no candidate component left"),
        ({"leave_out": np.ones((4, 2), bool)}, r"leave_out has shape \(4, 2\)"),
        ({"weights": np.array([1, 0, 1, 1])}, r"weights\[1\] must be positive"),
        ({"temperature_grid": np.array([1.2, 0.8])}, "strictly increasing"),
    ],
)
def test_refusals_name_the_array(changes, message):
    with pytest.raises(DataError, match=message):
        mixture_data(**arrays(**changes))


def test_survey_weights_are_relative():
    """Each record may stand for thousands of people; the records are no more for that."""
    data = mixture_data(**arrays(weights=np.array([1e4, 2e4, 2e4, 3e4])))
    np.testing.assert_allclose(data.weights, [0.5, 1, 1, 1.5], rtol=1e-6)


def test_left_out_candidates_lose_their_weight():
    leave_out = np.zeros((4, 3), bool)
    leave_out[1, 2] = True
    data = mixture_data(**arrays(leave_out=leave_out))
    assert data.log_weight[1].tolist() == [0, 0, -np.inf]
    assert np.isfinite(data.log_weight[[0, 2, 3]]).all()


def test_take_and_new_contexts_keep_personas_exemplars_and_maps():
    data = mixture_data(**arrays())
    some = data.take(np.array([2, 0]))
    assert some.num_records == 2
    assert (some.log_likelihood == data.log_likelihood[[2, 0]]).all()
    assert some.feature_maps is data.feature_maps
    new = data.at_contexts(np.zeros((9, 6), np.float32))
    assert (new.num_records, new.num_personas, new.num_exemplars) == (9, 2, 3)


def test_full_table_lists_components_persona_by_persona():
    table = np.arange(2 * 2 * 3, dtype=float).reshape(2, 2, 3)
    some = {k: v for k, v in arrays().items() if k.endswith("embeddings")}
    some["context_embeddings"] = some["context_embeddings"][:2]
    data = full_table_data(log_likelihood=table, **some)
    for c in range(6):
        k, j = data.persona_index[1, c], data.exemplar_index[1, c]
        assert data.log_likelihood[1, c, 0] == table[1, k, j]


def test_feature_maps_keep_all_inner_products_of_centred_embeddings():
    rng = np.random.default_rng(1)
    contexts, personas, exemplars = (rng.normal(3, 1, (n, 20)) for n in (30, 4, 9))
    maps = fit_feature_maps(contexts, personas, exemplars, max_features=32)
    assert [m.basis.shape[1] for m in maps] == [20, 3, 8]  # what each spans, and no more
    for feature_map, h in zip(maps, (contexts, personas, exemplars), strict=True):
        features, centred = feature_map(h), h - h.mean(0)
        total = (centred**2).sum() / len(h)
        np.testing.assert_allclose(features @ features.T, centred @ centred.T / total, atol=1e-5)
        np.testing.assert_allclose((features**2).sum() / len(h), 1.0, rtol=1e-5)
    assert fit_feature_maps(contexts, personas, exemplars, max_features=5)[0].basis.shape == (20, 5)


def test_embeddings_all_alike_make_one_silent_feature():
    maps = fit_feature_maps(np.ones((5, 4)), np.ones((1, 4)), np.ones((2, 4)))
    assert [m.basis.shape for m in maps] == [(4, 1)] * 3
    assert (maps.context(np.random.default_rng(0).normal(size=(3, 4))) == 0).all()


@pytest.mark.parametrize("noise", [3e-9, 1e-6])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
def test_rounding_makes_no_features(noise, scale):
    """Two contexts that differ, each encoded 50 times with rounding errors: one feature."""
    rng = np.random.default_rng(0)
    two = rng.normal(size=(2, 40)) / np.sqrt(40)
    noisy = scale * (np.repeat(two, 50, axis=0) + noise * rng.normal(size=(100, 40)))
    alike = scale * (two[:1] + noise * rng.normal(size=(100, 40)))
    maps = fit_feature_maps(noisy, alike, alike)
    assert [m.basis.shape[1] for m in maps] == [1, 1, 1]
    assert np.abs(maps.context.basis).max() > 0
    assert not maps.persona.basis.any()
