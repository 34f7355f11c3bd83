"""Figures of surveys: answers by group, the honesty of intervals, and what more cells teach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter
from numpy.typing import ArrayLike

from mop_jax.errors import DataError
from mop_jax.plots.style import (
    BLUE,
    GREY,
    INK,
    VERMILLION,
    as_array,
    as_names,
    new_figure,
    shortened,
    styled,
    text_rows,
)

# Okabe and Ito's, the headline's vermillion left out; yellow is too pale for lines.
_COLOURS = (BLUE, "#009E73", "#CC79A7", "#56B4E9", "#E69F00", GREY, INK)
_MARKERS = "osD^vPX"
_COLUMNS = 4


@styled
def group_answers(
    groups: Sequence[str],
    options: Sequence[str],
    real: ArrayLike,
    draws: ArrayLike,
    *,
    question: str,
    level: float = 0.9,
    baseline: ArrayLike | None = None,
    note: str = "",
) -> Figure:
    """What each group answered beside what is simulated of it, a panel a group.

    The title counts how many real shares lie in their interval.

    Args:
        groups: names, G, in the order of the panels.
        options: texts, M, from above to below.
        real: people's shares [G, M].
        draws: simulated shares [S, G, M]; with the groups' sampling error, intervals are those of
            people's shares, without it those of the population's.
        question: what was asked, for the heading.
        level: of the intervals.
        baseline: shares [M] or [G, M] that a method without groups predicts, such as everybody's.
        note: small print.

    Raises:
        DataError: if a shape does not fit, or the level is none.
    """
    shares = as_array("real", real, "G M")
    num_groups, num_options = shares.shape
    simulated = as_array("draws", draws, "S G M", G=num_groups, M=num_options)
    panel_names = as_names("groups", groups, "group", num_groups)
    names = as_names("options", options, "option", num_options)
    if not 0 < level < 1:
        raise DataError(f"`level` is {level}; accepted: between 0 and 1.")
    other = None
    if baseline is not None:
        array = np.asarray(baseline, np.float64)
        array = np.broadcast_to(array, shares.shape) if array.ndim == 1 else array
        other = as_array("baseline", array, "G M", G=num_groups, M=num_options)
    low, high = np.quantile(simulated, [(1 - level) / 2, (1 + level) / 2], axis=0)
    inside = int(((shares >= low) & (shares <= high)).sum())
    columns = min(_COLUMNS, num_groups)
    rows = -(-num_groups // columns)
    dashed = "" if other is None else "; tick: everybody's answer"
    figure = new_figure(
        f"{inside} of {shares.size} shares of people lie in their {level:.0%} interval",
        f"{shortened(question, 260, 2)}\nOpen circle: people; point and line: simulated mean and "
        f"{level:.0%} interval{dashed}.",
        body_height=rows * (0.2 * num_options + 0.45) + 0.35,
        note=note,
    )
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    places = np.arange(num_options)[::-1]
    reach = max(high.max(), shares.max(), 0 if other is None else other.max())
    for g, axes in enumerate(grid.flat):
        if g >= num_groups:
            axes.set_axis_off()
            continue
        if other is not None:
            axes.plot(
                other[g], places, "|", color=GREY, markersize=9, markeredgewidth=1.1, label="others"
            )
        axes.hlines(places, low[g], high[g], color=VERMILLION, linewidth=2.0, alpha=0.75)
        axes.plot(
            simulated[:, g].mean(0), places, "o", color=VERMILLION, markersize=3, label="simulated"
        )
        axes.plot(
            shares[g], places, "o", markerfacecolor="none", markeredgecolor=BLUE,
            markeredgewidth=1.2, markersize=6, label="people",
        )  # fmt: skip
        axes.set_title(shortened(panel_names[g], 24, 2))
        axes.set_yticks(places, [shortened(name, 24) for name in names])
        axes.set_ylim(-0.6, num_options - 0.4)
        axes.set_xlim(0, 1.05 * reach)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        text_rows(axes)
    for axes in grid.flat[max(0, num_groups - columns) : num_groups]:  # nothing beneath
        axes.tick_params(labelbottom=True)
    return figure


@styled
def persona_groups(
    groups: Sequence[str],
    personas: Sequence[str],
    draws: ArrayLike,
    *,
    level: float = 0.9,
    note: str = "",
) -> Figure:
    """Which personas speak for which groups: π by group with its interval, a panel a persona.

    Args:
        groups: names, G, from above to below.
        personas: texts, K, in the order of the panels.
        draws: posterior draws of the groups' mean π, [S, G, K].
        level: of the intervals.
        note: small print.

    Raises:
        DataError: if a shape does not fit, or the level is none.
    """
    shares = as_array("draws", draws, "S G K")
    _, num_groups, num_personas = shares.shape
    names = as_names("groups", groups, "group", num_groups)
    voices = as_names("personas", personas, "persona", num_personas)
    if not 0 < level < 1:
        raise DataError(f"`level` is {level}; accepted: between 0 and 1.")
    low, high = np.quantile(shares, [(1 - level) / 2, (1 + level) / 2], axis=0)
    mean = shares.mean(0)
    columns = min(_COLUMNS, num_personas)
    rows = -(-num_personas // columns)
    points = 100 * np.ptp(mean, axis=0).max()
    figure = new_figure(
        f"How often a persona speaks differs by up to {points:.0f} points between groups",
        f"π by group; point and line: posterior mean and {level:.0%} interval; dashed: "
        f"1/{num_personas}, as often as any other.",
        body_height=rows * (0.2 * num_groups + 0.75) + 0.3,
        note=note,
    )
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    places = np.arange(num_groups)[::-1]
    for k, axes in enumerate(grid.flat):
        if k >= num_personas:
            axes.set_axis_off()
            continue
        axes.axvline(1 / num_personas, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        axes.hlines(places, low[:, k], high[:, k], color=BLUE, linewidth=2.0, alpha=0.75)
        axes.plot(mean[:, k], places, "o", color=BLUE, markersize=4)
        axes.set_title(shortened(voices[k], 22, 3))
        axes.set_yticks(places, [shortened(name, 30) for name in names])
        axes.set_ylim(-0.6, num_groups - 0.4)
        axes.set_xlim(0, min(1.0, 1.05 * high.max()))
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        text_rows(axes)
    return figure


@styled
def interval_calibration(
    levels: ArrayLike,
    coverage: Mapping[str, ArrayLike],
    *,
    num_shares: int,
    headline: str | None = None,
    note: str = "",
) -> Figure:
    """Share of real shares in their interval, by the level that the interval says.

    Args:
        levels: of the intervals [L], between 0 and 1, rising.
        coverage: method → share covered at each level [L].
        num_shares: independent shares that were looked at, for the band in which a correct method
            would be found 95 % of the time; the options of one cell are not independent.
        headline: the method that is set off; the first by default.
        note: small print.

    Raises:
        DataError: if there is no method, a shape does not fit, or a share is none.
    """
    stated = as_array("levels", levels, "L")
    if not coverage:
        raise DataError("`coverage` is empty; accepted: at least one method.")
    found = {
        name: as_array(f"coverage[{name!r}]", values, "L", L=len(stated))
        for name, values in coverage.items()
    }
    values = np.concatenate([stated, *found.values()])
    if values.min() < 0 or values.max() > 1 or (np.diff(stated) <= 0).any():
        raise DataError("Levels and coverages must lie between 0 and 1, and levels must rise.")
    if num_shares < 1:
        raise DataError(f"`num_shares` is {num_shares}; accepted: 1 or more.")
    first = next(iter(found)) if headline is None else headline
    if first not in found:
        raise DataError(f"`headline` is {first!r}; accepted: {', '.join(map(repr, found))}.")
    at = int(np.argmin(np.abs(stated - 0.9)))
    figure = new_figure(
        f"{stated[at]:.0%} intervals of {first} hold {found[first][at]:.0%} of people's shares",
        "Above the diagonal intervals are too wide, below it too narrow; grey: where correct ones "
        f"lie in 95% of samples of {num_shares:,} independent shares.",
        body_height=4.2,
        note=note,
    )
    axes, side = figure.subplots(1, 2, width_ratios=(3, 2))
    side.set_axis_off()
    line = np.linspace(0, 1, 101)
    spread = 1.96 * np.sqrt(line * (1 - line) / num_shares)
    axes.fill_between(line, line - spread, line + spread, color="#E4E4E4", linewidth=0)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
    for handle, values in zip(_handles(list(found), first), found.values()):
        axes.plot(
            stated, values, color=handle.get_color(), marker=handle.get_marker(), markersize=4,
            linewidth=handle.get_linewidth(),
        )  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="level of the interval")
    axes.set_ylabel("people's shares inside")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    side.legend(handles=_handles(list(found), first), frameon=False, loc="center left",
                bbox_to_anchor=(0, 0.5), borderpad=0)  # fmt: skip
    return figure


@styled
def cells_learning_curve(
    num_cells: ArrayLike,
    curves: Mapping[str, Mapping[str, ArrayLike]],
    directions: Mapping[str, str],
    *,
    floors: Mapping[str, float] | None = None,
    headline: str | None = None,
    note: str = "",
) -> Figure:
    """How measures of unseen cells change with the number of training cells, a panel a measure.

    Args:
        num_cells: numbers of training cells [L], rising.
        curves: measure → method → values [L, repeats]; all measures have the same methods.
        directions: of each measure: `higher` or `lower` is better.
        floors: measure → the value that the true shares would have.
        headline: the method that is set off; the first by default.
        note: small print.

    Raises:
        DataError: if there is nothing to draw, or names or shapes do not fit.
    """
    sizes = as_array("num_cells", num_cells, "L")
    if not curves or not next(iter(curves.values())):
        raise DataError("`curves` is empty; accepted: at least one measure of one method.")
    methods = list(next(iter(curves.values())))
    if (sizes <= 0).any() or (np.diff(sizes) <= 0).any():
        raise DataError("`num_cells` must be positive and rise.")
    first = methods[0] if headline is None else headline
    if first not in methods:
        raise DataError(f"`headline` is {first!r}; accepted: {', '.join(map(repr, methods))}.")
    for measure, by_method in curves.items():
        if list(by_method) != methods or directions.get(measure) not in ("higher", "lower"):
            raise DataError(
                f"Measure {measure!r} has other methods than the first, or no direction; accepted: "
                f"{', '.join(methods)}, and 'higher' or 'lower'."
            )
    measure = next(iter(curves))
    ends = {m: as_array(m, curves[measure][m], "L R", L=len(sizes))[0].mean() for m in methods}
    best = (max if directions[measure] == "higher" else min)(ends, key=lambda m: ends[m])
    figure = new_figure(
        f"With {sizes[0]:.0f} training cells {best} is best by {measure}",
        "Measured on unseen cells. Points: means over samples of training cells; bars: from the "
        "least to the greatest." + (" Dashed: the true shares." if floors else ""),
        body_height=3.1,
        note=note,
    )
    grid = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, (measure, by_method) in zip(grid, curves.items()):
        for place, (handle, method) in enumerate(zip(_handles(methods, first), methods)):
            values = as_array(method, by_method[method], "L R", L=len(sizes))
            mean = values.mean(1)
            # Beside one another: at one size the bars of several methods would hide each other.
            x = sizes * 1.03 ** (place - (len(methods) - 1) / 2)
            errors = np.maximum([mean - values.min(1), values.max(1) - mean], 0)
            axes.errorbar(
                x, mean, errors, color=handle.get_color(), marker=handle.get_marker(), markersize=4,
                linewidth=handle.get_linewidth(), elinewidth=0.8,
                zorder=3 if method == first else 2,
            )  # fmt: skip
        if floors and measure in floors:
            axes.axhline(floors[measure], color=GREY, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(list(sizes)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        axes.set_xlabel("training cells")
        better = "more is better" if directions[measure] == "higher" else "less is better"
        axes.set_title(f"{shortened(measure, 34, 2)}\n{better}", fontsize=8)
    figure.legend(
        handles=_handles(methods, first), loc="outside lower center", ncols=min(len(methods), 5),
        frameon=False,
    )  # fmt: skip
    return figure


def _handles(methods: Sequence[str], first: str) -> list[Line2D]:
    """One line a method; the headline in vermillion and thicker."""
    others = [method for method in methods if method != first]
    handles = []
    for method in methods:
        place = -1 if method == first else others.index(method)
        handles.append(
            Line2D(
                [], [],
                color=VERMILLION if place < 0 else _COLOURS[place % len(_COLOURS)],
                marker="o" if place < 0 else _MARKERS[1 + place % (len(_MARKERS) - 1)],
                markersize=4, linewidth=1.8 if place < 0 else 1.1, label=shortened(method, 34),
            )
        )  # fmt: skip
    return handles
