"""Samples of texts and embeddings that the tests of metrics share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mop_jax.evaluation.metrics import Comparison, Metric, Sample


def sample(embeddings: np.ndarray, prefix: str = "text", **fields: Any) -> Sample:
    """A sample whose texts are all different: `prefix` and a number."""
    return Sample([f"{prefix} number {i}" for i in range(len(embeddings))], embeddings, **fields)


def comparison(
    real: np.ndarray, simulated: np.ndarray, train: np.ndarray | None = None, seed: int = 0
) -> Comparison:
    """A comparison of embeddings."""
    return Comparison(
        sample(real, "real"),
        sample(simulated, "simulated"),
        None if train is None else sample(train, "train"),
        seed,
    )


def of_texts(
    simulated: Sequence[str],
    real: Sequence[str] = ("some other text", "and one more of these"),
    shown: Sequence[Sequence[str]] | None = None,
) -> Comparison:
    """A comparison of texts, with random embeddings."""
    rng = np.random.default_rng(0)
    return Comparison(
        Sample(real, rng.normal(size=(len(real), 3))),
        Sample(simulated, rng.normal(size=(len(simulated), 3)), shown=shown),
    )


def gaussian(n: int, width: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """Vectors of a Gaussian with unequal variances; `shift` moves the mean of the first axis."""
    scale = np.arange(1, width + 1) ** -0.5
    vectors = np.random.default_rng(seed).normal(size=(n, width)) * scale
    vectors[:, 0] += shift
    return vectors


def metric(function, **changes: Any) -> Metric:
    """A metric of a comparison, made up for a test."""
    values: dict[str, Any] = {
        "name": "made_up", "title": "", "function": function, "direction": "lower",
        "range": (-np.inf, np.inf), "reference": "none", "takes": Comparison,
    }  # fmt: skip
    return Metric(**{**values, **changes})


def mean_gap(both: Comparison) -> float:
    """Difference of the means of the first axis."""
    return float(both.simulated.embeddings[:, 0].mean() - both.real.embeddings[:, 0].mean())


GAP = metric(mean_gap)
