"""NUTS against a posterior of two dimensions on a grid, which is exact.

A gate of two weights, written here as anybody would write their own; the grid's densities are
NumPy's, in double precision, from the definition of the mixture.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.diagnostics import effective_sample_size, gelman_rubin
from scipy.special import log_softmax, logsumexp
from scipy.stats import norm

from mop_jax.inference import fit_nuts, gate_at, log_likelihood_draws
from mop_jax.models import full_table_data
from mop_jax.models.gate_logits import GateLogits

K, J, N = 2, 3, 14
APTNESS = np.array([[0.0, 0.5, -0.5], [0.5, -1.0, 0.5]])  # of exemplars for personas, [K, J]
PRIOR_SCALE = 2.0
CHAINS, DRAWS = 4, 1500
FALSE_FAILURES = 0.001


def two_weights(data, *, width, prior_scale, exemplar_context, exemplars):
    """Log π_1 / π_0 = u x_0, and log Ω_kj = v (x_(1+j) + aptness_kj) up to a constant."""
    del width, exemplar_context, exemplars
    u, v = (numpyro.sample(f"gate.{name}", dist.Normal(0.0, prior_scale)) for name in "uv")

    def logits(batch):
        x = jnp.asarray(batch.context_embeddings)
        persona = jnp.stack([jnp.zeros_like(x[:, 0]), u * x[:, 0]], axis=1)
        record = jnp.where(batch.leave_out, -jnp.inf, v * x[:, 1 : 1 + J])
        return GateLogits(persona, record, v * jnp.asarray(APTNESS, x.dtype))

    return logits


KWARGS = {"gate": two_weights, "temperature": False, "prior_scale": PRIOR_SCALE}


@pytest.fixture(scope="module")
def data():
    """Few records, of which one persona says much and exemplars something: a skewed posterior."""
    rng = np.random.default_rng(5)
    context = rng.normal(size=(N, 1 + J))
    table = rng.normal(-20, 1.5, (N, K, J))
    table[:, 1] += 4 * (context[:, :1] > -0.3)
    table += 1.5 * context[:, None, 1:]
    return full_table_data(
        log_likelihood=table,
        context_embeddings=context,
        persona_embeddings=rng.normal(size=(K, 1 + J)),
        exemplar_embeddings=rng.normal(size=(J, 1 + J)),
        leave_out=np.arange(J) == np.arange(N)[:, None],
    )


class Exact:
    """The posterior on a grid of u and v, [n, n]; expectations of any function of both."""

    def __init__(self, data, size):
        x = np.asarray(data.context_embeddings, np.float64)
        self.u, self.v = np.meshgrid(*[np.linspace(-9, 12, size)] * 2, indexing="ij")
        persona = np.stack([np.zeros((size, size, N)), self.u[..., None] * x[:, 0]], axis=-1)
        exemplar = self.v[..., None, None, None] * (x[:, None, 1:] + APTNESS)
        exemplar = np.where(data.leave_out[:, None], -np.inf, exemplar)
        self.log_pi = log_softmax(persona, axis=-1)
        self.log_omega = log_softmax(exemplar, axis=-1)
        table = np.asarray(data.log_likelihood, np.float64).reshape(N, K, J)
        joint = self.log_pi[..., None] + self.log_omega + table
        self.log_likelihood = logsumexp(joint, axis=(-1, -2)).sum(-1)
        prior = -(self.u**2 + self.v**2) / (2 * PRIOR_SCALE**2)
        density = np.exp(self.log_likelihood + prior - (self.log_likelihood + prior).max())
        self.density = density / density.sum()

    def quantities(self):
        """What the draws are compared by; all are identified."""
        return {
            "u": self.u,
            "v": self.v,
            "log π_1(x_0)": self.log_pi[..., 0, 1],
            "π_0(x_3)": np.exp(self.log_pi[..., 3, 0]),
            "Ω_02(x_4)": np.exp(self.log_omega[..., 4, 0, 2]),
            "log-likelihood": self.log_likelihood,
        }

    def mean(self, values):
        return (self.density * values).sum()


@pytest.fixture(scope="module")
def exact(data):
    return Exact(data, 301)


@pytest.fixture(scope="module")
def fitted(data):
    """Draws of the same quantities by chain, [CHAINS, DRAWS], and whether any step diverged."""
    posterior, mcmc = fit_nuts(
        jax.random.key(0),
        data,
        model_kwargs=KWARGS,
        num_samples=DRAWS,
        num_chains=CHAINS,
        chain_method="vectorized",
        progress=False,
    )
    gate = gate_at(posterior, data.context_embeddings, leave_out=data.leave_out)
    log_omega = np.asarray(gate.exemplar_log_probs(), np.float64)
    draws = {
        "u": posterior.samples["gate.u"],
        "v": posterior.samples["gate.v"],
        "log π_1(x_0)": gate.persona_log_probs[:, 0, 1],
        "π_0(x_3)": np.exp(gate.persona_log_probs[:, 3, 0]),
        "Ω_02(x_4)": np.exp(log_omega[:, 4, 0, 2]),
        "log-likelihood": log_likelihood_draws(posterior, data).sum(1),
    }
    by_chain = {k: np.asarray(v, np.float64).reshape(CHAINS, DRAWS) for k, v in draws.items()}
    return by_chain, int(mcmc.get_extra_fields()["diverging"].sum())


def errors(draws, exact, values):
    """How far a mean, and a mean squared distance from the exact mean, are off in standard errors.

    Their standard errors are the exact posterior's, over the root of the effective sample size.
    """
    centre = exact.mean(values)
    found = []
    for drawn, true in ((draws, values), ((draws - centre) ** 2, (values - centre) ** 2)):
        expected = exact.mean(true)
        sd = np.sqrt(exact.mean((true - expected) ** 2))
        found.append((drawn.mean() - expected) / sd * np.sqrt(effective_sample_size(drawn)))
    return found


def test_means_and_sds_are_those_of_a_grid(fitted, exact):
    """0.1 % false failures over all quantities by Bonferroni, fixed by the seed.

    (As far as averages of some thousand draws are normal, and effective sizes known.)
    """
    draws, divergences = fitted
    assert divergences == 0
    quantities = exact.quantities()
    assert draws.keys() == quantities.keys()
    found = {name: errors(draws[name], exact, quantities[name]) for name in draws}
    bound = norm.isf(FALSE_FAILURES / 2 / (2 * len(found)))
    assert (np.abs(list(found.values())) < bound).all(), found
    for name, drawn in draws.items():
        assert effective_sample_size(drawn) > 500, name
        assert gelman_rubin(drawn) < 1.02, name


def test_the_grid_is_fine_and_wide_enough_and_its_posterior_is_no_gaussian(exact, data):
    coarse = Exact(data, 151)
    for (name, fine), rough in zip(
        exact.quantities().items(), coarse.quantities().values(), strict=True
    ):
        np.testing.assert_allclose(exact.mean(fine), coarse.mean(rough), atol=1e-5, err_msg=name)
    edge = np.concatenate([exact.density[[0, -1]].ravel(), exact.density[:, [0, -1]].ravel()])
    assert edge.sum() < 1e-7
    # A Gaussian at the mode would be far off: its mean by many of the standard errors above.
    mode = exact.u.ravel()[exact.density.argmax()]
    centre = exact.mean(exact.u)
    sd = np.sqrt(exact.mean((exact.u - centre) ** 2))
    assert abs(mode - centre) > 0.2 * sd


def test_a_sampler_of_another_posterior_would_be_noticed(fitted, exact, data):
    """The same draws before the posterior of the same records counted as one and a half."""
    draws, _ = fitted
    other = Exact(data, 301)
    density = other.density * np.exp(0.5 * (other.log_likelihood - other.log_likelihood.max()))
    other.density = density / density.sum()
    found = [errors(draws[name], other, exact.quantities()[name]) for name in "uv"]
    assert np.abs(found).max() > 2 * norm.isf(FALSE_FAILURES / 2 / (2 * len(draws)))
