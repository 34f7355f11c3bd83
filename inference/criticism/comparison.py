"""Which model predicts better: held-out scores beside one another, and a stacked mixture of all."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
import xarray
from scipy.optimize import LinearConstraint, minimize

with warnings.catch_warnings():
    # ArviZ 0.x announces its successor at every import.
    warnings.simplefilter("ignore", FutureWarning)
    import arviz
    from arviz.stats.stats_utils import ELPDData

from mop_jax.errors import DataError
from mop_jax.inference.criticism.cross_validation import HeldOutScores, loo, standard_error_of
from mop_jax.inference.posterior import Posterior
from mop_jax.models.data import MixtureData


def loo_errors(approximate: HeldOutScores, exact: HeldOutScores) -> pd.DataFrame:
    """How far `loo` is off, record by record: does its Pareto k warn where it is wrong?

    Args:
        approximate: scores of `loo`.
        exact: scores of `kfold`; with fewer folds than records they are a little lower, since fits
            see less.

    Returns:
        A row a record, the largest k first: `pareto_k`, `warned` (k is not below the threshold),
        `loo`, `exact`, and `difference`, the one minus the other, nats.
    """
    if approximate.pareto_k is None:
        raise DataError(
            f"Scores by {approximate.method} have no Pareto k; give those of loo first."
        )
    _refuse_others({"approximate": approximate, "exact": exact})
    table = pd.DataFrame(
        {
            "pareto_k": approximate.pareto_k,
            "warned": ~(approximate.pareto_k < approximate.threshold),
            "loo": approximate.log_prob,
            "exact": exact.log_prob,
            "difference": approximate.log_prob - exact.log_prob,
        }
    )
    table.index.name = "record"
    return table.sort_values("pareto_k", ascending=False, kind="stable")


def compare(
    candidates: Mapping[str, Posterior | HeldOutScores],
    data: MixtureData | None = None,
    *,
    groups: Sequence[Any] | None = None,
) -> pd.DataFrame:
    """Models by their held-out log-probability, the best first, as `arviz.compare` has them.

    All sums are over records by the records' weights, whose mean is one, in nats; standard errors
    are those of weighted, and where there are groups clustered, records. `weight` is a model's
    share of the mixture of all that predicts best (stacking; Yao, Vehtari, Simpson, Gelman 2018,
    Bayesian Analysis 13(3)). `attrs["reason"]` holds what each score's `reason` says, by model.

    Args:
        candidates: by name, posteriors, whose `loo` is computed, or scores of `loo` or `kfold`:
            those of models that were fitted to data of their own, such as other candidates.
        data: the records that the posteriors were fitted to.
        groups: what records are clustered by, [N], for posteriors' scores.

    Returns:
        A row a model: `rank`, `elpd_loo`, `p_loo` (effective number of parameters), `elpd_diff` to
        the best, `weight`, `se`, `dse` (of the difference), `warning` (some k is too large),
        `scale`.

    Raises:
        DataError: if there are fewer than two models, or their scores are not of the same records.
    """
    if len(candidates) < 2:
        raise DataError(f"There are {len(candidates)} models to compare; at least 2 are needed.")
    scores = {}
    for name, candidate in candidates.items():
        if isinstance(candidate, Posterior):
            if data is None:
                raise DataError(f"{name!r} is a posterior; compare needs the data to score it.")
            candidate = loo(candidate, data, groups=groups)
        scores[name] = candidate
    _refuse_others(scores)
    # Weights of models are ours below: exp(log p) of a long text, which ArviZ takes, is zero.
    elpds = {name: _as_elpd(one) for name, one in scores.items()}
    table = arviz.compare(cast(Any, elpds), method="pseudo-BMA")
    best = scores[table.index[0]]
    stacked = dict(zip(scores, _stacking(list(scores.values())), strict=True))
    total = best.weights.sum()
    for name, one in scores.items():
        difference = best.log_prob - one.log_prob
        table.loc[name, "weight"] = stacked[name]
        table.loc[name, "se"] = total * one.standard_error
        table.loc[name, "dse"] = total * standard_error_of(difference, best.weights, best.groups)
    table.attrs["reason"] = {name: f"{one.method}: {one.reason}" for name, one in scores.items()}
    return table


def _as_elpd(scores: HeldOutScores) -> ELPDData:
    """Scores as ArviZ keeps them, each times its record's weight."""
    weighted = scores.weights * scores.log_prob
    k = scores.pareto_k
    fields = {
        "elpd_loo": weighted.sum(),
        "se": 0.0,
        "p_loo": scores.num_parameters,
        "n_samples": 0,
        "n_data_points": len(weighted),
        "warning": False if k is None else bool(np.any(~(k < scores.threshold))),
        "loo_i": xarray.DataArray(weighted, dims="record"),
        "scale": "log",
    }
    return ELPDData(data=list(fields.values()), index=list(fields))


def _stacking(scores: Sequence[HeldOutScores]) -> np.ndarray:
    """The weights a of models that maximise Σ_i w_i log Σ_m a_m p_m(y_i), [M]."""
    log_probs = np.stack([one.log_prob for one in scores], axis=1)
    probs = np.exp(log_probs - log_probs.max(axis=1, keepdims=True))
    shares = scores[0].weights / scores[0].weights.sum()
    number = len(scores)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        mixed = probs @ weights
        return -float(shares @ np.log(mixed)), -(shares / mixed) @ probs

    found = minimize(
        loss,
        np.full(number, 1 / number),
        jac=True,
        method="SLSQP",
        # Models that predict alike differ by little a record: the default stops at the start.
        options={"ftol": 1e-12, "maxiter": 1000},
        bounds=[(0.0, 1.0)] * number,
        constraints=LinearConstraint(np.ones(number), 1.0, 1.0),
    ).x
    return np.clip(found, 0.0, 1.0) / np.clip(found, 0.0, 1.0).sum()


def _refuse_others(scores: Mapping[str, HeldOutScores]) -> None:
    """Refuses scores that are not of the same records."""
    (first, one), *others = scores.items()
    for name, other in others:
        if len(other.weights) != len(one.weights):
            raise DataError(
                f"{first!r} has scores of {len(one.weights)} records and {name!r} of "
                f"{len(other.weights)}; they must be of the same."
            )
        if not np.allclose(other.weights, one.weights):
            raise DataError(f"{first!r} and {name!r} weigh records differently.")
