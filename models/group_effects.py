"""Groups of people whose personas differ: partially pooled effects on the logits of π.

    log π_k += Σ_g σ_g α_g[level of x, k],   α ~ Normal(0, 1)        sites group_effect.*
    log σ_g ~ Normal(log median, spread²)                            sites group_scale.*

A grouping is a column or a cross of columns, such as `age` or `age:education`. A level that no
training record is of keeps its prior, with the scale that the others taught: predictions for it are
as uncertain as that. A training record whose level is not known has no effect of the grouping.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from mop_jax.models.scales import learnt_scale, standard_normals


def declare_group_effects(
    designs: Mapping[str, Any],
    num_personas: int,
    *,
    median: float,
    spread: float,
    flagged: bool = False,
) -> dict[str, jax.Array]:
    """Logits that the levels of each grouping add to the personas, [L + 1, K].

    Args:
        designs: by grouping, a one in the column of the level that a record is of, [N, L + 1].
        num_personas: K.
        median: prior median of the effects' standard deviation, logits.
        spread: prior standard deviation of its logarithm.
        flagged: whether the scales say of themselves that they are learnt (`learnt_scale`). Those
            of surveys do not: hundreds of answers an item keep their mode near the posterior.
    """
    effects = {}
    for name, design in designs.items():
        site = f"group_scale.{name}"
        if flagged:
            scale = learnt_scale(site, median, spread)
        else:
            scale = numpyro.sample(site, dist.LogNormal(jnp.log(median), spread))
        shape = (design.shape[-1], num_personas)
        dims = (f"{name}_level", "persona")
        effects[name] = scale * standard_normals(f"group_effect.{name}", dims, shape)
    return effects


def add_group_effects(
    persona_logits: jax.Array, effects: Mapping[str, jax.Array], designs: Mapping[str, Any]
) -> jax.Array:
    """The logits [N, K] with what the groups of each record add."""
    for name, effect in effects.items():
        persona_logits = persona_logits + designs[name] @ effect
    return persona_logits
