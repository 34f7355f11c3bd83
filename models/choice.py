"""The mixture of personas for closed answers as a NumPyro program.

It has the gate, the temperatures and the return value of `mixture_of_personas`, so that the same
inference, predictions, files and exports serve it; what is observed are counts of chosen options.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from flax import nnx

from mop_jax.distributions import ChoiceCounts
from mop_jax.errors import DataError
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
from mop_jax.models.scales import standard_normals
from mop_jax.models.temperatures import find_temperatures


def mixture_of_choices(
    data: MixtureData,
    *,
    gate: str | GateModel | type[nnx.Module] = "linear",
    gate_width: int = 8,
    prior_scale: float = 1.0,
    temperature: bool | str = True,
    temperature_prior_scale: float = 0.5,
    temperature_spread: float = 0.25,
    exemplar_context: bool = True,
    exemplars: bool = True,
    uniform_gate: bool = False,
    similarity: bool = False,
    similarity_prior_scale: float = 1.0,
    sparse_personas: bool = False,
    sparse_scale: float = 1.0,
    group_effects: bool = True,
    group_scale: float = 0.7,
    option_effects: bool = False,
    option_effect_scale: float = 0.3,
    option_preference: bool = False,
    preference_temperature: float = 4.0,
    preference_spread: float = 0.5,
    option_bias: bool = True,
    option_bias_scale: float = 0.7,
    scale_spread: float = 0.6,
    dispersion: bool = True,
    concentration: float = 50.0,
    concentration_spread: float = 1.5,
    subsample_size: int | None = None,
) -> ChoiceCounts:
    """The contextual mixture of closed answers, with partially pooled groups:

        π(x), Ω(x) = gate(x; θ)                                          sites gate.*
        log π_k += Σ_g σ_g α_g[level of x, k],   α ~ Normal(0, 1)        sites group_effect.*
        log σ_g ~ Normal(log group_scale, scale_spread²)                 sites group_scale.*
        μ ~ Normal(0, temperature_prior_scale²)                          site mean_log_temperature
        log τ_k ~ Normal(μ, temperature_spread²)                         site log_temperature
        b_qm = σ_b β_qm,   β ~ Normal(0, 1)                              site option_bias
        log σ_b ~ Normal(log option_bias_scale, scale_spread²)           site option_bias_scale
        log φ_q ~ Normal(log concentration, concentration_spread²)       site log_concentration
        counts_i ~ ChoiceCounts(π(x_i), Ω(x_i), τ, b_q(i), φ_q(i))       site response

    and with `option_effects`, which a language model may make needless or not:

        b_qm += κ_g γ_g[level of x, q, m],   γ ~ Normal(0, 1)            sites option_effect.*
        log κ_g ~ Normal(log option_effect_scale, scale_spread²)         sites option_effect_scale.*

    and with `option_preference`, where ā_qm is what the language model prefers of a question's
    options whoever answers (`Choices.option_preference`):

        ℓ_icm / τ_k becomes (ℓ_icm − ā_qm) / τ_k + ā_qm / τ_0            site
        log τ_0 ~ Normal(log preference_temperature, preference_spread²) log_preference_temperature

    so that τ_k is about how much components and contexts differ, which is what answers to a
    question teach, and not about how far the language model's opinion of the whole question can be
    trusted, which b hides wherever there are answers and which decides where there are none.

    α and β are standardised: times their scale they are logits. A group or a question that no
    training item is in keeps its prior, with the scale that the others taught: predictions for it
    are as uncertain as that. b is what people's answers have beyond the language model's own
    preference for an option's words (contextual calibration, Zhao et al. 2021, learned).

    Args:
        data: items with `choices`.
        gate: see `mixture_of_personas`, also for the arguments up to `similarity_prior_scale`.
        gate_width: see there.
        prior_scale: see there.
        temperature: whether τ is learned; it divides whole options' log-probabilities.
        temperature_prior_scale: see there; wider, as options are few and language models sure.
        temperature_spread: see there.
        exemplar_context: see there.
        exemplars: see there.
        uniform_gate: whether to do without the gate; groups act all the same.
        similarity: see there.
        similarity_prior_scale: see there.
        sparse_personas: see there.
        sparse_scale: see there.
        group_effects: whether groups prefer personas of their own.
        group_scale: prior median of the groups' standard deviations, in logits of π.
        option_effects: whether groups prefer options directly, as in a multilevel regression
            (MRP), beside what personas say: what κ takes, personas do not explain.
        option_effect_scale: prior median of κ, nats.
        option_preference: whether ā has a temperature of its own.
        preference_temperature: prior median of τ_0.
        preference_spread: prior standard deviation of log τ_0.
        option_bias: whether b is learned.
        option_bias_scale: prior median of its standard deviation, nats.
        scale_spread: prior standard deviation of the logarithms of both.
        dispersion: whether cells differ by more than sampling error (see `ChoiceCounts`).
        concentration: prior median of φ, people.
        concentration_spread: prior standard deviation of log φ.
        subsample_size: items per step; all by default.

    Returns:
        The distribution of the counts of the items used.

    Raises:
        DataError: if the data hold no closed answers, or no ā where it is needed.
    """
    if data.choices is None:
        raise DataError(
            "mixture_of_choices is a model of closed answers, and the data hold none; build them "
            "with choice_data."
        )
    if option_preference and data.choices.option_preference is None:
        raise DataError(
            "option_preference needs data that say what the language model prefers; build them "
            "with choice_data(option_preference=…)."
        )
    dtype = data.choices.option_log_likelihood.dtype
    num_options, num_questions = data.choices.counts.shape[-1], data.choices.question.shape[-1]
    if temperature not in (True, False, "persona", "fixed"):
        raise DataError(
            f"Unknown temperature {temperature!r} of a survey; accepted: true, false, persona, "
            "fixed: options have no grid of temperatures, and exemplars none of their own."
        )
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
    groups = data.choices.groups if group_effects else {}
    effects = declare_group_effects(
        groups, data.num_personas, median=group_scale, spread=scale_spread
    )
    direct = {}
    if option_effects:
        for name, design in data.choices.groups.items():
            prior = dist.LogNormal(jnp.log(option_effect_scale), scale_spread)
            shape = (design.shape[-1], num_questions, num_options)
            direct[name] = numpyro.sample(f"option_effect_scale.{name}", prior) * standard_normals(
                f"option_effect.{name}", (f"{name}_level", "question", "option"), shape
            )
    trust = jnp.ones((), dtype)
    if option_preference:
        prior = dist.Normal(jnp.log(preference_temperature), preference_spread)
        trust = jnp.exp(-numpyro.sample("log_preference_temperature", prior))
    bias = jnp.zeros((num_questions, num_options), dtype)
    if option_bias:
        scale = numpyro.sample(
            "option_bias_scale", dist.LogNormal(jnp.log(option_bias_scale), scale_spread)
        )
        bias = scale * standard_normals("option_bias", ("question", "option"), bias.shape)
    log_concentration = None
    if dispersion:
        with numpyro.plate("question", num_questions):
            log_concentration = numpyro.sample(
                "log_concentration", dist.Normal(jnp.log(concentration), concentration_spread)
            )

    with numpyro.plate("record", data.num_records, subsample_size=subsample_size) as index:
        batch = data if subsample_size is None else data.take(index)
        choices = batch.choices
        assert choices is not None
        logits = logits_of(batch)
        persona = add_group_effects(logits.persona, effects, choices.groups)
        option_logits = choices.option_offset + choices.question @ bias
        option_log_likelihood, preference = choices.option_log_likelihood, choices.option_preference
        if option_preference and preference is not None:
            option_log_likelihood = option_log_likelihood - preference[:, None]
            option_logits = option_logits + trust * preference
        for name, effect in direct.items():
            option_logits = option_logits + jnp.einsum(
                "nl,nq,lqm->nm", choices.groups[name], choices.question, effect
            )
        answers = ChoiceCounts(
            persona,
            logits.exemplar_record,
            logits.exemplar_persona,
            temperatures_of(batch).persona,
            batch.persona_index,
            batch.exemplar_index,
            batch.log_weight,
            option_log_likelihood,
            option_logits,
            total_count=jnp.round(choices.counts.sum(-1)),
            concentration=(
                None if log_concentration is None else jnp.exp(choices.question @ log_concentration)
            ),
        )
        with numpyro.handlers.scale(scale=batch.weights):
            numpyro.sample("response", answers, obs=choices.counts)
    return answers
