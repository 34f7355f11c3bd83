"""MAUVE: known answers, and the authors' package (its values are in golden/metrics.json)."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from mop_jax.errors import DataError
from mop_jax.evaluation.metrics.mauve import frontier_area, mauve, mauve_text
from tests.evaluation.samples import comparison, gaussian
from tests.golden.make_metrics_golden import mauve_samples

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "golden" / "metrics.json").read_text(encoding="utf-8")
)["mauve"]
pytestmark = pytest.mark.filterwarnings("ignore:MAUVE of:UserWarning")


@pytest.mark.parametrize("shift", GOLDEN)
def test_it_is_the_authors_value_as_nearly_as_that_is_itself(shift):
    """Means over eight seeds each; the package's own spread over seeds is the yardstick.

    Six standard errors of the difference of the means: a false failure in 10⁸ seeds, and ours are
    fixed.
    """
    real, simulated = mauve_samples(float(shift))
    ours = [mauve(comparison(real, simulated, seed=seed)) for seed in range(8)]
    theirs = np.array(GOLDEN[shift])
    error = np.sqrt((np.var(ours, ddof=1) + theirs.var(ddof=1)) / 8)
    assert abs(np.mean(ours) - theirs.mean()) < 6 * error
    # Nor does ours wander more.
    assert np.std(ours) < 4 * theirs.std() + 1e-3


def test_the_package_itself_takes_our_embeddings_and_needs_no_torch():
    pytest.importorskip("mauve")
    real, simulated = mauve_samples(0.5)
    assert mauve_text(comparison(real, simulated)) == pytest.approx(GOLDEN["0.5"][0], abs=0.05)
    assert "torch" not in sys.modules


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mauve", None)
    with pytest.raises(DataError, match=r"pip install 'mop-jax\[metrics\]'"):
        mauve_text(comparison(gaussian(5, 3, 0), gaussian(5, 3, 1)))


def test_equal_samples_have_one_and_samples_far_apart_almost_zero():
    vectors = gaussian(200, 6, 0)
    assert mauve(comparison(vectors, vectors)) == pytest.approx(1, abs=1e-6)
    far = gaussian(200, 6, 1, shift=50.0)
    assert mauve(comparison(-far, far)) < 0.01


def test_the_area_of_two_bins_against_a_fine_integral():
    """The frontier by its definition at 20,001 weights; 25 weights come within 0.01 of it."""
    p, q = np.array([0.8, 0.2]), np.array([0.3, 0.7])
    w = np.linspace(0, 1, 20_001)[:, None]
    mixture = w * p + (1 - w) * q
    x = np.exp(-5 * (q * np.log(q / mixture)).sum(axis=1))
    y = np.exp(-5 * (p * np.log(p / mixture)).sum(axis=1))
    # x falls as w grows; from the last point the frontier is closed to (0, 1).
    area = np.trapezoid(y[::-1], x[::-1]) + x[-1] * (1 + y[-1]) / 2
    assert frontier_area(p, q, weights=20_001) == pytest.approx(area, abs=1e-3)
    assert frontier_area(p, q) == pytest.approx(area, abs=0.01)


def test_disjoint_histograms_have_the_area_of_their_frontier():
    """KL(Q‖R_w) = −log(1 − w): the frontier is {((1 − w)⁵, w⁵)}, its area 5 B(5, 6) = 1/252."""
    p, q = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    assert frontier_area(p, q, weights=20_001) == pytest.approx(1 / 252, rel=1e-3)
    assert frontier_area(p, p) == pytest.approx(1)


def test_texts_that_are_all_alike_are_one_bucket():
    ones = np.ones((30, 4))
    assert mauve(comparison(ones, ones)) == 1.0


def test_too_few_texts_are_warned_of_or_refused():
    with pytest.warns(UserWarning, match="MAUVE of 30 texts is noisy.*advise 1000"):
        mauve(comparison(gaussian(30, 3, 0), gaussian(40, 3, 1)))
    with pytest.raises(DataError, match="MAUVE needs at least 2 real texts; there is 1"):
        mauve(comparison(gaussian(1, 3, 0), gaussian(40, 3, 1)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mauve(comparison(gaussian(1000, 2, 0), gaussian(1000, 2, 1)), buckets=5, restarts=1)
