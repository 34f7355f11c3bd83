"""Self-BLEU, distinct-n and lengths: by hand, by loops, and nltk's BLEU (golden/metrics.json)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance

from mop_jax.errors import DataError
from mop_jax.evaluation.metrics.diversity import (
    distinct_ngrams,
    length_distance,
    mean_words,
    self_bleu,
)
from tests.evaluation.samples import of_texts
from tests.golden.make_metrics_golden import bleu_texts

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "golden" / "metrics.json").read_text(encoding="utf-8")
)["self_bleu"]


@pytest.mark.parametrize("n", GOLDEN)
def test_self_bleu_is_nltks(n):
    assert self_bleu(of_texts(bleu_texts()), n=int(n)) == pytest.approx(GOLDEN[n])


def test_self_bleu_by_hand():
    """`a b c` has 2 of 3 words and 1 of 2 pairs in `a b d d`, and e^(1 − 4/3) for its length.

    `a b d d` has 2 of 4 and 1 of 3 in `a b c`, and is no shorter.
    """
    first = np.exp(-1 / 3) * np.sqrt(2 / 3 * 1 / 2)
    second = np.sqrt(2 / 4 * 1 / 3)
    got = self_bleu(of_texts(["a b c", "a b d d"]), n=2)
    assert got == pytest.approx((first + second) / 2)


@pytest.mark.filterwarnings("ignore:All 3 simulated:UserWarning")
def test_the_ends_of_self_bleu():
    assert self_bleu(of_texts(["one two three four five"] * 3)) == pytest.approx(1)
    assert self_bleu(of_texts(["a b c d", "e f g h", "i j k l"])) == 0
    assert self_bleu(of_texts(["", "a b c d", ""])) == 0


def test_distinct_n_by_hand():
    texts = of_texts(["the cat the cat", "The dog"])
    assert distinct_ngrams(texts, n=1) == pytest.approx(3 / 6)
    assert distinct_ngrams(texts, n=2) == pytest.approx(3 / 4)
    assert distinct_ngrams(texts, n=4) == 1


def test_lengths_by_hand():
    both = of_texts(["a b", "a b c d"], real=["a", "a b c", "a b c d e"])
    assert mean_words(both) == 3
    assert length_distance(both) == pytest.approx(wasserstein_distance([1, 3, 5], [2, 4]))
    # A constant shift of all lengths is the shift.
    assert length_distance(of_texts(["a b c", "b c d e"], real=["a", "a b"])) == pytest.approx(2)


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(DataError, match="No simulated text has 3 words"):
        distinct_ngrams(of_texts(["a b", "c"]), n=3)
    with pytest.raises(DataError, match="accepted are 1 or more"):
        distinct_ngrams(of_texts(["a b", "c"]), n=0)
    with pytest.raises(DataError, match="accepted are 1 or more"):
        self_bleu(of_texts(["a b", "c"]), n=0)
    with pytest.raises(DataError, match="Self-BLEU needs at least 2 simulated texts"):
        self_bleu(of_texts(["a b"]))


@settings(max_examples=20)
@given(st.randoms(use_true_random=False))
def test_the_order_of_texts_does_not_count(random):
    texts = bleu_texts()
    order = random.sample(texts, len(texts))
    for function in (self_bleu, mean_words, length_distance):
        assert function(of_texts(order)) == pytest.approx(function(of_texts(texts)))
    assert distinct_ngrams(of_texts(order), n=2) == distinct_ngrams(of_texts(texts), n=2)
