"""Figures of likeness: does what a fit simulates look like what people wrote?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from numpy.typing import ArrayLike

from mop_jax.errors import DataError
from mop_jax.plots.fonts import numbered
from mop_jax.plots.style import (
    BLUE,
    VERMILLION,
    as_array,
    as_names,
    new_figure,
    shortened,
    styled,
)

ELLIPSE_SDS = 2.0
MIN_POINTS = 3  # two always lie on a line


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
    titles = numbered([label for label, _ in panels])
    for axes, label, (_, pair) in zip(grid.flat, titles, panels):
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


@styled
def effective_sizes(
    sizes: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike, float, float]],
    *,
    num_simulated: int,
) -> Figure:
    """How the error of n real responses falls, and where it meets the simulation's.

    Args:
        sizes: what is estimated → numbers of real responses [S], their mean error [S], its standard
            deviation over samples [S], the simulation's error, and the number of real responses
            with that error (0: worse than the fewest; ∞: better than all).
        num_simulated: responses of the simulation.

    Raises:
        DataError: if there is nothing to draw, or shapes differ.
    """
    if not sizes:
        raise DataError("`sizes` is empty; accepted: at least one estimated quantity.")
    worth = [
        f"{'more than ' + str(np.asarray(n).max()) if np.isinf(size) else f'{size:.0f}'} of {name}"
        for name, (n, _, _, _, size) in sizes.items()
    ]
    figure = new_figure(
        f"{num_simulated} simulated responses tell as much as real ones: {', '.join(worth)}",
        "Error of n real training responses, to other contexts, against the held-out ones: mean "
        "and standard deviation over random samples;\n"
        "horizontal: that of the simulated responses to the held-out contexts.",
        body_height=2.6,
    )
    panels = figure.subplots(1, len(sizes), squeeze=False)[0]
    for axes, (name, (numbers, errors, spread, simulated, _)) in zip(panels, sizes.items()):
        n, error = as_array("numbers", numbers, "S"), as_array("errors", errors, "S")
        sd = as_array("spread", spread, "S", S=len(n))
        axes.fill_between(n, error - sd, error + sd, color=BLUE, alpha=0.2, linewidth=0)
        axes.plot(n, error, color=BLUE, linewidth=1.4, label="n real responses")
        axes.axhline(simulated, color=VERMILLION, linewidth=1.4, label="simulation")
        axes.set(xscale="log", xlabel="n real responses", title=name)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=8)
    return figure
