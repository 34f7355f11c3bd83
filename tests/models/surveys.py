"""A small survey as arrays: cells of two covariates, questions of four and three options."""

from __future__ import annotations

from typing import Any

import numpy as np

from mop_jax.models import MixtureData, choice_data

K, J, M = 3, 2, 4
LEVELS = {"age": 3, "education": 2}


def survey_data(seed: int = 0, people: int = 60, **changes: Any) -> MixtureData:
    """Items of six cells to two questions, answered by nobody in particular."""
    rng = np.random.default_rng(seed)
    age, education = (codes.ravel() for codes in np.indices(tuple(LEVELS.values())))
    cell = np.tile(np.arange(len(age)), 2)
    question = np.repeat([0, 1], len(age))
    persona, exemplar = np.divmod(np.arange(K * J), J)
    pairs = (len(cell), K * J)
    embeddings = rng.normal(size=(len(age), 5))
    mask = np.arange(M) < np.asarray([M, M - 1])[question][:, None]
    counts = rng.multinomial(people, np.full(M - 1, 1 / (M - 1)), size=len(cell))
    arguments = {
        "context_embeddings": embeddings[cell],
        "persona_embeddings": rng.normal(size=(K, 5)),
        "exemplar_embeddings": rng.normal(size=(J, 5)),
        "persona_index": np.broadcast_to(persona, pairs),
        "exemplar_index": np.broadcast_to(exemplar, pairs),
        "log_weight": np.zeros(pairs),
        "option_log_likelihood": rng.normal(-5, 2, (*pairs, M)),
        "counts": np.pad(counts, ((0, 0), (0, 1))),
        "question": question,
        "option_mask": mask,
        "member_of": {"age": age[cell], "education": education[cell]},
        "num_levels": LEVELS,
    }
    return choice_data(**arguments | changes)
