"""Figures of evidence: how well predictors foretell held-out records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy.typing import ArrayLike

from mop_jax.errors import DataError
from mop_jax.plots.style import (
    BLUE,
    FAINT,
    GREY,
    INK,
    VERMILLION,
    as_array,
    new_figure,
    shortened,
    signed,
    styled,
    text_rows,
)

# Differences further off than this many times the best one are arrows at the edge of the axis.
FAR = 4.0

Row = tuple[str, float, float]


def _rows(name: str, rows: Sequence[Row]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Splits (name, mean, se) rows; refuses anything else."""
    if not rows or any(len(row) != 3 for row in rows):
        raise DataError(f"`{name}` must hold at least one row of (name, mean, standard error).")
    values = as_array(name, [row[1:] for row in rows], "rows 2")
    if (values[:, 1] < 0).any():
        raise DataError(f"`{name}` has a negative standard error; accepted: at least 0.")
    return [str(row[0]) for row in rows], values[:, 0], values[:, 1]


@styled
def held_out_comparison(
    rows: Sequence[Row],
    differences: Sequence[Row],
    note: str = "",
    *,
    headline: str | None = None,
    hidden: Mapping[str, float] | None = None,
) -> Figure:
    """Held-out log-likelihood of each predictor, and what each gains over the uniform mixture.

    Levels differ from record to record far more than predictors do, so the claim is in the paired
    differences on the right. A difference more than four times the size of the best one is an arrow
    at the edge of the axis, with its value beside it.

    Args:
        rows: (name, mean, standard error) of each predictor, nats per record.
        differences: (name, mean, standard error) of the paired difference to the uniform mixture,
            nats per record; where every name is one of `rows`, the two panels share their rows.
        note: a line of small print, such as the result of doubling the candidates.
        headline: name of the difference that the title is about, chosen before the numbers were
            seen; by default the title is about the largest.
        hidden: by name of a difference, how much of it the candidates are estimated to hide, nats
            per record; an open diamond shows what it would be with all components.

    Raises:
        DataError: if there is no row, a row is not (name, mean, standard error), or `headline` or
            one of `hidden` is the name of no difference.
    """
    names, means, ses = _rows("rows", rows)
    gain_names, gains, gain_ses = _rows("differences", differences)
    if len(set(names)) < len(names):
        raise DataError("`rows` names a predictor twice; accepted: different names.")
    best = int(np.argmax(gains))
    better = gains - 2 * gain_ses > 0
    near = np.abs(gains) <= FAR * max(abs(gains[best]), 2 * gain_ses[best])
    if headline is not None and headline not in gain_names:
        raise DataError(f"`headline` is {headline!r}; accepted: {', '.join(gain_names)}.")
    corrected = gains.copy()
    for name, amount in (hidden or {}).items():
        if name not in gain_names:
            raise DataError(f"`hidden` names {name!r}; accepted: {', '.join(gain_names)}.")
        corrected[gain_names.index(name)] += amount
    about = best if headline is None else gain_names.index(headline)
    digits = _digits(gain_ses[about])
    gain = f"{gains[about]:.{digits}f} ± {gain_ses[about]:.{digits}f} nats"
    name = _spoken(gain_names[about])
    if better[about]:
        title = f"{name} gains {gain} per held-out record over the uniform mixture"
    elif headline is None:
        title = "No predictor is clearly better than the uniform mixture on held-out records"
    else:
        title = f"{name} is not clearly better than the uniform mixture on held-out records"
    title = title[:1].upper() + title[1:]
    shared = set(gain_names) <= set(names)
    figure = new_figure(
        title,
        "Left: mean log-likelihood, bars ± 1 standard error. Right: paired differences, bars ± 2, "
        "blue if above zero.\nNumbers: mean ± 1 standard error."
        + (" Diamonds: with all components, estimated." if hidden else "")
        + ("" if near.all() else " Arrows: beyond the axis."),
        body_height=0.6 + 0.36 * max(len(names), len(gain_names)),
        note=note,
    )
    levels, paired = figure.subplots(1, 2, sharey=shared)
    text_rows(levels)
    places = np.arange(len(names))
    levels.errorbar(means, places, xerr=ses, fmt="o", color=INK, markersize=5, elinewidth=1.2)
    for place, (mean, se) in enumerate(zip(means, ses)):
        _at_right(levels, place, f"{mean:.1f} ± {se:.1f}".replace("-", "−"), INK)
    levels.set_yticks(places, [_spoken(name) for name in names])
    levels.set_ylim(len(names) - 0.5, -0.5)
    levels.set_xlabel("log-likelihood (nats per record)")
    levels.xaxis.set_major_locator(MaxNLocator(nbins=5 if np.abs(means).max() < 1000 else 3))
    if shared:
        gain_places = np.array([names.index(name) for name in gain_names])
    else:
        gain_places = np.arange(len(gain_names))
        paired.set_yticks(gain_places, [_spoken(name) for name in gain_names])
        paired.set_ylim(len(gain_names) - 0.5, -0.5)
    text_rows(paired)
    _gains(paired, gain_places, gains, gain_ses, better, near)
    if hidden:
        shown = near & np.isin(gain_names, list(hidden))
        low, high = paired.get_xlim()
        margin = 0.06 * (high - low)
        paired.scatter(
            corrected[shown],
            gain_places[shown],
            s=42,
            marker="D",
            facecolors="none",
            edgecolors=INK,
            linewidths=0.9,
            zorder=4,
        )
        paired.set_xlim(
            min([low, *(corrected[shown] - margin)]), max([high, *(corrected[shown] + margin)])
        )
    paired.set_xlabel("difference to uniform (nats per record)")
    return figure


def _gains(
    axes: Axes,
    places: np.ndarray,
    gains: np.ndarray,
    ses: np.ndarray,
    better: np.ndarray,
    near: np.ndarray,
) -> None:
    axes.axvline(0.0, color=INK, linewidth=0.9, zorder=1)
    low = min(0.0, float((gains - 2 * ses)[near].min()))
    high = max(0.0, float((gains + 2 * ses)[near].max()))
    span = (high - low) or 1.0
    # Arrows stand in a margin of their own.
    left, right = ((gains[~near] < 0).any(), (gains[~near] > 0).any())
    axes.set_xlim(low - (0.06 + 0.1 * left) * span, high + (0.06 + 0.1 * right) * span)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5 if span > 0.01 else 3))
    for place, gain, se, is_better, is_near in zip(places, gains, ses, better, near):
        colour = BLUE if is_better else GREY
        _at_right(axes, place, f"{signed(gain, _digits(se))} ± {se:.{_digits(se)}f}", colour)
        if is_near:
            axes.errorbar(
                gain, place, xerr=2 * se, fmt="o", color=colour, markersize=5, elinewidth=1.4
            )
        else:
            edge, marker = (0.015, "<") if gain < 0 else (0.985, ">")
            axes.plot(edge, place, marker, color=colour, transform=axes.get_yaxis_transform())


def _at_right(axes: Axes, place: float, text: str, colour: str) -> None:
    """A value in a column of its own, where it cannot collide with a mark."""
    axes.annotate(
        text,
        xy=(1.0, place),
        xycoords=("axes fraction", "data"),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        color=colour,
    )


def _digits(se: float) -> int:
    """Decimals that show a standard error, at least two: gains on closed answers are small."""
    return 2 if se <= 0 else int(np.clip(-np.floor(np.log10(se)), 2, 6))


def _spoken(name: str) -> str:
    return shortened(name.replace("_", " "), 28)


@styled
def candidate_convergence(
    counts: ArrayLike,
    means: ArrayLike,
    ses: ArrayLike,
    *,
    reported: int = -1,
    left: float | None = None,
    passed: bool | None = None,
) -> Figure:
    """Whether enough candidates were scored: the gain over uniform against their number C.

    The log of an importance estimate is biased low, by a term in 1/C that differs between the two
    predictors; a gain that doubling C moves by less than its standard error does not hang on C.

    Args:
        counts: numbers of candidates for each record, increasing, such as C/2, C, 2C; [n], n ≥ 2.
        means: mop − uniform mixture at each, nats per record [n].
        ses: their paired standard errors [n].
        reported: index of the estimate that is reported, whose standard error is the measure.
        left: what the candidates are estimated to hide, nats per record; by default the last move
            stands for it.
        passed: whether they are enough; by default whether `left` is less than the measure.

    Raises:
        DataError: if the shapes differ, counts do not increase or a standard error is negative.
    """
    number = as_array("counts", counts, "n")
    mean = as_array("means", means, "n", n=len(number))
    se = as_array("ses", ses, "n", n=len(number))
    if len(number) < 2 or number[0] <= 0 or (np.diff(number) <= 0).any():
        raise DataError("`counts` must hold at least two positive numbers in increasing order.")
    if (se < 0).any():
        raise DataError("`ses` has a negative standard error; accepted: at least 0.")
    move = mean[-1] - mean[-2]
    claimed, error_of_claim = mean[reported], se[reported]
    little = (abs(move) if left is None else left) < error_of_claim
    settled = little if passed is None else passed
    what = "the last move is"
    if left is not None:
        what = f"what they still hide, by an estimate {left:.3f}, is"
    if settled:
        verdict = f"Settled: {what} less than one standard error."
    elif little:
        verdict = f"Not settled: the last move is far more than an estimate foresees ({left:.3f})."
    else:
        verdict = f"Not settled: {what} at least one standard error; score more candidates."
    figure = new_figure(
        f"From {number[-2]:g} to {number[-1]:g} candidates the gain moves {signed(move, 3)} nats; "
        f"its standard error is {error_of_claim:.3f}",
        "Mixture of personas minus uniform mixture on held-out records, ± 1 standard error, by the "
        f"candidates scored.\n{verdict} Band: the reported estimate ± 1 standard error.",
        body_height=2.7,
    )
    axes = figure.subplots()
    colour = BLUE if settled else VERMILLION
    band = (claimed - error_of_claim, claimed + error_of_claim)
    axes.axhspan(*band, color=FAINT, zorder=0)
    axes.plot(number, mean, color=colour, linewidth=1.2, alpha=0.5)
    axes.errorbar(number, mean, yerr=se, fmt="o", color=colour, markersize=6, elinewidth=1.4)
    for x, y, error in zip(number, mean, se):
        axes.annotate(
            signed(y, 3),
            xy=(x, y + error),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            color=colour,
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(number, [f"{x:g}" for x in number])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.12, y=0.15)
    axes.set_xlabel("candidates per record")
    axes.set_ylabel("gain over uniform (nats per record)")
    return figure
