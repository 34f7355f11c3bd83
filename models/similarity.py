"""What a retrieval system knows: how alike a context and an exemplar are, by text, label, group.

A `SimilarityMap` holds the exemplars' side, [J, ·] arrays. What compares N records with J exemplars
is computed for the records at hand, so that no dense [N, J] array of floats lies in memory.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mop_jax.models.feature_maps import product

Array = Any  # numpy or jax array: maps travel through jit

# Centred embeddings shorter than this share of the mean's length are rounding, not a direction.
_SHORTEST = 1e-4
# Cosines that vary less than this within every record tell no exemplars apart.
_LEAST_SPREAD = 1e-3
_ROWS = 1024


class SimilarityMap(NamedTuple):
    """The exemplars as a context is compared with them; a term that is None is no part of Ω.

    Attributes:
        directions: h(x_j) centred, scaled to length 1/s, float [J, D]; s is the standard deviation
            of the cosine over the exemplars that a training record may use, so that products with
            unit vectors are cosines in units of s.
        mean: of the training contexts' embeddings, [D].
        labels: code of each exemplar's label, int32 [J]; −1 for none.
        groups: code of each exemplar's group, int32 [J]; −1 for none.
    """

    directions: Array | None
    mean: Array | None
    labels: Array | None
    groups: Array | None

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the terms that are there, in the order of `features`."""
        present = {
            "context_similarity": self.directions,
            "same_label": self.labels,
            "same_group": self.groups,
        }
        return tuple(name for name, values in present.items() if values is not None)

    def with_none(self) -> SimilarityMap:
        """The map with one more exemplar that is like nothing."""
        directions = self.directions
        if directions is not None:
            directions = np.pad(np.asarray(directions), ((0, 1), (0, 0)))
        labels, groups = (
            None if codes is None else np.append(np.asarray(codes), np.int32(-1))
            for codes in (self.labels, self.groups)
        )
        return SimilarityMap(directions, self.mean, labels, groups)

    def features(
        self, embeddings: Array, labels: Array | None, groups: Array | None
    ) -> tuple[jax.Array, ...]:
        """The terms for n contexts, each [n, J].

        A context whose label (group) is not known, code −1 or None, is like no exemplar in it: the
        term is 0 for all exemplars then, and Ω what it is without the term.

        Args:
            embeddings: h(x), [n, D].
            labels: codes, int [n].
            groups: codes, int [n].
        """
        found = []
        dtype = jnp.asarray(embeddings).dtype
        if self.directions is not None and self.mean is not None:
            unit = _unit_rows(jnp.asarray(embeddings) - self.mean, self.mean)
            found.append(product(unit, jnp.asarray(self.directions).T).astype(dtype))
        for own, others in ((labels, self.labels), (groups, self.groups)):
            if others is not None:
                codes = jnp.full(len(embeddings), -1) if own is None else jnp.asarray(own)
                found.append(_equal(codes, jnp.asarray(others)).astype(dtype))
        return tuple(found)


def fit_similarity_map(
    contexts: np.ndarray,
    mean: np.ndarray,
    leave_out: np.ndarray,
    *,
    exemplar_contexts: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    exemplar_labels: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    exemplar_groups: np.ndarray | None = None,
) -> SimilarityMap | None:
    """The map of the training records, with the terms that tell exemplars apart; None without any.

    A term says nothing, and is left out, where its arrays are not given or where no record may use
    two exemplars that differ in it: one label for all, one context for all, or groups of which a
    record's own is left out.

    Args:
        contexts: h(x_i), [N, D].
        mean: that is taken off all embeddings, [D]: texts of one template point nearly the same
            way, and their plain cosines say how much of them is template.
        leave_out: True where exemplar j must not serve record i, bool [N, J].
        exemplar_contexts: h(x_j), [J, D].
        labels: codes, int [N]; −1 for none.
        exemplar_labels: codes, int [J].
        groups: codes, int [N]; −1 for none.
        exemplar_groups: codes, int [J].
    """
    directions = None
    if exemplar_contexts is not None:
        directions = _directions(contexts, exemplar_contexts, mean, leave_out)
    if labels is None or not _tells_apart(labels, exemplar_labels, leave_out):
        exemplar_labels = None
    if groups is None or not _tells_apart(groups, exemplar_groups, leave_out):
        exemplar_groups = None
    dtype = contexts.dtype
    fitted = SimilarityMap(
        None if directions is None else directions.astype(dtype),
        None if directions is None else np.asarray(mean, dtype),
        exemplar_labels,
        exemplar_groups,
    )
    return fitted if fitted.terms else None


def _directions(
    contexts: np.ndarray, exemplar_contexts: np.ndarray, mean: np.ndarray, leave_out: np.ndarray
) -> np.ndarray | None:
    mean = np.asarray(mean, np.float64)
    exemplars = np.asarray(_unit_rows(exemplar_contexts - mean, mean, np), np.float64)
    total, count = 0.0, 0
    for start in range(0, len(contexts), _ROWS):
        rows = slice(start, start + _ROWS)
        allowed = ~leave_out[rows]
        cosine = _unit_rows(contexts[rows] - mean, mean, np) @ exemplars.T
        number = np.maximum(allowed.sum(axis=1, keepdims=True), 1)
        # Within a record: what moves all its exemplars alike moves no choice among them.
        centre = np.where(allowed, cosine, 0.0).sum(axis=1, keepdims=True) / number
        total += float(np.where(allowed, (cosine - centre) ** 2, 0.0).sum())
        count += int(allowed.sum())
    spread = np.sqrt(total / max(count, 1))
    return exemplars / spread if spread > _LEAST_SPREAD else None


def _unit_rows(rows: Array, mean: Array, numpy: Any = jnp) -> Any:
    length = numpy.linalg.norm(rows, axis=-1, keepdims=True)
    shortest = _SHORTEST * numpy.linalg.norm(mean) + 1e-12
    return rows / numpy.maximum(length, shortest)


def _equal(codes: Array, others: Array) -> Any:
    """Whether both codes are known and the same, bool [n, J]."""
    return (codes[:, None] == others[None, :]) & (codes[:, None] >= 0)


def _tells_apart(codes: np.ndarray, others: np.ndarray | None, leave_out: np.ndarray) -> bool:
    """Whether some record may use both an exemplar of its own code and another."""
    if others is None:
        return False
    same, allowed = _equal(codes, others), ~leave_out
    return bool(((same & allowed).any(axis=1) & (~same & allowed).any(axis=1)).any())
