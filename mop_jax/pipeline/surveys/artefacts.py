"""What the steps of a survey's run write and read back: items, option tables, designs."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import load_file, save

from mop_jax import atomic
from mop_jax.choices import ChoiceComponents, ChoiceDesign, Grouping, OptionTable, Wording
from mop_jax.components.personas import Persona, read_personas
from mop_jax.config import RunConfig, SurveyConfig
from mop_jax.models import MixtureData
from mop_jax.pipeline.workspace import write_parquet
from mop_jax.survey import Earlier, Items, Question, merge_histories


class SurveyRun:
    """A survey's run folder, as its steps have written it.

    Attributes:
        path: the folder.
        config: its configuration.
    """

    def __init__(self, path: Path, config: RunConfig):
        """Nothing is read yet."""
        self.path = path
        self.config = config

    @property
    def section(self) -> SurveyConfig:
        """The survey's section of the configuration."""
        assert self.config.survey is not None
        return self.config.survey

    @property
    def wording(self) -> Wording:
        """How items are put."""
        given = {"person": self.section.template, "history": self.section.history_template}
        return Wording(**{name: text for name, text in given.items() if text is not None})

    @cached_property
    def _about(self) -> dict[str, Any]:
        return json.loads((self.path / "survey.json").read_text("utf-8"))

    @cached_property
    def questions(self) -> tuple[Question, ...]:
        """All questions."""
        return tuple(Question(**entry) for entry in self._about["questions"])

    @property
    def design_effect(self) -> float:
        """By how much the survey's design widens the variance of its shares."""
        return self._about["design_effect"]

    @cached_property
    def _frame(self) -> pd.DataFrame:
        return pd.read_parquet(self.path / "items.parquet")

    @cached_property
    def items(self) -> Items:
        """All items, those of training cells and of held-out ones."""
        frame = self._frame
        counts = frame[[name for name in frame if str(name).startswith("count_")]].to_numpy()
        return Items(
            self.questions,
            pd.read_parquet(self.path / "cells.parquet"),
            frame["cell"].to_numpy(),
            frame["question"].to_numpy(),
            counts,
            frame["people"].to_numpy(),
            history_of(frame),
        )

    @cached_property
    def is_test(self) -> np.ndarray:
        """Which items are of held-out cells, bool [N]."""
        return self._frame["held_out"].to_numpy()

    @cached_property
    def by_cell(self) -> Items:
        """The items counted by cell and question alone, G; without histories, the items."""
        return merge_histories(self.items)

    @cached_property
    def by_cell_is_test(self) -> np.ndarray:
        """Which of `by_cell` are of held-out cells, bool [G]."""
        return np.isin(self.by_cell.cell, self.items.cell[self.is_test])

    @cached_property
    def personas(self) -> list[Persona]:
        """K personas."""
        return read_personas(self.path / "personas.json")

    @cached_property
    def exemplars(self) -> pd.DataFrame:
        """J exemplars; see `draw_exemplars`."""
        return pd.read_parquet(self.path / "exemplars.parquet")

    @cached_property
    def vectors(self) -> dict[str, np.ndarray]:
        """Embeddings of contexts (items), personas and exemplars."""
        return load_file(self.path / "embeddings.safetensors")

    @cached_property
    def design(self) -> ChoiceDesign:
        """What all items share."""
        cells = self.items.cells
        return ChoiceDesign(
            len(self.questions),
            tuple(Grouping.of(name, cells) for name in self.section.groups),
            self.vectors["persona"],
            self.vectors["exemplar"],
            cells.iloc[self.exemplars["cell"]].reset_index(drop=True),
            self.vectors["exemplar_context"],
        )

    @cached_property
    def components(self) -> ChoiceComponents:
        """Personas and exemplars, as prompts show them."""
        texts = tuple(persona.text for persona in self.personas)
        return ChoiceComponents(texts, self.exemplars, self.wording, self.design)

    @cached_property
    def table(self) -> OptionTable:
        """The option table of all items."""
        return read_table(self.path / "options.safetensors")

    @cached_property
    def preferences(self) -> np.ndarray:
        """What the language model prefers of every question's options, [Q, M]."""
        return self.components.preferences(self.items, self._calibrated)

    def data(
        self, which: np.ndarray, exemplars: np.ndarray | None = None, **maps: Any
    ) -> MixtureData:
        """What a model is fitted to, or asked about: the items where `which` [N] is true.

        People count as many as a simple random sample would need to say as much.

        Args:
            which: bool [N].
            exemplars: which of them are shown, bool [J]; all by default.
            maps: feature maps and similarity of the fit that is asked.

        Raises:
            DataError: if an item is left without candidates.
        """
        index = np.flatnonzero(which)
        items = self.items.take(index)
        table = self._calibrated if exemplars is None else self._calibrated.showing(exemplars)
        return self.design.data(
            replace(items, counts=items.counts / self.design_effect),
            table.take(index),
            self.vectors["context"][index],
            preferences=(
                self.preferences
                if exemplars is None
                else self.components.preferences(self.items, table)
            ),
            **maps,
        )

    @cached_property
    def _calibrated(self) -> OptionTable:
        """The table, less what is known of the words' own probability, if anything is."""
        offsets = load_file(self.path / "prompted.safetensors").get("content_free")
        return (
            self.table if offsets is None else self.table.calibrated(offsets[self.items.question])
        )


def write_items(path: Path, items: Items, held_out: np.ndarray, design_effect: float) -> None:
    """Writes questions, cells and items into a run folder."""
    questions = [asdict(question) for question in items.questions]
    about = {"questions": questions, "design_effect": design_effect}
    atomic.write_json(path / "survey.json", about)
    frame = pd.DataFrame(
        {
            "cell": items.cell,
            "question": items.question,
            "held_out": held_out,
            "people": items.people,
            **{f"count_{m}": column for m, column in enumerate(items.counts.T)},
        }
    )
    if any(items.history):
        frame["history"] = [json.dumps(earlier) for earlier in items.history]
    write_parquet(path / "cells.parquet", items.cells)
    write_parquet(path / "items.parquet", frame)


def history_of(frame: pd.DataFrame) -> tuple[Earlier, ...]:
    """Histories as `write_items` wrote them; nothing where there were none."""
    if "history" not in frame:
        return ()
    return tuple(tuple((q, m) for q, m in json.loads(text)) for text in frame["history"])


def write_table(path: Path, table: OptionTable) -> None:
    """Writes an option table, atomically."""
    arrays = {name: np.ascontiguousarray(values) for name, values in vars(table).items()}
    atomic.write_bytes(path, save(dict(sorted(arrays.items()))))


def read_table(path: Path) -> OptionTable:
    """Reads what `write_table` wrote."""
    return OptionTable(**load_file(path))
