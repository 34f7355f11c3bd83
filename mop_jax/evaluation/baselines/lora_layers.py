"""Low-rank adapters on a decoder's projections: put in for training, merged for sampling.

A projection x ↦ x W becomes x ↦ x W + (α/r) x A B with W fixed, A [in, r] and B [r, out]. B starts
at zero, so training starts from the model as it is. The layers stay stacked: the adapters have the
same leading axis, and `Decoder.extend` runs them as it runs the weights.
"""

from __future__ import annotations

import math
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from mop_jax.lm.decoder import Decoder

TARGETS = {
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}
"""Projections that get adapters, as far as the family has them."""


class Adapted(nnx.Module):
    """A projection with its adapter; sums of the adapter are float32."""

    def __init__(self, base: nnx.Linear, rank: int, scale: float, rng_key: Array):
        """Adapts a projection whose kernel is [L, in, out]."""
        *stack, num_in, num_out = base.kernel[...].shape
        noise = jax.random.normal(rng_key, (*stack, num_in, rank), jnp.float32)
        self.base, self.scale = base, scale
        self.lora_a = nnx.LoRAParam(noise / math.sqrt(num_in))
        self.lora_b = nnx.LoRAParam(jnp.zeros((*stack, rank, num_out), jnp.float32))

    def __call__(self, x: Array) -> Array:
        """The projection of x [N, in]."""
        fixed = self.base(x)
        low = (x.astype(jnp.float32) @ self.lora_a[...]) @ self.lora_b[...]
        return fixed + (self.scale * low).astype(fixed.dtype)

    def update(self) -> Array:
        """What is added to the kernel, float32 [L, in, out]."""
        return self.scale * jnp.matmul(self.lora_a[...], self.lora_b[...])


class Rematerialised(nnx.Module):
    """Layers whose insides are computed again for the gradient, and not kept until then."""

    def __init__(self, layer: nnx.Module):
        """Wraps the stacked layers."""
        self.layer = layer

    def __call__(self, x_nd, cached, mask, rotation, packing, inputs=(None, None)):
        """See `DecoderLayer.__call__`."""
        graph, state = nnx.split(self.layer)

        @jax.checkpoint
        def run(state, x_nd, cached, mask, rotation):
            return nnx.merge(graph, state)(x_nd, cached, mask, rotation, packing, inputs)

        return run(state, x_nd, cached, mask, rotation)


def adapted(decoder: Decoder, rank: int, alpha: float, rng_key: Array) -> Decoder:
    """A decoder that shares the weights of another and has adapters beside them.

    Args:
        decoder: stays as it is.
        rank: r.
        alpha: α; updates are scaled by α/r.
        rng_key: draws A.
    """
    copy = nnx.merge(*nnx.split(decoder))
    for number, (block, name) in enumerate(targets(copy)):
        owner = getattr(copy.layers, block)
        key = jax.random.fold_in(rng_key, number)
        setattr(owner, name, Adapted(getattr(owner, name), rank, alpha / rank, key))
    copy.layers = cast(Any, Rematerialised(copy.layers))
    return copy


def split_adapters(model: Decoder) -> tuple[Any, nnx.State, nnx.State]:
    """Structure, adapters and all other weights of what `adapted` made."""
    graph, adapters, *rest = nnx.split(model, nnx.LoRAParam, ...)
    return graph, adapters, rest[0]


def targets(decoder: Decoder) -> list[tuple[str, str]]:
    """The projections that get adapters: (block, name)."""
    found = []
    for block, names in TARGETS.items():
        found += [(block, n) for n in names if hasattr(getattr(decoder.layers, block), n)]
    return found


def merged(decoder: Decoder, with_adapters: Decoder) -> Decoder:
    """A decoder with W + (α/r) A B in place of W, in W's dtype.

    Args:
        decoder: without adapters; stays as it is.
        with_adapters: made of it by `adapted`.
    """
    graph, state = nnx.split(decoder)
    flat = dict(nnx.to_flat_state(state))
    for block, name in targets(decoder):
        adapter = getattr(getattr(cast(Any, with_adapters.layers).layer, block), name)
        path = ("layers", block, name, "kernel")
        kernel = flat[path]
        value = kernel[...]
        flat[path] = kernel.replace(
            (value.astype(jnp.float32) + adapter.update()).astype(value.dtype)
        )
    return nnx.merge(graph, nnx.from_flat_state(flat))
