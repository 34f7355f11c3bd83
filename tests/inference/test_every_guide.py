"""Every guide of NumPyro's that fits the model draws, saves, loads and is exported."""

import jax
import numpy as np
import pytest
from numpyro.infer import autoguide

from mop_jax.errors import DataError
from mop_jax.inference import (
    fit_nuts,
    fit_svi,
    load_posterior,
    log_likelihood_draws,
    posterior_draws,
    save_posterior,
    to_inference_data,
    uniform_log_prob,
    write_netcdf,
)

# These need more than a model: parts, a second model, or sites that are alike.
NEED_MORE = {
    "AutoGuideList",
    "AutoSemiDAIS",
    "AutoSurrogateLikelihoodDAIS",
    "AutoBatchedMultivariateNormal",
    "AutoBatchedLowRankMultivariateNormal",
}
ABSTRACT = {"AutoGuide", "AutoContinuous"}
GUIDES = sorted(set(autoguide.__all__) - NEED_MORE - ABSTRACT)
# The gate is left out because it takes long to compile.
FIT = {
    "model_kwargs": {"uniform_gate": True},
    "num_steps": 6,
    "num_particles": 1,
    "progress": False,
}


@pytest.fixture(scope="module")
def data(make_data):
    """Two personas, and so three dimensions: normalising flows need more than one."""
    return make_data(num_records=4, num_personas=2, num_exemplars=2)


@pytest.mark.parametrize("name", GUIDES)
def test_a_guide_goes_all_the_way(data, tmp_path, name):
    # A Hessian says something at the mode only; a few steps do for all else.
    steps = {"num_steps": 600} if name == "AutoLaplaceApproximation" else {}
    fit = fit_svi(jax.random.key(0), data, guide=getattr(autoguide, name), **{**FIT, **steps})
    assert isinstance(fit.guide, getattr(autoguide, name))
    posterior = posterior_draws(fit, jax.random.key(1), 8)
    assert posterior.samples["log_temperature"].shape == (8, 2)
    path = tmp_path / "gate.safetensors"
    save_posterior(path, posterior)
    loaded = load_posterior(path)
    assert jax.tree.structure(loaded.params) == jax.tree.structure(posterior.params)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, posterior.params)
    jax.tree.map(np.testing.assert_array_equal, loaded.samples, posterior.samples)
    assert loaded.sampler == name
    # The parameters of the file draw what those of the fit did.
    again = fit._replace(params=loaded.params)
    redrawn = posterior_draws(again, jax.random.key(1), 8)
    jax.tree.map(np.testing.assert_array_equal, redrawn.samples, posterior.samples)
    exported = to_inference_data(loaded, data)
    write_netcdf(tmp_path / "posterior.nc", exported)
    assert exported.posterior["log_temperature"].sizes["persona"] == 2
    assert exported.posterior.attrs["sampler"] == name


def test_no_guide_was_forgotten():
    assert len(GUIDES) >= 9
    assert {"AutoIAFNormal", "AutoBNAFNormal", "AutoDAIS", "AutoLaplaceApproximation"} <= set(
        GUIDES
    )


@pytest.mark.parametrize("name", sorted(NEED_MORE | ABSTRACT))
def test_a_guide_that_needs_more_is_refused_by_name(data, name):
    with pytest.raises(DataError, match=name):
        fit_svi(jax.random.key(0), data, guide=getattr(autoguide, name), **FIT)


def test_the_uniform_mixture_is_a_predictor_like_any_other(data, tmp_path):
    kwargs = {"uniform_gate": True, "temperature": False}
    fit = fit_svi(jax.random.key(0), data, model_kwargs=kwargs)
    assert fit.convergence.converged
    posterior = posterior_draws(fit, jax.random.key(1))
    assert len(posterior) == 1
    np.testing.assert_allclose(log_likelihood_draws(posterior, data)[0], uniform_log_prob(data))
    np.testing.assert_allclose(
        fit.convergence.final_loss, -np.average(uniform_log_prob(data), weights=data.weights), 1e-5
    )
    save_posterior(tmp_path / "uniform.safetensors", posterior)
    loaded = load_posterior(tmp_path / "uniform.safetensors")
    np.testing.assert_array_equal(*(log_likelihood_draws(p, data) for p in (loaded, posterior)))
    with pytest.raises(DataError, match="no latent sites"):
        fit_nuts(jax.random.key(0), data, model_kwargs=kwargs)
