"""Guides by name: how the families of approximate posteriors are made and started."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpyro
from numpyro.infer import init_to_sample
from numpyro.infer.autoguide import AutoDelta, AutoGuide, AutoNormal

from mop_jax.errors import DataError
from mop_jax.models.data import MixtureData

GUIDES: dict[str, type[AutoGuide]] = {"AutoNormal": AutoNormal, "AutoDelta": AutoDelta}


def make_guide(
    guide: str | type[AutoGuide] | AutoGuide, model: Callable[..., Any], **kwargs: Any
) -> AutoGuide:
    """A guide by name ("AutoNormal", "AutoDelta"), by class, or as it comes.

    Guides by name or class start at a draw from the prior: all weights zero is a saddle point of a
    bilinear gate, and NumPyro's default start, uniform on (−2, 2), is far outside the prior.
    """
    if isinstance(guide, str):
        if guide not in GUIDES:
            raise DataError(f"Unknown guide {guide!r}; accepted: {', '.join(GUIDES)}, or a class.")
        guide = GUIDES[guide]
    if isinstance(guide, type):
        return guide(model, init_loc_fn=init_to_sample, **kwargs)
    return guide


def prepare_guide(
    guide: AutoGuide, rng_key: jax.Array, data: MixtureData, model_kwargs: Mapping[str, Any]
) -> None:
    """Lets a mean-field guide see the model's sites, at a start drawn with `rng_key`.

    The guide would do so itself, by differentiating the whole model op by op to see that its start
    has a finite gradient: half a minute of tiny compilations on a slow CPU. With the likelihood
    masked out it takes a few seconds, and the first step of the fit checks the loss anyway.
    """
    model = guide.model
    guide.model = numpyro.handlers.mask(model, mask=False)
    try:
        with numpyro.handlers.seed(rng_seed=rng_key):
            guide(data, **model_kwargs)
    finally:
        guide.model = model
