"""What a drawn figure says: its title, panels, labels and points."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, QuadMesh
from matplotlib.figure import Figure


def title(figure: Figure) -> str:
    return figure.texts[0].get_text().replace("\n", " ")


def panels(figure: Figure) -> list[Any]:
    """The axes; untyped, since matplotlib's types hide what a panel's collections are."""
    return list(figure.axes)


def mesh_of(axes: Axes) -> Any:
    (mesh,) = (c for c in axes.collections if isinstance(c, QuadMesh))
    return mesh


def offsets(axes: Axes) -> list[np.ndarray]:
    """Positions of every scatter in the order drawn."""
    scatters = [c for c in axes.collections if not isinstance(c, LineCollection | QuadMesh)]
    return [np.asarray(c.get_offsets()) for c in scatters]


def y_labels(axes: Axes) -> list[str]:
    return [label.get_text() for label in axes.get_yticklabels()]


def notes(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]
