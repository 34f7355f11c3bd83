"""What would have been said of records unseen: leave-one-out by weights, K folds by refits.

`loo` asks what a posterior would have said of a record had it not seen it, without fitting anew:
draws are weighted with p(y_i | θ)^(−w_i), Pareto-smoothed (Vehtari, Gelman, Gabry 2017, Statistics
and Computing 27; Vehtari et al. 2024, JMLR 25(72)). The Pareto k of each record says whether that
can be trusted. `kfold` fits anew without the records, and is exact but for what the fit itself
leaves out; `loo_errors` holds the one against the other.

In both the responses are held out. Contexts stay known: the pool of exemplars, the feature maps and
what contexts are compared by are those of the data that are given.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.special import logsumexp

with warnings.catch_warnings():
    # ArviZ 0.x announces its successor at every import.
    warnings.simplefilter("ignore", FutureWarning)
    import arviz

from mop_jax.errors import DataError
from mop_jax.inference.criticism.importance import pareto_smoothed, pareto_threshold
from mop_jax.inference.posterior import Posterior, posterior_draws
from mop_jax.inference.predictive import log_likelihood_draws, posterior_predictive_log_prob
from mop_jax.inference.svi import fit_svi
from mop_jax.models.data import MixtureData

# Of a record that is there for its shape alone: times any log-probability it is lost in the sum.
_NO_WEIGHT = 1e-30
_FEWEST_DRAWS = 25  # of which a fifth, five, are the fewest that a tail is fitted to
_MOST_RECORDS = 50  # whose effective sample size is looked at


class HeldOutScores(NamedTuple):
    """Log-probabilities of records that the draws had not seen, or as if they had not.

    Attributes:
        log_prob: log p(y_i | x_i, the others) of each record, nats, [N].
        weights: of the records, [N]: means are weighted by them.
        groups: code of the group that each record is of, [N]; None for records on their own.
        method: what made the scores, such as "PSIS-LOO" or "5-fold".
        reason: one sentence on how far they can be trusted.
        pareto_k: of each record, [N]; None where nothing was approximated.
        threshold: the k beyond which a score is not to be trusted.
        num_parameters: effective number of parameters: what the records lose, in sum and by their
            weights, by not having been seen; NaN where it is not known.
    """

    log_prob: np.ndarray
    weights: np.ndarray
    groups: np.ndarray | None
    method: str
    reason: str
    pareto_k: np.ndarray | None = None
    threshold: float = float("nan")
    num_parameters: float = float("nan")

    @property
    def mean(self) -> float:
        """Weighted mean over records, nats per record."""
        return float(np.average(self.log_prob, weights=self.weights))

    @property
    def standard_error(self) -> float:
        """Of `mean`, over groups where there are groups, nats per record."""
        return standard_error_of(self.log_prob, self.weights, self.groups)

    def __repr__(self) -> str:
        """One line: arrays say little and fill pages."""
        error = f"{self.standard_error:.3f}" if len(self.log_prob) > 1 else "?"
        return f"<{self.method}: {self.mean:.3f} ± {error} nats per record. {self.reason}>"


def standard_error_of(values: np.ndarray, weights: np.ndarray, groups: np.ndarray | None) -> float:
    """G / (G − 1) Σ_g (Σ_{i in g} w_i (v_i − mean))², rooted, with weights that sum to one."""
    shares = weights / weights.sum()
    groups = np.arange(len(values)) if groups is None else groups
    parts = np.bincount(groups, weights=shares * (values - np.sum(shares * values)))
    if len(parts) < 2:
        raise DataError("A standard error needs two records at least, of two groups.")
    return float(np.sqrt(len(parts) / (len(parts) - 1) * np.sum(parts**2)))


def loo(
    posterior: Posterior, data: MixtureData, *, groups: Sequence[Any] | None = None
) -> HeldOutScores:
    """Leave-one-out log-probabilities by Pareto-smoothed importance sampling (PSIS-LOO):

        log p(y_i | y_−i) = log Σ_s v_is p(y_i | θ_s),   v_is ∝ p(y_i | θ_s)^(−w_i), smoothed

    A record of weight w_i is in the posterior with that power, which `arviz.loo` does not know of;
    for equal weights the two agree. Means and sums over records are by the weights, which the
    scores themselves do not contain. Of closed answers a record is an item: all answers that it
    counts are left out together.

    Args:
        posterior: draws of chains, or independent ones that stand for the posterior. Those of a
            guide do as far as the guide is right (`pareto_k`), better after `importance_resample`.
        data: the records that it was fitted to, in any order, with their weights.
        groups: what records are clustered by, [N], for standard errors; records are left out one by
            one all the same.

    Raises:
        DataError: if there are fewer than 25 draws, or `groups` does not fit.

    Example:
        >>> import numpy as np
        >>> from mop_jax.inference import loo, make_posterior
        >>> from mop_jax.models import full_table_data
        >>> rng = np.random.default_rng(0)
        >>> data = full_table_data(
        ...     log_likelihood=rng.normal(-20, 1, (6, 2, 3, 2)),
        ...     temperature_grid=[0.8, 1.2],
        ...     context_embeddings=rng.normal(size=(6, 5)),
        ...     persona_embeddings=rng.normal(size=(2, 5)),
        ...     exemplar_embeddings=rng.normal(size=(3, 5)),
        ... )
        >>> draws = {"log_temperature": rng.normal(0, 0.01, (400, 2))}
        >>> draws["mean_log_temperature"] = np.zeros(400)
        >>> posterior = make_posterior(draws, data, model_kwargs={"uniform_gate": True})
        >>> loo(posterior, data).log_prob.shape
        (6,)
    """
    if posterior.num_draws < _FEWEST_DRAWS:
        raise DataError(
            f"The posterior has {posterior.num_draws} draws; leave-one-out by importance sampling "
            f"needs {_FEWEST_DRAWS} at least."
        )
    codes = _codes(groups, data.num_records)
    log_probs = np.asarray(log_likelihood_draws(posterior, data), np.float64).T  # [N, S]
    weights = np.asarray(data.weights, np.float64)
    log_weights, k = pareto_smoothed(
        -weights[:, None] * log_probs, _efficiency(log_probs, posterior.num_chains)
    )
    scores = logsumexp(log_weights + log_probs, axis=1)
    seen = logsumexp(log_probs, axis=1) - np.log(posterior.num_draws)
    threshold = pareto_threshold(posterior.num_draws)
    return HeldOutScores(
        scores,
        weights,
        codes,
        "PSIS-LOO",
        _loo_reason(k, threshold, _approximations(posterior, data)),
        k,
        threshold,
        float(np.sum(weights * (seen - scores))),
    )


def _efficiency(log_probs: np.ndarray, num_chains: int | None) -> float:
    """Effective draws per draw, averaged over some records' log-likelihoods [N, S]."""
    if num_chains is None:
        return 1.0
    some = log_probs[:: -(-len(log_probs) // _MOST_RECORDS)]
    some = some[np.ptp(some, axis=1) > 0]
    if not len(some):
        return 1.0
    by_chain = np.moveaxis(some.reshape(len(some), num_chains, -1), 0, -1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sizes = arviz.ess(arviz.convert_to_dataset({"x": by_chain}), method="mean")["x"].values
    return float(np.nan_to_num(sizes, nan=1.0).mean()) / log_probs.shape[1]


def _approximations(posterior: Posterior, data: MixtureData) -> list[str]:
    found = []
    if posterior.num_chains is None and posterior.sampler:
        found.append(f"draws by {posterior.sampler} are taken for the posterior's")
    log_weight = np.asarray(data.log_weight)
    if np.any(np.isfinite(log_weight) & (log_weight != 0)):
        found.append("components are sampled, and log p-hat lies below log p")
    return found


def _loo_reason(k: np.ndarray, threshold: float, approximations: list[str]) -> str:
    bad = int(np.sum(~(k < threshold)))
    reason = f"Pareto k is below {threshold:.2f} for all {len(k)} records"
    if bad:
        reason = (
            f"Pareto k is not below {threshold:.2f} for {bad} of {len(k)} records (up to "
            f"{np.nanmax(k):.2f}), whose scores are not to be trusted: kfold fits without them"
        )
    return "; ".join([reason, *approximations]) + "."


def kfold(
    rng_key: jax.Array,
    data: MixtureData,
    folds: int | Sequence[int] | np.ndarray,
    *,
    groups: Sequence[Any] | None = None,
    num_draws: int = 200,
    refit: Callable[[jax.Array, MixtureData], Posterior] | None = None,
    **svi_arguments: Any,
) -> HeldOutScores:
    """Log-probabilities of each fold's records under a fit to the other folds.

    The records of a fold are taken out, contexts and all; what the model sees besides stays as it
    is in `data`: exemplars (those that are records of the fold, too), the feature maps, which were
    fitted to the contexts of all its records, and the records' weights, which are not scaled anew.
    Every fit has data of the same shapes, so that a cache of compiled programs
    (`jax_compilation_cache_dir`) serves later folds: where folds are unequal, a record of the fit
    is repeated with a weight of 1e-30. Only what holds the start of a fit as a constant is compiled
    anew: the step and the draws of `AutoWhitenedNormal`, the start of other guides.

    Args:
        rng_key: decides the folds, fits and draws.
        data: the population.
        folds: how many, equally large or nearly; or the fold of each record, [N]. As many folds as
            records are leave-one-out.
        groups: what records are clustered by, [N]: standard errors are over groups, and folds that
            are drawn here hold whole groups.
        num_draws: draws of each fit's posterior.
        refit: key and data to a posterior, in place of SVI: `lambda key, data: fit_nuts(key,
            data)[0]`.
        **svi_arguments: arguments of `fit_svi`: `model`, `model_kwargs`, `guide` and others.

    Raises:
        DataError: if there are fewer than two folds, or more than records or groups; or if `refit`
            is given and arguments of `fit_svi` besides.
    """
    if refit is not None and svi_arguments:
        raise DataError(
            f"kfold has both refit and {next(iter(svi_arguments))!r}, an argument of fit_svi, "
            "which is not called then."
        )
    codes = _codes(groups, data.num_records)
    assign_key, fit_key = jax.random.split(rng_key)
    fold = _fold_of_each(assign_key, folds, data.num_records, codes)
    numbers = np.unique(fold)
    settled: list[bool] = []

    def by_svi(rng_key: jax.Array, part: MixtureData) -> Posterior:
        start_key, draw_key = jax.random.split(rng_key)
        fit = fit_svi(start_key, part, **svi_arguments)
        settled.append(fit.convergence.converged)
        return posterior_draws(fit, draw_key, num_draws)

    sizes = np.bincount(np.searchsorted(numbers, fold))
    scores = np.zeros(data.num_records)
    for number in numbers:
        held_out, rest = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
        part = _of_size(data, rest, data.num_records - sizes.min())
        posterior = (refit or by_svi)(jax.random.fold_in(fit_key, int(number)), part)
        tested = _of_size(data, held_out, sizes.max())
        scores[held_out] = posterior_predictive_log_prob(posterior, tested)[: len(held_out)]
    reason = f"Each record's score is of a fit without its fold, of {len(numbers)}"
    if not all(settled):
        reason += f"; {settled.count(False)} of the fits had not settled"
    weights = np.asarray(data.weights, np.float64)
    return HeldOutScores(scores, weights, codes, f"{len(numbers)}-fold", f"{reason}.")


def _of_size(data: MixtureData, index: np.ndarray, size: int) -> MixtureData:
    """The records `index`, and the first of them again, next to weightless, up to `size`."""
    spare = size - len(index)
    part = data.take(np.concatenate([index, np.repeat(index[:1], spare)]))
    weights = np.array(part.weights)
    weights[len(index) :] = _NO_WEIGHT
    return part._replace(weights=weights)


def _fold_of_each(
    rng_key: jax.Array, folds: Any, num_records: int, codes: np.ndarray | None
) -> np.ndarray:
    """The fold of each record, [N]; folds of whole groups where there are groups."""
    if np.ndim(folds):
        given = np.asarray(folds)
        if given.shape != (num_records,) or given.dtype.kind not in "iu":
            raise DataError(
                f"folds must be a number, or the fold of each of the {num_records} records as "
                "whole numbers."
            )
        if len(np.unique(given)) < 2:
            raise DataError("folds puts all records in one fold; at least 2 are needed.")
        return given
    units = np.arange(num_records) if codes is None else codes
    sizes = np.bincount(units)
    if not 2 <= folds <= len(sizes):
        what = "records" if codes is None else "groups"
        raise DataError(f"folds is {folds}; {len(sizes)} {what} make 2 to {len(sizes)} folds.")
    order = np.asarray(jax.random.permutation(rng_key, len(sizes)))
    fold_of_unit, filled = np.zeros(len(sizes), int), np.zeros(int(folds), int)
    # The largest first, each into the emptiest fold.
    for unit in order[np.argsort(-sizes[order], kind="stable")]:
        fold_of_unit[unit] = filled.argmin()
        filled[fold_of_unit[unit]] += sizes[unit]
    return fold_of_unit[units]


def _codes(groups: Sequence[Any] | None, num_records: int) -> np.ndarray | None:
    """Groups counted from 0, [N]."""
    if groups is None:
        return None
    if len(groups) != num_records:
        raise DataError(f"groups has {len(groups)} entries; data has {num_records} records.")
    return np.unique(np.asarray(groups).astype(str), return_inverse=True)[1]
