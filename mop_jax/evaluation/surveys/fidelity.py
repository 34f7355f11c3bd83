"""The Population Fidelity Score, by its authors' package."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from mop_jax.errors import DataError
from mop_jax.evaluation.surveys.shares import predictive_shares
from mop_jax.survey import Items


def population_fidelity(p: ArrayLike, items: Items) -> pd.DataFrame:
    """Population Fidelity Score by question: (accuracy · adaptability · structure)^⅓, 0 to 1.

    Accuracy is one minus the mean normalised earth mover's distance, adaptability min(A, 1/A) of
    our `variance_ratio` A, structure the positive part of our `between_group_structure`. More is
    better; a prediction that is alike for all cells has 0 (da Silva et al., 2026).

    Args:
        p: predicted shares [N, M], or draws [S, N, M], whose mean is judged.
        items: with the real shares; ordered questions only are scored, and answered items.

    Returns:
        One row a question: `question`, `pfs`, `score_accuracy`, `score_adaptability`,
        `score_structure`.

    Raises:
        DataError: if `popfidelity` is not installed, no question is ordered, or a question has one
            cell.
    """
    try:
        from popfidelity import Cells, score
    except ImportError as error:
        raise DataError(
            "The Population Fidelity Score needs the package popfidelity; install mop-jax[survey]."
        ) from error
    shares = predictive_shares(p, items)
    answered = items.counts.sum(1) > 0
    rows = []
    for q, question in enumerate(items.questions):
        chosen = np.flatnonzero((items.question == q) & answered)
        if not question.ordered or not len(chosen):
            continue
        if len(chosen) < 2:
            raise DataError(f"Question {question.id} has one cell; its fidelity needs two.")
        labels = tuple(map(str, items.cell[chosen]))
        sides = []
        for side in (items.shares, shares):
            of_question = side[chosen, : question.num_options]
            of_question = of_question / of_question.sum(1, keepdims=True)
            sides.append(Cells(labels, question.options, of_question, items.people[chosen]))
        real, simulated = sides
        scored = score(real, simulated, threads=1)
        names = ("pfs", "score_accuracy", "score_adaptability", "score_structure")
        rows.append({"question": question.id, **{name: scored[name] for name in names}})
    if not rows:
        raise DataError("No question here is ordered; population fidelity is defined on scales.")
    return pd.DataFrame(rows)
