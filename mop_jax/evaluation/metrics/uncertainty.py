"""How sure a metric's value is, and what it would be if the simulation were real.

**Intervals** come from resampling. The usual bootstrap draws texts with replacement, and a text
that is drawn twice is a copy: two texts at similarity one, a point mass for a Gaussian fit, a test
text that the classifier was trained on. FID, MAUVE, KL Cosine and classifier tests all answer to
copies, so their bootstrap replicates lie beside the value and spread wrongly. We draw *without*
replacement, a share f of the texts, f ≤ ½, and scale: deviations of a statistic of f n texts about
their mean, times √(f / (1 − f)), are distributed as those of n texts about theirs (subsampling:
Politis and Romano, 1994; exact for means, where f = ½ needs no scaling). The bias of a smaller
sample moves all replicates alike and leaves with their mean.

**The noise floor** is the value that real texts get in the simulation's place. No simulation can be
expected to do better, so what counts is the excess over it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from mop_jax.errors import DataError
from mop_jax.evaluation.metrics.comparison import Comparison, Sample
from mop_jax.evaluation.metrics.registry import Metric, evaluate

_MIN_UNITS = 4


class Interval(NamedTuple):
    """Ends of an interval."""

    low: float
    high: float


class Floor(NamedTuple):
    """A metric's value where real texts stand for the simulated ones.

    Attributes:
        mean: over the splits.
        values: by split, [splits].
        num_real: real texts in each split.
        num_stand_ins: real texts that stood for simulated ones.
    """

    mean: float
    values: np.ndarray
    num_real: int
    num_stand_ins: int


def quietly(metric: Metric, comparison: Comparison) -> float:
    """A metric's value, without the warnings that the whole comparison has had already."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return metric.function(comparison)


# --- Intervals ----------------------------------------------------------------------------------


def interval(
    metric: Metric,
    comparison: Comparison,
    *,
    replicates: int = 100,
    level: float = 0.95,
    size: int = 1000,
    value: float | None = None,
) -> Interval:
    """Resampling interval of a metric's value, by subsampling (see the module).

    Each replicate draws the same share f of the real and of the simulated texts; where texts have
    groups, of the groups, whole, and a group that both samples have is drawn for both: texts of one
    group are not independent. With d the scaled deviations of replicates from their mean, the
    interval is [value − q₁₋α d, value − q_α d]. It holds for the texts that were drawn, not for
    another fit or another language model.

    Args:
        metric: what to compute.
        comparison: texts to compare; its seed chooses the replicates.
        replicates: number of them. With 100 the ends lie within about 15 % of the half width of
            where more replicates would put them.
        level: share of samples whose interval covers the value that it estimates.
        size: texts of the larger sample that a replicate has at most; half of them if they are
            fewer than twice as many. 1,000 exceeds the width of the usual embeddings, so that a
            covariance stays regular, and makes the time independent of the number of texts.
        value: the metric's value, where it is known already.

    Raises:
        DataError: if there are fewer than four independent texts or groups, or most replicates are
            refused by the metric.
    """
    share = min(0.5, size / max(len(comparison.real), len(comparison.simulated)))
    rng = np.random.default_rng([comparison.seed, 2])
    units = _units(comparison)
    values = []
    scale = math.nan
    refusal = ""
    for replicate in range(replicates):
        (real, simulated), drawn = _drawn_texts(units, share, rng)
        scale = math.sqrt(drawn / (1 - drawn))
        with warnings.catch_warnings():
            # The value itself has been warned of; a hundred smaller samples need not repeat it.
            warnings.simplefilter("ignore")
            try:
                part = comparison.take(real, simulated, seed=comparison.seed + 1 + replicate)
                values.append(metric.function(part))
            except DataError as error:
                refusal = str(error)
    if len(values) < max(2, replicates / 2):
        raise DataError(
            f"{replicates - len(values)} of {replicates} resampled comparisons were refused "
            f"({refusal.rstrip('.')})."
        )
    deviations = scale * (np.asarray(values) - np.mean(values))
    low, high = np.quantile(deviations, [(1 - level) / 2, (1 + level) / 2])
    if value is None:
        value = quietly(metric, comparison)
    return Interval(float(value - high), float(value - low))


class _Units(NamedTuple):
    """The independent units of two samples: groups, or the texts themselves.

    Attributes:
        of_texts: unit of each real and of each simulated text, [n] and [m].
        strata: units of both samples, of the real one alone, of the simulated one alone.
    """

    of_texts: list[np.ndarray]
    strata: list[np.ndarray]


def _units(comparison: Comparison) -> _Units:
    names = [
        [("group", group) for group in sample.groups]
        if sample.groups is not None
        else [(side, str(i)) for i in range(len(sample))]
        for side, sample in (("real", comparison.real), ("simulated", comparison.simulated))
    ]
    place: dict[tuple[str, str], int] = {}
    of_texts = [np.array([place.setdefault(n, len(place)) for n in side]) for side in names]
    real, simulated = map(np.unique, of_texts)
    if min(len(real), len(simulated)) < _MIN_UNITS:
        raise DataError(
            f"An interval needs {_MIN_UNITS} independent texts or groups in either sample; there "
            f"are {len(real)} real and {len(simulated)} simulated."
        )
    both = np.intersect1d(real, simulated)
    strata = [both, np.setdiff1d(real, both), np.setdiff1d(simulated, both)]
    return _Units(of_texts, strata)


def _drawn_texts(
    units: _Units, share: float, rng: np.random.Generator
) -> tuple[list[np.ndarray], float]:
    """Indices of the texts of either sample in a random share of every stratum; the share drawn."""
    number = sum(map(len, units.strata))
    drawn = np.zeros(number, bool)
    for stratum in units.strata:
        if len(stratum):
            count = max(1, round(share * len(stratum)))
            drawn[rng.choice(stratum, count, replace=False)] = True
    return [np.flatnonzero(drawn[side]) for side in units.of_texts], drawn.sum() / number


# --- The noise floor ----------------------------------------------------------------------------


def noise_floor(metric: Metric, comparison: Comparison, *, splits: int = 3) -> Floor:
    """The metric's value where real texts stand for the simulated ones, in samples of these sizes.

    Training records stand for the simulated texts, as many at random in each split, beside the same
    real texts. Where there are too few, real texts and training records are pooled and cut in two
    at random. Where labels are needed that training records lack, or a metric looks at training
    records or at exemplars, which are training records, held-out real texts alone are cut in two.
    Then the samples are smaller than the comparison's, and the floor of a metric that falls with
    their size is too high, which a warning says.

    Args:
        metric: what to compute.
        comparison: texts to compare; its seed chooses the splits.
        splits: number of random splits to take the mean of. Three: the spread between splits is
            that between samples, of which the interval tells already.

    Raises:
        DataError: if there are fewer than two real texts a side.
    """
    floor = measured_floor(metric, comparison, splits=splits)
    sizes = {metric.name: (floor.num_real, floor.num_stand_ins)}
    for sentence in smaller_floors(sizes, len(comparison.real), len(comparison.simulated)):
        warnings.warn(sentence, stacklevel=2)
    return floor


def measured_floor(metric: Metric, comparison: Comparison, *, splits: int = 3) -> Floor:
    """`noise_floor` without a word on the sizes of its samples."""
    rng = np.random.default_rng([comparison.seed, 3])
    values = []
    made = comparison
    for split in range(splits):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = _real_for_simulated(metric, comparison, rng, comparison.seed + 1 + split)
            values.append(evaluate(metric, made))
    return Floor(float(np.mean(values)), np.array(values), len(made.real), len(made.simulated))


def smaller_floors(
    sizes: Mapping[str, Sequence[int]], num_real: int, num_simulated: int
) -> list[str]:
    """What to know of noise floors whose samples are smaller than those of their values.

    Args:
        sizes: metric → real texts and stand-ins of its floor.
        num_real: real texts of the value.
        num_simulated: simulated texts of the value.
    """
    smaller: dict[tuple[int, ...], list[str]] = {}
    for name, (real, stand_ins) in sizes.items():
        if real < num_real or stand_ins < num_simulated:
            smaller.setdefault((real, stand_ins), []).append(name)
    return [
        f"The noise floor of {', '.join(map(repr, names))} is that of {real} and {stand_ins} real "
        f"texts, for there are too few to stand beside {num_real} real and {num_simulated} "
        "simulated texts."
        for (real, stand_ins), names in smaller.items()
    ]


def _real_for_simulated(
    metric: Metric, comparison: Comparison, rng: np.random.Generator, seed: int
) -> Comparison:
    """Two disjoint samples of real texts, the second in the simulation's place."""
    real, simulated, train = comparison.real, comparison.simulated, comparison.train
    copyable = {"train", "shown"}.intersection(metric.needs)
    unlabelled = "labels" in metric.needs and train is not None and train.labels is None
    if train is None or copyable or unlabelled:
        pool = real
    elif len(train) >= len(simulated):
        chosen = rng.choice(len(train), len(simulated), replace=False)
        return replace(comparison, simulated=_bare(train.take(chosen)), seed=seed)
    else:
        pool = _joined(real, train)
    wanted = len(real) + len(simulated)
    ratio = min(1.0, len(pool) / wanted)
    order = rng.permutation(len(pool))
    first = min(len(real), max(1, round(ratio * len(real))))
    second = min(len(simulated), len(pool) - first)
    if min(first, second) < 2:
        raise DataError(
            f"A noise floor needs at least 4 real texts to cut in two; there are {len(pool)}."
        )
    stand_ins = _bare(pool.take(order[first : first + second]))
    if simulated.shown is not None:
        shown = rng.permutation(len(simulated))[:second]
        stand_ins = replace(stand_ins, shown=[simulated.shown[i] for i in shown])
    return replace(comparison, real=_bare(pool.take(order[:first])), simulated=stand_ins, seed=seed)


def _bare(sample: Sample) -> Sample:
    return replace(sample, shown=None)


def _joined(a: Sample, b: Sample) -> Sample:
    def both(x: Sequence | None, y: Sequence | None) -> list | None:
        return None if x is None or y is None else [*x, *y]

    return Sample(
        [*a.texts, *b.texts],
        np.concatenate([a.embeddings, b.embeddings]),
        both(a.labels, b.labels),
        both(a.groups, b.groups),
    )
