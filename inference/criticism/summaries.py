"""What a posterior says of a population: who speaks, how often, and for which records.

Every number is computed under each draw first and then summarised over the draws, by its mean and
an equal-tailed interval; all draws of a point estimate are alike, and so are the ends of its
intervals. Records count by their weights. Sums over records, personas and exemplars are taken while
a draw is at hand: nothing of S draws × N records × K personas × J exemplars is ever built.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jax.scipy.special import entr

from mop_jax.distributions import MixingDistribution, PersonaMixture
from mop_jax.errors import DataError
from mop_jax.inference.criticism.intervals import interval, tails
from mop_jax.inference.posterior import Posterior, map_draws
from mop_jax.models.data import MixtureData
from mop_jax.models.feature_maps import product

# Responsibilities of all draws at a time, about: 128 MB, and as doubles for their quantiles twice.
_RESPONSIBILITIES = 2**25
# Numbers in the largest array of a chunk of draws, about: 64 MB.
_CHUNK = 2**24


def persona_shares(
    posterior: Posterior,
    data: MixtureData,
    *,
    by: Sequence[Any] | None = None,
    names: Sequence[str] | None = None,
    level: float = 0.9,
) -> pd.DataFrame:
    """Each persona's share of the population, from the gate and from the responses:

        gate:              Σ_i w_i π_k(x_i; θ) / Σ_i w_i           who would speak in these contexts
        responsibilities:  Σ_i w_i p(k | x_i, y_i, θ) / Σ_i w_i    who did speak

    The likelihood is flat in a persona's bias where the two agree, so on the records of the fit
    they differ by what the prior holds back, or by what a gate without biases cannot follow; on
    other records they differ where the gate does not carry over. Intervals are those of θ: how many
    of N people a persona speaks for varies besides, as any count does.

    Args:
        posterior: draws of the gate.
        data: the population; of candidates drawn by importance, responsibilities are estimates.
        by: a group's code or label of every record, [N]; shares are then those within each group.
            Records where it is missing (None, NaN) are in no group.
        names: what personas are called, [K]; adds the column `name`.
        level: of the intervals.

    Returns:
        Columns `group` (with `by`), `source` ("gate", "responsibilities"), `persona`, `name`,
        `mean`, `low`, `high`; a row for each group, source and persona.

    Raises:
        DataError: if an argument's size does not fit, or the level is none.
    """
    _refuse(level, names, data)
    codes, groups = np.zeros(data.num_records, int), None
    if by is not None:
        if len(by) != data.num_records:
            raise DataError(f"by has {len(by)} entries; data has {data.num_records} records.")
        # Not by way of an array of texts, in which a missing one is the text "nan".
        codes, groups = pd.factorize(pd.Series(list(by)), sort=True)
        if not len(groups):
            raise DataError("by is missing everywhere; no record is of any group.")
    weights = np.where(codes >= 0, np.asarray(data.weights, np.float64), 0.0)
    num_groups = 1 if groups is None else len(groups)
    total = np.bincount(codes[codes >= 0], weights[codes >= 0], num_groups)
    weights = (weights / total[codes])[:, None]  # those of code −1 are zero

    def shares(mixture: PersonaMixture, data: MixtureData) -> jax.Array:
        per_record = (
            jnp.exp(mixture.mixing_distribution.persona_log_probs),
            responsibilities_by_persona(mixture, data),
        )
        # A matrix [groups, N] would be N × N where every record is a group of its own.
        summed = [jax.ops.segment_sum(weights * p, codes, num_groups) for p in per_record]
        return jnp.stack(summed, axis=1)

    # [S, groups, 2, K]
    draws = map_draws(posterior, data, shares, chunk_size=draws_at_a_time(data))
    index = np.indices(draws.shape[1:]).reshape(3, -1)
    columns: dict[str, Any] = {} if groups is None else {"group": np.asarray(groups)[index[0]]}
    columns["source"] = np.asarray(["gate", "responsibilities"])[index[1]]
    columns |= _persona_columns(index[2], names)
    return pd.DataFrame(columns | interval(np.reshape(draws, (len(draws), -1)), level))


def responsibility_table(
    posterior: Posterior,
    data: MixtureData,
    *,
    names: Sequence[str] | None = None,
    level: float = 0.9,
) -> pd.DataFrame:
    """Which persona speaks in each record: p(k | x_i, y_i, θ), its exemplars summed out.

    The mean over draws is p(k | x_i, y_i, training data) for records of the fit.

    Args:
        posterior: draws of the gate.
        data: the records.
        names: what personas are called, [K]; adds the column `name`.
        level: of the intervals.

    Returns:
        N·K rows by record and persona: `record`, `persona`, `name`, `mean`, `low`, `high`, and
        `most_responsible`, true for the persona of the record's highest mean (the first of equals).

    Raises:
        DataError: if an argument's size does not fit, or the level is none.
    """
    _refuse(level, names, data)
    num_personas = data.num_personas
    num_blocks = -(-posterior.num_draws * data.num_records * num_personas // _RESPONSIBILITIES)
    blocks = []
    for rows in np.array_split(np.arange(data.num_records), min(num_blocks, data.num_records)):
        block = data.take(rows)
        draws = map_draws(
            posterior, block, responsibilities_by_persona, chunk_size=draws_at_a_time(block)
        )
        blocks.append(interval(np.reshape(draws, (len(draws), -1)), level))
    found = {name: np.concatenate([part[name] for part in blocks]) for name in blocks[0]}
    record, persona = np.divmod(np.arange(data.num_records * num_personas), num_personas)
    most = found["mean"].reshape(-1, num_personas).argmax(1)
    return pd.DataFrame(
        {
            "record": record,
            **_persona_columns(persona, names),
            **found,
            "most_responsible": persona == most[record],
        }
    )


def gate_summary(posterior: Posterior, data: MixtureData, *, level: float = 0.9) -> pd.DataFrame:
    """How far the gate narrows down who speaks, and from which exemplar; entropies in nats.

    With H an entropy, z the persona, e the exemplar and the records' contexts x weighted by w:

        persona_entropy                 H(z | x), the mean entropy of π(x)
        effective_personas              its exp: personas that are in question at a context
        population_persona_entropy      H(z), of the population's mean π
        effective_population_personas   its exp: personas that the population consists of
        persona_context_information     H(z) − H(z | x): what a context tells of the persona
        persona_between_contexts        that as a share of H(z); 0 where all contexts have one π
        exemplar_entropy                H(e | z, x), the mean entropy of Ω_k(x), by π_k(x)
        effective_exemplars             its exp: exemplars in question for a persona at a context
        population_exemplar_entropy     H(e), of the population's mean Σ_k π_k Ω_k
        effective_population_exemplars  its exp: exemplars that the population consists of

    Exemplars that are left out for a record have no share there. Sums over exemplars are matrix
    products, as Ω's normaliser is one (`MixingDistribution`): exemplars that a persona puts some 80
    nats below another persona's are lost in rounding here as they are there.

    Args:
        posterior: draws of the gate.
        data: the population; its responses are not read.
        level: of the intervals.

    Returns:
        Columns `mean`, `low`, `high`, by the quantities' names.

    Raises:
        DataError: if the level is none.
    """
    tails(level)
    weights = _relative(data.weights)

    def numbers(mixture: PersonaMixture, data: MixtureData) -> dict[str, jax.Array]:
        return _gate_numbers(mixture.mixing_distribution, weights)

    draws = map_draws(posterior, data, numbers, chunk_size=draws_at_a_time(data))
    # Not the draws' own order, which is that of the alphabet.
    rows = {name: interval(draws[name], level) for name in _QUANTITIES}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("quantity")


_QUANTITIES = (
    "persona_entropy",
    "effective_personas",
    "population_persona_entropy",
    "effective_population_personas",
    "persona_context_information",
    "persona_between_contexts",
    "exemplar_entropy",
    "effective_exemplars",
    "population_exemplar_entropy",
    "effective_population_exemplars",
)


def draws_at_a_time(data: MixtureData) -> int:
    """How many draws' arrays fit in a chunk of `map_draws`, logits of exemplars included."""
    tables = np.size(data.log_likelihood), np.size(data.leave_out)
    return max(1, _CHUNK // max(*tables, data.num_personas * data.num_exemplars))


def responsibilities_by_persona(mixture: PersonaMixture, data: MixtureData) -> jax.Array:
    """p(k | x_i, y_i, θ), [N, K]: the responsibilities of candidates, exemplars summed out."""
    per_candidate = mixture.responsibilities(data.observed)
    rows = jnp.arange(data.num_records)[:, None]
    empty = jnp.zeros((data.num_records, data.num_personas), per_candidate.dtype)
    return empty.at[rows, data.persona_index].add(per_candidate)


def mean_persona_probs(mixture: PersonaMixture, data: MixtureData) -> jax.Array:
    """The population's mean π under a draw, weighted by the records' weights, [K]."""
    weights = jnp.asarray(data.weights)
    probs = jnp.exp(mixture.mixing_distribution.persona_log_probs)
    return product(weights / weights.sum(), probs)


def _gate_numbers(gate: MixingDistribution, weights: np.ndarray) -> dict[str, jax.Array]:
    """The quantities of `gate_summary` under one draw, of contexts with weights [N]."""
    persona = jnp.exp(gate.persona_log_probs)
    conditional = product(weights, entr(persona).sum(-1))
    marginal = entr(product(weights, persona)).sum()
    # Rounding may leave the difference of two equal entropies just below zero.
    information = jnp.maximum(marginal - conditional, 0.0)
    joint = weights[:, None] * persona
    omega, shares = _exemplar_entropies(
        gate.exemplar_record_logits, gate.exemplar_persona_logits, joint
    )
    exemplar, exemplar_marginal = (joint * omega).sum(), entr(shares).sum()
    return {
        "persona_entropy": conditional,
        "effective_personas": jnp.exp(conditional),
        "population_persona_entropy": marginal,
        "effective_population_personas": jnp.exp(marginal),
        "persona_context_information": information,
        "persona_between_contexts": information / jnp.where(marginal > 0, marginal, 1.0),
        "exemplar_entropy": exemplar,
        "effective_exemplars": jnp.exp(exemplar),
        "population_exemplar_entropy": exemplar_marginal,
        "effective_population_exemplars": jnp.exp(exemplar_marginal),
    }


def _exemplar_entropies(
    record_logits: Any, persona_logits: Any, joint: Any
) -> tuple[jax.Array, jax.Array]:
    """H(Ω_k(x_i)), [N, K], and exemplars' shares of the population, [J].

    With a and b the logits' two parts and Z_ik = Σ_j exp(a_ij + b_kj),

        H_ik = log Z_ik − Σ_j exp(a_ij + b_kj) (a_ij + b_kj) / Z_ik
        share_j = Σ_ik joint_ik exp(a_ij + b_kj) / Z_ik

    are sums of products of one factor by record and one by persona.

    Args:
        record_logits: a, [N, J]; −∞ where left out.
        persona_logits: b, [K, J].
        joint: weight of record i and persona k, [N, K], summing to one.
    """
    # Scaled as `log_matmul_exp` does it, and for its reasons.
    column = persona_logits.max(0)
    a, b = record_logits + column, persona_logits - column
    a, b = a - a.max(-1, keepdims=True), b - b.max(-1, keepdims=True)
    exp_a, exp_b = jnp.exp(a), jnp.exp(b)
    total = product(exp_a, exp_b.T)
    total = jnp.maximum(total, jnp.finfo(total.dtype).tiny)
    a_exp_a = exp_a * jnp.where(exp_a > 0, a, 0.0)  # a is −∞ where left out
    mean_logit = (product(a_exp_a, exp_b.T) + product(exp_a, (exp_b * b).T)) / total
    entropy = jnp.clip(jnp.log(total) - mean_logit, 0.0, np.log(a.shape[-1]))
    shares = (exp_b * product((joint / total).T, exp_a)).sum(0)
    return entropy, shares / shares.sum()


def _relative(weights: Any) -> np.ndarray:
    weights = np.asarray(weights)
    return weights / weights.sum()


def _persona_columns(persona: np.ndarray, names: Sequence[str] | None) -> dict[str, Any]:
    named = {} if names is None else {"name": [names[k] for k in persona]}
    return {"persona": persona, **named}


def _refuse(level: float, names: Sequence[str] | None, data: MixtureData) -> None:
    """What can be refused before anything is computed."""
    tails(level)
    if names is not None and (isinstance(names, str) or len(names) != data.num_personas):
        found = "one text" if isinstance(names, str) else f"{len(names)} names"
        raise DataError(f"names holds {found}; there are {data.num_personas} personas.")
