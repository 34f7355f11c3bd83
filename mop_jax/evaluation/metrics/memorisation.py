"""Memorisation: how much of the simulated texts is copied from real ones.

Copying flatters every other metric, for copies of real texts are as real texts are. So these stand
beside all others: what a text took from the exemplars in its own prompt, and whether simulated
texts are nearer to training records than people's own new texts are. Their floor is that of
held-out real texts beside the same exemplars, which cannot have been copied from them.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from mop_jax.errors import DataError
from mop_jax.evaluation.metrics.comparison import Comparison, Sample, directions, ngrams, words
from mop_jax.evaluation.metrics.registry import Metric, register

_BLOCK = 1024


def copied_ngrams(comparison: Comparison, *, n: int = 4) -> float:
    """Mean share of a simulated text's n-grams that stand in an exemplar of its prompt.

    As McCoy et al. (2023) count what a language model copies from its training texts, here from
    its prompt. Texts of fewer than n words have no n-grams and are left out; a text whose prompt
    had no exemplar copies none.

    Args:
        comparison: texts to compare; its simulated texts must come with `shown`.
        n: words of an n-gram; with fewer than four, phrases that everyone uses count as copied.

    Raises:
        DataError: if it is not known which exemplars were shown, or no text has n words.
    """
    if n < 1:
        raise DataError(f"Copied n-grams have {n} words; accepted are 1 or more.")
    shares = [
        _copied_share(text, shown, n) for text, shown in _pairs(comparison) if len(words(text)) >= n
    ]
    if not shares:
        raise DataError(f"No simulated text has {n} words, so there are no {n}-grams to count.")
    return float(np.mean(shares))


@lru_cache(maxsize=2**15)
def _copied_share(text: str, shown: tuple[str, ...], n: int) -> float:
    grams = ngrams(words(text), n)
    known = {gram for exemplar in shown for gram in ngrams(words(exemplar), n)}
    return sum(gram in known for gram in grams) / len(grams)


def longest_copied_run(comparison: Comparison) -> float:
    """Mean length of the longest run of words that a simulated text shares with an exemplar shown.

    The longest common substring, in words.

    Raises:
        DataError: if it is not known which exemplars were shown.
    """
    return float(np.mean([_longest_run(text, shown) for text, shown in _pairs(comparison)]))


def longest_copied_share(comparison: Comparison) -> float:
    """Mean share of a simulated text's words that lie in its longest run shared with an exemplar.

    1 for a text that stands whole in an exemplar; 0 for an empty one.

    Raises:
        DataError: if it is not known which exemplars were shown.
    """
    shares = [
        _longest_run(text, shown) / max(1, len(words(text))) for text, shown in _pairs(comparison)
    ]
    return float(np.mean(shares))


@lru_cache(maxsize=2**15)
def _longest_run(text: str, shown: tuple[str, ...]) -> int:
    """Longest common substring with any of the exemplars, words."""
    tokens = words(text)
    # Every part of a common run is common too, so the greatest length is found by bisection.
    low, high = 0, min(len(tokens), max((len(words(s)) for s in shown), default=0))
    while low < high:
        middle = (low + high + 1) // 2
        own = set(ngrams(tokens, middle))
        if any(not own.isdisjoint(ngrams(words(s), middle)) for s in shown):
            low = middle
        else:
            high = middle - 1
    return low


def _pairs(comparison: Comparison) -> list[tuple[str, tuple[str, ...]]]:
    """Every simulated text with the exemplars of its prompt."""
    shown = comparison.simulated.shown
    if shown is None:
        raise DataError(
            "It is not known which exemplars the simulated texts were shown; give `shown`, "
            "an empty list for a text whose prompt had none."
        )
    return [(text, tuple(s)) for text, s in zip(comparison.simulated.texts, shown)]


def nearest_train_similarity(comparison: Comparison) -> float:
    """By how much simulated texts are nearer to training records than held-out real texts are.

    Mean over simulated texts of the greatest cosine similarity to any training record, less the
    same mean over real texts; after the data-copying test of Meehan et al. (2020). Above zero the
    simulation repeats its training records more than people repeat each other.

    Returns:
        The difference, between −2 and 2.

    Raises:
        DataError: if there are no training records.
    """
    train = comparison.train
    if train is None:
        raise DataError("Similarity to training records needs the training records; give `train`.")
    columns = _columns(train)
    return _mean_nearest(comparison.simulated, columns) - _mean_nearest(comparison.real, columns)


@lru_cache(maxsize=1)
def _columns(train: Sample) -> np.ndarray:
    """Unit embeddings, [D, n]; resampling asks for those of the same records again and again."""
    # Single precision: similarities to seven digits, in half the time.
    return np.ascontiguousarray(directions(train).astype(np.float32).T)


def _mean_nearest(sample: Sample, columns: np.ndarray) -> float:
    rows = directions(sample).astype(np.float32)
    nearest = [
        (rows[start : start + _BLOCK] @ columns).max(axis=1)
        for start in range(0, len(rows), _BLOCK)
    ]
    return float(np.concatenate(nearest).mean(dtype=np.float64))


register(
    Metric(
        name="copied_4grams",
        title="share of 4-grams copied from the exemplars shown",
        function=copied_ngrams,
        direction="match",
        range=(0.0, 1.0),
        reference="McCoy et al. (2023)",
        takes=Comparison,
        family="memorisation",
        needs=("shown",),
    )
)
register(
    Metric(
        name="longest_copied_run",
        title="longest run shared with an exemplar shown, words",
        function=longest_copied_run,
        direction="match",
        range=(0.0, math.inf),
        reference="McCoy et al. (2023)",
        takes=Comparison,
        family="memorisation",
        needs=("shown",),
    )
)
register(
    Metric(
        name="longest_copied_share",
        title="longest run shared with an exemplar shown, share of words",
        function=longest_copied_share,
        direction="match",
        range=(0.0, 1.0),
        reference="McCoy et al. (2023)",
        takes=Comparison,
        family="memorisation",
        needs=("shown",),
    )
)
register(
    Metric(
        name="nearest_train_similarity",
        title="similarity to the nearest training record, minus that of real texts",
        function=nearest_train_similarity,
        direction="match",
        range=(-2.0, 2.0),
        reference="Meehan et al. (2020)",
        takes=Comparison,
        family="memorisation",
        needs=("train",),
    )
)
