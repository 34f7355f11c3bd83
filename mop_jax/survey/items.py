"""What was answered, counted: one item for each cell of respondents and each question.

Where earlier answers of the same people are known, those who gave the same ones are an item.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pandas as pd

from mop_jax.errors import DataError
from mop_jax.survey.questions import Question, option_mask

Earlier = tuple[tuple[int, int], ...]
"""A person's earlier answers: (question, option) pairs in the order of the questionnaire."""


@dataclass(frozen=True, eq=False)
class Items:
    """Answers counted by cell and question: N items, padded to M options.

    A cell is a combination of covariates, such as gender, age and education; an item is what a
    cell's people answered to one question. Individuals who share a cell need one prompt. With
    histories an item is of a cell's people who gave the same earlier answers; see
    `merge_histories` for what is judged by cell.

    Attributes:
        questions: Q questions.
        cells: the covariates, one row a cell and one column a covariate, texts.
        cell: which cell an item is of, int [N].
        question: which question, int [N].
        counts: people who chose each option, weighted where they have weights (of mean one over
            the survey), float64 [N, M]; zero at places that hold no option of the question.
        people: how many people answered, unweighted, float64 [N].
        history: what an item's people answered before, N entries; empty ones by default.

    Raises:
        DataError: if shapes do not fit, counts are none, or a history names a question that does
            not come before the item's own.
    """

    questions: tuple[Question, ...]
    cells: pd.DataFrame
    cell: np.ndarray
    question: np.ndarray
    counts: np.ndarray
    people: np.ndarray
    history: tuple[Earlier, ...] = ()

    def __post_init__(self) -> None:
        """Checks shapes, counts and histories."""
        num_items = len(self.cell)
        most = option_mask(self.questions).shape[1]
        shapes = {
            "question": (self.question, (num_items,)),
            "counts": (self.counts, (num_items, most)),
            "people": (self.people, (num_items,)),
        }
        for name, (array, shape) in shapes.items():
            if np.shape(array) != shape:
                raise DataError(f"{name} has shape {np.shape(array)}; it must be {shape}.")
        if not np.isfinite(self.counts).all() or (self.counts < 0).any():
            raise DataError("counts must be finite, and zero or more.")
        if (self.counts[~self.mask] > 0).any():
            item = int(np.argmax(((self.counts > 0) & ~self.mask).any(1)))
            question = self.questions[self.question[item]]
            raise DataError(
                f"Item {item} counts answers behind the {question.num_options} options of question "
                f"{question.id}."
            )
        if not self.history:
            object.__setattr__(self, "history", ((),) * num_items)
        self._check_histories()

    def _check_histories(self) -> None:
        if len(self.history) != len(self):
            raise DataError(
                f"There are {len(self.history)} histories of {len(self)} items; give one an item."
            )
        for own, earlier in set(zip(np.asarray(self.question).tolist(), self.history, strict=True)):
            places = [question for question, _ in earlier]
            if any(one >= next_one for one, next_one in pairwise([-1, *places, own])):
                raise DataError(
                    f"A history of question {self.questions[own].id} holds questions "
                    f"{', '.join(map(str, places))}; accepted are those before {own}, in order."
                )
            for question, option in earlier:
                if not 0 <= option < self.questions[question].num_options:
                    raise DataError(
                        f"A history holds option {option} of question "
                        f"{self.questions[question].id}, which has "
                        f"{self.questions[question].num_options}."
                    )

    def __len__(self) -> int:
        """N."""
        return len(self.cell)

    @property
    def covariates(self) -> list[str]:
        """Names of the cells' columns."""
        return list(self.cells.columns)

    def covariates_of(self, cell: int) -> dict[str, str]:
        """A cell's covariates by their names."""
        return {name: str(self.cells[name].iloc[cell]) for name in self.covariates}

    def earlier(self, item: int) -> list[tuple[str, str]]:
        """The texts of an item's history: earlier questions and what was chosen."""
        pairs = ((self.questions[q], m) for q, m in self.history[item])
        return [(question.text, question.options[m]) for question, m in pairs]

    def names(self) -> list[str]:
        """A text for each item: its question's id, its cell's covariates and its history."""
        cells = ["|".join(self.covariates_of(i).values()) for i in range(len(self.cells))]
        found = []
        for q, i, earlier in zip(self.question, self.cell, self.history, strict=True):
            before = [f"|{self.questions[e].id}={self.questions[e].options[m]}" for e, m in earlier]
            found.append(f"{self.questions[q].id}|{cells[i]}{''.join(before)}")
        return found

    @property
    def mask(self) -> np.ndarray:
        """Which places hold an option of the item's question, bool [N, M]."""
        return option_mask(self.questions)[self.question]

    @property
    def shares(self) -> np.ndarray:
        """Shares of the options, float64 [N, M]; NaN for an item that nobody answered."""
        total = self.counts.sum(1, keepdims=True)
        return np.divide(self.counts, total, out=np.full_like(self.counts, np.nan), where=total > 0)

    def take(self, index: np.ndarray | Sequence[int]) -> Items:
        """The items `index` (integers, or booleans [N]); cells and questions stay as they are."""
        index = np.asarray(index)
        return replace(
            self,
            cell=self.cell[index],
            question=self.question[index],
            counts=self.counts[index],
            people=self.people[index],
            history=tuple(self.history[n] for n in np.arange(len(self))[index].tolist()),
        )

    def where(self, questions: Sequence[str] | None = None, **levels: str | Sequence[str]) -> Items:
        """Items of some questions and of some people; the other questions and cells are forgotten.

        Args:
            questions: ids, in the order that they get; all by default.
            **levels: of covariates, one or several: `age=["18-29", "30-44"]`.

        Raises:
            DataError: if there is no such question, covariate or level, nobody is left, or earlier
                answers are known, which may be to questions that would be forgotten.

        Example:
            >>> from mop_jax.survey import Question
            >>> cells = pd.DataFrame({"age": ["young", "old"], "sex": ["w", "m"]})
            >>> vote = Question("vote", "Did you vote?", ("Yes", "No"))
            >>> counts = np.array([[3.0, 1.0], [2.0, 2.0]])
            >>> items = Items((vote,), cells, np.arange(2), np.zeros(2, int), counts, counts.sum(1))
            >>> items.where(age="old").cells.to_dict("list")
            {'age': ['old'], 'sex': ['m']}
        """
        if any(self.history):
            raise DataError(
                "Items with earlier answers cannot be chosen from; choose first, or give it "
                "merge_histories(items)."
            )
        ids = [q.id for q in self.questions]
        wanted = ids if questions is None else list(questions)
        unknown = [name for name in wanted if name not in ids]
        if unknown:
            raise DataError(f"There is no question {unknown[0]!r}; there are {', '.join(ids)}.")
        kept = np.ones(len(self.cells), bool)
        for name, chosen in levels.items():
            if name not in self.covariates:
                raise DataError(
                    f"There is no covariate {name!r}; there are {', '.join(self.covariates)}."
                )
            column = self.cells[name].astype(str)
            chosen_levels = [chosen] if isinstance(chosen, str) else list(chosen)
            for level in chosen_levels:
                if level not in set(column):
                    known = ", ".join(dict.fromkeys(column))
                    raise DataError(f"No cell has {name} {level!r}; there are {known}.")
            kept &= column.isin(chosen_levels).to_numpy()
        number = np.asarray([wanted.index(name) if name in wanted else -1 for name in ids])
        index = np.flatnonzero((number[self.question] >= 0) & kept[self.cell])
        if not len(index):
            raise DataError("Nobody is left: no item is of these questions and these people.")
        asked = tuple(self.questions[ids.index(name)] for name in wanted)
        width = option_mask(asked).shape[1]
        return Items(
            asked,
            self.cells[kept].reset_index(drop=True),
            (np.cumsum(kept) - 1)[self.cell[index]],
            number[self.question[index]],
            self.counts[index, :width],
            self.people[index],
        )

    def split_cells(self, test_share: float, seed: int) -> tuple[Items, Items]:
        """Training items, and those of a share of the cells that training does not see."""
        present = np.unique(self.cell)
        num_test = round(test_share * len(present))
        if not 0 < num_test < len(present):
            raise DataError(
                f"A share of {test_share:g} of {len(present)} cells leaves none on one side."
            )
        held_out = np.random.default_rng([seed, 11]).permutation(present)[:num_test]
        test = np.isin(self.cell, held_out)
        return self.take(~test), self.take(test)

    def split_question(self, question: str) -> tuple[Items, Items]:
        """Items of all other questions, and those of one."""
        ids = [q.id for q in self.questions]
        if question not in ids:
            raise DataError(f"There is no question {question!r}; there are {', '.join(ids)}.")
        test = self.question == ids.index(question)
        return self.take(~test), self.take(test)
