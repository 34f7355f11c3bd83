"""Figures of the gate: which personas speak, at which temperature, and from which exemplars."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike

from mop_jax.errors import DataError
from mop_jax.plots.fonts import numbered
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

INTERVAL = (0.03, 0.97)  # equal-tailed 94 %, as ArviZ's default mass
INNER_INTERVAL = (0.25, 0.75)


@styled
def persona_weights(
    weights: ArrayLike,
    names: Sequence[str],
    *,
    population_label: str,
    temperatures: ArrayLike | None = None,
    max_personas: int = 30,
) -> Figure:
    """How often each persona speaks over the population, and at what temperature.

    A persona's weight is the mean over the records of π_k(x), the paper's mixing weight (§3), so
    one number for each posterior draw; 1/K is the share of every persona under the uniform mixture.
    Personas are sorted by posterior mean. Intervals are equal-tailed.

    Args:
        weights: the mean weight over the population of every draw [S, K]; rows sum to one.
        names: the personas' texts [K].
        population_label: what the mean is taken over, such as "400 training reviews".
        temperatures: τ_k of every draw [S, K]; adds the second panel.
        max_personas: with more personas than this only the heaviest are shown, and it is said so.

    Raises:
        DataError: if a shape does not fit, weights are not a distribution or a τ is not positive.

    Example:
        >>> import numpy as np
        >>> weights = np.random.default_rng(0).dirichlet([30, 20, 10], size=200)
        >>> names = ["warm", "dry", "blunt"]
        >>> figure = persona_weights(weights, names, population_label="9 reviews")
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['warm', 'dry', 'blunt']
    """
    draws = as_array("weights", weights, "S K")
    num_draws, num_personas = draws.shape
    labels = numbered(as_names("names", names, "persona", num_personas))
    if (draws < 0).any() or not np.allclose(draws.sum(axis=1), 1.0, atol=1e-3):
        raise DataError("`weights` must be at least 0 and sum to 1 over the personas of each draw.")
    taus = None
    if temperatures is not None:
        taus = as_array("temperatures", temperatures, "S K", S=num_draws, K=num_personas)
        if (taus <= 0).any():
            raise DataError("`temperatures` must be positive.")
    if max_personas < 1:
        raise DataError(f"`max_personas` is {max_personas}; accepted: at least 1.")
    mean = draws.mean(axis=0)
    order = np.argsort(-mean, kind="stable")[:max_personas]
    uniform = 1.0 / num_personas
    how = (
        "Point: posterior mean; thick and thin: equal-tailed 50% and 94% intervals.\n"
        "Blue where the 94% interval excludes the dashed reference."
        if any(_varies(values) for values in (draws, taus) if values is not None)
        else "Point estimates: no intervals."
    )
    if len(order) < num_personas:
        how += (
            f" The {len(order)} heaviest of {num_personas} personas, with {mean[order].sum():.0%} "
            "of the weight."
        )
    figure = new_figure(
        f"Over {population_label}, persona weights run from {mean.min():.1%} to {mean.max():.1%}; "
        f"uniform is {uniform:.1%}",
        how,
        body_height=0.55 + len(order) * (0.42 if len(order) <= 16 else 0.24),
    )
    panels = figure.subplots(
        1,
        1 if taus is None else 2,
        sharey=True,
        squeeze=False,
        width_ratios=(3, 2)[: 1 + (taus is not None)],
    )[0]
    _interval_rows(panels[0], draws[:, order], reference=uniform, reference_label="uniform 1/K")
    panels[0].set_xlabel("mean weight over the records")
    panels[0].set_xlim(left=0)
    panels[0].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
    lines = 2 if len(order) <= 16 else 1
    panels[0].set_yticks(
        range(len(order)), [shortened(labels[k], 40 if lines == 2 else 48, lines) for k in order]
    )
    if taus is not None:
        _interval_rows(panels[1], taus[:, order], reference=1.0, reference_label="τ = 1")
        panels[1].set_xlabel("temperature τ of the persona")
    return figure


@styled
def persona_shares(
    gate: ArrayLike,
    responsibilities: ArrayLike,
    names: Sequence[str],
    *,
    population_label: str,
    level: float = 0.9,
    max_personas: int = 30,
) -> Figure:
    """Each persona's share of the population: from the gate, and from what people responded.

    The two are `mop_jax.inference.persona_shares`' sources; where they part, the gate does not say
    of contexts what the responses say. Personas are sorted by the gate's share.

    Args:
        gate: mean, low and high of each persona's share by the gate, [K, 3]; means sum to one.
        responsibilities: the same of its share by responsibilities, [K, 3].
        names: the personas' texts [K].
        population_label: what the population is, such as "400 training reviews".
        level: of the intervals.
        max_personas: with more personas than this only the largest are shown, and it is said so.

    Raises:
        DataError: if a shape does not fit, or shares are none.

    Example:
        >>> shares = [[0.6, 0.5, 0.7], [0.4, 0.3, 0.5]]
        >>> figure = persona_shares(shares, shares, ["warm", "dry"], population_label="9 reviews")
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['warm', 'dry']
    """
    would = as_array("gate", gate, "K 3", **{"3": 3})
    num_personas = len(would)
    did = as_array("responsibilities", responsibilities, "K 3", K=num_personas, **{"3": 3})
    labels = numbered(as_names("names", names, "persona", num_personas))
    for name, shares in (("gate", would), ("responsibilities", did)):
        inside = ((shares >= 0) & (shares <= 1)).all() and (shares[:, 1] <= shares[:, 2]).all()
        if not inside or not np.isclose(shares[:, 0].sum(), 1.0, atol=1e-3):
            raise DataError(
                f"`{name}` must hold mean, low and high from 0 to 1, with means that sum to 1."
            )
    if not 0 < level < 1:
        raise DataError(f"`level` is {level}; accepted: between 0 and 1.")
    if max_personas < 1:
        raise DataError(f"`max_personas` is {max_personas}; accepted: at least 1.")
    order = np.argsort(-would[:, 0], kind="stable")[:max_personas]
    apart = 100 * np.abs(would[:, 0] - did[:, 0]).max()
    ends = np.concatenate([would, did])
    how = "Blue circles: by the gate, who would speak. Orange diamonds: by responses, who did. "
    how += (
        f"Lines: {level:.0%} intervals."
        if (ends[:, 1] < ends[:, 2]).any()
        else "Point estimates: no intervals."
    )
    if len(order) < num_personas:
        how += (
            f"\nThe {len(order)} largest of {num_personas} personas, with "
            f"{would[order, 0].sum():.0%} of the population by the gate."
        )
    figure = new_figure(
        f"Of {population_label}, personas speak for {would[:, 0].min():.1%} to "
        f"{would[:, 0].max():.1%}; gate and responses differ by up to {apart:.1f} points",
        how,
        body_height=0.55 + len(order) * (0.42 if len(order) <= 16 else 0.3),
    )
    axes = figure.subplots()
    text_rows(axes)
    uniform = 1.0 / num_personas
    _reference_line(axes, uniform, "uniform 1/K")
    rows = np.arange(len(order))
    for label, shares, shift, colour, marker in (
        ("gate", would, -0.15, BLUE, "o"),
        ("responsibilities", did, 0.15, VERMILLION, "D"),
    ):
        mean, low, high = shares[order].T
        axes.hlines(rows + shift, low, high, colors=colour, linewidth=1.6, label=label)
        axes.scatter(
            mean,
            rows + shift,
            s=26 if marker == "o" else 22,
            marker=marker,
            c=colour,
            edgecolors="white",
            linewidths=0.8,
            zorder=3,
        )
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel("share of the population")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
    lines = 2 if len(order) <= 16 else 1
    axes.set_yticks(rows, [shortened(labels[k], 48, lines) for k in order])
    return figure


def _varies(draws: np.ndarray) -> bool:
    """Whether draws [S, K] differ; a point estimate may come as many, equal but for rounding."""
    return not np.allclose(draws, draws[0], rtol=1e-5, atol=0.0)


def _interval_rows(
    axes: Axes, draws: np.ndarray, *, reference: float, reference_label: str
) -> None:
    """One row for each column of `draws` [S, rows], the first on top."""
    rows = np.arange(draws.shape[1])
    outer = np.quantile(draws, INTERVAL, axis=0)
    inner = np.quantile(draws, INNER_INTERVAL, axis=0)
    excludes = (outer[0] > reference) | (outer[1] < reference)
    excludes &= _varies(draws)
    colours = np.where(excludes, BLUE, GREY).tolist()
    text_rows(axes)
    _reference_line(axes, reference, reference_label)
    axes.hlines(rows, outer[0], outer[1], colors=colours, linewidth=1.1, label="94%")
    axes.hlines(rows, inner[0], inner[1], colors=colours, linewidth=3.6, label="50%")
    axes.scatter(
        draws.mean(axis=0), rows, s=30, c=colours, edgecolors="white", linewidths=0.9, zorder=3
    )
    axes.set_ylim(len(rows) - 0.5, -0.5)


def _reference_line(axes: Axes, reference: float, label: str) -> None:
    axes.axvline(reference, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    axes.annotate(
        label,
        xy=(reference, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        fontsize=8,
        color=INK,
    )


@styled
def omega_heatmap(
    omega: ArrayLike,
    persona_names: Sequence[str],
    record_names: Sequence[str],
    exemplar_names: Sequence[str],
    *,
    max_exemplars: int = 48,
    note: str = "",
) -> Figure:
    """Which exemplars a few personas use in a few contexts: Ω_kj(x), relative to uniform.

    Colour is log2(Ω·J), one scale for all panels, symmetric around the uniform share 1/J and
    reaching to the 99th percentile of its size, so that one extreme cell does not pale the others.
    Exemplars stand in the order of their mean Ω, the most used on the left. Cells where Ω is zero
    (left-out exemplars) are grey.

    Args:
        omega: exemplar weights [P, R, J] of P personas, R contexts, J exemplars; the last
            dimension sums to one (paper §3).
        persona_names: [P].
        record_names: [R], the contexts.
        exemplar_names: [J].
        max_exemplars: with more exemplars only the most used are shown, and it is said so.
        note: a sentence to add above the panels, such as how these personas were chosen.

    Raises:
        DataError: if a shape does not fit or Ω is not a distribution over the exemplars.
    """
    table = as_array("omega", omega, "P R J")
    num_panels, num_rows, num_exemplars = table.shape
    personas = numbered(as_names("persona_names", persona_names, "persona of `omega`", num_panels))
    records = as_names("record_names", record_names, "context of `omega`", num_rows)
    exemplars = numbered(
        as_names("exemplar_names", exemplar_names, "exemplar of `omega`", num_exemplars)
    )
    if (table < 0).any() or not np.allclose(table.sum(axis=-1), 1.0, atol=1e-3):
        raise DataError("`omega` must be at least 0 and sum to 1 over the exemplars.")
    if max_exemplars < 1:
        raise DataError(f"`max_exemplars` is {max_exemplars}; accepted: at least 1.")
    mean = table.mean(axis=(0, 1))
    order = np.argsort(-mean, kind="stable")[:max_exemplars]
    allowed = table > 0
    ratio = np.full(table.shape, np.nan)
    ratio[allowed] = np.log2(table[allowed] * num_exemplars)
    shown = ratio[..., order]
    sizes = np.abs(shown[np.isfinite(shown)])
    # At least a quarter of a doubling: below that the picture would be made of noise.
    limit = max(0.25, float(np.quantile(sizes, 0.99)) if sizes.size else 0.0)
    how = "Rows: contexts; columns: exemplars, the most used on the left."
    if not allowed.all():
        how += " Grey: left out (never its own exemplar)."
    if len(order) < num_exemplars:
        how += (
            f" The {len(order)} most used of {num_exemplars} exemplars, with "
            f"{mean[order].sum():.0%} of the weight."
        )
    if note:
        how += f" {note}"
    figure = new_figure(
        f"Exemplars get from {2 ** np.nanmin(ratio):.2g} to {2 ** np.nanmax(ratio):.2g} times "
        f"their uniform share of 1/{num_exemplars}",
        how,
        body_height=num_panels * (0.3 * num_rows + 0.3) + 1.75,
    )
    panels = figure.subplots(num_panels, 1, sharex=True, squeeze=False)[:, 0]
    for axes, values, persona in zip(panels, shown, personas):
        axes.set_facecolor("#B0B0B0")
        mesh = axes.pcolormesh(
            np.ma.masked_invalid(values),
            cmap="RdBu_r",
            vmin=-limit,
            vmax=limit,
            edgecolors="white",
            linewidth=0.4,
        )
        axes.invert_yaxis()
        axes.set_title(shortened(persona, 92))
        axes.set_yticks(
            np.arange(num_rows) + 0.5, [shortened(name, 32, 2) for name in records], fontsize=7.5
        )
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    panels[-1].set_xticks(
        np.arange(len(order)) + 0.5,
        [shortened(exemplars[j], 32) for j in order],
        rotation=90,
        fontsize=7,
    )
    beyond = (bool((shown < -limit).any()), bool((shown > limit).any()))
    extend = {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[beyond]
    bar = figure.colorbar(mesh, ax=list(panels), aspect=40, pad=0.015, fraction=0.03, extend=extend)
    bar.set_label("times the uniform share (log scale)")
    bar.locator = MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=limit >= 1)
    bar.formatter = FuncFormatter(_times)
    bar.update_ticks()
    bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


def _times(log_ratio: float, _: object = None) -> str:
    """2 to the power of a tick, as a fraction where it is one: 4×, 1/16×, 1.19×."""
    if log_ratio < 0 and log_ratio == round(log_ratio):
        return f"1/{2**-log_ratio:.3g}×"
    return f"{2**log_ratio:.3g}×"
