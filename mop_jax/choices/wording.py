"""How a question is put: the texts of an item, the order of its options, and the person asked."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jinja2
import numpy as np
from jinja2.sandbox import SandboxedEnvironment

from mop_jax.errors import DataError
from mop_jax.survey.items import Items
from mop_jax.survey.questions import Question

DEFAULT_PERSON = (
    "{% for name, value in covariates.items() %}{{ name }}: {{ value }}"
    "{% if not loop.last %}; {% endif %}{% endfor %}"
)
"""Covariates by their names; a sentence of one's own reads better."""
DEFAULT_HISTORY = (
    "{{ person }} (earlier answers: {% for question, answer in answers %}“{{ question }}” "
    "{{ answer }}{% if not loop.last %}; {% endif %}{% endfor %})"
)
"""Behind whatever a person is called: in a prompt of a persona that is "you"."""

# Earlier questions and what was answered, as texts.
Known = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Wording:
    """The texts that a language model is shown.

    The question comes first and the person last: what people share is run once.

    Attributes:
        person: a Jinja template of the covariates, by their names or as `covariates`, a mapping.
        item: how question, options and person are put together; fields `question`, `options` and
            `person`.
        separator: between options.
        history: a Jinja template of `person` and `answers`, the earlier answers that are known of
            this person as (question, answer) pairs; who has none is put as without.
    """

    person: str = DEFAULT_PERSON
    item: str = "{question}\nAnswer with one of: {options}.\nThe person who answers: {person}"
    separator: str = "; "
    history: str = DEFAULT_HISTORY

    def __post_init__(self) -> None:
        """Checks the fields of an item."""
        for field in ("{question}", "{options}", "{person}"):
            if self.item.count(field) != 1:
                raise DataError(f"The text of an item must hold {field} once.")

    def describe(self, covariates: Mapping[str, str]) -> str:
        """The person with these covariates.

        Raises:
            DataError: if the template names a covariate that is not there.
        """
        fields = {**covariates, "covariates": dict(covariates)}
        known = f"covariates are {', '.join(covariates)}"
        return _rendered(self.person, fields, "of the person", known)

    def knowing(self, person: str, earlier: Known) -> str:
        """The person with what is known to have been answered before.

        Raises:
            DataError: if the template names something else than `person` and `answers`.
        """
        if not earlier:
            return person
        fields = {"person": person, "answers": list(earlier)}
        return _rendered(self.history, fields, "of earlier answers", "fields are person, answers")

    def context(self, question: Question, person: str, earlier: Known = ()) -> str:
        """What the encoder reads of an item: its options say nothing of who answers what."""
        return f"{question.text} {self.knowing(person, earlier)}"

    def contexts(self, items: Items) -> list[str]:
        """`context` of every item."""
        people = {i: self.describe(items.covariates_of(i)) for i in np.unique(items.cell).tolist()}
        return [
            self.context(items.questions[q], people[i], items.earlier(n))
            for n, (i, q) in enumerate(
                zip(items.cell.tolist(), items.question.tolist(), strict=True)
            )
        ]

    def ask(
        self,
        question: Question,
        person: str,
        order: Sequence[int] | None = None,
        earlier: Known = (),
    ) -> str:
        """The text of an item, its options in an order, that of the codebook by default."""
        person = self.knowing(person, earlier)
        order = range(question.num_options) if order is None else order
        options = self.separator.join(question.options[m] for m in order)
        fields = {"{question}": question.text, "{options}": options, "{person}": person}
        text = self.item
        places = sorted(fields, key=text.index)
        parts = []
        for field in places:  # one after another: a text may hold what looks like a field
            before, _, text = text.partition(field)
            parts += [before, fields[field]]
        return "".join([*parts, text])


@functools.cache
def _compiled(template: str) -> jinja2.Template:
    environment = SandboxedEnvironment(undefined=jinja2.StrictUndefined, autoescape=False)
    return environment.from_string(template)


def _rendered(template: str, fields: Mapping[str, object], what: str, known: str) -> str:
    # Fields are values: whatever they hold is never taken for a template.
    try:
        return _compiled(template).render(fields).strip()
    except jinja2.TemplateError as error:
        raise DataError(
            f"The template {what} could not be rendered: {error}; the {known}."
        ) from error


def option_orders(question: Question, num_orders: int, seed: int) -> list[tuple[int, ...]]:
    """Orders in which a question's options are shown.

    All permutations where there are no more than `num_orders`, or three options at most; else
    `num_orders` different ones at random. Each random one comes with its reverse, as far as the
    number goes, so that no option stands first more often than its opposite.

    Args:
        question: its options; those of an order are indices into them.
        num_orders: R, at least 1.
        seed: of the choice.
    """
    if num_orders < 1:
        raise DataError(f"num_orders is {num_orders}; at least 1 is needed.")
    number = question.num_options
    if number <= 3 or math.factorial(number) <= num_orders:
        return list(itertools.permutations(range(number)))
    rng = np.random.default_rng([seed, 21, number])
    found: dict[tuple[int, ...], None] = {}
    while len(found) < num_orders:
        order = tuple(int(m) for m in rng.permutation(number))
        found.setdefault(order)
        if len(found) < num_orders:
            found.setdefault(order[::-1])
    return list(found)
