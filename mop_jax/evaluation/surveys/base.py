"""What a method without a language model is: fit to answers counted by cell, predict other cells.

A method is one class and one `register_method`. Its predictions are draws of shares, from a
posterior or from a bootstrap, so that intervals of all methods are judged alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from mop_jax.errors import DataError
from mop_jax.registry import check_name
from mop_jax.survey import Items, Question


class Fitted(Protocol):
    """A fitted method."""

    @property
    def report(self) -> Mapping[str, Any]:
        """What came of the fit, as JSON values."""
        ...

    def predict(self, items: Items) -> np.ndarray:
        """Draws of the items' shares, [S, N, M]; the items' counts are not looked at.

        Raises:
            DataError: if the method says nothing of a question, or a covariate is missing.
        """
        ...


class SurveyMethod(Protocol):
    """One way to predict shares of cells."""

    @property
    def name(self) -> str:
        """In files: letters, digits and underscores."""
        ...

    @property
    def title(self) -> str:
        """In tables and figures."""
        ...

    @property
    def reference(self) -> str:
        """Where it was proposed, author and year."""
        ...

    @property
    def can_predict_unseen_questions(self) -> bool:
        """Whether it says anything of a question that it was not fitted to."""
        ...

    def fit(self, items: Items, *, seed: int = 0) -> Fitted:
        """Learns from counted answers; the seed decides everything random, predictions too.

        Raises:
            DataError: if nobody answered.
        """
        ...


SURVEY_METHODS: dict[str, SurveyMethod] = {}
"""Every method by name, in the order of tables and figures."""


def register_method(method: SurveyMethod) -> None:
    """Adds a method to those that surveys are judged beside.

    Raises:
        DataError: if its name is taken or no plain word.
    """
    check_name("survey method", method.name, SURVEY_METHODS)
    SURVEY_METHODS[method.name] = method


def answered_questions(items: Items) -> dict[Question, np.ndarray]:
    """Question → positions of its items that have answers, for those that have any.

    Raises:
        DataError: if nobody answered anything.
    """
    answered = (items.counts.sum(1) > 0) & (items.people > 0)
    found = {
        question: np.flatnonzero((items.question == q) & answered)
        for q, question in enumerate(items.questions)
    }
    found = {question: index for question, index in found.items() if len(index)}
    if not found:
        raise DataError("Nobody answered any question; there is nothing to fit.")
    return found


def asked_questions(
    items: Items, known: Mapping[Question, Any], title: str
) -> dict[Question, np.ndarray]:
    """Question → positions of its items, for those that there are items of.

    Raises:
        DataError: if a question was not among those of the fit.
    """
    asked = {}
    for q in np.unique(items.question):
        question = items.questions[q]
        if question not in known:
            raise DataError(
                f"{title} was not fitted to question {question.id!r} and says nothing of it; "
                f"it knows {', '.join(k.id for k in known)}."
            )
        asked[question] = np.flatnonzero(items.question == q)
    return asked


def check_covariates(items: Items, names: list[str], title: str) -> None:
    """Refuses items without the covariates of the fit.

    Raises:
        DataError: if one is missing.
    """
    missing = [name for name in names if name not in items.covariates]
    if missing:
        raise DataError(
            f"{title} was fitted to the covariate {missing[0]!r}, which these items lack; they "
            f"have {', '.join(items.covariates)}."
        )


def covariate_rows(items: Items, index: np.ndarray, names: list[str]) -> list[tuple[str, ...]]:
    """The covariates' levels of the items at `index`, one tuple of texts each."""
    table = items.cells[names].astype(str).to_numpy(object)
    return [tuple(row) for row in table[items.cell[index]]]
