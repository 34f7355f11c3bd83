"""The registry of metrics: what each measures, which way is better, and where it comes from.

A metric is one function and one `register`. What the function takes says what it judges: `Evidence`
(a predictor's word on held-out records) or `Comparison` (real texts beside simulated ones). Metrics
that need something that a run did not produce are passed over there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, overload

import numpy as np

from mop_jax.errors import DataError
from mop_jax.evaluation.metrics.comparison import Comparison
from mop_jax.registry import check_name

Need = Literal["labels", "shown", "train"]
"""What a `Comparison` may come without: see `Comparison.provides`."""
Family = Literal["likelihood", "alignment", "diversity", "memorisation", "downstream"]
"""What a metric says of a simulation; tables stand together by it."""


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
        function: its definition: of `Evidence` to an `Estimate`, or of a `Comparison` to a float.
        direction: which values are better; `match` is as near the value on real texts as possible,
            which stands beside it as its floor (`uncertainty.noise_floor`).
        range: the least and the greatest value that it can take.
        reference: where it was proposed, author and year.
        takes: the type of what it judges.
        family: in which table it stands.
        needs: what a `Comparison` must come with for it, beyond texts and embeddings.
        p_value: of a `Comparison`, the p-value of the hypothesis that real and simulated texts are
            draws from one distribution; None where the metric is no test.
    """

    name: str
    title: str
    function: Callable[[Any], Any]
    direction: Literal["higher", "lower", "match"]
    range: tuple[float, float]
    reference: str
    takes: type = Evidence
    family: Family = "likelihood"
    needs: tuple[Need, ...] = ()
    p_value: Callable[[Comparison], float] | None = None


METRICS: dict[str, Metric] = {}
"""Every metric by name."""


def register(metric: Metric) -> None:
    """Adds a metric to those that runs report.

    Raises:
        DataError: if its name is taken or no plain word, or its range is empty.
    """
    check_name("metric", metric.name, METRICS)
    if not metric.range[0] < metric.range[1]:
        raise DataError(f"The range of metric {metric.name!r} is {metric.range}; it is empty.")
    METRICS[metric.name] = metric


def applicable(evidence: Evidence | Comparison) -> list[Metric]:
    """The registered metrics that judge what is given, in the order of their registration."""
    provides = evidence.provides if isinstance(evidence, Comparison) else frozenset()
    return [
        metric
        for metric in METRICS.values()
        if isinstance(evidence, metric.takes) and provides.issuperset(metric.needs)
    ]


def evaluate(metric: Metric, evidence: Evidence | Comparison) -> Any:
    """One metric's value.

    Raises:
        DataError: if it leaves the metric's own range.
    """
    value = metric.function(evidence)
    number = value.mean if isinstance(value, Estimate) else value
    low, high = metric.range
    if not low <= number <= high:
        raise DataError(
            f"Metric {metric.name!r} gave {number}, outside its range of {low} to {high}."
        )
    return value


@overload
def measure(evidence: Evidence) -> dict[str, Estimate]: ...
@overload
def measure(evidence: Comparison) -> dict[str, float]: ...
def measure(evidence: Evidence | Comparison) -> dict[str, Any]:
    """The value of every metric that judges what is given.

    Returns:
        name → an `Estimate` for `Evidence`, a float for a `Comparison`; intervals and noise floors
        of the latter are `report`'s.

    Raises:
        DataError: if a metric leaves its own range, or refuses the texts.
    """
    return {metric.name: evaluate(metric, evidence) for metric in applicable(evidence)}
