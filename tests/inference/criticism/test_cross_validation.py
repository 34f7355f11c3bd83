"""Leave-one-out and K folds against exact leave-one-out, on a grid of one temperature."""

from types import SimpleNamespace

import arviz
import jax
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import norm

from mop_jax.errors import DataError
from mop_jax.evaluation.held_out import mean_and_error
from mop_jax.inference import (
    HeldOutScores,
    kfold,
    log_likelihood_draws,
    loo,
    loo_errors,
    make_posterior,
    posterior_predictive_log_prob,
)
from mop_jax.inference.criticism import cross_validation
from mop_jax.inference.criticism.cross_validation import _efficiency, _fold_of_each

UNIFORM = {"uniform_gate": True}
GRID = np.linspace(-0.8, 0.8, 1601)
# One persona's log τ, its mean summed out.
PRIOR = norm(0, np.hypot(0.3, 0.1))


def one_temperature(make_data, *, num_records=10, peak=None, weights=None):
    """One persona under a uniform gate: a posterior in one dimension that the data see, log τ."""
    rng = np.random.default_rng(0)
    peak = rng.normal(0, 0.1, num_records) if peak is None else peak
    height = rng.normal(-20, 2, (num_records, 1, 5))
    temperatures = np.array([0.5, 0.7, 0.9, 1.2, 1.6, 2.1])
    table = height[..., None] - 30 * (np.log(temperatures) - peak[:, None, None, None]) ** 2
    return make_data(
        num_records=num_records, num_personas=1, log_likelihood=table,
        temperature_grid=temperatures, weights=weights,
    )  # fmt: skip


def posterior_of(log_temperature, data, **kwargs):
    samples = {
        "log_temperature": np.asarray(log_temperature, np.float32)[:, None],
        "mean_log_temperature": np.zeros(len(log_temperature), np.float32),
    }
    return make_posterior(samples, data, model_kwargs=UNIFORM, **kwargs)


def on_grid(data):
    """Log p(y_i | τ) on the grid, [G, N], and the log prior."""
    log_probs = np.asarray(log_likelihood_draws(posterior_of(GRID, data), data), np.float64)
    return log_probs, PRIOR.logpdf(GRID)


def quantiles(data, levels):
    """The posterior's quantiles, by its distribution function on the grid, as draws."""
    log_probs, log_prior = on_grid(data)
    density = log_prior + log_probs @ np.asarray(data.weights, np.float64)
    cumulative = np.cumsum(np.exp(density - logsumexp(density)))
    return posterior_of(np.interp(levels, cumulative, GRID + (GRID[1] - GRID[0]) / 2), data)


def exact_draws(data, number):
    return quantiles(data, np.random.default_rng(0).uniform(size=number))


def by_grid(rng_key, part):
    """A refit that is exact but for 2,000 draws at the middles of equal parts of probability."""
    del rng_key
    return quantiles(part, (np.arange(2000) + 0.5) / 2000)


def exact_scores(data, fold):
    """Log p(y_i | records of other folds) by sums over the grid."""
    log_probs, log_prior = on_grid(data)
    weights = np.asarray(data.weights, np.float64)
    scores = np.zeros(len(fold))
    for i, own in enumerate(fold):
        density = log_prior + log_probs @ (weights * (fold != own))
        scores[i] = logsumexp(density + log_probs[:, i]) - logsumexp(density)
    return scores


@pytest.fixture(scope="module")
def data(make_data):
    """Ten records of unequal weights."""
    return one_temperature(make_data, weights=1 + np.arange(10) % 3)


def test_loo_is_exact_leave_one_out_of_weighted_records(data):
    """4,000 independent draws: errors of about 0.003 nats, so that 0.03 is ten of them."""
    exact = exact_scores(data, np.arange(10))
    posterior = exact_draws(data, 4000)
    found = loo(posterior, data)
    np.testing.assert_allclose(found.log_prob, exact, atol=0.03)
    assert (found.pareto_k < 0.7).all()
    assert found.reason == "Pareto k is below 0.70 for all 10 records."
    assert found.mean == pytest.approx(np.average(exact, weights=data.weights), abs=0.02)
    # Had the weights been forgotten, as in ArviZ, it would show.
    unweighted = arviz.from_dict(
        posterior={"x": np.zeros((1, 4000))},
        log_likelihood={"y": np.asarray(log_likelihood_draws(posterior, data))[None]},
    )
    theirs = arviz.loo(unweighted, pointwise=True, reff=1.0).loo_i.values
    assert np.abs(theirs - exact).max() > 0.03
    seen = posterior_predictive_log_prob(posterior, data)
    assert found.num_parameters == pytest.approx(
        np.sum(data.weights * (seen - found.log_prob)), rel=1e-4
    )
    assert 0.3 < found.num_parameters < 3


def test_loo_of_equal_weights_is_arviz_s(make_data):
    data = one_temperature(make_data)
    posterior = exact_draws(data, 500)
    exported = arviz.from_dict(
        posterior={"x": np.zeros((1, 500))},
        log_likelihood={"y": np.asarray(log_likelihood_draws(posterior, data), np.float64)[None]},
    )
    theirs = arviz.loo(exported, pointwise=True, reff=1.0)
    ours = loo(posterior, data)
    np.testing.assert_allclose(ours.log_prob, theirs.loo_i, rtol=1e-6)
    np.testing.assert_allclose(ours.pareto_k, theirs.pareto_k, rtol=1e-4)
    assert ours.threshold == theirs.good_k
    assert 10 * ours.mean == pytest.approx(theirs.elpd_loo)
    # ArviZ divides by N where we divide by N − 1.
    assert 10 * ours.standard_error == pytest.approx(theirs.se * np.sqrt(10 / 9))
    assert ours.num_parameters == pytest.approx(theirs.p_loo, rel=1e-3)


def test_k_warns_of_the_record_that_leave_one_out_is_wrong_of(make_data):
    """One record far from all others, and heavy: without it the posterior lies elsewhere."""
    peak = np.r_[0.45, np.random.default_rng(1).normal(0, 0.05, 9)]
    data = one_temperature(make_data, peak=peak, weights=np.r_[12.0, np.ones(9)])
    found = loo(exact_draws(data, 2000), data)
    exact = exact_scores(data, np.arange(10))
    table = loo_errors(found, HeldOutScores(exact, found.weights, None, "10-fold", "Exact."))
    assert table.index[0] == 0
    assert table["warned"].tolist() == [True] + [False] * 9
    assert abs(table["difference"].iloc[0]) > 1
    assert table["difference"].iloc[1:].abs().max() < 0.1
    assert "for 1 of 10 records" in found.reason
    assert "kfold fits without them" in found.reason


def test_folds_are_taken_out_exactly_and_all_fits_have_one_shape(data):
    fold = np.array([0, 0, 0, 0, 1, 1, 1, 5, 5, 5])
    parts = []

    def refit(rng_key, part):
        parts.append(part)
        return by_grid(rng_key, part)

    found = kfold(jax.random.key(0), data, fold, refit=refit)
    np.testing.assert_allclose(found.log_prob, exact_scores(data, fold), atol=1e-3)
    assert found.method == "3-fold"
    assert len({str(jax.tree.map(np.shape, part)) for part in parts}) == 1
    for part, number in zip(parts, (0, 1, 5), strict=True):
        rest = data.take(np.flatnonzero(fold != number))
        np.testing.assert_array_equal(
            part.context_embeddings[: rest.num_records], rest.context_embeddings
        )
        np.testing.assert_array_equal(part.weights[: rest.num_records], rest.weights)
        # What fills up says nothing, and is no record of the fold.
        assert (part.weights[rest.num_records :] < 1e-20).all()
        spare = part.context_embeddings[rest.num_records :]
        np.testing.assert_array_equal(spare, rest.context_embeddings[:1].repeat(len(spare), 0))
        np.testing.assert_array_equal(
            part.feature_maps.context.mean, data.feature_maps.context.mean
        )


def test_folds_by_svi(data):
    """Two fits of the default guide: within 0.1 nats of the grid's, 200 draws' error being 0.01."""
    fold = np.arange(10) % 2
    found = kfold(jax.random.key(0), data, fold, model_kwargs=UNIFORM, num_steps=60, progress=False)
    np.testing.assert_allclose(found.log_prob, exact_scores(data, fold), atol=0.1)
    assert found.reason.startswith("Each record's score is of a fit without its fold, of 2")


def test_fits_that_had_not_settled_are_counted(data, monkeypatch):
    posterior = exact_draws(data, 30)
    settled = iter([True, False])

    def fit(rng_key, part, *, num_steps):
        assert num_steps == 7
        return SimpleNamespace(convergence=SimpleNamespace(converged=next(settled)))

    monkeypatch.setattr(cross_validation, "fit_svi", fit)
    monkeypatch.setattr(cross_validation, "posterior_draws", lambda fit, key, number: posterior)
    found = kfold(jax.random.key(0), data, 2, num_steps=7)
    assert found.reason.endswith("of 2; 1 of the fits had not settled.")


@pytest.mark.parametrize("folds", [2, 3, 7])
def test_folds_are_as_equal_as_they_can_be(folds):
    fold = _fold_of_each(jax.random.key(0), folds, 17, None)
    assert sorted(np.bincount(fold)) == sorted(
        len(part) for part in np.array_split(range(17), folds)
    )
    assert (fold != _fold_of_each(jax.random.key(1), folds, 17, None)).any()


def test_folds_hold_whole_groups(data):
    codes = np.repeat(np.arange(6), [4, 1, 2, 3, 1, 1])
    fold = _fold_of_each(jax.random.key(0), 3, 12, codes)
    assert all(len(np.unique(fold[codes == group])) == 1 for group in range(6))
    assert np.bincount(fold).tolist() == [4, 4, 4]
    posterior = exact_draws(data, 30)
    found = kfold(
        jax.random.key(0), data, 2, groups=list("aabbccddee"), refit=lambda key, part: posterior
    )
    assert found.groups.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_standard_errors_are_those_of_evaluation(data):
    """As in `mop_jax.evaluation`: weighted, and over clusters where there are groups."""
    values, groups = np.random.default_rng(0).normal(size=10), list("aabbbccdde")
    codes = np.unique(groups, return_inverse=True)[1]
    for own, given in [(None, None), (codes, groups)]:
        found = HeldOutScores(values, np.asarray(data.weights, float), own, "", "")
        theirs = mean_and_error(values, np.asarray(data.weights, float), given)
        assert found.mean == pytest.approx(theirs["mean"])
        assert found.standard_error == pytest.approx(theirs["se"])
    assert repr(found).startswith("<: ")
    assert "nats per record" in repr(found)


def test_chains_that_mix_slowly_count_as_fewer_draws(data):
    """Every draw four times in a row: the efficiency is about a quarter."""
    fast = exact_draws(data, 400).replace(num_chains=2)
    slow = fast.replace(samples={k: np.repeat(v, 4, 0) for k, v in fast.samples.items()})
    log_probs = [np.asarray(log_likelihood_draws(p, data), np.float64).T for p in (fast, slow)]
    assert 0.6 < _efficiency(log_probs[0], 2) < 1.5
    assert 0.15 < _efficiency(log_probs[1], 2) < 0.4
    assert _efficiency(log_probs[1], None) == 1
    assert _efficiency(np.zeros((3, 40)), 2) == 1
    np.testing.assert_allclose(
        loo(slow, data).log_prob, exact_scores(data, np.arange(10)), atol=0.1
    )


def test_scores_say_what_they_take_for_granted(data):
    posterior = exact_draws(data, 100).replace(sampler="AutoNormal")
    assert "draws by AutoNormal are taken for the posterior's" in loo(posterior, data).reason
    sampled = data._replace(log_weight=np.asarray(data.log_weight) + 1)
    reason = loo(posterior.replace(num_chains=2), sampled).reason
    assert "components are sampled" in reason
    assert "AutoNormal" not in reason


def test_refusals(data):
    key, posterior = jax.random.key(0), exact_draws(data, 100)
    with pytest.raises(DataError, match="has 24 draws"):
        loo(posterior.replace(samples={k: v[:24] for k, v in posterior.samples.items()}), data)
    with pytest.raises(DataError, match="groups has 3 entries; data has 10 records"):
        loo(posterior, data, groups=[1, 2, 3])
    with pytest.raises(DataError, match="both refit and 'num_steps'"):
        kfold(key, data, 2, refit=by_grid, num_steps=3)
    for folds in (1, 11):
        with pytest.raises(DataError, match=f"folds is {folds}; 10 records make 2 to 10 folds"):
            kfold(key, data, folds, refit=by_grid)
    with pytest.raises(DataError, match="5 groups make 2 to 5 folds"):
        kfold(key, data, 6, groups=list("aabbccddee"), refit=by_grid)
    for given in (np.zeros(9, int), np.zeros(10)):
        with pytest.raises(DataError, match="fold of each of the 10 records as whole numbers"):
            kfold(key, data, given, refit=by_grid)
    with pytest.raises(DataError, match="all records in one fold"):
        kfold(key, data, np.zeros(10, int), refit=by_grid)
    alone = HeldOutScores(np.zeros(2), np.ones(2), np.zeros(2, int), "", "")
    with pytest.raises(DataError, match="two records at least, of two groups"):
        _ = alone.standard_error
