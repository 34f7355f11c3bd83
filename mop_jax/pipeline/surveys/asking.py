"""Beyond the steps of a survey's run: whole populations, and questions that were never asked."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from mop_jax import atomic
from mop_jax.choices import OptionTable, new_items, poststratify, share_draws
from mop_jax.errors import DataError
from mop_jax.inference import load_posterior
from mop_jax.pipeline.running import Run
from mop_jax.pipeline.surveys.artefacts import SurveyRun
from mop_jax.pipeline.surveys.prompted import content_free_offsets
from mop_jax.pipeline.surveys.scoring import option_store, score_items
from mop_jax.pipeline.workspace import Workspace
from mop_jax.survey import Frame, Items, Question, frame_of, load_frame, rake

_LOG = logging.getLogger(__name__)
_STREAM = 42


@dataclass(frozen=True)
class Population:
    """Whose answers are wanted, and how they are reported.

    Attributes:
        frame: a file of cells with counts or shares; without it, the cells as the survey had them.
        margins: a file of margins, to which the frame (or the survey's own cells) is raked.
        by: covariates whose levels, or combinations of levels, are reported beside the whole.
        level: of the intervals.
    """

    frame: Path | None = None
    margins: Path | None = None
    by: Sequence[str] = field(default_factory=tuple)
    level: float = 0.9

    def read(self, items: Items) -> Frame:
        """The frame, in the survey's covariates.

        Raises:
            DataError: naming the file's row or column that is at fault.
        """
        frame = frame_of(items) if self.frame is None else load_frame(self.frame, items.covariates)
        if self.margins is None:
            return frame
        return rake(frame.cells, str(self.margins), frame.shares)


@dataclass(frozen=True)
class PopulationShares:
    """A job on a fitted run: shares of a population, to its own questions or to a new one.

    Attributes:
        population: whose.
        question: a question that the survey did not ask; all that it asked without it.
        output: the CSV file; `poststratified.csv` or `asked.csv` in the folder by default.
    """

    population: Population
    question: Question | None = None
    output: Path | None = None

    def __call__(self, run: Run) -> tuple[Path, pd.DataFrame]:
        """Writes the table, and returns its path and content."""
        space = run.space
        survey = SurveyRun(space.path, space.config)
        table = self.table(space, survey)
        name = "poststratified.csv" if self.question is None else "asked.csv"
        path = self.output or space.path / name
        atomic.write_text(path, table.to_csv(index=False, lineterminator="\n"))
        return path, table

    def table(self, space: Workspace, survey: SurveyRun) -> pd.DataFrame:
        """The shares of the whole population, and of its groups; see `poststratify`.

        Nobody of a population has a history: of a run with histories they are the shares of people
        whose earlier answers are not known.

        Raises:
            DataError: if the frame, or a covariate to report by, is at fault.
        """
        frame = self.population.read(survey.items)
        lacking = [name for name in self.population.by if name not in frame.covariates]
        if lacking:
            raise DataError(
                f"There is no covariate {lacking[0]!r} to report by; there are "
                f"{', '.join(frame.covariates)}."
            )
        if survey.section.history:
            _LOG.warning(
                "The run knows earlier answers of the survey's people; these shares are of people "
                "of whom none is known."
            )
        cells = frame.cells[survey.items.covariates]
        questions: tuple[Question, ...] = survey.questions
        which = list(range(len(questions)))
        if self.question is not None:
            if self.question.id in [question.id for question in questions]:
                raise DataError(f"The survey has a question {self.question.id!r} already.")
            questions, which = (*questions, self.question), [len(questions)]
        items = new_items(cells, questions, which)
        with option_store(space) as store:

            def scored(items: Items) -> OptionTable:
                table = score_items(space, survey, items, store)
                if survey.section.calibration != "content_free":
                    return table
                offsets = content_free_offsets(space, survey, questions, which, store)
                return table.calibrated(offsets[items.question])

            table = scored(items)
            # Of the survey's own cells, whichever the frame has: as the fit knew them.
            if self.question is None:
                preferences = survey.preferences
            else:
                own = new_items(survey.items.cells, questions, which)
                preferences = survey.components.preferences(own, scored(own))
        posterior = load_posterior(space.path / "posterior.safetensors")
        data = survey.components.data(
            items,
            table,
            space.encoder,
            posterior=posterior,
            preferences=preferences,
        )
        rng = np.random.default_rng([space.config.seed, _STREAM])
        drawn = share_draws(posterior, data).cells(rng)
        ways: list[tuple[str, ...]] = [()]
        if self.population.by:
            ways.append(tuple(self.population.by))
        tables = [poststratify(drawn, items, frame, by, level=self.population.level) for by in ways]
        whole = pd.concat(tables, ignore_index=True)
        groups = [name for name in self.population.by if name in whole]
        whole[groups] = whole[groups].fillna("all")
        return whole[["question", *groups, "option", "share", "low", "high", "population"]]
