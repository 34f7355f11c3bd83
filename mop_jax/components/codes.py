"""Labels and groups of records as integers, numbered as the exemplars' are.

What a gate compares must be known before the response. A group (a film, a respondent) is; a label
may be part of what was asked, or say what was answered.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mop_jax.population.population import Population

_CHANCE = 1e-2
UNKNOWN = -1
"""The code of what is not known, or no exemplar has."""


def codes_of(values: Sequence[str] | None, among: Sequence[str] | None) -> np.ndarray | None:
    """Codes int32 [n] of values, numbered as they first come up in `among`; None without either.

    Example:
        >>> codes_of(["rotten", "fresh", "other"], ["fresh", "rotten", "fresh"]).tolist()
        [1, 0, -1]
    """
    if values is None or among is None:
        return None
    numbers: dict[str, int] = {}
    for value in among:
        numbers.setdefault(value, len(numbers))
    return np.array([numbers.get(value, UNKNOWN) for value in values], np.int32)


def labels_known_before(records: Population) -> list[str] | None:
    """The records' labels, where it is beyond doubt that contexts ask for them.

    A gate that chose exemplars by a label which only the answer gives away would be told the answer
    of held-out records. So repeated contexts must have the same label each time, more often than
    labels of that frequency that have nothing to do with contexts would agree by chance (once in a
    hundred). Where every context is another one nothing can be shown, and no label is used.
    """
    labels = labels_of_contexts(records)
    if labels is None:
        return None
    _, code, frequency = np.unique(labels, return_inverse=True, return_counts=True)
    _, first, count = np.unique(records.contexts, return_index=True, return_counts=True)
    # Of n records of a context, those after the first have its label by chance with its share.
    share = frequency[code[first]] / len(labels)
    if np.sum((count - 1) * np.log(share)) > np.log(_CHANCE):
        return None
    return labels


def labels_of_contexts(records: Population) -> list[str] | None:
    """The records' labels, where contexts ask for them: each context always has the same.

    A label that is part of the answer is nothing that a simulation could be held to, nor that a
    gate may know. Where every context is another one this cannot be seen: there, name a label only
    if it was known before the response.
    """
    labels = records.labels
    if labels is None or len(set(zip(records.contexts, labels))) > len(set(records.contexts)):
        return None
    return labels
