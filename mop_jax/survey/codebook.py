"""The codebook: which questions a table holds, and how their answers are written there.

    missing: [Refused, -9]
    questions:
      - id: vote
        text: Did you vote?
        options: ["Yes", "No"]
      - id: ideology
        column: V201
        text: Where would you place yourself?
        recode: {1: Liberal, 2: Moderate, 3: Conservative}
        ordered: true

**The rule for missing answers.** A blank cell is no answer. An answer among `missing` (of the
codebook or of the question) is none either, and is left out, unless it is listed among the
question's options: then it is an option as any other.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property

from mop_jax.errors import DataError
from mop_jax.population.cells import cell_text
from mop_jax.population.table import Column, Table, find_column
from mop_jax.survey.questions import Question

logger = logging.getLogger("mop_jax")

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)")


@dataclass(frozen=True)
class Coding:
    """A question and how its answers are written in a table.

    Attributes:
        question: whose text may be blank until `Codebook.completed` takes it from the table.
        column: of a wide table; in a long one, another name of the question.
        missing: answers that count as none, unless they are options.
        recode: code → option, or None where the code stands for no answer.

    Raises:
        DataError: if a code stands for no option.
    """

    question: Question
    column: str
    missing: tuple[str, ...] = ()
    recode: Mapping[str, str | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks that codes stand for options."""
        _ = self._known

    @cached_property
    def _known(self) -> dict[str, int | None]:
        known: dict[str, int | None] = {answer_key(answer): None for answer in self.missing}
        known |= {answer_key(option): at for at, option in enumerate(self.question.options)}
        # Codes are read last: where an option is itself a number, a code of it says otherwise.
        codes: dict[str, int | None] = {}
        for code, option in self.recode.items():
            missing = option is None or known.get(answer_key(option), 0) is None
            where = f"The code {code!r}"
            codes[answer_key(code)] = (
                None if missing or option is None else self.question.option_index(option, where)
            )
        return known | codes

    def option(self, answer: str | None, where: str = "") -> int | None:
        """Which option an answer is, by its text or its code; None for a missing answer.

        Raises:
            DataError: if it is none; names the nearest.
        """
        if answer is None or not answer.strip():
            return None
        key = answer_key(answer)
        if key in self._known:
            return self._known[key]
        return self.question.option_index(answer, where)


@dataclass(frozen=True)
class Codebook:
    """Questions with their codings.

    Attributes:
        codings: one a question.

    Raises:
        DataError: if there is none, or two have the same id.
    """

    codings: tuple[Coding, ...]

    def __post_init__(self) -> None:
        """Checks the ids."""
        ids = [question.id for question in self.questions]
        if not ids:
            raise DataError("The codebook holds no questions; at least one is needed.")
        twice = [name for name in ids if ids.count(name) > 1]
        if twice:
            raise DataError(f"Question {twice[0]} is there twice; ids of questions must differ.")

    @property
    def questions(self) -> tuple[Question, ...]:
        """Q questions."""
        return tuple(coding.question for coding in self.codings)

    def completed(self, table: Table) -> Codebook:
        """The codebook with texts that it lacks taken from a wide table's labels.

        Raises:
            DataError: if the table lacks a column, or there is no text in either.
        """
        return Codebook(tuple(_with_text(c, _column_of(c, table).label) for c in self.codings))


def _with_text(coding: Coding, label: str) -> Coding:
    question = coding.question
    if question.text.strip():
        return coding
    if not label.strip():
        raise DataError(
            f"Question {question.id} has no text, and column {coding.column!r} says none; give it "
            "one in the codebook."
        )
    logger.info("Question %s: the text is taken from the data: %s", question.id, label)
    return replace(coding, question=replace(question, text=" ".join(label.split())))


def _column_of(coding: Coding, table: Table) -> Column:
    try:
        return table.columns[find_column(table.names, coding.column)]
    except DataError as error:
        raise DataError(f"Question {coding.question.id}: {error}") from error


def as_codebook(questions: Codebook | Iterable[Question]) -> Codebook:
    """Questions as a codebook, in which each has a column of its name and no code."""
    if isinstance(questions, Codebook):
        return questions
    return Codebook(tuple(Coding(question, question.id) for question in questions))


def answer_key(text: str) -> str:
    """What answers have in common that differ in case and blanks, or in how a number is written.

    Example:
        >>> answer_key(" Very  Liberal"), answer_key("1.0"), answer_key("-09")
        ('very liberal', '1', '-9')
    """
    folded = " ".join(text.split()).casefold()
    if _NUMBER.fullmatch(folded) and math.isfinite(float(folded)):
        return cell_text(float(folded)) or folded
    return folded


def questions_from_table(
    table: Table,
    columns: Sequence[str] | None = None,
    *,
    missing: Sequence[str] = (),
    ordered: bool | Sequence[str] = False,
) -> Codebook:
    """The codebook that a .sav or .dta file brings: value labels are options, labels are texts.

    Args:
        table: see `read_survey`.
        columns: which are questions; by default all whose every answer has a label, and which have
            at least two labels.
        missing: labels or codes that are left out of the options. Those that the file itself
            declares as missing are left out anyway.
        ordered: whether options are ordered, or of which columns they are.

    Raises:
        DataError: if a column is not there or has no labels, or no column has.
    """
    named = columns is not None
    found = [table.column(name) for name in columns] if columns is not None else table.columns
    ids = set(ordered) if not isinstance(ordered, bool) else set()
    codings = []
    for column in found:
        options, extra = labelled_options(column, table.rows, missing)
        if not named and (len(options) < 2 or extra):
            continue
        if not column.value_labels:
            raise DataError(
                f"Column {column.name!r} has no value labels; give its options in a codebook."
            )
        question = Question(
            column.name, column.label, options, ordered is True or column.name in ids
        )
        codings.append(Coding(question, column.name, tuple(missing), label_codes(column)))
    if not codings:
        raise DataError(
            "No column has value labels for all of its answers; give the questions in a codebook."
        )
    return Codebook(tuple(codings))


def labelled_options(
    column: Column, rows: Sequence[int], missing: Sequence[str]
) -> tuple[tuple[str, ...], list[str]]:
    """The options that value labels say, with answers that have none where their codes belong.

    Scales often have labels at their ends only. Returns the options, and those without a label.
    """
    left_out = {answer_key(text) for text in missing}
    places: dict[str, object] = {}
    for code, label in column.value_labels.items():
        if not {answer_key(label), answer_key(cell_text(code) or "")} & left_out:
            places.setdefault(label, code)
    known = {answer_key(label) for label in column.value_labels.values()}
    known |= {answer_key(cell_text(code) or "") for code in column.value_labels} | left_out
    answers = dict.fromkeys(t for t in column.texts(rows) if t is not None and t.strip())
    extra = [text for text in answers if answer_key(text) not in known]
    numbers = all(isinstance(code, int | float) for code in places.values())
    if numbers and all(_NUMBER.fullmatch(text.strip()) for text in extra):
        places |= {text: float(text) for text in extra}
        return tuple(sorted(places, key=lambda text: float(places[text]))), extra  # type: ignore[arg-type]
    return (*places, *extra), extra


def label_codes(column: Column) -> dict[str, str | None]:
    """Code → label, as `Coding.recode` has them."""
    return {cell_text(code) or "": label for code, label in column.value_labels.items()}


def nearest(name: str, accepted: Sequence[str]) -> str:
    """A clause that says what is accepted in place of a name, the nearest first."""
    close = get_close_matches(name, accepted, 1, cutoff=0.6)
    return (
        f"{f'the nearest is {close[0]!r}, and ' if close else ''}accepted are {', '.join(accepted)}"
    )
