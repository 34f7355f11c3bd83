"""How much memory there is, and what to make of it when there is none left."""

from __future__ import annotations

import os

import jax
import numpy as np
from flax import nnx
from jax import numpy as jnp
from jax.experimental import multihost_utils

from mop_jax.lm.config import DecoderConfig
from mop_jax.lm.decoder import Decoder

# Shares of what is there that pooled prefixes and slots may take. On an accelerator the rest is for
# the weights (counted beforehand) and the activations of a batch.
_SHARE_OF_HOST = 0.125
_SHARE_OF_DEVICE = 0.4
_LEAST = 2.0**28


def default_memory(decoder: Decoder) -> float:
    """Bytes of a device for prefixes, and slots when sampling, where nobody says.

    It depends on the machine and the model, not on what else is running: a resumed run must plan
    the batches that it planned before. Of several hosts the smallest decides, for all must plan
    alike.
    """
    own = _own_memory(decoder)
    if jax.tree.leaves(nnx.state(decoder))[0].sharding.is_fully_addressable:
        return own
    return float(multihost_utils.process_allgather(np.float32(own)).min())


def _own_memory(decoder: Decoder) -> float:
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    leaves = jax.tree.leaves(nnx.state(decoder))
    if limit is None:
        # CPU devices of one process, each with a pool of its own, share the memory.
        return _SHARE_OF_HOST * host_memory() / len(leaves[0].sharding.addressable_devices)
    held = sum(
        shard.data.nbytes
        for leaf in leaves
        for shard in leaf.addressable_shards
        if shard.device == device
    )
    return max(_SHARE_OF_DEVICE * (limit - held), _LEAST)


def host_memory() -> int:
    """Bytes of memory that the machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def kv_bytes_per_token(config: DecoderConfig, dtype: jnp.dtype, model: int = 1) -> int:
    """Bytes of a token's keys and values on one device, in all layers: 2 · L · K · E numbers.

    `model` devices share the heads if it divides their number; otherwise each has all of them.
    """
    heads = config.num_kv_heads
    heads = heads // model if heads % model == 0 else heads
    return 2 * config.num_layers * heads * config.head_dim * jnp.dtype(dtype).itemsize


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of JAX says that a device's memory is full, so that less may be tried.

    Not on several hosts: the others would go on with what they had planned, and wait for ever.
    """
    text = str(error)
    full = "RESOURCE_EXHAUSTED" in text or "Out of memory" in text
    return full and jax.process_count() == 1
