"""Diversity by words: self-BLEU, distinct-n, lengths.

A word is what stands between blanks, in lower case. All but the distance of lengths describe the
simulated texts alone and are good where they are what they are for real texts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from mop_jax.errors import DataError
from mop_jax.evaluation.metrics.comparison import Comparison, at_least, ngrams, words
from mop_jax.evaluation.metrics.registry import Metric, register


def self_bleu(comparison: Comparison, *, n: int = 4) -> float:
    """Mean BLEU of every simulated text with all others as its references (Zhu et al., 2018).

    exp(min(0, 1 − r/h) + 1/n Σ_{o ≤ n} log p_o), h the text's words, r those of the reference whose
    length is nearest (the shorter of two), p_o the share of its o-grams, clipped, that a reference
    has; where none is, 0.1 o-grams count (method 1 of Chen and Cherry, 2014). It grows with the
    number of texts; compare equal numbers. All texts are used: the greatest count of an o-gram in
    any *other* text follows from the two greatest in all, so that time is linear in the texts.

    Args:
        comparison: texts to compare.
        n: longest n-grams.

    Returns:
        Between 0 (no word in common) and 1 (all texts equal).

    Raises:
        DataError: if there are fewer than two simulated texts, or n is not positive.
    """
    at_least(comparison, 2, "Self-BLEU")
    if n < 1:
        raise DataError(f"Self-BLEU counts n-grams of {n} words; accepted are 1 or more.")
    texts = comparison.simulated.texts
    counted = [_counted(text, n) for text in texts]
    grams, orders, counts = (np.concatenate(column) for column in zip(*counted))
    owners = np.repeat(np.arange(len(texts)), [len(one.ids) for one in counted])
    matches = np.zeros((len(texts), n))
    np.add.at(matches, (owners, orders - 1), np.minimum(counts, _in_others(grams, counts)))
    lengths = np.array([len(words(text)) for text in texts])
    # A text shorter than o words has no o-gram; as one unmatched, so that it is not rewarded.
    possible = np.maximum(1, lengths[:, None] - np.arange(n))
    precisions = np.where(matches > 0, matches, 0.1) / possible
    penalty = np.minimum(0, 1 - _nearest_other(lengths) / np.maximum(1, lengths))
    scores = np.exp(penalty + np.log(precisions).mean(axis=1))
    return float(np.mean(np.where(matches[:, 0] > 0, scores, 0.0)))


class _Counted(NamedTuple):
    """The different n-grams of a text: their hashes, their words, how often each occurs."""

    ids: np.ndarray
    orders: np.ndarray
    counts: np.ndarray


@lru_cache(maxsize=2**15)
def _counted(text: str, n: int) -> _Counted:
    """N-grams of up to n words, by 64-bit hash: no two of a million share one by chance."""
    tokens = words(text)
    counter = Counter(gram for order in range(1, n + 1) for gram in ngrams(tokens, order))
    return _Counted(
        np.array([hash(gram) for gram in counter], np.int64),
        np.array([len(gram) for gram in counter], np.int64),
        np.array(list(counter.values()), np.int64),
    )


def _in_others(grams: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """For each entry, the greatest count of its n-gram in any other entry; zero without one."""
    if not len(grams):
        return counts
    order = np.lexsort((-counts, grams))
    sorted_grams, sorted_counts = grams[order], counts[order]
    first = np.append(True, sorted_grams[1:] != sorted_grams[:-1])
    starts = np.flatnonzero(first)
    # By decreasing count: the others' greatest is the first of the run, and the second for it.
    others = np.repeat(sorted_counts[starts], np.diff(np.append(starts, len(order))))
    alone = np.append(first[1:], True)[starts]
    seconds = np.minimum(starts + 1, len(order) - 1)
    others[starts] = np.where(alone, 0, sorted_counts[seconds])
    found = np.empty_like(others)
    found[order] = others
    return found


def _nearest_other(lengths: np.ndarray) -> np.ndarray:
    """For each text, the length nearest to its own among the other texts', the shorter of two."""
    order = np.argsort(lengths, kind="stable")
    sorted_lengths = lengths[order]
    below = np.append(-np.inf, sorted_lengths[:-1])
    above = np.append(sorted_lengths[1:], np.inf)
    nearest = np.where(sorted_lengths - below <= above - sorted_lengths, below, above)
    found = np.empty(len(lengths))
    found[order] = nearest
    return found


def distinct_ngrams(comparison: Comparison, *, n: int) -> float:
    """Distinct-n (Li et al., 2016): different n-grams over all n-grams of the simulated texts.

    It falls with the number of words in all, so longer texts have less of it.

    Args:
        comparison: texts to compare.
        n: words of an n-gram; 1 and 2 are registered.

    Raises:
        DataError: if no text has n words, or n is not positive.
    """
    if n < 1:
        raise DataError(f"Distinct-n counts n-grams of {n} words; accepted are 1 or more.")
    grams = [gram for text in comparison.simulated.texts for gram in ngrams(words(text), n)]
    if not grams:
        raise DataError(f"No simulated text has {n} words, so there are no {n}-grams to count.")
    return len(set(grams)) / len(grams)


def mean_words(comparison: Comparison) -> float:
    """Mean number of words of a simulated text."""
    return float(_lengths(comparison.simulated.texts).mean())


def length_distance(comparison: Comparison) -> float:
    """1-Wasserstein distance between the word counts of real and of simulated texts, words.

    By how many words simulated texts must change on average to have people's lengths (Vaserstein,
    1969).
    """
    from scipy.stats import wasserstein_distance

    return float(
        wasserstein_distance(_lengths(comparison.real.texts), _lengths(comparison.simulated.texts))
    )


def _lengths(texts: Sequence[str]) -> np.ndarray:
    return np.array([len(words(text)) for text in texts])


register(
    Metric(
        name="self_bleu",
        title="self-BLEU-4",
        function=self_bleu,
        direction="match",
        range=(0.0, 1.0),
        reference="Zhu et al. (2018)",
        takes=Comparison,
        family="diversity",
    )
)
for _n in (1, 2):
    register(
        Metric(
            name=f"distinct_{_n}",
            title=f"distinct-{_n}",
            function=partial(distinct_ngrams, n=_n),
            direction="match",
            range=(0.0, 1.0),
            reference="Li et al. (2016)",
            takes=Comparison,
            family="diversity",
        )
    )
register(
    Metric(
        name="mean_words",
        title="words a text",
        function=mean_words,
        direction="match",
        range=(0.0, math.inf),
        reference="none",
        takes=Comparison,
        family="diversity",
    )
)
register(
    Metric(
        name="length_distance",
        title="Wasserstein distance of lengths, words",
        function=length_distance,
        direction="lower",
        range=(0.0, math.inf),
        reference="Vaserstein (1969)",
        takes=Comparison,
        family="diversity",
    )
)
