"""Decoding layer by layer, as a CPU wants it.

A step of decoding runs one token a row: it reads every weight for little arithmetic. `lax.scan`
over stacked layers copies each layer's weights before it uses them, for half as much time again
(`benchmarks/decoding.py`); one program with all layers one after the other takes half a minute to
compile. So each layer's
weights and cache are arrays of their own, laid out for products of few rows, and the host calls one
small program for every layer, and one for what comes before and after. `Layerwise` is what
`mop_jax.lm.slots.Whole` is elsewhere.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from mop_jax.lm.cache import (
    KVCache,
    OwnCache,
    UnstackedCache,
    empty_unstacked_cache,
    resized_layer,
)
from mop_jax.lm.decoder import Decoder
from mop_jax.lm.drawing import TruncationArrays
from mop_jax.lm.layers import Turned, joined
from mop_jax.lm.memory import host_memory
from mop_jax.lm.slots import Slots, drawn, idle, placed

# Share of the host's memory that a second copy of the layers may take.
_SHARE_OF_HOST = 0.125


def has_room(decoder: Decoder) -> bool:
    """Whether the machine has memory for a second copy of the layers.

    It depends on its memory and the model, not on what else is running.
    """
    leaves = jax.tree.leaves(nnx.state(decoder.layers))
    return sum(leaf.nbytes for leaf in leaves) <= _SHARE_OF_HOST * host_memory()


class Layerwise:
    """Slots whose layers are run one by one."""

    def __init__(self, decoder: Decoder):
        """Lays the layers out: a second copy of their weights, for as long as this lives."""
        config = decoder.config
        graph, state = nnx.split(decoder)
        self._config, self._dtype = config, decoder.dtype
        self._slides = config.sliding_layers or (False,) * config.num_layers
        self._leaves, tree = jax.tree.flatten(state)
        layers = [_lay_out(graph, state, index) for index in range(config.num_layers)]
        self._layers = [jax.tree.leaves(layer) for layer in layers]
        structure = _structure(graph, state)
        self._programs = _programs(graph, tree, structure, jax.tree.structure(layers[0]))

    def idle(self, num_slots: int, size: int, max_new_tokens: int) -> Slots:
        """Slots without work; see `mop_jax.lm.slots.Whole.idle`."""
        cache = empty_unstacked_cache(self._config, num_slots, size, self._dtype)
        return idle(cache, num_slots, max_new_tokens)

    def place(self, slots: Slots, pool: KVCache, rows, pending, places) -> Slots:
        """Puts prompts into slots; see `mop_jax.lm.slots.Whole.place`."""
        cache = slots.cache
        new = _rows(pool, rows, size=min(cache.size, pool.size))
        keys, values = zip(
            *(
                _place_layer(k, v, new.keys, new.values, index, places)
                for index, (k, v) in enumerate(zip(cache.keys, cache.values, strict=True))
            ),
            strict=True,
        )
        lengths, rest = _place_rest(
            cache.lengths, slots._replace(cache=None), new.lengths, pending, places
        )
        return rest._replace(cache=UnstackedCache(keys, values, lengths))

    def resize(self, slots: Slots, size: int) -> Slots:
        """Slots that can hold `size` tokens each."""
        cache = slots.cache
        layers = zip(cache.keys, cache.values, strict=True)
        keys, values = zip(*(resized_layer(*layer, size=size) for layer in layers), strict=True)
        return slots._replace(cache=UnstackedCache(keys, values, cache.lengths))

    def advance(
        self, slots: Slots, root, sample_ids, temperature, end_ids,
        truncation: TruncationArrays, enough: int,
    ) -> tuple[Slots, int]:  # fmt: skip
        """Draws tokens until `enough` responses are over; see `mop_jax.lm.slots.Whole.advance`."""
        programs, cache = self._programs, slots.cache
        keys, values, lengths = list(cache.keys), list(cache.values), cache.lengths
        rest = slots._replace(cache=None)
        luck = _sample_keys(root, sample_ids)
        num_live, filled, faulty = map(int, np.asarray(_status(rest, lengths)))
        at_first, steps = num_live, 0
        while num_live and at_first - num_live < enough and filled < cache.size and not faulty:
            x, lengths, context = programs.begin(
                self._leaves, rest.pending, lengths, rest.live, cache.size
            )
            for index, layer in enumerate(self._layers):
                seen = context.near if self._slides[index] else context.far
                x, keys[index], values[index] = programs.layer(
                    layer, x, keys[index], values[index], context.places, *seen
                )
            rest, status = programs.finish(
                self._leaves, x, rest, lengths, luck, temperature, end_ids, truncation
            )
            num_live, filled, faulty = map(int, np.asarray(status))
            steps += 1
        return rest._replace(cache=UnstackedCache(tuple(keys), tuple(values), lengths)), steps


class _Layer(nnx.Module):
    """A layer whose projections are turned; those of one input are joined, and kept once."""

    def __init__(self, module):
        attention, mlp = module.self_attn, module.mlp
        self.attention, self.mlp = (Turned(*inputs) for inputs in module.inputs())
        attention.o_proj = Turned(*joined(attention.o_proj))
        mlp.down_proj = Turned(*joined(mlp.down_proj))
        for owner in (attention, mlp):
            for name in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"):
                if hasattr(owner, name):
                    delattr(owner, name)
        self.module = module


def _turned(graph, state, index) -> _Layer:
    structure, stacked = nnx.split(nnx.merge(graph, state).layers)
    return _Layer(nnx.merge(structure, jax.tree.map(lambda leaf: leaf[index], stacked)))


@partial(jax.jit, static_argnames="graph")
def _lay_out(graph, state, index: int) -> nnx.State:
    return nnx.state(_turned(graph, state, index))


def _structure(graph, state):
    return nnx.graphdef(nnx.eval_shape(lambda: _turned(graph, state, 0)))


class _Programs(NamedTuple):
    """What is compiled: before all layers, for each of them, behind the last."""

    begin: Any
    layer: Any
    finish: Any


# By what is static, so that a call neither hashes nor compares it: it takes longer than a layer.
@lru_cache(maxsize=16)
def _programs(graph, tree, structure, layer_tree) -> _Programs:
    def decoder_of(leaves) -> Decoder:
        return nnx.merge(graph, jax.tree.unflatten(tree, leaves))

    @partial(jax.jit, static_argnums=4)
    def begin(leaves, tokens, lengths, live, size):
        x, context = decoder_of(leaves).begin_step(tokens, lengths, live, size)
        return x, lengths + live, context

    @partial(jax.jit, donate_argnums=(1, 2, 3))
    def layer(leaves, x, keys, values, places, mask, rotation):
        part = nnx.merge(structure, jax.tree.unflatten(layer_tree, leaves))
        own = OwnCache(keys, values, places)
        x, (keys, values) = part.module(x, own, mask, rotation, None, (part.attention, part.mlp))
        return x, keys, values

    @partial(jax.jit, donate_argnums=2)
    def finish(leaves, x, rest, lengths, luck, temperature, end_ids, truncation):
        decoder = decoder_of(leaves)
        logits = decoder.next_logits(decoder.norm(x))
        rest = drawn(rest, logits, luck, temperature, end_ids, truncation)
        return rest, _status(rest, lengths)

    return _Programs(begin, layer, finish)


@jax.jit
def _status(rest: Slots, lengths: Array) -> Array:
    """What decides whether to go on: live slots, the fullest of them, any that is faulty."""
    filled = jnp.where(rest.live, lengths, 0).max()
    return jnp.stack([rest.live.sum(), filled, rest.faulty.any()])


@jax.jit
def _sample_keys(root, sample_ids) -> Array:
    return jax.vmap(partial(jax.random.fold_in, root))(sample_ids)


@partial(jax.jit, static_argnames="size")
def _rows(pool: KVCache, rows, *, size: int) -> KVCache:
    return pool.rows(rows).resized(size)


@partial(jax.jit, donate_argnums=(0, 1))
def _place_layer(keys, values, new_keys, new_values, index, places):
    width = new_values.shape[-2]
    return (
        keys.at[places, :, :, :width].set(new_keys[index], mode="drop"),
        values.at[places, :, :width].set(new_values[index], mode="drop"),
    )


@partial(jax.jit, donate_argnums=(0, 1))
def _place_rest(lengths, rest: Slots, new_lengths, pending, places):
    return lengths.at[places].set(new_lengths, mode="drop"), placed(rest, pending, places)
