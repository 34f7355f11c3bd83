"""Surveys that Python packages carry; their files are read, and nothing of them is imported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from mop_jax.errors import DataError
from mop_jax.resources import resolve_path
from mop_jax.survey.answer_tables import answers_from_wide
from mop_jax.survey.answers import Answers
from mop_jax.survey.cell_tables import items_from_cells
from mop_jax.survey.codebook import Codebook, Coding
from mop_jax.survey.items import Items
from mop_jax.survey.platforms import read_survey
from mop_jax.survey.questions import Question

CES_CELLS = "package:popfidelity/data/ces/survey_cells.csv"
ANES_ANSWERS = "package:statsmodels/datasets/anes96/anes96.csv"

CES_QUESTIONS = (
    Question(
        "ideo5",
        "Thinking about politics these days, how would you describe your own political viewpoint?",
        ("Very liberal", "Liberal", "Moderate", "Conservative", "Very conservative"),
        ordered=True,
    ),
    Question(
        "relig_church",
        "Aside from weddings and funerals, how often do you attend religious services?",
        (
            "More than once a week",
            "Once a week",
            "Once or twice a month",
            "A few times a year",
            "Seldom",
            "Never",
        ),
        ordered=True,
    ),
    Question(
        "economy_retro",
        "Over the past year, how has the nation's economy changed?",
        (
            "Gotten much better",
            "Gotten somewhat better",
            "Stayed about the same",
            "Gotten somewhat worse",
            "Gotten much worse",
        ),
        ordered=True,
    ),
)
"""The package's texts end in their options ("Is it {options}?"); these end without."""


def ces_2024(path: str | Path | None = None) -> Items:
    """Cooperative Election Study 2024: 96 cells × 3 questions, shares and numbers of people.

    Cells are gender × age × race × education. The data are CC0, in the package `popfidelity`
    (Apache-2.0). Its shares are weighted; its n are people.

    Args:
        path: of the file of cells, if it is not in an installed package.

    Raises:
        DataError: if the package is not installed; says the command that installs it.

    References:
        Schaffner, Ansolabehere and Shih, Cooperative Election Study Common Content.
    """
    source = CES_CELLS if path is None else str(path)
    return items_from_cells(
        read_survey(source),
        CES_QUESTIONS,
        ["gender", "age", "race", "education"],
        cell_id="cell_id",
        share="share",
        n="n",
        source=source,
    )


_PARTIES = (
    "Strong Democrat",
    "Weak Democrat",
    "Independent-Democrat",
    "Independent-Independent",
    "Independent-Republican",
    "Weak Republican",
    "Strong Republican",
)
_LEANINGS = (
    "Extremely liberal",
    "Liberal",
    "Slightly liberal",
    "Moderate",
    "Slightly conservative",
    "Conservative",
    "Extremely conservative",
)
_CANDIDATES = ("Bill Clinton", "Bob Dole")


def _coded(question: Question, column: str, first: int) -> Coding:
    codes = {str(first + at): option for at, option in enumerate(question.options)}
    return Coding(question, column, recode=codes)


ANES_CODEBOOK = Codebook(
    (
        _coded(
            Question(
                "party",
                "Generally speaking, which party do you identify with, and how strongly?",
                _PARTIES,
                ordered=True,
            ),
            "PID",
            first=0,
        ),
        _coded(
            Question(
                "leaning",
                "Where would you place yourself on a scale from liberal to conservative?",
                _LEANINGS,
                ordered=True,
            ),
            "selfLR",
            first=1,
        ),
        _coded(
            Question(
                "vote", "Who do you expect to vote for in the election for President?", _CANDIDATES
            ),
            "vote",
            first=0,
        ),
    )
)
"""Codes as the note of `statsmodels.datasets.anes96` gives them."""

# (first code or age, group): each group ends where the next begins.
_AGES = ((0, "18–29"), (30, "30–44"), (45, "45–64"), (65, "65+"))
# 1 and 2: no high school diploma; 3: diploma; 4: some college; 5: degree; 6 and 7: Master's, PhD.
_EDUCATION = (
    (1, "Less than high school"),
    (3, "High school graduate"),
    (4, "Some college"),
    (5, "College degree"),
    (6, "Postgraduate degree"),
)
# Household income in 24 brackets: 1 is below $3,000, 24 is $105,000 and over.
_INCOME = (
    (1, "Under $15,000"),
    (11, "$15,000–$29,999"),
    (16, "$30,000–$49,999"),
    (20, "$50,000–$74,999"),
    (22, "$75,000 and over"),
)
_GROUPS = {"age": _AGES, "educ": _EDUCATION, "income": _INCOME}
_CODES = {"age": (18, 120), "educ": (1, 7), "income": (1, 24)}


def anes_1996(path: str | Path | None = None) -> Answers:
    """American National Election Study 1996: 944 people, three questions, no weights.

    Party identification (PID: 0 Strong Democrat to 6 Strong Republican), self-placement (selfLR:
    1 Extremely liberal to 7 Extremely conservative) and the expected vote (0 Clinton, 1 Dole). The
    covariates are age in four groups, education (educ: 1–2, 3, 4, 5, 6–7) and income of the
    household (1–10, 11–15, 16–19, 20–21, 22–24).

    The data are in the public domain, in the package `statsmodels`.

    Args:
        path: of anes96.csv, if it is not in an installed package.

    Raises:
        DataError: if the package is not installed, or the file is another; says the command that
            installs it.

    References:
        American National Election Studies, 1996 Time Series Study, electionstudies.org.
    """
    source = ANES_ANSWERS if path is None else str(path)
    file = resolve_path(source)
    table = pd.read_csv(file, sep=r"\s+", quotechar="'")
    lacking = [c for c in (*_GROUPS, "PID", "selfLR", "vote") if c not in table.columns]
    if lacking:
        raise DataError(
            f"{source} has no column {lacking[0]!r}; accepted is anes96.csv of statsmodels."
        )
    for name, groups in _GROUPS.items():
        table[name] = _grouped(table[name], groups, *_CODES[name], source)
    names = {"educ": "education"}
    return answers_from_wide(
        table.rename(columns=names), ANES_CODEBOOK, ["age", "education", "income"], source=source
    )


def _grouped(
    codes: pd.Series, groups: Sequence[tuple[int, str]], lowest: int, highest: int, source: str
) -> list[str]:
    valid = codes.between(lowest, highest)
    if not valid.all():
        at = int(np.argmin(valid))
        raise DataError(
            f"{source}: Row {at + 1} has {codes.name} {codes.iloc[at]}; accepted is {lowest} to "
            f"{highest}."
        )
    firsts = [first for first, _ in groups]
    return [groups[at][1] for at in np.searchsorted(firsts, codes.to_numpy(), side="right") - 1]


class Sample(NamedTuple):
    """A survey that a package carries.

    Attributes:
        path: of its file.
        load: reads it.
        individuals: whether it has answers of individuals, rather than shares by cell.
    """

    path: str
    load: Callable[[], Items | Answers]
    individuals: bool


SAMPLES = {
    "ces_2024": Sample(CES_CELLS, ces_2024, individuals=False),
    "anes_1996": Sample(ANES_ANSWERS, anes_1996, individuals=True),
}
"""Surveys by name."""
