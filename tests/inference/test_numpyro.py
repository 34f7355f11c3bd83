"""NumPyro's own tools on the model itself: it is an ordinary NumPyro program."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro import handlers
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, log_likelihood
from numpyro.infer.autoguide import AutoDelta
from numpyro.infer.util import initialize_model, log_density

from mop_jax.inference import log_likelihood_draws, make_posterior, uniform_log_prob
from mop_jax.models import mixture_of_personas

SIZES = {"gate_width": 2}


@pytest.fixture(scope="module")
def data(make_data):
    """Six records."""
    return make_data()


@pytest.fixture(scope="module")
def samples(data):
    """Five draws of every site from the prior, by NumPyro."""
    drawn = Predictive(mixture_of_personas, num_samples=5)(jax.random.key(0), data, **SIZES)
    response = drawn.pop("response")
    np.testing.assert_array_equal(response[3], data.log_likelihood)  # observed, so not drawn
    return drawn


@pytest.mark.parametrize("parallel", [False, True])
def test_log_likelihood_equals_ours(data, samples, parallel):
    ours = log_likelihood_draws(make_posterior(samples, data, model_kwargs=SIZES), data)
    theirs = log_likelihood(mixture_of_personas, samples, data, parallel=parallel, **SIZES)
    np.testing.assert_allclose(theirs["response"], ours, rtol=1e-6)
    assert np.asarray(ours).std(0).min() > 1e-3  # the draws differ, so the test can fail


def test_without_sites_it_is_the_uniform_mixture(data):
    kwargs = {"uniform_gate": True, "temperature": False}
    theirs = log_likelihood(mixture_of_personas, {}, data, **kwargs)["response"]
    np.testing.assert_allclose(theirs, uniform_log_prob(data)[None], rtol=1e-6)


def test_the_site_of_a_lifted_module_is_substituted(data, samples):
    """Every site of a trace has the substituted value, and none is drawn anew (no key is given)."""
    one = {name: value[2] for name, value in samples.items()}
    for handler in (handlers.substitute, handlers.condition):
        trace = handlers.trace(handler(mixture_of_personas, data=one)).get_trace(data, **SIZES)
        sites = {n: s for n, s in trace.items() if s["type"] == "sample" and n != "response"}
        assert sites.keys() == one.keys()
        for name, site in sites.items():
            np.testing.assert_array_equal(site["value"], one[name])
    # Only the number: a trace holds names, which no compiled function returns.
    value = jax.jit(lambda one: log_density(mixture_of_personas, (data,), SIZES, one)[0])(one)
    prior = sum(site["fn"].log_prob(site["value"]).sum() for site in sites.values())
    likelihood = (trace["response"]["fn"].log_prob(data.log_likelihood) * data.weights).sum()
    np.testing.assert_allclose(value, prior + likelihood, rtol=1e-5)


def test_predictive_passes_posterior_draws_on(data, samples):
    drawn = Predictive(mixture_of_personas, samples)(jax.random.key(1), data, **SIZES)
    assert drawn["response"].shape == (5, *data.log_likelihood.shape)


def test_initialize_model_finds_every_site(data, samples):
    info = initialize_model(
        jax.random.key(0), mixture_of_personas, model_args=(data,), model_kwargs=SIZES
    )
    assert info.param_info.z.keys() == samples.keys()
    assert np.isfinite(info.potential_fn(info.param_info.z))


def test_the_graph_is_drawn(data, samples):
    pytest.importorskip("graphviz")
    source = numpyro.render_model(
        mixture_of_personas, (data,), SIZES, render_distributions=True
    ).source
    for name in (*samples, "response"):
        assert name in source
    assert "cluster_record" in source
    assert "response ~ PersonaMixture" in source


def test_mcmc_and_svi_run_the_model_themselves(data):
    """The gate is left out because it takes long to compile."""
    kwargs = {"uniform_gate": True}
    mcmc = MCMC(
        NUTS(mixture_of_personas), num_warmup=5, num_samples=5, num_chains=1, progress_bar=False
    )
    mcmc.run(jax.random.key(0), data, **kwargs)
    assert mcmc.get_samples()["log_temperature"].shape == (5, 3)
    guide = AutoDelta(mixture_of_personas)
    svi = SVI(mixture_of_personas, guide, numpyro.optim.Adam(0.01), Trace_ELBO())
    result = svi.run(jax.random.key(0), 20, data, progress_bar=False, **kwargs)
    assert jnp.isfinite(result.losses).all()
    assert result.losses[-1] < result.losses[0]
