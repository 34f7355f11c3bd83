"""Two-sample tests: scipy, loops, enumerated permutations, and p-values where nothing differs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import energy_distance as scipy_energy

from mop_jax.errors import DataError
from mop_jax.evaluation.metrics import Comparison
from mop_jax.evaluation.metrics.two_sample import (
    _BLOCK,
    _labellings,
    classifier_accuracy,
    classifier_test,
    energy_distance,
    energy_test,
    median_distance,
    mmd,
    mmd_test,
)
from tests.evaluation.samples import comparison, gaussian, sample

X, Y = gaussian(13, 4, 0), gaussian(17, 4, 1, shift=0.7)


def energy_by_loop(x: np.ndarray, y: np.ndarray) -> float:
    def mean(a, b):
        return np.mean([[np.linalg.norm(u - v) for v in b] for u in a])

    return np.sqrt(2 * mean(x, y) - mean(x, x) - mean(y, y))


def mmd_by_loop(x: np.ndarray, y: np.ndarray, sigma: float) -> float:
    def kernel(u, v):
        return np.exp(-np.sum((u - v) ** 2) / (2 * sigma**2))

    def among(a):
        return np.mean([kernel(u, v) for i, u in enumerate(a) for j, v in enumerate(a) if i != j])

    return among(x) + among(y) - 2 * np.mean([kernel(u, v) for u in x for v in y])


def test_in_one_dimension_energy_distance_is_scipys():
    x, y = gaussian(40, 1, 0), gaussian(30, 1, 1, shift=0.5)
    assert energy_distance(comparison(x, y)) == pytest.approx(scipy_energy(x[:, 0], y[:, 0]))


def test_energy_distance_against_a_double_loop():
    assert energy_distance(comparison(X, Y)) == pytest.approx(energy_by_loop(X, Y))
    assert energy_distance(comparison(X, X)) == pytest.approx(0, abs=1e-6)


def test_mmd_against_a_double_loop():
    assert mmd(comparison(X, Y), bandwidth=0.8) == pytest.approx(mmd_by_loop(X, Y, 0.8))
    pool = np.concatenate([X, Y])
    distances = [np.linalg.norm(u - v) for i, u in enumerate(pool) for v in pool[:i]]
    assert median_distance(comparison(X, Y)) == pytest.approx(np.median(distances))
    assert mmd(comparison(X, Y)) == pytest.approx(mmd_by_loop(X, Y, np.median(distances)))


def test_more_texts_than_a_block_are_the_same_sum():
    x, y = gaussian(_BLOCK - 5, 2, 0), gaussian(37, 2, 1, shift=0.5)
    distances = np.linalg.norm(x[:, None] - y[None], axis=2).mean()
    within = [np.linalg.norm(v[:, None] - v[None], axis=2).mean() for v in (x, y)]
    expected = np.sqrt(2 * distances - sum(within))
    assert energy_distance(comparison(x, y)) == pytest.approx(expected)


@pytest.mark.parametrize("test", [energy_test, mmd_test])
def test_a_permutation_p_value_is_the_share_of_recomputed_statistics(test):
    both = comparison(X[:5], Y[:4])
    value = energy_distance if test is energy_test else mmd
    pool = np.concatenate([X[:5], Y[:4]])
    labels = _labellings(both, 50).astype(bool)
    assert labels[0].tolist() == [True] * 5 + [False] * 4
    assert (labels.sum(axis=1) == 5).all()
    assert len(np.unique(labels, axis=0)) > 30
    found = np.array([value(comparison(pool[row], pool[~row])) for row in labels])
    got = test(both, permutations=50)
    assert got.statistic == pytest.approx(found[0])
    assert got.p_value == pytest.approx(np.mean(found >= found[0] - 1e-9))


def test_labels_are_permuted_within_groups_where_all_groups_have_both():
    groups_real, groups_simulated = [*"aabbc"], list("abbbcc")
    both = Comparison(
        sample(X[:5], "real", groups=groups_real), sample(Y[:6], "sim", groups=groups_simulated)
    )
    labels = _labellings(both, 40)
    groups = np.array(groups_real + groups_simulated)
    for group, count in (("a", 2), ("b", 2), ("c", 1)):
        assert (labels[:, groups == group].sum(axis=1) == count).all()
    assert len(np.unique(labels, axis=0)) > 10
    apart = Comparison(
        sample(X[:5], "real", groups=list("aabbc")), sample(Y[:6], "sim", groups=list("xyzxyz"))
    )
    assert len(np.unique(_labellings(apart, 40), axis=0)) > 30


@pytest.mark.parametrize("test", [energy_test, mmd_test])
def test_permutation_p_values_are_uniform_where_nothing_differs(test):
    """120 pairs of equal distributions: P(p ≤ 0.1) is exactly 0.1.

    More than 29 or fewer than 2 of Binomial(120, 0.1): a false failure in 2,000 seeds, and ours
    are fixed.
    """
    p = [
        test(comparison(gaussian(12, 3, 2 * s), gaussian(15, 3, 2 * s + 1)), permutations=99)
        .p_value
        for s in range(120)
    ]  # fmt: skip
    assert 2 <= np.sum(np.array(p) <= 0.1) <= 29
    assert test(comparison(X, Y + 2), permutations=99).p_value == pytest.approx(0.01)


def test_classifier_p_values_are_about_uniform_where_nothing_differs():
    """100 pairs of equal distributions, at the 20 % level, of which about 16 % should be rejected.

    Fewer than 3 or more than 40 of Binomial(100, 0.2): a false failure in 10⁵ seeds, and ours are
    fixed. Without the factor for shared training texts about 25 % would be.
    """
    found = [
        classifier_test(comparison(gaussian(40, 4, 2 * s), gaussian(40, 4, 2 * s + 1)))
        for s in range(100)
    ]
    assert 3 <= sum(test.p_value <= 0.2 for test in found) <= 40
    accuracies = np.array([test.statistic for test in found])
    # Mean of 100 accuracies of 80 texts each: 0.1 / √320 ≈ 0.006; five of those.
    assert accuracies.mean() == pytest.approx(0.5, abs=0.03)


def test_a_classifier_tells_what_can_be_told():
    real, simulated = gaussian(60, 4, 0), gaussian(80, 4, 1, shift=30.0)
    got = classifier_test(comparison(real, simulated))
    assert got.statistic == 1.0
    assert got.p_value < 1e-6
    assert classifier_accuracy(comparison(real, simulated)) == 1.0


def test_groups_stay_in_one_fold():
    """Both texts of a group are equal, so a fold that splits one would give its origin away.

    Within each group the origins are at random: recognising one is recognising the group.
    """
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(60, 40)) * 10
    vectors = np.repeat(centres, 3, axis=0) + 0.01 * rng.normal(size=(180, 40))
    groups = [str(i // 3) for i in range(180)]
    real, simulated = slice(0, 90), slice(90, 180)
    grouped = Comparison(
        sample(vectors[real], "real", groups=groups[real]),
        sample(vectors[simulated], "sim", groups=groups[simulated]),
    )
    alone = comparison(vectors[real], vectors[simulated])
    assert classifier_accuracy(alone, inverse_penalty=1.0) > 0.85
    # 60 groups at chance: 0.5 ± 4 · 0.065.
    assert classifier_accuracy(grouped, inverse_penalty=1.0) < 0.76
    assert classifier_test(grouped).p_value > 1e-3


def test_what_cannot_be_tested_is_refused():
    with pytest.raises(DataError, match="5 folds needs at least 5 real texts; there are 3"):
        classifier_accuracy(comparison(X[:3], Y))
    few = Comparison(
        sample(X, "real", groups=["a"] * 13), sample(Y, "simulated", groups=["b"] * 17)
    )
    with pytest.raises(DataError, match="needs as many groups; there are 2"):
        classifier_accuracy(few)
    with pytest.raises(DataError, match="bandwidth is 0"):
        mmd(comparison(np.ones((4, 2)), np.ones((5, 2))))
    with pytest.raises(DataError, match="needs at least 2 real texts"):
        mmd(comparison(X[:1], Y))


@settings(max_examples=20)
@given(st.randoms(use_true_random=False))
def test_the_order_of_texts_does_not_count(random):
    order = random.sample(range(len(X)), len(X))
    for function in (energy_distance, mmd):
        assert function(comparison(X[order], Y)) == pytest.approx(
            function(comparison(X, Y)), abs=1e-9
        )


@pytest.mark.parametrize("test", [energy_test, mmd_test])
def test_groups_on_one_side_only_have_no_p_value(test):
    def grouped(seed, name):
        return sample(gaussian(20, 3, seed), name, groups=[f"{name}{i // 4}" for i in range(20)])

    with pytest.warns(UserWarning, match="no permutation p-value"):
        assert np.isnan(test(Comparison(grouped(0, "a"), grouped(1, "b"))).p_value)
