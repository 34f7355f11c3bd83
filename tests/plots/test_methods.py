"""Methods side by side: what is refused, and what can be read off."""

from __future__ import annotations

import numpy as np
import pytest

from mop_jax import plots
from mop_jax.errors import DataError

NAMES = ["zero-shot", "few-shot", "mixture of personas"]


def values(seeds=2):
    rng = np.random.default_rng(0)
    return {
        name: [
            np.column_stack(
                [v := rng.uniform(0.2, 0.9, seeds), v - 0.1, v + 0.1, np.full(seeds, f)]
            )
            for _ in NAMES
        ]
        for name, f in (("FID", 0.25), ("MAUVE", 0.95), ("words a text", 19.0))
    }


def test_every_point_interval_and_floor_is_drawn():
    drawn = values()
    figure = plots.method_comparison(NAMES, ["lower", "higher", "match"], drawn)
    panels = figure.axes
    assert [t.get_text() for t in panels[0].get_yticklabels()] == NAMES
    for axes, (name, arrays), floor in zip(panels, drawn.items(), (0.25, 0.95, 19.0)):
        assert name in axes.get_title(loc="left")
        lines = [line.get_xdata() for line in axes.lines]
        assert any(np.allclose(x, floor) for x in lines)
        points = sorted(float(x[0]) for x in lines if len(x) == 1)
        np.testing.assert_allclose(points, sorted(np.concatenate(arrays)[:, 0]))
        assert sum(len(x) == 2 and np.ptp(x) > 0.1 for x in lines) == 6


def test_what_is_not_known_is_left_out():
    drawn = {"FID": [np.array([[0.3, np.nan, np.nan, np.nan]]), np.empty((0, 4))]}
    figure = plots.method_comparison(NAMES[:2], ["lower"], drawn)
    assert [len(line.get_xdata()) for line in figure.axes[0].lines] == [1]


@pytest.mark.parametrize(
    ("names", "directions", "drawn"),
    [
        (NAMES, ["lower"], values()),
        ([], [], {}),
        (NAMES[:2], ["lower", "higher", "match"], values()),
        (NAMES[:1], ["lower"], {"FID": [np.zeros((2, 3))]}),
    ],
)
def test_numbers_that_do_not_fit_are_refused(names, directions, drawn):
    with pytest.raises(DataError, match="accepted"):
        plots.method_comparison(names, directions, drawn)


def test_effective_sizes_say_what_the_simulation_is_worth():
    n = np.array([1, 4, 16, 64])
    sizes = {
        "the mean": (n, 1 / np.sqrt(n), 0.1 / n, 0.3, 11.2),
        "the fit": (n, 2 / np.sqrt(n), 0.1 / n, 0.1, np.inf),
    }
    figure = plots.effective_sizes(sizes, num_simulated=40)
    heading = " ".join(text.get_text() for text in figure.texts).replace("\n", " ")
    assert "40 simulated responses tell as much as real ones: 11 of the mean" in heading
    assert "more than 64 of the fit" in heading
    labels = [t.get_text() for t in figure.axes[0].get_xticklabels()]
    assert {"1", "10", "50"} <= set(labels)
    with pytest.raises(DataError, match="`sizes` is empty"):
        plots.effective_sizes({}, num_simulated=4)
