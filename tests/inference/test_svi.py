"""SVI: against grids and NUTS, deterministic, honest about convergence and about failure."""

import jax
import numpy as np
import optax
import pytest
from jax.scipy.special import logsumexp
from numpyro.infer.autoguide import AutoDelta

from mop_jax.components.candidates import importance_candidates
from mop_jax.distributions.temperature import interpolate
from mop_jax.errors import DataError, FaultError
from mop_jax.inference import (
    convergence_report,
    fit_nuts,
    fit_svi,
    gate_at,
    posterior_draws,
)
from mop_jax.inference.convergence import NATS_PER_DIMENSION
from mop_jax.inference.svi import ROUNDS
from mop_jax.models import full_table_data, mixture_data, mixture_of_personas


@pytest.fixture(scope="module")
def one_temperature(make_data):
    """One persona, a fixed gate: the posterior of log τ is one-dimensional, so a grid is exact."""
    grid = np.array([0.7, 0.9, 1.2, 1.6])
    peak = np.random.default_rng(0).normal(0.1, 0.1, (30, 1, 3))
    table = -30 - 8 * (np.log(grid) - peak[..., None]) ** 2
    data = make_data(num_records=30, num_personas=1, num_exemplars=3, log_likelihood=table)
    data = data._replace(
        leave_out=np.zeros((30, 3), bool), log_weight=np.zeros((30, 3), np.float32)
    )

    log_temperature = np.linspace(-0.6, 0.7, 2001)
    with jax.enable_x64(True):
        curves = interpolate(table[:, 0, :, None], np.exp(log_temperature), grid)
        log_likelihood = np.asarray(logsumexp(curves, axis=1).sum(0))
    prior_variance = 0.3**2 + 0.1**2  # the mean's and the spread's defaults, the mean summed out
    log_posterior = log_likelihood - log_temperature**2 / (2 * prior_variance)
    density = np.exp(log_posterior - log_posterior.max())
    density /= density.sum()
    mean = (density * log_temperature).sum()
    return data, mean, np.sqrt((density * (log_temperature - mean) ** 2).sum())


def test_temperature_posterior_equals_a_grid(one_temperature):
    """Mean-field is nearly exact here; NUTS is, up to Monte Carlo error.

    NUTS: 500 draws of effective size above 100, so its mean misses by 0.5 sd less than once in a
    million seeds (fixed).
    """
    data, mean, standard_deviation = one_temperature
    kwargs = {"uniform_gate": True}
    fit = fit_svi(jax.random.key(0), data, model_kwargs=kwargs, num_steps=1500, progress=False)
    draws = posterior_draws(fit, jax.random.key(1), 4000).samples["log_temperature"]
    assert abs(draws.mean() - mean) < 0.25 * standard_deviation
    assert 0.7 < draws.std() / standard_deviation < 1.15
    assert abs(mean) > standard_deviation  # the data moved it, so the test can fail

    posterior, _ = fit_nuts(
        jax.random.key(2), data, model_kwargs=kwargs, num_warmup=300, progress=False
    )
    draws = posterior.samples["log_temperature"]
    assert abs(draws.mean() - mean) < 0.5 * standard_deviation
    assert 0.7 < draws.std() / standard_deviation < 1.4


def test_candidates_lead_to_the_full_table_posterior_as_they_grow(rt_table):
    """MAP gates of the real table, from C importance candidates and from all 48 components."""
    rng = np.random.default_rng(0)
    embeddings = {k: rt_table[k] for k in rt_table if k.endswith("_embeddings")}
    table = rt_table["log_likelihood"]
    kwargs = {"temperature": False, "gate_width": 4}

    def map_gate(data):
        fit = fit_svi(
            jax.random.key(0),
            data,
            model_kwargs=kwargs,
            guide="AutoDelta",
            optimizer=optax.adam(0.05),
            num_steps=200,
            progress=False,
        )
        gate = gate_at(posterior_draws(fit, jax.random.key(1), 1), embeddings["context_embeddings"])
        joint = gate.persona_log_probs[..., None] + gate.exemplar_log_probs()
        return np.exp(np.asarray(joint)[0])

    full = map_gate(full_table_data(log_likelihood=table, **embeddings))
    proposal = rng.gamma(2.0, size=table.shape)
    proposal /= proposal.sum((1, 2), keepdims=True)
    distance = []
    for num_candidates in (6, 1536):
        chosen = importance_candidates(proposal, num_candidates, seed=1)
        pairs = (np.arange(160)[:, None], chosen.persona_index, chosen.exemplar_index)
        sampled = mixture_data(
            log_likelihood=table[pairs],
            persona_index=chosen.persona_index,
            exemplar_index=chosen.exemplar_index,
            log_weight=chosen.log_weight,
            **embeddings,
        )
        distance.append(np.abs(map_gate(sampled) - full).sum((1, 2)).mean() / 2)
    uniform = np.abs(1 / 48 - full).sum((1, 2)).mean() / 2
    # Total variation distance, per record: a few candidates mislead, many agree with the whole.
    assert distance[1] < 0.2 * uniform
    assert distance[1] < 0.4 * distance[0], distance


def test_same_key_same_fit(make_data):
    data = make_data()
    # The gate is left out because it takes long to compile.
    kwargs = {"num_steps": 30, "batch_size": 4, "model_kwargs": {"uniform_gate": True}}
    kwargs["progress"] = False
    first, again = (fit_svi(jax.random.key(3), data, **kwargs) for _ in range(2))
    assert (first.losses == again.losses).all()
    jax.tree.map(np.testing.assert_array_equal, first.params, again.params)
    assert len(set(first.losses.tolist())) == 30
    assert not first.convergence.converged


def test_a_loss_that_blows_up_is_named(make_data):
    with pytest.raises(FaultError, match=r"The loss is .* at step \d+; a smaller"):
        fit_svi(
            jax.random.key(0),
            make_data(),
            guide="AutoDelta",
            optimizer=optax.sgd(1e20),
            num_steps=20,
            progress=False,
        )


@pytest.mark.parametrize(
    "bad",
    [{"num_steps": 0}, {"batch_size": 0}, {"guide": "AutoMagic"}],
    ids=lambda b: next(iter(b)),
)
def test_unusable_settings_are_refused(make_data, bad):
    with pytest.raises(DataError, match=next(iter(bad)).split("_")[0]):
        fit_svi(jax.random.key(0), make_data(), progress=False, **bad)


def test_a_fit_goes_on_until_it_has_settled(make_data):
    """A first round at a tiny learning rate is too short; a round at an ordinary one is not."""
    data = make_data()
    kwargs = {"model_kwargs": {"uniform_gate": True}, "guide": "AutoDelta", "progress": False}
    two = sum(ROUNDS[:2])
    settled = fit_svi(jax.random.key(0), data, **kwargs)
    assert len(settled.losses) == two
    assert settled.convergence.converged
    # Steps come in larger strides after two rounds: only there can it settle.
    slow = optax.adam(optax.join_schedules([lambda _: 1e-4, lambda _: 0.03], [two]))
    longer = fit_svi(jax.random.key(0), data, optimizer=slow, tolerance=1e-6, **kwargs)
    assert len(longer.losses) > two
    assert not convergence_report(longer.losses[:two], 6.0, 1e-6, rounds=ROUNDS[:2]).converged


def test_a_learning_rate_that_has_decayed_is_no_convergence():
    """A loss that falls as fast as the optimiser may step, and is far from its minimum."""
    rate = 1 + np.cos(np.linspace(0, np.pi, 500))
    losses = 100 - 0.002 * np.cumsum(np.concatenate([rate, rate]))
    losses += np.random.default_rng(0).normal(0, 0.001, 1000)
    assert convergence_report(losses[:500], 1, 0.2).converged
    report = convergence_report(losses, 1, 0.2, rounds=(500, 500))
    assert not report.converged
    assert "Still improving" in report.reason
    assert "500 steps as a whole" in report.reason
    np.testing.assert_allclose(report.round_improvement, 1.0, atol=0.01)
    assert report.windows == ((376, 500), (751, 875), (876, 1000))
    # What the ELBO of all records gains counts, however many share it.
    flat = 100 - 5e-6 * np.arange(1000)
    assert convergence_report(5000 * flat, 5000, latent_dim=100_000).converged
    report = convergence_report(5000 * flat, 5000, latent_dim=50)
    assert not report.converged
    assert report.tolerance == NATS_PER_DIMENSION * 50 / 5000


def test_convergence_is_claimed_only_when_it_is_sure():
    rng = np.random.default_rng(0)
    steps = np.arange(2000)
    flat = 100 + 5 * np.exp(-steps / 50)
    quiet = rng.normal(0, 0.05, 2000)
    report = convergence_report((flat + quiet) * 10, total_weight=10)
    assert report.converged
    np.testing.assert_allclose(report.final_loss, 100, atol=0.01)
    falling = convergence_report(100 - 0.001 * steps + quiet, 1)
    assert not falling.converged
    assert "Still improving" in falling.reason
    np.testing.assert_allclose(falling.improvement, 0.5, atol=0.01)
    rising = convergence_report(100 + 0.001 * steps + quiet, 1)
    assert not rising.converged
    assert "Getting worse" in rising.reason
    noisy = convergence_report(flat + rng.normal(0, 5, 2000), 1)
    assert not noisy.converged
    assert "Too noisy" in noisy.reason
    assert not convergence_report(np.zeros(40), 1).converged


def test_maximum_likelihood_finds_the_peak_that_a_prior_would_move(one_temperature):
    """One persona, a fixed gate: the likelihood of log τ on a grid is exact."""
    data, _, _ = one_temperature
    options = {"num_steps": 400, "progress": False, "guide": "AutoDelta"}
    # A prior that would hold log τ at 0.
    kwargs = {
        "uniform_gate": True,
        "temperature_prior_scale": 1e-3,
        "temperature_spread": 1e-3,
    }
    start = {"mean_log_temperature": np.log(0.8), "log_temperature": np.log(0.8)}
    fit = fit_svi(
        jax.random.key(0),
        data,
        model_kwargs=kwargs,
        maximum_likelihood=True,
        initial_values=start,
        **options,
    )
    grid = np.linspace(-0.3, 0.4, 1401)
    curves = interpolate(data.log_likelihood[:, None], np.exp(grid)[:, None], data.temperature_grid)
    level = np.logaddexp.reduce(np.asarray(curves, np.float64), axis=2).sum(0)
    peak = grid[np.argmax(level)]
    assert 0.02 < abs(peak) < 0.25  # so that the test can fail
    draws = posterior_draws(fit, jax.random.key(1), 2).samples
    np.testing.assert_allclose(draws["log_temperature"], peak, atol=2e-3)
    # Without data on it, the mean stays where it was put.
    np.testing.assert_allclose(draws["mean_log_temperature"], np.log(0.8), rtol=1e-6)
    held = fit_svi(jax.random.key(0), data, model_kwargs=kwargs, **options)
    moved = posterior_draws(held, jax.random.key(1), 2).samples["log_temperature"]
    assert abs(moved).max() < 0.01


def test_starts_are_as_given_and_checked(one_temperature):
    data, _, _ = one_temperature
    kwargs = {"uniform_gate": True}
    options = {"model_kwargs": kwargs, "num_steps": 1, "progress": False}
    start = {"mean_log_temperature": -0.2, "log_temperature": -0.4}
    tiny = optax.sgd(1e-12)
    fit = fit_svi(
        jax.random.key(0),
        data,
        guide="AutoDelta",
        optimizer=tiny,
        initial_values=start,
        **options,
    )
    draws = posterior_draws(fit, jax.random.key(1), 1).samples
    np.testing.assert_allclose(draws["log_temperature"], -0.4, rtol=1e-6)
    np.testing.assert_allclose(draws["mean_log_temperature"], -0.2, rtol=1e-6)
    with pytest.raises(
        DataError, match=r"initial_values names the site 'tau'; the model has mean_"
    ):
        fit_svi(jax.random.key(0), data, initial_values={"tau": 1.0}, **options)
    with pytest.raises(DataError, match="point estimate"):
        fit_svi(jax.random.key(0), data, maximum_likelihood=True, guide="AutoNormal", **options)
    made = AutoDelta(mixture_of_personas)
    with pytest.raises(DataError, match="no initial_values"):
        fit_svi(jax.random.key(0), data, guide=made, initial_values=start, **options)
