"""Held-out evidence: log p(y | x) of records that nothing was fitted to, and paired differences.

Every claim is made against the uniform mixture over the same components (τ = 1), record by record,
with the standard error of the paired difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import logsumexp

from mop_jax.errors import DataError

BASELINE = "uniform_mixture"


def mean_and_error(values: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
    """Weighted mean over records and its standard error.

    With w_i the weights scaled to sum to one, se² = n / (n − 1) Σ w_i² (v_i − mean)²; for equal
    weights this is the usual standard deviation over √n.

    Args:
        values: float [n].
        weights: positive [n]; equal by default.
    """
    values = np.asarray(values, np.float64)
    count = len(values)
    if count < 2:
        raise DataError(f"A standard error needs at least 2 held-out records; there is {count}.")
    shares = np.full(count, 1 / count) if weights is None else weights / np.sum(weights)
    mean = float(np.sum(shares * values))
    variance = count / (count - 1) * np.sum(shares**2 * (values - mean) ** 2)
    return {"mean": mean, "se": float(np.sqrt(variance))}


def summarise(
    log_probs: Mapping[str, np.ndarray], weights: np.ndarray | None = None
) -> dict[str, dict[str, float]]:
    """Mean and standard error of each predictor and of its difference to the uniform mixture.

    Args:
        log_probs: predictor → log p(y_i | x_i), nats per record, [n]; must hold `uniform_mixture`.
        weights: of the records, [n].

    Returns:
        name → {mean, se}, and name_minus_uniform → {mean, se} of the paired differences.
    """
    summary = {name: mean_and_error(values, weights) for name, values in log_probs.items()}
    for name, values in log_probs.items():
        if name != BASELINE:
            difference = values - log_probs[BASELINE]
            summary[f"{name}_minus_uniform"] = mean_and_error(difference, weights)
    return summary


def uniform_over_prompts(log_likelihood: np.ndarray) -> np.ndarray:
    """Log p(y | x) of the uniform mixture over prompts, [n], from log-likelihoods [n, prompts]."""
    return logsumexp(log_likelihood, axis=1) - np.log(log_likelihood.shape[1])


def candidate_check(
    counts: tuple[int, int],
    differences: tuple[np.ndarray, np.ndarray],
    weights: np.ndarray | None = None,
) -> dict[str, Any]:
    """Whether twice (or, where all components are scored, half) the candidates change the claim.

    Args:
        counts: C of the reported estimate, and of the comparison.
        differences: paired differences mop − uniform [n] with each.
        weights: of the records.

    Returns:
        Both estimates, how far the comparison moves the reported one, and `passed`: whether that
        is less than the reported standard error.
    """
    reported, compared = (mean_and_error(d, weights) for d in differences)
    moved = compared["mean"] - reported["mean"]
    return {
        "candidates": counts[0],
        "compared_candidates": counts[1],
        "mop_minus_uniform": reported,
        "mop_minus_uniform_compared": compared,
        "moved": moved,
        "passed": bool(abs(moved) < reported["se"]),
    }
