"""The measures of surveys by name: which way is better, their range, and where they come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mop_jax.errors import DataError
from mop_jax.evaluation.surveys import measures
from mop_jax.registry import check_name

Average = Literal["cells", "people"]
"""Whether every item counts the same in an average, or as much as its people (weighted)."""


@dataclass(frozen=True)
class SurveyMeasure:
    """A measure of predicted shares.

    Attributes:
        name: in files: letters, digits and underscores.
        title: in tables and figures, with its unit.
        function: (predicted shares, `Items`) → values [N] of items, or one of a question.
        of: what it gives a value for: each `item`, or a `question` as a whole.
        direction: which values are better; `match` is best at one.
        range: the least and the greatest value that it can take.
        reference: where it was proposed, author and year.
        needs_order: whether options must have an order; values are NaN where they have none.
        average: how its items are averaged unless a caller says otherwise.
        root_n: whether it is a distance that falls as one over the root of the number of people
            when two samples of one population are compared.
    """

    name: str
    title: str
    function: Callable[..., Any]
    of: Literal["item", "question"]
    direction: Literal["higher", "lower", "match"]
    range: tuple[float, float]
    reference: str
    needs_order: bool = False
    average: Average = "cells"
    root_n: bool = False


SURVEY_MEASURES: dict[str, SurveyMeasure] = {}
"""Every measure by name, in the order of tables."""


def register_measure(measure: SurveyMeasure) -> None:
    """Adds a measure to those that are reported.

    Raises:
        DataError: if its name is taken or no plain word, or its range is empty.
    """
    check_name("survey measure", measure.name, SURVEY_MEASURES)
    if not measure.range[0] < measure.range[1]:
        raise DataError(f"The range of measure {measure.name!r} is {measure.range}; it is empty.")
    SURVEY_MEASURES[measure.name] = measure


def find_measure(measure: str | SurveyMeasure) -> SurveyMeasure:
    """A measure by its name; one that is not registered may be handed in itself.

    Raises:
        DataError: if there is none of that name.
    """
    if isinstance(measure, SurveyMeasure):
        return measure
    if measure not in SURVEY_MEASURES:
        raise DataError(
            f"There is no survey measure {measure!r}; there are {', '.join(SURVEY_MEASURES)}."
        )
    return SURVEY_MEASURES[measure]


_DISTANCE: dict[str, Any] = {"of": "item", "direction": "lower", "range": (0.0, 1.0)}

for _measure in (
    SurveyMeasure(
        "total_variation", "total variation", measures.total_variation,
        reference="Meister et al., 2025", root_n=True, **_DISTANCE,
    ),
    SurveyMeasure(
        "jensen_shannon", "Jensen–Shannon distance (base 2)", measures.jensen_shannon,
        reference="Endres and Schindelin, 2003", root_n=True, **_DISTANCE,
    ),
    SurveyMeasure(
        "nemd", "normalised earth mover's distance", measures.normalized_wasserstein,
        reference="Santurkar et al., 2023", needs_order=True, root_n=True, **_DISTANCE,
    ),
    SurveyMeasure(
        "log_score", "log score (nats per respondent)", measures.log_score, of="item",
        direction="higher", range=(-np.inf, 0.0), reference="Good, 1952", average="people",
    ),
    SurveyMeasure(
        "brier", "Brier score", measures.brier, of="item", direction="lower", range=(0.0, 2.0),
        reference="Brier, 1950", average="people",
    ),
    SurveyMeasure(
        "sd_ratio", "sd within cells, simulated / real", measures.sd_ratio, of="item",
        direction="match", range=(0.0, np.inf), reference="Bisbee et al., 2024", needs_order=True,
    ),
    SurveyMeasure(
        "variance_ratio", "spread between cells, simulated / real", measures.variance_ratio,
        of="question", direction="match", range=(0.0, np.inf), reference="da Silva et al., 2026",
    ),
    SurveyMeasure(
        "between_group_structure", "between-group structure (Spearman)",
        measures.between_group_structure, of="question", direction="higher", range=(-1.0, 1.0),
        reference="da Silva et al., 2026",
    ),
):  # fmt: skip
    register_measure(_measure)
