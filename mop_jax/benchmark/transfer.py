"""Transfer: a gate that was fitted with one language model speaks through another.

Personas and exemplars are those of the first throughout. Beside the transferred gate stand one that
was fitted to the other language model's own scores, and the uniform one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mop_jax import pipeline
from mop_jax.benchmark.ablations import ABLATIONS, variant
from mop_jax.benchmark.responses import Options, Responses
from mop_jax.pipeline import Workspace
from mop_jax.pipeline.simulation import read_simulated

TRANSFERRED = "transferred"
TRANSFERS = {
    TRANSFERRED: "gate of the first model",
    "refitted": "gate fitted on this one",
    "uniform_gate": "uniform gate",
}
"""The rows of table 3 and their titles."""


def respond_transfer(space: Workspace, name: str, folder: Path, options: Options) -> Responses:
    """What the other language model writes.

    Args:
        space: the run with the first language model.
        name: one of `TRANSFERS`.
        folder: where runs with the other one are.
        options: see `Options`; its language model is the other one.
    """
    other = options.language_model
    assert other is not None
    if name == TRANSFERRED:
        path = pipeline.simulate(
            space.config,
            space.path,
            language_model=other,
            update=True,
            on_step=options.on_step,
        )
        found = read_simulated(space, path)
    else:
        made = variant(space, _refitted(space, other), folder / "refitted", options)
        if name == "uniform_gate":
            # The same personas, exemplars and scores.
            made = variant(made, ABLATIONS[name].changes, folder / name, options)
        found = read_simulated(made, made.path / "simulated.jsonl")
    return Responses(found.texts, found.rows, found.shown, {}, found.digest)


def _refitted(space: Workspace, other: str) -> Mapping[str, Mapping[str, Any]]:
    """What differs in a run that is fitted with the other language model."""
    changes: dict[str, dict[str, Any]] = {"language_model": {"path": other}}
    section = space.config.personas
    if section.path is None and section.texts is None:
        # Those that the first language model wrote.
        path = str((space.path / "personas.json").absolute())
        changes["personas"] = {"path": path, "described_from": "clusters"}
    if space.config.prompt.form == "chat":
        changes["prompt"] = {"form": "auto"}  # plain, where it has no chat template
    return changes
