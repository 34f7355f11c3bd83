"""Candidate sets that grow in rounds, and what they still hide.

What was scored is known and counts in full, and a draw without replacement from all the rest stands
for what is not known (Horvitz and Thompson, 1952). Its proposal may depend on everything that was
scored before, on a gate fitted to it, say: for fixed θ, p̂ is unbiased whatever the earlier rounds
were, since the last round's draws are new.

A fit uses its draws twice: θ̂ makes the log p̂ of these very draws large, so that on the training
records log p̂ at θ̂ is no longer unbiased but flatters the gate. Evaluation draws anew, for records
that θ̂ has not seen.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from mop_jax.components.candidates import CandidateSet, checked_keys, each_record, record_rng
from mop_jax.components.proposals import Proposal, as_proposal, check_count
from mop_jax.errors import DataError


def extended_candidates(
    known: CandidateSet,
    proposal: Proposal | ArrayLike,
    num_candidates: int,
    seed: int,
    *,
    record_keys: Sequence[str] | None = None,
) -> CandidateSet:
    """What is known already, and as many new pairs as make C distinct ones for each record.

    New pairs are drawn systematically without replacement from those of positive probability that
    are not known, with inclusion probabilities π = min(1, t q) that sum to their number. In
    p̂ = Σ_known f + Σ_new f / π only the unknown remainder is estimated, and the pairs that the
    proposal is sure of are included for certain.

    Args:
        known: an `importance` set; its distinct pairs count as scored.
        proposal: q_i(k, j), as for `importance_candidates`; positive wherever a pair is allowed,
            and made without looking at this call's draws.
        num_candidates: C, the distinct pairs of each record in all (or all of them, where there are
            no more), and the width of the set.
        seed: of the draws; each round needs one of its own.
        record_keys: see `importance_candidates`.

    Raises:
        DataError: if the set is of another method or its distinct pairs leave no draw for the rest,
            or on a proposal that is no distribution.
    """
    source = as_proposal(proposal)
    num_records, num_personas, num_exemplars = source.shape
    check_count("num_candidates", num_candidates)
    if known.method != "importance":
        raise DataError(f"A set of method {known.method!r} is not extended; only importance is.")
    keys = checked_keys(record_keys, num_records, seed)
    shape = (num_records, num_candidates)
    pairs, log_weight = np.zeros(shape, np.int64), np.full(shape, -np.inf)
    for row, exemplar, persona in each_record(source):
        live = known.log_weight[row] > -np.inf
        code = known.persona_index[row].astype(np.int64) * num_exemplars + known.exemplar_index[row]
        old = np.unique(code[live])
        joint = (persona * exemplar).ravel()
        joint[old] = 0.0
        # Without a single draw nothing would stand for what is not known.
        if len(old) >= num_candidates and joint.any():
            raise DataError(
                f"{len(old)} pairs of record {row} are known already; accepted are more than as "
                f"many candidates, not {num_candidates}."
            )
        rng = record_rng(seed, keys[row])
        new, inclusion = _without_replacement(
            joint, num_candidates - len(old), rng, num_personas, num_exemplars
        )
        filled = len(old) + len(new)
        pairs[row, :filled] = np.concatenate([old, new])
        log_weight[row, : len(old)] = 0.0
        log_weight[row, len(old) : filled] = -np.log(inclusion)
    index_k, index_j = np.divmod(pairs.astype(np.int32), np.int32(num_exemplars))
    return CandidateSet(index_k, index_j, log_weight, "importance")


def half_sets(extended: CandidateSet) -> tuple[CandidateSet, CandidateSet]:
    """Two sets that lie as far from the whole as the whole lies from the truth, either way.

    What is certain (log-weight 0) stands in both. Every second one of the others, in the order in
    which they were drawn, counts 1 + √(1 − π) times in one half and 1 − √(1 − π) times in the
    other: the halves' mean is p̂, and under independent draws of inclusion probability π the
    expected square of their distance to p̂ is the variance of p̂, Σ f² (1 − π) / π. So
    log p̂ − (log p̂_a + log p̂_b) / 2 estimates by how much E log p̂ lies below log p.

    It is an estimate, no bound: it knows the draws alone. Systematic draws vary less, which makes
    it too large; where a few pairs carry the likelihood and are likely to be missed it is too small
    (0.46 of a true 1.19 nats for log-likelihoods of standard deviation 3, 32 of 1024 pairs drawn
    uniformly). `importance_candidates` make halves too, draws of q C ≥ 1 counting as certain.
    """
    log_weight = extended.log_weight
    uncertain = log_weight > 0
    second = (np.cumsum(uncertain, axis=1) % 2).astype(bool)
    root = np.sqrt(-np.expm1(-np.where(uncertain, log_weight, 0.0)))
    # (1 − √(1 − π)) / π = 1 / (1 + √(1 − π)): also where π is too small for the difference.
    more, less = log_weight + np.log1p(root), -np.log1p(root)
    halves = [
        extended._replace(
            log_weight=np.where(uncertain, np.where(mine, more, less), log_weight),
        )
        for mine in (second, ~second)
    ]
    return halves[0], halves[1]


def _without_replacement(
    score: np.ndarray, number: int, rng: np.random.Generator, num_personas: int, num_exemplars: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs, int64 [n], and their inclusion probabilities: a systematic draw along a random walk.

    Neighbours on the walk share an exemplar, so that draws are spread over exemplars first.
    """
    offset = rng.random()
    exemplar_order = rng.permutation(num_exemplars)
    persona_order = rng.permuted(np.tile(np.arange(num_personas), (num_exemplars, 1)), axis=1)
    walk = (persona_order * num_exemplars + exemplar_order[:, None]).ravel()
    walk = walk[score[walk] > 0]
    inclusion = inclusion_probabilities(score[walk], number)
    upper = np.cumsum(inclusion)
    count = min(number, len(walk))
    if count == 0:
        return np.zeros(0, np.int64), np.zeros(0)
    # Rounding must not leave the last point beyond the end.
    upper *= count / upper[-1]
    position = np.searchsorted(upper, offset + np.arange(count), side="right")
    position = np.minimum(position, len(walk) - 1)
    return walk[position], inclusion[position]


def inclusion_probabilities(score: np.ndarray, number: int) -> np.ndarray:
    """min(1, t · score) with t such that they sum to `number`; all 1 where there are no more.

    Args:
        score: positive, [M].
        number: n.

    Returns:
        float64 [M].
    """
    if number >= len(score):
        return np.ones(len(score))
    order = np.argsort(-score, kind="stable")
    ranked = score[order]
    rest = np.cumsum(ranked[::-1])[::-1]
    # With the c largest certain, the others share n − c in proportion; c is the least that fits.
    fits = (number - np.arange(number + 1)) * ranked[: number + 1] <= rest[: number + 1]
    certain = int(np.argmax(fits))
    inclusion = np.ones(len(score))
    inclusion[order[certain:]] = (number - certain) * ranked[certain:] / rest[certain]
    return np.minimum(inclusion, 1.0)
