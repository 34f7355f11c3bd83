"""KL Cosine, mean similarity and Vendi score: loops, known histograms, known numbers of texts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mop_jax.errors import DataError
from mop_jax.evaluation.metrics import Comparison
from mop_jax.evaluation.metrics.cosine import (
    _BLOCK,
    kl_cosine,
    mean_similarity,
    similarity_histogram,
    vendi_score,
)
from tests.evaluation.samples import comparison, gaussian, sample

X, Y = gaussian(15, 4, 0), gaussian(19, 4, 1, shift=1.0)


def similarities(vectors: np.ndarray, labels=None) -> list[float]:
    """Cosines of all pairs of different texts (of one label), by the definition."""
    return [
        u @ v / (np.linalg.norm(u) * np.linalg.norm(v))
        for i, u in enumerate(vectors)
        for j, v in enumerate(vectors[:i])
        if labels is None or labels[i] == labels[j]
    ]


def kl_by_loop(p: list[float], q: list[float], bins: int, smoothing: float) -> float:
    p_counts, q_counts = (np.histogram(s, bins=bins, range=(-1, 1))[0] + smoothing for s in (p, q))
    p_shares, q_shares = p_counts / p_counts.sum(), q_counts / q_counts.sum()
    return sum(a * np.log(a / b) for a, b in zip(p_shares, q_shares) if a > 0)


@pytest.mark.parametrize("direction", ["real||simulated", "simulated||real"])
@pytest.mark.parametrize(("bins", "smoothing"), [(50, 0.5), (7, 2.0)])
def test_kl_cosine_against_a_double_loop(direction, bins, smoothing):
    pair = [similarities(X), similarities(Y)]
    if direction == "simulated||real":
        pair.reverse()
    got = kl_cosine(comparison(X, Y), direction=direction, bins=bins, smoothing=smoothing)
    assert got == pytest.approx(kl_by_loop(*pair, bins, smoothing))


def test_pairs_within_labels_against_a_double_loop():
    labels, others = [*"abc" * 5], [*"ab" * 9, "c"]
    both = Comparison(sample(X, "real", labels=labels), sample(Y, "simulated", labels=others))
    expected = kl_by_loop(similarities(X, labels), similarities(Y, others), 50, 0.5)
    assert kl_cosine(both, within="label") == pytest.approx(expected)
    assert kl_cosine(both, within="label") != pytest.approx(kl_cosine(both))


def test_known_histograms():
    """Real pairs: 1 of 3 at similarity 1, 2 of 3 at 0; simulated: all 3 at 0. Two bins, 1 each."""
    real = np.array([[1.0, 0, 0], [2, 0, 0], [0, 1, 0]])
    both = comparison(real, np.eye(3))
    # Bins [−1, 1/3) and [1/3, 1]: real 2 and 1, simulated 3 and 0.
    got = kl_cosine(both, bins=3, smoothing=1.0)
    p, q = np.array([1, 3, 2]) / 6, np.array([1, 4, 1]) / 6
    assert got == pytest.approx(np.sum(p * np.log(p / q)))
    assert kl_cosine(both, bins=3, smoothing=0.0) == np.inf
    assert kl_cosine(both, bins=3, smoothing=0.0, direction="simulated||real") == pytest.approx(
        np.log(3 / 2)
    )


def test_blocks_hold_every_pair_once():
    vectors = gaussian(_BLOCK + 30, 3, 0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    upper = (vectors @ vectors.T)[np.triu_indices(len(vectors), 1)]
    counts = similarity_histogram(vectors, 20)
    assert counts.sum() == len(upper)
    assert np.abs(counts - np.histogram(upper, bins=20, range=(-1, 1))[0]).sum() <= 4  # at edges


def test_equal_samples_differ_by_nothing():
    assert kl_cosine(comparison(X, X)) == 0


def test_mean_similarity_against_a_double_loop():
    assert mean_similarity(comparison(X, Y)) == pytest.approx(np.mean(similarities(Y)))


def test_vendi_counts_the_texts_that_differ():
    assert vendi_score(comparison(X, np.ones((9, 4)))) == pytest.approx(1)
    assert vendi_score(comparison(gaussian(5, 6, 0), np.eye(6))) == pytest.approx(6)
    twice = np.concatenate([np.eye(4), 3 * np.eye(4)])
    assert vendi_score(comparison(X, twice)) == pytest.approx(4)


def test_vendi_is_the_same_from_either_matrix():
    """More texts than dimensions, against the n × n similarities of the definition."""
    unit = Y / np.linalg.norm(Y, axis=1, keepdims=True)
    values = np.clip(np.linalg.eigvalsh(unit @ unit.T / len(unit)), 1e-300, None)
    assert vendi_score(comparison(X, Y)) == pytest.approx(np.exp(-np.sum(values * np.log(values))))


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (kl_cosine, {"direction": "both"}, "accepted are 'real.*' and 'simulated.*'"),
        (kl_cosine, {"within": "group"}, "accepted are 'all' and 'label'"),
        (kl_cosine, {"bins": 0}, "There are 0 bins"),
        (kl_cosine, {"within": "label"}, "labels, which the real texts lack"),
    ],
)
def test_bad_arguments_are_refused(function, arguments, message):
    with pytest.raises(DataError, match=message):
        function(comparison(X, Y), **arguments)


def test_samples_without_pairs_are_refused():
    with pytest.raises(DataError, match="KL Cosine needs at least 2 simulated texts; there is 1"):
        kl_cosine(comparison(X, Y[:1]))
    with pytest.raises(DataError, match="Mean pairwise similarity needs at least 2"):
        mean_similarity(comparison(X, Y[:1]))
    alone = Comparison(
        sample(X, "real", labels=["a"] * 15), sample(Y[:2], "simulated", labels=["a", "b"])
    )
    with pytest.raises(DataError, match="No two simulated texts have the same label"):
        kl_cosine(alone, within="label")


@settings(max_examples=20)
@given(st.randoms(use_true_random=False))
def test_the_order_of_texts_does_not_count(random):
    order = random.sample(range(len(Y)), len(Y))
    for function in (kl_cosine, mean_similarity, vendi_score):
        assert function(comparison(X, Y[order])) == pytest.approx(function(comparison(X, Y)))
