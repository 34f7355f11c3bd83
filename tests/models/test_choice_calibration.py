"""Simulation-based calibration of the choice model (Talts et al. 2018, arXiv 1804.06788).

Sites are drawn from the prior and counts from the model; among NUTS's draws from the posterior
the ranks of what was drawn are then uniform, whatever the prior, if density, gradients and sampler
are right. The surveys differ in nothing but their counts, so that all chains run at once in one
compiled program.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import handlers
from numpyro.infer.hmc import hmc
from numpyro.infer.util import constrain_fn, initialize_model, unconstrain_fn
from scipy.stats import chi2

from mop_jax.models import mixture_of_choices
from tests.models.surveys import survey_data

SURVEYS, WARMUP, DRAWS, THIN, BINS = 160, 150, 31, 4, 8
FALSE_FAILURES = 0.001
KWARGS = {"uniform_gate": True, "option_preference": True}
SITES = [
    "option_bias_scale",
    "group_scale.age",
    "group_scale.education",
    "mean_log_temperature",
    "log_preference_temperature",
    "log_concentration",
]


@pytest.fixture(scope="module")
def data():
    """Six items of fifty people each, three cells to two questions."""
    preference = np.repeat([[2.0, 0.0, -1.0, 0.5], [0.0, -1.5, 1.0, 0.0]], 6, axis=0)
    whole = survey_data(11, people=50, option_preference=preference)
    return whole.take(np.array([0, 3, 4, 6, 9, 10]))


@pytest.fixture(scope="module")
def ranks(data):
    """A function of what the model is told of drawn counts: ranks by survey and quantity.

    A rank is how many of a posterior's draws lie below the prior's. Quantities are one number of
    each site, and the first item's first probability.
    """
    unobserved = handlers.uncondition(mixture_of_choices)
    info = initialize_model(
        jax.random.key(0),
        mixture_of_choices,
        dynamic_args=True,
        model_args=(data,),
        model_kwargs=KWARGS,
    )
    start, sample = hmc(potential_fn_gen=info.potential_fn, algo="NUTS")

    def with_counts(counts):
        return data._replace(choices=data.choices._replace(counts=counts))

    def simulated(key):
        trace = handlers.trace(handlers.seed(unobserved, key)).get_trace(data, **KWARGS)
        sites = {name: site["value"] for name, site in trace.items() if site["type"] == "sample"}
        return sites, sites.pop("response")

    def numbers(sites):
        hidden = handlers.block(handlers.substitute(mixture_of_choices, sites))
        probability = hidden(data, **KWARGS).probs[0, 0]
        return jnp.stack([*(sites[name].ravel()[0] for name in SITES), probability])

    def rank(key, truth, elsewhere, counts):
        args, kwargs = (with_counts(counts),), KWARGS
        latent = unconstrain_fn(mixture_of_choices, args, kwargs, elsewhere)
        state = start(
            latent,
            WARMUP,
            max_tree_depth=5,  # chains wait for one another
            model_args=args,
            model_kwargs=kwargs,
            rng_key=key,
        )

        def go(state, steps):
            return jax.lax.fori_loop(0, steps, lambda _, s: sample(s, args, kwargs), state)

        def draw(state, _):
            state = go(state, THIN)
            return state, numbers(constrain_fn(mixture_of_choices, args, kwargs, state.z))

        draws = jax.lax.scan(draw, go(state, WARMUP), None, length=DRAWS)[1]
        return (draws < numbers(truth)).sum(0)

    @jax.jit
    def run(key, times):
        keys = jax.random.split(key, (3, SURVEYS))
        truth, counts = jax.vmap(simulated)(keys[0])
        # Chains start anywhere, not at the truth.
        elsewhere, _ = jax.vmap(simulated)(keys[1])
        return jax.vmap(rank)(keys[2], truth, elsewhere, times * counts)

    return run


def statistics(found):
    """χ² of the ranks of each quantity over equal bins, and the bound for all of them."""
    bins = np.asarray(found) * BINS // (DRAWS + 1)
    expected = len(bins) / BINS
    counts = np.stack([np.bincount(column, minlength=BINS) for column in bins.T])
    bound = chi2.ppf(1 - FALSE_FAILURES / len(counts), BINS - 1)
    return ((counts - expected) ** 2 / expected).sum(1), bound


def test_ranks_are_uniform_and_a_wrong_likelihood_would_be_noticed(ranks):
    """0.1 % false failures over all quantities by Bonferroni, fixed by the seed."""
    found, bound = statistics(ranks(jax.random.key(1), 1.0))
    assert (found < bound).all(), dict(zip([*SITES, "probability"], found, strict=True))
    # As of eight times as many people, all of whom answer as those do.
    wrong, _ = statistics(ranks(jax.random.key(1), 8.0))
    assert wrong.max() > bound
