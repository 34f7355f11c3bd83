"""Closed questions: their texts, their options, and which options have an order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np

from mop_jax.errors import DataError


@dataclass(frozen=True)
class Question:
    """A closed question.

    Attributes:
        id: its name in files, such as a column.
        text: what people were asked.
        options: M texts, at least two, in their order where they have one.
        ordered: whether the options are ordered, as on a scale; measures such as the Wasserstein
            distance are then defined.

    Raises:
        DataError: if there are fewer than two options, or two that cannot be told apart.

    Example:
        >>> Question("vote", "Did you vote?", ("Yes", "No")).num_options
        2
    """

    id: str
    text: str
    options: tuple[str, ...]
    ordered: bool = False

    def __post_init__(self) -> None:
        """Checks that there are options, and that they can be told apart."""
        object.__setattr__(self, "options", tuple(self.options))
        if len(self.options) < 2:
            raise DataError(
                f"Question {self.id} has {len(self.options)} option; a closed question needs at "
                "least two."
            )
        seen: dict[str, str] = {}
        for option in self.options:
            key = " ".join(option.split()).casefold()
            if not key:
                raise DataError(f"Question {self.id} has an option without a text; give it one.")
            if key in seen:
                raise DataError(
                    f"Question {self.id} has the options {seen[key]!r} and {option!r}, which "
                    "differ in case or blanks at most; give them texts that can be told apart."
                )
            seen[key] = option

    @property
    def num_options(self) -> int:
        """M."""
        return len(self.options)

    def option_index(self, answer: str, where: str = "") -> int:
        """Which option an answer is, whatever its case and blanks.

        Args:
            answer: a text.
            where: what it is the answer of, for the refusal: a row, a respondent.

        Raises:
            DataError: if it is none; names the nearest.
        """
        wanted = " ".join(answer.split()).casefold()
        keys = [" ".join(option.split()).casefold() for option in self.options]
        if wanted in keys:
            return keys.index(wanted)
        near = get_close_matches(wanted, keys, n=1, cutoff=0.0)
        nearest = self.options[keys.index(near[0])] if near else self.options[0]
        raise DataError(
            f"{where + ': ' if where else ''}{answer!r} is no option of question {self.id}; the "
            f"nearest is {nearest!r}, and accepted are {', '.join(map(repr, self.options))}."
        )


def option_mask(questions: Sequence[Question]) -> np.ndarray:
    """Which places hold an option once all questions are padded to the most, bool [Q, M]."""
    most = max(question.num_options for question in questions)
    return np.arange(most) < np.asarray([q.num_options for q in questions])[:, None]
