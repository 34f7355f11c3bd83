"""Proposals q_i(k, j): how likely each component is to become a candidate of record i.

Either a product of a persona part and an exemplar part (`FactorisedProposal`), or a table that a
function fills for a range of records at a time (`TableProposal`): with N = 5,000, K = 100 and
J = 1,000 the whole table would take 4 GB.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike

from mop_jax.errors import DataError


class Proposal(Protocol):
    """Anything that gives q_i(k, j) = q_i(j) q_i(k | j) for a range of records."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, K, J)."""
        ...

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """q_i(j) as float64 [n, J], and q_i(k | j) as [n, K, J] or, if free of j, [n, K, 1]."""
        ...


class FactorisedProposal(NamedTuple):
    """q_i(k, j) = a_i(k) b_i(j): personas and exemplars independent.

    Attributes:
        persona_probs: float64 [N, K] (or [1, K], the same for every record).
        exemplar_probs: float64 [N, J], zero at left-out exemplars.
    """

    persona_probs: np.ndarray
    exemplar_probs: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, K, J)."""
        num_records, num_exemplars = self.exemplar_probs.shape
        return num_records, self.persona_probs.shape[1], num_exemplars

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Proposal.rows`."""
        exemplar = np.asarray(self.exemplar_probs[start:stop], dtype=np.float64)
        every = self.persona_probs.shape[0] == 1
        persona = self.persona_probs[:1] if every else self.persona_probs[start:stop]
        persona = np.broadcast_to(persona, (exemplar.shape[0], persona.shape[1]))
        return exemplar, np.asarray(persona, dtype=np.float64)[:, :, None]

    def dense(self) -> np.ndarray:
        """The table float64 [N, K, J] of q; for small problems only."""
        return self.persona_probs[:, :, None] * self.exemplar_probs[:, None, :]


class TableProposal(NamedTuple):
    """Any q_i(k, j), from a function of a range of records, so that [N, K, J] is never whole.

    A fitted gate proposes its own refreshed candidates this way: see `gate_proposal`.

    Attributes:
        shape: (N, K, J).
        table: (start, stop) → float64 [stop − start, K, J], zero at left-out pairs.
    """

    shape: tuple[int, int, int]
    table: Callable[[int, int], np.ndarray]

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Proposal.rows`."""
        joint = np.asarray(self.table(start, stop), dtype=np.float64)
        expected = (stop - start, *self.shape[1:])
        if joint.shape != expected:
            raise DataError(
                f"The proposal of records {start} to {stop - 1} has shape {joint.shape}; "
                f"accepted is {expected}."
            )
        exemplar = joint.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            persona = np.where(exemplar[:, None, :] > 0, joint / exemplar[:, None, :], 0.0)
        return exemplar, persona


def defensive_proposal(
    record_embeddings: np.ndarray,
    exemplar_embeddings: np.ndarray,
    num_personas: int,
    leave_out: np.ndarray | None = None,
    *,
    uniform_share: float = 0.5,
    temperature: float = 0.2,
) -> FactorisedProposal:
    """Uniform over personas; over exemplars part uniform, part softmax of embedding similarity.

    b_i(j) = uniform_share / J_i + (1 − uniform_share) softmax_j(cos(x_i, e_j) / temperature), both
    over the J_i exemplars that record i may use. No importance weight exceeds the uniform one by
    more than 1 / uniform_share.

    Args:
        record_embeddings: float [N, D]; of the contexts, say.
        exemplar_embeddings: float [J, D].
        num_personas: K.
        leave_out: bool [N, J], True where exemplar j must not serve record i.
        uniform_share: in (0, 1].
        temperature: of the softmax over cosines; positive.

    Raises:
        DataError: on misshapen or non-finite input, or if a record has no exemplar left.
    """
    if not 0 < uniform_share <= 1:
        raise DataError(f"uniform_share is {uniform_share}; accepted is above 0 and up to 1.")
    if not temperature > 0:
        raise DataError(f"The proposal's temperature is {temperature}; accepted is above 0.")
    check_count("num_personas", num_personas)
    records = unit_rows("record_embeddings", record_embeddings)
    exemplars = unit_rows("exemplar_embeddings", exemplar_embeddings)
    if records.shape[1] != exemplars.shape[1]:
        raise DataError(
            f"Record embeddings have width {records.shape[1]} and exemplar embeddings "
            f"{exemplars.shape[1]}; both must come from the same encoder."
        )
    allowed = allowed_exemplars(leave_out, records.shape[0], exemplars.shape[0])
    logits = np.where(allowed, records @ exemplars.T / temperature, -np.inf)
    similar = np.exp(logits - logits.max(axis=1, keepdims=True))
    similar /= similar.sum(axis=1, keepdims=True)
    uniform = allowed / allowed.sum(axis=1, keepdims=True)
    exemplar_probs = uniform_share * uniform + (1 - uniform_share) * similar
    return FactorisedProposal(np.full((1, num_personas), 1 / num_personas), exemplar_probs)


def gate_proposal(
    component_probs: Callable[[int, int], np.ndarray],
    num_personas: int,
    leave_out: np.ndarray,
    *,
    uniform_share: float = 0.5,
) -> TableProposal:
    """Proposes from a fitted gate, defended by a uniform share: q = s·uniform + (1 − s)·π_k Ω_kj.

    Args:
        component_probs: (start, stop) → float [n, K, J], the gate's π_k(x_i) Ω_kj(x_i) (or any
            unnormalised positive score); left-out exemplars are zeroed here.
        num_personas: K.
        leave_out: bool [N, J].
        uniform_share: in (0, 1].
    """
    if not 0 < uniform_share <= 1:
        raise DataError(f"uniform_share is {uniform_share}; accepted is above 0 and up to 1.")
    check_count("num_personas", num_personas)
    leave_out = np.asarray(leave_out, dtype=bool)
    num_records, num_exemplars = leave_out.shape
    allowed = allowed_exemplars(leave_out, num_records, num_exemplars)

    def table(start: int, stop: int) -> np.ndarray:
        score = np.asarray(component_probs(start, stop), dtype=np.float64)
        score = np.where(allowed[start:stop, None, :], score, 0.0)
        total = score.sum(axis=(1, 2), keepdims=True)
        if not (np.isfinite(total).all() and (score >= 0).all() and (total > 0).all()):
            raise DataError(
                f"The gate's probabilities for records {start} to {stop - 1} are not all finite, "
                "non-negative and of positive sum."
            )
        count = num_personas * allowed[start:stop].sum(axis=1)
        uniform = allowed[start:stop, None, :] / count[:, None, None]
        return uniform_share * uniform + (1 - uniform_share) * score / total

    return TableProposal((num_records, num_personas, num_exemplars), table)


def as_proposal(proposal: Proposal | ArrayLike) -> Proposal:
    """A proposal as it is, or one from a table float [N, K, J]."""
    if hasattr(proposal, "rows"):
        return proposal  # type: ignore[return-value]
    table = np.asarray(proposal)
    if table.ndim != 3:
        raise DataError(f"The proposal has shape {table.shape}; accepted is [N, K, J].")
    num_records, num_personas, num_exemplars = table.shape
    return TableProposal((num_records, num_personas, num_exemplars), lambda a, b: table[a:b])


def allowed_exemplars(
    leave_out: np.ndarray | None, num_records: int, num_exemplars: int
) -> np.ndarray:
    """The complement of `leave_out`, checked: bool [N, J] with at least one True per record."""
    shape = (num_records, num_exemplars)
    allowed = np.ones(shape, bool) if leave_out is None else ~np.asarray(leave_out, dtype=bool)
    if allowed.shape != shape:
        raise DataError(f"leave_out has shape {allowed.shape}; accepted is {shape}.")
    if not allowed.any(axis=1).all():
        row = int(np.argmin(allowed.any(axis=1)))
        raise DataError(
            f"Every exemplar is left out for record {row}; "
            "choose exemplars from other records or groups as well."
        )
    return allowed


def unit_rows(name: str, embeddings: np.ndarray) -> np.ndarray:
    """Embeddings scaled to length one, float64 [n, D]."""
    rows = np.asarray(embeddings, dtype=np.float64)
    if rows.ndim != 2 or not np.isfinite(rows).all():
        raise DataError(f"{name} must be a finite table [n, D], not of shape {rows.shape}.")
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def check_count(name: str, value: int) -> None:
    """Refuses a count below one."""
    if value < 1:
        raise DataError(f"{name} is {value}; accepted is a positive integer.")
