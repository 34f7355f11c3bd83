"""The paper's gate as an NNX module: three linear maps into one space, and their inner products."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from flax import nnx
from numpyro.contrib.module import random_nnx_module

from mop_jax.models.data import MixtureData
from mop_jax.models.feature_maps import product
from mop_jax.models.gate_logits import GateLogits


class Gate(nnx.Module):
    """π and Ω from inner products in R^P (paper, section 3):

        x̃ = W_x [1, f(x)]     g̃_k = W_g f(g_k)     ẽ_j = W_e f(x_j, y_j)
        log π_k = ⟨x̃, g̃_k⟩/√P        log Ω_kj = ( ⟨x̃, ẽ_j⟩ + ⟨g̃_k, ẽ_j⟩ )/√P       up to constants

    with f the data's feature maps (centred, total variance one). The leading 1 lets a persona or an
    exemplar be preferred whatever the context, which the encoder's own constant direction did
    before centring. With N(0, s²) weights the factor 1/√P gives logits of standard deviation about
    s² for every width P.

    Args:
        data: the population; only its sizes are read.
        width: P.
        exemplar_context: whether Ω sees the context (drop ⟨x̃, ẽ_j⟩ otherwise).
        exemplars: whether Ω is learned at all (uniform over allowed exemplars otherwise).
        seed: of the initial weights, Normal(0, 0.1²); a prior over the weights overrides them.
    """

    def __init__(
        self,
        data: MixtureData,
        width: int,
        *,
        exemplar_context: bool = True,
        exemplars: bool = True,
        seed: int = 0,
    ) -> None:
        maps = data.feature_maps
        self.exemplar_context = exemplar_context
        self.exemplars = exemplars
        # NumPy draws them: the lift to a random module wants concrete weights, also inside jit.
        rng = np.random.default_rng(seed)

        def initial(num_features: int) -> nnx.Param:
            return nnx.Param(rng.normal(0.0, 0.1, (num_features, width)).astype(np.float32))

        self.context_kernel = initial(1 + maps.context.basis.shape[1])
        self.persona_kernel = initial(maps.persona.basis.shape[1])
        if exemplars:
            self.exemplar_kernel = initial(maps.exemplar.basis.shape[1])

    def __call__(self, data: MixtureData) -> GateLogits:
        """The logits for the records of `data`."""
        exemplar_kernel = self.exemplar_kernel[...] if self.exemplars else None
        return _inner_products(
            data,
            # A lifted module holds a prior's draws; indexing reads them and plain weights alike.
            self.context_kernel[...],
            self.persona_kernel[...],
            exemplar_kernel,
            self.exemplar_context,
        )


def bilinear_gate(
    data: MixtureData,
    *,
    width: int,
    prior_scale: float,
    exemplar_context: bool = True,
    exemplars: bool = True,
) -> Callable[[MixtureData], GateLogits]:
    """The paper's `Gate`, W_x, W_g, W_e ~ Normal(0, prior_scale²): sites `gate.*_kernel`.

    Rotating the `width` dimensions of all three kernels at once changes no logit: read π and Ω of
    such a fit, never its kernels, and use a guide that copes (`AutoNormal`, `AutoDelta`).
    """
    module = Gate(data, width, exemplar_context=exemplar_context, exemplars=exemplars)

    def name_dims(site: dict[str, Any]) -> dict[str, list[str]]:
        kind = site["name"].removeprefix("gate.").removesuffix("_kernel")
        return {"event_dims": [f"{kind}_feature", "gate_dimension"]}

    with numpyro.handlers.infer_config(config_fn=name_dims):
        return random_nnx_module("gate", module, dist.Normal(0.0, prior_scale), scope_divider=".")


# Jitted on its own so that a guide's eager first trace of a model stays short.
@partial(jax.jit, static_argnames="exemplar_context")
def _inner_products(
    data: MixtureData,
    context_kernel: jax.Array,
    persona_kernel: jax.Array,
    exemplar_kernel: jax.Array | None,
    exemplar_context: bool,
) -> GateLogits:
    maps = data.feature_maps
    scale = context_kernel.shape[1] ** -0.25  # on both sides of an inner product: 1/√P
    features = maps.context(data.context_embeddings)
    context = scale * (context_kernel[0] + product(features, context_kernel[1:]))
    persona = scale * product(maps.persona(data.persona_embeddings), persona_kernel)
    allowed = jnp.where(data.leave_out, -jnp.inf, jnp.zeros((), context.dtype))
    if exemplar_kernel is None:
        uniform = jnp.zeros((data.num_personas, data.num_exemplars), context.dtype)
        return GateLogits(product(context, persona.T), allowed, uniform)
    exemplar = scale * product(maps.exemplar(data.exemplar_embeddings), exemplar_kernel)
    if exemplar_context:
        allowed = allowed + product(context, exemplar.T)
    return GateLogits(product(context, persona.T), allowed, product(persona, exemplar.T))
