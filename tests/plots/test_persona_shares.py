"""The figure of personas' shares: what is drawn is what was handed in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.collections import LineCollection

from mop_jax import plots
from mop_jax.errors import DataError
from tests.figure_reading import notes, offsets, panels, title, y_labels

GATE = np.array([[0.2, 0.1, 0.3], [0.5, 0.4, 0.6], [0.3, 0.25, 0.35]])
SPOKE = np.array([[0.25, 0.2, 0.3], [0.43, 0.4, 0.5], [0.32, 0.3, 0.35]])


def test_both_sources_stand_in_the_rows_of_their_personas() -> None:
    figure = plots.persona_shares(GATE, SPOKE, list("abc"), population_label="9 reviews", level=0.8)
    (axes,) = panels(figure)
    assert y_labels(axes) == ["b", "c", "a"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1], "the largest on top"
    order = [1, 2, 0]
    lines: dict[Any, Any] = {
        c.get_label(): c for c in axes.collections if isinstance(c, LineCollection)
    }
    points = dict(zip(("gate", "responsibilities"), offsets(axes), strict=True))
    for source, shares in {"gate": GATE, "responsibilities": SPOKE}.items():
        np.testing.assert_allclose(points[source][:, 0], shares[order, 0])
        segments = np.array([segment[:, 0] for segment in lines[source].get_segments()])
        np.testing.assert_allclose(segments, shares[order, 1:])
        np.testing.assert_array_equal(np.round(points[source][:, 1]), range(3))
    assert (points["gate"][:, 1] < points["responsibilities"][:, 1]).all(), "one above the other"
    assert axes.lines[0].get_xdata()[0] == pytest.approx(1 / 3)
    assert "uniform 1/K" in notes(axes)
    assert "9 reviews" in title(figure)
    assert "20.0% to 50.0%" in title(figure)
    assert "up to 7.0 points" in title(figure)
    assert "80% intervals" in figure.texts[1].get_text()


def test_point_estimates_and_what_is_not_shown_are_said() -> None:
    shares = np.repeat([[0.1], [0.6], [0.3]], 3, axis=1)
    figure = plots.persona_shares(shares, shares, list("abc"), population_label="x", max_personas=2)
    told = " ".join(figure.texts[1].get_text().split())
    assert "Point estimates: no intervals." in told
    assert "2 largest of 3 personas, with 90% of the population by the gate" in told
    assert y_labels(panels(figure)[0]) == ["b", "c"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gate": GATE[:, :2]}, r"`gate` has shape \[3, 2\]"),
        ({"responsibilities": SPOKE[:2]}, r"`responsibilities` has shape \[2, 3\]"),
        ({"gate": 2 * GATE}, "`gate` must hold mean, low and high"),
        ({"responsibilities": SPOKE[:, [0, 2, 1]]}, "`responsibilities` must hold"),
        ({"gate": GATE * [[0.9, 1, 1]]}, "means that sum to 1"),
        ({"names": ["a"]}, "`names` has 1 entries"),
        ({"level": 90}, "`level` is 90"),
        ({"max_personas": 0}, "`max_personas` is 0"),
    ],
)
def test_refusals_name_the_argument(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"gate": GATE, "responsibilities": SPOKE, "names": list("abc")}
    with pytest.raises(DataError, match=message):
        plots.persona_shares(**{**arguments, **changes}, population_label="x")
