"""A language of a few responses, in which a mixture of personas can be drawn from exactly.

`PersonaMixture` observes what a language model says of a response and cannot draw one. Here the
language model is a table: before record i component c says response v with probability

    p_τ(v) = softmax_v( logits_icv / τ ).

So sites can be drawn from a model's prior, a component from its gate and a response from the
component at its τ_k, and the table of log-likelihoods on a grid of temperatures follows: all that
simulation-based calibration needs, for any model that returns its `PersonaMixture`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from numpyro import handlers

from mop_jax.models import MixtureData, full_table_data, with_bare_components

Model = Callable[..., Any]
"""A NumPyro model of a `MixtureData`, with arguments by name, that returns its mixture."""

GRID = (0.35, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 2.8)
"""Temperatures scored, [G]: three standard deviations of the default prior to either side."""


class FiniteLanguage(NamedTuple):
    """A population that has not responded yet, and what would be said to it.

    Attributes:
        data: its records, all K·J components candidates of each; the log-likelihoods are zero.
        logits: of the V responses by record and candidate at τ = 1, [N, C, V].
    """

    data: MixtureData
    logits: jax.Array

    @property
    def num_responses(self) -> int:
        """V."""
        return self.logits.shape[-1]

    def log_probs(self, mixture: Any) -> jax.Array:
        """Log p(v | x_i, θ) of every response by its definition, [N, V]: no table, no spline."""
        temperature = mixture.candidate_temperature[..., None]
        log_probs = jax.nn.log_softmax(self.logits / temperature, axis=2)
        return logsumexp(mixture.candidate_log_probs[..., None] + log_probs, axis=1)

    def table(self, response: Any) -> jax.Array:
        """Log-likelihoods of one response of each record, int [N], on the grid: [N, C, G], nats."""
        grid = jnp.asarray(self.data.temperature_grid)
        log_probs = jax.nn.log_softmax(self.logits[..., None] / grid, axis=2)
        return jnp.take_along_axis(log_probs, jnp.asarray(response)[:, None, None, None], 2)[
            :, :, 0
        ]

    def observed(self, response: Any) -> MixtureData:
        """The population once it has responded, int [N]."""
        return self.data._replace(log_likelihood=self.table(response))

    def respond(self, key: jax.Array, mixture: Any) -> jax.Array:
        """Draws a response of each record, int [N]: a component, then what it says at its τ_k.

        Nothing here knows of the likelihood: components come from the gate's law of pairs, and
        responses from the language itself, not from its table.
        """
        component_key, response_key = jax.random.split(key)
        pair = mixture.mixing_distribution.sample(component_key)
        same = (self.data.persona_index == pair[:, :1]) & (self.data.exemplar_index == pair[:, 1:])
        chosen = jnp.argmax(same, axis=1)[:, None]
        shape = self.data.persona_index.shape
        temperature = jnp.broadcast_to(mixture.candidate_temperature, shape)
        temperature = jnp.take_along_axis(temperature, chosen, axis=1)
        logits = jnp.take_along_axis(self.logits, chosen[..., None], axis=1)[:, 0]
        return jax.random.categorical(response_key, logits / temperature)


def finite_language(
    seed: int = 0,
    *,
    num_records: int = 20,
    num_personas: int = 3,
    num_exemplars: int = 4,
    num_responses: int = 6,
    spread: float = 2.0,
    grid: tuple[float, ...] = GRID,
    groups: bool = False,
    bare: bool = False,
) -> FiniteLanguage:
    """A random language and population; every other record is an exemplar's own, in turn.

    They have labels, which the similarity of a record and an exemplar may use.

    Args:
        seed: of everything.
        num_records: N.
        num_personas: K.
        num_exemplars: J.
        num_responses: V.
        spread: standard deviation of the logits, nats; the more, the more a response tells.
        grid: temperatures at which responses are scored.
        groups: whether records are of groups, whose personas may differ.
        bare: whether there are components without an exemplar, and one without a persona.
    """
    rng = np.random.default_rng(seed)
    width = 5
    shape = (num_records, num_personas, num_exemplars)
    own = np.where(np.arange(num_records) % 2, -1, np.arange(num_records) // 2 % num_exemplars)
    data = full_table_data(
        log_likelihood=np.zeros((*shape, len(grid))),
        temperature_grid=grid,
        context_embeddings=rng.normal(size=(num_records, width)),
        persona_embeddings=rng.normal(size=(num_personas, width)),
        exemplar_embeddings=rng.normal(size=(num_exemplars, width)),
        exemplar_contexts=rng.normal(size=(num_exemplars, width)),
        labels=rng.integers(2, size=num_records),
        exemplar_labels=np.arange(num_exemplars) % 2,
        leave_out=own[:, None] == np.arange(num_exemplars),
        member_of={"sex": np.arange(num_records) % 2} if groups else None,
    )
    if bare:
        alone = np.zeros((num_records, num_personas + 1, len(grid)))
        data = with_bare_components(data, alone[:, 1:], alone[:, 0])
    logits = rng.normal(0, spread, (*data.persona_index.shape, num_responses))
    return FiniteLanguage(data, jnp.asarray(logits, jnp.float32))


class Drawn(NamedTuple):
    """A draw of a model's sites, and what follows from it.

    Attributes:
        sites: the latent ones by name.
        mixture: what the model returned.
    """

    sites: dict[str, jax.Array]
    mixture: Any

    def quantities(self, data: MixtureData) -> dict[str, jax.Array]:
        """Identified numbers by name.

        Log π_k of every persona at two records, log π Ω of a component at a third, log τ_k where it
        is a site, and every site that is one number.
        """
        log_probs = self.mixture.candidate_log_probs
        found = {}
        for record in (0, 1):
            for k in range(data.num_personas):
                own = np.asarray(data.persona_index)[record] == k
                found[f"log π_{k}(x_{record})"] = logsumexp(log_probs[record][own])
        allowed = np.flatnonzero(np.asarray(data.log_weight)[2] > -np.inf)[-1]
        found["log πΩ(x_2)"] = log_probs[2, allowed]
        for k, value in enumerate(self.sites.get("log_temperature", ())):
            found[f"log τ_{k}"] = value
        return found | {name: x for name, x in self.sites.items() if jnp.ndim(x) == 0}


def prior_draw(
    key: jax.Array, data: MixtureData, model: Model, model_kwargs: Mapping[str, Any]
) -> Drawn:
    """One draw from a model's prior."""
    with handlers.trace() as trace, handlers.seed(rng_seed=key):
        mixture = model(data, **model_kwargs)
    sites = {
        name: site["value"]
        for name, site in trace.items()
        if site["type"] == "sample" and not site["is_observed"]
    }
    return Drawn(sites, mixture)


def drawn_at(
    sites: Mapping[str, jax.Array],
    data: MixtureData,
    model: Model,
    model_kwargs: Mapping[str, Any],
) -> Drawn:
    """What follows from values of all sites."""
    hidden = handlers.block(handlers.substitute(model, dict(sites)))
    return Drawn(dict(sites), hidden(data, **model_kwargs))


def response_log_probs(
    sites: Mapping[str, jax.Array],
    language: FiniteLanguage,
    model: Model,
    model_kwargs: Mapping[str, Any],
) -> jax.Array:
    """Log p(v | x_i, θ) of every response as the model's observed site has it, nats [N, V]."""

    def of_response(value: jax.Array) -> jax.Array:
        data = language.observed(jnp.full(language.data.num_records, value))
        conditioned = handlers.substitute(model, dict(sites))
        site = handlers.trace(conditioned).get_trace(data, **model_kwargs)["response"]
        log_prob = site["fn"].log_prob(site["value"])
        return log_prob if site["scale"] is None else site["scale"] * log_prob

    return jax.vmap(of_response, out_axes=1)(jnp.arange(language.num_responses))


class Calibration(NamedTuple):
    """Where drawn values lie in their posteriors.

    Attributes:
        positions: in [0, 1] by quantity, [M data sets]; uniform if the posteriors are right.
        effective_size: of the draws that stand for each posterior, [M].
        log_total: log Σ_v p(v | x_i, θ_s), zero of a likelihood that is one, [S, N].
    """

    positions: dict[str, np.ndarray]
    effective_size: np.ndarray
    log_total: np.ndarray


def exact_calibration(
    key: jax.Array,
    language: FiniteLanguage,
    model: Model,
    model_kwargs: Mapping[str, Any],
    *,
    judged: Sequence[Model] | None = None,
    num_draws: int = 1000,
    num_data_sets: int = 2000,
) -> list[Calibration]:
    """Simulation-based calibration of likelihoods without a sampler, and without error.

    A pool θ_1 … θ_S is drawn from the prior once. Each data set takes one of them at random,
    I ~ Uniform, and responds, y ~ p(y | θ_I). Given pool and responses, I is s with probability
    w_s ∝ p(y | θ_s): the posterior under the pool in the prior's place, which is known exactly. The
    position Σ_s w_s [q(θ_s) < q(θ_I)] + U w_I of any quantity q is therefore uniform whatever S is,
    and q may look at the responses. Data sets are independent given the pool, so that tests of
    uniformity are exact; S only decides how much a wrong likelihood shows.

    Args:
        key: decides everything.
        language: the population and what can be said.
        model: draws the sites, the components and the temperatures.
        model_kwargs: its arguments besides the data.
        judged: models with the same sites, whose likelihoods are judged; `model` by default.
        num_draws: S.
        num_data_sets: M.

    Returns:
        For each model judged, positions of `Drawn.quantities` and of the log-likelihood of all
        responses, as the language itself has it: a likelihood that ignores some of the sites shows
        there, and only there.
    """
    data, judges = language.data, [model] if judged is None else judged
    pool_key, truth_key, tie_key = jax.random.split(key, 3)
    truth = np.asarray(jax.random.randint(truth_key, (num_data_sets,), 0, num_draws))
    # Each draw responds as often as the draw that is taken most often.
    counts = np.bincount(truth, minlength=num_draws)
    order = np.argsort(truth, kind="stable")
    turn = np.empty(num_data_sets, int)
    turn[order] = np.arange(num_data_sets) - (np.cumsum(counts) - counts)[truth[order]]

    @jax.jit
    def pool_of(keys: jax.Array) -> tuple[Any, ...]:
        def one(key: jax.Array) -> tuple[Any, ...]:
            draw_key, response_key = jax.random.split(key)
            drawn = prior_draw(draw_key, data, model, model_kwargs)
            response_keys = jax.random.split(response_key, counts.max())
            responses = jax.vmap(language.respond, (0, None))(response_keys, drawn.mixture)
            tables = [response_log_probs(drawn.sites, language, m, model_kwargs) for m in judges]
            return (
                drawn.quantities(data),
                responses,
                [language.log_probs(drawn.mixture), *tables],
            )

        return jax.lax.map(one, keys, batch_size=100)

    quantities, responses, tables = pool_of(jax.random.split(pool_key, num_draws))
    said = np.asarray(responses)[truth, turn][..., None] == np.arange(language.num_responses)
    said = said.reshape(num_data_sets, -1).astype(np.float64)
    # Double precision from here on: sums over N records for all M·S pairs.
    tables = [np.asarray(table, np.float64) for table in tables]
    exact, *log_likelihoods = [said @ table.reshape(num_draws, -1).T for table in tables]
    values = {name: np.asarray(value)[None] for name, value in quantities.items()}
    values["log-likelihood"] = exact
    uniform = np.asarray(jax.random.uniform(tie_key, (num_data_sets,)), np.float64)
    found = []
    for log_likelihood, table in zip(log_likelihoods, tables[1:], strict=True):
        weight = np.exp(log_likelihood - log_likelihood.max(1, keepdims=True))
        weight /= weight.sum(1, keepdims=True)
        positions = {
            name: weighted_position(value, weight, truth, uniform) for name, value in values.items()
        }
        log_total = np.logaddexp.reduce(table, axis=2)
        found.append(Calibration(positions, 1 / (weight**2).sum(1), log_total))
    return found


def weighted_position(
    values: np.ndarray, weight: np.ndarray, truth: np.ndarray, uniform: np.ndarray
) -> np.ndarray:
    """Weight below the true value, and a uniform part of that of its equals, [M].

    Args:
        values: of the S draws, [M, S] or [1, S].
        weight: of the draws, [M, S], rows summing to one.
        truth: which draw is true, int [M].
        uniform: in [0, 1), [M].
    """
    values = np.broadcast_to(values, weight.shape)
    own = np.take_along_axis(values, truth[:, None], axis=1)
    below = (weight * (values < own)).sum(1)
    return below + uniform * (weight * (values == own)).sum(1)
