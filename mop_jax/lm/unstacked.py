"""A decoder's layers one by one, as decoding on a CPU wants them.

A step of decoding runs one token a row: it reads every weight for little arithmetic. `lax.scan`
over stacked layers copies each layer's weights before it uses them, which takes as long as the
products themselves; arrays of their own are read where they lie. They are laid out once for all
steps of a call, beside the stacked ones, where the memory has room for both.
"""

from __future__ import annotations

from functools import partial
from operator import itemgetter
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from mop_jax.lm.decoder import Decoder, UnstackedLayer
from mop_jax.lm.layers import Turned, joined
from mop_jax.lm.memory import host_memory

# Share of the host's memory that a second copy of the layers may take.
_SHARE_OF_HOST = 0.125


def unstacked_layers(decoder: Decoder, mesh: Mesh | None) -> tuple[Any, tuple[nnx.State, ...]]:
    """The layers' structure and their weights, one by one; None and () where they stay stacked.

    Accelerators read stacked weights as they lie, and a mesh splits them. What a machine decides
    depends on its memory and the model, not on what else is running.
    """
    graph, state = nnx.split(decoder)
    layers = jax.tree.leaves(nnx.state(decoder.layers))
    if jax.default_backend() != "cpu" or mesh is not None:
        return None, ()
    if sum(leaf.nbytes for leaf in layers) > _SHARE_OF_HOST * host_memory():
        return None, ()
    return _structure(graph, state), _unstack(graph, state)


def merged(graph: Any, states: tuple[nnx.State, ...]) -> list[UnstackedLayer] | None:
    """What `Decoder.extend` takes as `layers`."""
    if graph is None:
        return None
    parts = [nnx.merge(graph, state) for state in states]
    return [UnstackedLayer(part.module, (part.attention, part.mlp)) for part in parts]


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


@partial(jax.jit, static_argnames="graph")
def _unstack(graph, state) -> tuple[nnx.State, ...]:
    return tuple(nnx.state(layer) for layer in _each(graph, state))


def _structure(graph, state):
    return nnx.graphdef(nnx.eval_shape(lambda: next(_each(graph, state))))


def _each(graph, state):
    layers = nnx.merge(graph, state).layers
    structure, stacked = nnx.split(layers)
    depth = jax.tree.leaves(stacked)[0].shape[0]
    for index in range(depth):
        yield _Layer(nnx.merge(structure, jax.tree.map(itemgetter(index), stacked)))
