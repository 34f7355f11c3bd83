"""A survey's second step: the table of options, and the same model's answers without a mixture."""

from __future__ import annotations

from mop_jax.choices import choose_components, score_options
from mop_jax.likelihoods.store import LikelihoodStore
from mop_jax.lm.base import TemperatureGrid
from mop_jax.pipeline.surveys.artefacts import SurveyRun, write_table
from mop_jax.pipeline.surveys.prompted import prompted_shares
from mop_jax.pipeline.workspace import Workspace, write_arrays


def score_survey(space: Workspace) -> None:
    """Writes the option table of all items, and what prompted baselines say of the held-out."""
    run, config = SurveyRun(space.path, space.config), space.config
    components = choose_components(
        run.design.leave_out(run.items),
        len(run.personas),
        config.candidates.num_candidates,
        seed=config.seed,
    )
    exemplars = list(zip(run.exemplars["context"], run.exemplars["response"], strict=True))
    with LikelihoodStore(
        space.path / "likelihoods", space.language_model.fingerprint, TemperatureGrid.single(1.0)
    ) as store:
        table = score_options(
            run.items,
            [persona.text for persona in run.personas],
            exemplars,
            space.prompts,
            store,
            space.language_model,
            wording=run.wording,
            num_orders=run.section.num_orders,
            seed=config.seed,
            components=components,
        )
        prompted = prompted_shares(space, run, store)
        store.compact()
    write_table(space.path / "options.safetensors", table)
    write_arrays(space.path / "prompted.safetensors", prompted)
