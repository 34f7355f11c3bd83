"""Effective human sample size: crossings by hand, known sizes, ends."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mop_jax.errors import DataError
from mop_jax.evaluation.metrics import Comparison, effective_sample_size
from mop_jax.evaluation.metrics.effective_size import _crossing
from tests.evaluation.samples import comparison, gaussian, sample


def test_crossings_by_hand():
    sizes, errors = np.array([1.0, 4.0, 16.0]), np.array([3.0, 2.0, 1.0])
    assert _crossing(sizes, errors, 2.0) == pytest.approx(4)
    assert _crossing(sizes, errors, 2.5) == pytest.approx(2)  # half way in log n
    assert _crossing(sizes, errors, 1.0) == pytest.approx(16)
    assert _crossing(sizes, errors, 3.0) == pytest.approx(1)
    assert _crossing(sizes, errors, 0.9) == math.inf
    assert _crossing(sizes, errors, 3.1) == 0
    # A bump is levelled: 2 and 2.4 become 2.2.
    assert _crossing(np.array([1.0, 4.0, 16.0, 64.0]), np.array([3.0, 2.0, 2.4, 1.0]), 2.2) == 4


def test_a_simulation_off_by_a_known_shift_is_worth_a_known_number():
    """Many simulated texts, off by δ in one of three axes of unit variance each.

    n responses have E|μ̂ − μ| ≈ δ at n = (E χ₃ / δ)² = (1.596 / 0.4)² ≈ 15.9; within a third, for
    60 repeats of each size.
    """
    rng = np.random.default_rng(0)
    simulated = rng.normal(size=(20_000, 3))
    simulated[:, 0] += 0.4
    both = comparison(rng.normal(size=(20_000, 3)), simulated, rng.normal(size=(400, 3)))
    found = effective_sample_size(both, repeats=60)
    assert found.size == pytest.approx(15.9, rel=0.33)
    assert found.simulated_error == pytest.approx(0.4, abs=0.05)
    assert found.sizes[0] == 1
    assert found.sizes[-1] == 400
    assert found.errors.shape == found.spread.shape == found.sizes.shape
    # The error falls with the root of n.
    middle = np.searchsorted(found.sizes, 50)
    expected = np.sqrt(found.sizes[middle])
    assert found.errors[0] / found.errors[middle] == pytest.approx(expected, rel=0.3)


def with_labels(n: int, seed: int, share: float, prefix: str):
    labels = ["a"] * round(share * n) + ["b"] * (n - round(share * n))
    return sample(gaussian(n, 3, seed), prefix, labels=labels)


def test_label_shares_that_are_off_by_a_tenth():
    """With two equal labels n responses miss by E|p̂ − ½| ≈ 0.4 / √n, which is 0.1 at n = 16."""
    both = Comparison(
        with_labels(1000, 0, 0.5, "real"),
        with_labels(1000, 1, 0.6, "simulated"),
        with_labels(1000, 2, 0.5, "train"),
    )
    found = effective_sample_size(both, "label_shares", repeats=200)
    assert found.simulated_error == pytest.approx(0.1)
    assert found.size == pytest.approx(16, rel=0.33)


def test_a_perfect_simulation_is_better_than_all_and_a_bad_one_than_none():
    real, train = gaussian(100, 3, 0), gaussian(60, 3, 1)
    assert effective_sample_size(comparison(real, real, train)).size == math.inf
    assert effective_sample_size(comparison(real, real + 100, train)).size == 0


def test_fid_starts_at_two_responses():
    both = comparison(gaussian(100, 3, 0), gaussian(50, 3, 2, shift=0.5), gaussian(60, 3, 1))
    found = effective_sample_size(both, "fid")
    assert found.sizes[0] == 2
    assert 2 < found.size < 60
    assert (np.diff(found.errors)[:3] < 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"criterion": "kurtosis"}, "accepted are 'label_shares', 'embedding_mean' and 'fid'"),
        ({"criterion": "label_shares"}, "Label shares need labels, which the real texts lack"),
        ({"sizes": [5, 61]}, "accepted are 1 to 60"),
        ({"sizes": [1, 5], "criterion": "fid"}, "accepted are 2 to 60"),
        ({"sizes": []}, "accepted are 1 to 60"),
    ],
)
def test_what_cannot_be_tried_is_refused(arguments, message):
    both = comparison(gaussian(9, 3, 0), gaussian(9, 3, 2), gaussian(60, 3, 1))
    with pytest.raises(DataError, match=message):
        effective_sample_size(both, **arguments)


def test_without_training_records_there_is_nothing_to_count():
    with pytest.raises(DataError, match="give training records"):
        effective_sample_size(comparison(gaussian(9, 3, 0), gaussian(9, 3, 2)))
