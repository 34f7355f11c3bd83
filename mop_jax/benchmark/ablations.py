"""Ablations of the mixture: each a change of its configuration, and a rerun of what it changes.

An ablation is one entry of `ABLATIONS`. Its run lies beside the full mixture's: finished steps that
the change does not concern are taken over from there, and all of them share one likelihood store,
so that no pair of record and component is scored twice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mop_jax.benchmark.responses import Options, Responses
from mop_jax.config import RunConfig
from mop_jax.config.validation import explain, place_of
from mop_jax.errors import DataError
from mop_jax.evaluation.metrics import Metric
from mop_jax.evaluation.metrics.log_prob import held_out_log_prob
from mop_jax.evaluation.predictors import MAIN
from mop_jax.pipeline import Workspace
from mop_jax.pipeline.pipeline import workspace_after
from mop_jax.pipeline.simulation import read_simulated
from mop_jax.registry import check_name

FULL = "full"
"""The ablation that changes nothing: the mixture as it is configured."""
GAIN = Metric(
    name="held_out_gain",
    title="gain over the uniform mixture of its own components, nats per record",
    # Of paired differences of log-probabilities.
    function=held_out_log_prob,
    direction="higher",
    range=(-math.inf, math.inf),
    reference="Good (1952)",
)
"""Held-out log-probability less that of the uniform mixture over the same components at τ = 1.

Variants with other personas or exemplars have another uniform mixture: between them compare the
log-probabilities themselves.
"""

NEUTRAL_PERSONA = "You are a person."
# The grid of a run ends at τ = 0.615; the paper's fits start at 0.6.
_GRID_FROM_PAPER = {"step": 0.125, "multiples": [14, 13, 12, 11, 10, 9, 8, 7, 6, 5]}


@dataclass(frozen=True)
class Ablation:
    """A variant of the mixture.

    Attributes:
        name: in files: letters, digits and underscores.
        title: in tables and figures.
        definition: what exactly it is, in a sentence without its first word's capital.
        changes: of the configuration, section → field → value.
        has_log_prob: whether the density of held-out responses is defined and evaluated.
    """

    name: str
    title: str
    definition: str
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    has_log_prob: bool = True


ABLATIONS: dict[str, Ablation] = {}
"""Every ablation by name, in the order of tables and figures."""


def register(ablation: Ablation) -> None:
    """Adds an ablation to the rows of table 4.

    Raises:
        DataError: if its name is taken or no plain word.
    """
    check_name("ablation", ablation.name, ABLATIONS)
    ABLATIONS[ablation.name] = ablation


def changed(config: RunConfig, changes: Mapping[str, Mapping[str, Any]]) -> RunConfig:
    """A configuration with other values of some fields.

    Raises:
        DataError: if it may not have them; names the first field.
    """
    values = config.model_dump(mode="json")
    for section, fields in changes.items():
        values[section] = {**values[section], **fields}
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, place_of(first, RunConfig))) or "the configuration"
        raise DataError(f"{where}: {explain(first, RunConfig)}.") from error


def variant(
    space: Workspace,
    changes: Mapping[str, Mapping[str, Any]],
    path: Path,
    options: Options,
    *,
    evaluated: bool = False,
) -> Workspace:
    """A run that differs in some fields, done as far as it is not.

    Args:
        space: the run that it differs from, and whose steps and scores it takes over.
        changes: see `changed`. Personas made anew are as many as those of `space`, or as its
            clusters where its personas are texts, so that the exemplar pool stays the same.
        path: its run folder.
        options: see `Options`.
        evaluated: whether held-out records are evaluated, too.

    Raises:
        DataError: if the configuration cannot be changed like this.
    """
    wanted = dict(changes)
    if "personas" in wanted:
        section = space.config.personas
        number = len(space.components.personas) if section.texts is None else section.num_personas
        wanted["personas"] = {"num_personas": number, **wanted["personas"]}
    steps = ("evaluate", "simulate") if evaluated else ("simulate",)
    config = changed(space.config, wanted)
    return workspace_after(steps, config, path, beside=space, on_step=options.on_step)


def respond_ablation(space: Workspace, name: str, folder: Path, options: Options) -> Responses:
    """What an ablation writes, and its log-probability of the held-out responses.

    Args:
        space: the full mixture's run, evaluated and simulated.
        name: one of `ABLATIONS`.
        folder: where the ablations' runs are.
        options: see `Options`.
    """
    ablation = ABLATIONS[name]
    made = space
    if ablation.changes:
        evaluated = ablation.has_log_prob
        made = variant(space, ablation.changes, folder / name, options, evaluated=evaluated)
    found = read_simulated(made, made.path / "simulated.jsonl")
    held_out, notes = _held_out(made.path, ablation) if ablation.has_log_prob else ({}, ())
    return Responses(found.texts, found.rows, found.shown, {}, found.digest, held_out, notes)


def _held_out(path: Path, ablation: Ablation) -> tuple[dict[str, dict[str, Any]], tuple[str, ...]]:
    """Values with 95 % intervals from a run's `metrics.json`, and what to know of them."""
    metrics = json.loads((path / "metrics.json").read_text("utf-8"))
    summary, check = metrics["held_out"], metrics["candidate_check"]

    def row(estimate: Mapping[str, float]) -> dict[str, Any]:
        mean, half = estimate["mean"], 1.96 * estimate["se"]
        return {
            "value": mean,
            "low": mean - half,
            "high": mean + half,
            "floor": None,
            "n": metrics["num_held_out"],
        }

    rows = {
        "held_out_log_prob": row(summary[MAIN]),
        GAIN.name: row(summary[f"{MAIN}_minus_uniform"]),
    }
    notes = []
    fit = metrics["fit"][MAIN]
    if not fit["converged"]:
        notes.append(f"{ablation.title}: the fit is not known to have settled. {fit['reason']}")
    # Candidates of a renormalised mixture are part of the model: half of them are another one.
    renormalised = ablation.changes.get("candidates", {}).get("method") == "renormalised"
    if check["passed"] or renormalised:
        return rows, tuple(notes)
    notes.append(
        f"{ablation.title}: halving its {check['candidates']} held-out candidates moves the gain "
        f"by {check['moved']:+.3f} nats; they may be too few."
    )
    return rows, tuple(notes)


for _entry in (
    Ablation(FULL, "full mixture", "the mixture as it is configured"),
    Ablation(
        "no_exemplars",
        "without exemplars",
        "prompts show a persona and no exemplar; the gate chooses personas",
        {"exemplars": {"num_exemplars": 0}, "candidates": {"bare": "none"}},
    ),
    Ablation(
        "no_personas",
        "without personas",
        f'one neutral persona, "{NEUTRAL_PERSONA}", in the same prompts with the same exemplars',
        {
            "personas": {
                "path": None,
                "texts": [NEUTRAL_PERSONA],
                "described_from": "clusters",
            }
        },
    ),
    Ablation(
        "random_personas",
        "random personas",
        "as many personas, each described from random training records instead of a cluster",
        {"personas": {"path": None, "texts": None, "described_from": "random_records"}},
    ),
    Ablation(
        "uniform_gate",
        "uniform gate",
        "π and Ω uniform; temperatures are fitted",
        {"model": {"uniform_gate": True}},
    ),
    Ablation(
        "paper_estimator",
        "the paper's estimator",
        "a bilinear gate of width 128, maximum likelihood, τ_k from 0.6, and renormalised over "
        "up to M = 4 different components of each record, drawn by the context's similarity and, "
        "in the share that the configuration says, uniformly; its log-probability is that of this "
        "renormalised mixture; it simulates from the whole gate",
        {
            "model": {
                "gate": "bilinear",
                "gate_width": 128,
                "exemplar_context": True,
                "similarity": False,
                "temperature": True,
                "sparse_personas": False,
            },
            "inference": {
                "guide": "AutoDelta",
                "maximum_likelihood": True,
                "initial_temperature": 0.6,
            },
            "candidates": {
                "method": "renormalised",
                "num_candidates": 4,
                "refresh": 0,
                "bare": "none",
            },
            "evaluation": {"num_candidates": 4},
            "temperatures": _GRID_FROM_PAPER,
        },
    ),
    Ablation(
        "no_temperature",
        "without temperature",
        "τ = 1 in the fit and in simulation",
        {"model": {"temperature": False}},
    ),
    Ablation(
        "no_exemplar_context",
        "Ω without x̃",
        "the choice of the exemplar does not see the context",
        {"model": {"exemplar_context": False}},
    ),
    *(
        Ablation(
            f"components_{number}",
            f"L = {number} components in a prompt",
            f"{number} components drawn independently from the full mixture: the exemplars of all, "
            "each once, under the persona and the temperature of the first",
            {"simulation": {"num_components": number}},
            has_log_prob=False,
        )
        for number in (2, 4, 8)
    ),
):
    register(_entry)
