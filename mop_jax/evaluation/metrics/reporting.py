"""A metric's value with what should stand beside it, by label, by group and by sample size."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mop_jax.errors import DataError
from mop_jax.evaluation.metrics.comparison import Comparison
from mop_jax.evaluation.metrics.registry import METRICS, Metric, applicable, evaluate
from mop_jax.evaluation.metrics.threads import one_thread
from mop_jax.evaluation.metrics.uncertainty import (
    Interval,
    interval,
    measured_floor,
    quietly,
    smaller_floors,
)


class Reported(NamedTuple):
    """A metric's value with all that should stand beside it.

    Attributes:
        value: of the comparison.
        low: lower end of its interval; NaN where there are too few texts or groups for one.
        high: upper end.
        floor: the mean value where real texts stand for the simulated; NaN where none can.
        n: number of simulated texts.
        p_value: of the metric's test, where it is one.
        floor_sizes: real texts and stand-ins that the floor is of, where there is one.
    """

    value: float
    low: float
    high: float
    floor: float
    n: int
    p_value: float | None = None
    floor_sizes: tuple[int, int] | None = None

    @property
    def excess(self) -> float:
        """Value minus floor."""
        return self.value - self.floor


def report(
    comparison: Comparison,
    metrics: Iterable[str] | None = None,
    *,
    replicates: int = 100,
    splits: int = 3,
    level: float = 0.95,
    size: int = 1000,
) -> dict[str, Reported]:
    """Every metric's value, interval and noise floor.

    A metric that refuses the texts is left out, with a warning that says why.

    Args:
        comparison: texts to compare.
        metrics: names; by default all that can be computed from what there is.
        replicates: see `interval`.
        splits: see `noise_floor`.
        level: see `interval`.
        size: see `interval`.

    Raises:
        DataError: if there is no metric of one of these names for a `Comparison`.
    """
    able = {metric.name: metric for metric in applicable(comparison)}
    names = list(able) if metrics is None else list(metrics)
    for name in names:
        if name not in able:
            if name in METRICS and METRICS[name].takes is Comparison:
                raise DataError(
                    f"Metric {name!r} needs {' and '.join(METRICS[name].needs)}, "
                    "which the comparison lacks."
                )
            raise DataError(f"There is no metric {name!r}; there are {', '.join(able)}.")
    found = {}
    with one_thread():
        for name in names:
            one = _reported(able[name], comparison, replicates, splits, level, size)
            if one is not None:
                found[name] = one
    sizes = {name: one.floor_sizes for name, one in found.items() if one.floor_sizes is not None}
    for sentence in smaller_floors(sizes, len(comparison.real), len(comparison.simulated)):
        warnings.warn(sentence, stacklevel=2)
    return found


def _reported(
    metric: Metric,
    comparison: Comparison,
    replicates: int,
    splits: int,
    level: float,
    size: int,
) -> Reported | None:
    """One metric's value and what belongs beside it; None, and a warning, where it refuses."""
    name = metric.name
    value = _or_warn(evaluate, f"Metric {name!r} is left out", metric, comparison)
    if value is None:
        return None
    ends = _or_warn(
        interval, f"Metric {name!r} has no interval", metric, comparison,
        replicates=replicates, level=level, size=size, value=value,
    ) or Interval(math.nan, math.nan)  # fmt: skip
    floor = _or_warn(
        measured_floor, f"Metric {name!r} has no noise floor", metric, comparison, splits=splits
    )
    return Reported(
        value,
        # Limits that no value can pass are no part of an interval.
        float(np.clip(ends.low, *metric.range)),
        float(np.clip(ends.high, *metric.range)),
        math.nan if floor is None else floor.mean,
        len(comparison.simulated),
        None if metric.p_value is None else metric.p_value(comparison),
        None if floor is None else (floor.num_real, floor.num_stand_ins),
    )


def _or_warn(function: Callable, what: str, *args: Any, **kwargs: Any) -> Any:
    """The function's value; None, and a warning, where it refuses."""
    try:
        return function(*args, **kwargs)
    except DataError as error:
        warnings.warn(f"{what}: {error}", stacklevel=3)
        return None


# --- By label and by group ----------------------------------------------------------------------


def by_label(metric: Metric, comparison: Comparison) -> dict[str, float | None]:
    """A metric's value within every label that real or simulated texts have.

    Returns:
        label → value; None, with a warning, where only one side has texts of the label, or too few
        for the metric.

    Raises:
        DataError: if a sample has no labels.
    """
    return _by("labels", metric, comparison)


def by_group(metric: Metric, comparison: Comparison) -> dict[str, float | None]:
    """A metric's value within every group that real or simulated texts have; see `by_label`."""
    return _by("groups", metric, comparison)


def _by(field: str, metric: Metric, comparison: Comparison) -> dict[str, float | None]:
    samples = {"real": comparison.real, "simulated": comparison.simulated}
    for name, sample in samples.items():
        if getattr(sample, field) is None:
            raise DataError(f"The {name} texts have no {field}, so nothing can be said by them.")
    kinds = {name: np.asarray(getattr(sample, field)) for name, sample in samples.items()}
    found: dict[str, float | None] = {}
    for kind in sorted({*kinds["real"].tolist(), *kinds["simulated"].tolist()}):
        indices = {name: np.flatnonzero(values == kind) for name, values in kinds.items()}
        what = f"{field.removesuffix('s').capitalize()} {kind!r} has no {metric.name}"
        found[kind] = None
        if empty := [name for name, chosen in indices.items() if not len(chosen)]:
            warnings.warn(f"{what}: no {empty[0]} text is of it.", stacklevel=3)
            continue

        def within(indices=indices) -> float:
            with one_thread():
                return evaluate(metric, comparison.take(indices["real"], indices["simulated"]))

        found[kind] = _or_warn(within, what)
    return found


# --- Stability ----------------------------------------------------------------------------------


def values_by_size(
    metric: Metric, comparison: Comparison, sizes: Sequence[int], *, repeats: int = 5
) -> dict[int, np.ndarray]:
    """A metric's values for random samples of n real and n simulated texts.

    Args:
        metric: what to compute.
        comparison: texts to compare; its seed chooses the samples.
        sizes: of either sample; those beyond the smaller one are passed over.
        repeats: values for each size.

    Returns:
        n → values, [repeats].
    """
    rng = np.random.default_rng([comparison.seed, 4])
    fewest = min(len(comparison.real), len(comparison.simulated))
    found = {}
    for size in sorted(n for n in sizes if n <= fewest):
        values = []
        for repeat in range(repeats):
            real, simulated = (
                rng.choice(len(s), size, replace=False)
                for s in (comparison.real, comparison.simulated)
            )
            part = comparison.take(real, simulated, seed=comparison.seed + repeat)
            with one_thread():
                values.append(quietly(metric, part))
        found[size] = np.array(values)
    return found


def stable_from(
    metric: Metric,
    comparison: Comparison,
    *,
    tolerance: float | None = None,
    repeats: int = 5,
) -> int | None:
    """The least sample size from which on the metric's mean value stays where it is for all texts.

    Sizes are halved from that of the smaller sample down to sixteen texts.

    Args:
        metric: what to compute.
        comparison: texts to compare.
        tolerance: how far from the value of all texts counts as there; by default half the width
            of its interval.
        repeats: samples of each size.

    Returns:
        Texts a side; None if the value still moves between half of the texts and all of them.
    """
    fewest = min(len(comparison.real), len(comparison.simulated))
    sizes = [fewest // 2**k for k in range(1, 20) if fewest // 2**k >= 16]
    with one_thread():
        if tolerance is None:
            low, high = interval(metric, comparison)
            tolerance = (high - low) / 2
        value = quietly(metric, comparison)
    stable = None
    for size, values in sorted(
        values_by_size(metric, comparison, sizes, repeats=repeats).items(), reverse=True
    ):
        if abs(values.mean() - value) > tolerance:
            break
        stable = size
    return stable
