"""The section of a configuration that says what a survey asks and where its answers are."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    StrictFloat,
    StrictInt,
    ValidationError,
    field_validator,
    model_validator,
)

from mop_jax.config.sections import Encoding, Section, Separator
from mop_jax.config.validation import explain, place_of

Text = Annotated[str, Field(min_length=1)]
# Codes and options are often numbers. True and false are none: as which words they were meant, is
# unknown.
Answer = str | StrictInt | StrictFloat


class QuestionConfig(Section):
    """A question written in the configuration; see `mop_jax.survey.codebook`.

    Options may be left out where `recode` names them, and text and options where the file says
    them (value labels of .sav and .dta files, exports of Qualtrics and LimeSurvey).
    """

    id: Text
    column: str | None = None
    text: str | None = None
    options: list[Answer] | None = None
    ordered: bool = False
    missing: list[Answer] = Field(default_factory=list)
    recode: dict[str, Answer | None] = Field(default_factory=dict)


class SurveyConfig(Section):
    """Where a survey's answers are, which columns mean what, and how a person is described.

    Or a `sample` by its name, a survey that a package carries, which brings questions and
    covariates of its own.

    `layout` says what a row is: a respondent (`wide`, the questions are columns), an answer
    (`long`), or an option of a question in a cell of respondents (`cells`: shares or counts in
    place of individuals). `questions` is a codebook in YAML or a list; without it, the value labels
    of a .sav or .dta file are. `template` makes a person's context of the covariates, such as
    "A {{ gender }} of {{ age }} years."; by default they are listed. `missing` are answers that
    count as none, unless they are among the options; `covariate_missing` says what becomes of those
    who lack a covariate.

    `history` is how many earlier answers of the same respondent a prompt says, at most: the last
    ones to questions that come before in the codebook, never to one behind, nor to
    `hold_out_question`. It needs individuals, and takes up to a prompt for each answer, as items
    are then told apart by their people's earlier answers. `history_template` says how, in terms of
    `person` and `answers`, (question, answer) pairs, such as "{{ person }}{% for q, a in answers
    %}; {{ q }} {{ a }}{% endfor %}".

    `groups` are covariates, or interactions such as `age:education`, whose levels prefer personas
    of their own. `hold_out_cells` is the share of the cells that nothing is fitted to, and
    `hold_out_question` one whose answers a second fit does without: both are evaluated.
    `option_effects` lets groups prefer options directly, too, beside what personas say.
    `num_orders` is in how many orders options are shown, and `dispersion` whether cells differ by
    more than sampling error. `preference` is whether what the language model prefers of a
    question's options, whoever answers, has a temperature of its own, so that questions with
    answers do not decide how far it is believed on questions without. `calibration` is `learned`
    (people's preference for an option beyond the language model's), `content_free` (the model's own
    preference for its words, when nobody in particular is asked, is taken off) or `off`.
    `design_effect` is by how much weights, strata and clusters widen the variance of shares; of
    individuals it is estimated, of a table of cells it is 1 unless it is given.

    Other sections have defaults of their own in a survey's run (`SURVEY_DEFAULTS`), and exemplars
    are for half of its items at most.
    """

    sample: Literal["ces_2024", "anes_1996"] | None = None
    path: Text | None = None
    questions: str | list[QuestionConfig] | None = None
    covariates: list[Text] = Field(default_factory=list)
    template: str | None = None
    history: int = Field(0, ge=0)
    history_template: str | None = None
    layout: Literal["wide", "long", "cells"] = "wide"
    id: str | None = None
    weight: str | None = None
    strata: str | None = None
    psu: str | None = None
    question_column: str | None = None
    answer_column: str | None = None
    cell_id: str | None = None
    share: str | None = None
    n: str | None = None
    count: str | None = None
    missing: list[Answer] = Field(default_factory=list)
    covariate_missing: Literal["refuse", "keep", "drop"] = "refuse"
    groups: list[Text] = Field(default_factory=list)
    option_effects: bool = False
    preference: bool = True
    hold_out_cells: float = Field(0.25, gt=0, lt=1)
    hold_out_question: str | None = None
    num_orders: int = Field(2, ge=1)
    calibration: Literal["learned", "content_free", "off"] = "learned"
    design_effect: float | None = Field(None, gt=0)
    dispersion: bool = True
    separator: Separator | None = None
    encoding: Encoding | None = None
    sheet: str | int | None = None
    value_labels: bool = True

    @field_validator("covariates")
    @classmethod
    def _are_named_once(cls, names: list[str]) -> list[str]:
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"{twice[0]!r} is named twice; once is enough")
        return names

    @field_validator("questions", mode="before")
    @classmethod
    def _are_questions(cls, given: Any) -> Any:
        """Checks a list by itself: what is wrong with it is no matter of a path."""
        if not isinstance(given, list):
            return given
        if not given:
            raise ValueError("the list is empty; give a question at least, or a codebook's path")
        questions = [_question(at, values) for at, values in enumerate(given, start=1)]
        ids = [question.id for question in questions]
        twice = [name for name in ids if ids.count(name) > 1]
        if twice:
            raise ValueError(f"question {twice[0]} is there twice; ids must differ")
        return questions

    @field_validator("template", "history_template")
    @classmethod
    def _is_a_template(cls, template: str | None) -> str | None:
        if template is not None:
            import jinja2

            try:
                jinja2.Environment().parse(template)
            except jinja2.TemplateError as error:
                raise ValueError(f"the template is malformed: {error}") from error
        return template

    @model_validator(mode="after")
    def _has_one_source(self) -> SurveyConfig:
        """A sample brings all that a file needs to be told."""
        if (self.sample is None) == (self.path is None):
            raise ValueError("path and sample both say where the answers are; give one of them")
        if self.sample is None:
            if not self.covariates:
                raise ValueError("covariates are missing: name the columns that describe people")
            return self
        own = {"sample", "template", "groups", "hold_out_cells", "hold_out_question", "history"}
        own |= {"num_orders", "calibration", "dispersion", "option_effects", "design_effect"}
        own |= {"history_template", "preference"}
        fields = type(self).model_fields.items()
        others = [
            n
            for n, f in fields
            if n not in own and getattr(self, n) != f.get_default(call_default_factory=True)
        ]
        if others:
            raise ValueError(
                f"sample {self.sample} brings its own questions and columns; leave out "
                f"{' and '.join(others)}"
            )
        return self

    @model_validator(mode="after")
    def _history_is_of_individuals(self) -> SurveyConfig:
        if self.history_template is not None and not self.history:
            raise ValueError("history_template has no meaning without history; give both")
        if not self.history:
            return self
        where = "layout cells" if self.layout == "cells" else ""
        if self.sample is not None:
            from mop_jax.survey.samples import SAMPLES  # pandas is slow to load

            where = "" if SAMPLES[self.sample].individuals else f"sample {self.sample}"
        if where:
            raise ValueError(
                f"history is of individuals' earlier answers, and {where} has shares of groups; "
                "leave it out"
            )
        return self

    @model_validator(mode="after")
    def _fields_belong_to_the_layout(self) -> SurveyConfig:
        if self.sample is not None:
            return self
        given = {
            name
            for name, f in type(self).model_fields.items()
            if getattr(self, name) != f.get_default(call_default_factory=True)
        }
        people = {"id", "weight", "strata", "psu"}
        own = {
            "wide": people,
            "long": people | {"question_column", "answer_column"},
            "cells": {"cell_id", "share", "n", "count", "question_column", "answer_column"},
        }
        others = sorted(given & set().union(*own.values()) - own[self.layout])
        if others:
            raise ValueError(
                f"{others[0]} has no meaning for layout {self.layout}; leave it out, or choose "
                f"{' or '.join(name for name, fields in own.items() if others[0] in fields)}"
            )
        needed = {"wide": (), "long": ("id", "question_column", "answer_column"), "cells": ()}
        lacking = [name for name in needed[self.layout] if name not in given]
        if lacking:
            raise ValueError(f"layout {self.layout} needs {lacking[0]}, the name of a column")
        if self.layout == "cells" and ("count" in given) == bool({"share", "n"} & given):
            raise ValueError("layout cells needs the columns share and n, or count")
        if self.layout == "cells" and len({"share", "n"} & given) == 1:
            raise ValueError("share and n belong together: n is how many people answered")
        if self.questions is None and self.layout != "wide":
            raise ValueError(f"layout {self.layout} needs questions: a codebook or a list")
        return self


def _question(number: int, values: Any) -> QuestionConfig:
    try:
        return QuestionConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, place_of(first, QuestionConfig))) or "it"
        raise ValueError(f"question {number}, {field}: {explain(first, QuestionConfig)}") from error
