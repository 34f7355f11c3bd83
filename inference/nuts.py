"""NUTS for mixture-of-personas models: slower than SVI, and the judge of what SVI left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from numpyro.infer import MCMC, NUTS, init_to_sample

from mop_jax.distributions import PersonaMixture
from mop_jax.errors import DataError
from mop_jax.inference.posterior import Posterior, make_posterior, model_name
from mop_jax.inference.svi import latent_sites
from mop_jax.models import checks
from mop_jax.models.data import MixtureData
from mop_jax.models.mixture import mixture_of_personas


def fit_nuts(
    rng_key: jax.Array,
    data: MixtureData,
    *,
    model: Callable[..., PersonaMixture] = mixture_of_personas,
    model_kwargs: Mapping[str, Any] | None = None,
    num_warmup: int = 500,
    num_samples: int = 500,
    num_chains: int = 1,
    chain_method: str = "sequential",
    progress: bool = True,
    **nuts_kwargs: Any,
) -> tuple[Posterior, MCMC]:
    """Samples the posterior of `model` with NUTS.

    Components are identified by their fixed texts, so chains can be compared persona by persona,
    and the linear gate's weights one by one. A bilinear gate's kernels are identified only up to a
    rotation of its P dimensions: `diagnose` judges convergence by the gate, temperatures and
    log-likelihoods.

    Args:
        rng_key: decides everything.
        data: the population.
        model: a NumPyro model of `data` that returns its `PersonaMixture`.
        model_kwargs: further arguments of the model.
        num_warmup: adaptation steps per chain.
        num_samples: draws kept per chain.
        num_chains: chains.
        chain_method: NumPyro's "sequential", "vectorized" or "parallel".
        progress: whether to show NumPyro's progress bar.
        **nuts_kwargs: further arguments of `numpyro.infer.NUTS`.

    Returns:
        The posterior, chains concatenated, and the `MCMC` object for its diagnostics.

    Raises:
        DataError: if the model has no latent sites.
    """
    checks.random_key(rng_key)
    kwargs = dict(model_kwargs or {})
    if not latent_sites(model, data, kwargs):
        raise DataError(
            f"{model_name(model)} has no latent sites with these arguments, so there is nothing to "
            "sample; posterior_draws(fit_svi(…)) is its one draw."
        )
    mcmc = MCMC(
        NUTS(model, **{"init_strategy": init_to_sample, **nuts_kwargs}),
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method=chain_method,
        progress_bar=progress,
    )
    mcmc.run(rng_key, data, **kwargs)
    samples = {name: np.asarray(value) for name, value in mcmc.get_samples().items()}
    posterior = make_posterior(samples, data, model, kwargs, sampler="NUTS", num_chains=num_chains)
    return posterior, mcmc
