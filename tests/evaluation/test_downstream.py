"""The downstream classifier: separable labels, chance, labels that are missing."""

from __future__ import annotations

import numpy as np
import pytest

from mop_jax.errors import DataError
from mop_jax.evaluation.metrics import METRICS, Comparison, noise_floor
from mop_jax.evaluation.metrics.downstream import downstream_f1, f1_by_label
from tests.evaluation.samples import gaussian, sample


def labelled(n: int, seed: int, kinds: str, apart: float, prefix: str):
    """Texts of labels in turn, whose embeddings are `apart` in an axis of each label's own."""
    vectors = gaussian(n, 6, seed)
    labels = [kinds[i % len(kinds)] for i in range(n)]
    for i, label in enumerate(labels):
        vectors[i, "abcdef".index(label)] += apart
    return sample(vectors, prefix, labels=labels)


def test_separable_labels_are_all_right():
    both = Comparison(labelled(30, 0, "abc", 50, "real"), labelled(60, 1, "abc", 50, "simulated"))
    assert downstream_f1(both) == 1.0
    assert f1_by_label(both) == {"a": 1.0, "b": 1.0, "c": 1.0}


def test_labels_that_say_nothing_are_chance():
    """F1 of guessing two equal labels is about 1/2, ± 0.025 with 400 texts; five are allowed."""
    both = Comparison(labelled(400, 0, "ab", 0, "real"), labelled(400, 1, "ab", 0, "simulated"))
    assert downstream_f1(both) == pytest.approx(0.5, abs=0.125)


def test_a_swap_of_labels_is_all_wrong():
    simulated = labelled(60, 1, "ab", 50, "simulated")
    swapped = sample(simulated.embeddings, "s", labels=["ba"[i % 2] for i in range(60)])
    assert downstream_f1(Comparison(labelled(30, 0, "ab", 50, "real"), swapped)) == 0.0


def test_a_label_that_was_never_simulated_counts_as_zero():
    both = Comparison(labelled(30, 0, "abc", 50, "real"), labelled(60, 1, "ab", 50, "simulated"))
    with pytest.warns(UserWarning, match="No simulated text was asked for 'c'"):
        scores = f1_by_label(both)
    assert scores["c"] == 0
    with pytest.warns(UserWarning, match="'c'"):
        assert downstream_f1(both) == pytest.approx(np.mean(list(scores.values())))


def test_its_floor_is_the_classifier_of_as_many_training_records():
    real, train = labelled(30, 0, "ab", 1, "real"), labelled(40, 2, "ab", 1, "train")
    both = Comparison(real, labelled(40, 1, "ab", 0, "simulated"), train)
    floor = noise_floor(METRICS["downstream_f1"], both)
    assert floor.mean == pytest.approx(downstream_f1(Comparison(real, train)))


def test_what_cannot_be_trained_is_refused():
    real = labelled(30, 0, "ab", 1, "real")
    with pytest.raises(DataError, match="labels, which the simulated texts lack"):
        downstream_f1(Comparison(real, sample(gaussian(9, 6, 1), "s")))
    with pytest.raises(DataError, match="All simulated texts have the label 'a'"):
        downstream_f1(Comparison(real, labelled(9, 1, "a", 1, "s")))
