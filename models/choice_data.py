"""What a choice model is fitted to: the options' table, the answers, and what groups people are in.

A `MixtureData` whose `choices` are given is one of closed answers. Its records are items, such as
what a cell's people answered to a question; contexts, personas, exemplars, candidates and feature
maps are those of any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mop_jax.errors import DataError
from mop_jax.models import checks
from mop_jax.models.groupings import make_design, make_designs, unknown_designs

Array = Any  # numpy or jax array: choices travel through jit


class Choices(NamedTuple):
    """Closed answers of N items to Q questions of up to M options.

    Designs hold a one in the column that an item belongs to. Their columns outnumber what was
    seen: one that no training item is in has the effect that the prior gives it.

    Attributes:
        option_log_likelihood: ℓ of each option after each candidate, nats, float32 [N, C, M].
        option_offset: what is known beforehand of an option, nats, [N, M]; −∞ where a question has
            fewer options.
        counts: how many people chose each option, [N, M]; may be weighted.
        question: float32 [N, Q + 1]; the last column is of questions unseen so far.
        groups: by the name of a grouping, such as `age` or `age:education`, float32 [N, L + 1]; the
            last column is of groups unseen so far.
        option_preference: what the language model prefers of the question's options whoever
            answers, nats of mean zero over them, [N, M]; None where nobody has said.
    """

    option_log_likelihood: Array
    option_offset: Array
    counts: Array
    question: Array
    groups: dict[str, Array]
    option_preference: Array | None = None

    def take(self, index: Array) -> Choices:
        """The items `index`."""
        if isinstance(index, jax.Array):  # NumPy cannot be indexed by a traced array
            return jax.tree.map(lambda values: jnp.asarray(values)[index], self)
        return jax.tree.map(lambda values: values[index], self)

    def unknown(self, number: int, member_of: Mapping[str, Array] | None = None) -> Choices:
        """Placeholders of items that nobody has answered, of no known question.

        Args:
            number: N.
            member_of: codes of the levels of groupings, integers [N]; −1 for a level unseen so far,
                as all are of groupings that are not given.

        Raises:
            DataError: if there is no such grouping, or no such level.
        """
        options = self.counts.shape[-1]
        dtype = self.option_log_likelihood.dtype
        return Choices(
            np.zeros((number, 1, options), dtype),
            np.zeros((number, options), dtype),
            np.zeros((number, options), dtype),
            unknown_designs({"question": self.question}, number)["question"],
            unknown_designs(self.groups, number, member_of),
            None if self.option_preference is None else np.zeros((number, options), dtype),
        )


def make_choices(
    *,
    option_log_likelihood: Array,
    counts: Array,
    question: Array,
    option_mask: Array | None = None,
    option_offset: Array | None = None,
    option_preference: Array | None = None,
    num_questions: int | None = None,
    groups: Mapping[str, Array] | None = None,
    num_levels: Mapping[str, int] | None = None,
    dtype: Any = np.float32,
) -> Choices:
    """Checks and gathers closed answers.

    Args:
        option_log_likelihood: nats of each option's text after each candidate, [N, C, M].
        counts: people who chose each option, [N, M].
        question: which question an item is of, integers [N]; −1 for one unseen so far.
        option_mask: which places hold an option, bool [N, M]; all by default.
        option_offset: added to the options' log-probabilities before they are normalised, nats
            [N, M]; zeros by default.
        option_preference: what the language model prefers of the question's options whoever
            answers, nats up to a constant, [N, M].
        num_questions: Q, those of other data included; by default as many as there are here.
        groups: codes of each grouping's levels, integers [N]; −1 for a level unseen so far.
        num_levels: how many levels a grouping has, those of other data included.
        dtype: floating-point type of the arrays made.

    Raises:
        DataError: naming the array that is at fault.
    """
    table = np.asarray(option_log_likelihood, dtype)
    if table.ndim != 3 or 0 in table.shape:
        raise DataError(
            f"option_log_likelihood must be [records, candidates, options], not {table.shape}."
        )
    items, _, options = table.shape
    mask = _shaped("option_mask", option_mask, (items, options), bool, np.ones)
    if (mask.sum(1) < 2).any():
        raise DataError(f"Record {int(np.argmin(mask.sum(1)))} has fewer than two options.")
    if not np.isfinite(table[np.broadcast_to(mask[:, None], table.shape)]).all():
        raise DataError("option_log_likelihood must be finite wherever there is an option.")
    counted = _shaped("counts", counts, (items, options), dtype, np.zeros)
    if not np.isfinite(counted).all() or (counted < 0).any() or (counted[~mask] > 0).any():
        raise DataError(
            "counts must be finite, zero or more, and zero where a question has no option."
        )
    offset = _shaped("option_offset", option_offset, (items, options), dtype, np.zeros)
    if not np.isfinite(offset[mask]).all():
        raise DataError("option_offset must be finite wherever there is an option.")
    preference = None
    if option_preference is not None:
        given = _shaped("option_preference", option_preference, (items, options), dtype, np.zeros)
        if not np.isfinite(given[mask]).all():
            raise DataError("option_preference must be finite wherever there is an option.")
        preference = np.where(mask, given, 0.0)
        preference -= preference.sum(1, keepdims=True) / mask.sum(1, keepdims=True)
        preference = np.where(mask, preference, 0.0).astype(dtype)
    questions = checks.codes("question", question, items)
    total = int(questions.max()) + 1 if num_questions is None else num_questions
    return Choices(
        np.where(mask[:, None], table, 0.0).astype(dtype),
        np.where(mask, offset, -np.inf).astype(dtype),
        counted,
        make_design("question", questions, total, dtype),
        make_designs(groups or {}, num_levels or {}, items, dtype),
        preference,
    )


def _shaped(name: str, values: Array | None, shape: tuple, dtype: Any, default: Any) -> np.ndarray:
    array = default(shape, dtype) if values is None else np.asarray(values, dtype)
    checks.check_shape(name, array, shape)
    return array
