"""How much memory there is, and what to make of it when there is none left."""

from __future__ import annotations

import os

import jax
from flax import nnx
from jax import numpy as jnp

from mop_jax.lm.config import DecoderConfig
from mop_jax.lm.decoder import Decoder

# Shares of what is there that pooled prefixes may take. On an accelerator the rest is for the
# weights (counted beforehand) and the activations of a batch.
_SHARE_OF_HOST = 0.125
_SHARE_OF_DEVICE = 0.4
_LEAST = 2.0**28


def default_memory(decoder: Decoder) -> float:
    """Bytes that pooled prefixes may take at a time, where nobody says.

    It depends on the machine and the model, not on what else is running: a resumed run must plan
    the batches that it planned before.
    """
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit is None:
        return _SHARE_OF_HOST * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    held = sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(nnx.state(decoder))
        for shard in leaf.addressable_shards
        if shard.device == device
    )
    return max(_SHARE_OF_DEVICE * (limit - held), _LEAST)


def kv_bytes_per_token(config: DecoderConfig, dtype: jnp.dtype) -> int:
    """Bytes of a token's keys and values in all layers: 2 · L · K · E numbers."""
    numbers = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    return numbers * jnp.dtype(dtype).itemsize


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of JAX says that a device's memory is full."""
    text = str(error)
    return "RESOURCE_EXHAUSTED" in text or "Out of memory" in text
