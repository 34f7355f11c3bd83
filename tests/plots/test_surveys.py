"""Figures of surveys: what can be read off them, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from mop_jax import plots
from mop_jax.errors import DataError
from tests.figure_reading import panels, title, y_labels

GROUPS = ["18-29", "30-44", "45-64", "65+", "a group with a name that is rather too long for it"]
OPTIONS = ["Yes", "No", "Not sure"]


def answers(seed=0):
    rng = np.random.default_rng(seed)
    real = rng.dirichlet(np.ones(3), len(GROUPS))
    draws = np.stack([rng.dirichlet(50 * share + 1, 400) for share in real], axis=1)
    return real, draws


def test_every_group_has_a_panel_with_people_simulation_and_interval():
    real, draws = answers()
    real[0] = [0, 0, 1]
    pooled = np.array([0.5, 0.3, 0.2])
    figure = plots.group_answers(
        GROUPS, OPTIONS, real, draws, question="Did $5 do?", baseline=pooled
    )
    low, high = np.quantile(draws, [0.05, 0.95], axis=0)
    inside = int(((low <= real) & (real <= high)).sum())
    assert inside < 15
    assert title(figure) == f"{inside} of 15 shares of people lie in their 90% interval"
    assert "Did $5 do?" in figure.texts[1].get_text()
    drawn = panels(figure)[:5]
    assert y_labels(drawn[0]) == OPTIONS
    for g, axes in enumerate(drawn):
        lines = {line.get_label(): line.get_xdata() for line in axes.lines}
        np.testing.assert_allclose(lines["people"], real[g])
        np.testing.assert_allclose(lines["simulated"], draws[:, g].mean(0))
        np.testing.assert_allclose(lines["others"], pooled)
        ends = np.array([s[:, 0] for s in axes.collections[0].get_segments()])
        np.testing.assert_allclose(ends, np.stack([low[g], high[g]], 1))
    assert drawn[4].get_title(loc="left").startswith("a group with")


def test_calibration_is_read_at_ninety_percent():
    levels = np.array([0.5, 0.8, 0.9])
    figure = plots.interval_calibration(
        levels, {"MRP": [0.4, 0.7, 0.85], "ours": levels}, num_shares=100, headline="ours"
    )
    assert title(figure) == "90% intervals of ours hold 90% of people's shares"
    axes = panels(figure)[0]
    assert any(np.array_equal(line.get_ydata(), [0.4, 0.7, 0.85]) for line in axes.lines)
    legend = panels(figure)[1].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["MRP", "ours"]


def test_learning_curves_have_means_and_ranges():
    rng = np.random.default_rng(0)
    sizes = [8, 16, 72]
    curves = {
        measure: {m: rng.uniform(size=(3, 4)) for m in ("ours", "MRP")} for measure in ("TV", "log")
    }
    figure = plots.cells_learning_curve(
        sizes, curves, {"TV": "lower", "log": "higher"}, floors={"TV": 0.05}
    )
    ends = {name: values[0].mean() for name, values in curves["TV"].items()}
    assert title(figure) == f"With 8 training cells {min(ends, key=ends.get)} is best by TV"
    axes = panels(figure)[0]
    assert "less is better" in axes.get_title(loc="left")
    means = [line.get_ydata() for line in axes.lines if len(line.get_xdata()) == 3]
    for values in curves["TV"].values():
        assert any(np.allclose(values.mean(1), mean) for mean in means)
    assert any(np.allclose(line.get_ydata(), 0.05) for line in axes.lines)
    assert [t.get_text() for t in axes.get_xticklabels()] == ["8", "16", "72"]


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda r, d: plots.group_answers(GROUPS[:2], OPTIONS, r, d, question=""), "`groups` has"),
        (lambda r, d: plots.group_answers(GROUPS, OPTIONS, r, d[0], question=""), "`draws` has"),
        (lambda r, d: plots.group_answers(GROUPS, OPTIONS, r * np.nan, d, question=""), "NaN"),
        (lambda r, d: plots.group_answers(GROUPS, OPTIONS, r, d, question="", level=9), "`level`"),
        (lambda r, d: plots.interval_calibration([0.5], {}, num_shares=9), "is empty"),
        (lambda r, d: plots.interval_calibration([0.5], {"a": [2]}, num_shares=9), "between 0"),
        (lambda r, d: plots.interval_calibration([0.5], {"a": [1]}, num_shares=0), "1 or more"),
        (
            lambda r, d: plots.interval_calibration([0.5], {"a": [1]}, num_shares=9, headline="b"),
            "`headline` is 'b'",
        ),
        (lambda r, d: plots.cells_learning_curve([8], {}, {}), "is empty"),
        (lambda r, d: plots.cells_learning_curve([8], {"TV": {"a": [[1]]}}, {}), "no direction"),
        (
            lambda r, d: plots.cells_learning_curve([8, 4], {"T": {"a": [[1]]}}, {"T": "lower"}),
            "must be positive and rise",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, words):
    with pytest.raises(DataError, match=words):
        draw(*answers())


def test_every_persona_has_a_panel_with_its_share_of_each_group():
    rng = np.random.default_rng(5)
    draws = rng.dirichlet([2, 1, 4], (200, len(GROUPS)))
    figure = plots.persona_groups(GROUPS, ["A", "B", "C"], draws)
    spread = np.ptp(draws.mean(0), axis=0).max()
    assert f" differs by up to {100 * spread:.0f} points between groups" in title(figure)
    drawn = panels(figure)[:3]
    low, high = np.quantile(draws, [0.05, 0.95], axis=0)
    for k, axes in enumerate(drawn):
        np.testing.assert_allclose(axes.lines[1].get_xdata(), draws[..., k].mean(0))
        np.testing.assert_allclose(axes.lines[0].get_xdata(), [1 / 3, 1 / 3])
        ends = np.array([s[:, 0] for s in axes.collections[0].get_segments()])
        np.testing.assert_allclose(ends, np.stack([low[:, k], high[:, k]], 1))
    with pytest.raises(DataError, match="level"):
        plots.persona_groups(GROUPS, ["A", "B", "C"], draws, level=1)
    with pytest.raises(DataError, match="persona"):
        plots.persona_groups(GROUPS, ["A", "B"], draws)
