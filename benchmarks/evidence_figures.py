"""Figures of docs/evidence.md, from the reports of `calibration.py` and `estimators.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from mop_jax.plots.style import BLUE, FAINT, GREY, INK, PALE, VERMILLION, new_figure, styled

LOOKS = {
    "importance": (BLUE, "o", "importance"),
    "renormalised": (INK, "s", "renormalised"),
    "zero-filled": (VERMILLION, "D", "zero-filled bound"),
}


@styled
def estimators_figure(report: dict[str, Any], proposals: list[str]) -> Figure:
    """Bias, held-out gain and imitation by C; a row of panels for each of two proposals."""
    figure = new_figure(
        "The zero-filled bound makes gates imitate how candidates were chosen; importance weights "
        "do so only while candidates are few",
        "Gates fitted to C of 48 components, drawn by similarity (rows) or by chance (grey).\n"
        "Left: log p̂ − log p at a fixed gate, bars ± 1 sd over draws. Middle: held-out gain, all "
        "components counted.\nRight: slope of log Ω on the proposal's log-probabilities, less that "
        "of gates from uniform candidates; 1 would copy it. Bars ± 1 standard error.",
        body_height=4.6,
    )
    panels = figure.subplots(2, 3, sharex=True, sharey="col")
    for line, proposal in zip(panels, proposals, strict=True):
        _lines(line[0], report, proposal, "bias", "sd")
        _lines(line[1], report, proposal, "gain", "gain_se")
        _lines(line[2], report, proposal, "imitation", "imitation_se")
        line[0].set_ylabel(f"{proposal}\nbias of log p̂ (nats)")
        line[1].set_ylabel("gain over uniform (nats)")
        line[2].set_ylabel("imitation of the proposal")
        line[0].axhline(0, color=PALE, linewidth=0.9, zorder=0)
        line[1].axhline(report["full"]["gain"], color=INK, linestyle=":", linewidth=0.9, zorder=0)
        line[1].axhline(0, color=PALE, linewidth=0.9, zorder=0)
        line[2].axhline(0, color=PALE, linewidth=0.9, zorder=0)
    panels[0, 1].annotate(
        "all 48 scored",
        (0.0, report["full"]["gain"]),
        xycoords=("axes fraction", "data"),
        xytext=(4, 3),
        textcoords="offset points",
        fontsize=8,
    )
    panels[0, 0].legend(frameon=False, fontsize=8, loc="lower right")
    counts = sorted({row["count"] for row in report["rows"]})
    for axes in panels[1]:
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("candidates per record, C")
    return figure


def _lines(axes: Axes, report: dict[str, Any], proposal: str, name: str, error: str) -> None:
    looks = [(proposal, key, *look) for key, look in LOOKS.items()]
    if name != "imitation":
        looks.insert(0, ("uniform", "importance", GREY, ".", "uniform, importance"))
    for place, (drawn, estimator, colour, marker, label) in enumerate(looks):
        rows = [r for r in report["rows"] if (r["proposal"], r["estimator"]) == (drawn, estimator)]
        axes.errorbar(
            # Side by side, so that bars do not hide one another.
            [row["count"] * 2 ** (0.07 * (place - 1.5)) for row in rows],
            [(row | row["mode"])[name] for row in rows],
            yerr=[(row | row["mode"])[error] for row in rows],
            color=colour,
            marker=marker,
            markersize=4,
            linewidth=1.1,
            elinewidth=0.9,
            label=label,
        )


# 99 % of Kolmogorov's statistic, times the root of the number of data sets.
_KOLMOGOROV = 1.628
_COLOURS = {"gate": BLUE, "temperature": VERMILLION, "other": INK}


def _kind(quantity: str) -> str:
    if quantity.startswith("log π"):
        return "gate"
    return "temperature" if "τ" in quantity or "temperature" in quantity else "other"


@styled
def calibration_figure(report: dict[str, Any], guides: list[str]) -> Figure:
    """How far positions in posteriors are from uniform, and what intervals cover."""
    methods = ["NUTS", *guides]
    figure = new_figure(
        "Likelihoods and NUTS are calibrated; AutoNormal is far too sure of temperatures",
        "Share of data sets whose true value lies below a quantile of its posterior, less what it "
        "should be: a line a quantity.\nGate blue, temperatures vermillion, others black. Band: 99 "
        "% of lines if posteriors are right. An S: too narrow.\n"
        "Last panel: coverage of 90 % (filled) and 50 % intervals on the same 60 data sets.",
        body_height=4.4,
    )
    panels = figure.subplots(2, 3)
    exact = [row for name, row in report.items() if name.startswith("exact")]
    titles = [f"exact posteriors of {len(exact)} models", *methods]
    rows = [exact, *([report[name]] for name in methods)]
    for number, (axes, title) in enumerate(zip(panels.ravel(), titles, strict=False)):
        _ecdf_differences(axes, rows[number])
        axes.set_title(title)
        if number % 3:
            axes.tick_params(labelleft=False)
        else:
            axes.set_ylabel("share below − expected")
    _coverage(panels[1, 2], report, ["NUTS, as guides", *guides])
    return figure


def _ecdf_differences(axes: Axes, rows: list[dict[str, Any]]) -> None:
    number = rows[0]["data_sets"]
    band = _KOLMOGOROV / number**0.5
    axes.axhspan(-band, band, color=FAINT, zorder=0)
    for row in rows:
        for name, counts in row["histograms"].items():
            share = np.concatenate([[0.0], np.cumsum(counts) / number])
            at = np.linspace(0, 1, len(share))
            axes.plot(at, share - at, color=_COLOURS[_kind(name)], linewidth=0.7, alpha=0.7)
    axes.text(0.02, 0.03, f"{number:,} data sets", transform=axes.transAxes, color=GREY, fontsize=8)
    axes.set_xlabel("quantile of the posterior")
    axes.set_ylim(-0.42, 0.42)


def _coverage(axes: Axes, report: dict[str, Any], methods: list[str]) -> None:
    looks = {0.5: {"markerfacecolor": "white"}, 0.9: {}}
    for level, look in looks.items():
        axes.axvline(level, color=GREY, linewidth=0.7, zorder=0)
        for place, method in enumerate(methods):
            for offset, (group, colour) in zip((-0.2, 0.0, 0.2), _COLOURS.items(), strict=True):
                value, error = report[method][group][f"coverage_{level}"]
                axes.errorbar(
                    value,
                    place + offset,
                    xerr=error,
                    fmt="o",
                    color=colour,
                    markersize=3.5,
                    elinewidth=1,
                    **look,
                )
    names = ["NUTS", "Whitened", "LowRank", "Normal"]
    axes.set_yticks(range(len(methods)), names)
    axes.yaxis.tick_right()
    axes.spines["right"].set_visible(True)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.set_xlabel("coverage, ± 1 standard error")
