"""The mixture of personas as a NumPyro program: copy it, change it, pass it to `fit_svi`.

Everything downstream (prediction, gates at new contexts, simulation, ArviZ) asks one thing of a
model: that it takes a `MixtureData`, observes `data.log_likelihood`, and returns its
`PersonaMixture`.
"""

from __future__ import annotations

from typing import Any

import numpyro
from flax import nnx

from mop_jax.distributions import PersonaMixture, RenormalisedPersonaMixture
from mop_jax.errors import DataError
from mop_jax.models.bare_components import add_bare_components
from mop_jax.models.data import MixtureData
from mop_jax.models.gates import (
    GateFunction,
    GateModel,
    add_persona_weights,
    add_similarity,
    find_gate,
    uniform_gate_logits,
)
from mop_jax.models.group_effects import add_group_effects, declare_group_effects
from mop_jax.models.temperatures import (
    TemperatureModel,
    find_temperatures,
    temperature_arguments,
)


def mixture_of_personas(
    data: MixtureData,
    *,
    gate: str | GateModel | type[nnx.Module] = "linear",
    gate_width: int = 8,
    prior_scale: float = 1.0,
    temperature: bool | str | TemperatureModel = True,
    temperature_prior_scale: float = 0.3,
    temperature_spread: float = 0.1,
    exemplar_context: bool = True,
    exemplars: bool = True,
    uniform_gate: bool = False,
    similarity: bool = False,
    similarity_prior_scale: float = 1.0,
    sparse_personas: bool = False,
    sparse_scale: float = 1.0,
    group_effects: bool = True,
    group_scale: float = 0.7,
    group_scale_spread: float = 0.6,
    bare_log_odds: float = -1.0,
    bare_log_odds_scale: float = 1.5,
    distribution: type[PersonaMixture] = PersonaMixture,
    num_kept: int | None = None,
    subsample_size: int | None = None,
) -> PersonaMixture:
    """The two-level contextual mixture with a temperature per persona (paper, section 3).

        π(x), Ω(x) = gate(x; θ),  θ ~ the gate's prior                   sites gate.*
        log Ω_kj(x_i) += β sim(x_i, x_j) + β_label [same label] + β_group [same group]
        β, β_label, β_group ~ Normal(0, similarity_prior_scale²)         sites gate.*
        μ ~ Normal(0, temperature_prior_scale²)                          site mean_log_temperature
        log τ_k ~ Normal(μ, temperature_spread²)                         site log_temperature
        y_i ~ PersonaMixture(π(x_i), Ω(x_i), τ), weighted by w_i         site response

    The β are there with `similarity=True`, where the data have the terms; see `add_similarity`.
    Further parts, each in a file of its own that says what it adds and under which sites:
    temperatures of exemplars and contexts (`mop_jax.models.temperatures`), personas that may die
    out (`sparse_personas`; `add_persona_weights`), effects of the groups that records are of
    (`mop_jax.models.group_effects`; data with `member_of`), and components without exemplar or
    persona (`mop_jax.models.bare_components`; data `with_bare_components`).

    Each ablation is one argument: `temperature=False` (τ = 1), `exemplar_context=False` (Ω without
    x̃), `exemplars=False` (Ω uniform over allowed exemplars; with a table scored without exemplars,
    J = 1, the paper's "no exemplars"), `uniform_gate=True` (π and Ω uniform).

    Args:
        data: the population, N records with C scored components each.
        gate: how π and Ω depend on the context: "linear" (`linear_gate`), "bilinear" (the paper's,
            `bilinear_gate`), or a gate of one's own (`mop_jax.models.gates`).
        gate_width: features of each embedding that a linear gate sees; the dimension P of a
            bilinear gate's inner products.
        prior_scale: standard deviation of the gate's weights.
        temperature: whether τ is learned, a temperature per persona; or "pooled" (of personas and
            exemplars), "contextual" (of the context, too), or a temperature model of one's own
            (`mop_jax.models.temperatures`).
        temperature_prior_scale: prior standard deviation of the personas' mean log τ.
        temperature_spread: prior standard deviation of log τ between personas; where it is learnt,
            the prior median of it.
        exemplar_context: whether Ω sees the context.
        exemplars: whether Ω is learned.
        uniform_gate: whether to do without the gate.
        similarity: whether Ω knows how alike the contexts, labels and groups of a record and an
            exemplar are; not without `exemplars` and `exemplar_context`.
        similarity_prior_scale: standard deviation of the β, nats of log Ω: per standard deviation
            of the contexts' cosine, and for the same label or group.
        sparse_personas: whether personas have weights of their own under a sparse prior.
        sparse_scale: prior median of the weights' standard deviation, logits of π.
        group_effects: whether groups prefer personas of their own, where the data have groupings.
        group_scale: prior median of the groups' standard deviations, logits of π.
        group_scale_spread: prior standard deviation of their logarithms.
        bare_log_odds: prior mean of the log odds of showing no exemplar, and no persona, where the
            data have such components.
        bare_log_odds_scale: their prior standard deviation.
        distribution: `PersonaMixture`, or `RenormalisedPersonaMixture` for a gate that lives on the
            scored components only.
        num_kept: of a renormalised mixture, how many components of each record the gate lives on:
            those that it prefers (the paper's top-M gate, M = 4); all that are scored by default.
        subsample_size: records per step (the likelihood is scaled up to all N); all by default.

    Returns:
        The mixture of the records used, for its gate, temperatures and responsibilities.
    """
    temperatures_of = find_temperatures(temperature)(
        data,
        width=gate_width,
        prior_scale=temperature_prior_scale,
        spread=temperature_spread,
    )
    logits_of: GateFunction = uniform_gate_logits
    if not uniform_gate:
        logits_of = find_gate(gate)(
            data,
            width=gate_width,
            prior_scale=prior_scale,
            exemplar_context=exemplar_context,
            exemplars=exemplars,
        )
        if similarity and exemplars and exemplar_context:
            logits_of = add_similarity(logits_of, data, prior_scale=similarity_prior_scale)
        if sparse_personas:
            logits_of = add_persona_weights(logits_of, data, scale=sparse_scale)
    if data.bare is not None:
        if issubclass(distribution, RenormalisedPersonaMixture):
            raise DataError(
                "Bare components are always scored, and a renormalised gate lives on the scored "
                "ones: nearly all would be bare. Use PersonaMixture with them."
            )
        logits_of = add_bare_components(
            logits_of,
            data,
            log_odds=bare_log_odds,
            log_odds_scale=bare_log_odds_scale,
            learned=not uniform_gate,
        )
    groupings = (group_effects and not uniform_gate and data.groupings) or {}
    effects = declare_group_effects(
        groupings, data.num_personas, median=group_scale, spread=group_scale_spread, flagged=True
    )

    kept: dict[str, Any] = {} if num_kept is None else {"num_kept": num_kept}

    with numpyro.plate("record", data.num_records, subsample_size=subsample_size) as index:
        batch = data if subsample_size is None else data.take(index)
        logits = logits_of(batch)
        log_temperature = temperatures_of(batch)
        mixture = distribution(
            add_group_effects(logits.persona, effects, batch.groupings or {}),
            logits.exemplar_record,
            logits.exemplar_persona,
            log_temperature.persona,
            batch.persona_index,
            batch.exemplar_index,
            batch.log_weight,
            batch.temperature_grid,
            **temperature_arguments(log_temperature),
            **kept,
        )
        with numpyro.handlers.scale(scale=batch.weights):
            numpyro.sample("response", mixture, obs=batch.log_likelihood)
    return mixture
