"""Figures of benchmarks: methods side by side, with intervals and noise floors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mop_jax.errors import DataError
from mop_jax.plots.style import (
    BLUE,
    GREY,
    INK,
    VERMILLION,
    new_figure,
    shortened,
    styled,
    text_rows,
)

_READING = {
    "higher": "more is better",
    "lower": "less is better",
    "match": "best at the line",
}
_MANY = 4


@styled
def method_comparison(
    methods: Sequence[str],
    directions: Sequence[str],
    values: Mapping[str, Sequence[np.ndarray]],
    *,
    headline: str | None = None,
    note: str = "",
) -> Figure:
    """Every method's value of every metric, seed by seed, beside the noise floor.

    Args:
        methods: names, M, from above to below.
        directions: of each metric: `higher`, `lower` or `match`.
        values: metric → for each of the M methods an array [seeds, 4] of value, lower and upper end
            of its interval, and noise floor; NaN for what is not known, no rows for no value.
        headline: the method whose values are set off; the last by default.
        note: small print.

    Raises:
        DataError: if numbers of methods, metrics and arrays differ.
    """
    if len(directions) != len(values) or not values or not methods:
        raise DataError(
            f"There are {len(values)} metrics, {len(directions)} directions and {len(methods)} "
            "methods; accepted: at least one of each, and a direction for each metric."
        )
    for metric, arrays in values.items():
        if len(arrays) != len(methods) or any(
            np.ndim(array) != 2 or np.shape(array)[1] != 4 for array in arrays
        ):
            raise DataError(
                f"Metric {metric!r} has {len(arrays)} arrays for {len(methods)} methods; accepted: "
                "an array [seeds, 4] for each."
            )
    first = methods[-1] if headline is None else headline
    rows = -(-len(values) // _MANY)
    columns = -(-len(values) // rows)
    figure = new_figure(
        f"{first[:1].upper()}{first[1:]} beside {len(methods) - 1} other ways to simulate",
        "Points: one seed each, with 95 % intervals of texts drawn anew; dashed line: real "
        "responses (to other contexts) in the place of the simulated ones.",
        body_height=rows * (0.24 * len(methods) + 0.75),
        note=note,
    )
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes in grid.flat[len(values) :]:
        axes.set_axis_off()
    places = np.arange(len(methods))[::-1]
    for axes, (metric, arrays), direction in zip(grid.flat, values.items(), directions):
        floors = np.concatenate([array[:, 3] for array in arrays])
        if np.isfinite(floors).any():
            axes.axvline(np.nanmean(floors), color=GREY, linewidth=1, linestyle=(0, (4, 3)))
        for place, method, array in zip(places, methods, arrays):
            colour = VERMILLION if method == first else BLUE
            offsets = np.linspace(0.22, -0.22, len(array)) if len(array) > 1 else [0.0]
            for offset, (value, low, high, _) in zip(offsets, array):
                if np.isfinite([low, high]).all():
                    axes.plot([low, high], [place + offset] * 2, color=colour, linewidth=1.1)
                axes.plot(value, place + offset, "o", color=colour, markersize=3.2)
        axes.set_title(
            f"{shortened(metric, 30, 2)}\n{_READING.get(direction, '')}", fontsize=8, color=INK
        )
        axes.set_yticks(places, [shortened(method, 26) for method in methods])
        axes.set_ylim(-0.6, len(methods) - 0.4)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        text_rows(axes)
    return figure
