"""The registry of metrics: one registration, reported for every predictor; refusals."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from mop_jax.errors import DataError
from mop_jax.evaluation.held_out import mean_and_error
from mop_jax.evaluation.metrics import METRICS, Estimate, Evidence, Metric, measure, register

VALUES = np.random.default_rng(0).normal(-40, 3, 17)


@pytest.fixture
def registry() -> Iterator[dict[str, Metric]]:
    """The registry with the logarithmic score alone, whatever ships; put back as it was."""
    before = dict(METRICS)
    METRICS.clear()
    METRICS["held_out_log_prob"] = before["held_out_log_prob"]
    yield METRICS
    METRICS.clear()
    METRICS.update(before)


def metric(**changes: Any) -> Metric:
    """The share of records that are more probable than e⁻⁴⁰."""
    values: dict[str, Any] = {
        "name": "share_above",
        "title": "records above −40 nats",
        "function": lambda evidence: Estimate(float((evidence.log_prob > -40).mean()), 0.1),
        "direction": "higher",
        "range": (0.0, 1.0),
        "reference": "none (2020)",
    }
    return Metric(**{**values, **changes})


def test_the_held_out_log_probability_is_the_weighted_clustered_mean():
    weights, groups = np.arange(1.0, 18.0), [str(i % 5) for i in range(17)]
    got = measure(Evidence(VALUES, weights, groups))["held_out_log_prob"]
    assert got._asdict() == mean_and_error(VALUES, weights, groups)
    entry = METRICS["held_out_log_prob"]
    assert entry.direction == "higher"
    assert entry.range == (-math.inf, 0.0)


def test_a_registered_metric_is_measured(registry):
    register(metric())
    got = measure(Evidence(VALUES))
    assert set(got) == {"held_out_log_prob", "share_above"}
    assert got["share_above"].mean == (VALUES > -40).mean()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "held_out_log_prob"}, "There is a metric 'held_out_log_prob' already"),
        ({"name": "share above"}, "accepted are letters, digits and underscores"),
        ({"range": (1.0, 1.0)}, "it is empty"),
    ],
)
def test_bad_metrics_are_refused(registry, changes, message):
    before = dict(METRICS)
    with pytest.raises(DataError, match=message):
        register(metric(**changes))
    assert before == METRICS


def test_a_metric_outside_its_range_is_refused(registry):
    register(metric(function=lambda evidence: Estimate(1.5, 0.0)))
    with pytest.raises(
        DataError, match=r"'share_above' gave 1\.5, outside its range of 0\.0 to 1\.0"
    ):
        measure(Evidence(VALUES))


def test_log_probabilities_of_discrete_responses_are_never_positive(registry):
    with pytest.raises(DataError, match="'held_out_log_prob' gave"):
        measure(Evidence(np.array([0.5, 0.7])))


def test_metrics_of_texts_are_passed_over_for_log_probabilities():
    assert {m.takes.__name__ for m in METRICS.values()} == {"Evidence", "Comparison"}
    assert list(measure(Evidence(VALUES))) == ["held_out_log_prob"]
