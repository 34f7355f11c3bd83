"""Guides that are functions, old keys, double precision: works, or one clear sentence."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from mop_jax.errors import DataError
from mop_jax.inference import (
    fit_nuts,
    fit_svi,
    load_posterior,
    posterior_draws,
    save_posterior,
)

KWARGS = {"uniform_gate": True}
FIT = {"model_kwargs": KWARGS, "progress": False}


def normal_guide(data, **kwargs):
    """The mean-field posterior of the temperatures, written by hand."""
    del kwargs
    one = dist.constraints.positive
    loc, scale = numpyro.param("m", 0.0), numpyro.param("s", 0.1, constraint=one)
    numpyro.sample("mean_log_temperature", dist.Normal(loc, scale))
    size = data.num_personas
    locs = numpyro.param("ms", jnp.zeros(size))
    scales = numpyro.param("ss", jnp.full(size, 0.1), constraint=one)
    with numpyro.plate("persona", size):
        numpyro.sample("log_temperature", dist.Normal(locs, scales))


def test_a_function_fits_as_the_guide_that_it_writes_out(make_data, tmp_path):
    """The same family as AutoNormal: the same posterior, within Monte Carlo error of 2,000 draws.

    Means within 0.15 standard deviations, of which both fits' noise is less than a third.
    """
    data = make_data(num_records=30, leave_out=np.zeros((30, 5), bool))
    fit = fit_svi(jax.random.key(0), data, guide=normal_guide, num_steps=1500, **FIT)
    assert "normal_guide" in repr(fit)
    posterior = posterior_draws(fit, jax.random.key(1), 2000)
    assert posterior.sampler == "normal_guide"
    other = posterior_draws(
        fit_svi(jax.random.key(0), data, guide="AutoNormal", num_steps=1500, **FIT),
        jax.random.key(1),
        2000,
    )
    for name, draws in other.samples.items():
        error = np.abs(posterior.samples[name].mean(0) - draws.mean(0))
        assert (error < 0.15 * draws.std(0)).all()
    save_posterior(tmp_path / "p.safetensors", posterior)
    loaded = load_posterior(tmp_path / "p.safetensors")
    jax.tree.map(np.testing.assert_array_equal, loaded.samples, posterior.samples)


def test_minibatches_of_a_function(make_data):
    data = make_data(num_records=30, leave_out=np.zeros((30, 5), bool))
    fit = fit_svi(jax.random.key(0), data, guide=normal_guide, num_steps=50, batch_size=8, **FIT)
    assert np.isfinite(fit.losses).all()


def test_a_guide_that_misses_a_site_or_has_one_too_many_is_refused_by_its_name(make_data):
    def half(data, **kwargs):
        numpyro.sample("mean_log_temperature", dist.Normal(numpyro.param("m", 0.0), 0.1))

    def more(data, **kwargs):
        normal_guide(data)
        numpyro.sample("extra", dist.Normal())

    def narrow(data, **kwargs):
        half(data)
        numpyro.sample("log_temperature", dist.Normal(jnp.zeros(2), 0.1).to_event(1))

    data = make_data()
    for guide, said in (
        (half, r"site 'log_temperature' of shape \(3,\), and the guide half has none"),
        (more, "guide more has a site 'extra', which the model does not"),
        (narrow, r"guide narrow has one of shape \(2,\)"),
    ):
        with pytest.raises(DataError, match=said):
            fit_svi(jax.random.key(0), data, guide=guide, num_steps=5, **FIT)


def test_keys_of_the_older_form_are_keys(make_data):
    data = make_data()
    fits = [
        fit_svi(key(0), data, num_steps=10, **FIT) for key in (jax.random.key, jax.random.PRNGKey)
    ]
    np.testing.assert_array_equal(fits[0].losses, fits[1].losses)
    draws = [
        posterior_draws(fits[0], key(1), 4).samples["log_temperature"]
        for key in (jax.random.key, jax.random.PRNGKey)
    ]
    np.testing.assert_array_equal(*draws)


@pytest.mark.parametrize("key", [0, None, np.arange(3), "seed"], ids=str)
def test_what_is_no_key_is_refused(make_data, key):
    with pytest.raises(DataError, match="must be one random key, such as"):
        fit_svi(key, make_data(), num_steps=5, **FIT)
    with pytest.raises(DataError, match="must be one random key, such as"):
        fit_nuts(key, make_data(), model_kwargs=KWARGS)


def test_several_keys_are_not_one(make_data):
    with pytest.raises(DataError, match="must be one random key"):
        fit_svi(jax.random.split(jax.random.key(0)), make_data(), num_steps=5, **FIT)


@pytest.mark.filterwarnings("error::FutureWarning")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_double_precision_works_whatever_the_table_is(make_data, dtype):
    with jax.enable_x64(True):
        data = make_data(dtype=dtype)
        fit = fit_svi(jax.random.key(0), data, num_steps=20, **FIT)
        posterior = posterior_draws(fit, jax.random.key(1), 5)
        assert posterior.samples["log_temperature"].dtype == np.float64
