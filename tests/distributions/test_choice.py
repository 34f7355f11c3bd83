"""Closed answers against plain loops, SciPy's laws, and as NumPyro distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import gammaln, log_softmax, logsumexp
from scipy.stats import chi2, dirichlet_multinomial, multinomial

from mop_jax.distributions import ChoiceCounts, ChoiceMixture
from mop_jax.distributions.choice import _log_rising

N, K, J, M = 4, 3, 5, 6


def make_arguments(seed=0, num_records=N, left_out=True):
    """Arguments of a full table; the last options of some records do not exist."""
    rng = np.random.default_rng(seed)
    leave_out = (rng.random((num_records, J)) < 0.3) & left_out
    leave_out[:, 0] = False
    persona, exemplar = np.divmod(np.arange(K * J), J)
    pairs = (num_records, K * J)
    exemplar = np.broadcast_to(exemplar, pairs)
    lacking = np.arange(M) >= np.asarray([M, 2, M - 1, M])[np.arange(num_records) % 4][:, None]
    return {
        "persona_logits": rng.normal(size=(num_records, K)),
        "exemplar_record_logits": np.where(leave_out, -np.inf, rng.normal(size=(num_records, J))),
        "exemplar_persona_logits": rng.normal(size=(K, J)),
        "log_temperature": rng.normal(0, 0.3, K),
        "persona_index": np.broadcast_to(persona, pairs),
        "exemplar_index": exemplar,
        "log_weight": np.where(np.take_along_axis(leave_out, exemplar, 1), -np.inf, 0.0),
        "option_log_likelihood": rng.normal(-6, 3, (*pairs, M)),
        "option_logits": np.where(lacking, -np.inf, rng.normal(size=(num_records, M))),
    }


def by_loop(arguments):
    """p(y = m | x), one component at a time."""
    num_records = len(arguments["persona_logits"])
    probs = np.zeros((num_records, M))
    for i in range(num_records):
        pi = np.exp(log_softmax(arguments["persona_logits"][i]))
        for c, (k, j) in enumerate(
            zip(arguments["persona_index"][i], arguments["exemplar_index"][i])
        ):
            omega = np.exp(
                log_softmax(
                    arguments["exemplar_record_logits"][i] + arguments["exemplar_persona_logits"][k]
                )
            )
            scores = arguments["option_log_likelihood"][i, c] / np.exp(
                arguments["log_temperature"][k]
            )
            options = np.exp(log_softmax(scores + arguments["option_logits"][i]))
            probs[i] += pi[k] * omega[j] * options
    return probs


def test_probabilities_equal_a_loop_and_sum_to_one():
    arguments = make_arguments()
    mixture = ChoiceMixture(**arguments)
    np.testing.assert_allclose(mixture.probs, by_loop(arguments), atol=2e-6)
    np.testing.assert_allclose(mixture.probs.sum(-1), 1, atol=1e-6)
    assert (np.asarray(mixture.probs)[1, 2:] == 0).all()
    for value in range(2):
        found = mixture.log_prob(jnp.full(N, value))
        np.testing.assert_allclose(found, np.log(by_loop(arguments)[:, value]), atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), keep=st.integers(1, K * J))
def test_any_candidates_give_probabilities(seed, keep):
    arguments = make_arguments(seed, left_out=False)
    chosen = np.random.default_rng(seed).permutation(K * J)[:keep]
    for name in ("persona_index", "exemplar_index", "log_weight", "option_log_likelihood"):
        arguments[name] = arguments[name][:, chosen]
    mixture = ChoiceMixture(**arguments)
    np.testing.assert_allclose(mixture.probs.sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(jnp.exp(mixture.candidate_log_probs).sum(-1), 1, atol=1e-6)


def test_adding_a_number_to_all_options_of_a_component_changes_nothing():
    arguments = make_arguments()
    before = ChoiceMixture(**arguments).probs
    shift = np.random.default_rng(1).normal(0, 5, (N, K * J, 1))
    arguments["option_log_likelihood"] = arguments["option_log_likelihood"] + shift
    np.testing.assert_allclose(ChoiceMixture(**arguments).probs, before, atol=1e-5)


def test_responsibilities_equal_bayes_rule():
    arguments = make_arguments()
    mixture = ChoiceMixture(**arguments)
    joint = mixture.candidate_log_probs[..., None] + mixture.component_option_log_probs
    value = jnp.array([3, 1, 0, 5])
    at = np.take_along_axis(np.asarray(joint), np.asarray(value)[:, None, None], -1)[..., 0]
    expected = np.exp(at - logsumexp(at, axis=1, keepdims=True))
    np.testing.assert_allclose(mixture.responsibilities(value), expected, atol=1e-5)
    # Of a cell they are averaged over its people.
    counts = jnp.array([[0, 0, 0, 1, 0, 0], [1, 3, 0, 0, 0, 0], [0.5, 0, 0, 0, 0, 0], [0.0] * 6])
    found = ChoiceCounts(*arguments.values(), total_count=1).responsibilities(counts)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
    both = [mixture.responsibilities(jnp.full(N, m))[1] for m in (0, 1)]
    np.testing.assert_allclose(found[1], 0.25 * both[0] + 0.75 * both[1], atol=1e-5)
    np.testing.assert_allclose(found[3], jnp.exp(mixture.candidate_log_probs)[3], atol=1e-6)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("concentration", [None, 0.7, 40.0, 1e5])
def test_counts_have_scipys_probabilities(concentration):
    arguments = make_arguments()
    counts = np.array(
        [[5, 0, 2, 1, 0, 9], [0, 4, 0, 0, 0, 0], [1, 0, 0, 0, 1, 0], [900, 1, 80, 0, 0, 3]]
    )
    mixture = ChoiceCounts(
        *arguments.values(), total_count=counts.sum(1), concentration=concentration
    )
    probs = by_loop(arguments)
    for i in range(N):
        own = probs[i, probs[i] > 0]
        value = counts[i, : len(own)]
        if concentration is None:
            expected = multinomial(value.sum(), own / own.sum()).logpmf(value)
        else:
            expected = dirichlet_multinomial(concentration * own, value.sum()).logpmf(value)
        found = float(mixture.log_prob(jnp.asarray(counts, float))[i])
        assert found == pytest.approx(expected, rel=2e-5, abs=2e-3)


def test_one_person_is_a_choice_whatever_the_dispersion():
    arguments = make_arguments()
    value = jnp.array([2, 1, 0, 4])
    counts = jax.nn.one_hot(value, M)
    expected = ChoiceMixture(**arguments).log_prob(value)
    for concentration in (None, 0.1, 30.0):
        found = ChoiceCounts(*arguments.values(), concentration=concentration).log_prob(counts)
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_an_option_that_does_not_exist_is_never_chosen():
    counts = jnp.zeros((N, M)).at[1, 3].set(1)
    for concentration in (None, 5.0):
        mixture = ChoiceCounts(*make_arguments().values(), concentration=concentration)
        assert mixture.log_prob(counts)[1] == -jnp.inf


@given(start=st.floats(1e-6, 1e6), by=st.floats(0, 1e6))
@settings(max_examples=60, deadline=None)
def test_rising_factorials_keep_their_digits(start, by):
    start, by = np.float64(np.float32(start)), np.float64(np.float32(by))
    expected = gammaln(start + by) - gammaln(start)
    found = float(_log_rising(jnp.log(jnp.float32(start)), jnp.float32(by)))
    assert found == pytest.approx(expected, rel=2e-5, abs=2e-5)


@pytest.mark.parametrize("concentration", [None, 3.0])
def test_gradients_are_finite_with_padding_and_extremes(concentration):
    arguments = make_arguments()
    arguments["option_log_likelihood"] = arguments["option_log_likelihood"] * 40

    def total(persona_logits, log_temperature, option_bias):
        changed = {
            **arguments,
            "persona_logits": persona_logits,
            "log_temperature": log_temperature,
            "option_logits": arguments["option_logits"] + option_bias,
        }
        counts = jnp.zeros((N, M)).at[:, :2].set(7.0)
        return ChoiceCounts(*changed.values(), concentration=concentration).log_prob(counts).sum()

    value, gradients = jax.value_and_grad(total, argnums=(0, 1, 2))(
        jnp.asarray(arguments["persona_logits"]), jnp.zeros(K), jnp.zeros(M)
    )
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in gradients)


def test_drawn_options_have_their_probabilities():
    """χ² at 0.1 % false failures, fixed by the seed."""
    mixture = ChoiceMixture(**make_arguments())
    draws = np.asarray(mixture.sample(jax.random.key(0), (20_000,)))
    assert draws.shape == (20_000, N)
    for i in range(N):
        probs = np.asarray(mixture.probs[i])
        counts = np.bincount(draws[:, i], minlength=M)
        assert counts[probs == 0].sum() == 0
        expected = 20_000 * probs[probs > 0]
        statistic = ((counts[probs > 0] - expected) ** 2 / expected).sum()
        assert statistic < chi2.ppf(1 - 0.001 / N, (probs > 0).sum() - 1)


@pytest.mark.parametrize("concentration", [None, 2.0, 80.0])
def test_drawn_counts_have_mean_and_variance_of_the_law(concentration):
    """Normal bounds at 0.1 % false failures over all options, fixed by the seed."""
    arguments = make_arguments()
    total = np.array([12.0, 1.0, 0.0, 300.0])
    mixture = ChoiceCounts(*arguments.values(), total_count=total, concentration=concentration)
    draws = np.asarray(mixture.sample(jax.random.key(1), (4_000,)), np.float64)
    np.testing.assert_array_equal(draws.sum(-1), np.broadcast_to(total, (4_000, N)))
    probs = by_loop(arguments)
    spread = total[:, None] * probs * (1 - probs)
    if concentration is not None:
        spread = spread * ((total + concentration) / (1 + concentration))[:, None]
    error = np.abs(draws.mean(0) - total[:, None] * probs)
    assert (error <= 4.1 * np.sqrt(spread / 4_000) + 1e-9).all()
    wide = spread > 1
    np.testing.assert_allclose(draws.var(0)[wide], spread[wide], rtol=0.25)


def test_numpyro_sums_out_an_unobserved_answer():
    mixture = ChoiceMixture(**make_arguments())
    support = mixture.enumerate_support()
    assert support.shape == (M, N)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(jnp.exp(mixture.log_prob(support)).sum(0), 1, atol=1e-6)
