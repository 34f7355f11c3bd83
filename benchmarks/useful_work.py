"""How much arithmetic a workload needs, and how much the machine can do at best."""

from __future__ import annotations

import time
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from workloads import Workload

from mop_jax.lm.config import DecoderConfig


def tokens_flops(config: DecoderConfig, start: int, count: int) -> float:
    """Floating-point operations of `count` tokens at positions start, start + 1, … in all layers.

    Each token costs 2 · (non-embedding matrix parameters), and attention costs 4 · H · E for each
    layer and each position it attends to (scores and weighted values, itself included): a token at
    position p attends to p + 1 positions.
    """
    width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    attention = config.hidden_size * (2 * width + 2 * kv_width)
    feed_forward = config.hidden_size * config.intermediate_size * (3 if config.gated_mlp else 2)
    parameters = config.num_layers * (attention + feed_forward)
    attended = count * start + count * (count + 1) // 2
    return 2.0 * parameters * count + 4.0 * width * config.num_layers * attended


def pair_flops(config: DecoderConfig, work: Workload) -> np.ndarray:
    """Useful operations of each pair after its prefix, float64 [pairs].

    The suffix's tokens (but the last of a response, which predicts nothing that is asked for), and
    2 · V · D for each response token. No padding.
    """
    projection = 2.0 * config.vocab_size * config.hidden_size
    before = [sum(map(len, prefix)) for prefix in work.prefixes]

    @cache
    def one(start: int, request: int, response: int) -> float:
        return tokens_flops(config, start, request + response - 1) + response * projection

    sizes = [(len(c.request), len(c.response)) for c in work.continuations]
    return np.asarray([one(before[c], *sizes[i]) for c, i in work.pairs])


def prefix_flops(config: DecoderConfig, work: Workload) -> float:
    """Useful operations of the prefixes: each distinct segment after its parents once."""
    paths = {prefix[:depth] for prefix in work.prefixes for depth in range(1, len(prefix) + 1)}
    return sum(tokens_flops(config, sum(map(len, p[:-1])), len(p[-1])) for p in paths)


def whole_flops(config: DecoderConfig, work: Workload) -> np.ndarray:
    """Operations of each pair when its prompt is run whole, as the peers do, float64 [pairs]."""
    alone = [tokens_flops(config, 0, sum(map(len, prefix))) for prefix in work.prefixes]
    return pair_flops(config, work) + np.asarray(alone)[work.pairs[:, 0]]


def matrix_product_peak(size: int = 2048, seconds: float = 1.0) -> float:
    """FLOP/s of the best of repeated float32 [size, size] products within about `seconds`."""
    return product_peak((size, size, size), seconds)


def model_shapes_peak(config: DecoderConfig, tokens: int = 512, seconds: float = 0.3) -> float:
    """FLOP/s of the best product of the model's own shapes, with `tokens` rows."""
    width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes = [
        (tokens, config.hidden_size, width + 2 * kv_width),
        (tokens, config.hidden_size, config.intermediate_size),
        (tokens, config.hidden_size, 2 * config.intermediate_size),
        (tokens, config.intermediate_size, config.hidden_size),
    ]
    return max(product_peak(shape, seconds) for shape in shapes)


def product_peak(shape: tuple[int, int, int], seconds: float) -> float:
    """FLOP/s of the best of repeated float32 products [m, k] × [k, n] within about `seconds`."""
    m, k, n = shape
    left, right = jnp.ones((m, k), jnp.float32), jnp.ones((k, n), jnp.float32)
    _product(left, right).block_until_ready()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        _product(left, right).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2.0 * m * k * n / min(times)


@jax.jit
def _product(left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.matmul(left, right, precision="highest")
