"""Posterior draws: what they predict, the gates they imply, and their files."""

import jax
import numpy as np
import pytest
from numpyro import handlers

from mop_jax.distributions import RenormalisedPersonaMixture
from mop_jax.errors import DataError, FaultError
from mop_jax.inference import (
    gate_at,
    load_posterior,
    log_likelihood_draws,
    make_posterior,
    persona_responsibilities,
    posterior_predictive_log_prob,
    responsibilities,
    save_posterior,
    uniform_log_prob,
)
from mop_jax.models import fit_feature_maps, mixture_of_personas


def mixture_of(posterior, draw, data):
    sites = {name: value[draw] for name, value in posterior.samples.items()}
    return handlers.substitute(posterior.model, sites)(data, **posterior.model_kwargs)


def test_prediction_is_the_log_mean_over_draws_in_any_chunks(rt_posterior, rt_data):
    log_probs = np.stack(
        [mixture_of(rt_posterior, s, rt_data).log_prob(rt_data.log_likelihood) for s in range(11)]
    ).astype(np.float64)
    assert log_probs.std(0).min() > 1e-3  # the draws differ
    found = log_likelihood_draws(rt_posterior, rt_data, chunk_size=4)
    np.testing.assert_allclose(found, log_probs, rtol=1e-6)
    highest = log_probs.max(0)
    expected = highest + np.log(np.exp(log_probs - highest).mean(0))
    found = posterior_predictive_log_prob(rt_posterior, rt_data)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_data_with_other_feature_maps_pass_through_those_of_the_fit(rt_posterior, rt_data):
    fewer = rt_data.take(np.arange(9))
    refitted = fewer._replace(
        feature_maps=fit_feature_maps(*fewer._replace(feature_maps=None)[:3], max_features=32)
    )
    np.testing.assert_allclose(
        posterior_predictive_log_prob(rt_posterior, refitted),
        posterior_predictive_log_prob(rt_posterior, rt_data)[:9],
        rtol=1e-6,
    )


def test_uniform_mixture_is_the_mean_over_allowed_components(rt_data):
    table = np.where(rt_data.log_weight > -np.inf, rt_data.log_likelihood[..., 0], -np.inf)
    table = table.astype(np.float64)
    highest = table.max(1, keepdims=True)
    expected = highest[:, 0] + np.log(np.exp(table - highest).sum(1) / (4 * 11))
    np.testing.assert_allclose(uniform_log_prob(rt_data), expected, rtol=1e-6)


def test_responsibilities_average_over_draws(rt_posterior, rt_data):
    each = [
        mixture_of(rt_posterior, s, rt_data).responsibilities(rt_data.log_likelihood)
        for s in range(11)
    ]
    found = responsibilities(rt_posterior, rt_data)
    np.testing.assert_allclose(found, np.mean(each, 0), atol=1e-6)
    assert (found[~(rt_data.log_weight > -np.inf)] == 0).all()
    by_persona = persona_responsibilities(rt_posterior, rt_data)
    np.testing.assert_allclose(by_persona, found.reshape(40, 4, 12).sum(-1), atol=1e-6)


def test_gate_at_the_training_contexts_is_the_models_gate(rt_posterior, rt_data):
    gate = gate_at(rt_posterior, rt_data.context_embeddings, leave_out=rt_data.leave_out)
    for draw in (0, 10):
        mixture = mixture_of(rt_posterior, draw, rt_data)
        found = gate.mixing_distribution(draw).mixing_log_probs
        np.testing.assert_allclose(found, mixture.mixing_log_probs, atol=1e-5)
        np.testing.assert_allclose(gate.temperature[draw], mixture.temperature, rtol=1e-6)
    joint = gate.persona_log_probs[..., None] + gate.exemplar_log_probs()
    np.testing.assert_allclose(joint[10], found, atol=1e-5)
    free = gate_at(rt_posterior, rt_data.context_embeddings[:3])
    assert np.isfinite(free.exemplar_record_logits).all()


def test_a_saved_posterior_comes_back_bit_for_bit(rt_posterior, tmp_path):
    path = tmp_path / "gate.safetensors"
    posterior = rt_posterior.replace(
        model_kwargs={"distribution": RenormalisedPersonaMixture, "prior_scale": 1.0}
    )
    save_posterior(path, posterior)
    loaded = load_posterior(path)
    assert loaded.model is mixture_of_personas
    assert loaded.model_kwargs == posterior.model_kwargs
    arrays = lambda p: (p.samples, p.data, p.params, p.losses)  # noqa: E731
    assert jax.tree.structure(arrays(loaded)) == jax.tree.structure(arrays(posterior))
    for a, b in zip(*(jax.tree.leaves(arrays(p)) for p in (loaded, posterior)), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b, strict=True)
    assert (loaded.sampler, loaded.num_chains) == ("AutoWhitenedNormal", None)
    again = tmp_path / "again.safetensors"
    save_posterior(again, loaded)
    assert path.read_bytes() == again.read_bytes()


def test_files_from_before_gates_had_names_hold_the_papers(rt_data, tmp_path):
    draw = handlers.trace(handlers.seed(mixture_of_personas, 0)).get_trace(rt_data, gate="bilinear")
    samples = {
        name: np.asarray(site["value"])[None]
        for name, site in draw.items()
        if site["type"] == "sample" and not site["is_observed"]
    }
    named = make_posterior(samples, rt_data, model_kwargs={"gate": "bilinear", "gate_width": 8})
    path = tmp_path / "old.safetensors"
    save_posterior(path, named.replace(model_kwargs={"gate_width": 8}))
    loaded = load_posterior(path)
    assert loaded.model_kwargs == named.model_kwargs
    np.testing.assert_array_equal(
        posterior_predictive_log_prob(loaded, rt_data),
        posterior_predictive_log_prob(named, rt_data),
    )


def test_unreadable_files_and_unknown_models_are_named(rt_posterior, tmp_path):
    with pytest.raises(FaultError, match=r"nothing\.safetensors is not a readable"):
        load_posterior(tmp_path / "nothing.safetensors")
    broken = tmp_path / "broken.safetensors"
    save_posterior(broken, rt_posterior)
    broken.write_bytes(broken.read_bytes()[:-100])
    with pytest.raises(FaultError, match=r"broken\.safetensors is not a readable"):
        load_posterior(broken)

    def my_model(data):
        return mixture_of_personas(data)

    mine = tmp_path / "mine.safetensors"
    save_posterior(mine, rt_posterior.replace(model=my_model))
    with pytest.raises(DataError, match="my_model"):
        load_posterior(mine)
    assert load_posterior(mine, model=my_model).model is my_model
    with pytest.raises(DataError, match="cannot be written as JSON"):
        save_posterior(mine, rt_posterior.replace(model_kwargs={"prior_scale": np.ones(2)}))


def test_a_draw_that_lacks_a_site_is_an_error_never_a_prior_draw(rt_posterior, rt_data):
    samples = {k: v for k, v in rt_posterior.samples.items() if k != "log_temperature"}
    incomplete = make_posterior(samples, rt_data)
    with pytest.raises(DataError, match="no site 'log_temperature'"):
        posterior_predictive_log_prob(incomplete, rt_data)
