"""The influence function against what it stands for: the classifier fitted again without one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mop_jax.errors import DataError
from mop_jax.evaluation.baselines import influence as module
from mop_jax.evaluation.baselines.influence import (
    SoftmaxRegression,
    fit_softmax,
    hessian,
    influence,
    with_intercept,
)


def problem(num=60, num_classes=3, width=4, seed=0):
    """Overlapping classes, and some labels that are wrong."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(num_classes, size=2 * num)
    centres = rng.normal(size=(num_classes, width))
    x = centres[codes] + 0.7 * rng.normal(size=(2 * num, width))
    wrong = rng.random(2 * num) < 0.15
    wrong[num:] = False
    given = np.where(wrong, (codes + 1) % num_classes, codes)
    labels = [f"c{c}" for c in given]
    return x[:num], labels[:num], x[num:], labels[num:], wrong[:num]


def validation_loss(classifier, x, labels) -> float:
    return -classifier.log_prob(x)[np.arange(len(x)), classifier.codes(labels)].mean()


@pytest.mark.parametrize("num_classes", [2, 3])
def test_influence_is_that_of_leaving_one_out(num_classes) -> None:
    x, labels, v, v_labels, wrong = problem(num=200, num_classes=num_classes)
    penalty, n = 1e-2, len(x)
    whole = fit_softmax(x, labels, penalty=penalty)
    found = influence(whole, x, labels, v, v_labels)
    left_out = []
    for i in range(n):
        kept = [j for j in range(n) if j != i]
        # The others' terms keep their weight 1/n, so the penalty of a mean over n − 1 grows.
        again = fit_softmax(x[kept], [labels[j] for j in kept], penalty=penalty * n / (n - 1))
        left_out.append(validation_loss(again, v, v_labels) - validation_loss(whole, v, v_labels))
    left_out = np.asarray(left_out)
    assert np.corrcoef(found, left_out)[0, 1] > 0.995
    np.testing.assert_allclose(found, left_out, atol=0.15 * abs(left_out).max())
    # First order: what is left is of the order of 1/n. Mislabelled examples hurt.
    assert found[wrong].mean() < 0 < found[~wrong].mean()


def test_conjugate_gradients_give_the_same(monkeypatch) -> None:
    x, labels, v, v_labels, _ = problem()
    classifier = fit_softmax(x, labels)
    dense = influence(classifier, x, labels, v, v_labels)
    monkeypatch.setattr(module, "_DENSE", 1)
    np.testing.assert_allclose(influence(classifier, x, labels, v, v_labels), dense, rtol=1e-5)


def test_the_hessian_is_that_of_automatic_differentiation() -> None:
    x, labels, _, _, _ = problem(num=12)
    classifier = fit_softmax(x, labels, penalty=0.1)
    features, codes = jnp.asarray(with_intercept(x)), jnp.asarray(classifier.codes(labels))

    def objective(flat):
        scores = jax.nn.log_softmax(features @ flat.reshape(3, -1).T, axis=1)
        return -scores[jnp.arange(12), codes].mean() + 0.05 * (flat**2).sum()

    flat = jnp.asarray(classifier.weights.ravel())
    np.testing.assert_allclose(jax.grad(objective)(flat), 0.0, atol=1e-5)
    expected = jax.hessian(objective)(flat)
    found = hessian(np.exp(classifier.log_prob(x)), with_intercept(x), 0.1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_refusals() -> None:
    with pytest.raises(DataError, match="at least two labels; there is 1"):
        fit_softmax(np.zeros((3, 2)), ["a"] * 3)
    with pytest.raises(DataError, match="not finite"):
        fit_softmax(np.full((2, 2), np.nan), ["a", "b"])
    classifier = SoftmaxRegression(np.zeros((2, 3)), ["a", "b"], 0.1)
    with pytest.raises(DataError, match="'z' is none of the classifier's: a, b"):
        classifier.codes(["a", "z"])
