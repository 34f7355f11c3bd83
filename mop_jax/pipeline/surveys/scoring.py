"""A survey's second step: the table of options, and the same model's answers without a mixture."""

from __future__ import annotations

import numpy as np

from mop_jax.choices import OptionTable, choose_components, score_options
from mop_jax.choices.options import score_prompts
from mop_jax.likelihoods.store import LikelihoodStore
from mop_jax.lm.base import TemperatureGrid
from mop_jax.pipeline.surveys.artefacts import SurveyRun, write_table
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


def prompted_shares(
    space: Workspace, run: SurveyRun, store: LikelihoodStore
) -> dict[str, np.ndarray]:
    """Shares by the same language model without a mixture, [N, M]; NaN where none are needed.

    `zero_shot` puts the item as it is; `demographic_persona` speaks as the person and asks the
    question without one. Both average over the orders in which options are shown.
    """
    wanted = run.is_test.copy()
    if run.section.hold_out_question is not None:
        ids = [question.id for question in run.questions]
        wanted |= run.items.question == ids.index(run.section.hold_out_question)
    index = np.flatnonzero(wanted)
    items = run.items.take(index)
    found = {}
    builders = {
        "zero_shot": lambda ask, person: space.prompts.zero_shot(ask(person)),
        "demographic_persona": lambda ask, person: space.prompts.persona_only(
            f"You are {person}.", ask("you")
        ),
    }
    for name, build in builders.items():
        table = score_prompts(
            items,
            build,
            space.prompts,
            store,
            space.language_model,
            wording=run.wording,
            num_orders=run.section.num_orders,
            seed=space.config.seed,
            description=f"Scoring options, {name.replace('_', ' ')}",
        )
        shares = np.full(run.items.counts.shape, np.nan, np.float32)
        shares[index] = averaged(table)
        found[name] = shares
    return found


def averaged(table: OptionTable) -> np.ndarray:
    """Shares at τ = 1, candidates weighted as listed, [N, M]."""
    weights = np.exp(table.log_weight)
    weights /= weights.sum(1, keepdims=True)
    return np.einsum("nc,ncm->nm", weights, table.probs())
