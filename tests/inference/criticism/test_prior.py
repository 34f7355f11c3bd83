"""Draws of the prior, and what they say of the gate."""

import jax
import numpy as np
import pandas as pd
import pytest

from mop_jax.errors import DataError
from mop_jax.inference import (
    gate_at,
    gate_summary,
    persona_shares,
    prior_draws,
    prior_predictive_gate,
)
from mop_jax.models import mixture_of_choices
from tests.models.programs import draw_sites
from tests.models.surveys import survey_data

K, DRAWS = 3, 12


@pytest.fixture(scope="module")
def data(make_data):
    return make_data(num_records=8, weights=1 + np.arange(8) % 2)


def test_draws_are_those_of_the_seeded_model_with_or_without_subsampling(data):
    key = jax.random.key(3)
    kwargs = {"gate": "bilinear", "prior_scale": 0.7}
    prior = prior_draws(key, data, model_kwargs={**kwargs, "subsample_size": 2}, num_draws=DRAWS)
    assert prior.sampler == "prior"
    assert prior.num_chains is None
    assert prior.model_kwargs == kwargs
    for s, own in enumerate(jax.random.split(key, DRAWS)[:3]):
        expected = draw_sites(data, seed=own, **kwargs)
        assert set(expected) == set(prior.samples)
        for name, value in expected.items():
            np.testing.assert_allclose(prior.samples[name][s], value, atol=1e-6, err_msg=name)
    assert gate_at(prior, data.context_embeddings[:2]).persona_log_probs.shape == (DRAWS, 2, K)


def test_draws_of_closed_answers_come_from_their_model():
    data = survey_data(1)
    prior = prior_draws(jax.random.key(0), data, model=mixture_of_choices, num_draws=2)
    assert set(prior.samples) == set(draw_sites(data, mixture_of_choices))


def test_the_summary_is_that_of_the_draws(data):
    found = prior_predictive_gate(jax.random.key(0), data, num_draws=DRAWS, level=0.5)
    pd.testing.assert_frame_equal(found.summary, gate_summary(found.prior, data, level=0.5))
    shares = persona_shares(found.prior, data, level=0.5)
    expected = shares[shares["source"] == "gate"].drop(columns="source")
    pd.testing.assert_frame_equal(found.shares, expected, atol=1e-6)


def test_a_wide_prior_gives_contexts_to_one_persona_and_a_narrow_one_to_all(data):
    mean = {}
    for scale in (0.01, 10.0):
        kwargs = {"prior_scale": scale, "temperature": False}
        found = prior_predictive_gate(jax.random.key(1), data, model_kwargs=kwargs, num_draws=DRAWS)
        mean[scale] = found.summary["mean"]
    assert mean[0.01]["effective_personas"] == pytest.approx(K, abs=1e-3)
    assert mean[0.01]["persona_between_contexts"] == pytest.approx(0, abs=1e-3)
    assert mean[10.0]["effective_personas"] < 1.5
    assert mean[10.0]["persona_between_contexts"] > 0.5


def test_a_model_without_sites_has_one_draw(data):
    kwargs = {"uniform_gate": True, "temperature": False}
    prior = prior_draws(jax.random.key(0), data, model_kwargs=kwargs)
    assert (len(prior), prior.samples) == (1, {})
    with pytest.raises(DataError, match="num_draws is 0"):
        prior_predictive_gate(jax.random.key(0), data, num_draws=0)
    with pytest.raises(DataError, match="level is 2"):
        prior_predictive_gate(jax.random.key(0), data, level=2)
