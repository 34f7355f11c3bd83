"""Memorisation: n-grams and runs by hand and by a loop; nearest records by a loop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mop_jax.errors import DataError
from mop_jax.evaluation.metrics import Comparison, Sample
from mop_jax.evaluation.metrics.memorisation import (
    _longest_run,
    copied_ngrams,
    longest_copied_run,
    longest_copied_share,
    nearest_train_similarity,
)
from tests.evaluation.samples import comparison, gaussian, of_texts, sample


def longest_by_loop(a: list[str], b: list[str]) -> int:
    """Longest common substring by all pairs of starts."""
    best = 0
    for i in range(len(a)):
        for j in range(len(b)):
            k = 0
            while i + k < len(a) and j + k < len(b) and a[i + k] == b[j + k]:
                k += 1
            best = max(best, k)
    return best


def test_copied_ngrams_by_hand():
    """Five 4-grams of the first text, three of which lie in `the film was a mess and`.

    The second has too few words; the third was shown nothing, and has one 4-gram.
    """
    texts = ["i think The film was a mess and", "a mess", "the film was a"]
    shown = [["no more", "the film was a mess and"], ["a mess"], []]
    both = of_texts(texts, shown=shown)
    assert copied_ngrams(both) == pytest.approx((3 / 5 + 0) / 2)
    # Pairs: 5 of 7, 1 of 1, 0 of 3.
    assert copied_ngrams(both, n=2) == pytest.approx((5 / 7 + 1 + 0) / 3)


def test_longest_runs_by_hand():
    texts = ["i think The film was a mess and", "a mess", "the film was a"]
    both = of_texts(texts, shown=[["no more", "film was a mess , and"], ["it is a mess"], []])
    assert longest_copied_run(both) == pytest.approx((4 + 2 + 0) / 3)
    assert longest_copied_share(both) == pytest.approx((4 / 8 + 1 + 0) / 3)


WORDS = st.lists(st.sampled_from("ab"), max_size=9)


@given(WORDS, st.lists(WORDS, max_size=3))
def test_the_longest_run_against_a_loop(tokens, shown):
    expected = max((longest_by_loop(tokens, s) for s in shown), default=0)
    assert _longest_run(" ".join(tokens), tuple(map(" ".join, shown))) == expected


def test_nearest_training_record_against_a_loop():
    real, simulated, train = gaussian(7, 4, 0), gaussian(9, 4, 1, shift=1.0), gaussian(11, 4, 2)

    def nearest(vectors):
        def cosine(u, v):
            return u @ v / np.linalg.norm(u) / np.linalg.norm(v)

        return np.mean([max(cosine(u, v) for v in train) for u in vectors])

    got = nearest_train_similarity(comparison(real, simulated, train))
    assert got == pytest.approx(nearest(simulated) - nearest(real), abs=1e-6)


def test_copies_are_nearest():
    train = gaussian(20, 8, 0)
    copied = nearest_train_similarity(comparison(gaussian(20, 8, 1), train[:15], train))
    assert copied > 0.1
    real = gaussian(20, 8, 1)
    again = nearest_train_similarity(comparison(real, real * 2, train))
    assert again == pytest.approx(0, abs=1e-6)


def test_what_is_not_known_is_refused():
    both = of_texts(["a b c d", "e f g h"])
    for function in (copied_ngrams, longest_copied_run, longest_copied_share):
        with pytest.raises(DataError, match="which exemplars the simulated texts were shown"):
            function(both)
    with pytest.raises(DataError, match="give `train`"):
        nearest_train_similarity(both)
    with pytest.raises(DataError, match="No simulated text has 4 words"):
        copied_ngrams(of_texts(["a b"], shown=[["a"]]))
    with pytest.raises(DataError, match="accepted are 1 or more"):
        copied_ngrams(of_texts(["a b"], shown=[["a"]]), n=0)


@given(st.permutations(range(4)))
def test_the_order_of_texts_does_not_count(order):
    texts = ["a b c d e", "b c d e", "a b d d c", "e d c b a"]
    shown = [["b c d e"], ["a b c d"], ["c"], []]
    simulated = Sample(texts, gaussian(4, 2, 1), shown=shown).take(order)
    both = Comparison(sample(gaussian(3, 2, 0)), simulated)
    assert copied_ngrams(both) == pytest.approx(1 / 2 / 4)
    assert longest_copied_run(both) == pytest.approx((4 + 3 + 1 + 0) / 4)
