"""Scores of the real SmolLM2 on real reviews: shared prefixes, a table made elsewhere, the grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mop_jax.distributions.temperature import interpolate
from mop_jax.lm.base import Continuation, TemperatureGrid
from mop_jax.lm.scoring import Scorer
from mop_jax.prompts import PromptBuilder

TABLE = Path(__file__).parents[1] / "data" / "rt_table.npz"
RECORDS = [0, 17, 43, 66, 89, 104, 131, 159]
COMPONENTS = [(0, 0), (2, 7), (3, 11)]
GRID = TemperatureGrid()


@pytest.fixture(scope="module")
def table():
    with np.load(TABLE) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def builder(smollm2):
    return PromptBuilder(smollm2.tokenizer)


def request(sentiment, film):
    return f"Write a {sentiment} review of the movie {film}."


@pytest.fixture(scope="module")
def work(builder, table):
    """Prompts and responses of the chosen records under the chosen components."""
    prompts, responses, expected = [], [], []
    for i in RECORDS:
        context = request(table["record_sentiment"][i], table["record_film"][i])
        for k, j in COMPONENTS:
            example = request(table["exemplar_sentiment"][j], table["exemplar_film"][j])
            exemplar = (example, str(table["exemplar_text"][j]))
            prompts.append(builder.component(str(table["personas"][k]), exemplar, context))
            responses.append(builder.response(str(table["record_text"][i])))
            expected.append(table["log_likelihood"][i, k, j])
    return prompts, responses, np.asarray(expected)


def score(lm, work, grid, order):
    """Prefix-shared scores [n, G] with prefixes and pairs in another order."""
    prompts, responses = [work[0][i] for i in order], [work[1][i] for i in order]
    prefixes = list(dict.fromkeys(prompt.prefix for prompt in prompts))
    tails = [Continuation(p.request, r) for p, r in zip(prompts, responses)]
    pairs = np.asarray([(prefixes.index(p.prefix), i) for i, p in enumerate(prompts)])
    found = np.full((len(order), len(grid.multiples)), np.nan)

    def store(indices, scores):
        found[np.asarray(order)[indices]] = scores

    lm.score_pairs(prefixes, tails, pairs, grid=grid, on_scores=store)
    return found


@pytest.fixture(scope="module")
def scores(smollm2, work):
    return score(smollm2, work, GRID, range(len(work[0])))


def test_the_table_made_elsewhere_is_reproduced(scores, work):
    """Scores of another implementation of the same weights, prompts and end of turn."""
    assert np.ptp(work[2]) > 50
    assert abs(scores[:, GRID.unit_index] - work[2]).max() < 1e-3  # measured: 8e-5


def test_shared_prefixes_equal_whole_prompts(smollm2, scores, work):
    some = range(0, len(work[0]), 2)
    whole = smollm2.log_likelihood([work[0][i].token_ids for i in some], [work[1][i] for i in some])
    assert abs(scores[some, GRID.unit_index] - whole).max() < 1e-3  # measured: 7e-5


def test_any_order_gives_the_same_scores(smollm2, scores, work):
    order = np.random.default_rng(0).permutation(len(work[0]))
    again = score(smollm2, work, GRID, order.tolist())
    assert abs(again - scores).max() < 1e-3


def test_the_persona_baseline_of_the_table_is_reproduced(smollm2, builder, table):
    # (The table's zero-shot column was scored under a system turn of its own.)
    i = RECORDS[1]
    context = request(table["record_sentiment"][i], table["record_film"][i])
    prompt = builder.persona_only(str(table["personas"][1]), context)
    response = builder.response(str(table["record_text"][i]))
    found = smollm2.log_likelihood([prompt.token_ids], [response])
    np.testing.assert_allclose(found, table["log_likelihood_persona_only"][i, 1], atol=1e-3)


def test_interpolation_between_temperatures(smollm2, scores, work):
    """Against exact scores halfway between the grid's points in 1/τ, where a spline is worst.

    Measured on these 24 responses: 3e-3 nats up to τ = 1.07, 0.013 at 1.23, 0.044 at 1.45, where
    the grid is coarsest in log τ.
    """
    between = TemperatureGrid(0.0625, tuple(range(25, 9, -2)))
    assert not set(between.temperatures) & set(GRID.temperatures)
    exact = score(smollm2, work, between, range(len(work[0])))
    found = np.stack(
        [
            interpolate(scores.astype(np.float32), np.float32(t), GRID.temperatures)
            for t in between.temperatures
        ],
        axis=1,
    )
    error = abs(found - exact)
    # Neighbouring grid points differ by far more than the bound: the spline has work to do.
    assert abs(np.diff(scores, axis=1)).max() > 5
    assert error[:, between.temperatures < 1.1].max() < 0.01
    assert error.max() < 0.1


def test_what_is_generated_is_what_is_scored(smollm2, builder, table):
    """Sampled and scored log-probabilities of the same ids agree at each temperature."""
    i, (k, j) = RECORDS[2], COMPONENTS[1]
    example = request(table["exemplar_sentiment"][j], table["exemplar_film"][j])
    prompt = builder.component(
        str(table["personas"][k]),
        (example, str(table["exemplar_text"][j])),
        request(table["record_sentiment"][i], table["record_film"][i]),
    )
    grid = TemperatureGrid(0.25, (5, 4, 3))
    drawn = smollm2.sample_pairs(
        [prompt.prefix],
        [prompt.request],
        np.zeros((4, 2), int),
        seed=0,
        temperature=grid.temperatures[[0, 1, 1, 2]],
        sample_ids=np.arange(4),
        end_ids=[builder.end_id],
        max_new_tokens=12,
    )
    assert len({tuple(ids) for ids in drawn.token_ids}) == 4
    again = np.zeros((4, 3))

    def store(indices, scores):
        again[indices] = scores

    tails = [Continuation(prompt.request, tuple(ids)) for ids in drawn.token_ids]
    pairs = np.stack([np.zeros(4, int), np.arange(4)], axis=1)
    smollm2.score_pairs([prompt.prefix], tails, pairs, grid=grid, on_scores=store)
    np.testing.assert_allclose(drawn.log_probs, again[range(4), [0, 1, 1, 2]], atol=1e-3)


def test_padding_is_under_eight_percent_on_real_reviews(smollm2, builder, table):
    """As in the demo: each review after 24 components of its own; prefixes are counted too."""
    rng = np.random.default_rng(0)
    num_personas, num_exemplars = len(table["personas"]), len(table["exemplar_text"])
    prompts, responses = [], []
    for i, text in enumerate(table["record_text"]):
        context = request(table["record_sentiment"][i], table["record_film"][i])
        response = builder.response(str(text))
        for c in rng.choice(num_personas * num_exemplars, 24, replace=False):
            k, j = divmod(int(c), num_exemplars)
            example = request(table["exemplar_sentiment"][j], table["exemplar_film"][j])
            exemplar = (example, str(table["exemplar_text"][j]))
            prompts.append(builder.component(str(table["personas"][k]), exemplar, context))
            responses.append(response)
    prefixes = list(dict.fromkeys(prompt.prefix for prompt in prompts))
    places = {prefix: i for i, prefix in enumerate(prefixes)}
    tails = [Continuation(p.request, r) for p, r in zip(prompts, responses)]
    pairs = np.asarray([(places[p.prefix], i) for i, p in enumerate(prompts)])
    scorer = Scorer(smollm2.decoder, GRID)
    assert 0 < scorer.padding_share(prefixes, tails, pairs) < 0.08
    few = scorer.padding_share(prefixes, tails, pairs[: 24 * 10])
    # Work of a few chunks is given coarse shapes, which the next job finds compiled.
    assert 0 < few < 0.16
