"""Components of closed questions by hand: the same as their parts, and what people were shown."""

from dataclasses import replace

import numpy as np
import pytest

from mop_jax.choices import (
    ChoiceComponents,
    OptionTable,
    Wording,
    choose_components,
    draw_exemplars,
    new_items,
    score_options,
    without_shown,
)
from mop_jax.errors import DataError
from mop_jax.survey import Question

PERSONAS = ["You are calm.", "You are loud."]


class Encoder:
    """A text's letters, counted: what is embedded can be told."""

    def encode(self, texts) -> np.ndarray:
        alphabet = "abcdefghijklmnopqrstuvwxyz :?"
        return np.asarray([[text.lower().count(c) for c in alphabet] for text in texts], float)


@pytest.fixture(scope="module")
def components(items) -> ChoiceComponents:
    pool = draw_exemplars(items, 4, Wording(), seed=2)
    return ChoiceComponents.assemble(items, PERSONAS, pool, Encoder(), groups=["age", "age:sex"])


def test_what_is_embedded(items, components) -> None:
    design, pool = components.design, components.exemplars
    people = [f"age: {row.age}; sex: {row.sex}" for row in items.cells.itertuples()]
    shown = [
        f"{items.questions[row.question].text} {people[row.cell]}" for row in pool.itertuples()
    ]
    encode = Encoder().encode
    np.testing.assert_array_equal(design.persona_embeddings, encode(PERSONAS))
    np.testing.assert_array_equal(design.exemplar_context_embeddings, encode(shown))
    answered = [f"{text} {answer}" for text, answer in zip(shown, pool["response"], strict=True)]
    np.testing.assert_array_equal(design.exemplar_embeddings, encode(answered))
    assert [grouping.name for grouping in design.groupings] == ["age", "age:sex"]
    with pytest.raises(DataError, match="'income'"):
        ChoiceComponents.assemble(items, PERSONAS, pool, Encoder(), groups=["income"])


@pytest.mark.parametrize("kept", ["in memory", "in a store", "in a folder"])
def test_scores_are_those_of_the_parts(
    kept, items, components, lm, prompts, store, tmp_path
) -> None:
    some = items.take([1, 6])
    chosen = choose_components(
        components.design.leave_out(some), 2, 2, keys=["vote", "trust"], seed=5
    )
    pool = components.exemplars
    expected = score_options(
        some, PERSONAS, list(zip(pool["context"], pool["response"], strict=True)), prompts, store,
        lm, num_orders=1, seed=5, components=chosen,
    )  # fmt: skip
    where = {"in memory": None, "in a store": store, "in a folder": str(tmp_path / "scores")}[kept]
    table = components.score(
        some, lm, num_components=2, num_orders=1, seed=5, prompts=prompts, store=where
    )
    for name, values in vars(expected).items():
        np.testing.assert_allclose(getattr(table, name), values, atol=1e-4, err_msg=name)


def test_all_components_are_scored_by_default_and_become_data(items, components, lm, prompts):
    some = items.take([0, 5])
    table = components.score(some, lm, num_orders=1, prompts=prompts)
    used = table.log_weight > -np.inf
    # Six orders of three options, one of four; two personas with four exemplars each.
    assert used.sum(1).tolist() == [2 * 4 * 6, 2 * 4]
    data = components.data(some, table, Encoder())
    contexts = ["Did you vote? age: 18-29; sex: w", "Do you trust it? age: 30+; sex: w"]
    np.testing.assert_array_equal(data.context_embeddings, Encoder().encode(contexts))
    np.testing.assert_array_equal(data.choices.counts, some.counts)
    assert set(data.choices.groups) == {"age", "age:sex"}


def test_a_question_of_its_own_is_unknown(items, components, lm, prompts) -> None:
    tax = Question("tax", "Should taxes rise?", ("Yes", "No"))
    asked = new_items(items.cells, (*items.questions, tax), [2])
    table = components.score(asked, lm, num_components=2, num_orders=1, prompts=prompts)
    data = components.data(asked, table, Encoder())
    assert (data.choices.question.argmax(1) == 2).all()  # the column of unseen questions
    assert (data.choices.counts == 0).all()


def test_preferences_are_of_questions_whoever_answers(items, components) -> None:
    """Against one number after the other.

    Neither an answer to the question that is shown counts, nor one of the own cell, which is not;
    cells count alike, though one of them is there three times, with histories of its own.
    """
    pool = components.exemplars["question"].to_numpy()
    assert set(pool) == {0, 1}
    some = items.take([0, 0, 0, 1, 2, 3, 4, 6])
    pairs = np.broadcast_to(np.stack(np.divmod(np.arange(8), 4), 1), (8, 8, 2))
    rng = np.random.default_rng(6)
    table = OptionTable(
        np.where(some.mask[:, None], rng.normal(-9, 3, (8, 8, 4)), 0.0),
        *(pairs[..., part].astype(np.int32) for part in (0, 1)),
        np.zeros((8, 8), np.int32),
        rng.normal(size=(8, 8)),
        some.mask,
    )
    hidden = components.design.leave_out(some)
    found = components.preferences(some, table)
    alone = components.preferences(some.take([6, 7]), table.take([6, 7]))
    expected = np.zeros((2, 4))
    for q, size in enumerate([3, 4]):
        by_cell: dict[int, list] = {}
        for n in np.flatnonzero(some.question == q):
            total, weights = np.zeros(size), 0.0
            for c, (_, j) in enumerate(pairs[n]):
                if pool[j] != q and not hidden[n, j]:
                    each = table.log_likelihood[n, c, :size]
                    weight = np.exp(table.log_weight[n, c])
                    total += weight * (each - np.log(np.exp(each).sum()))
                    weights += weight
            by_cell.setdefault(int(some.cell[n]), []).append(total / weights)
        mean = np.mean([np.mean(values, 0) for values in by_cell.values()], 0)
        expected[q, :size] = mean - mean.mean()
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(alone[1], expected[1], atol=1e-12)
    assert (alone[0] == 0).all()  # nobody was asked


def test_where_every_exemplar_answers_the_question_all_count(items, components) -> None:
    one = replace(components, exemplars=components.exemplars.assign(question=1))
    pairs = np.broadcast_to(np.stack(np.divmod(np.arange(8), 4), 1), (8, 8, 2))
    table = OptionTable(
        np.random.default_rng(1).normal(size=(8, 8, 4)) * items.mask[:, None],
        *(pairs[..., part].astype(np.int32) for part in (0, 1)),
        np.zeros((8, 8), np.int32),
        np.where(
            np.take_along_axis(components.design.leave_out(items), pairs[..., 1], 1), -np.inf, 0
        ),
        items.mask,
    )
    weights = np.exp(table.log_weight)
    mean = table.mean_log_probs(weights)[items.question == 1].mean(0)
    found = one.preferences(items, table)
    np.testing.assert_allclose(found[1], mean - mean.mean(), atol=1e-12)
    assert abs(found[0]).max() > 0


def test_nobody_is_shown_and_counted(items) -> None:
    pool = draw_exemplars(items, 6, Wording(), seed=1)
    left = without_shown(items, pool)
    taken = items.counts - left.counts
    assert taken.sum() == 6
    for row in pool.itertuples():
        item = np.flatnonzero((items.cell == row.cell) & (items.question == row.question))[0]
        assert taken[item, row.option] == 1
        assert left.people[item] == items.people[item] - 1
    with pytest.raises(DataError, match=r"Nobody of cell .* give the items .* drawn from, once"):
        without_shown(replace(items, counts=np.zeros_like(items.counts)), pool)
    weighted = items.take([7])  # of weighted counts no more is taken than there is
    half = without_shown(
        type(items)(
            items.questions, items.cells, weighted.cell, weighted.question,
            np.array([[0.5, 0, 0, 0]]), np.array([1.0]),
        ),
        pool.iloc[:1].assign(cell=3, question=1, option=0),
    )  # fmt: skip
    assert half.counts.sum() == 0
    assert half.people.sum() == 0
