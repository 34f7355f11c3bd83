"""What the steps of a run share: the loaded models, the records, and reading back artefacts.

Models are loaded when a step first needs them, so that a run whose artefacts are all there never
loads any.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from safetensors.numpy import load_file, save

from mop_jax import atomic
from mop_jax.components.candidates import CandidateSet
from mop_jax.components.components import Components
from mop_jax.components.exemplars import LeaveOut
from mop_jax.components.personas import read_personas
from mop_jax.config import RunConfig
from mop_jax.encoder.encoder import SentenceEncoder
from mop_jax.likelihoods.scoring import (
    ScoredCandidates,
    score_candidates,
    score_prompts,
)
from mop_jax.likelihoods.store import LikelihoodStore
from mop_jax.lm.base import TemperatureGrid
from mop_jax.lm.flax_lm import FlaxLM
from mop_jax.models import MixtureData
from mop_jax.pipeline.inputs import Inputs
from mop_jax.pipeline.run_folder import RunFolder
from mop_jax.population.population import Population
from mop_jax.prompts import Prompt, PromptBuilder, make_template


class Split(NamedTuple):
    """One side of the split, with its embeddings.

    Attributes:
        records: the population.
        context_embeddings: h(x), float32 [N, D].
        record_embeddings: h(x, y), float32 [N, D].
    """

    records: Population
    context_embeddings: np.ndarray
    record_embeddings: np.ndarray


class Workspace:
    """A run folder with the models and records of its configuration."""

    def __init__(
        self,
        folder: RunFolder,
        memory: float | None = None,
        inputs: Inputs | None = None,
        beside: Workspace | None = None,
    ):
        """Nothing is loaded yet.

        Args:
            folder: the run folder.
            memory: GiB, in place of the configuration's.
            inputs: what is read from outside the folder.
            beside: a run whose likelihood store this one uses, and its models where they are the
                same.
        """
        self.folder = folder
        self.beside = beside
        self._inputs = inputs or Inputs(folder.config)
        self.config: RunConfig = folder.config
        self.path: Path = folder.path
        self._bare: dict[str, np.ndarray] = {}  # by the records' fingerprint
        self._memory = memory or self.config.language_model.memory_gib

    @cached_property
    def language_model(self) -> FlaxLM:
        """The language model; refused if it is not the one that the run began with."""
        if self.beside and self.beside.config.language_model == self.config.language_model:
            model = self.beside.language_model
        else:
            model = self.load_language_model(self.config.language_model.path)
        self._loaded("language model", model.fingerprint)
        return model

    def load_language_model(self, path: str) -> FlaxLM:
        """A language model in the precision and on the devices of the run's own."""
        section = self.config.language_model
        memory = None if self._memory is None else self._memory * 2**30
        return FlaxLM.from_pretrained(path, section.dtype, section.mesh, memory=memory)

    @cached_property
    def encoder(self) -> SentenceEncoder:
        """The sentence encoder; refused if it is not the one that the run began with."""
        if self.beside and self.beside.config.encoder == self.config.encoder:
            encoder = self.beside.encoder
        else:
            encoder = SentenceEncoder.from_pretrained(self.config.encoder.path)
        self._loaded("sentence encoder", encoder.fingerprint)
        return encoder

    def _loaded(self, name: str, fingerprint: str) -> None:
        stamp = partial(self._inputs.stamp, name, None, needed=True)
        self.folder.loaded(name, fingerprint, stamp)

    @cached_property
    def grid(self) -> TemperatureGrid:
        """The temperatures at which pairs are scored."""
        section = self.config.temperatures
        return TemperatureGrid(section.step, tuple(section.multiples))

    @cached_property
    def prompts(self) -> PromptBuilder:
        """Builds prompts for the language model; refused if they have changed in the run."""
        section, tokenizer = self.config.prompt, self.language_model.tokenizer
        template = make_template(section.form, tokenizer, section)
        builder = PromptBuilder(tokenizer, template, instruction=section.instruction)
        # The rendered chat template with it, so that nothing in prompts changes unseen.
        self.folder.rendered(builder.fingerprint)
        return builder

    def read_population(self) -> tuple[Population, Population]:
        """Training and held-out records of the source."""
        return self._inputs.records()

    @cached_property
    def sides(self) -> dict[str, Split]:
        """Training and held-out records as the personas step wrote them."""
        frame = pd.read_parquet(self.path / "records.parquet")
        vectors = load_file(self.path / "embeddings.safetensors")
        # Of a run without twins in the table, they are judged on both sides together.
        everyone, split = population_of(frame), frame["split"].to_numpy()
        return {
            side: Split(
                everyone.take(np.flatnonzero(split == side)),
                vectors[f"{side}_context"],
                vectors[f"{side}_record"],
            )
            for side in ("train", "test")
        }

    @cached_property
    def components(self) -> Components:
        """Personas and exemplars as the personas step wrote them."""
        vectors = load_file(self.path / "embeddings.safetensors")
        exemplars = population_of(pd.read_parquet(self.path / "exemplars.parquet"))
        # Exemplars are training records, whose contexts are embedded already.
        row_of = {name: row for row, name in enumerate(self.sides["train"].records.ids)}
        return Components(
            read_personas(self.path / "personas.json"),
            exemplars,
            vectors["persona"],
            vectors["exemplar"],
            leave_out_by(self.config),
            vectors["train_context"][[row_of[name] for name in exemplars.ids]],
            self.config.exemplars.num_exemplars > 0,
            self.config.candidates.bare,
        )

    @property
    def store_path(self) -> Path:
        """Where scores are kept; they are known by content, so that runs may share them."""
        return self.beside.store_path if self.beside else self.path / "likelihoods"

    def store(self) -> LikelihoodStore:
        """The likelihood store of this language model and grid."""
        return LikelihoodStore(self.store_path, self.language_model.fingerprint, self.grid)

    def score_prompts(
        self, records: Population, prompts: Sequence[Sequence[Prompt]], description: str
    ) -> np.ndarray:
        """Log-likelihoods of each record's response after each of its prompts, [N, P, G]."""
        with self.store() as store:
            scores = score_prompts(
                records,
                prompts,
                self.prompts,
                store,
                self.language_model,
                description=description,
            )
            store.compact()
        return scores

    def score_candidates(
        self, records: Population, candidates: CandidateSet, description: str
    ) -> ScoredCandidates:
        """Log-likelihoods of a candidate set, from the store as far as it has them."""
        with self.store() as store:
            scored = score_candidates(
                records,
                candidates,
                self.components.persona_texts,
                self.components.exemplar_texts,
                self.prompts,
                store,
                self.language_model,
                description=description,
            )
            store.compact()
        return scored

    def pair_table(self, records: Population, scored: ScoredCandidates) -> pd.DataFrame:
        """A row per scored pair, for likelihoods/*.parquet."""
        table = pd.DataFrame(
            {
                "record": [records.ids[i] for i in scored.triples[:, 0]],
                "persona": scored.triples[:, 1],
                "exemplar": scored.triples[:, 2],
            }
        )
        for g, temperature in enumerate(self.grid.temperatures):
            table[f"log_likelihood_{temperature:.4f}"] = scored.scores[:, g]
        return table

    def mixture_data(
        self, side: Split, candidates: CandidateSet, log_likelihood: np.ndarray, **options: Any
    ) -> MixtureData:
        """What a model is fitted to or evaluated on."""
        return self.components.data(
            side.records,
            side.context_embeddings,
            candidates,
            log_likelihood,
            self.grid,
            bare_log_likelihood=self._bare_log_likelihood(side.records),
            **options,
        )

    def _bare_log_likelihood(self, records: Population) -> np.ndarray | None:
        """Of the bare components, [N, K (+ 1), G]; None where there are none."""
        if self.components.bare == "none":
            return None
        key = records.fingerprint
        if key not in self._bare:
            built = self.components.bare_prompts(records, self.prompts)
            self._bare[key] = self.score_prompts(records, built, "Scoring bare components")
        return self._bare[key]


def leave_out_by(config: RunConfig) -> LeaveOut:
    """What a record must not see: by default what the split keeps apart.

    Held-out groups never meet exemplars of their own group, so training must not either.
    """
    by_group = config.split.by == "group"
    return config.exemplars.leave_out or ("group" if by_group else "record")


def population_of(frame: pd.DataFrame) -> Population:
    """A population from a table that `Population.frame` made."""

    def column(name: str) -> list[str] | None:
        return frame[name].astype(str).tolist() if name in frame else None

    twins = None
    # Older runs have no such column.
    if "twin" in frame:
        twins = [None if pd.isna(key) else str(key) for key in frame["twin"]]
    return Population(
        ids=frame["id"].astype(str).tolist(),
        contexts=frame["context"].tolist(),
        responses=frame["response"].tolist(),
        labels=column("label"),
        groups=column("group"),
        weights=frame["weight"].to_numpy(float),
        twins=twins,
    )


def write_parquet(path: Path, frame: pd.DataFrame) -> None:
    """Writes a table atomically."""
    with atomic.replacing(path) as temporary:
        frame.to_parquet(temporary, index=False)


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes named arrays as safetensors, atomically."""
    content = {name: np.ascontiguousarray(a, np.float32) for name, a in sorted(arrays.items())}
    atomic.write_bytes(path, save(content))
