"""The choice model against slow NumPy and SciPy, its arguments, its symmetries and its draws."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import handlers
from numpyro.infer import MCMC, NUTS, Predictive
from numpyro.infer.util import log_density
from scipy.special import gammaln, log_softmax
from scipy.stats import kstest, lognorm, norm

from mop_jax.errors import DataError
from mop_jax.models import mixture_of_choices
from tests.models.programs import draw_sites
from tests.models.surveys import LEVELS, J, K, M, survey_data

N = 12
BARE = {"uniform_gate": True, "group_effects": False, "option_bias": False, "dispersion": False}


def sites_of(data, seed=0, **kwargs):
    """A prior draw of all latent sites, as NumPy arrays."""
    drawn = draw_sites(data, mixture_of_choices, seed, **kwargs)
    return {name: np.asarray(value, np.float64) for name, value in drawn.items()}


def distribution_at(data, sites, **kwargs):
    """The distribution of the counts at given sites."""
    hidden = handlers.block(handlers.substitute(mixture_of_choices, sites))
    return hidden(data, **kwargs)


def density(data, sites, **kwargs):
    """The model's log density at given sites."""
    sites = {name: jnp.asarray(value, float) for name, value in sites.items()}
    return float(log_density(mixture_of_choices, (data,), kwargs, sites)[0])


def slow_probs(data, sites):
    """p(y = m | x_i) of every item, one component and one option at a time, and log π."""
    maps, choices = data.feature_maps, data.choices

    def features(name):
        feature_map = getattr(maps, name)
        embeddings = getattr(data, f"{name}_embeddings")
        return ((embeddings - feature_map.mean) @ feature_map.basis)[:, :8]

    context, persona, exemplar = features("context"), features("persona"), features("exemplar")
    probs, log_pi = np.zeros((N, M)), np.zeros((N, K))
    for i in range(N):
        logits = np.zeros(K)
        for k in range(K):
            logits[k] = persona[k] @ sites["gate.persona_weight"]
            logits[k] += persona[k] @ sites["gate.persona_context_weight"] @ context[i]
            for name, design in choices.groups.items():
                level = int(np.argmax(design[i]))
                effect = sites[f"group_effect.{name}"][level, k]
                logits[k] += sites[f"group_scale.{name}"] * effect
        log_pi[i] = log_softmax(logits)
        question = int(np.argmax(choices.question[i]))
        bias = sites["option_bias_scale"] * sites["option_bias"][question]
        for name, design in choices.groups.items():
            if f"option_effect.{name}" in sites:
                own = sites[f"option_effect.{name}"][int(np.argmax(design[i])), question]
                bias = bias + sites[f"option_effect_scale.{name}"] * own
        present = np.isfinite(choices.option_offset[i])
        weights, answers = [], []
        for c in range(data.persona_index.shape[1]):
            k, own = data.persona_index[i, c], data.exemplar_index[i, c]
            omega = exemplar @ sites["gate.exemplar_weight"]
            omega = omega + exemplar @ sites["gate.exemplar_persona_weight"] @ persona[k]
            omega = omega + exemplar @ sites["gate.exemplar_context_weight"] @ context[i]
            omega = np.where(data.leave_out[i], -np.inf, omega)
            weights.append(log_pi[i, k] + log_softmax(omega)[own] + data.log_weight[i, c])
            said, trusted = choices.option_log_likelihood[i, c], 0.0
            if "log_preference_temperature" in sites:
                said = said - choices.option_preference[i]
                trusted = choices.option_preference[i] / np.exp(sites["log_preference_temperature"])
            scores = said / np.exp(sites["log_temperature"][k])
            scores = scores + trusted + choices.option_offset[i] + bias
            answer = np.zeros(M)
            answer[present] = np.exp(log_softmax(scores[present]))
            answers.append(answer)
        weights = np.exp(log_softmax(np.asarray(weights)))
        probs[i] = weights @ np.asarray(answers)
    return probs, log_pi


def slow_log_density(data, sites):
    """All terms of the prior by SciPy, and the Dirichlet-multinomial by gamma functions."""
    total = norm(0, 0.5).logpdf(sites["mean_log_temperature"])
    total += norm(sites["mean_log_temperature"], 0.25).logpdf(sites["log_temperature"]).sum()
    for name, value in sites.items():
        if name.startswith(("gate.", "group_effect.", "option_effect.")) or name == "option_bias":
            total += norm.logpdf(value).sum()
        if name.startswith("group_scale.") or name == "option_bias_scale":
            total += lognorm(0.6, scale=0.7).logpdf(value)
        if name.startswith("option_effect_scale."):
            total += lognorm(0.6, scale=0.3).logpdf(value)
    total += norm(np.log(50), 1.5).logpdf(sites["log_concentration"]).sum()
    if "log_preference_temperature" in sites:
        total += norm(np.log(4), 0.5).logpdf(sites["log_preference_temperature"])
    probs, _ = slow_probs(data, sites)
    for i in range(N):
        own = probs[i] > 0
        counts, p = np.asarray(data.choices.counts[i], np.float64)[own], probs[i, own]
        phi = np.exp(sites["log_concentration"][int(np.argmax(data.choices.question[i]))])
        term = gammaln(counts.sum() + 1) - gammaln(counts + 1).sum()
        term += gammaln(phi) - gammaln(phi + counts.sum())
        term += (gammaln(phi * p + counts) - gammaln(phi * p)).sum()
        total += data.weights[i] * term
    return total


@pytest.fixture(scope="module")
def rich():
    """A survey with all there is: exemplars left out, weights, offsets, fractions, unknowns."""
    rng = np.random.default_rng(5)
    leave_out = np.zeros((N, J), bool)
    leave_out[::3, 0] = True
    mask = np.isfinite(survey_data().choices.option_offset)
    return survey_data(
        leave_out=leave_out,
        weights=rng.uniform(0.5, 2, N),
        option_offset=np.where(mask, rng.normal(size=(N, M)), 0.0),
        option_preference=np.where(mask, rng.normal(size=(N, M)), 0.0),
        counts=rng.gamma(1.0, 10.0, (N, M)) * mask,
        log_weight=rng.normal(size=(N, K * J)),
        question=np.repeat([0, 1, -1], 4),
        option_mask=mask,
        dtype=np.float64,
    )


@pytest.mark.parametrize(
    ("seed", "direct", "preference"), [(0, False, False), (1, False, True), (2, True, True)]
)
def test_log_density_equals_scipys_with_every_term(rich, seed, direct, preference):
    kwargs = {"option_effects": direct, "option_preference": preference}
    with jax.enable_x64(True):
        sites = sites_of(rich, seed, **kwargs)
        assert len(sites) == 14 + 4 * direct + preference
        found = density(rich, sites, **kwargs)
        probs = np.asarray(distribution_at(rich, sites, **kwargs).probs)
    np.testing.assert_allclose(probs, slow_probs(rich, sites)[0], rtol=1e-9, atol=1e-12)
    assert found == pytest.approx(slow_log_density(rich, sites), rel=1e-8)
    for name in sites:  # every site matters, so that none is left out on both sides
        moved = {**sites, name: sites[name] * 1.1 + 0.1}
        assert abs(slow_log_density(rich, moved) - slow_log_density(rich, sites)) > 1e-3


def test_one_temperature_for_all_is_a_preference_with_the_temperature_of_the_rest(rich):
    """Where τ_0 and every τ_k are one number, it does not matter what is taken apart."""
    with jax.enable_x64(True):
        sites = sites_of(rich, 3, option_preference=True)
        sites["log_temperature"] = np.full(K, 0.7)
        sites["log_preference_temperature"] = np.asarray(0.7)
        apart = distribution_at(rich, sites, option_preference=True).probs
        del sites["log_preference_temperature"]
        np.testing.assert_allclose(apart, distribution_at(rich, sites).probs, rtol=1e-9)
    with pytest.raises(DataError, match="needs data that say what the language model prefers"):
        mixture_of_choices(survey_data(), option_preference=True)


def test_a_preference_is_centred_over_the_options_that_there_are():
    mask = np.isfinite(survey_data().choices.option_offset)
    given = np.random.default_rng(4).normal(size=(N, M))
    choices = survey_data(option_preference=given).choices
    for i in range(N):
        own = given[i, mask[i]]
        np.testing.assert_allclose(choices.option_preference[i, mask[i]], own - own.mean(), 1e-5)
    assert (choices.option_preference[~mask] == 0).all()
    assert choices.unknown(3).option_preference.shape == (3, M)
    assert survey_data().choices.unknown(3).option_preference is None
    np.testing.assert_array_equal(choices.take(np.array([7])).option_preference[0],
                                  choices.option_preference[7])  # fmt: skip
    given[6, 0] = np.nan
    with pytest.raises(DataError, match="option_preference must be finite"):
        survey_data(option_preference=given)


def test_probabilities_sum_to_one_in_every_draw():
    data = survey_data(1)
    for seed in range(20):
        probs = np.asarray(distribution_at(data, sites_of(data, seed)).probs)
        np.testing.assert_allclose(probs.sum(-1), 1, atol=1e-6)
        assert (probs[6:, M - 1] == 0).all()


def test_what_no_item_is_in_keeps_its_prior_exactly():
    """By structure: the likelihood has no gradient in the columns of unseen levels and questions.

    Given the scales, that is. The scales themselves are what the others taught.
    """
    data = survey_data(num_questions=4, num_levels={"age": 5, "education": 2})
    sites = {k: jnp.asarray(v, jnp.float32) for k, v in sites_of(data).items()}

    def likelihood(sites):
        return distribution_at(data, sites).log_prob(data.choices.counts).sum()

    gradient = jax.jit(jax.grad(likelihood))(sites)
    assert gradient["group_effect.age"].shape == (6, K)
    assert (gradient["group_effect.age"][3:] == 0).all()
    assert (gradient["group_effect.age"][:3] != 0).all()
    assert (gradient["group_effect.education"][2:] == 0).all()
    assert gradient["option_bias"].shape == (5, M)
    assert (gradient["option_bias"][2:] == 0).all()
    assert (gradient["option_bias"][0] != 0).all()
    assert (gradient["option_bias"][1, M - 1] == 0).all()  # no option of the question
    assert (gradient["log_concentration"][2:] == 0).all()
    assert (gradient["log_concentration"][:2] != 0).all()


def test_nuts_draws_unseen_effects_from_their_prior():
    """Kolmogorov–Smirnov over eight sites at 0.1 % false failures, thinned, fixed by the seed."""
    data = survey_data(2)
    kwargs = {"uniform_gate": True}
    mcmc = MCMC(NUTS(mixture_of_choices), num_warmup=200, num_samples=1_200, progress_bar=False)
    mcmc.run(jax.random.key(0), data, **kwargs)
    samples = {name: np.asarray(v)[::4] for name, v in mcmc.get_samples().items()}
    unseen = [samples["group_effect.age"][:, -1, 0], samples["group_effect.education"][:, -1, 1]]
    unseen += [samples["option_bias"][:, -1, m] for m in range(M)]
    unseen += [samples["option_bias"][:, 1, M - 1]]
    unseen += [(samples["log_concentration"][:, -1] - np.log(50)) / 1.5]
    for values in unseen:
        assert kstest(values, "norm").pvalue > 0.001 / len(unseen)
    # A question that was asked has another law, so that the test can fail.
    assert kstest((samples["log_concentration"][:, 0] - np.log(50)) / 1.5, "norm").pvalue < 1e-6


def test_items_in_any_order_give_the_same_density():
    data = survey_data(3)
    sites, order = sites_of(data), np.random.default_rng(0).permutation(N)
    assert density(data.take(order), sites) == pytest.approx(density(data, sites), rel=1e-6)


def test_options_in_any_order_with_their_biases_give_the_same_density():
    data, order = survey_data(4), np.array([2, 0, 3, 1])
    sites = sites_of(data)
    choices = data.choices
    moved = data._replace(
        choices=choices._replace(
            option_log_likelihood=choices.option_log_likelihood[..., order],
            option_offset=choices.option_offset[:, order],
            counts=choices.counts[:, order],
        )
    )
    expected = density(data, sites)
    along = {**sites, "option_bias": sites["option_bias"][:, order]}
    assert density(moved, along) == pytest.approx(expected, rel=1e-6)
    assert abs(density(moved, sites) - expected) > 0.1  # biases stay with their options


def test_identical_items_can_be_merged_without_dispersion_and_not_with():
    data = survey_data(5)
    twice = data.take(np.append(np.arange(N), 0))
    counts = np.array(twice.choices.counts)
    counts[0], counts[-1] = [12, 3, 25, 20], [3, 30, 2, 4]
    twice = twice._replace(choices=twice.choices._replace(counts=counts))
    merged_counts = counts[:N].copy()
    merged_counts[0] += counts[-1]
    merged = data._replace(choices=data.choices._replace(counts=merged_counts))

    def ratio(data, **kwargs):
        """Of the densities at two draws: numbers of orders, in which the two differ, cancel."""
        first, second = (sites_of(data, seed, **kwargs) for seed in (0, 1))
        return density(data, first, **kwargs) - density(data, second, **kwargs)

    assert ratio(twice, dispersion=False) == pytest.approx(
        ratio(merged, dispersion=False), rel=1e-5
    )
    assert abs(ratio(twice) - ratio(merged)) > 0.05


def test_minibatches_of_items_estimate_the_whole_without_bias():
    """1,500 minibatches, 5 standard errors: once in 1.7 million seeds (fixed)."""
    data = survey_data(6, weights=1 + np.arange(N) % 3)
    sites = {k: jnp.asarray(v, jnp.float32) for k, v in sites_of(data).items()}

    @jax.jit
    @jax.vmap
    def estimate(key):
        model = handlers.seed(mixture_of_choices, key)
        return log_density(model, (data,), {"subsample_size": 5}, sites)[0]

    estimates = np.asarray(estimate(jax.random.split(jax.random.key(0), 1_500)), np.float64)
    error = estimates.std(ddof=1) / np.sqrt(len(estimates))
    assert 0 < error < 5
    assert abs(estimates.mean() - density(data, sites)) < 5 * error


GATE = {f"gate.{name}_weight" for name in ("persona", "persona_context", "exemplar")} | {
    f"gate.exemplar_{name}_weight" for name in ("persona", "context")
}
GROUPS = {f"group_{part}.{name}" for part in ("scale", "effect") for name in LEVELS}


@pytest.mark.parametrize(
    ("kwargs", "gone"),
    [
        ({"temperature": False}, {"log_temperature", "mean_log_temperature"}),
        ({"uniform_gate": True}, GATE),
        ({"exemplars": False}, {name for name in GATE if "exemplar" in name}),
        ({"exemplar_context": False}, {"gate.exemplar_context_weight"}),
        ({"group_effects": False}, GROUPS),
        ({"option_bias": False}, {"option_bias", "option_bias_scale"}),
        ({"dispersion": False}, {"log_concentration"}),
    ],
    ids=lambda value: "" if isinstance(value, set) else next(iter(value)),
)
def test_each_argument_switches_off_what_it_says_and_nothing_else(kwargs, gone):
    data = survey_data(7)
    everything = sites_of(data)
    assert set(sites_of(data, **kwargs)) == set(everything) - gone
    found = distribution_at(data, {k: v for k, v in everything.items() if k not in gone}, **kwargs)
    full = distribution_at(data, everything)
    np.testing.assert_array_equal(
        found.log_temperature, 0 if "temperature" in kwargs else full.log_temperature
    )
    assert found.dispersed is ("dispersion" not in kwargs)
    np.testing.assert_array_equal(
        found.option_logits,
        data.choices.option_offset if "option_bias" in kwargs else full.option_logits,
    )
    same_gate = not {"uniform_gate", "group_effects"} & set(kwargs)
    same = np.allclose(found.persona_logits, full.persona_logits, atol=1e-6)
    assert same is same_gate
    if "uniform_gate" in kwargs:  # groups act all the same
        assert np.ptp(found.persona_logits, axis=1).min() > 0.01
    same_exemplars = not {"uniform_gate", "exemplars", "exemplar_context"} & set(kwargs)
    np.testing.assert_equal(
        np.allclose(found.exemplar_record_logits, full.exemplar_record_logits), same_exemplars
    )


def test_with_all_switched_off_it_is_the_uniform_mixture():
    data = survey_data(8)
    kwargs = {**BARE, "temperature": False}
    assert sites_of(data, **kwargs) == {}
    found = np.asarray(distribution_at(data, {}, **kwargs).probs)
    table, offset = data.choices.option_log_likelihood, data.choices.option_offset
    expected = np.exp(log_softmax(table + offset[:, None], axis=-1)).mean(1)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_prior_draws_have_their_laws_and_predictive_counts_their_totals():
    """Kolmogorov–Smirnov at 0.1 % false failures over all sites, fixed by the seed."""
    data = survey_data(9, people=37)
    model = handlers.uncondition(mixture_of_choices)
    drawn = Predictive(model, num_samples=400)(jax.random.key(0), data)
    counts = np.asarray(drawn["response"])
    assert counts.shape == (400, N, M)
    np.testing.assert_array_equal(counts.sum(-1), 37)
    assert (counts[:, 6:, M - 1] == 0).all()
    np.testing.assert_array_equal(counts, counts.round())
    laws = {
        "mean_log_temperature": norm(0, 0.5),
        "log_concentration": norm(np.log(50), 1.5),
        "group_scale.age": lognorm(0.6, scale=0.7),
        "group_effect.age": norm(),
        "option_bias_scale": lognorm(0.6, scale=0.7),
        "option_bias": norm(),
    }
    for name, law in laws.items():
        pvalue = kstest(np.asarray(drawn[name]).ravel(), law.cdf).pvalue
        assert pvalue > 0.001 / len(laws), name
    # Given the sites the counts are as the distribution says: standardised, of mean 0, variance 1.
    scores = []
    for s in range(0, 400, 4):
        sites = {k: np.asarray(v[s]) for k, v in drawn.items() if k != "response"}
        answers = distribution_at(data, sites)
        p = np.asarray(answers.probs, np.float64)[:, 0]
        phi = np.asarray(answers.concentration, np.float64)
        variance = 37 * p * (1 - p) * (37 + phi) / (1 + phi)
        scores.append((counts[s, :, 0] - 37 * p) / np.sqrt(variance))
    scores = np.ravel(scores)
    assert abs(scores.mean()) < 3.3 / np.sqrt(len(scores))
    squares = scores**2
    assert abs(squares.mean() - 1) < 3.3 * squares.std() / np.sqrt(len(scores))


def test_data_without_closed_answers_are_refused(make_data):
    with (
        pytest.raises(DataError, match="a model of closed answers, and the data hold none"),
        handlers.seed(rng_seed=0),
    ):
        mixture_of_choices(make_data())
