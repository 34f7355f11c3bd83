"""The default gate: logits linear in their weights, so that the posterior identifies them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from mop_jax.models.data import MixtureData
from mop_jax.models.feature_maps import product
from mop_jax.models.gate_logits import GateLogits


def linear_gate(
    data: MixtureData,
    *,
    width: int,
    prior_scale: float,
    exemplar_context: bool = True,
    exemplars: bool = True,
) -> Callable[[MixtureData], GateLogits]:
    """A multinomial logit over personas, and one over exemplars, with interactions:

        log π_k  = ⟨f(g_k), a + U f(x)⟩                                    up to constants
        log Ω_kj = ⟨f(e_j), b + M f(x) + C f(g_k)⟩
        a, b, U, M, C ~ Normal(0, prior_scale²)

    f keeps the `width` first principal features of the centred embeddings (`fit_feature_maps`), so
    the number of weights does not grow with K and J. Centred features of K personas span at most
    K − 1 directions, so there is no weight that shifts all logits alike; and none can be exchanged
    for another, while the paper's gate (`bilinear_gate`), which writes U, M and C as products of
    shared low-rank factors, can be rotated without the data noticing. The log-posterior is close to
    a quadratic, which a Gaussian guide follows.

    Sites: `gate.persona_weight` (a), `gate.persona_context_weight` (U), `gate.exemplar_weight` (b),
    `gate.exemplar_context_weight` (M), `gate.exemplar_persona_weight` (C).
    """
    weights = {}
    for name, kinds in weight_blocks(exemplars, exemplar_context).items():
        shape, dims = block_shape(data, kinds, width)
        prior = dist.Normal(0.0, prior_scale).expand(shape).to_event(len(shape))
        infer = {"event_dims": list(dims)}
        weights[name] = numpyro.sample(f"gate.{name}_weight", prior, infer=infer)
    return partial(linear_logits, weights=weights, width=width)


def weight_blocks(exemplars: bool, exemplar_context: bool) -> dict[str, tuple[str, ...]]:
    """The blocks of a linear gate's weights: whose features, of one or two kinds, each acts on."""
    blocks = {"persona": ("persona",), "persona_context": ("persona", "context")}
    if exemplars:
        blocks |= {"exemplar": ("exemplar",), "exemplar_persona": ("exemplar", "persona")}
        if exemplar_context:
            blocks |= {"exemplar_context": ("exemplar", "context")}
    return blocks


def block_shape(
    data: MixtureData, kinds: tuple[str, ...], width: int
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The shape of a block of weights, and its dimensions' names."""
    sizes = [min(width, getattr(data.feature_maps, kind).basis.shape[1]) for kind in kinds]
    return tuple(sizes), tuple(f"{kind}_feature" for kind in kinds)


# Jitted on its own so that a guide's eager first trace of a model stays short.
@partial(jax.jit, static_argnames="width")
def linear_logits(data: MixtureData, weights: dict[str, jax.Array], width: int) -> GateLogits:
    """The logits of a linear gate with given weights, by block."""
    maps = data.feature_maps
    context = maps.context(data.context_embeddings)[:, :width]
    persona = maps.persona(data.persona_embeddings)[:, :width]
    exemplar = maps.exemplar(data.exemplar_embeddings)[:, :width]

    def interaction(by: jax.Array, weight: jax.Array, features: jax.Array) -> jax.Array:
        """⟨features, weight · by⟩ for every row of `by` and of `features`."""
        return product(product(by, weight.T), features.T)

    logits = product(persona, weights["persona"])
    logits = logits + interaction(context, weights["persona_context"], persona)
    record = jnp.where(data.leave_out, -jnp.inf, jnp.zeros((), context.dtype))
    between = jnp.zeros((data.num_personas, data.num_exemplars), context.dtype)
    if "exemplar" in weights:
        between = between + product(exemplar, weights["exemplar"])
        between = between + interaction(persona, weights["exemplar_persona"], exemplar)
    if "exemplar_context" in weights:
        record = record + interaction(context, weights["exemplar_context"], exemplar)
    return GateLogits(logits, record, between)
