"""From a table of individuals to their answers: one row a respondent, or one row an answer.

A missing answer passes over the item, not the person; a respondent of weight 0 is left out. What is
passed over or left out is said to the logger "mop_jax", with its number.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from mop_jax.errors import DataError
from mop_jax.population.table import Table
from mop_jax.survey.answers import COLUMNS, Answers
from mop_jax.survey.codebook import Codebook, Coding, as_codebook
from mop_jax.survey.people import (
    CovariateMissing,
    People,
    cell_positions,
    filled_texts,
    read_people,
)
from mop_jax.survey.platforms import naming, survey_table
from mop_jax.survey.questions import Question

logger = logging.getLogger("mop_jax")


def answers_from_wide(
    table: Table | pd.DataFrame,
    questions: Codebook | Iterable[Question],
    covariates: Sequence[str],
    *,
    id: str | None = None,
    weight: str | None = None,
    strata: str | None = None,
    psu: str | None = None,
    covariate_missing: CovariateMissing = "refuse",
    source: str | None = None,
) -> Answers:
    """Answers from a table with one row a respondent and one column a question.

    Args:
        table: see `read_survey`; exports of Qualtrics and LimeSurvey are recognised.
        questions: a codebook, or questions whose columns are named as they are.
        covariates: columns whose combinations are the cells; numbers are categories as any text.
        id: the column of the respondents' ids; the row number (from 1) by default.
        weight: the column of survey weights; 0 leaves the respondent out.
        strata: the column of the strata.
        psu: the column of the primary sampling units.
        covariate_missing: a respondent without a covariate is refused; kept, in the category
            "(missing)"; or dropped.
        source: the file, with which refusals begin.

    Raises:
        DataError: if a column is missing, an answer is no option, a weight is missing or negative,
            an id is there twice or nobody answers a question; names row and column.

    Example:
        >>> df = pd.DataFrame({"age": ["18-29", "18-29", "65+"], "vote": ["Yes", "no", None]})
        >>> vote = Question("vote", "Did you vote?", ("Yes", "No"))
        >>> answers_from_wide(df, [vote], ["age"]).items().counts
        array([[1., 1.]])
    """
    with naming(source):
        found = survey_table(table, source or "The table")
        book = as_codebook(questions).completed(found)
        people = read_people(
            found, covariates, id, weight, strata, psu, covariate_missing, source or "The table"
        )
        option = np.array([_options(found, c.column, c) for c in book.codings]).T[people.at]
        person, question = np.indices(option.shape)
        given = (person.ravel(), question.ravel(), option.ravel())
        return _answers(book, people, *given, source or "The table")


def answers_from_long(
    table: Table | pd.DataFrame,
    questions: Codebook | Iterable[Question],
    covariates: Sequence[str],
    *,
    id: str,
    question_column: str,
    answer_column: str,
    weight: str | None = None,
    strata: str | None = None,
    psu: str | None = None,
    covariate_missing: CovariateMissing = "refuse",
    source: str | None = None,
) -> Answers:
    """Answers from a table with one row an answer.

    Rows of questions that the codebook does not name are passed over.

    Args:
        table: see `answers_from_wide`, as for what is not said here.
        questions: each with its text.
        covariates: equal in all rows of a respondent, as are weight, strata and psu.
        id: the column of the respondents' ids.
        question_column: the column of the questions' ids (or of their `column` in the codebook).
        answer_column: the column of the answers.
        weight: column.
        strata: column.
        psu: column.
        covariate_missing: see `answers_from_wide`.
        source: the file.

    Raises:
        DataError: as `answers_from_wide`, and if rows of a respondent disagree or answer a question
            twice.
    """
    where = source or "The table"
    with naming(source):
        found = survey_table(table, where)
        book = as_codebook(questions)
        refuse_without_text(book)
        ids = filled_texts(found, id, "id")
        per_person = [c for c in (*covariates, weight, strata, psu) if c is not None]
        for column in per_person:
            _refuse_disagreement(found, ids, column)
        of_row = question_positions(found, question_column, book, where)
        _refuse_second_answers(found, ids, of_row, book)
        firsts = list(pd.Series(ids).drop_duplicates().index)
        people = read_people(
            found.take(firsts), covariates, id, weight, strata, psu, covariate_missing, where
        )
        option = np.full(len(found), -1)
        for at, coding in enumerate(book.codings):
            rows = np.flatnonzero(of_row == at)
            option[rows] = _options(found.take(rows), answer_column, coding)
        place = {name: at for at, name in enumerate(people.ids)}
        person = np.array([place.get(name, -1) for name in ids], dtype=int)
        kept = (person >= 0) & (of_row >= 0)
        return _answers(book, people, person[kept], of_row[kept], option[kept], where)


def _options(table: Table, column: str, coding: Coding) -> list[int]:
    """The options of a column's answers, -1 where they are missing."""
    known: dict[str | None, int | None] = {}
    texts = table.texts(column)
    for row, text in zip(table.rows, texts, strict=True):
        if text not in known:
            known[text] = coding.option(text, f"Row {row}, column {column!r}")
    options = (known[text] for text in texts)
    return [-1 if option is None else option for option in options]


def question_positions(table: Table, column: str, book: Codebook, source: str) -> np.ndarray:
    """Which question each row of a long table is of; -1 for questions of no interest."""
    names = {coding.column: at for at, coding in enumerate(book.codings)}
    names |= {question.id: at for at, question in enumerate(book.questions)}
    texts = [(text or "").strip() for text in table.texts(column)]
    if "" in texts:
        raise DataError(
            f"Row {table.rows[texts.index('')]} has no question (column {column!r}); accepted are "
            f"{', '.join(q.id for q in book.questions)}."
        )
    others = dict.fromkeys(text for text in texts if text not in names)
    if others:
        logger.warning(
            "%s: the rows of %d questions that the codebook does not name were passed over (%s).",
            source,
            len(others),
            ", ".join(others) if len(others) < 6 else ", ".join([*others][:5]) + ", …",
        )
    return np.array([names.get(text, -1) for text in texts], dtype=int)


def refuse_without_text(book: Codebook) -> None:
    """Refuses a question whose text nobody says, where the table has no place to say it."""
    for question in book.questions:
        if not question.text.strip():
            raise DataError(f"Question {question.id} has no text; give it one in the codebook.")


def _refuse_disagreement(table: Table, ids: list[str], column: str) -> None:
    first: dict[str, tuple[str | None, int]] = {}
    for name, text, row in zip(ids, table.texts(column), table.rows, strict=True):
        known, where = first.setdefault(name, (text, row))
        if known != text:
            raise DataError(
                f"Rows {where} and {row} of respondent {name!r} say {known or ''!r} and "
                f"{text or ''!r} in column {column!r}; a respondent has one value."
            )


def _refuse_second_answers(
    table: Table, ids: list[str], of_row: np.ndarray, book: Codebook
) -> None:
    first: dict[tuple[str, int], int] = {}
    for name, question, row in zip(ids, of_row.tolist(), table.rows, strict=True):
        where = row if question < 0 else first.setdefault((name, question), row)
        if where != row:
            raise DataError(
                f"Rows {where} and {row} are both answers of respondent {name!r} to question "
                f"{book.questions[question].id}; accepted is one."
            )


def _answers(
    book: Codebook,
    people: People,
    person: np.ndarray,
    question: np.ndarray,
    option: np.ndarray,
    source: str,
) -> Answers:
    """The answers that are not missing, with weights of mean one over those who gave them."""
    answered = option >= 0
    if not answered.all():
        logger.warning(
            "%s: %d of %d answers are missing; they are passed over, the respondents are not.",
            source,
            (~answered).sum(),
            len(answered),
        )
    person, question, option = person[answered], question[answered], option[answered]
    for at, asked in enumerate(book.questions):
        if not (question == at).any():
            raise DataError(f"Question {asked.id} has no answers; leave it out of the codebook.")
    present = np.unique(person)
    if len(present) < len(people.ids):
        logger.warning(
            "%s: %d of %d respondents answered no question and were left out.",
            source,
            len(people.ids) - len(present),
            len(people.ids),
        )
    weights = people.weights / people.weights[present].mean()
    cells, cell = cell_positions([people.cells[i] for i in present], people.covariates)
    cell_of = np.full(len(people.ids), -1)
    cell_of[present] = cell
    ids = np.asarray(people.ids, dtype=object)
    columns = (ids[person], cell_of[person], question, option, weights[person])
    frame = pd.DataFrame(dict(zip(COLUMNS, columns, strict=True)))
    frame["respondent"] = frame["respondent"].astype(str)

    def of_respondents(values: list[str] | None) -> pd.Series | None:
        if values is None:
            return None
        return pd.Series([values[i] for i in present], index=[people.ids[i] for i in present])

    strata, psu = of_respondents(people.strata), of_respondents(people.psu)
    return Answers(book.questions, cells, frame, strata, psu)
