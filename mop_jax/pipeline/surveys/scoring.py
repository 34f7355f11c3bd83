"""A survey's second step: the table of options, and the same model's answers without a mixture."""

from __future__ import annotations

from mop_jax.choices import OptionTable
from mop_jax.likelihoods.store import LikelihoodStore
from mop_jax.lm.base import TemperatureGrid
from mop_jax.pipeline.surveys.artefacts import SurveyRun, write_table
from mop_jax.pipeline.surveys.prompted import content_free_offsets, prompted_shares
from mop_jax.pipeline.workspace import Workspace, write_arrays
from mop_jax.survey import Items


def score_survey(space: Workspace) -> None:
    """Writes the option table of all items, and what prompted baselines say of the held-out."""
    run = SurveyRun(space.path, space.config)
    with option_store(space) as store:
        table = score_items(space, run, run.items, store)
        prompted = prompted_shares(space, run, store)
        if run.section.calibration == "content_free":
            every = range(len(run.questions))
            prompted["content_free"] = content_free_offsets(space, run, run.questions, every, store)
        store.compact()
    write_table(space.path / "options.safetensors", table)
    write_arrays(space.path / "prompted.safetensors", prompted)


def option_store(space: Workspace) -> LikelihoodStore:
    """The store of options' scores, at τ = 1."""
    return LikelihoodStore(
        space.path / "likelihoods", space.language_model.fingerprint, TemperatureGrid.single(1.0)
    )


def score_items(
    space: Workspace, run: SurveyRun, items: Items, store: LikelihoodStore
) -> OptionTable:
    """The option table of items, those of the run or others of the same covariates."""
    return run.components.score(
        items,
        space.language_model,
        num_components=space.config.candidates.num_candidates,
        num_orders=run.section.num_orders,
        seed=space.config.seed,
        prompts=space.prompts,
        store=store,
    )
