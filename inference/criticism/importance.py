"""How far a guide is from the posterior: importance weights, their Pareto k, and resampling.

The ELBO of a guide that has settled does not say how good the guide is. The weights p(y, z) / q(z)
of its draws do: if their tail, a generalised Pareto distribution of shape k, is not too heavy, they
correct the draws; if it is, the guide misses a part of the posterior (Yao, Vehtari, Simpson, Gelman
2018, "Yes, but did it work?", arXiv 1802.02538; Vehtari, Simpson, Gelman, Yao, Gabry 2024, "Pareto
smoothed importance sampling", JMLR 25(72)).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro.infer.autoguide import AutoDelta, AutoLaplaceApproximation
from numpyro.infer.util import compute_log_probs

with warnings.catch_warnings():
    # ArviZ 0.x announces its successor at every import.
    warnings.simplefilter("ignore", FutureWarning)
    import arviz

from mop_jax.errors import DataError, FaultError
from mop_jax.inference.posterior import Posterior, make_posterior, model_name
from mop_jax.inference.svi import SVIFit
from mop_jax.models.data import MixtureData

# PSIS looks at a fifth of the weights, and fits its tail to five at least.
_FEWEST_WEIGHTS = 25
_EQUAL_WEIGHTS = 1e-3  # nats


class ImportanceReport(NamedTuple):
    """How far a guide is from the posterior, by the tail of its importance weights.

    Attributes:
        reliable: whether k is below `threshold`, so that weighted draws are the posterior's.
        reason: one sentence for a reader.
        pareto_k: shape of the generalised Pareto distribution of the largest weights.
        threshold: of k, for this number of draws; see `pareto_threshold`.
        effective_sample_size: 1 / Σ w², of the smoothed weights w that sum to one.
        log_weights: log p(y, z) − log q(z) of each draw, nats, [S]; not smoothed, not normalised.
    """

    reliable: bool
    reason: str
    pareto_k: float
    threshold: float
    effective_sample_size: float
    log_weights: np.ndarray

    def __repr__(self) -> str:
        """One line: arrays say little and fill pages."""
        return (
            f"<Pareto k = {self.pareto_k:.2f} of {len(self.log_weights)} draws, "
            f"{self.effective_sample_size:.0f} of them effective. {self.reason}>"
        )


def pareto_threshold(num_draws: int) -> float:
    """The k up to which S weighted draws are reliable, min(1 − 1 / log10 S, 0.7)."""
    return min(1 - 1 / np.log10(num_draws), 0.7)


def pareto_smoothed(
    log_weights: np.ndarray, efficiency: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Pareto-smoothed weights, and the k of each set of them, by ArviZ.

    Args:
        log_weights: log importance ratios, nats, [..., S].
        efficiency: effective draws per draw, for draws of Markov chains.

    Returns:
        Log weights that sum to one over the last axis, [..., S], and k, [...]. Weights that differ
        by rounding alone have no tail to fit: they are left as they are, and k is 0.
    """
    log_weights = np.asarray(log_weights, np.float64)
    with np.errstate(all="ignore"):
        smoothed, k = arviz.psislw(log_weights, efficiency)
    # ArviZ calls a tail without five different weights infinitely heavy.
    equal = np.ptp(log_weights, axis=-1) < _EQUAL_WEIGHTS
    k = np.where(equal, 0.0, k)
    plain = np.full_like(smoothed, -np.log(log_weights.shape[-1]))
    return np.where(equal[..., None], plain, smoothed), k


def pareto_k(fit: SVIFit, rng_key: jax.Array, num_draws: int = 1000) -> ImportanceReport:
    """The Pareto k of a guide: whether its draws are, or can be weighted to be, the posterior's.

    The weight of a draw z is p(y, z) / q(z), with the records' weights in p as in the fit, and all
    records whatever the minibatches were. Below 0.5 the guide is close to the posterior; up to the
    threshold `importance_resample` corrects it; beyond, the guide misses a part of the posterior,
    and its weights are no help. All dimensions are judged at once, and hundreds of small errors
    make a large k: what the gate says may still be right (compare `identified_quantities` with
    those of NUTS), but nothing here shows it.

    Nor does k tell how much is missed. A mixture's tails are often the prior's: where one persona's
    temperature is far off, others speak in its place, and the likelihood falls no further. A
    Gaussian guide that is half as wide as the prior then has a k of 0.75, 1 − (1/2)², however
    well it fits the bulk, and an `effective_sample_size` that is nearly S.

    Under a guide by annealing (`AutoDAIS`) the weights are those of the annealed path, whose end is
    z; they correct its draws just so.

    Args:
        fit: a fitted guide, any but a point.
        rng_key: decides the draws.
        num_draws: S; more draws see farther into the tail.

    Raises:
        DataError: if the guide is a point (`AutoDelta`), which has no density; if there are too few
            draws; or if guide and model have different sites.
        FaultError: if a weight is not a number.
    """
    _, log_weights = _weighted_draws(fit, rng_key, num_draws)
    return _importance_report(log_weights)


def importance_resample(
    fit: SVIFit,
    rng_key: jax.Array,
    num_draws: int = 200,
    *,
    num_proposals: int = 2000,
    threshold: float | None = None,
) -> Posterior:
    """Draws of a guide, chosen by their Pareto-smoothed importance weights.

    `num_proposals` draws of the guide are weighted (see `pareto_k`), and `num_draws` of them drawn
    by their weights, systematically; where weights are uneven, a draw comes several times. The
    posterior's `sampler` says so.

    Args:
        fit: a fitted guide, any but a point.
        rng_key: decides the draws.
        num_draws: draws that are kept.
        num_proposals: draws that are weighted.
        threshold: the k that is too large; by default `pareto_threshold(num_proposals)`.

    Raises:
        DataError: as `pareto_k`.
        FaultError: if k is too large for the weights to correct the guide.
    """
    if num_draws < 1:
        raise DataError(f"num_draws is {num_draws}; at least 1 is needed.")
    draw_key, choose_key, order_key = jax.random.split(rng_key, 3)
    samples, log_weights = _weighted_draws(fit, draw_key, num_proposals)
    smoothed, k = pareto_smoothed(log_weights)
    threshold = pareto_threshold(num_proposals) if threshold is None else threshold
    if not k < threshold:
        raise FaultError(
            f"Pareto k of {type(fit.guide).__name__} is {float(k):.2f} and would have to be below "
            f"{threshold:.2f}, so weights cannot turn its draws into the posterior's; use a wider "
            "family of guides, more steps, or fit_nuts."
        )
    weights = np.exp(smoothed)
    places = (np.arange(num_draws) + float(jax.random.uniform(choose_key))) / num_draws
    chosen = np.searchsorted(np.cumsum(weights) / weights.sum(), places)
    # Equal draws would stand side by side, and chains that draws are cut into differ by that.
    chosen = np.asarray(jax.random.permutation(order_key, np.minimum(chosen, num_proposals - 1)))
    return make_posterior(
        {name: values[chosen] for name, values in samples.items()},
        fit.data,
        fit.model,
        fit.model_kwargs,
        params=fit.params,
        losses=fit.losses,
        sampler=f"{type(fit.guide).__name__}, resampled by importance",
    )


def _importance_report(log_weights: np.ndarray) -> ImportanceReport:
    number = len(log_weights)
    smoothed, shape = pareto_smoothed(log_weights)
    k, threshold = float(shape), pareto_threshold(number)
    size = float(1 / np.sum(np.exp(2 * smoothed)))
    worth = f"its {number:,} draws are worth {size:,.0f} of the posterior's"
    if k < min(0.5, threshold):
        reason = f"The guide is close to the posterior: Pareto k is {k:.2f}, below 0.5; {worth}."
    elif k < threshold:
        reason = (
            f"The guide is off by what weights can correct: Pareto k is {k:.2f}, below "
            f"{threshold:.2f}; {worth}, see importance_resample."
        )
    else:
        reason = (
            f"The guide misses a part of the posterior: Pareto k is {k:.2f}, not below "
            f"{threshold:.2f}, so that its weights are not to be trusted, though its {number:,} "
            f"draws seem to be worth {size:,.0f}; NUTS can tell how much it matters."
        )
    return ImportanceReport(k < threshold, reason, k, threshold, size, np.asarray(log_weights))


def _weighted_draws(
    fit: SVIFit, rng_key: jax.Array, num_draws: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Draws of every latent site from the guide, [S, ...], and log p(y, z) − log q(z), [S]."""
    if num_draws < _FEWEST_WEIGHTS:
        raise DataError(
            f"There are {num_draws} draws to weight; at least {_FEWEST_WEIGHTS} are needed."
        )
    guide = _drawable(fit)
    model = fit.model
    kwargs = {k: v for k, v in fit.model_kwargs.items() if k != "subsample_size"}

    def one(rng_key: jax.Array, params: dict[str, Any], data: MixtureData) -> tuple[Any, Any, Any]:
        seeded = numpyro.handlers.seed(guide, rng_key)
        log_q, trace = compute_log_probs(seeded, (data,), kwargs, params)
        drawn = {
            name: site["value"]
            for name, site in trace.items()
            # Not its plates: those of a minibatch would be the model's too.
            if site["type"] == "sample"
            and not site["is_observed"]
            and not site["infer"].get("is_auxiliary", False)
        }
        given = numpyro.handlers.substitute(model, data={**params, **drawn})
        given = numpyro.handlers.substitute(given, substitute_fn=_refuse_undrawn)
        log_p, model_trace = compute_log_probs(given, (data,), kwargs, {}, sum_log_prob=False)
        beyond = [name for name in drawn if name not in model_trace]
        if beyond:
            raise DataError(
                f"The guide draws the site {beyond[0]!r}, which {model_name(model)} does not have; "
                "mark what only helps to draw with infer={'is_auxiliary': True}."
            )
        return drawn, log_p, log_q

    data = jax.tree.map(jnp.asarray, fit.data)
    chunk = max(1, 16_000_000 // max(1, np.size(fit.data.observed)))

    @jax.jit
    def run(rng_key: jax.Array, params: dict[str, Any], data: MixtureData) -> Any:
        keys = jax.random.split(rng_key, num_draws)
        return jax.lax.map(
            lambda key: one(key, params, data), keys, batch_size=min(chunk, num_draws)
        )

    samples, log_p, log_q = jax.tree.map(np.asarray, run(rng_key, fit.params, data))
    _refuse_points(samples, fit.guide)
    # Record by record, and in double precision: the sum of a thousand records has lost the digits
    # that weights differ in.
    log_weights = _summed(log_p, num_draws) - _summed(log_q, num_draws)
    bad = int(np.sum(np.isnan(log_weights) | (log_weights == np.inf)))
    if bad or not np.isfinite(log_weights).any():
        raise FaultError(
            f"log p(y, z) − log q(z) is no number for {bad or num_draws} of {num_draws} draws of "
            f"{type(fit.guide).__name__}."
        )
    return samples, log_weights


def _drawable(fit: SVIFit) -> Callable[..., Any]:
    """The guide as a program that draws what it draws, with a density."""
    guide = fit.guide
    if guide is None:
        raise DataError(
            f"{model_name(fit.model)} has no latent sites with these arguments, so there is no "
            "guide to judge."
        )
    parts = getattr(guide, "_guides", [guide])
    if any(isinstance(part, AutoDelta) for part in parts):
        raise DataError(
            "AutoDelta is a point and has no density, so that no weights can be computed; fit "
            "another guide."
        )
    if not isinstance(guide, AutoLaplaceApproximation):
        return guide
    # Called, it is the point that its mode is searched with; its draws are of this Gaussian.
    gaussian = jax.jit(guide.get_posterior)(fit.params)
    drawable = copy.copy(guide)
    drawable._get_posterior = lambda: gaussian
    return drawable


def _refuse_undrawn(site: dict[str, Any]) -> None:
    # Without this a site that the guide lacks would have no value.
    if site["type"] == "sample" and site["value"] is None:
        raise DataError(f"The guide does not draw the site {site['name']!r}, which the model has.")


def _refuse_points(samples: Mapping[str, np.ndarray], guide: Any) -> None:
    for name, values in samples.items():
        if values.size and np.all(values == values[0]):
            raise DataError(
                f"The draws of {name!r} by {type(guide).__name__} are all equal: a point has no "
                "density, so that no weights can be computed."
            )


def _summed(log_probs: Mapping[str, np.ndarray], num_draws: int) -> np.ndarray:
    """The sum over sites and their entries, [S]."""
    total = np.zeros(num_draws)
    for name in sorted(log_probs):
        total += np.asarray(log_probs[name], np.float64).reshape(num_draws, -1).sum(1)
    return total
