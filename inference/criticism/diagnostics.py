"""Can the draws of chains be believed? R-hat and effective sizes of what the data identify.

Chains are judged on quantities that mean the same whatever the gate's parametrisation: shares of
personas, temperatures, log-likelihoods. A gate's weights may be rotated, or be known to the prior
alone, without anything being wrong. R-hat and effective sample sizes are ArviZ's, of ranks and of
tails (Vehtari, Gelman, Simpson, Carpenter, Bürkner 2021, Bayesian Analysis 16(2)).

Draws of a guide are independent, and R-hat says nothing about them; `pareto_k` judges those.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from numpyro.infer import MCMC

with warnings.catch_warnings():
    # ArviZ 0.x announces its successor at every import.
    warnings.simplefilter("ignore", FutureWarning)
    import arviz

from mop_jax.distributions import PersonaMixture
from mop_jax.errors import DataError
from mop_jax.inference.posterior import Posterior, gate_at, map_draws
from mop_jax.models.data import MixtureData

R_HAT_LIMIT = 1.01
ESS_PER_CHAIN = 100
"""Limits of Vehtari et al. (2021): of any R-hat, and of effective draws for each chain."""

_OF_RECORDS = ("persona_share", "population_share", "temperature", "log_likelihood")
_SIMILARITY = ("gate.context_similarity", "gate.same_label", "gate.same_group")
# ArviZ's R-hat asks for two chains of four draws at least.
_FEWEST_DRAWS = 4
# What rounding does to a number of single precision on its way through sums.
_ROUNDING = 32 * float(np.finfo(np.float32).eps)


class ChainReport(NamedTuple):
    """Whether Markov chains agree on what the data identify.

    Attributes:
        converged: whether every R-hat and effective sample size is within its limit, and no draw
            is known to have diverged.
        reason: one sentence for a reader.
        table: a row for each of `identified_quantities`: the worst `r_hat`, the smallest `ess_bulk`
            and `ess_tail`, and `num_entries`, how many numbers of it vary at all.
        divergences: draws after which the sampler's path diverged; None where no `MCMC` was given.
        num_chains: chains that were compared; the halves of one where there was one.
    """

    converged: bool
    reason: str
    table: pd.DataFrame
    divergences: int | None
    num_chains: int


def identified_quantities(
    posterior: Posterior,
    data: MixtureData | None = None,
    *,
    contexts: Any | None = None,
    max_records: int | None = None,
) -> dict[str, np.ndarray]:
    """Draws of what the data identify, whatever the gate's parametrisation.

    A gate's weights and kernels are never among them. What Ω says of exemplars is in
    `log_likelihood`.

    Args:
        posterior: draws, S of them.
        data: records, for what depends on them.
        contexts: h(x) of other contexts, [M, D], to read π at in place of the records'.
        max_records: the most records whose own π and log-likelihood are given, evenly spaced; all
            by default. The population's shares are those of all records in any case.

    Returns:
        `persona_share`, π_k at the records or `contexts`, [S, N, K]; `population_share`, its mean
        over records by their weights, [S, K]; `temperature`, τ_k, [S, K]; `log_likelihood`,
        log p(y_i | x_i, θ) in nats, [S, N]; and each site of one number that is identified, [S]:
        the mean log-temperature, coefficients of similarity, scales. Without `data` those that need
        no record.
    """
    found: dict[str, Any] = {}
    if contexts is not None:
        found["persona_share"] = jnp.exp(gate_at(posterior, contexts).persona_log_probs)
    if data is None:
        found |= map_draws(posterior, posterior.data, lambda m, _: {"temperature": m.temperature})
    else:
        chosen = _evenly_spaced(data.num_records, max_records)

        def of_records(mixture: PersonaMixture, data: MixtureData) -> dict[str, jax.Array]:
            share = jnp.exp(mixture.mixing_distribution.persona_log_probs)
            weights = jnp.asarray(data.weights)[:, None]
            return {
                "persona_share": share[chosen],
                "population_share": (weights * share).sum(0) / weights.sum(),
                "temperature": mixture.temperature,
                "log_likelihood": mixture.log_prob(data.observed)[chosen],
            }

        # JAX sorts by name.
        by_name = map_draws(posterior, data, of_records)
        found = {name: by_name[name] for name in _OF_RECORDS} | found
    found |= {
        name: values for name, values in posterior.samples.items() if _is_identified(name, values)
    }
    return {name: np.asarray(values) for name, values in found.items()}


def _is_identified(name: str, values: np.ndarray) -> bool:
    """Whether a site is one number that means the same under every parametrisation."""
    if np.ndim(values) != 1:
        return False
    return not name.startswith("gate.") or name in _SIMILARITY or name.endswith("_scale")


def _evenly_spaced(count: int, most: int | None) -> np.ndarray:
    if most is None or most >= count:
        return np.arange(count)
    if most < 1:
        raise DataError(f"max_records is {most}; at least 1 is needed.")
    return np.linspace(0, count - 1, most).round().astype(int)


def diagnose(
    chains: Posterior | tuple[Posterior, MCMC],
    data: MixtureData,
    *,
    max_records: int | None = 50,
    r_hat_limit: float = R_HAT_LIMIT,
    ess_per_chain: float = ESS_PER_CHAIN,
) -> ChainReport:
    """Judges Markov chains by R-hat and effective sample size of `identified_quantities`.

    R-hat is the larger of ArviZ's two, of ranks and of folded ranks of split chains. One chain is
    compared with itself, as two halves: it cannot tell whether there is another mode.

    Args:
        chains: draws of `fit_nuts`, or all that it returns: then divergences are counted too.
        data: the records that the posterior is of.
        max_records: as in `identified_quantities`; of hundreds of records each would be diagnosed.
        r_hat_limit: the largest R-hat that passes.
        ess_per_chain: the effective draws, in bulk and in the tails, that each chain must be worth.

    Raises:
        DataError: if the draws are independent ones of a guide, which have no chains; or if they do
            not divide into chains of four draws at least.

    Example:
        >>> import numpy as np
        >>> from mop_jax.inference import diagnose, make_posterior
        >>> from mop_jax.models import full_table_data
        >>> rng = np.random.default_rng(0)
        >>> data = full_table_data(
        ...     log_likelihood=rng.normal(-20, 1, (6, 2, 3, 2)),
        ...     temperature_grid=[0.8, 1.2],
        ...     context_embeddings=rng.normal(size=(6, 5)),
        ...     persona_embeddings=rng.normal(size=(2, 5)),
        ...     exemplar_embeddings=rng.normal(size=(3, 5)),
        ... )
        >>> draws = {"log_temperature": rng.normal(0, 0.1, (800, 2))}
        >>> draws["mean_log_temperature"] = rng.normal(0, 0.1, 800)
        >>> chains = make_posterior(draws, data, model_kwargs={"uniform_gate": True}, num_chains=2)
        >>> list(diagnose(chains, data).table.index)
        ['temperature', 'log_likelihood', 'mean_log_temperature']
    """
    posterior, mcmc = (chains, None) if isinstance(chains, Posterior) else chains
    num_chains = _chains(posterior)
    found = identified_quantities(posterior, data, max_records=max_records)
    entries = {name: _varying(values) for name, values in found.items()}
    halves = 2 if num_chains == 1 else 1
    by_chain = {
        name: _by_chain(values, num_chains * halves)
        for name, values in entries.items()
        if values.shape[1]
    }
    table = _chain_table(by_chain)
    divergences = None if mcmc is None else _divergences(mcmc)
    wrong = _what_is_wrong(table, r_hat_limit, ess_per_chain * num_chains, divergences)
    length = posterior.num_draws // num_chains
    what = f"{num_chains} chains of {length:,} draws" if num_chains > 1 else "one chain's halves"
    reason = _chain_reason(table, what, wrong, divergences)
    return ChainReport(not wrong, reason, table, divergences, num_chains * halves)


def _chains(posterior: Posterior) -> int:
    """The number of chains, if there are chains that can be compared."""
    number, draws = posterior.num_chains, posterior.num_draws
    if number is None:
        sampler = f" by {posterior.sampler}" if posterior.sampler else ""
        raise DataError(
            f"The draws{sampler} are independent, so R-hat is 1 however far they are from the "
            "posterior; pareto_k(fit, …) judges a guide, and draws of a sampler need num_chains."
        )
    if number < 1 or draws % number:
        raise DataError(
            f"num_chains is {number}, which does not divide the {draws} draws; chains must be "
            "equally long."
        )
    parts = 2 if number == 1 else number
    if draws // parts < _FEWEST_DRAWS:
        raise DataError(
            f"There are {draws} draws in {number} chains; R-hat needs two chains of "
            f"{_FEWEST_DRAWS} draws, or one of {2 * _FEWEST_DRAWS}, at least."
        )
    return number


def _varying(values: np.ndarray) -> np.ndarray:
    """The entries of a quantity that are not the same in all draws, float [S, number].

    What differs by rounding alone would have an R-hat of rounding.
    """
    flat = np.asarray(values, np.float64).reshape(len(values), -1)
    with np.errstate(invalid="ignore"):
        spread = flat.max(0) - flat.min(0)
        return flat[:, ~(spread <= _ROUNDING * np.abs(flat).max(0))]


def _by_chain(values: np.ndarray, num_chains: int) -> np.ndarray:
    """Draws [S, number] as [chains, draws, number]; halves do without an odd draw."""
    length = len(values) // num_chains
    return values[: length * num_chains].reshape(num_chains, length, -1)


def _chain_table(by_chain: Mapping[str, np.ndarray]) -> pd.DataFrame:
    columns = ["r_hat", "ess_bulk", "ess_tail", "num_entries"]
    if not by_chain:
        return pd.DataFrame(columns=columns)
    dataset = arviz.convert_to_dataset(dict(by_chain))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        r_hat = arviz.rhat(dataset)
        sizes = {kind: arviz.ess(dataset, method=kind) for kind in ("bulk", "tail")}
    rows = {}
    for name, values in by_chain.items():
        # NaN where chains stand still at different places, or are no numbers.
        worst = np.nan_to_num(r_hat[name].values, nan=np.inf).max()
        least = [np.nan_to_num(sizes[kind][name].values).min() for kind in ("bulk", "tail")]
        rows[name] = [float(worst), *map(float, least), values.shape[-1]]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    return table.astype({"num_entries": int})


def _divergences(mcmc: MCMC) -> int | None:
    diverging = mcmc.get_extra_fields().get("diverging")
    return None if diverging is None else int(np.sum(diverging))


def _what_is_wrong(
    table: pd.DataFrame, r_hat_limit: float, ess_limit: float, divergences: int | None
) -> list[str]:
    if not len(table):
        return ["nothing that the data identify differs between draws"]
    wrong = []
    r_hat = table["r_hat"]
    if r_hat.max() > r_hat_limit:
        wrong.append(f"R-hat of {r_hat.idxmax()} is {r_hat.max():.3g}, above {r_hat_limit:g}")
    sizes = table[["ess_bulk", "ess_tail"]].min(axis=1)
    if sizes.min() < ess_limit:
        wrong.append(
            f"{sizes.idxmin()} has an effective sample size of {sizes.min():.0f}, below "
            f"{ess_limit:g}"
        )
    if divergences:
        wrong.append(f"{divergences} draws diverged")
    return wrong


def _chain_reason(table: pd.DataFrame, what: str, wrong: list[str], divergences: int | None) -> str:
    if wrong:
        return f"Not to be believed: of {what} {', and '.join(wrong)}."
    counted = "no draw diverged" if divergences == 0 else "divergences were not counted"
    sizes = table[["ess_bulk", "ess_tail"]].min(axis=1)
    return (
        f"The chains agree: of {what} the largest R-hat is {table['r_hat'].max():.3f} "
        f"({table['r_hat'].idxmax()}), the smallest effective sample size {sizes.min():.0f} "
        f"({sizes.idxmin()}), and {counted}."
    )
