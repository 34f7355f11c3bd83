"""Simulation-based calibration of the mixture of personas (Talts et al. 2018, arXiv 1804.06788).

Sites are drawn from the prior and responses from a language of six (`finite_language`). What was
drawn then lies anywhere in its posterior with equal probability, if the likelihood is that of the
program that was drawn from. Posteriors are exact here, so no sampler is tested: that NUTS draws
from them is `tests/inference/test_nuts.py`, and `benchmarks/calibration.py` sets guides beside it.
Another model needs a line in `CASES`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest

from mop_jax.distributions import PersonaMixture
from mop_jax.models import mixture_of_personas
from tests.models.finite_language import exact_calibration, finite_language

FALSE_FAILURES = 0.001
SMALL = {"gate_width": 2}


class AtTemperatureOne(PersonaMixture):
    """Log-likelihoods at τ = 1, whatever τ is."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.log_temperature = jnp.zeros_like(self.log_temperature)


def at_temperature_one(data, **kwargs):
    return mixture_of_personas(data, distribution=AtTemperatureOne, **kwargs)


def on_another_grid(data, **kwargs):
    """Scored at some temperatures, said to be scored at others, a quarter hotter."""
    hotter = 1.25 * jnp.asarray(data.temperature_grid)
    return mixture_of_personas(data._replace(temperature_grid=hotter), **kwargs)


def with_every_record_twice(data, **kwargs):
    return mixture_of_personas(data._replace(weights=2 * data.weights), **kwargs)


def normalised_over_the_left_out(data, **kwargs):
    """No record is its own exemplar, but Ω is as if it could be."""
    nobody = np.zeros_like(data.leave_out)
    return mixture_of_personas(data._replace(leave_out=nobody), **kwargs)


WRONG = [
    at_temperature_one,
    on_another_grid,
    with_every_record_twice,
    normalised_over_the_left_out,
]
CASES = {
    "linear": ({}, SMALL),
    "everything else": (
        {"groups": True, "bare": True},
        {
            **SMALL,
            "gate": "bilinear",
            "similarity": True,
            "sparse_personas": True,
            "temperature": "contextual",
        },
    ),
}


@pytest.fixture(scope="module")
def default():
    """Calibration of the default likelihood and of the wrong ones."""
    language = finite_language()
    judged = [mixture_of_personas, *WRONG]
    found = exact_calibration(
        jax.random.key(1), language, mixture_of_personas, SMALL, judged=judged
    )
    return dict(zip(judged, found, strict=True))


def p_values(found):
    """By quantity: where positions lie, and how far from the middle.

    Posteriors that are too narrow or too wide leave positions where they are on average.
    """
    either = {name: (u, np.abs(2 * u - 1)) for name, u in found.positions.items()}
    return {name: [kstest(x, "uniform").pvalue for x in xs] for name, xs in either.items()}


def bound(found):
    """Bonferroni over quantities, both p-values of each, and cases."""
    return FALSE_FAILURES / (2 * len(found.positions) * len(CASES))


def check(found):
    # The data tell something, but leave several of the thousand draws of the pool plausible.
    assert 10 < np.median(found.effective_size) < 400
    each = p_values(found)
    assert np.min(list(each.values())) > bound(found), each
    # What is left is the spline's between temperatures.
    np.testing.assert_allclose(found.log_total, 0, atol=5e-3)


def test_what_was_drawn_lies_anywhere_in_its_posterior(default):
    """0.1 % false failures over all cases and quantities, fixed by the seed."""
    check(default[mixture_of_personas])


@pytest.mark.parametrize("case", list(CASES)[1:])
def test_so_it_does_in_other_models(case):
    """See above."""
    parts, kwargs = CASES[case]
    language = finite_language(**parts)
    check(*exact_calibration(jax.random.key(1), language, mixture_of_personas, kwargs))


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_likelihood_would_be_noticed(default, wrong):
    found = default[wrong]
    each = p_values(found)
    assert np.min(list(each.values())) < bound(found), each


def test_probabilities_that_do_not_sum_to_one_would_be_noticed(default):
    assert default[normalised_over_the_left_out].log_total.min() < -0.1
