"""Reports, values by label and by group, and where values settle."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from mop_jax.errors import DataError
from mop_jax.evaluation.metrics import (
    METRICS,
    Comparison,
    by_group,
    by_label,
    report,
    stable_from,
    values_by_size,
)
from mop_jax.evaluation.metrics.frechet import fid
from tests.evaluation.samples import GAP, comparison, gaussian, mean_gap, metric, sample


def labelled() -> Comparison:
    return Comparison(
        sample(gaussian(6, 2, 0), "real", labels=[*"aabbbc"], groups=[*"xxxyyy"]),
        sample(gaussian(7, 2, 1), "simulated", labels=[*"abbbaad"], groups=[*"xxxyyyy"]),
    )


def test_values_by_label_are_those_of_its_texts():
    both = labelled()
    with pytest.warns(UserWarning, match="Label") as caught:
        found = by_label(GAP, both)
    assert found["a"] == mean_gap(both.take([0, 1], [0, 4, 5]))
    assert found["b"] == mean_gap(both.take([2, 3, 4], [1, 2, 3]))
    assert found["c"] is found["d"] is None
    messages = [str(warning.message) for warning in caught]
    assert messages == [
        "Label 'c' has no made_up: no simulated text is of it.",
        "Label 'd' has no made_up: no real text is of it.",
    ]
    assert by_group(GAP, both) == {
        "x": mean_gap(both.take([0, 1, 2], [0, 1, 2])),
        "y": mean_gap(both.take([3, 4, 5], [3, 4, 5, 6])),
    }


def test_a_label_with_too_few_texts_has_no_value():
    both = Comparison(
        sample(gaussian(6, 2, 0), "real", labels=[*"aaaabb"]),
        sample(gaussian(5, 2, 1), "simulated", labels=[*"aaaab"]),
    )
    with pytest.warns(UserWarning, match="Label 'b' has no fid: FID needs at least 2 simulated"):
        found = by_label(METRICS["fid"], both)
    assert found["a"] is not None
    assert found["b"] is None
    with pytest.raises(DataError, match="The real texts have no groups"):
        by_group(GAP, both)


def test_a_report_has_all_that_should_stand_beside_a_value():
    both = comparison(gaussian(60, 3, 0), gaussian(50, 3, 1, shift=2.0), gaussian(70, 3, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = report(both, ["fid", "energy_distance", "mean_words"], replicates=30)
        assert found["fid"].value == fid(both)
    assert list(found) == ["fid", "energy_distance", "mean_words"]
    for name, one in found.items():
        assert METRICS[name].range[0] <= one.low <= one.value <= one.high
        assert one.n == 50
    assert found["fid"].excess == found["fid"].value - found["fid"].floor > 0
    assert found["energy_distance"].p_value == pytest.approx(1 / 201)
    assert found["fid"].p_value is None


def test_a_metric_that_refuses_is_left_out_of_a_report():
    real, simulated = gaussian(3, 3, 0), gaussian(9, 3, 1)
    with pytest.warns(UserWarning, match="Metric") as caught:
        found = report(comparison(real, simulated), ["classifier_accuracy", "mean_words"])
    assert list(found) == ["mean_words"]
    assert np.isnan([found["mean_words"].low, found["mean_words"].floor]).all()
    messages = " ".join(str(warning.message) for warning in caught)
    assert "'classifier_accuracy' is left out" in messages
    assert "'mean_words' has no interval" in messages
    assert "'mean_words' has no noise floor" in messages


def test_metrics_that_are_not_there_are_refused():
    both = comparison(gaussian(9, 3, 0), gaussian(9, 3, 1))
    with pytest.raises(DataError, match="There is no metric 'fidd'; there are"):
        report(both, ["fidd"])
    with pytest.raises(DataError, match="'downstream_f1' needs labels, which"):
        report(both, ["downstream_f1"])


def test_values_by_size_and_where_they_settle():
    both = comparison(gaussian(256, 3, 0), gaussian(300, 3, 1, shift=1.0))
    values = values_by_size(GAP, both, [8, 64, 500], repeats=40)
    assert list(values) == [8, 64]
    # √8 times as wide, less the finite population's share.
    assert 1.8 < values[8].std() / values[64].std() < 5
    # 1 / n moves by less than 0.02 from n = 64 on: 1/64 − 1/256 = 0.012, 1/32 − 1/256 = 0.027.
    biased = metric(lambda both: 1 / len(both.real))
    assert stable_from(biased, both, tolerance=0.02) == 64
    assert stable_from(biased, both, tolerance=0.001) is None
    assert stable_from(GAP, both) is not None


def test_metrics_keep_to_one_thread_and_leave_others_theirs(monkeypatch):
    seen = set()

    def watched(both: Comparison) -> float:
        seen.update(pool["num_threads"] for pool in threadpool_info())
        return mean_gap(both)

    monkeypatch.setitem(METRICS, "watched", metric(watched, name="watched"))
    with threadpool_limits(2):
        report(comparison(gaussian(12, 2, 0), gaussian(12, 2, 1)), ["watched"], replicates=4)
        assert {pool["num_threads"] for pool in threadpool_info()} == {2}
    assert seen == {1}
