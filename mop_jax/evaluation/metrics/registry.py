"""The registry of metrics: what each measures, which way is better, and where it comes from.

A metric is one function of `Evidence` and one `register`. Metrics that need something that a run
did not produce are passed over there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from mop_jax.errors import DataError


class Evidence(NamedTuple):
    """What is known of one predictor's word on N held-out records.

    Attributes:
        log_prob: log p(y_i | x_i), nats, [N].
        weights: of the records, [N]; equal by default.
        groups: of the records, N; records of one group are not independent.
    """

    log_prob: np.ndarray
    weights: np.ndarray | None = None
    groups: Sequence[str] | None = None


class Estimate(NamedTuple):
    """A metric's value and its standard error."""

    mean: float
    se: float


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        name: in files: letters, digits and underscores.
        title: in tables and figures, with its unit.
        function: its definition.
        direction: which values are better.
        range: the least and the greatest value that it can take.
        reference: where it was proposed, author and year.
    """

    name: str
    title: str
    function: Callable[[Evidence], Estimate]
    direction: Literal["higher", "lower"]
    range: tuple[float, float]
    reference: str


METRICS: dict[str, Metric] = {}
"""Every metric by name."""


def register(metric: Metric) -> None:
    """Adds a metric to those that runs report.

    Raises:
        DataError: if its name is taken or no plain word, or its range is empty.
    """
    if metric.name in METRICS:
        raise DataError(f"There is a metric {metric.name!r} already; choose another name.")
    if not metric.name.isidentifier():
        raise DataError(
            f"A metric's name is {metric.name!r}; accepted are letters, digits and underscores."
        )
    if not metric.range[0] < metric.range[1]:
        raise DataError(f"The range of metric {metric.name!r} is {metric.range}; it is empty.")
    METRICS[metric.name] = metric


def measure(evidence: Evidence) -> dict[str, Estimate]:
    """Every metric's value.

    Raises:
        DataError: if a metric leaves its own range.
    """
    found = {}
    for name, metric in METRICS.items():
        estimate = metric.function(evidence)
        low, high = metric.range
        if not low <= estimate.mean <= high:
            raise DataError(
                f"Metric {name!r} gave {estimate.mean}, outside its range of {low} to {high}."
            )
        found[name] = estimate
    return found
