"""From a survey's items and their option table to what the choice model is fitted to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mop_jax.choices.options import OptionTable
from mop_jax.errors import DataError
from mop_jax.models import FeatureMaps, MixtureData, SimilarityMap, choice_data
from mop_jax.survey.items import Items


@dataclass(frozen=True)
class Grouping:
    """A covariate, or an interaction of several, whose levels prefer personas of their own.

    Attributes:
        name: `age`, or `age:education`.
        levels: of all cells that are known beforehand, held-out ones included; combinations are
            joined by a colon.
    """

    name: str
    levels: tuple[str, ...]

    @classmethod
    def of(cls, name: str, cells: pd.DataFrame) -> Grouping:
        """The grouping of that name over cells.

        Raises:
            DataError: if a covariate is not there.
        """
        return cls(name, tuple(dict.fromkeys(_level_texts(name, cells))))

    def codes(self, cells: pd.DataFrame) -> np.ndarray:
        """Which level each cell has, int [cells]; −1 where it is none of those known."""
        code = {level: i for i, level in enumerate(self.levels)}
        return np.asarray([code.get(text, -1) for text in _level_texts(self.name, cells)], int)


def _level_texts(name: str, cells: pd.DataFrame) -> list[str]:
    covariates = [part.strip() for part in name.split(":")]
    for covariate in covariates:
        if covariate not in cells:
            raise DataError(
                f"The grouping {name!r} names the covariate {covariate!r}; there are "
                f"{', '.join(map(str, cells.columns))}."
            )
    return [":".join(row) for row in cells[covariates].astype(str).to_numpy()]


@dataclass(frozen=True, eq=False)
class ChoiceDesign:
    """What all items of a survey share: components, groupings and questions.

    Attributes:
        num_questions: Q, all that a fit will be asked about, held-out ones included.
        groupings: see `Grouping`.
        persona_embeddings: h(g), [K, D].
        exemplar_embeddings: h(x_j, y_j), [J, D].
        exemplar_cells: covariates of the exemplars' cells, one row each.
        exemplar_context_embeddings: h(x_j), [J, D]; without them Ω does not know how alike two
            contexts are.
    """

    num_questions: int
    groupings: tuple[Grouping, ...]
    persona_embeddings: np.ndarray
    exemplar_embeddings: np.ndarray
    exemplar_cells: pd.DataFrame
    exemplar_context_embeddings: np.ndarray | None = None

    def leave_out(self, items: Items) -> np.ndarray:
        """Exemplars that must not serve an item, those of its own cell: bool [N, J].

        Cells that a fit has not seen have no exemplars of their own, so those that it learns from
        must do without, too. Nothing of anybody's answers is looked at.
        """
        names = list(self.exemplar_cells.columns)
        own = _keys(items.cells[names])[items.cell]
        return own[:, None] == _keys(self.exemplar_cells)[None, :]

    def data(
        self,
        items: Items,
        table: OptionTable,
        context_embeddings: np.ndarray,
        *,
        option_offset: np.ndarray | None = None,
        preferences: np.ndarray | None = None,
        feature_maps: FeatureMaps | None = None,
        similarity: SimilarityMap | None = None,
    ) -> MixtureData:
        """The data of N items.

        Args:
            items: with counts of zero where nobody has answered yet.
            table: of the same items.
            context_embeddings: h(x), [N, D].
            option_offset: nats that an option is known to have, [N, M]; none by default.
            preferences: what the language model prefers of each question's options whoever answers,
                nats [Q, M]; see `ChoiceComponents.preferences`.
            feature_maps: of the fit, for items that it has not seen.
            similarity: likewise.
        """
        if len(table.mask) != len(items):
            raise DataError(f"The table is of {len(table.mask)} items; there are {len(items)}.")
        known = items.question < self.num_questions
        return choice_data(
            option_log_likelihood=table.log_likelihood,
            counts=items.counts,
            question=np.where(known, items.question, -1),
            option_mask=table.mask,
            option_offset=option_offset,
            option_preference=None if preferences is None else preferences[items.question],
            num_questions=self.num_questions,
            member_of={g.name: g.codes(items.cells)[items.cell] for g in self.groupings},
            num_levels={g.name: len(g.levels) for g in self.groupings},
            context_embeddings=context_embeddings,
            persona_embeddings=self.persona_embeddings,
            exemplar_embeddings=self.exemplar_embeddings,
            exemplar_contexts=self.exemplar_context_embeddings,
            persona_index=table.persona_index,
            exemplar_index=table.exemplar_index,
            log_weight=table.log_weight,
            leave_out=self.leave_out(items),
            feature_maps=feature_maps,
            similarity=similarity,
        )


def _keys(cells: pd.DataFrame) -> np.ndarray:
    return np.asarray(["\0".join(row) for row in cells.astype(str).to_numpy()], object)


def new_items(cells: pd.DataFrame, questions: Sequence, which: Sequence[int]) -> Items:
    """Items of every cell to each question of `which`, which nobody has answered."""
    from mop_jax.survey.questions import option_mask

    most = option_mask(questions).shape[1]
    number = len(cells) * len(which)
    return Items(
        tuple(questions),
        cells.reset_index(drop=True),
        np.tile(np.arange(len(cells)), len(which)),
        np.repeat(np.asarray(which, int), len(cells)),
        np.zeros((number, most)),
        np.zeros(number),
    )
