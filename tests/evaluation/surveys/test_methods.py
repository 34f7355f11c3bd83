"""Methods without a language model: what they recover, how sure they are, what they refuse."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from numpyro import handlers
from scipy.stats import binom

from mop_jax.errors import DataError
from mop_jax.evaluation import surveys
from mop_jax.evaluation.surveys import MRP, SURVEY_METHODS, MultinomialLogistic, PooledMarginal
from mop_jax.evaluation.surveys.mrp_model import CellData, multilevel_logit, polynomial_contrasts
from mop_jax.survey import Question
from tests.evaluation.surveys.surveys import SCALE, VOTE, grid, simulated, survey

FAST_MRP = MRP(num_warmup=200, num_samples=200)
CELLS = grid(age=4, place=4, sex=2)


@pytest.fixture(scope="module")
def held_out():
    """A simulated survey, a quarter of its 32 cells held out, and MRP fitted to the others."""
    items, shares = simulated(CELLS, 300, seed=4)
    train, test = items.split_cells(0.25, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # R-hat
        fitted = FAST_MRP.fit(train, seed=1)
    return train, test, shares, fitted


def test_methods_are_registered_in_the_order_of_tables():
    assert list(SURVEY_METHODS) == ["uniform", "pooled_marginal", "logistic_regression", "mrp"]
    assert [m.name for m in SURVEY_METHODS.values() if m.can_predict_unseen_questions] == [
        "uniform"
    ]
    with pytest.raises(DataError, match="already"):
        surveys.register_method(PooledMarginal())


def test_uniform_and_pooled_marginal_by_hand():
    train = survey([[10, 0, 0, 0], [1, 2, 0, 0], [0, 30, 0, 0], [2, 1, 0, 0]], (SCALE, VOTE))
    uniform = SURVEY_METHODS["uniform"].fit(train).predict(train)
    np.testing.assert_allclose(uniform[0], [[0.25] * 4, [1 / 3, 1 / 3, 1 / 3, 0]] * 2)
    draws = PooledMarginal(num_draws=4000).fit(train, seed=2).predict(train)
    exact = [np.array([10.5, 30.5, 0.5, 0.5]) / 42, [3.5 / 7.5, 3.5 / 7.5, 0.5 / 7.5, 0]]
    np.testing.assert_allclose(draws[:, :2].mean(0), exact, atol=0.006)
    np.testing.assert_array_equal(draws[:, 0], draws[:, 2])
    # A Dirichlet of 42: the variance of a share is s (1 − s) / 43.
    assert draws[:, 0, 0].var() == pytest.approx(0.25 * 0.75 / 43, rel=0.1)


def test_weights_do_not_make_a_sample_larger():
    one = survey([[1, 3, 0, 0]], people=[4])
    scaled = survey([[100, 300, 0, 0]], people=[4])
    first, second = (PooledMarginal().fit(x, seed=0).predict(x) for x in (one, scaled))
    np.testing.assert_allclose(first, second)


@pytest.mark.parametrize("method", [PooledMarginal(), MultinomialLogistic(num_draws=2), FAST_MRP])
def test_unseen_questions_and_empty_surveys_are_refused(method):
    items, _ = simulated(grid(age=2, sex=2), 50, seed=0)
    fitted = method.fit(items)
    other = survey(items.counts, (Question("new", "New?", tuple("abcd")),), cells=items.cells)
    with pytest.raises(DataError, match=r"was not fitted to question 'new'.*it knows scale"):
        fitted.predict(other)
    with pytest.raises(DataError, match="Nobody answered any question"):
        method.fit(survey(np.zeros((2, 4))))


def test_missing_covariates_are_refused():
    items, _ = simulated(grid(age=2, sex=2), 50, seed=0)
    fitted = MultinomialLogistic(num_draws=2).fit(items)
    with pytest.raises(DataError, match="the covariate 'age', which these items lack; they have"):
        fitted.predict(survey(items.counts))
    with pytest.raises(DataError, match="names the covariate 'income'"):
        MRP(interactions=(("age", "income"),)).fit(items)
    with pytest.raises(DataError, match="compares two at least"):
        MRP(num_chains=1).fit(items)
    with pytest.raises(DataError, match="answers of one cell"):
        MultinomialLogistic().fit(items.take([0]))


# --- Logistic regression ------------------------------------------------------------------------


def test_logistic_regression_recovers_main_effects():
    items, shares = simulated(CELLS, 5000, seed=1, cell_spread=0.0)
    train, test = items.split_cells(0.25, seed=0)
    fitted = MultinomialLogistic(num_draws=20).fit(train, seed=0)
    draws = fitted.predict(test)
    assert draws.shape == (20, len(test), 4)
    np.testing.assert_allclose(draws.sum(2), 1)
    assert np.abs(draws.mean(0) - shares[test.cell]).mean() < 0.01
    assert fitted.report["scale"]["C"] in MultinomialLogistic().strengths
    np.testing.assert_array_equal(
        draws, MultinomialLogistic(num_draws=20).fit(train, seed=0).predict(test)
    )


def test_logistic_regression_shrinks_where_there_is_nothing():
    items, _ = simulated(CELLS, 20, seed=3, spread=0.0, cell_spread=0.0)
    fitted = MultinomialLogistic(num_draws=5).fit(items, seed=0)
    assert surveys.variance_ratio(fitted.predict(items), items) < 0.6


def test_options_that_nobody_chose_keep_some_probability():
    yes = Question("yes", "Well?", ("yes", "no"))
    items = survey([[5, 0], [7, 0], [9, 0]], (yes,), cells=grid(age=3))
    p = MultinomialLogistic(num_draws=3).fit(items).predict(items).mean(0)
    assert (p[:, 1] > 0).all()
    assert (p[:, 1] < 0.1).all()
    new = survey([[1, 1]], (yes,), cells=pd.DataFrame({"age": ["old"]}))
    assert np.isfinite(MultinomialLogistic(num_draws=3).fit(items).predict(new)).all()


# --- MRP ----------------------------------------------------------------------------------------


def test_contrasts_are_orthonormal_and_start_with_the_scale():
    basis = polynomial_contrasts(5)
    np.testing.assert_allclose(basis @ basis.T, np.eye(4), atol=1e-12)
    np.testing.assert_allclose(basis.sum(1), 0, atol=1e-12)
    np.testing.assert_allclose(basis[0], np.arange(-2, 3) / np.sqrt(10), atol=1e-12)


@pytest.mark.parametrize("by_contrast", [True, False])
def test_the_change_of_variables_is_exact(by_contrast):
    """The density that is sampled is the plain model's times the Jacobian, taken numerically."""
    rng = np.random.default_rng(0)
    basis = polynomial_contrasts(3)
    design = np.array([[1, 1, 0], [1, 0, 1], [1, 1, 0], [1, 0, 1]], float)
    counts = rng.multinomial(30, [0.2, 0.3, 0.5], size=4)
    data = CellData(*(jnp.asarray(x, jnp.float32) for x in (counts, design, basis)))
    term_scale = rng.uniform(0.2, 1, (1, 2 if by_contrast else 1))
    cell_scale = rng.uniform(0.2, 1, 2 if by_contrast else 1)
    start = rng.normal(size=2 * 3 + 2 * 4)
    scale = np.broadcast_to(np.stack([[2.0] * 2, *[np.broadcast_to(term_scale[0], 2)] * 2]), (3, 2))

    def run(xi):
        sites = {"term_scale": term_scale, "cell_scale": cell_scale,
                 "effect_xi": xi[:6].reshape(2, 3), "cell_xi": xi[6:].reshape(2, 4)}  # fmt: skip
        program = handlers.substitute(multilevel_logit, {k: jnp.asarray(v, jnp.float32)
                                                         for k, v in sites.items()})  # fmt: skip
        return handlers.trace(program).get_trace(
            data, term=(0, 0), by_contrast=by_contrast, prior_scale=1.0, intercept_scale=2.0
        )

    def standardised(xi):
        trace = run(xi)
        effect, logits = trace["effect"]["value"], trace["logits"]["value"]
        cell = (logits - data.design @ effect) / jnp.broadcast_to(cell_scale, 2)
        return jnp.concatenate([(effect / scale).T.ravel(), cell.T.ravel()])

    xi = jnp.asarray(start, jnp.float32)
    trace, z = run(xi), np.asarray(standardised(xi))
    jacobian = np.linalg.slogdet(np.asarray(jax.jacfwd(standardised)(xi), np.float64))[1]
    shares = np.exp(np.asarray(trace["logits"]["value"]) @ basis)
    shares /= shares.sum(1, keepdims=True)
    observed = counts / counts.sum(1, keepdims=True)
    likelihood = (counts * np.log(shares / np.where(observed > 0, observed, shares))).sum()
    expected = likelihood + 0.5 * ((start**2).sum() - (z**2).sum()) + jacobian
    factor = float(trace["answers"]["fn"].log_prob(None))
    assert factor == pytest.approx(expected, abs=0.02)


def test_mrp_has_converged_and_predicts_shares(held_out):
    _, test, _, fitted = held_out
    assert fitted.report["scale"]["r_hat"] < 1.05
    assert fitted.report["scale"]["effective_size"] > 50
    assert fitted.report["scale"]["divergences"] <= 4
    draws = fitted.predict(test)
    assert draws.shape == (400, len(test), 4)
    np.testing.assert_allclose(draws.sum(2), 1)
    np.testing.assert_array_equal(draws, fitted.predict(test))


def test_mrp_finds_the_shares_of_seen_cells(held_out):
    """Within the sampling error of 300 people, and nearer than the raw shares are."""
    train, _, shares, fitted = held_out
    p = fitted.predict(train).mean(0)
    error, raw = (np.abs(x - shares[train.cell]).mean() for x in (p, train.shares))
    assert error < raw < 0.03


def test_mrp_beats_what_knows_nothing_of_unseen_cells(held_out):
    train, test, _, fitted = held_out
    pooled = PooledMarginal().fit(train).predict(test)
    difference = surveys.paired_difference("log_score", fitted.predict(test), pooled, test)
    assert difference.low > 0


def test_intervals_of_unseen_cells_hold_their_shares():
    """First options of 12 unseen cells in each of 3 surveys, 36 in all, at 80 %.

    Were they independent, fewer than 22 would be covered once in 200, and all of them once in
    3,000; cells of one survey share σ, which makes both likelier, the seeds being fixed. The
    simulated effects have σ = 0.6 and 0.25, as the HalfNormal(1) priors allow.
    """
    cells = grid(age=4, place=3, sex=2)
    inside = []
    for seed in range(3):
        items, _ = simulated(cells, 200, seed=10 + seed)
        train, test = items.split_cells(0.5, seed=seed)
        draws = FAST_MRP.fit(train, seed=seed).predict(test)
        yes_no = Question("first", "none?", ("none", "else"))
        merged = np.stack([test.counts[:, 0], test.counts[:, 1:].sum(1)], 1)
        two = survey(merged, (yes_no,))
        pairs = np.stack([draws[..., 0], draws[..., 1:].sum(-1)], -1)
        inside.append(surveys.coverage(pairs, two, 0.8) * len(two))
    assert binom.cdf(21, 36, 0.8) < 0.005
    assert 22 <= sum(inside) < 36


def test_unseen_levels_are_drawn_from_the_prior(held_out):
    train, _, _, fitted = held_out
    new = pd.DataFrame({"age": ["age0", "age9", "age9"], "place": ["place0"] * 3,
                        "sex": ["sex0", "sex0", "sex1"]})  # fmt: skip
    draws = np.log(fitted.predict(survey(np.ones((3, 4)), cells=new)))
    contrast = draws[..., 3] - draws[..., 0]
    assert contrast[:, 1].std() > 1.3 * contrast[:, 0].std()
    # Two cells of one unseen level share its effect.
    assert np.corrcoef(contrast[:, 1], contrast[:, 2])[0, 1] > 0.5
    known = np.flatnonzero((train.cells == new.iloc[0]).all(axis=1))
    assert len(known) == 1


def test_interactions_unordered_questions_and_empty_options():
    cells = grid(age=2, sex=2)
    # Young women and old men are red: without the interaction nothing is to be seen.
    counts = np.array([[90, 10, 0], [10, 90, 0], [10, 90, 0], [90, 10, 0]])
    items = survey(counts, (VOTE,), cells=cells)
    method = MRP(interactions=(("age", "sex"),), num_warmup=150, num_samples=150)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        p = method.fit(items, seed=0).predict(items).mean(0)
    np.testing.assert_allclose(p[:, 0], counts[:, 0] / 100, atol=0.08)
    assert (p[:, 2] > 0).all()


def test_chains_that_do_not_agree_are_said():
    items, _ = simulated(grid(age=2, sex=2), 50, seed=0)
    with pytest.warns(UserWarning, match="question scale do not agree yet: R-hat is"):
        MRP(num_warmup=2, num_samples=8).fit(items, seed=0)


# --- Learning curves ----------------------------------------------------------------------------


def test_a_learning_curve_is_tidy_and_nested():
    items, _ = simulated(CELLS, 100, seed=6)
    train, test = items.split_cells(0.25, seed=0)
    seen: list[set] = []

    def spy(part, asked, seed):
        seen.append(set(part.cell))
        return np.full((len(asked), 4), 0.25)

    curve = surveys.learning_curve(
        {"pooled": PooledMarginal(), "spy": spy}, train, test, sizes=(4, 24), seeds=(0, 1),
        measures=("total_variation", "log_score"),
    )  # fmt: skip
    assert list(curve) == ["method", "num_cells", "seed", "question", "measure", "value"]
    assert len(curve) == 2 * 2 * 2 * 2
    assert [len(cells) for cells in seen] == [4, 24, 4, 24]
    assert seen[0] < seen[1]
    assert seen[0] != seen[2]
    flat = curve[(curve.method == "spy") & (curve.measure == "log_score")].value
    np.testing.assert_allclose(flat, -np.log(4))
    first = np.unique(train.cell)[[3, 9, 20, 21, 22]]
    seen.clear()
    surveys.learning_curve({"spy": spy}, train, test, sizes=(3, 6), seeds=(0, 1, 2), first=first)
    assert all(few < set(first) < more for few, more in zip(seen[::2], seen[1::2], strict=True))
    assert len({frozenset(few) for few in seen[::2]}) > 1
    with pytest.raises(DataError, match="there are 24 cells"):
        surveys.learning_curve({"spy": spy}, train, test, sizes=(25,))
    with pytest.raises(DataError, match="is in training and in test items"):
        surveys.learning_curve({"spy": spy}, items, test, sizes=(4,))
    with pytest.raises(DataError, match="needs a method"):
        surveys.learning_curve({}, train, test)
