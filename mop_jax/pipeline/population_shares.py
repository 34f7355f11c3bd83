"""What a survey's fitted run says of a whole population, and of questions it never asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mop_jax.config import RunConfig
from mop_jax.errors import DataError
from mop_jax.pipeline.pipeline import Source, read_config, run_until
from mop_jax.pipeline.running import OnStep, Run

if TYPE_CHECKING:
    from pandas import DataFrame

    from mop_jax.survey import Question


def poststratify(
    config: Source,
    out: str | Path | None = None,
    *,
    frame: str | Path | None = None,
    margins: str | Path | None = None,
    by: Sequence[str] = (),
    level: float = 0.9,
    output: str | Path | None = None,
    update: bool = False,
    memory: float | None = None,
    on_step: OnStep = lambda step, begun: None,
) -> tuple[Path, DataFrame]:
    """Shares of a population and its groups by a survey's run, with posterior intervals.

    Nobody of a population has a history: a run with `survey.history` says what people answer of
    whom nothing else is known, and a warning says so.

    Args:
        config: see `run`; a survey's.
        out: see `run`.
        frame: a file of cells (the survey's covariates) with their count or share; by default the
            cells as the survey had them.
        margins: a file with columns variable, level and share, to which the frame is raked.
        by: covariates whose levels, or combinations of levels, are reported beside the whole.
        level: of the intervals.
        output: the CSV file; `poststratified.csv` in the run folder by default.
        update: see `run`.
        memory: see `run`.
        on_step: see `run`.

    Returns:
        The file, and what it holds: a row for each question, group and option.

    Raises:
        DataError: if the run is no survey's, or a file or covariate is at fault.
    """
    return _shares(config, out, None, frame, margins, by, level, output, update, memory, on_step)


def ask(
    config: Source,
    question: str,
    options: Sequence[str],
    out: str | Path | None = None,
    *,
    ordered: bool = False,
    frame: str | Path | None = None,
    margins: str | Path | None = None,
    by: Sequence[str] = (),
    level: float = 0.9,
    output: str | Path | None = None,
    update: bool = False,
    memory: float | None = None,
    on_step: OnStep = lambda step, begun: None,
) -> tuple[Path, DataFrame]:
    """The fitted population answers a closed question that the survey never asked.

    What people's answers have beyond the language model's preference for an option's words is not
    known of a new question: it is drawn from what the other questions taught, so that intervals are
    wide, as they should be. No earlier answers are known of the people asked; see `poststratify`.

    Args:
        config: see `poststratify`.
        question: its text.
        options: two or more texts.
        out: see `run`.
        ordered: whether the options are ordered.
        frame: see `poststratify`.
        margins: see there.
        by: see there.
        level: see there.
        output: the CSV file; `asked.csv` in the run folder by default.
        update: see `run`.
        memory: see `run`.
        on_step: see `run`.

    Returns:
        The file, and what it holds.

    Raises:
        DataError: see `poststratify`.
    """
    from mop_jax.survey import Question

    asked = Question("asked", question, tuple(options), ordered)
    return _shares(config, out, asked, frame, margins, by, level, output, update, memory, on_step)


def _shares(
    config: Source,
    out: str | Path | None,
    question: Question | None,
    frame: str | Path | None,
    margins: str | Path | None,
    by: Sequence[str],
    level: float,
    output: str | Path | None,
    update: bool,
    memory: float | None,
    on_step: OnStep,
) -> tuple[Path, DataFrame]:
    settings = config if isinstance(config, RunConfig) else read_config(config)
    if settings.survey is None:
        raise DataError("This run is of free texts; shares of options need a survey's run.")
    found: list[tuple[Path, DataFrame]] = []

    def job(run: Run) -> None:
        from mop_jax.pipeline.surveys.asking import Population, PopulationShares

        population = Population(
            None if frame is None else Path(frame),
            None if margins is None else Path(margins),
            tuple(by),
            level,
        )
        place = None if output is None else Path(output)
        found.append(PopulationShares(population, question, place)(run))

    run_until("fit", config, out, update, memory, on_step, job)
    return found[0]
