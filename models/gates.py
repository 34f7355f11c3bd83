"""Gates by name: what a model's `gate` argument accepts, and the one that prefers nothing.

A gate is a function of the population that declares its sample sites and returns the logits as a
function of records:

    def my_gate(data, *, width, prior_scale, exemplar_context, exemplars):
        weight = numpyro.sample("gate.weight", …)
        return lambda batch: GateLogits(persona, exemplar_record, exemplar_persona)

Another one is a file beside this with such a function, and a line in `GATES`; it can also be passed
to the model as it is. A Flax NNX module will do as well (`module_gate`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from flax import nnx
from numpyro.contrib.module import random_nnx_module

from mop_jax.errors import DataError
from mop_jax.models.bilinear_gate import bilinear_gate
from mop_jax.models.data import MixtureData
from mop_jax.models.gate_logits import GateLogits
from mop_jax.models.hierarchical_gate import hierarchical_gate
from mop_jax.models.linear_gate import linear_gate
from mop_jax.models.scales import learnt_scale, standard_normals
from mop_jax.models.similarity import SimilarityMap

GateFunction = Callable[[MixtureData], GateLogits]
"""The logits of the records of a `MixtureData`."""


class GateModel(Protocol):
    """What declares a gate's sample sites and returns its logits as a function of records."""

    def __call__(
        self,
        data: MixtureData,
        *,
        width: int,
        prior_scale: float,
        exemplar_context: bool,
        exemplars: bool,
    ) -> GateFunction:
        """The gate of the population `data`.

        Args:
            data: the population, all N records.
            width: size of the gate (`gate_width` of the model).
            prior_scale: width of the weights' prior.
            exemplar_context: whether Ω sees the context.
            exemplars: whether Ω is learned at all (uniform over allowed exemplars otherwise).
        """
        ...


def module_gate(module: type[nnx.Module]) -> GateModel:
    """The gate of an NNX module class: every `nnx.Param` gets a Normal(0, prior_scale²) prior.

    The module is made as `module(data, width, exemplar_context=…, exemplars=…)` and called with the
    records; its parameters become the sites `gate.*`.
    """

    def gate(data: MixtureData, *, width: int, prior_scale: float, **parts: bool) -> GateFunction:
        make: Callable[..., nnx.Module] = module
        made = make(data, width, **parts)
        prior = dist.Normal(0.0, prior_scale)
        return random_nnx_module("gate", made, prior, scope_divider=".")

    return gate


GATES: dict[str, GateModel] = {
    "linear": linear_gate,
    "bilinear": bilinear_gate,
    "hierarchical": hierarchical_gate,
}
"""Gates that `gate=` accepts by name."""


def find_gate(gate: str | GateModel | type[nnx.Module]) -> GateModel:
    """A gate by name, as a function, or as the class of an NNX module.

    Raises:
        DataError: if there is no gate of that name.
    """
    if isinstance(gate, str):
        if gate not in GATES:
            raise DataError(
                f"Unknown gate {gate!r}; accepted: {', '.join(GATES)}, a function, or the class "
                "of an NNX module."
            )
        return GATES[gate]
    return module_gate(gate) if isinstance(gate, type) and issubclass(gate, nnx.Module) else gate


def uniform_gate_logits(data: MixtureData) -> GateLogits:
    """The gate that prefers nothing: π and Ω uniform over what is allowed."""
    dtype = data.log_likelihood.dtype
    return GateLogits(
        jnp.zeros((data.num_records, data.num_personas), dtype),
        jnp.where(data.leave_out, -jnp.inf, jnp.zeros((), dtype)),
        jnp.zeros((data.num_personas, data.num_exemplars), dtype),
    )


def add_persona_weights(
    logits_of: GateFunction, data: MixtureData, *, scale: float
) -> GateFunction:
    """A gate whose personas may die out: weights of their own under a sparse prior, on top of it.

        log π_k += s u_k,   u_k ~ Normal(0, 1)             site gate.persona_weights
        log s ~ Normal(log scale, 1)                       site gate.persona_weights_scale

    A logistic-normal prior with a scale that is learnt: where s is small all personas speak alike,
    and at s = 3 four of fifty have four fifths of π. Write more personas than the
    population needs, and ask the posterior how many it has (`mop_jax.inference.gate_summary`) and
    which can go (`negligible_personas`). Personas have texts, and no order: a prior that breaks a
    stick would prefer those that come first.

    Args:
        logits_of: the gate that is added to.
        data: the population.
        scale: prior median of s, logits.
    """
    spread = learnt_scale("gate.persona_weights_scale", scale)
    added = spread * standard_normals("gate.persona_weights", ("persona",), (data.num_personas,))

    def logits(batch: MixtureData) -> GateLogits:
        found = logits_of(batch)
        return found._replace(persona=found.persona + added)

    return logits


def add_similarity(
    logits_of: GateFunction, data: MixtureData, *, prior_scale: float
) -> GateFunction:
    """A gate that knows how alike a context and an exemplar are, on top of any other gate:

        log Ω_kj += β sim(x_i, x_j) + β_label [same label] + β_group [same group]
        β, β_label, β_group ~ Normal(0, prior_scale²)

    sim is the cosine of the two contexts' centred embeddings in units of its standard deviation
    over the exemplars of a record (`SimilarityMap`). All is nats of log Ω: an exemplar whose
    context is one standard deviation nearer is e^β times likelier, one of the same label
    e^β_label times. The terms are the record's, so that Ω's normaliser stays a matrix product.

    Sites: `gate.context_similarity` (β), `gate.same_label`, `gate.same_group`; those of terms that
    the data lack are not there.

    Args:
        logits_of: the gate that is added to.
        data: the population; its `similarity` says which terms there are.
        prior_scale: standard deviation of the coefficients, nats.
    """
    similarity = data.similarity
    if similarity is None:
        return logits_of
    coefficients = tuple(
        numpyro.sample(f"gate.{term}", dist.Normal(0.0, prior_scale)) for term in similarity.terms
    )

    def logits(batch: MixtureData) -> GateLogits:
        found = logits_of(batch)
        added = _similarity_logits(
            similarity, coefficients, batch.context_embeddings, batch.labels, batch.groups
        )
        return found._replace(exemplar_record=found.exemplar_record + added)

    return logits


# Jitted on its own so that a guide's eager first trace of a model stays short.
@jax.jit
def _similarity_logits(
    similarity: SimilarityMap,
    coefficients: tuple[jax.Array, ...],
    embeddings: jax.Array,
    labels: jax.Array | None,
    groups: jax.Array | None,
) -> jax.Array:
    features = similarity.features(embeddings, labels, groups)
    return sum(
        (beta * feature for beta, feature in zip(coefficients, features, strict=True)),
        start=jnp.zeros((), features[0].dtype),
    )
