"""Held-out evidence: log p(y | x) of records that nothing was fitted to, and paired differences.

Every claim is made against the uniform mixture over the same components (τ = 1), record by record,
with the standard error of the paired difference. Records of one group (a film, a respondent) are
not independent: where groups are given, standard errors are those of clusters of records
(Liang and Zeger, 1986).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mop_jax.errors import DataError

BASELINE = "uniform_mixture"


def mean_and_error(
    values: np.ndarray,
    weights: np.ndarray | None = None,
    groups: Sequence[str] | None = None,
) -> dict[str, float]:
    """Weighted mean over records and its standard error, robust to clusters of records.

    With w_i the weights scaled to sum to one and G groups,
    se² = G / (G − 1) Σ_g (Σ_{i in g} w_i (v_i − mean))². Without groups every record is one of its
    own; for equal weights that is the usual standard deviation over √n.

    Args:
        values: float [n].
        weights: positive [n]; equal by default.
        groups: group of each record, [n].

    Raises:
        DataError: if there are fewer than two records, or groups.
    """
    values = np.asarray(values, np.float64)
    count = len(values)
    shares = np.full(count, 1 / max(count, 1)) if weights is None else weights / np.sum(weights)
    mean = float(np.sum(shares * values))
    if groups is None:
        cluster, units = np.arange(count), "records"
    else:
        cluster, units = np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1], "groups"
    parts = np.bincount(cluster, weights=shares * (values - mean))
    if len(parts) < 2:
        raise DataError(
            f"A standard error needs at least 2 held-out {units}; there is {len(parts)}."
        )
    variance = len(parts) / (len(parts) - 1) * np.sum(parts**2)
    return {"mean": mean, "se": float(np.sqrt(variance))}


def summarise(
    log_probs: Mapping[str, np.ndarray],
    weights: np.ndarray | None = None,
    groups: Sequence[str] | None = None,
) -> dict[str, dict[str, float]]:
    """Mean and standard error of each predictor and of its difference to the uniform mixture.

    Args:
        log_probs: predictor → log p(y_i | x_i), nats per record, [n]; must hold `uniform_mixture`.
        weights: of the records, [n].
        groups: of the records, [n].

    Returns:
        name → {mean, se}, and name_minus_uniform → {mean, se} of the paired differences.
    """
    summary = {name: mean_and_error(values, weights, groups) for name, values in log_probs.items()}
    for name, values in log_probs.items():
        if name != BASELINE:
            difference = values - log_probs[BASELINE]
            summary[f"{name}_minus_uniform"] = mean_and_error(difference, weights, groups)
    return summary


def summarise_slack(
    slack: Mapping[str, np.ndarray],
    weights: np.ndarray | None = None,
    groups: Sequence[str] | None = None,
) -> dict[str, dict[str, float]]:
    """What the candidates hide: how far `summarise`'s figures lie below those of all components.

    Args:
        slack: predictor → estimate of E[log p] − E[log p̂], nats per record, [n]; see
            `mop_jax.components.rounds.half_sets`. Predictors that are not named are exact.
        weights: of the records, [n].
        groups: of the records, [n].

    Returns:
        The names of `summarise` → {mean, se}: positive where the figure is too low.
    """
    summary = {name: mean_and_error(values, weights, groups) for name, values in slack.items()}
    for name, values in slack.items():
        if name != BASELINE:
            difference = values - slack[BASELINE]
            summary[f"{name}_minus_uniform"] = mean_and_error(difference, weights, groups)
    return summary


def candidate_check(
    counts: tuple[int, int],
    differences: Mapping[str, np.ndarray],
    compared: Mapping[str, np.ndarray],
    weights: np.ndarray | None = None,
    groups: Sequence[str] | None = None,
    *,
    slack: Mapping[str, np.ndarray] | None = None,
    compared_slack: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Whether the candidates are enough for the claims.

    Two things must hold: what they still hide is estimated at less than the standard error of the
    claim, and the comparison does not belie that estimate. The comparison is no smaller copy of the
    reported set: its half was proposed before anything was scored, so it may move the claim by much
    more than the whole still hides. What belies the estimate is a move of more than a standard
    error and four times what is left, that is also more than twice what the half's own estimate
    foresees: then estimates of this kind are too low here.

    Args:
        counts: C of the reported estimate, and of the comparison.
        differences: paired differences of each predictor to the uniform mixture [n], as reported;
            must hold `mop`.
        compared: the same with the other candidates.
        weights: of the records.
        groups: of the records.
        slack: estimates of what the candidates still hide of each difference [n]; without them
            (renormalised candidates estimate nothing) the move takes their place.
        compared_slack: the same of the comparison's candidates.

    Returns:
        Both estimates of mop − uniform; `moved`, how far the comparison moves the reported one;
        `left`, an estimate of what the candidates still hide, either way: the absolute mean of the
        slack and two standard errors of it; `foreseen`, the same of the comparison, if known; and
        `passed`. `predictors` has the same of every other claim.
    """

    def size(hidden: np.ndarray) -> float:
        found = mean_and_error(hidden, weights, groups)
        return abs(found["mean"]) + 2 * found["se"]

    rows = {}
    for name, values in differences.items():
        reported = mean_and_error(values, weights, groups)
        other = mean_and_error(compared[name], weights, groups)
        moved = other["mean"] - reported["mean"]
        left = abs(moved) if slack is None else size(slack[name])
        foreseen = None if compared_slack is None else size(compared_slack[name])
        # Where nothing is left (all components are scored) the half says nothing of the whole.
        belied = left > 0 and abs(moved) > max(reported["se"], 4 * left, 2 * (foreseen or 0.0))
        rows[name] = {
            f"{name}_minus_uniform": reported,
            f"{name}_minus_uniform_compared": other,
            "moved": moved,
            "left": left,
            "foreseen": foreseen,
            "passed": bool(left < reported["se"] and not belied),
        }
    main = rows.pop("mop")
    return {
        "candidates": counts[0],
        "compared_candidates": counts[1],
        **main,
        "predictors": rows,
    }
