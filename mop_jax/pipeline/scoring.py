"""The second step of a run: log-likelihoods of the training records' candidate components."""

from __future__ import annotations

from mop_jax.components.candidates import CandidateSet
from mop_jax.components.components import Method
from mop_jax.inference import (
    Posterior,
)
from mop_jax.models import MixtureData
from mop_jax.pipeline.workspace import Split, Workspace, write_parquet

# Rounds of refreshed candidates have streams of their own.
_REFRESH = 2_000_003


def candidates_for(
    space: Workspace,
    side: Split,
    num_candidates: int,
    *,
    posterior: Posterior | None = None,
    method: Method | None = None,
    seed_offset: int = 0,
) -> CandidateSet:
    """The candidate components of some records.

    Args:
        space: the run.
        side: the records.
        num_candidates: C.
        posterior: propose from this gate instead of from embedding similarity.
        method: instead of the configuration's.
        seed_offset: distinguishes independent draws.
    """
    section = space.config.candidates
    chosen = method or section.method
    return space.components.propose(
        side.records,
        side.context_embeddings,
        side.record_embeddings,
        num_candidates,
        method=chosen,
        seed=space.config.seed + seed_offset,
        uniform_share=section.uniform_share,
        similarity_temperature=section.similarity_temperature,
        posterior=posterior,
    )


def training_data(
    space: Workspace, posterior: Posterior | None = None, *, refresh: int = 0
) -> MixtureData:
    """The training records as the model sees them; scores what is not scored yet.

    Args:
        space: the run.
        posterior: proposes candidates from its gate; from embedding similarity without one.
        refresh: number of the round of refreshed candidates; each round has draws of its own, since
            the gate that proposes was fitted on those of the round before.
    """
    side = space.sides["train"]
    chosen = candidates_for(
        space,
        side,
        space.config.candidates.num_candidates,
        posterior=posterior,
        seed_offset=_REFRESH * refresh,
    )
    scored = space.score_candidates(side.records, chosen, "Scoring training records")
    # Rounds have files of their own: those of the step that scored the first stay as it left them.
    name = f"train_{refresh}.parquet" if refresh else "train.parquet"
    write_parquet(space.path / "likelihoods" / name, space.pair_table(side.records, scored))
    return space.mixture_data(side, chosen, scored.log_likelihood)


def score_training(space: Workspace) -> None:
    """Writes likelihoods/train.parquet."""
    training_data(space)
