"""Shares of cells and of populations: laws against their moments, sums against plain loops."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from mop_jax.choices import ShareDraws, persona_draws, poststratify, share_draws
from mop_jax.errors import DataError
from mop_jax.inference import make_posterior
from mop_jax.models import mixture_of_choices
from mop_jax.survey import Frame, Items, Question
from tests.models.programs import draw_sites
from tests.models.surveys import survey_data

QUESTIONS = (
    Question("vote", "Did you vote?", ("Yes", "No", "Yes, by mail")),
    Question("trust", "Do you trust it?", ("a lot", "some", "little", "none"), ordered=True),
)
CELLS = pd.DataFrame(
    {"age": ["young", "old"] * 3, "sex": ["w", "w", "m", "m", "x", "x"]}, dtype=object
)
DRAWS, ITEMS = 400, 12


@pytest.fixture(scope="module")
def items() -> Items:
    """Every cell of six to both questions, cells in another order for the second."""
    cell = np.concatenate([np.arange(6), np.arange(6)[::-1]])
    return Items(
        QUESTIONS, CELLS, cell, np.repeat([0, 1], 6), np.zeros((ITEMS, 4)), np.zeros(ITEMS)
    )


@pytest.fixture(scope="module")
def frame() -> Frame:
    """Its cells in an order of its own; nobody is x and young."""
    order = [3, 0, 5, 2, 1, 4]
    return Frame(CELLS.iloc[order].reset_index(drop=True), np.array([10, 20, 5, 30, 35, 0.0]))


def draws(items: Items, seed: int = 0) -> np.ndarray:
    """Independent shares [S, N, M], none where there is no option."""
    gammas = np.random.default_rng(seed).gamma(2.0, size=(DRAWS, ITEMS, 4)) * items.mask
    return gammas / gammas.sum(-1, keepdims=True)


@pytest.mark.parametrize("concentration", [0.3, 4.0, 300.0])
def test_cells_have_the_moments_of_the_dirichlet(concentration) -> None:
    """Means by the normal law, squares by five of their own standard errors, fixed by the seed.

    Together they fail falsely less than once in a thousand seeds.
    """
    probs = np.float32([[0.5, 0.3, 0.2, 0.0], [0.9, 0.05, 0.04, 0.01]])
    number = 20_000
    shares = ShareDraws(
        np.broadcast_to(probs, (number, 2, 4)), np.full((number, 2), np.float32(concentration))
    )
    drawn = shares.cells(np.random.default_rng(0))
    assert (drawn[..., 0, 3] == 0).all()
    variance = probs * (1 - probs) / (concentration + 1)
    bound = norm.isf(0.0002 / 2 / probs.size)
    error = np.abs(drawn.mean(0) - probs)
    assert (error <= bound * np.sqrt(variance / number) + 1e-6).all()
    squares = (drawn - probs) ** 2
    spread = squares.std(0) / np.sqrt(number)
    assert (np.abs(squares.mean(0) - variance) <= 5 * spread + 1e-9).all()
    # Three standard errors are far less than the variance itself: another law would be seen.
    assert (spread[variance > 0] < 0.1 * variance[variance > 0]).all()


@pytest.mark.parametrize("concentration", [0.0, 1e-45, 1e-30, 1e-6, 1e30, np.inf])
def test_extreme_concentrations_are_shares_all_the_same(items, concentration) -> None:
    probs = draws(items).astype(np.float32)
    shares = ShareDraws(probs, np.full((DRAWS, ITEMS), np.float32(concentration)))
    drawn = shares.cells(np.random.default_rng(1))
    np.testing.assert_allclose(drawn.sum(-1), 1, atol=1e-12)
    assert (drawn >= 0).all()
    assert (drawn[:, ~items.mask] == 0).all()
    if concentration >= 1e30:
        np.testing.assert_allclose(drawn, probs, atol=1e-6)
    else:
        # All of a cell chooses one option: which one has the model's probabilities.
        assert np.isin(drawn.round(3), [0, 1]).mean() > 0.99
        assert np.abs(drawn.mean((0, 1)) - probs.mean((0, 1))).max() < 0.03


def test_a_question_may_have_more_options_than_any_of_the_fit() -> None:
    """What the options have beyond the language model is a prior draw; without any it is uniform.

    The bound is four standard errors of the mean over draws.
    """
    data = survey_data(seed=4)
    sites = draw_sites(data, mixture_of_choices, 0, option_effects=True)
    number = 400
    samples = {name: np.repeat(np.asarray(v)[None], number, 0) for name, v in sites.items()}
    posterior = make_posterior(samples, data, mixture_of_choices, {"option_effects": True})
    few = share_draws(posterior, data)
    more = 2
    choices = data.choices
    unseen = np.zeros_like(choices.question)
    unseen[:, -1] = 1
    wider = [(0, 0)] * 2 + [(0, more)]
    wide = choices._replace(
        option_log_likelihood=np.zeros_like(np.pad(choices.option_log_likelihood, wider)),
        option_offset=np.zeros_like(np.pad(choices.option_offset, wider[1:])),
        counts=np.pad(choices.counts, wider[1:]),
        question=unseen,
    )
    found = share_draws(posterior, data._replace(choices=wide)).probs
    assert found.shape[-1] == few.probs.shape[-1] + more
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)
    # Draws of one posterior draw differ in the new options alone, and the two of them are alike.
    new = np.log(found[..., -more:]) - np.log(found[..., :1])
    assert (new.std(0) > 0).all()
    difference = new[..., 1] - new[..., 0]
    error = difference.std(0) / np.sqrt(number)
    assert (np.abs(difference.mean(0)) < 4 * error).all()
    # The others stand to one another as they did.
    old = np.log(found[..., 1:-more]) - np.log(found[..., :1])
    np.testing.assert_allclose(old.std(0), 0, atol=1e-4)
    assert persona_draws(posterior, data._replace(choices=wide)).shape[0] == number


@pytest.mark.parametrize("by", [(), ("age",), ("age", "sex"), ("sex",)])
def test_poststratification_equals_a_loop(items, frame, by) -> None:
    shares = draws(items)
    table = poststratify(shares, items, frame, by, level=0.8)
    weight = {tuple(row): w for row, w in zip(frame.cells.to_numpy(), frame.shares, strict=True)}
    seen = 0
    for row in table.to_dict("records"):
        question = next(q for q in QUESTIONS if q.id == row["question"])
        option = question.options.index(row["option"])
        total, sums = 0.0, np.zeros(DRAWS)
        for n in range(len(items)):
            covariates = items.covariates_of(int(items.cell[n]))
            if items.questions[items.question[n]] is not question:
                continue
            if any(covariates[name] != row[name] for name in by):
                continue
            own = weight[covariates["age"], covariates["sex"]]
            total += own
            sums += own * shares[:, n, option]
        assert row["population"] == pytest.approx(total)
        assert row["share"] == pytest.approx((sums / total).mean())
        assert row["low"] == pytest.approx(np.quantile(sums / total, 0.1))
        assert row["high"] == pytest.approx(np.quantile(sums / total, 0.9))
        seen += 1
    groups = {(): 1, ("age",): 2, ("sex",): 3, ("age", "sex"): 5}[by]  # nobody is x and young
    assert seen == groups * (3 + 4)
    sums = table.groupby(["question", *by])["share"].sum()
    np.testing.assert_allclose(sums, 1)


def test_one_group_is_the_whole_and_its_interval_is_narrower_than_its_parts(items, frame) -> None:
    shares = draws(items)
    whole = poststratify(shares, items, frame)
    parts = poststratify(shares, items, frame, ["age", "sex"])
    assert (whole["population"] == 1).all()
    weighted = (parts["share"] * parts["population"]).groupby([parts["question"], parts["option"]])
    for row in whole.itertuples():
        assert weighted.sum()[row.question, row.option] == pytest.approx(row.share)
    width = {key: table["high"] - table["low"] for key, table in (("w", whole), ("p", parts))}
    assert width["w"].max() < width["p"].min()
    constant = pd.concat([items.cells.assign(country="NO")], axis=1)
    moved = Items(items.questions, constant, items.cell, items.question, items.counts, items.people)
    framed = Frame(frame.cells.assign(country="NO"), frame.shares)
    one = poststratify(shares, moved, framed, ["country"])
    pd.testing.assert_frame_equal(one.drop(columns="country"), whole)


def test_a_cell_without_people_needs_no_item_and_any_other_does(items, frame) -> None:
    shares = draws(items)
    empty = int(np.flatnonzero((CELLS["sex"] == "x") & (CELLS["age"] == "young"))[0])
    others = np.flatnonzero(items.cell != empty)
    left = poststratify(shares[:, others], items.take(others), frame)
    pd.testing.assert_frame_equal(left, poststratify(shares, items, frame))
    lacking = np.flatnonzero(~((items.cell == 0) & (items.question == 1)))
    with pytest.raises(DataError, match=r"trust has no item for the cell young, w"):
        poststratify(shares[:, lacking], items.take(lacking), frame)


def test_covariates_that_the_frame_lacks_are_refused(items, frame) -> None:
    with pytest.raises(DataError, match="no covariate 'region'; it has age, sex"):
        poststratify(draws(items), items, frame, ["region"])
