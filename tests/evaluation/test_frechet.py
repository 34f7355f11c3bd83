"""FID: known Gaussians, scipy's matrix root, singular covariances."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from mop_jax.errors import DataError
from mop_jax.evaluation.metrics import Comparison
from mop_jax.evaluation.metrics.frechet import fid, frechet_distance
from tests.evaluation.samples import comparison, gaussian, sample


def moments(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return vectors.mean(axis=0), np.cov(vectors, rowvar=False)


def by_scipy(p: np.ndarray, q: np.ndarray) -> float:
    """The definition, with the matrix root of a product that is not symmetric."""
    (mean_p, cov_p), (mean_q, cov_q) = moments(p), moments(q)
    root = scipy.linalg.sqrtm(cov_p @ cov_q)
    return float(((mean_p - mean_q) ** 2).sum() + np.trace(cov_p + cov_q - 2 * np.real(root)))


def test_gaussians_with_diagonal_covariances_are_at_the_known_distance():
    a, b = np.array([4.0, 1.0, 0.0]), np.array([1.0, 9.0, 0.25])
    got = frechet_distance(np.zeros(3), np.diag(a), np.array([1.0, 2.0, 0.0]), np.diag(b))
    assert got == pytest.approx(5 + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2))


def test_a_shift_is_its_squared_length_and_scales_with_the_square():
    real = gaussian(50, 5, 0)
    both = comparison(real, real + np.array([0, 3, 0, 4, 0]))
    assert fid(both, normalize=False) == pytest.approx(25)
    assert fid(both, normalize=False, scale=2.0) == pytest.approx(100)


def test_equal_embeddings_are_at_zero_though_the_covariance_is_singular():
    vectors = gaussian(7, 30, 0)
    with pytest.warns(UserWarning, match="FID of 7 texts with 30 dimensions"):
        assert fid(comparison(vectors, vectors)) == pytest.approx(0, abs=1e-6)


def test_it_is_the_distance_by_the_matrix_root():
    p, q = gaussian(60, 7, 1), gaussian(80, 7, 2) @ np.diag(np.linspace(0.5, 2, 7)) + 0.3
    assert fid(comparison(p, q), normalize=False) == pytest.approx(by_scipy(p, q))
    unit_p, unit_q = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (p, q))
    assert fid(comparison(p, q)) == pytest.approx(by_scipy(unit_p, unit_q))


def test_a_singular_pair_is_the_limit_of_regular_ones():
    """Rank 4 and rank 6 in 12 dimensions, against the root with a vanishing ridge."""
    p, q = gaussian(5, 12, 3), gaussian(7, 12, 4)
    (mean_p, cov_p), (mean_q, cov_q) = moments(p), moments(q)
    ridge = 1e-10 * np.eye(12)
    root = scipy.linalg.sqrtm((cov_p + ridge) @ (cov_q + ridge)).real
    limit = ((mean_p - mean_q) ** 2).sum() + np.trace(cov_p + cov_q - 2 * root)
    with pytest.warns(UserWarning, match="singular"):
        assert fid(comparison(p, q), normalize=False) == pytest.approx(limit, abs=1e-3)


def test_enough_texts_are_not_warned_of_and_one_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fid(comparison(gaussian(6, 5, 0), gaussian(6, 5, 1)))
    with pytest.raises(DataError, match="FID needs at least 2 simulated texts; there is 1"):
        fid(comparison(gaussian(6, 5, 0), gaussian(1, 5, 1)))


@settings(max_examples=20)
@given(st.randoms(use_true_random=False), st.integers(2, 12))
def test_the_order_of_texts_does_not_count_and_it_is_symmetric(random, n):
    p, q = gaussian(n, 3, n), gaussian(9, 3, n + 1)
    order = random.sample(range(n), n)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = fid(comparison(p, q))
        assert fid(comparison(p[order], q)) == pytest.approx(value, abs=1e-7)
        assert fid(Comparison(sample(q, "q"), sample(p, "p"))) == pytest.approx(value, abs=1e-7)


@pytest.mark.parametrize(("few", "many"), [(5, 9), (6, 80), (80, 6)])
def test_samples_smaller_than_their_width_have_the_same_distance(few, many):
    """The sum of singular values of A Bᵀ, against the covariances."""
    p, q = gaussian(few, 20, 5), gaussian(many, 20, 6) * 1.5 + 0.2
    (mean_p, cov_p), (mean_q, cov_q) = moments(p), moments(q)
    with pytest.warns(UserWarning, match="singular covariance"):
        got = fid(comparison(p, q), normalize=False)
    assert got == pytest.approx(frechet_distance(mean_p, cov_p, mean_q, cov_q), rel=1e-6)
