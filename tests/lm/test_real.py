"""Scores of the real SmolLM2 on real reviews: shared prefixes, a table made elsewhere, the grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mop_jax.lm.base import Continuation, TemperatureGrid
from mop_jax.prompts import PromptBuilder
from mop_jax.temperature import interpolate

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


def test_the_table_made_elsewhere_is_reproduced(scores, work, record_property):
    """Scores of another implementation of the same weights, prompts and end of turn."""
    error = abs(scores[:, GRID.unit_index] - work[2])
    record_property("largest difference, nats", error.max())
    assert np.ptp(work[2]) > 50
    assert error.max() < 1e-3


def test_shared_prefixes_equal_whole_prompts(smollm2, scores, work, record_property):
    whole = smollm2.log_likelihood([p.token_ids for p in work[0]], work[1])
    difference = abs(scores[:, GRID.unit_index] - whole)
    record_property("largest difference, nats", difference.max())
    assert difference.max() < 1e-3


def test_any_order_gives_the_same_scores(smollm2, scores, work):
    order = np.random.default_rng(0).permutation(len(work[0]))
    again = score(smollm2, work, GRID, order.tolist())
    assert abs(again - scores).max() < 1e-3


def test_baselines_of_the_table_are_reproduced(smollm2, builder, table):
    i = RECORDS[1]
    context = request(table["record_sentiment"][i], table["record_film"][i])
    prompts = [builder.zero_shot(context), builder.persona_only(str(table["personas"][1]), context)]
    response = builder.response(str(table["record_text"][i]))
    found = smollm2.log_likelihood([p.token_ids for p in prompts], [response] * 2)
    expected = [table["log_likelihood_zero_shot"][i], table["log_likelihood_persona_only"][i, 1]]
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_interpolation_between_temperatures(smollm2, scores, work, record_property):
    """Against exact scores halfway between the grid's points in 1/τ, where a spline is worst."""
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
    record_property("largest interpolation error by temperature, nats", error.max(0).tolist())
    # Neighbouring grid points differ by far more than the bound: the spline has work to do.
    assert abs(np.diff(scores, axis=1)).max() > 5
    assert error.max() < INTERPOLATION_BOUND


INTERPOLATION_BOUND = 0.05


def test_first_tokens_of_a_simulation_are_scored_ids(smollm2, builder, table):
    """What is generated from is exactly what is scored: same ids, same log-probabilities."""
    i, (k, j) = RECORDS[2], COMPONENTS[1]
    example = request(table["exemplar_sentiment"][j], table["exemplar_film"][j])
    prompt = builder.component(
        str(table["personas"][k]),
        (example, str(table["exemplar_text"][j])),
        request(table["record_sentiment"][i], table["record_film"][i]),
    )
    drawn = smollm2.sample_pairs(
        [prompt.prefix],
        [prompt.request],
        np.zeros((4, 2), int),
        seed=0,
        temperature=np.asarray([0.7, 1.0, 1.0, 1.3]),
        sample_ids=np.arange(4),
        end_ids=[builder.end_id],
        max_new_tokens=12,
    )
    assert len({tuple(ids) for ids in drawn.token_ids}) == 4
    for row, temperature in enumerate([0.7, 1.0, 1.0, 1.3]):
        again = smollm2.log_likelihood(
            [prompt.token_ids], [drawn.token_ids[row]], temperature=temperature
        )
        np.testing.assert_allclose(drawn.log_probs[row], again[0], atol=2e-3)
