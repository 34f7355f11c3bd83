"""Draws from a fitted posterior, the gate they imply at any context, and their file.

A `Posterior` is everything that a simulation needs besides the language model: draws of the model's
sites, the model they belong to, and the personas, exemplars and feature maps it was fitted with.
The same functions serve every model that returns its `PersonaMixture`, a researcher's own included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro

from mop_jax import models
from mop_jax.distributions import MixingDistribution, PersonaMixture
from mop_jax.errors import DataError
from mop_jax.inference.guides import guide_name, sample_guide
from mop_jax.inference.svi import SVIFit
from mop_jax.models import checks
from mop_jax.models.data import MixtureData


@dataclass(frozen=True, repr=False, eq=False)
class Posterior:
    """Draws from the posterior of a mixture-of-personas model.

    Attributes:
        samples: draws of each latent site, [S, ...].
        model: the NumPyro model.
        model_kwargs: what it was called with, besides the data.
        data: personas, exemplars, feature maps and temperature grid of the fit (one placeholder
            record).
        params: the guide's parameters, where there was a guide, as nested as they come.
        losses: the fit's loss trace [num_steps], where there was one.
        sampler: what made the draws: "NUTS", a guide's name, or nothing.
        num_chains: how many Markov chains of equal length the draws are, one after another; None
            for independent draws.
    """

    samples: dict[str, Any]
    model: Callable[..., PersonaMixture]
    model_kwargs: dict[str, Any]
    data: MixtureData
    params: dict[str, Any]
    losses: np.ndarray
    sampler: str = ""
    num_chains: int | None = None

    @property
    def num_draws(self) -> int:
        """S."""
        return len(next(iter(self.samples.values()))) if self.samples else 1

    def __len__(self) -> int:
        """S."""
        return self.num_draws

    def __repr__(self) -> str:
        """One line: arrays say little and fill pages."""
        draws = "1 draw" if self.num_draws == 1 else f"{self.num_draws} draws"
        sampler = f" by {self.sampler}" if self.sampler else ""
        return (
            f"<Posterior of {model_name(self.model)}: {draws}{sampler} of "
            f"{', '.join(self.samples) or 'no site'}; {self.data.num_personas} personas, "
            f"{self.data.num_exemplars} exemplars>"
        )

    def replace(self, **changes: Any) -> Posterior:
        """A copy with other values of some attributes."""
        return replace(self, **changes)


def model_name(model: Any) -> str:
    """A model's name for a reader; a partial application has that of its function."""
    while not hasattr(model, "__name__") and hasattr(model, "func"):
        model = model.func
    return getattr(model, "__name__", type(model).__name__)


class GateDraws(NamedTuple):
    """The gate at some contexts, under each of S posterior draws.

    Attributes:
        persona_log_probs: log π_k(x), [S, N, K].
        exemplar_record_logits: a, the contexts' part of log Ω, [S, N, J]; −∞ where left out.
        exemplar_persona_logits: b, the personas' part, [S, K, J].
        temperature: τ_k, [S, K].
        exemplar_log_temperature: what exemplars add to log τ, [S, J]; None for nothing.
        record_log_temperature: what contexts add to log τ, [S, N]; None for nothing.
        temperature_grid: temperatures at which responses were scored, [G]: τ is confined to it.
    """

    persona_log_probs: jax.Array
    exemplar_record_logits: jax.Array
    exemplar_persona_logits: jax.Array
    temperature: jax.Array
    exemplar_log_temperature: jax.Array | None = None
    record_log_temperature: jax.Array | None = None
    temperature_grid: Any = None

    def component_temperature(
        self, draw: Any, context: Any, persona: Any, exemplar: Any
    ) -> np.ndarray:
        """τ of components in contexts under draws; indices are integers, or arrays of one shape."""
        temperature = np.asarray(self.temperature)[draw, persona]
        if self.exemplar_log_temperature is None and self.record_log_temperature is None:
            return temperature
        added = 0.0
        if self.exemplar_log_temperature is not None:
            added = added + np.asarray(self.exemplar_log_temperature)[draw, exemplar]
        if self.record_log_temperature is not None:
            added = added + np.asarray(self.record_log_temperature)[draw, context]
        ends = np.asarray(self.temperature_grid)[[0, -1]]
        return np.clip(temperature * np.exp(added), *ends)

    def mixing_distribution(self, draw: int) -> MixingDistribution:
        """The law of (persona, exemplar) under one draw, batch shape (N,)."""
        return MixingDistribution(
            self.persona_log_probs[draw],
            self.exemplar_record_logits[draw],
            self.exemplar_persona_logits[draw],
        )

    def exemplar_log_probs(self) -> jax.Array:
        """Log Ω_kj(x), [S, N, K, J]: for small pools and plots."""
        joint = self.exemplar_record_logits[:, :, None] + self.exemplar_persona_logits[:, None]
        return jax.nn.log_softmax(joint, axis=-1)


def posterior_draws(fit: SVIFit, rng_key: jax.Array, num_draws: int = 200) -> Posterior:
    """`num_draws` independent draws from the fitted guide (all equal under "AutoDelta").

    A model without latent sites has one draw, of nothing.
    """
    checks.random_key(rng_key)
    if num_draws < 1:
        raise DataError(f"num_draws is {num_draws}; at least 1 is needed.")
    if fit.guide is None:  # no site to draw: the posterior is one point
        return make_posterior({}, fit.data, fit.model, fit.model_kwargs)
    samples = sample_guide(fit.guide, rng_key, fit.params, fit.data, fit.model_kwargs, num_draws)
    return make_posterior(
        samples,
        fit.data,
        fit.model,
        fit.model_kwargs,
        params=fit.params,
        losses=fit.losses,
        sampler=guide_name(fit.guide),
    )


def make_posterior(
    samples: Mapping[str, Any],
    data: MixtureData,
    model: Callable[..., PersonaMixture] = models.mixture_of_personas,
    model_kwargs: Mapping[str, Any] | None = None,
    *,
    params: Mapping[str, Any] | None = None,
    losses: np.ndarray | None = None,
    sampler: str = "",
    num_chains: int | None = None,
) -> Posterior:
    """A `Posterior` from draws [S, ...] however they were made (`fit_nuts` uses it)."""
    kwargs = {k: v for k, v in (model_kwargs or {}).items() if k != "subsample_size"}
    reference = data.at_contexts(np.zeros_like(np.asarray(data.context_embeddings[:1])))
    return Posterior(
        {name: np.asarray(value) for name, value in samples.items()},
        model,
        kwargs,
        jax.tree.map(np.asarray, reference),
        jax.tree.map(np.asarray, dict(params or {})),
        np.zeros(0, np.float32) if losses is None else np.asarray(losses),
        sampler,
        num_chains,
    )


def mixture_at(
    model: Callable[..., PersonaMixture],
    draw: Mapping[str, Any],
    data: MixtureData,
    model_kwargs: Mapping[str, Any],
) -> PersonaMixture:
    """The mixture that one `draw` of the sites implies for the records of `data`."""

    def refuse(site: dict[str, Any]) -> None:
        # Without this a site that the draw lacks would silently be drawn from its prior.
        if site["type"] == "sample" and site["value"] is None:
            raise DataError(
                f"The draws hold no site {site['name']!r}, which the model has; they have "
                f"{', '.join(draw) or 'no site at all'}."
            )

    model = numpyro.handlers.substitute(model, data=dict(draw))
    mixture = numpyro.handlers.substitute(model, substitute_fn=refuse)(data, **model_kwargs)
    if mixture is None:
        raise DataError("The model returned None; it must return its PersonaMixture.")
    return mixture


def map_draws(
    posterior: Posterior,
    data: MixtureData,
    function: Callable[[PersonaMixture, MixtureData], Any],
    *,
    chunk_size: int | None = None,
) -> Any:
    """function(mixture, data) under every draw, stacked to [S, ...].

    Draws run `chunk_size` at a time, so that memory does not grow with S beyond the results; by
    default as many as keep a chunk's tables near 64 MB. `data` is read through the posterior's
    feature maps, and compared with its exemplars, whatever its own.
    """
    if chunk_size is None:
        chunk_size = max(1, 16_000_000 // max(1, np.size(data.log_likelihood)))
    data = data._replace(
        feature_maps=posterior.data.feature_maps, similarity=posterior.data.similarity
    )

    @jax.jit
    def run(samples: dict[str, Any], data: MixtureData) -> Any:
        def one(draw: dict[str, Any]) -> Any:
            mixture = mixture_at(posterior.model, draw, data, posterior.model_kwargs)
            return function(mixture, data)

        if not samples:  # a model without latent sites: one draw of nothing
            return jax.tree.map(lambda x: x[None], one({}))
        return jax.lax.map(one, samples, batch_size=min(chunk_size, posterior.num_draws))

    return run(posterior.samples, data)


def gate_at(
    posterior: Posterior,
    context_embeddings: Any,
    *,
    leave_out: Any | None = None,
    labels: Any | None = None,
    groups: Any | None = None,
    member_of: Mapping[str, Any] | None = None,
) -> GateDraws:
    """The gate at contexts under every draw.

    Args:
        posterior: draws of the gate.
        context_embeddings: h(x), [N, D].
        leave_out: bool [N, J], exemplars that must not serve a context.
        labels: codes of the contexts' labels, int [N], those of the exemplars' labels in the data
            of the fit (`Components.codes`); by default, and where they are −1, not known: Ω is then
            what it is without the term.
        groups: codes of the contexts' groups, likewise.
        member_of: of closed answers, codes of the levels of each grouping (`age`), int [N]. By
            default, and where they are −1, contexts are of groups that no item of the fit was of:
            their effects on π are draws from what the other groups taught of such effects.
    """

    def gate(mixture: PersonaMixture, data: MixtureData) -> GateDraws:
        mixing = mixture.mixing_distribution
        return GateDraws(
            mixing.persona_log_probs,
            jnp.asarray(mixing.exemplar_record_logits),
            jnp.asarray(mixing.exemplar_persona_logits),
            jnp.asarray(mixture.temperature),
            # Closed answers have no such parts.
            getattr(mixture, "exemplar_log_temperature", None),
            getattr(mixture, "record_log_temperature", None),
        )

    contexts = np.asarray(context_embeddings, posterior.data.context_embeddings.dtype)
    data = posterior.data.at_contexts(
        contexts, leave_out, labels=labels, groups=groups, member_of=member_of
    )
    found: GateDraws = map_draws(posterior, data, gate)
    if posterior.data.choices is not None:  # whose temperatures know no grid
        return found
    return found._replace(temperature_grid=posterior.data.temperature_grid)
