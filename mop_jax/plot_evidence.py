"""Figures of evidence: does the fit predict held-out records, does what it simulates look real?

Public names are re-exported by `mop_jax.plots`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy.typing import ArrayLike

from mop_jax.errors import DataError
from mop_jax.plot_style import (
    BLUE,
    FAINT,
    GREY,
    INK,
    VERMILLION,
    as_array,
    as_names,
    new_figure,
    shortened,
    signed,
    styled,
    text_rows,
)

ELLIPSE_SDS = 2.0
MIN_POINTS = 3  # two always lie on a line
# Differences further off than this many times the best one are arrows at the edge of the axis.
FAR = 4.0


class GaussianEllipse(NamedTuple):
    """The points at a Mahalanobis distance of 2 from the mean of a cloud in the plane."""

    centre: np.ndarray  # [2]
    axes: np.ndarray  # lengths of the two semi-axes, the longer first, [2]
    angle: float  # of the longer axis, degrees from the first coordinate
    covariance: np.ndarray  # [2, 2]

    def box(self) -> np.ndarray:
        """Lower left and upper right corner of the box around it, [2, 2]."""
        reach = ELLIPSE_SDS * np.sqrt(np.diag(self.covariance))
        return np.stack([self.centre - reach, self.centre + reach])

    def distance(self, points: np.ndarray) -> np.ndarray:
        """Mahalanobis distance of `points` [n, 2] from the centre, standard deviations [n].

        1 − e⁻² = 86.5 % of a Gaussian cloud lie within 2, which is inside the ellipse.
        """
        offset = points - self.centre
        # The pseudo-inverse also serves clouds on a line.
        inverse = np.linalg.pinv(self.covariance)
        return np.sqrt(np.einsum("ni,ij,nj->n", offset, inverse, offset))


def gaussian_ellipse(points: np.ndarray) -> GaussianEllipse:
    """The 2-standard-deviation ellipse of `points` [n, 2], n ≥ 3, from their covariance."""
    covariance = np.cov(points, rowvar=False)
    values, vectors = np.linalg.eigh(covariance)
    long = vectors[:, 1]
    return GaussianEllipse(
        centre=points.mean(axis=0),
        axes=ELLIPSE_SDS * np.sqrt(np.maximum(values[::-1], 0.0)),
        angle=float(np.degrees(np.arctan2(long[1], long[0]))),
        covariance=covariance,
    )


@styled
def embedding_map(
    real: ArrayLike,
    simulated: ArrayLike,
    *,
    real_labels: Sequence[str] | None = None,
    simulated_labels: Sequence[str] | None = None,
    max_labels: int = 5,
    reference: ArrayLike | None = None,
    reference_name: str = "other real responses",
) -> Figure:
    """Real and simulated responses in the plane of the real ones' two main directions.

    Principal components are fitted on the real embeddings alone: simulated responses cannot bend
    the plane towards themselves. Each cloud has its centre and its 2-standard-deviation ellipse.
    The title compares the ellipses' areas; it or the caption says how far the simulated centre lies
    from the real one, in standard deviations of the real cloud in that direction (Mahalanobis).

    Args:
        real: embeddings of the real responses [N, D], N at least 3.
        simulated: embeddings of the simulated responses [M, D].
        real_labels: a label for each real response [N]; with both, one panel for each label.
        simulated_labels: a label for each simulated response [M].
        max_labels: panels for at most this many labels, the commonest among the real.
        reference: embeddings [R, D] of responses that ought to look like the real ones, such as
            training records; title and caption give the same two numbers for them.
        reference_name: what they are.

    Raises:
        DataError: if a shape does not fit, or only one of the two has labels.
    """
    from sklearn.decomposition import PCA  # slow to import, and needed by this figure alone

    real_array = as_array("real", real, "N D")
    num_real, width = real_array.shape
    if num_real < MIN_POINTS or width < 2:
        raise DataError(
            f"`real` has shape {[num_real, width]}; accepted: at least 3 records, 2 dimensions."
        )
    if not np.ptp(real_array, axis=0).any():
        raise DataError("`real` holds one embedding only; accepted: at least two different ones.")
    simulated_array = as_array("simulated", simulated, "M D", D=width)
    if (real_labels is None) != (simulated_labels is None):
        raise DataError("`real_labels` and `simulated_labels` go together: give both or neither.")
    projection = PCA(n_components=2, svd_solver="full").fit(real_array)
    clouds = (projection.transform(real_array), projection.transform(simulated_array))
    compared = None
    if reference is not None:
        others = projection.transform(as_array("reference", reference, "R D", D=width))
        compared = _compared(clouds[0], others)
    panels: list[tuple[str, tuple[np.ndarray, np.ndarray]]] = [("All", clouds)]
    if real_labels is not None and simulated_labels is not None:
        of_real = as_names("real_labels", real_labels, "real response", num_real)
        of_simulated = as_names(
            "simulated_labels", simulated_labels, "simulated response", len(simulated_array)
        )
        for label, _ in Counter(sorted(of_real)).most_common(max_labels):
            masks = (np.array(of_real) == label, np.array(of_simulated) == label)
            panels.append((label, (clouds[0][masks[0]], clouds[1][masks[1]])))
    columns = {1: 1, 2: 2, 4: 2}.get(len(panels), 3)
    rows = -(-len(panels) // columns)
    panel_height = {1: 4.8, 2: 3.6, 3: 2.6}[columns]
    figure = new_figure(
        *_likeness(clouds, compared, reference_name),
        body_height=rows * (panel_height + 0.25) + 0.35,
    )
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, (label, pair) in zip(grid.flat, panels):
        if len(panels) > 1:
            axes.set_title(shortened(label, 40))
        _clouds(axes, pair)
    shares = projection.explained_variance_ratio_
    for axes in grid.flat[len(panels) - columns : len(panels)]:  # those with nothing beneath
        axes.set_xlabel(f"component 1 ({shares[0]:.0%} of variance)")
        axes.tick_params(labelbottom=True)
    for axes in grid[:, 0]:
        axes.set_ylabel(f"component 2 ({shares[1]:.0%} of variance)")
    # Only a first layout tells the shape that the panels get: fill it at one scale for x and y.
    figure.draw_without_rendering()
    box = grid[0, 0].get_window_extent()
    drawn = [cloud for _, pair in panels for cloud in pair]
    boxes = [gaussian_ellipse(cloud).box() for cloud in drawn if len(cloud) >= MIN_POINTS]
    limits = _equal_limits(np.concatenate([*clouds, *boxes]), box.width / box.height)
    for axes in grid.flat:
        axes.set(xlim=limits[0], ylim=limits[1], aspect="equal")
    return figure


def _likeness(
    clouds: tuple[np.ndarray, np.ndarray], reference: tuple[float, float] | None, name: str
) -> tuple[str, str]:
    """Title and small print: how much of the spread is there, and how far apart the centres are.

    Not the share of simulated responses inside the real ellipse: that rewards a collapsed cloud.
    The axes were fitted to the real responses, so that any other cloud is smaller on them: what is
    small is to be seen beside other real responses.
    """
    how = (
        "Sentence embeddings on the first two principal components of the real responses.\n"
        "Ellipses: 2 sd, which hold 86.5% of a Gaussian cloud; crosses: centres."
    )
    compared = _compared(*clouds)
    if compared is None:
        return "Real and simulated responses in embedding space", how
    area, off = compared
    title = f"The simulated ellipse has {area:.2f} times the real one's area"
    if reference is None:
        return f"{title}, its centre {off:.2f} sd away", how
    how += f" Centres: simulated {off:.2f} sd from the real one, {name} {reference[1]:.2f}."
    return f"{title}; that of {name} {reference[0]:.2f}", how


def _compared(real: np.ndarray, other: np.ndarray) -> tuple[float, float] | None:
    """Area of the other ellipse as a share of the real one's, and how far off its centre is."""
    ellipse = gaussian_ellipse(real)
    if len(other) < MIN_POINTS or ellipse.axes.min() <= 1e-9 * ellipse.axes.max():
        return None
    of_other = gaussian_ellipse(other)
    area = float(np.prod(of_other.axes / ellipse.axes))
    return area, float(ellipse.distance(of_other.centre[None])[0])


def _equal_limits(points: np.ndarray, shape: float) -> list[tuple[float, float]]:
    """Limits that hold `points` [n, 2] at one scale in a panel `shape` times as wide as high."""
    low, high = points.min(axis=0), points.max(axis=0)
    high[1] += 0.13 * (high[1] - low[1])  # room for the names
    scale = max((high[0] - low[0]) / shape, high[1] - low[1], 1e-9)
    half = 0.55 * scale * np.array([shape, 1.0])
    middle = (low + high) / 2
    return [(float(m - h), float(m + h)) for m, h in zip(middle, half)]


def _clouds(axes: Axes, pair: tuple[np.ndarray, np.ndarray]) -> None:
    names = ("real", "simulated")
    for place, (name, cloud, colour) in enumerate(zip(names, pair, (BLUE, VERMILLION))):
        alpha = float(np.clip(8.0 / np.sqrt(max(len(cloud), 1)), 0.15, 0.6))
        axes.scatter(
            cloud[:, 0], cloud[:, 1], s=9, color=colour, alpha=alpha, linewidths=0, label=name
        )
        axes.annotate(
            f"● {name} ({len(cloud):,})",
            xy=(0.02, 0.985),
            xycoords="axes fraction",
            xytext=(0, -11 * place),
            textcoords="offset points",
            va="top",
            color=colour,
            fontsize=8,
        )
        if len(cloud) < MIN_POINTS:
            continue
        ellipse = gaussian_ellipse(cloud)
        axes.add_patch(
            Ellipse(
                xy=tuple(ellipse.centre),
                width=2 * ellipse.axes[0],
                height=2 * ellipse.axes[1],
                angle=ellipse.angle,
                fill=False,
                edgecolor=colour,
                linewidth=1.6,
            )
        )
        x, y = ellipse.centre
        axes.scatter(x, y, marker="P", s=60, color=colour, edgecolors="white", zorder=4)


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
    rows: Sequence[Row], differences: Sequence[Row], note: str = "", *, headline: str | None = None
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

    Raises:
        DataError: if there is no row, a row is not (name, mean, standard error), or `headline` is
            the name of no difference.
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
    about = best if headline is None else gain_names.index(headline)
    name, gain = _spoken(gain_names[about]), f"{gains[about]:.2f} ± {gain_ses[about]:.2f} nats"
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
    levels.xaxis.set_major_locator(MaxNLocator(nbins=5))
    if shared:
        gain_places = np.array([names.index(name) for name in gain_names])
    else:
        gain_places = np.arange(len(gain_names))
        paired.set_yticks(gain_places, [_spoken(name) for name in gain_names])
        paired.set_ylim(len(gain_names) - 0.5, -0.5)
    text_rows(paired)
    _gains(paired, gain_places, gains, gain_ses, better, near)
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
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    for place, gain, se, is_better, is_near in zip(places, gains, ses, better, near):
        colour = BLUE if is_better else GREY
        _at_right(axes, place, f"{signed(gain)} ± {se:.2f}", colour)
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


def _spoken(name: str) -> str:
    return shortened(name.replace("_", " "), 28)


@styled
def candidate_check(
    counts: ArrayLike, means: ArrayLike, ses: ArrayLike, *, reported: int = -1
) -> Figure:
    """Whether enough candidates were scored: the gain over uniform against their number C.

    The log of an importance estimate is biased low, by a term in 1/C that differs between the two
    predictors; a gain that doubling C moves by less than its standard error does not hang on C.

    Args:
        counts: numbers of candidates for each record, increasing, such as C/2, C, 2C; [n], n ≥ 2.
        means: mop − uniform mixture at each, nats per record [n].
        ses: their paired standard errors [n].
        reported: index of the estimate that is reported, whose standard error is the measure.

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
    settled = abs(move) < error_of_claim
    verdict = (
        "Settled: the last move is less than one standard error."
        if settled
        else "Not settled: the last move is at least one standard error; score more candidates."
    )
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
