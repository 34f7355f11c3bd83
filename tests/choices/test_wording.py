"""Texts of items, and the orders of options."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mop_jax.choices import Wording, option_orders
from mop_jax.errors import DataError
from mop_jax.survey import Question

VOTE = Question("vote", "Did {person} vote?", ("Yes", "No"))


def test_an_item_holds_its_texts_whatever_they_hold() -> None:
    wording = Wording("{{ age }}, {{ sex }}", "{question} | {options} | {person}", "/")
    person = wording.describe({"age": "30+", "sex": "{options}"})
    assert person == "30+, {options}"
    assert wording.ask(VOTE, person) == "Did {person} vote? | Yes/No | 30+, {options}"
    assert wording.ask(VOTE, person, (1, 0)) == "Did {person} vote? | No/Yes | 30+, {options}"


def test_covariates_are_listed_by_default() -> None:
    assert Wording().describe({"age": "30+", "sex": "w"}) == "age: 30+; sex: w"


def test_templates_that_cannot_be_rendered_are_refused() -> None:
    with pytest.raises(DataError, match=r"'agee' is undefined.*age, sex"):
        Wording("{{ agee }}").describe({"age": "30+", "sex": "w"})
    with pytest.raises(DataError, match=r"must hold \{person\} once"):
        Wording(item="{question} {options}")


def test_earlier_answers_are_said_whatever_they_hold() -> None:
    wording = Wording("{{ age }}", "{question} | {options} | {person}", "/")
    earlier = [("{options}?", "{{ age }}"), ("And {person}?", "{% if %}")]
    person = wording.describe({"age": "30+"})
    known = "30+ (earlier answers: “{options}?” {{ age }}; “And {person}?” {% if %})"
    assert wording.knowing(person, earlier) == known
    assert wording.ask(VOTE, person, (1, 0), earlier) == f"Did {{person}} vote? | No/Yes | {known}"
    assert wording.context(VOTE, person, earlier) == f"Did {{person}} vote? {known}"
    # Who has answered nothing is put as without.
    assert wording.ask(VOTE, person, earlier=[]) == wording.ask(VOTE, person)


def test_earlier_answers_in_words_of_ones_own() -> None:
    template = "{{ person }}{% for q, a in answers %}; {{ q }} {{ a }}{% endfor %}"
    wording = Wording(history=template)
    assert wording.knowing("you", [("Old?", "Yes"), ("Ill?", "No")]) == "you; Old? Yes; Ill? No"
    with pytest.raises(DataError, match=r"'persons' is undefined; the fields are person, answers"):
        Wording(history="{{ persons }}").knowing("you", [("Old?", "Yes")])


@given(options=st.integers(2, 7), number=st.integers(1, 9), seed=st.integers(0, 99))
def test_orders_are_different_permutations(options: int, number: int, seed: int) -> None:
    question = Question("q", "?", tuple(f"option {m}" for m in range(options)))
    orders = option_orders(question, number, seed)
    assert len(set(orders)) == len(orders)
    assert all(sorted(order) == list(range(options)) for order in orders)
    everything = list(itertools.permutations(range(options)))
    if options <= 3:
        assert orders == everything
    else:
        assert len(orders) == min(number, len(everything))
    assert orders == option_orders(question, number, seed)


def test_random_orders_come_with_their_reverse() -> None:
    question = Question("q", "?", tuple("abcdef"))
    orders = option_orders(question, 8, 0)
    assert all(order[::-1] in orders for order in orders)


def test_no_order_is_refused() -> None:
    with pytest.raises(DataError, match="at least 1"):
        option_orders(VOTE, 0, 0)
