"""What individuals answered, in long form: one row an answer, each by a respondent of a cell."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from mop_jax.errors import DataError
from mop_jax.survey.histories import earlier_answers, shown_questions
from mop_jax.survey.items import Items
from mop_jax.survey.questions import Question, option_mask

COLUMNS = ("respondent", "cell", "question", "option", "weight")
"""Columns of `Answers.frame`."""


@dataclass(frozen=True, eq=False)
class Answers:
    """Answers of individuals to Q questions.

    Attributes:
        questions: Q questions.
        cells: the covariates, one row a cell and one column a covariate, texts.
        frame: one row an answer: `respondent` (text), `cell`, `question` and `option` (positions),
            and `weight` of the respondent, of mean one over the respondents of the survey. Parts
            of a survey (`without`, `split_respondents`) keep the weights of the whole.
        strata: of the respondents, by their id, for standard errors; or None.
        psu: their primary sampling units, likewise.

    Raises:
        DataError: if columns are missing, positions lie outside, a respondent has several cells or
            weights or answers a question twice, or a weight is not positive.
    """

    questions: tuple[Question, ...]
    cells: pd.DataFrame
    frame: pd.DataFrame
    strata: pd.Series | None = None
    psu: pd.Series | None = None

    def __post_init__(self) -> None:
        """Checks the frame."""
        lacking = [name for name in COLUMNS if name not in self.frame.columns]
        if lacking:
            raise DataError(
                f"The answers have no column {lacking[0]!r}; accepted are {', '.join(COLUMNS)}."
            )
        frame = self.frame
        if not (np.isfinite(frame["weight"]) & (frame["weight"] > 0)).all():
            raise DataError("Weights of answers must be finite and positive.")
        for name, size in (("cell", len(self.cells)), ("question", len(self.questions))):
            if not frame[name].between(0, size - 1).all():
                raise DataError(f"The answers name a {name} outside 0 to {size - 1}.")
        num_options = np.array([question.num_options for question in self.questions])
        if not frame["option"].between(0, num_options[frame["question"]] - 1).all():
            raise DataError("The answers name an option that their question does not have.")
        if frame.duplicated(["respondent", "question"]).any():
            raise DataError("A respondent answers a question twice; accepted is one answer.")
        # The first of each respondent stands for all.
        people = frame.drop_duplicates(["respondent", "cell", "weight"])
        if people["respondent"].duplicated().any():
            raise DataError("A respondent has several cells or weights; accepted is one of each.")

    def __len__(self) -> int:
        """How many answers there are."""
        return len(self.frame)

    @property
    def covariates(self) -> list[str]:
        """Names of the cells' columns."""
        return list(self.cells.columns)

    @property
    def respondents(self) -> list[str]:
        """Their ids, in order."""
        return list(dict.fromkeys(self.frame["respondent"]))

    @property
    def weights(self) -> pd.Series:
        """Weights of the respondents, by their id."""
        return self.frame.drop_duplicates("respondent").set_index("respondent")["weight"]

    def items(self, *, history: int = 0, hidden: Collection[str] = ()) -> Items:
        """The answers counted by cell and question, in that order, and by earlier answers.

        Args:
            history: how many of a respondent's last answers to earlier questions tell items apart,
                at most; see `mop_jax.survey.histories`.
            hidden: ids of questions whose answers are in no history.

        Raises:
            DataError: if there is no question that is hidden.
        """
        frame = self.frame
        shown = shown_questions([question.id for question in self.questions], hidden)
        earlier = earlier_answers(frame, history, shown)
        length = earlier.shape[1]
        known = earlier.reshape(len(frame), 2 * length)
        key = np.column_stack([frame[["cell", "question"]].to_numpy(np.int64), known])
        present, item = np.unique(key, axis=0, return_inverse=True)
        item = item.reshape(-1)
        counts = np.zeros((len(present), option_mask(self.questions).shape[1]))
        np.add.at(counts, (item, frame["option"].to_numpy()), frame["weight"].to_numpy())
        pairs = present[:, 2:].reshape(len(present), length, 2).tolist()
        return Items(
            questions=self.questions,
            cells=self.cells,
            cell=present[:, 0],
            question=present[:, 1],
            counts=counts,
            people=np.bincount(item, minlength=len(present)).astype(np.float64),
            history=tuple(tuple((q, m) for q, m in row if q >= 0) for row in pairs),
        )

    def without(self, respondents: Collection[str]) -> Answers:
        """The answers of all others; cells and questions stay as they are."""
        return self._where(~self.frame["respondent"].isin(list(respondents)))

    def of(self, respondents: Collection[str]) -> Answers:
        """The answers of some respondents; cells and questions stay as they are."""
        return self._where(self.frame["respondent"].isin(list(respondents)))

    def split_respondents(self, test_share: float, seed: int) -> tuple[Answers, Answers]:
        """Training answers, and those of a share of the respondents that training does not see.

        Raises:
            DataError: if the share leaves nobody on one side.
        """
        people = np.asarray(self.respondents, dtype=object)
        num_test = round(test_share * len(people))
        if not 0 < num_test < len(people):
            raise DataError(
                f"A share of {test_share:g} of {len(people)} respondents leaves none on one side."
            )
        test = np.random.default_rng([seed, 12]).permutation(len(people))[:num_test]
        return self.without(people[test]), self.of(people[test])

    def _where(self, kept: pd.Series) -> Answers:
        frame = self.frame[kept].reset_index(drop=True)
        present = set(frame["respondent"])

        def part(values: pd.Series | None) -> pd.Series | None:
            return None if values is None else values[[name in present for name in values.index]]

        return replace(self, frame=frame, strata=part(self.strata), psu=part(self.psu))
