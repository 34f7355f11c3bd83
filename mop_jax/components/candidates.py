"""Which components (persona, exemplar) are scored for which record, and what the others count for.

Scoring all N·K·J pairs is often too dear. Each record gets C candidate components instead, and how
the missing ones enter the likelihood is the `method` of a `CandidateSet`:

- `full`: every pair; the sum is exact.
- `importance`: pairs drawn from a proposal q_i(k, j) of known probability. With the log-weights of
  the set, p̂_i = Σ_c exp(log_weight_ic + log π + log Ω + ℓ) is unbiased for p(y_i | x_i), so that
  E log p̂_i is a lower bound of log p(y_i | x_i) which tightens as C grows.
- `renormalised`: the gate's softmax is taken over the scored pairs only, as with the paper's top-M
  sparse gate (§3.3 there; M = 4).

Draws are *systematic*: the C points (v + c/C) mod 1 with one uniform offset v per record are sent
through the inverse distribution function of the proposal. The expected number of draws of a pair is
C·q exactly, and its variance is far below that of independent draws. `rounds` lets sets grow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from mop_jax.components.proposals import (
    FactorisedProposal,
    Proposal,
    TableProposal,
    allowed_exemplars,
    as_proposal,
    check_count,
    defensive_proposal,
    gate_proposal,
)
from mop_jax.errors import DataError

__all__ = [
    "CandidateSet",
    "FactorisedProposal",
    "Proposal",
    "TableProposal",
    "defensive_proposal",
    "full_candidates",
    "gate_proposal",
    "importance_candidates",
    "renormalised_candidates",
]

# A table of proposals for all pairs, [n, K, J] float64, is built for this many entries at a time.
_CHUNK_ENTRIES = 4_000_000
_GOLDEN = 0.6180339887498949


class CandidateSet(NamedTuple):
    """The components to score for each record.

    Attributes:
        persona_index: int32 [N, C].
        exemplar_index: int32 [N, C].
        log_weight: float64 [N, C], nats; for `importance` minus the logarithm of the expected
            number of draws (C q in a first round; in later ones 1 for what was known, and the
            probability of inclusion for what is new), 0 for `full` and `renormalised`, −∞ for
            padding (left-out pairs and repeated draws).
        method: "full", "importance" or "renormalised".
    """

    persona_index: np.ndarray
    exemplar_index: np.ndarray
    log_weight: np.ndarray
    method: str

    @property
    def num_records(self) -> int:
        """N."""
        return self.persona_index.shape[0]

    @property
    def num_candidates(self) -> int:
        """C."""
        return self.persona_index.shape[1]

    def padded(self, num_candidates: int) -> CandidateSet:
        """The same set with padding up to C = `num_candidates`, so that rounds have one shape."""
        wide = ((0, 0), (0, num_candidates - self.num_candidates))
        return CandidateSet(
            np.pad(self.persona_index, wide),
            np.pad(self.exemplar_index, wide),
            np.pad(self.log_weight, wide, constant_values=-np.inf),
            self.method,
        )

    def take(self, records: np.ndarray | Sequence[int]) -> CandidateSet:
        """The candidates of some records, in the given order."""
        rows = np.asarray(records, dtype=np.intp)
        return CandidateSet(
            self.persona_index[rows], self.exemplar_index[rows], self.log_weight[rows], self.method
        )

    def triples(self) -> np.ndarray:
        """What has to be scored: distinct (record, persona, exemplar), int32 [M, 3], sorted.

        Padding is left out and a pair drawn twice is listed once.
        """
        record, column = np.nonzero(self.log_weight > -np.inf)
        persona = self.persona_index[record, column]
        exemplar = self.exemplar_index[record, column]
        return np.unique(np.stack([record, persona, exemplar], axis=1).astype(np.int32), axis=0)


def full_candidates(num_personas: int, num_exemplars: int, leave_out: np.ndarray) -> CandidateSet:
    """Every pair for every record, C = K·J; candidate c is persona c // J and exemplar c mod J.

    Args:
        num_personas: K.
        num_exemplars: J.
        leave_out: bool [N, J]; left-out pairs are padding (log-weight −∞).
    """
    check_count("num_personas", num_personas)
    check_count("num_exemplars", num_exemplars)
    leave_out = np.asarray(leave_out, dtype=bool)
    allowed = allowed_exemplars(leave_out, leave_out.shape[0], num_exemplars)
    shape = (leave_out.shape[0], num_personas * num_exemplars)
    persona, exemplar = np.divmod(np.arange(shape[1], dtype=np.int32), np.int32(num_exemplars))
    log_weight = np.where(np.tile(allowed, (1, num_personas)), 0.0, -np.inf)
    return CandidateSet(
        np.broadcast_to(persona, shape).copy(),
        np.broadcast_to(exemplar, shape).copy(),
        log_weight,
        "full",
    )


def importance_candidates(
    proposal: Proposal | ArrayLike,
    num_candidates: int,
    seed: int,
    *,
    record_keys: Sequence[str] | None = None,
) -> CandidateSet:
    """C systematic draws per record from q_i, with log-weights −log q_i(k, j) − log C.

    A record's draws depend on `seed`, its key and its row of the proposal alone: other records may
    be added, removed or reordered without changing them.

    Args:
        proposal: a `Proposal`, or a table float [N, K, J]; rows are normalised.
        num_candidates: C.
        seed: a non-negative integer.
        record_keys: N distinct strings, such as the records' ids; row numbers by default.

    Raises:
        DataError: on a misshapen, negative, non-finite or all-zero proposal.
    """
    draws = _draw_all(proposal, num_candidates, seed, record_keys)
    log_weight = -np.log(draws.prob) - np.log(num_candidates)
    return CandidateSet(draws.persona, draws.exemplar, log_weight, "importance")


def renormalised_candidates(
    proposal: Proposal | ArrayLike,
    num_candidates: int,
    seed: int,
    *,
    record_keys: Sequence[str] | None = None,
) -> CandidateSet:
    """The same draws as `importance_candidates`, for a gate renormalised over the distinct ones.

    A pair drawn again is padding. The gate then never sees the pairs that were not drawn: a model
    of its own, not an estimate of the full one.
    """
    draws = _draw_all(proposal, num_candidates, seed, record_keys)
    code = draws.persona.astype(np.int64) * as_proposal(proposal).shape[2] + draws.exemplar
    log_weight = np.full(code.shape, -np.inf)
    for row, row_code in enumerate(code):
        log_weight[row, np.unique(row_code, return_index=True)[1]] = 0.0
    return CandidateSet(draws.persona, draws.exemplar, log_weight, "renormalised")


class _Draws(NamedTuple):
    persona: np.ndarray  # int32 [N, C]
    exemplar: np.ndarray  # int32 [N, C]
    prob: np.ndarray  # float64 [N, C]: q_i(k, j)


class _Walk(NamedTuple):
    """The order in which a record's inverse distribution function passes the pairs."""

    exemplar_order: np.ndarray  # [J] a permutation
    persona_order: np.ndarray  # [K] a permutation
    persona_shift: np.ndarray  # [J] where on the circle of personas each exemplar starts


def _draw_all(
    proposal: Proposal | ArrayLike,
    num_candidates: int,
    seed: int,
    record_keys: Sequence[str] | None,
) -> _Draws:
    source = as_proposal(proposal)
    num_records, num_personas, num_exemplars = source.shape
    check_count("num_candidates", num_candidates)
    keys = checked_keys(record_keys, num_records, seed)
    draws = _Draws(
        np.empty((num_records, num_candidates), np.int32),
        np.empty((num_records, num_candidates), np.int32),
        np.empty((num_records, num_candidates), np.float64),
    )
    for row, exemplar, persona in each_record(source):
        rng = record_rng(seed, keys[row])
        # The offset comes first, so that it is the same whatever K, J and C are.
        offset = rng.random()
        walk = _random_walk(rng, num_personas, num_exemplars)
        points = (offset + np.arange(num_candidates) / num_candidates) % 1.0
        k, j = systematic_pairs(exemplar, persona, points, walk)
        draws.persona[row], draws.exemplar[row] = k, j
        draws.prob[row] = exemplar[j] * persona[k, j if persona.shape[1] > 1 else 0]
    return draws


def systematic_pairs(
    exemplar: np.ndarray, persona: np.ndarray, points: np.ndarray, walk: _Walk
) -> tuple[np.ndarray, np.ndarray]:
    """Sends points of [0, 1) through the inverse distribution function of one record's proposal.

    Exemplars come first: they differ far more in likelihood than personas do, so the points are
    spread over them as evenly as can be; what is left of a point within its exemplar's interval
    picks the persona. A uniform point gives pair (k, j) with probability q(j) q(k | j) exactly:
    turning a uniform variable on the circle by a fixed shift leaves it uniform.

    Args:
        exemplar: float64 [J], summing to one.
        persona: float64 [K, J] or [K, 1], columns summing to one.
        points: float64 [C] in [0, 1).
        walk: the order of the pairs.

    Returns:
        Persona and exemplar indices, each int64 [C].
    """
    position, rest = _invert(exemplar[walk.exemplar_order], points)
    j = walk.exemplar_order[position]
    turned = (rest + walk.persona_shift[j]) % 1.0
    if persona.shape[1] == 1:
        rank, _ = _invert(persona[walk.persona_order, 0], turned)
    else:
        cumulated = np.cumsum(persona[walk.persona_order][:, j], axis=0)
        # The first rank whose cumulated probability exceeds the point, one column per point.
        rank = np.argmax(cumulated / cumulated[-1] > turned, axis=0)
    return walk.persona_order[rank], j


def _invert(probs: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The interval each point falls in, and how far through it the point lies, in [0, 1)."""
    upper = np.cumsum(probs)
    upper /= upper[-1]
    # side="right" passes over intervals of width zero; upper[-1] is exactly 1 and points are below.
    position = np.searchsorted(upper, points, side="right")
    lower = np.where(position > 0, upper[position - 1], 0.0)
    rest = (points - lower) / (upper[position] - lower)
    return position, np.clip(rest, 0.0, np.nextafter(1.0, 0.0))


def _random_walk(rng: np.random.Generator, num_personas: int, num_exemplars: int) -> _Walk:
    exemplar_order = rng.permutation(num_exemplars)
    persona_order = rng.permutation(num_personas)
    # Golden-ratio steps: neighbours on the walk start at personas far from each other, so that a
    # few candidates also cover the personas evenly.
    shift = np.empty(num_exemplars)
    shift[exemplar_order] = (rng.random() + _GOLDEN * np.arange(num_exemplars)) % 1.0
    return _Walk(exemplar_order, persona_order, shift)


def checked_keys(record_keys: Sequence[str] | None, num_records: int, seed: int) -> list[str]:
    if seed < 0:
        raise DataError(f"The seed is {seed}; accepted is a non-negative integer.")
    keys = [str(i) for i in range(num_records)] if record_keys is None else list(record_keys)
    if len(keys) != num_records or len(set(keys)) != num_records:
        raise DataError(f"record_keys must be {num_records} distinct strings, one per record.")
    return keys


def record_rng(seed: int, key: str) -> np.random.Generator:
    digest = hashlib.sha256(key.encode("utf-8")).digest()
    words = np.frombuffer(digest, dtype="<u4").tolist()
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *words])))


def each_record(source: Proposal) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yields (row, q(j) [J], q(k | j) [K, J or 1]), checked and normalised."""
    num_records, num_personas, num_exemplars = source.shape
    step = max(1, _CHUNK_ENTRIES // (num_personas * num_exemplars))
    for start in range(0, num_records, step):
        exemplar, persona = source.rows(start, min(start + step, num_records))
        total = exemplar.sum(axis=1)
        finite = np.isfinite(exemplar).all(axis=1) & np.isfinite(persona).all(axis=(1, 2))
        positive = (exemplar >= 0).all(axis=1) & (persona >= 0).all(axis=(1, 2)) & (total > 0)
        if not (finite & positive).all():
            row = start + int(np.argmin(finite & positive))
            raise DataError(
                f"The proposal of record {row} is not a distribution: probabilities must be finite "
                "and non-negative, and at least one component must be allowed."
            )
        exemplar = exemplar / total[:, None]
        mass = persona.sum(axis=1, keepdims=True)
        persona = persona / np.where(mass > 0, mass, 1.0)
        for row in range(exemplar.shape[0]):
            yield start + row, exemplar[row], persona[row]
