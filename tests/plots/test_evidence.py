"""The figures of the evidence: embedding map, held-out comparison, candidate check."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.patches import Ellipse

from mop_jax import plots
from mop_jax.errors import DataError
from mop_jax.plots import style
from tests.figure_reading import notes, offsets, panels, title, y_labels

# --- Embedding map ------------------------------------------------------------------------------


def test_ellipses_hold_their_share_of_gaussian_points() -> None:
    """Each of two ellipses should hold 1 − e⁻² of 4,000 points, standard error 0.0054.

    4.5 standard errors: a false failure in 70,000 runs (two ellipses, if the seed were not fixed).
    The tilted simulated cloud, five times as long as wide, also fails if the angle were wrong.
    """
    rng = np.random.default_rng(5)
    real = rng.normal(size=(4000, 2)) * [3.0, 1.5]
    tilt = np.array([[np.cos(0.6), np.sin(0.6)], [-np.sin(0.6), np.cos(0.6)]])
    simulated = (rng.normal(size=(4000, 2)) * [2.5, 0.5]) @ tilt + [1.0, -0.5]
    (axes,) = panels(plots.embedding_map(real, simulated))
    clouds = [points for points in offsets(axes) if len(points) > 1]
    ellipses = [patch for patch in axes.patches if isinstance(patch, Ellipse)]
    assert len(clouds) == len(ellipses) == 2
    for ellipse, cloud in zip(ellipses, clouds):
        in_unit_circle = ellipse.get_patch_transform().inverted().transform(cloud)
        share = (np.hypot(*in_unit_circle.T) <= 1).mean()
        assert abs(share - (1 - np.exp(-2))) < 4.5 * 0.0054
        np.testing.assert_allclose(ellipse.get_center(), cloud.mean(axis=0), atol=1e-12)
    assert axes.get_aspect() == 1


def test_map_is_fitted_on_the_real_alone() -> None:
    rng = np.random.default_rng(6)
    real = rng.normal(size=(40, 6)) * [5, 3, 1, 1, 1, 1] + 2
    simulated = rng.normal(size=(30, 6)) * [1, 1, 1, 1, 1, 50]
    (axes,) = panels(plots.embedding_map(real, simulated))
    drawn = [points for points in offsets(axes) if len(points) > 1]
    centred = real - real.mean(axis=0)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    for points, cloud in zip(drawn, (real, simulated)):
        expected = (cloud - real.mean(axis=0)) @ directions[:2].T
        np.testing.assert_allclose(np.abs(points), np.abs(expected), atol=1e-9)
    shares = sizes**2 / (sizes**2).sum()
    assert axes.get_xlabel() == f"component 1 ({shares[0]:.0%} of variance)"
    assert axes.get_ylabel() == f"component 2 ({shares[1]:.0%} of variance)"


def test_map_title_measures_spread_and_shift() -> None:
    """Half the standard deviation everywhere is a quarter of the area; a shift of 2 sd is 2 sd."""
    rng = np.random.default_rng(7)
    real = rng.normal(size=(500, 2)) * [3.0, 1.0]
    real -= real.mean(axis=0)
    direction = np.linalg.eigh(np.cov(real, rowvar=False))
    shift = 2 * np.sqrt(direction.eigenvalues[1]) * direction.eigenvectors[:, 1]
    heading = title(plots.embedding_map(real, real / 2 + shift))
    assert "0.25 times the real one's area" in heading
    assert "2.00 sd away" in heading
    beside = plots.embedding_map(
        real, real / 2 + shift, reference=real * 0.6, reference_name="others"
    )
    assert title(beside) == (
        "The simulated ellipse has 0.25 times the real one's area; that of others 0.36"
    )
    assert "simulated 2.00 sd from the real one, others 0.00." in beside.texts[1].get_text()


def test_map_has_a_panel_for_each_label() -> None:
    rng = np.random.default_rng(8)
    real_labels = ["b"] * 12 + ["a"] * 5 + ["c"] * 3
    figure = plots.embedding_map(
        rng.normal(size=(20, 4)),
        rng.normal(size=(7, 4)),
        real_labels=real_labels,
        simulated_labels=["a"] * 6 + ["b"],
        max_labels=2,
    )
    shown = {axes.get_title(loc="left"): axes for axes in panels(figure)}
    assert list(shown) == ["All", "b", "a"]
    assert notes(shown["b"]) == ["● real (12)", "● simulated (1)"]
    assert len(shown["b"].patches) == 1, "one point has no ellipse"
    assert len(shown["a"].patches) == 2
    assert len({axes.get_xlim() for axes in panels(figure)}) == 1
    for axes in shown.values():
        for patch in axes.patches:
            outline = patch.get_path().transformed(patch.get_patch_transform()).vertices
            assert (
                axes.get_xlim()[0] < outline[:, 0].min() < outline[:, 0].max() < axes.get_xlim()[1]
            )
            assert (
                axes.get_ylim()[0] < outline[:, 1].min() < outline[:, 1].max() < axes.get_ylim()[1]
            )


def test_map_names_the_axis_under_every_column() -> None:
    cloud = np.random.default_rng(10).normal(size=(20, 3))
    labels = ["a", "b", "c", "d"] * 5
    figure = plots.embedding_map(cloud, cloud, real_labels=labels, simulated_labels=labels)
    named = [bool(axes.get_xlabel()) for axes in panels(figure)[:5]]
    assert named == [False, False, True, True, True], "three columns, five panels"


# --- Held-out comparison ------------------------------------------------------------------------

ROWS = [("zero_shot", -120.0, 3.0), ("uniform_mixture", -110.0, 2.8), ("mop", -109.2, 2.7)]


def test_held_out_rows_are_shared_and_far_differences_are_arrows() -> None:
    figure = plots.held_out_comparison(
        ROWS, [("mop", 0.8, 0.1), ("zero_shot", -10.0, 0.6)], "Doubling moves it by 0.01."
    )
    levels, paired = panels(figure)
    assert y_labels(levels) == ["zero shot", "uniform mixture", "mop"]
    assert title(figure).startswith("Mop gains 0.80 ± 0.10 nats")
    assert figure.texts[-1].get_text() == "Doubling moves it by 0.01."
    assert dict(zip(notes(paired), (t.xy[1] for t in paired.texts))) == {
        "+0.80 ± 0.10": 2,
        "−10.00 ± 0.60": 0,
    }
    low, high = paired.get_xlim()
    assert -1 < low < 0 < 1.0 < high
    (bars,) = paired.collections
    np.testing.assert_allclose(bars.get_segments()[0], [[0.6, 2], [1.0, 2]])
    arrows = [line for line in paired.lines if line.get_marker() == "<"]
    assert [line.get_ydata()[0] for line in arrows] == [0]
    assert "Arrows" in figure.texts[1].get_text()
    bars = levels.collections[0]
    np.testing.assert_allclose(bars.get_segments()[0], [[-123, 0], [-117, 0]])


def test_held_out_claims_nothing_within_two_standard_errors() -> None:
    figure = plots.held_out_comparison(ROWS, [("mop at τ = 1", 0.19, 0.1), ("mop", 0.1, 0.1)])
    assert title(figure).startswith("No predictor is clearly better")
    assert y_labels(panels(figure)[1]) == ["mop at τ = 1", "mop"]
    assert style.BLUE not in {line.get_color() for line in panels(figure)[1].lines}


def test_held_out_title_is_about_what_was_chosen_beforehand() -> None:
    gains = [("mop at τ = 1", 0.5, 0.1), ("mop", 0.1, 0.1)]
    figure = plots.held_out_comparison(ROWS, gains, headline="mop")
    assert title(figure).startswith("Mop is not clearly better than the uniform mixture")
    figure = plots.held_out_comparison(ROWS, [gains[0], ("mop", 0.4, 0.1)], headline="mop")
    assert title(figure).startswith("Mop gains 0.40 ± 0.10 nats")


def test_candidate_check_compares_the_last_move_with_its_standard_error() -> None:
    settled = plots.candidate_convergence([24, 48, 96], [0.9, 0.95, 0.96], [0.1, 0.1, 0.09])
    assert title(settled) == (
        "From 48 to 96 candidates the gain moves +0.010 nats; its standard error is 0.090"
    )
    assert "\nSettled" in settled.texts[1].get_text()
    moved = plots.candidate_convergence([8, 16], [0.9, 0.7], [0.1, 0.1])
    assert "moves −0.200 nats" in title(moved)
    assert "Not settled" in moved.texts[1].get_text()
    assert [label.get_text() for label in panels(moved)[0].get_xticklabels()] == ["8", "16"]
    segments = panels(moved)[0].collections[-1].get_segments()
    np.testing.assert_allclose([s[:, 1] for s in segments], [[0.8, 1.0], [0.6, 0.8]])


def test_candidate_check_takes_the_estimate_of_what_is_left() -> None:
    """A large move settles nothing against: what is left does."""
    figure = plots.candidate_convergence([8, 16], [0.5, 0.9], [0.1, 0.1], left=0.04)
    text = figure.texts[1].get_text()
    assert "\nSettled: what they still hide, by an estimate 0.040, is less" in text
    belied = plots.candidate_convergence([8, 16], [0.2, 0.9], [0.1, 0.1], left=0.04, passed=False)
    assert "\nNot settled: the last move is far more" in belied.texts[1].get_text()
    figure = plots.candidate_convergence([8, 16], [0.9, 0.9], [0.1, 0.1], left=0.2)
    assert "\nNot settled: what they still hide" in figure.texts[1].get_text()


def test_diamonds_show_the_differences_with_all_components() -> None:
    rows = [("zero-shot", -50.0, 1.0), ("uniform", -41.0, 1.0), ("mop", -40.0, 1.0)]
    gains = [("zero-shot", -9.0, 0.2), ("mop", 1.0, 0.2)]
    figure = plots.held_out_comparison(rows, gains, hidden={"mop": 0.15})
    _, paired = panels(figure)
    (diamonds,) = [points for points in offsets(paired) if len(points) == 1]
    np.testing.assert_allclose(diamonds, [[1.15, 2.0]])
    assert "Diamonds" in figure.texts[1].get_text()
    assert "Diamonds" not in plots.held_out_comparison(rows, gains).texts[1].get_text()
    with pytest.raises(DataError, match="`hidden` names 'other'; accepted: zero-shot, mop"):
        plots.held_out_comparison(rows, gains, hidden={"other": 0.1})


# --- Refusals -----------------------------------------------------------------------------------

CLOUD = np.random.default_rng(9).normal(size=(6, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plots.embedding_map(CLOUD[:2], CLOUD), "`real` has shape"),
        (lambda: plots.embedding_map(0 * CLOUD, CLOUD), "`real` holds one embedding"),
        (lambda: plots.embedding_map(CLOUD, CLOUD[:, :2]), "`simulated` has shape .* D = 3"),
        (lambda: plots.embedding_map(CLOUD, "text"), "`simulated` is not an array of numbers"),
        (lambda: plots.embedding_map(CLOUD, CLOUD, real_labels=["a"] * 6), "go together"),
        (
            lambda: plots.embedding_map(
                CLOUD, CLOUD, real_labels=["a"] * 6, simulated_labels=["a"] * 5
            ),
            "`simulated_labels` has 5 entries",
        ),
        (lambda: plots.held_out_comparison([], [("a", 1, 1)]), "`rows` must hold"),
        (lambda: plots.held_out_comparison(ROWS, [("a", 1)]), "`differences` must hold"),  # type: ignore[list-item]
        (lambda: plots.held_out_comparison(ROWS, [("a", 1, -1)]), "negative standard error"),
        (lambda: plots.held_out_comparison(ROWS * 2, [("a", 1, 1)]), "`rows` names"),
        (
            lambda: plots.held_out_comparison(ROWS, [("mop", 1, 1)], headline="mob"),
            "`headline` is 'mob'; accepted: mop",
        ),
        (lambda: plots.candidate_convergence([4, 2], [1, 1], [1, 1]), "`counts` must hold"),
        (lambda: plots.candidate_convergence([2, 4], [1], [1, 1]), r"`means` has shape \[1\]"),
        (lambda: plots.candidate_convergence([2, 4], [1, 1], [1, -1]), "`ses` has a negative"),
    ],
)
def test_refusals_name_the_argument(call: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()


def test_small_gains_are_written_with_the_digits_they_need() -> None:
    figure = plots.held_out_comparison(
        [("mop", -0.69, 0.01), ("zero", -0.8, 0.01)],
        [("mop", 0.0031, 0.0004), ("zero", -0.5, 0.21)],
        headline="mop",
    )
    assert "gains 0.0031 ± 0.0004 nats" in title(figure)
    assert notes(panels(figure)[1]) == ["+0.0031 ± 0.0004", "−0.50 ± 0.21"]
