"""The figure of a fit: its loss trace, and whether it settled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import Formatter, FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike

from mop_jax.errors import DataError
from mop_jax.plots.fonts import drawable
from mop_jax.plots.style import (
    BLUE,
    FAINT,
    GREY,
    INK,
    PALE,
    VERMILLION,
    as_array,
    new_figure,
    styled,
)

_MAX_DIGITS = 9


def running_mean(values: ArrayLike, window: int) -> np.ndarray:
    """Mean of the `window` steps around each step; fewer near the two ends, always as many on
    either side as exist within half a window.

    Args:
        values: [num_steps].
        window: number of steps, at least 1.

    Returns:
        [num_steps]
    """
    array = as_array("values", values, "num_steps")
    if window < 1:
        raise DataError(f"`window` is {window}; accepted: at least 1 step.")
    sums = np.concatenate([[0.0], np.cumsum(array)])
    steps = np.arange(len(array))
    first = np.maximum(steps - (window - 1) // 2, 0)
    last = np.minimum(steps + window // 2 + 1, len(array))
    return (sums[last] - sums[first]) / (last - first)


@styled
def elbo_trace(
    losses: ArrayLike,
    *,
    smoothed: ArrayLike | None = None,
    converged: bool,
    reason: str,
    windows: Sequence[tuple[int, int]] | None = None,
    unit: str = "nats",
) -> Figure:
    """The negative ELBO of every step: the whole run, and its end enlarged.

    Where the first steps lie far above all others, the left axis is cut above the 95th percentile,
    so that they do not flatten the rest; the figure says where they started. The right panel begins
    with the first of the windows of steps on which convergence is judged, and shows their means.

    Args:
        losses: negative ELBO of every step [num_steps], in `unit`.
        smoothed: a smoothed version [num_steps]; by default a running mean over 2 % of the steps.
        converged: whether the run had settled.
        reason: one sentence on why that is thought.
        windows: first and last step, counted from 1, of the windows that were compared (see
            `ConvergenceReport.windows`); by default the third and the last quarter of all steps.
        unit: of the losses, for the axis label.

    Raises:
        DataError: if a shape does not fit, a loss is not finite, or a window lies outside the run.
    """
    raw = as_array("losses", losses, "num_steps")
    num_steps = len(raw)
    if smoothed is None:
        smooth = running_mean(raw, max(1, num_steps // 50))
    else:
        smooth = as_array("smoothed", smoothed, "num_steps", num_steps=num_steps)
    judged = _windows(num_steps, windows)
    # Not "had not settled": a trace may also be too noisy or too short to tell.
    verdict = "The fit settled" if converged else "The fit was not shown to settle"
    figure = new_figure(
        f"{verdict} within {num_steps:,} steps",
        f"{reason}\nPale: each step; dark: smoothed; black: means of the steps compared.",
        body_height=3.0,
    )
    whole, end = figure.subplots(1, 2, width_ratios=(1.0, 1.0))
    colour = BLUE if converged else VERMILLION
    steps = np.arange(1, num_steps + 1)
    begin = judged[0][0] - 1
    for axes, part in ((whole, slice(None)), (end, slice(begin, None))):
        axes.plot(steps[part], raw[part], color=PALE, linewidth=0.6)
        axes.plot(steps[part], smooth[part], color=colour, linewidth=1.6)
        axes.set_xlabel("step")
        # Long labels would meet.
        nbins: int | Literal["auto"] = "auto" if num_steps < 10_000 else 5
        axes.xaxis.set_major_locator(MaxNLocator(nbins, steps=[1, 2, 2.5, 5, 10], integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.yaxis.set_major_formatter(_LossFormatter())
    whole.set_ylabel(drawable(f"negative ELBO ({unit})"))
    whole.set_title("All steps")
    end.set_title("Last half, enlarged" if not windows else f"From step {begin + 1:,}, enlarged")
    low, high = _limits(raw, 0.0, 0.95)
    if raw.max() - low < 2 * (high - low):  # nothing to cut
        low, high = _limits(raw, 0.0, 1.0)
    whole.set_ylim(low, high)
    if raw[0] > high:
        whole.annotate(
            f"first step: {_thousands(raw[0])} ↑",
            xy=(0.94, 0.97),
            xycoords="axes fraction",
            color=GREY,
            fontsize=8,
            ha="right",
            va="top",
        )
    whole.axvspan(steps[begin], num_steps, color=FAINT, zorder=0)
    # The noise of single steps is worth seeing, its rare spikes are not.
    low, high = _limits(raw[begin:], 0.005, 0.995)
    end.set_ylim(low, high + 0.2 * (high - low))  # room for the labels
    _window_means(end, raw, judged)
    return figure


def _limits(values: np.ndarray, low: float, high: float) -> tuple[float, float]:
    bottom, top = np.quantile(values, [low, high])
    margin = 0.08 * (top - bottom) or max(1e-3 * abs(top), 1e-6)
    return float(bottom - margin), float(top + margin)


class _LossFormatter(Formatter):
    """Ticks with thousands separated, and as many digits as it takes to write them exactly."""

    def __call__(self, value: float, position: int | None = None) -> str:
        return _thousands(value)

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        ticks = np.asarray(values, dtype=float)
        step = np.diff(ticks).min(initial=np.inf)
        digits = next(
            (d for d in range(_MAX_DIGITS) if np.abs(ticks - ticks.round(d)).max() < 0.01 * step),
            _MAX_DIGITS,
        )
        return [_thousands(value, digits) for value in ticks]


def _thousands(value: float, digits: int | None = None) -> str:
    if digits is None:
        digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2
    return f"{value:,.{digits}f}".replace("-", "−")


def _windows(
    num_steps: int, windows: Sequence[tuple[int, int]] | None
) -> list[tuple[int, int, str]]:
    """First step, last step and name of every window that is compared."""
    if not windows:
        bounds = [num_steps // 2, (3 * num_steps) // 4, num_steps]
        quarters = zip(bounds, bounds[1:], ("third quarter", "last quarter"))
        return [(start + 1, stop, name) for start, stop, name in quarters if stop > start]
    for first, last in windows:
        if not 1 <= first <= last <= num_steps:
            raise DataError(
                f"`windows` holds {first}–{last}; accepted: steps from 1 to {num_steps:,}."
            )
    return [(first, last, f"{first:,}–{last:,}") for first, last in sorted(windows)]


def _window_means(axes: Axes, raw: np.ndarray, windows: list[tuple[int, int, str]]) -> None:
    means = [float(raw[first - 1 : last].mean()) for first, last, _ in windows]
    places = {1: (0.73,), 2: (0.27, 0.73)}.get(len(windows), np.linspace(0.16, 0.84, len(windows)))
    for (first, last, name), mean, place, label in zip(windows, means, places, _told_apart(means)):
        axes.plot([first, last], [mean, mean], color=INK, linewidth=1.1)
        axes.annotate(
            f"{name}\nmean {label}",
            xy=(float(place), 0.985),
            xycoords="axes fraction",
            ha="center",
            va="top",
            color=INK,
            fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 2.5},
        )


def _told_apart(values: list[float]) -> list[str]:
    """Numbers with as many digits as it takes to see which is larger, up to four."""
    for digits in (None, 1, 2, 3, 4):
        labels = [_thousands(value, digits) for value in values]
        if len(set(labels)) == len(values):
            return labels
    return [_thousands(value) for value in values]
