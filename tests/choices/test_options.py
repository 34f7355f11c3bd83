"""The table of options against whole prompts scored one by one, and what is read from it."""

from dataclasses import replace

import numpy as np
import pytest

from mop_jax.choices import Wording, option_orders, score_options, score_prompts
from mop_jax.choices.options import OptionTable, share_beginnings
from mop_jax.errors import DataError
from mop_jax.likelihoods.store import LikelihoodStore
from mop_jax.lm.base import TemperatureGrid
from mop_jax.prompts import Prompt
from mop_jax.survey import Items, Question

PERSONAS = ["You are calm.", "You are loud."]
EXEMPLARS = [("Did you vote?\nYes; No", "Yes"), None]


def naive(lm, prompt: Prompt, response: tuple[int, ...]) -> float:
    """Log-probability of a response by one forward pass over the whole sequence."""
    ids = np.asarray([[*prompt.token_ids, *response]])
    logits = np.asarray(lm.logits(ids, np.asarray([ids.shape[1]])), np.float64)[0]
    log_probs = logits - np.log(
        np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True)
    )
    log_probs -= logits.max(-1, keepdims=True)
    first = len(prompt.token_ids)
    return sum(log_probs[first + t - 1, token] for t, token in enumerate(response))


def test_table_equals_whole_prompts(items, lm, prompts, store) -> None:
    some = items.take([0, 3, 5])
    table = score_options(some, PERSONAS, EXEMPLARS, prompts, store, lm, num_orders=2, seed=3)
    assert table.log_likelihood.shape == (3, 24, 4)  # all six orders of three options, two of four
    wording = Wording()
    for n in range(3):
        question = items.questions[some.question[n]]
        orders = option_orders(question, 2, 3)
        used = table.log_weight[n] > -np.inf
        assert used.sum() == 4 * len(orders)
        np.testing.assert_allclose(table.log_weight[n, used], -np.log(len(orders)))
        for c in np.flatnonzero(used)[::5]:
            k, j, r = (
                a[n, c] for a in (table.persona_index, table.exemplar_index, table.order_index)
            )
            person = wording.describe(items.covariates_of(some.cell[n]))
            text = wording.ask(question, person, orders[r])
            prompt = prompts.component(PERSONAS[k], EXEMPLARS[j], text)
            expected = [naive(lm, prompt, prompts.response(o)) for o in question.options]
            found = table.log_likelihood[n, c, : question.num_options]
            np.testing.assert_allclose(found, expected, atol=2e-4)
    assert (table.log_mass[table.log_weight > -np.inf] <= 1e-6).all()
    sums = np.exp(table.log_likelihood[0, 0, :3]).sum()
    assert table.log_mass[0, 0] == pytest.approx(np.log(sums))


def test_earlier_answers_are_in_prompts_and_others_are_not(items, lm, prompts, store) -> None:
    """The person's earlier answers alone, whatever builds the prompt."""
    some = replace(items.take([4, 4, 5]), history=((), ((0, 2),), ()))
    seen: list[str] = []

    def build(ask, person, question):
        seen.append(ask(person))
        return prompts.zero_shot(seen[-1])

    table = score_prompts(some, build, prompts, store, lm, num_orders=1)
    end = "The person who answers: age: 18-29; sex: w"
    known = f"{end} (earlier answers: “Did you vote?” Yes, by mail)"
    assert [text.splitlines()[-1] for text in seen[:2]] == [end, known]
    assert "earlier" not in seen[2]
    assert (table.log_likelihood[0] != table.log_likelihood[1]).all()
    prompt = prompts.zero_shot(seen[1])
    expected = [naive(lm, prompt, prompts.response(o)) for o in items.questions[1].options]
    np.testing.assert_allclose(table.log_likelihood[1, 0], expected, atol=2e-4)


def test_scores_that_are_stored_are_not_asked_for_again(items, lm, prompts, store) -> None:
    some = items.take([0])

    def build(ask, person, question):
        return prompts.zero_shot(ask(person))

    first = score_prompts(some, build, prompts, store, lm)

    class Nothing:
        context_window = 1_024

        def score_pairs(self, *args, **kwargs):
            raise AssertionError("nothing is left to score")

    again = score_prompts(some, build, prompts, store, Nothing())
    np.testing.assert_array_equal(first.log_likelihood, again.log_likelihood)
    assert first.probs().sum(-1) == pytest.approx(1)


def test_shared_beginnings_leave_prompts_as_they_were() -> None:
    prompts = [
        Prompt(((1, 2),), (5, 6, 7, 8)),
        Prompt(((1, 2),), (5, 6, 9, 8)),
        Prompt(((1, 2),), (5, 6)),
        Prompt(((1, 3),), (5,)),
    ]
    shared = share_beginnings(prompts, [(0,), (0,), (0,), (1,)])
    assert [p.token_ids for p in shared] == [p.token_ids for p in prompts]
    assert shared[0].prefix == ((1, 2), (5,), (6, 7))
    assert shared[2] == Prompt(((1, 2), (5,)), (6,))
    assert shared[3] == Prompt(((1, 3),), (5,))
    assert all(len(p.request) == 1 for p in shared)


def test_order_effect_is_known_where_answers_follow_the_order() -> None:
    # A model that takes the first option shown, whichever it is: two orders of two options.
    sure = np.log([1 - 1e-12, 1e-12])
    table = OptionTable(
        np.asarray([[sure, sure[::-1]]]),
        np.zeros((1, 2), int),
        np.zeros((1, 2), int),
        np.asarray([[0, 1]]),
        np.full((1, 2), -np.log(2)),
        np.ones((1, 2), bool),
    )
    single, averaged = table.order_effect()
    assert single == pytest.approx(0.5 * np.sqrt(2), abs=1e-6)
    assert averaged == pytest.approx(single / np.sqrt(2))


def test_shares_average_candidates_by_their_weights() -> None:
    probs = np.asarray([[[0.7, 0.3, 0], [0.1, 0.9, 0], [0.5, 0.5, 0]], [[0.2, 0.3, 0.5]] * 3])
    weights = np.asarray([[0.25, 0.5, 0], [1 / 3, 1 / 3, 1 / 3]])
    mask = probs[:, 0] > 0
    with np.errstate(divide="ignore"):
        log_weight = np.log(weights)
    index = np.zeros((2, 3), int)
    # Half of the probability went to texts that are no option.
    scores = np.log(np.where(mask[:, None], probs, 1) / 2)
    table = OptionTable(scores, index, index, index, log_weight, mask)
    np.testing.assert_allclose(table.shares(), [[0.3, 0.7, 0], [0.2, 0.3, 0.5]])


def test_candidates_that_show_exemplars_that_are_unknown_have_no_weight() -> None:
    """Shares are those of a table that never had them."""
    rng = np.random.default_rng(2)
    exemplars = rng.integers(3, size=(4, 6))
    exemplars[:, 0] = 1
    exemplars[:, 1] = 2
    whole = OptionTable(
        rng.normal(size=(4, 6, 3)), np.zeros((4, 6), int), exemplars, np.zeros((4, 6), int),
        rng.normal(size=(4, 6)), np.ones((4, 3), bool),
    )  # fmt: skip
    found = whole.showing(np.asarray([False, True, True]))
    for n in range(4):
        kept = exemplars[n] != 0
        weights = np.exp(whole.log_weight[n, kept])
        expected = weights / weights.sum() @ whole.probs()[n, kept]
        np.testing.assert_allclose(found.shares()[n], expected)
    only = replace(whole, exemplar_index=np.where(np.arange(4)[:, None] == 2, 0, exemplars))
    with pytest.raises(DataError, match="Item 2 has no candidate with one of the 2 exemplars"):
        only.showing(np.asarray([False, True, True]))


def test_refusals(items, lm, prompts, store, tmp_path) -> None:
    other = LikelihoodStore(tmp_path / "grid", lm.fingerprint, TemperatureGrid())
    with other, pytest.raises(DataError, match="τ = 1"):
        score_options(items, PERSONAS, EXEMPLARS, prompts, other, lm)
    long = items.cells.assign(age="x" * 2_000)
    far = Items(items.questions, long, items.cell, items.question, items.counts, items.people)
    with pytest.raises(DataError, match=r"Record vote of x+.*context window"):
        score_options(far, PERSONAS, EXEMPLARS, prompts, store, lm)


def test_an_option_may_be_the_beginning_of_another(lm, prompts, store, items) -> None:
    """Its end tells it apart: the probabilities of all texts sum to one at most."""
    question = Question("q", "?", ("a lot", "a lot more"))
    counts = np.zeros((1, 2))
    one = Items((question,), items.cells, np.array([0]), np.array([0]), counts, counts[:, 0])
    table = score_options(one, PERSONAS[:1], [None], prompts, store, lm)
    assert (table.log_mass <= 0).all()
    assert (
        prompts.response("a lot")
        != prompts.response("a lot more")[: len(prompts.response("a lot"))]
    )
