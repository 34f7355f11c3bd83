"""Draws of the mixture's sites, and the mixture and its directions at a draw."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers

from mop_jax.models import mixture_of_personas


def draw_sites(data, model=mixture_of_personas, seed: int = 0, **kwargs: Any) -> dict[str, Any]:
    """A prior draw of the model's latent sites."""
    trace = handlers.trace(handlers.seed(model, seed)).get_trace(data, **kwargs)
    return {
        name: site["value"]
        for name, site in trace.items()
        if site["type"] == "sample" and not site["is_observed"]
    }


def mixture_at(draw, data, **kwargs: Any):
    """The mixture of the data's records at a draw."""
    return handlers.substitute(mixture_of_personas, draw)(data, **kwargs)


def singular_values(data, **kwargs: Any) -> np.ndarray:
    """Of the Jacobian of log π + log Ω by all weights at a prior draw; zeros say what is lost."""
    model = handlers.block(mixture_of_personas, hide=["response", "record"])
    draw = {k: jnp.asarray(v, float) for k, v in draw_sites(data, **kwargs).items()}

    @jax.jit
    def log_probs(draw):
        return handlers.substitute(model, draw)(data, **kwargs).mixing_log_probs.ravel()

    blocks = jax.jit(jax.jacfwd(log_probs))(draw)
    jacobian = np.concatenate([np.reshape(b, (len(b), -1)) for b in blocks.values()], axis=1)
    found = np.linalg.svd(jacobian, compute_uv=False)
    return np.pad(found, (0, jacobian.shape[1] - len(found)))
