"""A guess of the log-likelihoods that were not scored, from those that were.

    ℓ_ikj ≈ level_i + a_j + b_k + s · cos(h(x_i, y_i), h(e_j)) + u_ij + v_ikj

with one a for each exemplar, one b for each persona and a slope s for all records, and residuals
u_ij ~ Normal(0, σ_u²), what record i makes of exemplar j whoever speaks, and the rest,
v_ikj ~ Normal(0, σ_v²). For reviews σ_u is several times σ_v: one score says much of the other
personas with the same exemplar, and little of other exemplars.

The guess only proposes which pairs are worth scoring; no likelihood ever contains one. Estimates
weighted by inverse inclusion probabilities are unbiased however wrong it is, and vary least where
pairs are included in proportion to √E[(π Ω p)²] (Neyman, 1934), which for a log-normal p is
π Ω exp(mean + variance).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import sparse

from mop_jax.components.candidates import CandidateSet
from mop_jax.components.proposals import unit_rows

# Main effects have a prior whose standard deviation is half of the residual one (ridge).
_RIDGE = 4.0
# Where no exemplar was scored with two personas of a record, σ_v² is this share of the whole; so
# many pairs' worth of data it takes to say otherwise.
_WITHIN_SHARE, _WITHIN_PAIRS = 0.1, 20.0
# Real log-likelihoods have lighter tails than a normal with a variance of several nats²: beyond
# this the second moment of a log-normal would send nearly all draws to what is least known.
_MOST_VARIANCE = 1.5


class Scores(NamedTuple):
    """What is known of N records: distinct scored pairs.

    Attributes:
        triples: (record, persona, exemplar), integers [M, 3].
        log_likelihood: nats at τ = 1, float64 [M].
        similarity: cosine of each record and exemplar, float [N, J].
    """

    triples: np.ndarray
    log_likelihood: np.ndarray
    similarity: np.ndarray


def scores_of(
    candidates: CandidateSet,
    log_likelihood: np.ndarray,
    record_embeddings: np.ndarray,
    exemplar_embeddings: np.ndarray,
) -> Scores:
    """What a scored candidate set tells.

    Args:
        candidates: of N records.
        log_likelihood: nats at τ = 1 of the candidates, [N, C].
        record_embeddings: h(x, y), [N, D].
        exemplar_embeddings: h(x_j, y_j), [J, D].
    """
    record, column = np.nonzero(candidates.log_weight > -np.inf)
    persona = candidates.persona_index[record, column]
    exemplar = candidates.exemplar_index[record, column]
    triples, first = np.unique(
        np.stack([record, persona, exemplar], axis=1), axis=0, return_index=True
    )
    values = np.asarray(log_likelihood, np.float64)[record, column][first]
    similarity = unit_rows("record_embeddings", record_embeddings) @ (
        unit_rows("exemplar_embeddings", exemplar_embeddings).T
    )
    return Scores(triples, values, similarity)


class Surrogate(NamedTuple):
    """The fitted guess.

    Attributes:
        persona: b, float64 [K].
        exemplar: a, float64 [J].
        slope: s, nats per unit of cosine.
        between: σ_u², nats².
        within: σ_v², nats².
    """

    persona: np.ndarray
    exemplar: np.ndarray
    slope: float
    between: float
    within: float

    def log_score(self, known: Scores, start: int, stop: int) -> np.ndarray:
        """Log of √E[p²] up to a constant per record, float64 [n, K, J], of the records in a range.

        Args:
            known: what is scored of all records; those of the range are looked at.
            start: first record.
            stop: one past the last record.
        """
        num_exemplars = len(self.exemplar)
        first, last = np.searchsorted(known.triples[:, 0], [start, stop])
        record, persona, exemplar = known.triples[first:last].T
        row, similarity = record - start, known.similarity[start:stop]
        fixed = self.exemplar + self.slope * similarity
        residual = known.log_likelihood[first:last] - (fixed[row, exemplar] + self.persona[persona])
        size = stop - start
        level = np.bincount(row, residual, size) / np.maximum(np.bincount(row, minlength=size), 1)
        cell, cells = row * num_exemplars + exemplar, size * num_exemplars
        count = np.bincount(cell, minlength=cells).reshape(size, num_exemplars)
        total = np.bincount(cell, residual - level[row], cells).reshape(size, num_exemplars)
        # The conditional mean and variance of u_ij given the cell's scores.
        mean = fixed + self.between * total / (self.between * count + self.within)
        variance = self.between * self.within / (self.between * count + self.within) + self.within
        exemplar_part = mean + np.minimum(variance, _MOST_VARIANCE)
        return exemplar_part[:, None, :] + self.persona[None, :, None]


def fit_surrogate(known: Scores, num_personas: int) -> Surrogate:
    """Fits main effects by ridge regression within records, and the variances by moments.

    Args:
        known: scored pairs; `triples` sorted by record.
        num_personas: K.
    """
    record, persona, exemplar = np.asarray(known.triples, np.int64).T
    num_records, num_exemplars = known.similarity.shape
    size = num_exemplars + num_personas + 1
    cosine = known.similarity[record, exemplar].astype(np.float64)
    spread = float(cosine.std()) or 1.0
    pairs = np.arange(len(record))
    design = sparse.csr_matrix(
        (
            np.concatenate([np.ones(2 * len(pairs)), (cosine - cosine.mean()) / spread]),
            (
                np.tile(pairs, 3),
                np.concatenate([exemplar, num_exemplars + persona, np.full(len(pairs), size - 1)]),
            ),
        ),
        shape=(len(pairs), size),
    )
    # Each record's own level drops out when its means are taken off both sides.
    member = sparse.csr_matrix((np.ones(len(pairs)), (record, pairs)), (num_records, len(pairs)))
    number = np.asarray(member.sum(axis=1)).ravel()
    inverse = sparse.diags(1 / np.maximum(number, 1))
    sums = member @ design
    gram = (design.T @ design - sums.T @ (inverse @ sums)).toarray()
    centred = known.log_likelihood - (inverse @ (member @ known.log_likelihood))[record]
    effects = np.linalg.solve(gram + _RIDGE * np.eye(size), design.T @ centred)
    residual = known.log_likelihood - design @ effects
    residual = residual - (inverse @ (member @ residual))[record]
    freedom = np.maximum(number - 1, 0).sum()
    total = float((residual**2).sum() / max(freedom, 1)) or 1.0
    cell = np.unique(record * num_exemplars + exemplar, return_inverse=True)[1]
    in_cell = np.bincount(cell)
    mean = np.bincount(cell, residual) / in_cell
    squares, repeats = ((residual - mean[cell]) ** 2).sum(), (in_cell - 1).sum()
    prior = _WITHIN_SHARE * total * _WITHIN_PAIRS
    within = float((squares + prior) / (repeats + _WITHIN_PAIRS))
    return Surrogate(
        effects[num_exemplars : num_exemplars + num_personas],
        effects[:num_exemplars],
        float(effects[-1] / spread),
        max(total - within, 1e-6),
        max(within, 1e-6),
    )
