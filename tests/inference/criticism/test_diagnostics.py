"""Diagnoses of chains: on what the data identify, and refused where there are no chains."""

import arviz
import jax
import numpy as np
import pytest

from mop_jax.errors import DataError
from mop_jax.inference import (
    diagnose,
    fit_nuts,
    gate_at,
    identified_quantities,
    log_likelihood_draws,
    make_posterior,
)

CHAINS, LENGTH = 4, 500


def temperatures(data, *, shift=0.0, num_chains=CHAINS, length=LENGTH, **kwargs):
    """Chains of independent draws of the temperatures; those of the first chain may be shifted."""
    rng = np.random.default_rng(0)
    number = num_chains * length
    first = shift * (np.arange(number) < length)
    samples = {
        "log_temperature": rng.normal(0, 0.1, (number, data.num_personas)) + first[:, None],
        "mean_log_temperature": rng.normal(0, 0.1, number),
    }
    return make_posterior(
        samples, data, model_kwargs={"uniform_gate": True}, num_chains=num_chains, **kwargs
    )


@pytest.fixture(scope="module")
def data(make_data):
    return make_data()


def test_chains_that_agree_pass_and_those_that_do_not_are_named(data):
    """Of four chains of 500 independent draws an R-hat beyond 1.01 is rarer than one in 10,000.

    R-hat − 1 is then about 0.002 χ²(7)/7, for each of ten quantities.
    """
    report = diagnose(temperatures(data), data)
    assert report.converged, report.reason
    assert report.reason.startswith("The chains agree: of 4 chains of 500 draws")
    assert "divergences were not counted" in report.reason
    # π is the same in all draws of a uniform gate: there is nothing to diagnose.
    assert report.table["num_entries"].to_dict() == {
        "temperature": 3, "log_likelihood": 6, "mean_log_temperature": 1
    }  # fmt: skip
    assert (report.table[["ess_bulk", "ess_tail"]] > 1000).all(axis=None)

    report = diagnose(temperatures(data, shift=0.1), data)
    assert not report.converged
    assert report.reason.startswith("Not to be believed: of 4 chains of 500 draws R-hat of ")
    assert (report.table["r_hat"] > 1.1)[["temperature", "log_likelihood"]].all()
    assert report.table.loc["mean_log_temperature", "r_hat"] < 1.01


def test_the_table_is_arviz_s_worst(data):
    posterior = temperatures(data, shift=0.05, length=60)
    draws = np.asarray(log_likelihood_draws(posterior, data), np.float64).reshape(CHAINS, 60, 6)
    row = diagnose(posterior, data).table.loc["log_likelihood"]
    assert row["r_hat"] == pytest.approx(arviz.rhat({"x": draws})["x"].values.max(), rel=1e-3)
    for kind in ("bulk", "tail"):
        smallest = arviz.ess({"x": draws}, method=kind)["x"].values.min()
        assert row[f"ess_{kind}"] == pytest.approx(smallest, rel=1e-2)


def test_few_draws_are_too_few(data):
    report = diagnose(temperatures(data, length=40), data, r_hat_limit=1.2)
    assert not report.converged
    assert "has an effective sample size of" in report.reason
    assert "below 400" in report.reason
    assert diagnose(temperatures(data, length=40), data, r_hat_limit=1.2, ess_per_chain=1).converged


def test_one_chain_is_compared_with_itself(data):
    assert diagnose(temperatures(data, num_chains=1, length=2001), data).num_chains == 2
    samples = temperatures(data, num_chains=2, length=500, shift=0.2).samples
    drifting = temperatures(data, num_chains=1, length=1000).replace(samples=samples)
    report = diagnose(drifting, data)
    assert not report.converged
    assert "of one chain's halves R-hat" in report.reason


def test_a_chain_that_stands_still_does_not_pass(data):
    posterior = temperatures(data)
    still = {name: np.repeat(v[:1], len(v), 0) for name, v in posterior.samples.items()}
    report = diagnose(posterior.replace(samples=still), data)
    assert not report.converged
    assert "nothing that the data identify differs" in report.reason
    # Each at a place of its own.
    apart = {name: np.repeat(v[:CHAINS], LENGTH, 0) for name, v in posterior.samples.items()}
    report = diagnose(posterior.replace(samples=apart), data)
    assert not report.converged
    assert np.isinf(report.table["r_hat"]).all() or (report.table["r_hat"] > 2).all()


def test_a_rotated_bilinear_gate_passes_though_its_kernels_do_not(make_data):
    """Kernels of one chain are turned: their R-hat is huge, and the gate is what it was."""
    data = make_data(num_records=8)
    rng = np.random.default_rng(0)
    kwargs = {"gate": "bilinear", "gate_width": 3, "temperature": False}
    maps, number = data.feature_maps, CHAINS * LENGTH
    features = {
        "context": 1 + maps.context.basis.shape[1],
        "persona": maps.persona.basis.shape[1],
        "exemplar": maps.exemplar.basis.shape[1],
    }
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    samples = {}
    for name, size in features.items():
        kernel = rng.normal(size=(size, 3)) + 0.1 * rng.normal(size=(number, size, 3))
        kernel[:LENGTH] = kernel[:LENGTH] @ turn
        samples[f"gate.{name}_kernel"] = kernel.astype(np.float32)
    posterior = make_posterior(samples, data, model_kwargs=kwargs, num_chains=CHAINS)
    kernels = {k: v.reshape(CHAINS, LENGTH, *v.shape[1:]) for k, v in samples.items()}
    assert min(float(arviz.rhat(kernels)[name].max()) for name in kernels) > 1.5
    # 8 records × 3 personas and 8 likelihoods: beyond 1.01 less than once in a thousand seeds.
    report = diagnose(posterior, data)
    assert report.converged, report.reason
    assert set(report.table.index) == {"persona_share", "population_share", "log_likelihood"}


@pytest.fixture(scope="module")
def linear(make_data):
    """Data of unequal weights, and ten draws of a linear gate, wherever they come from."""
    data = make_data(weights=1 + np.arange(6) % 2)
    rng = np.random.default_rng(0)
    kwargs = {"exemplars": False, "gate_width": 2}
    shapes = {"persona_weight": (2,), "persona_context_weight": (2, 2)}
    samples = {f"gate.{name}": rng.normal(size=(10, *shape)) for name, shape in shapes.items()}
    samples |= {
        "log_temperature": rng.normal(0, 0.1, (10, 3)),
        "mean_log_temperature": np.zeros(10),
    }
    return data, make_posterior(samples, data, model_kwargs=kwargs)


def test_identified_quantities_are_what_they_say(linear):
    data, posterior = linear
    found = identified_quantities(posterior, data)
    gate = gate_at(posterior, data.context_embeddings)
    share = np.exp(gate.persona_log_probs)
    assert share.std(1).min() > 1e-3
    np.testing.assert_allclose(found["persona_share"], share, rtol=1e-5)
    weights = data.weights / data.weights.sum()
    np.testing.assert_allclose(
        found["population_share"], np.einsum("n,snk->sk", weights, share), rtol=1e-5
    )
    np.testing.assert_allclose(found["temperature"], gate.temperature, rtol=1e-6)
    np.testing.assert_allclose(
        found["log_likelihood"], log_likelihood_draws(posterior, data), rtol=1e-5
    )
    assert found["mean_log_temperature"].shape == (10,)
    assert not any("weight" in name for name in found)

    some = identified_quantities(posterior, data, max_records=3)
    np.testing.assert_allclose(some["persona_share"], share[:, [0, 2, 5]], rtol=1e-5)
    assert some["log_likelihood"].shape == (10, 3)
    np.testing.assert_allclose(some["population_share"], found["population_share"], rtol=1e-5)

    elsewhere = identified_quantities(posterior, contexts=data.context_embeddings[:2])
    np.testing.assert_allclose(elsewhere["persona_share"], share[:, :2], rtol=1e-5)
    assert set(elsewhere) == {"persona_share", "temperature", "mean_log_temperature"}


def test_scalar_sites_are_there_where_they_are_identified(data):
    """Coefficients of similarity and scales; no weight, though it be a single number."""
    posterior = temperatures(data)
    of_a_gate = ("gate.context_similarity", "gate.same_label", "gate.exemplar_scale", "gate.slope")
    extra = dict.fromkeys(of_a_gate, posterior.samples["mean_log_temperature"])
    found = identified_quantities(posterior.replace(samples={**posterior.samples, **extra}))
    assert set(found) == {"temperature", "mean_log_temperature", *of_a_gate[:3]}


@pytest.mark.parametrize("method", ["vectorized", "sequential"])
def test_several_chains_of_nuts(make_data, method):
    """Four chains on temperatures alone: each of its own, and what diverged is counted."""
    data = make_data(num_records=4, num_personas=1, num_exemplars=2)
    posterior, mcmc = chains = fit_nuts(
        jax.random.key(0),
        data,
        model_kwargs={"uniform_gate": True},
        num_warmup=60,
        num_samples=60,
        num_chains=4,
        chain_method=method,
        progress=False,
    )
    assert posterior.num_chains == 4
    by_chain = mcmc.get_samples(group_by_chain=True)["log_temperature"]
    np.testing.assert_array_equal(
        posterior.samples["log_temperature"], np.reshape(by_chain, (240, 1))
    )
    assert len(np.unique(by_chain[:, 0, 0])) == 4
    # Limits that only chains that are not of one posterior would fail.
    loose = {"r_hat_limit": 1.5, "ess_per_chain": 2}
    diverging = mcmc.get_extra_fields()["diverging"]
    report = diagnose(chains, data, **loose)
    assert report.divergences == int(diverging.sum()) == 0
    assert report.converged, report.reason
    assert "no draw diverged" in report.reason
    mcmc.get_extra_fields = lambda: {"diverging": np.ones(240, bool)}
    report = diagnose((posterior, mcmc), data, **loose)
    assert not report.converged
    assert "240 draws diverged" in report.reason


def test_draws_without_chains_are_refused(data):
    guide = temperatures(data, sampler="AutoNormal").replace(num_chains=None)
    with pytest.raises(DataError, match=r"by AutoNormal are independent.*pareto_k"):
        diagnose(guide, data)
    with pytest.raises(DataError, match="num_chains is 3, which does not divide the 2000 draws"):
        diagnose(temperatures(data).replace(num_chains=3), data)
    with pytest.raises(DataError, match="num_chains is 0"):
        diagnose(temperatures(data).replace(num_chains=0), data)
    with pytest.raises(DataError, match="12 draws in 4 chains"):
        diagnose(temperatures(data, length=3), data)
    with pytest.raises(DataError, match="7 draws in 1 chains"):
        diagnose(temperatures(data, num_chains=1, length=7), data)
    with pytest.raises(DataError, match="max_records is 0"):
        diagnose(temperatures(data), data, max_records=0)
