"""Guides: by name, against NUTS on a real table, and honest where they cannot be drawn from."""

from pathlib import Path
from typing import get_args

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer.autoguide import AutoGuideList, AutoLaplaceApproximation, AutoNormal

from mop_jax.config import GuideName
from mop_jax.errors import DataError, FaultError
from mop_jax.inference import fit_svi, gate_at, posterior_draws
from mop_jax.inference.guides import (
    GUIDES,
    AutoWhitenedNormal,
    make_guide,
    prepare_guide,
)
from mop_jax.inference.whitened_guide import _scale_tril
from mop_jax.models import full_table_data, mixture_of_personas

GOLDEN = Path(__file__).parents[1] / "golden" / "nuts_linear_gate.npz"


@pytest.fixture(scope="module")
def fitted(rt_table):
    """The defaults on all 160 reviews at τ = 1."""
    data = full_table_data(
        log_likelihood=rt_table["log_likelihood"],
        **{name: rt_table[name] for name in rt_table if name.endswith("_embeddings")},
    )
    kwargs = {"temperature": False}
    return data, fit_svi(jax.random.key(3), data, model_kwargs=kwargs, progress=False)


def test_the_default_fit_agrees_with_nuts_on_a_real_table(fitted):
    """Means of π (160 contexts) and Ω (20) within 0.25 sd, sds within 25 %, spread within 20 %.

    NUTS's own error in a mean is about 0.05 sd (effective sizes of some hundreds) and in a sd 5 %;
    1,000 draws of the guide add 0.03 sd and 2 %. With the seeds fixed the test cannot flicker.
    """
    data, fit = fitted
    assert fit.convergence.converged, fit.convergence.reason
    gate = gate_at(posterior_draws(fit, jax.random.key(4), 1000), data.context_embeddings)
    found = {
        "persona": np.exp(np.asarray(gate.persona_log_probs, np.float64)),
        "exemplar": np.exp(np.asarray(gate.exemplar_log_probs()[:, ::8], np.float64)),
    }
    with np.load(GOLDEN, allow_pickle=False) as golden:
        for name, draws in found.items():
            mean, sd = golden[f"{name}_mean"], golden[f"{name}_sd"]
            distance = np.abs(draws.mean(0) - mean) / sd
            ratio = draws.std(0) / sd
            assert np.quantile(distance, 0.99) < 0.25
            assert (np.quantile(ratio, [0.05, 0.95]) > 0.75).all()
            assert (np.quantile(ratio, [0.05, 0.95]) < 1.25).all()
        spread = found["persona"].mean(0).std(0) / golden["persona_mean"].std(0)
    assert (np.abs(spread - 1) < 0.2).all(), spread
    # A gate blind to contexts would be caught: π does vary over records.
    assert found["persona"].mean(0).std(0).max() > 0.1


def gaussian(data, precision, proper):
    """A model whose posterior is a Gaussian of known precision around 1.

    Either all of it is likelihood under an improper prior, or all but the prior's unit precision.
    """
    del data
    size = len(precision)
    if proper:
        z = numpyro.sample("z", dist.Normal(1.0, 1.0).expand((size,)).to_event(1))
        precision = precision - np.identity(size, np.float32)
    else:
        z = numpyro.sample("z", dist.ImproperUniform(dist.constraints.real_vector, (), (size,)))
    numpyro.factor("likelihood", -0.5 * (z - 1) @ precision @ (z - 1))


@pytest.mark.parametrize("proper", [True, False], ids=["proper", "improper"])
def test_whitening_starts_at_the_exact_posterior_where_it_is_gaussian(make_data, proper):
    """With precisions spread over five decades, as those of gate weights and temperatures are."""
    basis = np.random.default_rng(0).normal(size=(5, 5))
    unit = np.diag([1.0, 300.0, 10.0, 3.0, 1.0]) ** 0.5
    precision = unit @ (basis @ basis.T / 2 + np.diag([1.5, 300.0, 1.0, 1.0, 1.5])) @ unit
    assert np.linalg.cond(precision) > 5e4
    guide = AutoWhitenedNormal(gaussian, init_loc_fn=numpyro.infer.init_to_uniform)
    kwargs = {"precision": precision.astype(np.float32), "proper": proper}
    prepare_guide(guide, jax.random.key(0), make_data(), kwargs)
    start = guide.get_transform({"auto_loc": np.zeros(5), "auto_scale_tril": np.eye(5)})
    tril = np.asarray(start.scale_tril, np.float64)
    # In units of the posterior's own: as much off in one direction as in any other. The mode need
    # only be near: a few steps of the fit cover half a standard deviation.
    exact = np.linalg.cholesky(precision)
    assert np.linalg.norm(exact.T @ (np.asarray(start.loc) - 1)) < 0.5
    np.testing.assert_allclose(exact.T @ tril @ tril.T @ exact, np.eye(5), atol=2e-2)


def test_a_saddle_or_a_ridge_is_as_wide_as_the_prior_allows():
    prior = np.diag([4.0, 1.0, 100.0])
    tril = _scale_tril(prior + np.diag([0.0, -3.0, 1e6]), prior)
    np.testing.assert_allclose(tril, np.diag([0.5, 0.1**-0.5, (100 + 1e6) ** -0.5]), rtol=1e-6)
    # Without a prior that could be compared with, nothing is wider than a thousand times the least.
    tril = _scale_tril(np.diag([1e8, 0.0, -1.0]), np.diag([0.0, 1.0, -1.0]))
    np.testing.assert_allclose(tril, np.diag([1e-4, 0.1, 0.1]))


def test_every_name_of_the_configuration_is_a_guide_and_no_other():
    assert set(get_args(GuideName)) == set(GUIDES)
    assert {"AutoMultivariateNormal", "AutoIAFNormal", "AutoDAIS"} <= set(GUIDES)


@pytest.mark.parametrize("guide", ["AutoLowRankMultivariateNormal", "AutoIAFNormal", "AutoDAIS"])
def test_guides_by_name_fit_and_draw(make_data, guide):
    kwargs = {"uniform_gate": True}
    fit = fit_svi(
        jax.random.key(0),
        make_data(),
        guide=guide,
        model_kwargs=kwargs,
        num_steps=10,
        num_particles=1,
        progress=False,
    )
    draws = posterior_draws(fit, jax.random.key(1), 5).samples["log_temperature"]
    assert draws.shape == (5, 3)
    assert len(np.unique(draws)) == 15


def test_guides_by_class_and_as_they_are():
    assert type(make_guide(AutoNormal, mixture_of_personas)) is AutoNormal
    guide = AutoGuideList(mixture_of_personas)
    assert make_guide(guide, mixture_of_personas) is guide


@pytest.mark.parametrize(
    ("name", "reason"), [("AutoMagic", "unknown"), ("AutoSemiDAIS", "needs more than its name")]
)
def test_other_names_are_refused(name, reason):
    with pytest.raises(DataError, match=rf"guide '{name}' .*{reason}.*AutoWhitenedNormal"):
        make_guide(name, mixture_of_personas)


def test_a_laplace_approximation_without_curvature_is_refused(make_data):
    """Two sites of which the data see the sum alone."""

    def ridge(data):
        flat = dist.ImproperUniform(dist.constraints.real, (), ())
        total = numpyro.sample("a", flat) + numpyro.sample("b", flat)
        numpyro.factor("likelihood", -0.5 * (total - 1) ** 2)

    guide = AutoLaplaceApproximation(ridge)
    fit = fit_svi(
        jax.random.key(0), make_data(), model=ridge, guide=guide, num_steps=20, progress=False
    )
    with pytest.raises(FaultError, match="1 of 2 directions without curvature"):
        posterior_draws(fit, jax.random.key(1), 5)


def test_a_model_without_latent_sites_fits_and_draws(make_data):
    kwargs = {"uniform_gate": True, "temperature": False}
    fit = fit_svi(jax.random.key(0), make_data(), model_kwargs=kwargs, num_steps=10, progress=False)
    assert posterior_draws(fit, jax.random.key(1)).num_draws == 1
