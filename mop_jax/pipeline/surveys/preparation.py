"""A survey's first step: items read and split, personas written, exemplars drawn, all embedded."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from mop_jax.choices import ChoiceComponents, Wording, draw_exemplars, without_shown
from mop_jax.components.personas import (
    Persona,
    read_personas,
    record_texts,
    synthesise_personas,
    write_personas,
)
from mop_jax.config import SurveyConfig
from mop_jax.errors import DataError
from mop_jax.pipeline.surveys.artefacts import SurveyRun, write_items
from mop_jax.pipeline.workspace import Workspace, write_arrays, write_parquet
from mop_jax.population.population import Population
from mop_jax.resources import resolve_path
from mop_jax.survey import (
    Answers,
    Items,
    Question,
    answers_from_long,
    answers_from_wide,
    codebook_of,
    design_effect,
    items_from_cells,
    merge_histories,
    questions_from_table,
    read_survey,
)
from mop_jax.survey.samples import SAMPLES

_LOG = logging.getLogger(__name__)
# Answers that personas are made from: more say no more of a population to a small model.
_ANSWERS = 300


def prepare_survey(space: Workspace) -> None:
    """Writes items, personas, exemplars and embeddings."""
    run, config = SurveyRun(space.path, space.config), space.config
    found = read_answers(run.section)
    unseen = _unseen_question(found.questions, run.section)
    items = _items(found, run.section)
    held_out = _held_out(items, run.section, config.seed)
    # People are shown, and personas made of them, without what else they answered.
    seen = merge_histories(items.take(~held_out & (items.question != unseen)))
    exemplars = draw_exemplars(
        seen, _num_exemplars(seen, config.exemplars.num_exemplars), run.wording, seed=config.seed
    )
    items = without_shown(items, exemplars, seed=config.seed)
    personas = _personas(space, seen, run.wording)
    texts = [persona.text for persona in personas]
    design = ChoiceComponents.assemble(
        items, texts, exemplars, space.encoder, wording=run.wording
    ).design
    assert design.exemplar_context_embeddings is not None
    write_personas(space.path / "personas.json", personas)
    write_parquet(space.path / "exemplars.parquet", exemplars)
    write_items(space.path, items, held_out, _design_effect(found, run.section))
    write_arrays(
        space.path / "embeddings.safetensors",
        {
            "context": space.encoder.encode(run.wording.contexts(items)),
            "persona": design.persona_embeddings,
            "exemplar": design.exemplar_embeddings,
            "exemplar_context": design.exemplar_context_embeddings,
        },
    )


def read_answers(section: SurveyConfig) -> Answers | Items:
    """The survey's answers: those of individuals, or counted by cell and question already.

    Raises:
        DataError: naming the row or column that is at fault.
    """
    if section.sample is not None:
        return SAMPLES[section.sample].load()
    assert section.path is not None
    table = read_survey(
        section.path,
        needed=_columns(section),
        separator=section.separator,
        encoding=section.encoding,
        sheet=section.sheet,
        value_labels=section.value_labels,
    )
    missing = [str(answer) for answer in section.missing]
    if section.questions is None:
        questions = questions_from_table(table, missing=missing)
    else:
        assert not isinstance(section.questions, str), "the configuration's reader reads codebooks"
        entries = [question.model_dump(exclude_unset=True) for question in section.questions]
        questions = codebook_of(entries, missing=missing, table=table)
    if section.layout == "cells":
        return items_from_cells(
            table,
            questions,
            section.covariates,
            cell_id=section.cell_id,
            question=section.question_column or "question",
            option=section.answer_column or "option",
            share=section.share,
            n=section.n,
            count=section.count,
            source=section.path,
        )
    shared: dict[str, Any] = {
        "weight": section.weight,
        "strata": section.strata,
        "psu": section.psu,
        "covariate_missing": section.covariate_missing,
        "source": section.path,
    }
    if section.layout == "wide":
        return answers_from_wide(table, questions, section.covariates, id=section.id, **shared)
    # The configuration's own checks see to it.
    assert section.id is not None
    assert section.question_column is not None
    assert section.answer_column is not None
    return answers_from_long(
        table,
        questions,
        section.covariates,
        id=section.id,
        question_column=section.question_column,
        answer_column=section.answer_column,
        **shared,
    )


def _items(found: Answers | Items, section: SurveyConfig) -> Items:
    """The answers counted, and told apart by earlier ones if the configuration says so.

    Answers to the question that a second fit does without are in no history: it would see them.
    """
    if isinstance(found, Items):
        return found
    asked = section.hold_out_question
    return found.items(history=section.history, hidden=() if asked is None else (asked,))


def _design_effect(found: Answers | Items, section: SurveyConfig) -> float:
    """What the configuration says of it, else what weights, strata and units say."""
    if section.design_effect is not None:
        return section.design_effect
    return design_effect(found) if isinstance(found, Answers) else 1.0


def _columns(section: SurveyConfig) -> list[str]:
    """Columns that the section names."""
    own = [section.weight, section.strata, section.psu, section.share, section.n, section.count]
    own += [section.id, section.question_column, section.answer_column, section.cell_id]
    covariates = [] if section.cell_id else section.covariates
    return [*covariates, *(name for name in own if name is not None)]


def _held_out(items: Items, section: SurveyConfig, seed: int) -> np.ndarray:
    """Items of cells that nothing is fitted to, bool [N]."""
    _, test = items.split_cells(section.hold_out_cells, seed)
    return np.isin(items.cell, test.cell)


def _num_exemplars(seen: Items, wanted: int) -> int:
    """As many as the configuration says, but for no more than half of the items."""
    answered = int((seen.counts.sum(1) > 0).sum())
    most = max(1, answered // 2)
    if wanted > most:
        _LOG.warning(
            "%d exemplars were asked for; %d are drawn, for half of the %d items (cells × "
            "questions) that are trained on.",
            wanted,
            most,
            answered,
        )
    return min(wanted, most)


def _unseen_question(questions: Sequence[Question], section: SurveyConfig) -> int:
    """Index of the question that a second fit does without; −1 for none.

    No exemplar answers it: the second fit would have seen it then.
    """
    if section.hold_out_question is None:
        return -1
    ids = [question.id for question in questions]
    if section.hold_out_question not in ids:
        raise DataError(
            f"survey.hold_out_question is {section.hold_out_question!r}; the questions are "
            f"{', '.join(ids)}."
        )
    if len(ids) < 2:
        raise DataError("survey.hold_out_question needs a second question to learn from.")
    return ids.index(section.hold_out_question)


def _personas(space: Workspace, items: Items, wording: Wording) -> list[Persona]:
    """The user's own, or what the language model makes of answers."""
    section = space.config.personas
    if section.texts is not None:
        return [Persona(text) for text in section.texts]
    if section.path is not None:
        return read_personas(resolve_path(section.path))
    answers = draw_exemplars(items, min(_ANSWERS, len(items)), wording, seed=space.config.seed + 1)
    records = Population(
        ids=[str(i) for i in range(len(answers))],
        contexts=answers["context"].tolist(),
        responses=answers["response"].tolist(),
    )
    texts = record_texts(records)
    number = min(section.num_personas, len(set(texts)))
    if number < section.num_personas:
        _LOG.warning(
            "%d personas were asked for; %d are written, one for each item (cells × questions) "
            "that is trained on.",
            section.num_personas,
            number,
        )
    made, _ = synthesise_personas(
        records,
        space.encoder.encode(texts),
        space.language_model,
        number,
        seed=space.config.seed,
        records_per_persona=section.records_per_persona,
        max_new_tokens=section.max_new_tokens,
        chat_settings=space.config.prompt.chat_settings,
        described_from=section.described_from,
    )
    return made
