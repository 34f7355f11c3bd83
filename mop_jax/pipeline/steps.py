"""The steps of a run: what each is called, needs, reads and writes, in one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mop_jax.errors import DataError

if TYPE_CHECKING:
    from mop_jax.config import RunConfig


@dataclass(frozen=True)
class Step:
    """A step of a run.

    Attributes:
        name: of the command and in the manifest.
        title: what a reader is told.
        work: `module:function` that does it, given the workspace; imported when it is needed.
        needs: the steps before it.
        sections: the parts of the configuration that it reads, besides those of its needs; a
            section, or one field of it (`prompt.date`).
        outputs: the files that it writes, relative to the run folder.
        inputs: what it reads from outside the run folder, besides what its needs read.
        changes: what the step does otherwise than before, a clause for each time that it changed;
            runs made before are told, and have it done again.
    """

    name: str
    title: str
    work: str
    needs: tuple[str, ...]
    sections: tuple[str, ...]
    outputs: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()

    @property
    def version(self) -> int:
        """Counts from 1."""
        return 1 + len(self.changes)


STEPS = (
    Step(
        "personas",
        "Records, embeddings, personas, exemplars",
        "mop_jax.pipeline.preparation:make_personas",
        (),
        (
            "seed",
            "population",
            "split",
            "language_model",
            "encoder",
            "personas",
            "exemplars",
            "prompt.date",
            "prompt.template_arguments",
        ),
        ("personas.json", "exemplars.parquet", "records.parquet", "embeddings.safetensors"),
        ("population", "personas file", "language model", "sentence encoder"),
    ),
    Step(
        "score",
        "Log-likelihoods of the training records",
        "mop_jax.pipeline.scoring:score_training",
        ("personas",),
        ("prompt", "candidates", "temperatures"),
        ("likelihoods/train.parquet",),
        ("language model",),
        ("candidates are proposed in rounds, the later ones by what the first scored",),
    ),
    Step(
        "fit",
        "Posterior of the gate and the temperatures",
        "mop_jax.pipeline.fitting:fit_models",
        ("score",),
        ("model", "inference"),
        (
            "posterior.safetensors",
            "ablations/mop_no_temperature.safetensors",
            "ablations/uniform_gate_temperature.safetensors",
            "likelihoods/train_refreshed.parquet",
            "posterior.nc",
            "fit.json",
            "rounds.json",
        ),
        ("language model",),
    ),
    Step(
        "evaluate",
        "Held-out evaluation",
        "mop_jax.pipeline.evaluation:evaluate_held_out",
        ("fit",),
        ("evaluation",),
        ("likelihoods/held_out.parquet", "held_out.parquet", "metrics.json"),
        ("language model",),
        ("held-out candidates are proposed by the fitted gate too, and their slack is reported",),
    ),
    Step(
        "simulate",
        "Simulated responses",
        "mop_jax.pipeline.simulation:simulate_held_out",
        ("fit",),
        ("simulation",),
        ("simulated.jsonl",),
        ("language model",),
    ),
    Step(
        "likeness",
        "Likeness of simulated and real responses",
        "mop_jax.pipeline.judging:judge_likeness",
        ("simulate",),
        (),
        ("likeness.json",),
        ("sentence encoder",),
    ),
    Step(
        "figures",
        "Figures",
        "mop_jax.pipeline.drawing:draw_figures",
        ("evaluate", "likeness"),
        (),
        (
            "figures/elbo.png",
            "figures/persona_weights.png",
            "figures/exemplar_gate.png",
            "figures/embedding_map.png",
            "figures/effective_size.png",
            "figures/held_out.png",
            "figures/candidate_check.png",
            "figures/candidate_check.json",
        ),
        ("sentence encoder",),
    ),
)
# Fields of a survey's section, by the first step that they matter to.
_SURVEY_ANSWERS = (
    "sample", "path", "questions", "covariates", "template", "layout", "id", "weight", "strata",
    "psu", "question_column", "answer_column", "cell_id", "share", "n", "count", "missing",
    "covariate_missing", "separator", "encoding", "sheet", "value_labels", "hold_out_cells",
    "hold_out_question", "design_effect", "history", "history_template",
)  # fmt: skip
_SURVEY_MODEL = ("groups", "option_effects", "dispersion", "preference")


def _of_survey(*fields: str) -> tuple[str, ...]:
    return tuple(f"survey.{field}" for field in fields)


SURVEY_STEPS = (
    Step(
        "personas",
        "Items, embeddings, personas, exemplars",
        "mop_jax.pipeline.surveys.preparation:prepare_survey",
        (),
        (
            "seed",
            *_of_survey(*_SURVEY_ANSWERS),
            "language_model",
            "encoder",
            "personas",
            "exemplars",
            "prompt.date",
            "prompt.template_arguments",
        ),
        (
            "personas.json",
            "survey.json",
            "cells.parquet",
            "items.parquet",
            "exemplars.parquet",
            "embeddings.safetensors",
        ),
        ("population", "personas file", "language model", "sentence encoder"),
    ),
    Step(
        "score",
        "Log-likelihoods of the options",
        "mop_jax.pipeline.surveys.scoring:score_survey",
        ("personas",),
        (*_of_survey("num_orders", "calibration"), "prompt", "candidates"),
        ("options.safetensors", "prompted.safetensors"),
        ("language model",),
    ),
    Step(
        "fit",
        "Posterior of the gate, groups and biases",
        "mop_jax.pipeline.surveys.fitting:fit_survey",
        ("score",),
        (*_of_survey(*_SURVEY_MODEL), "model", "inference"),
        ("posterior.safetensors", "posterior.nc", "fit.json"),
        ("language model",),
    ),
    Step(
        "evaluate",
        "Held-out cells and questions",
        "mop_jax.pipeline.surveys.evaluation:evaluate_survey",
        ("fit",),
        (),
        ("metrics.json", "shares.csv", "cells.csv", "held_out.safetensors"),
    ),
    Step(
        "figures",
        "Figures",
        "mop_jax.pipeline.surveys.drawing:draw_survey",
        ("evaluate",),
        (),
        (
            "figures/elbo.png",
            "figures/shares.png",
            "figures/calibration.png",
            "figures/persona_groups.png",
        ),
    ),
)
"""Of a run of closed answers."""
BY_NAME = {step.name: step for step in STEPS}


def steps_of(config: RunConfig) -> tuple[Step, ...]:
    """The steps of a run with this configuration."""
    return STEPS if config.survey is None else SURVEY_STEPS


def with_needs(*names: str, steps: Sequence[Step] = STEPS) -> list[Step]:
    """Steps and all that they need, in the order in which they are done.

    Raises:
        DataError: if a run of this kind has no such step.
    """
    known = {step.name for step in steps}
    for name in names:
        if name not in known:
            raise DataError(
                f"A run of closed answers has no step {name!r}; there are "
                f"{', '.join(step.name for step in steps)}."
            )
    wanted = set(names)
    for step in reversed(steps):
        if step.name in wanted:
            wanted.update(step.needs)
    return [step for step in steps if step.name in wanted]
