"""Downstream use: what is a classifier worth that learnt from simulated texts?

Trained on simulated texts with the labels they were asked for, tested on real ones (Ye et al.,
2022, and Bui et al., 2025, Table 2). Its noise floor, where training records stand for the
simulation, is the same classifier trained on as many real texts.
"""

from __future__ import annotations

import warnings

import numpy as np

from mop_jax.errors import DataError
from mop_jax.evaluation.metrics.comparison import Comparison
from mop_jax.evaluation.metrics.registry import Metric, register


def downstream_f1(comparison: Comparison, *, inverse_penalty: float = 1.0) -> float:
    """Macro-F1 on real texts of a classifier trained on simulated texts.

    Logistic regression on embeddings, standardised by the simulated texts' means and deviations.
    The mean over all labels that real texts have of 2 TP / (2 TP + FP + FN); a label that no
    simulated text was asked for counts as 0, with a warning.

    Args:
        comparison: texts to compare, both samples with labels.
        inverse_penalty: C of the L2 penalty; 1 is scikit-learn's default, kept so that values can
            be compared with others'.

    Raises:
        DataError: if labels are missing, or simulated texts have fewer than two.
    """
    return float(np.mean(list(f1_by_label(comparison, inverse_penalty=inverse_penalty).values())))


def f1_by_label(comparison: Comparison, *, inverse_penalty: float = 1.0) -> dict[str, float]:
    """F1 of each label that real texts have; see `downstream_f1`, which is their mean."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    real, simulated = comparison.real, comparison.simulated
    if real.labels is None or simulated.labels is None:
        whose = "real" if real.labels is None else "simulated"
        raise DataError(f"A downstream classifier needs labels, which the {whose} texts lack.")
    labels = sorted(set(real.labels))
    asked = set(simulated.labels)
    if len(asked) < 2:
        raise DataError(
            f"All simulated texts have the label {next(iter(asked))!r}; "
            "a downstream classifier needs two or more."
        )
    if missing := [label for label in labels if label not in asked]:
        warnings.warn(
            f"No simulated text was asked for {', '.join(map(repr, missing))}, which real texts "
            "have; F1 of what is missing is 0.",
            stacklevel=2,
        )
    classifier = make_pipeline(
        StandardScaler(), LogisticRegression(C=inverse_penalty, max_iter=1000)
    )
    classifier.fit(simulated.embeddings, np.asarray(simulated.labels))
    predicted = classifier.predict(real.embeddings)
    scores = f1_score(
        np.asarray(real.labels), predicted, labels=labels, average=None, zero_division=0
    )
    return dict(zip(labels, map(float, scores)))


register(
    Metric(
        name="downstream_f1",
        title="macro-F1 on real texts, trained on simulated",
        function=downstream_f1,
        direction="higher",
        range=(0.0, 1.0),
        reference="Ye et al. (2022)",
        takes=Comparison,
        family="downstream",
        needs=("labels",),
    )
)
