"""Posteriors that know similarity: files, simulation, evaluation and export all use one Ω.

The chi-square test fails falsely at a rate of 1e-4; its seed is fixed.
"""

from __future__ import annotations

import json

import arviz
import jax
import numpy as np
import pytest
from numpyro.infer import Predictive
from safetensors import safe_open
from safetensors.numpy import load_file
from scipy.stats import chisquare

from mop_jax.inference import (
    fit_svi,
    gate_at,
    load_posterior,
    log_likelihood_draws,
    make_posterior,
    posterior_draws,
    save_posterior,
    to_inference_data,
    write_netcdf,
)
from mop_jax.inference.simulation import draw_components
from mop_jax.models import mixture_of_personas

SITES = {"gate.context_similarity", "gate.same_label", "gate.same_group"}
LABELS, GROUPS = np.array([0, 1, -1]), np.array([2, 0, 1])


@pytest.fixture(scope="module")
def sides():
    return {
        "exemplar_contexts": np.random.default_rng(5).normal(size=(5, 8)),
        "labels": LABELS,
        "exemplar_labels": np.array([0, 1, 0, 1, 1]),
        "groups": GROUPS,
        "exemplar_groups": np.array([2, 2, 0, 1, 1]),
    }


@pytest.fixture(scope="module")
def data(make_data, sides):
    return make_data(num_records=3, **sides)


@pytest.fixture(scope="module")
def posterior(data):
    """Five draws from a prior that makes similarity matter."""
    kwargs = {"similarity": True, "similarity_prior_scale": 2.0}
    prior = Predictive(mixture_of_personas, num_samples=5)
    samples = prior(jax.random.key(0), data, **kwargs)
    samples.pop("response", None)
    assert set(samples) >= SITES
    return make_posterior(samples, data, model_kwargs=kwargs)


def gate_of(posterior, data):
    return gate_at(
        posterior, data.context_embeddings, leave_out=data.leave_out, labels=LABELS, groups=GROUPS
    )


def test_components_are_drawn_as_omega_says(posterior, data):
    """20,000 draws before one context: chi-square over persona and exemplar."""
    paths = draw_components(
        posterior,
        data.context_embeddings,
        np.full(20_000, 1),
        seed=3,
        leave_out=data.leave_out,
        labels=LABELS,
        groups=GROUPS,
    )
    counts = np.zeros((3, 5))
    np.add.at(counts, (paths.persona, paths.exemplar), 1)
    gate = gate_of(posterior, data)
    each = [np.exp(np.asarray(gate.mixing_distribution(s).mixing_log_probs)[1]) for s in range(5)]
    expected = np.mean(each, axis=0, dtype=float)
    expected *= 20_000 / expected.sum()
    assert (counts[expected == 0] == 0).all()
    kept = expected > 8
    assert expected[kept].sum() > 0.99 * 20_000
    shown = expected[kept] * counts[kept].sum() / expected[kept].sum()
    assert chisquare(counts[kept], shown).pvalue > 1e-4
    # Blind to labels and groups, the same draws would be refused.
    blind = gate_at(posterior, data.context_embeddings, leave_out=data.leave_out)
    each = [np.exp(np.asarray(blind.mixing_distribution(s).mixing_log_probs)[1]) for s in range(5)]
    other = np.mean(each, axis=0, dtype=float)[kept]
    assert chisquare(counts[kept], other * counts[kept].sum() / other.sum()).pvalue < 1e-12


def test_contexts_in_portions_keep_their_labels(posterior, data, monkeypatch):
    from mop_jax.inference import simulation

    context = np.arange(60) % 3
    arguments = {"seed": 4, "leave_out": data.leave_out, "labels": LABELS, "groups": GROUPS}
    whole = draw_components(posterior, data.context_embeddings, context, **arguments)
    monkeypatch.setattr(simulation, "_GATE_BYTES", 2 * 4 * 5 * 5)
    parts = draw_components(posterior, data.context_embeddings, context, **arguments)
    np.testing.assert_array_equal(parts.exemplar, whole.exemplar)
    np.testing.assert_allclose(parts.log_prob, whole.log_prob, atol=1e-5)


def test_a_file_keeps_what_contexts_are_compared_with(posterior, data, tmp_path):
    path = tmp_path / "posterior.safetensors"
    save_posterior(path, posterior)
    loaded = load_posterior(path)
    assert loaded.data.similarity.terms == posterior.data.similarity.terms
    for name, values in posterior.data.similarity._asdict().items():
        np.testing.assert_array_equal(getattr(loaded.data.similarity, name), values)
    found, expected = gate_of(loaded, data), gate_of(posterior, data)
    np.testing.assert_array_equal(found.exemplar_record_logits, expected.exemplar_record_logits)


def test_a_file_from_before_similarity_opens_without_it(make_data, data, tmp_path):
    """Its model arguments and its data know of none, whatever the default is now."""
    path = tmp_path / "posterior.safetensors"
    plain = make_data(num_records=3)
    prior = Predictive(mixture_of_personas, num_samples=4)
    samples = prior(jax.random.key(1), plain)
    samples.pop("response", None)
    before = make_posterior(samples, plain)
    save_posterior(path, before)
    with safe_open(path, "numpy") as file:
        header = json.loads(file.metadata()["mop_jax"])
    assert "similarity" not in header["model_kwargs"]
    names = set(load_file(path))
    assert not any("similarity" in name or name.endswith(("labels", "groups")) for name in names)
    loaded = load_posterior(path)
    assert loaded.data.similarity is None
    # Evaluated on records of which all is known, it uses what it was fitted with.
    np.testing.assert_array_equal(
        log_likelihood_draws(loaded, data), log_likelihood_draws(before, plain)
    )


def test_held_out_records_are_compared_with_the_posteriors_exemplars(posterior, data, make_data):
    """A held-out side that would fit no term, or others, is read through the posterior's map."""
    alone = data.take(np.array([1]))
    expected = np.asarray(log_likelihood_draws(posterior, alone))
    other = make_data(num_records=3, labels=LABELS, groups=GROUPS).take(np.array([1]))
    assert other.similarity is None
    np.testing.assert_allclose(log_likelihood_draws(posterior, other), expected, rtol=1e-6)
    unknown = other._replace(labels=None, groups=None)
    assert abs(np.asarray(log_likelihood_draws(posterior, unknown)) - expected).max() > 1e-2


@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_fit_is_exported_with_readable_coefficients(data, tmp_path, batch_size):
    fit = fit_svi(
        jax.random.key(0),
        data,
        model_kwargs={"similarity": True},
        num_steps=20,
        batch_size=batch_size,
        progress=False,
    )
    posterior = posterior_draws(fit, jax.random.key(1), 8)
    exported = to_inference_data(posterior, data, exemplar_ids=list("abcde"))
    write_netcdf(tmp_path / "posterior.nc", exported)
    loaded = arviz.from_netcdf(tmp_path / "posterior.nc")
    summary = arviz.summary(loaded, var_names=sorted(SITES))
    assert list(summary.index) == sorted(SITES)
    for name in SITES:
        assert loaded.posterior[name].dims == ("chain", "draw")
    constant = loaded.constant_data
    others = {name: value for name, value in posterior.samples.items() if name not in SITES}
    plain = to_inference_data(posterior.replace(samples=others, model_kwargs={}), data)
    assert not {"label", "group", "context_similarity"} & set(plain.constant_data)
    assert constant["label"].dims == constant["group"].dims == ("record",)
    assert constant["label"].values.tolist() == LABELS.tolist()
    assert constant["exemplar_label"].sel(exemplar="b") == 1
    assert constant["exemplar_group"].dims == ("exemplar",)
    assert constant["context_similarity"].dims == ("record", "exemplar")
    expected = data.similarity.features(data.context_embeddings, LABELS, GROUPS)[0]
    np.testing.assert_allclose(constant["context_similarity"], expected)
