"""Codebooks as YAML files, or as a section of a configuration; `mop_jax.survey.codebook` says how.

Beside `id`, a question may have `column`, `text`, `options`, `ordered`, `missing` and `recode`. The
options may be left out where `recode` names them, and text and options where a .sav or .dta file
or an export says them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mop_jax.errors import DataError
from mop_jax.population.cells import cell_text
from mop_jax.population.table import Table
from mop_jax.resources import resolve_path
from mop_jax.survey.codebook import (
    Codebook,
    Coding,
    answer_key,
    label_codes,
    labelled_options,
    nearest,
)
from mop_jax.survey.questions import Question
from mop_jax.yaml_reader import YamlText

FIELDS = ("id", "column", "text", "options", "ordered", "missing", "recode")
"""What may be said of a question."""
_SECTIONS = ("questions", "missing")


def load_codebook(path: str | os.PathLike[str], table: Table | None = None) -> Codebook:
    """Reads a codebook in YAML.

    Args:
        path: a file, or `package:NAME/rest`.
        table: of `read_survey`, whose value labels are the options of questions that list none.

    Raises:
        DataError: if a question has no options, options that cannot be told apart or an unknown
            field; names the line.
    """
    name = os.fspath(path)
    file = resolve_path(name)
    if file.is_dir():
        raise DataError(f"{name} is a folder; accepted is a codebook in YAML.")
    try:
        content = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{name} could not be read as UTF-8 text: {error}.") from error
    text = YamlText(content, name)
    values, above = text.values, ["questions"]
    if isinstance(values, list):
        values, above = {"questions": values}, []
    if not isinstance(values, dict) or not isinstance(values.get("questions"), list):
        raise DataError(
            f"{name} holds no list of questions; accepted is `questions:` and below it entries "
            "such as `- {id: vote, text: Did you vote?, options: [Yes, No]}`."
        )
    unknown = [key for key in values if key not in _SECTIONS]
    if unknown:
        raise DataError(
            f"{name}, line {text.line_of(unknown[:1])}: {unknown[0]!r} is no part of a codebook; "
            f"{nearest(unknown[0], _SECTIONS)}."
        )
    missing = _texts(values.get("missing"), f"{name}: missing")
    lines = [text.line_of([*above, at]) for at in range(len(values["questions"]))]
    places = [f"{name}, line {line}" for line in lines]
    return codebook_of(values["questions"], missing=missing, places=places, table=table)


def codebook_of(
    entries: Sequence[Mapping[str, Any]],
    *,
    missing: Sequence[str] = (),
    places: Sequence[str] | None = None,
    table: Table | None = None,
) -> Codebook:
    """A codebook of questions that a file or a configuration lists.

    Args:
        entries: fields of the questions.
        missing: answers to any of them that count as none.
        places: where each stands, for refusals.
        table: whose value labels are the options of questions that list none.

    Raises:
        DataError: as `load_codebook`.

    Example:
        >>> entry = {"id": "vote", "text": "Did you vote?", "recode": {"1": "Yes", "2": "No"}}
        >>> codebook_of([entry], missing=["9"]).codings[0].option("2.0")
        1
    """
    codings = []
    for at, entry in enumerate(entries):
        where = f"Question {at + 1}" if places is None else places[at]
        try:
            codings.append(_coding(_Entry.of(entry, missing), table))
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
    return Codebook(tuple(codings))


@dataclass(frozen=True)
class _Entry:
    """What is said of a question, checked field by field."""

    id: str
    column: str
    text: str
    options: tuple[str, ...] | None
    ordered: bool
    missing: tuple[str, ...]
    recode: dict[str, str | None]

    @classmethod
    def of(cls, entry: Any, missing: Sequence[str]) -> _Entry:
        if not isinstance(entry, Mapping):
            raise DataError(
                f"{entry!r} is no question; accepted are the fields {', '.join(FIELDS)}."
            )
        given = {key: value for key, value in entry.items() if value is not None}
        name = _text(given.get("id", ""), "id").strip()
        if not name:
            raise DataError("The question has no id; give it one, such as its column.")
        unknown = [key for key in entry if key not in FIELDS]
        if unknown:
            raise DataError(
                f"Question {name} has the field {unknown[0]!r}, which there is not; "
                f"{nearest(str(unknown[0]), FIELDS)}."
            )
        ordered = given.get("ordered", False)
        if not isinstance(ordered, bool):
            raise DataError(f"Question {name}: ordered is {ordered!r}; accepted is true or false.")
        recode = given.get("recode", {})
        if not isinstance(recode, Mapping):
            raise DataError(
                f"Question {name}: recode is {recode!r}; accepted are codes and their options, "
                "such as {1: Yes, 2: No}."
            )
        codes = {
            _text(code, "a code"): None if option is None else _text(option, f"the code {code}")
            for code, option in recode.items()
        }
        own = _texts(given.get("missing"), f"Question {name}: missing")
        return cls(
            id=name,
            column=_text(given.get("column", name), "column"),
            text=" ".join(_text(given.get("text", ""), "text").split()),
            options=_texts(given["options"], f"Question {name}: options")
            if "options" in given
            else None,
            ordered=ordered,
            missing=(*own, *missing),
            recode=codes,
        )


def _coding(entry: _Entry, table: Table | None) -> Coding:
    """The coding of an entry, with options from its codes or from the table where it lists none."""
    options, recode = entry.options, entry.recode
    none = {answer_key(text) for text in entry.missing}
    if options is None and recode:
        targets = dict.fromkeys(t for t in recode.values() if t is not None)
        options = tuple(target for target in targets if answer_key(target) not in none)
    elif table is not None:
        column = table.column(entry.column)
        if options is None and column.value_labels:
            options, _ = labelled_options(column, table.rows, entry.missing)
            recode = label_codes(column)
    if options is None:
        raise DataError(
            f"Question {entry.id} has no options; list them under options, or by their codes under "
            "recode."
        )
    question = Question(entry.id, entry.text, options, entry.ordered)
    return Coding(question, entry.column, entry.missing, recode)


def _texts(values: Any, what: str) -> tuple[str, ...]:
    if values is None:
        return ()
    if not isinstance(values, list | tuple):
        raise DataError(f"{what} is {values!r}; accepted is a list of texts.")
    return tuple(_text(value, what) for value in values)


def _text(value: Any, what: str) -> str:
    # true and false are what YAML makes of words; as which of them they were meant is unknown.
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        shown = {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
        raise DataError(f"{what} holds {shown}, which is no text; put it in quotes.")
    return value if isinstance(value, str) else cell_text(value) or ""
