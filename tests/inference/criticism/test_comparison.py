"""Comparison of models: ArviZ's table, with weights and clusters that ArviZ does not know of."""

import arviz
import numpy as np
import pytest

from mop_jax.errors import DataError
from mop_jax.inference import (
    HeldOutScores,
    compare,
    log_likelihood_draws,
    loo,
    loo_errors,
    make_posterior,
)


def scores_of(values, weights=None, groups=None, **fields):
    values = np.asarray(values, np.float64)
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, float)
    return HeldOutScores(values, weights, groups, "3-fold", "Given.", **fields)


@pytest.fixture(scope="module")
def data(make_data):
    return make_data(num_records=12, num_personas=2)


@pytest.fixture(scope="module")
def posteriors(data):
    """Temperatures about 1, about 1.3, and anywhere."""
    rng = np.random.default_rng(0)

    def posterior(mean, spread):
        samples = {
            "log_temperature": rng.normal(mean, spread, (400, 2)),
            "mean_log_temperature": np.zeros(400),
        }
        return make_posterior(samples, data, model_kwargs={"uniform_gate": True})

    return {"one": posterior(0, 0.02), "more": posterior(0.26, 0.02), "any": posterior(0, 0.15)}


def test_equal_weights_give_arviz_s_table(posteriors, data):
    ours = compare(posteriors, data)
    exported = {
        name: arviz.loo(
            arviz.from_dict(
                posterior={"x": np.zeros((1, 400))},
                log_likelihood={"y": np.asarray(log_likelihood_draws(p, data), np.float64)[None]},
            ),
            pointwise=True,
            reff=1.0,
        )
        for name, p in posteriors.items()
    }
    theirs = arviz.compare(exported, method="stacking")
    assert ours.index.tolist() == theirs.index.tolist()
    assert ours["rank"].tolist() == [0, 1, 2]
    for column in ("elpd_loo", "elpd_diff"):
        np.testing.assert_allclose(ours[column], theirs[column], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(ours["p_loo"], theirs["p_loo"], rtol=1e-2)
    np.testing.assert_allclose(ours["weight"], theirs["weight"], atol=2e-3)
    assert ours["warning"].tolist() == theirs["warning"].tolist()
    # ArviZ divides by N where we divide by N − 1.
    for column in ("se", "dse"):
        np.testing.assert_allclose(
            ours[column], theirs[column] * np.sqrt(12 / 11), rtol=1e-4, atol=1e-6
        )
    assert set(ours.attrs["reason"]) == set(posteriors)
    assert ours.attrs["reason"]["any"].startswith("PSIS-LOO: Pareto k is ")


def test_a_weight_of_two_is_a_record_twice(data):
    """In sums, differences and stacking; standard errors are those of pairs that come together."""
    rng = np.random.default_rng(1)
    values = {name: rng.normal(-20, 1, 8) for name in "abc"}
    weights = np.array([1, 2] * 4) / 1.5
    twice = np.repeat(np.arange(8), [1, 2] * 4)
    weighted = compare({name: scores_of(v, weights) for name, v in values.items()})
    repeated = compare({name: scores_of(v[twice], None, twice) for name, v in values.items()})
    assert weighted.index.tolist() == repeated.index.tolist()
    np.testing.assert_allclose(weighted["weight"], repeated["weight"], atol=2e-3)
    for column in ("elpd_loo", "elpd_diff", "se", "dse"):
        np.testing.assert_allclose(weighted[column] * 12 / 8, repeated[column], rtol=1e-9)


def test_stacking_is_the_best_mixture_even_of_long_texts(data):
    """By a search over one weight; log-probabilities of −2,000 have no exp."""
    rng = np.random.default_rng(2)
    first, second = rng.normal(-2000, 1, (2, 30))
    weights = rng.uniform(0.5, 2, 30)
    table = compare({"a": scores_of(first, weights), "b": scores_of(second, weights)})
    shares = np.linspace(0, 1, 2001)[1:-1]
    mixed = np.logaddexp(
        np.log(shares)[:, None] + first, np.log1p(-shares)[:, None] + second
    ) @ weights  # fmt: skip
    assert table.loc["a", "weight"] == pytest.approx(shares[mixed.argmax()], abs=2e-3)
    assert table["weight"].sum() == pytest.approx(1)


def test_scores_and_posteriors_are_compared_together(posteriors, data):
    given = loo(posteriors["one"], data)
    table = compare({"scores": given, **posteriors}, data, groups=np.arange(12) // 2)
    assert table.loc["scores", "elpd_loo"] == pytest.approx(table.loc["one", "elpd_loo"])
    by_hand = loo(posteriors["one"], data, groups=np.arange(12) // 2)
    assert table.loc["one", "se"] == pytest.approx(12 * by_hand.standard_error)
    assert table.loc["one", "se"] != pytest.approx(table.loc["scores", "se"])
    assert not table.loc["one", "warning"]
    bad = given._replace(pareto_k=np.where(np.arange(12) == 3, 0.9, given.pareto_k))
    assert compare({"bad": bad, "one": given}).loc["bad", "warning"]
    # K folds know of no k and no number of parameters.
    exact = scores_of(given.log_prob)
    table = compare({"exact": exact, "one": given})
    assert np.isnan(table.loc["exact", "p_loo"])
    assert not table.loc["exact", "warning"]


def test_refusals(posteriors, data):
    scores = scores_of(np.zeros(12))
    with pytest.raises(DataError, match="There are 1 models to compare; at least 2"):
        compare({"one": posteriors["one"]}, data)
    with pytest.raises(DataError, match="'one' is a posterior; compare needs the data"):
        compare(posteriors)
    with pytest.raises(DataError, match="'a' has scores of 12 records and 'b' of 11"):
        compare({"a": scores, "b": scores_of(np.zeros(11))})
    with pytest.raises(DataError, match="'a' and 'b' weigh records differently"):
        compare({"a": scores, "b": scores_of(np.zeros(12), 1 + np.arange(12))})
    with pytest.raises(DataError, match="Scores by 3-fold have no Pareto k"):
        loo_errors(scores, scores)
