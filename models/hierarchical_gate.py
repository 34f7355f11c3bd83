"""The linear gate whose blocks of weights learn how large they are."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from mop_jax.models.data import MixtureData
from mop_jax.models.gate_logits import GateLogits
from mop_jax.models.linear_gate import block_shape, linear_logits, weight_blocks
from mop_jax.models.scales import learnt_scale, standard_normals


def hierarchical_gate(
    data: MixtureData,
    *,
    width: int,
    prior_scale: float,
    exemplar_context: bool = True,
    exemplars: bool = True,
) -> Callable[[MixtureData], GateLogits]:
    """`linear_gate` with a scale for each block of its weights, so that idle blocks shrink away:

        log s_b ~ Normal(log prior_scale, 1)                       sites gate.<block>_scale
        w_b = s_b v_b,   v_b ~ Normal(0, 1)                        sites gate.<block>_weight

    Blocks are the biases of personas and of exemplars, and the interactions persona–context,
    exemplar–persona and exemplar–context. The weights are standardised: what they do to the logits
    is their product with the scale. The mode of such a posterior is of no use: `fit_svi` refuses
    to look for it.
    """
    weights = {}
    for name, kinds in weight_blocks(exemplars, exemplar_context).items():
        shape, dims = block_shape(data, kinds, width)
        scale = learnt_scale(f"gate.{name}_scale", prior_scale)
        weights[name] = scale * standard_normals(f"gate.{name}_weight", dims, shape)
    return partial(linear_logits, weights=weights, width=width)
