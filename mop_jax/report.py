"""The figures and the table of a run, from its artefacts alone."""

from __future__ import annotations

from mop_jax.workspace import Workspace


def draw_figures(space: Workspace) -> None:
    """Draws figures/*.png."""
    raise SystemExit
