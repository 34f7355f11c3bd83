"""Rounds of scoring: log-likelihoods of records' candidate components.

Components for the first round are proposed by similarity, those of the second by what the first
scored, and those of further ones by a gate fitted to the rounds before, too (`Components.extend`):
so the pairs that carry the likelihood are found without scoring all. C is what is scored for a
record in all rounds together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp

from mop_jax.components.candidates import CandidateSet
from mop_jax.components.components import SECOND_ROUND
from mop_jax.components.pool import Method
from mop_jax.evaluation.held_out import mean_and_error
from mop_jax.inference import Posterior, log_likelihood_draws
from mop_jax.likelihoods.scoring import ScoredCandidates
from mop_jax.models import MixtureData
from mop_jax.pipeline.workspace import Split, Workspace, write_parquet
from mop_jax.population.population import Population

# See SECOND_ROUND.
REFRESHED = 10**12
_SCORING = "Scoring training records"
_REFRESHING = "Scoring refreshed candidates"


class Round(NamedTuple):
    """Candidates and their scores after a round.

    Attributes:
        candidates: those of all rounds up to here.
        scored: their log-likelihoods.
    """

    candidates: CandidateSet
    scored: ScoredCandidates


def round_sizes(num_candidates: int, num_rounds: int) -> list[int]:
    """Pairs scored for each record after each round: shares of one, and of two in the last.

    The last round stands for all that stays unknown, so it is the largest. Rounds that would add
    nothing are left out.

    Example:
        >>> round_sizes(12, 1), round_sizes(12, 2), round_sizes(12, 3), round_sizes(2, 3)
        ([12], [4, 12], [3, 6, 12], [1, 2])
    """
    sizes = [num_candidates * number // (num_rounds + 1) for number in range(1, num_rounds)]
    return sorted({*sizes, num_candidates} - {0})


class Plan(NamedTuple):
    """Candidates of training records after each round.

    Attributes:
        scored: of the rounds before the first fit.
        refreshed: of those that a fitted gate proposes.
    """

    scored: list[int]
    refreshed: list[int]


def round_plan(space: Workspace) -> Plan:
    """How many rounds the configuration asks for, and how large they are."""
    section = space.config.candidates
    count, refreshes = section.num_candidates, section.num_refreshes
    if section.method == "full" or count >= space.components.num_components:
        return Plan([count], [])
    if section.method == "renormalised":
        return Plan([count], refreshes * [count])
    sizes = round_sizes(count, 2 + refreshes)
    before = max(1, len(sizes) - refreshes)
    return Plan(sizes[:before], sizes[before:])


def first_candidates(
    space: Workspace,
    side: Split,
    num_candidates: int,
    *,
    posterior: Posterior | None = None,
    method: Method | None = None,
    seed_offset: int = 0,
    held_out: bool = False,
) -> CandidateSet:
    """The components of a first round.

    Args:
        space: the run.
        side: the records.
        num_candidates: how many.
        posterior: propose from this gate instead of from embedding similarity.
        method: instead of the configuration's.
        seed_offset: distinguishes independent draws.
        held_out: whether they are held-out records.
    """
    section = space.config.candidates
    return space.components.propose(
        side.records,
        side.context_embeddings,
        side.record_embeddings,
        num_candidates,
        method=method or section.method,
        seed=space.config.seed + seed_offset,
        uniform_share=section.uniform_share,
        similarity_temperature=section.similarity_temperature,
        posterior=posterior,
        held_out=held_out,
    )


def extended_round(
    space: Workspace,
    side: Split,
    known: Round,
    num_candidates: int,
    description: str,
    *,
    posterior: Posterior | None,
    seed_offset: int,
    held_out: bool = False,
) -> Round:
    """One more round: up to `num_candidates` pairs for each record in all; scores what is new."""
    chosen = space.components.extend(
        side.records,
        side.context_embeddings,
        side.record_embeddings,
        known.candidates,
        known.scored.log_likelihood[..., space.grid.unit_index],
        num_candidates,
        seed=space.config.seed + seed_offset,
        posterior=posterior,
        held_out=held_out,
    )
    return Round(chosen, space.score_candidates(side.records, chosen, description))


def first_rounds(space: Workspace) -> list[Round]:
    """The training records' rounds before any fit; writes likelihoods/train.parquet."""
    side, (first, *others) = space.sides["train"], round_plan(space).scored
    chosen = first_candidates(space, side, first)
    rounds = [Round(chosen, space.score_candidates(side.records, chosen, _SCORING))]
    for number, size in enumerate(others, start=1):
        rounds.append(
            extended_round(
                space,
                side,
                rounds[-1],
                size,
                _SCORING,
                posterior=None,
                seed_offset=SECOND_ROUND * number,
            )
        )
    write_pairs(space, side, rounds[-1], "train.parquet")
    return rounds


def refreshed_round(
    space: Workspace, known: Round, size: int, posterior: Posterior, number: int
) -> Round:
    """A round of the training records that the gate of the last fit proposes.

    Args:
        space: the run.
        known: the rounds before.
        size: candidates of each record in all.
        posterior: of the last fit.
        number: of the round, from 1; decides its draws.
    """
    side, seed_offset = space.sides["train"], REFRESHED * number
    if space.config.candidates.method == "renormalised":
        # The gate lives on its candidates alone: they are chosen anew, by the context only.
        chosen = first_candidates(space, side, size, posterior=posterior, seed_offset=seed_offset)
        return Round(chosen, space.score_candidates(side.records, chosen, _REFRESHING))
    return extended_round(
        space, side, known, size, _REFRESHING, posterior=posterior, seed_offset=seed_offset
    )


class RoundReport(NamedTuple):
    """What a round brought.

    Attributes:
        pairs: distinct pairs scored up to here, of all records.
        new: those of this round.
        tightened: by how much the weighted mean over records of the log estimate of the uniform
            mixture rose, nats per record; None for a first round, and for renormalised candidates,
            which estimate nothing. E log p̂ lies below log p by what too few candidates hide: where
            it does not move any more, nothing is hidden.
        standard_error: of `tightened`, by groups where records have any; None for a single one.
        gate_tightened: the same of the mixture that proposed the round, the posterior mean of
            log p̂; None where it was not proposed by a fit. The gate was fitted to the draws of the
            rounds before, so this may well fall.
        gate_standard_error: of `gate_tightened`.
    """

    pairs: int
    new: int
    tightened: float | None = None
    standard_error: float | None = None
    gate_tightened: float | None = None
    gate_standard_error: float | None = None

    def settled(self, tolerance: float) -> bool:
        """Whether the round is sure (two standard errors) to have moved less than `tolerance`.

        A fall counts as a rise does: either way the estimate still hangs on its draws. The gate's
        mixture is judged as well where it is known.

        The draws that decide to stop are those that are kept. That is optional stopping: given that
        it stopped early, the last round's p̂ is not quite unbiased. It is where the number of rounds
        is fixed (`refresh_tolerance: 0`).
        """
        if self.tightened is None or self.standard_error is None:
            return False
        settled = abs(self.tightened) + 2 * self.standard_error < tolerance
        if self.gate_tightened is None or self.gate_standard_error is None:
            return settled
        return settled and abs(self.gate_tightened) + 2 * self.gate_standard_error < tolerance


def round_report(
    before: Round | None,
    after: Round,
    unit_index: int,
    records: Population,
    gate: Callable[[Round], np.ndarray] | None = None,
) -> RoundReport:
    """Compares a round with the one before; see `RoundReport`.

    Args:
        before: the one before; None for the first.
        after: the round.
        unit_index: of τ = 1 in the grid.
        records: whose candidates they are; their weights and groups count.
        gate: log p̂ [N] of the mixture that proposed the round, from a round's candidates.
    """
    pairs = len(after.scored.triples)
    if before is None:
        return RoundReport(pairs, pairs)
    new = pairs - len(before.scored.triples)
    if after.candidates.method != "importance":
        return RoundReport(pairs, new)
    levels = [
        logsumexp(
            known.candidates.log_weight + known.scored.log_likelihood[..., unit_index], axis=1
        )
        for known in (before, after)
    ]
    report = RoundReport(pairs, new, *_mean_and_error(levels[1] - levels[0], records))
    if gate is None:
        return report
    tightened, error = _mean_and_error(gate(after) - gate(before), records)
    return report._replace(gate_tightened=tightened, gate_standard_error=error)


def _mean_and_error(values: np.ndarray, records: Population) -> tuple[float, float | None]:
    units = len(records) if records.groups is None else len(set(records.groups))
    if units < 2:
        return float(np.average(values, weights=records.weights)), None
    found = mean_and_error(values, records.weights, records.groups)
    return found["mean"], found["se"]


def gate_levels(space: Workspace, posterior: Posterior, known: Round) -> np.ndarray:
    """The posterior mean of log p̂ of the training records, [N], from a round's candidates."""
    draws = log_likelihood_draws(posterior, training_data(space, known))
    return np.asarray(draws, np.float64).mean(axis=0)


def training_data(space: Workspace, known: Round) -> MixtureData:
    """A round of the training records as the model sees it, of one width in all rounds."""
    width = max(space.config.candidates.num_candidates, known.candidates.num_candidates)
    extra = ((0, 0), (0, width - known.candidates.num_candidates), (0, 0))
    return space.mixture_data(
        space.sides["train"],
        known.candidates.padded(width),
        np.pad(known.scored.log_likelihood, extra),
    )


def write_pairs(space: Workspace, side: Split, known: Round, name: str) -> None:
    """Writes the scored pairs of a round to likelihoods/."""
    table = space.pair_table(side.records, known.scored)
    write_parquet(space.path / "likelihoods" / name, table)


def score_training(space: Workspace) -> None:
    """Writes likelihoods/train.parquet."""
    first_rounds(space)
