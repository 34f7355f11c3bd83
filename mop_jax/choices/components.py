"""Components that answer closed questions: personas × real answers, embedded, scored, made data of.

What `mop run` does of a survey on disk can be done by hand with it, in a notebook or a script.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mop_jax.choices.design import ChoiceDesign, Grouping
from mop_jax.choices.exemplars import choose_components, exemplar_contexts
from mop_jax.choices.options import OptionTable, score_options
from mop_jax.choices.wording import Wording
from mop_jax.encoder.encoder import SentenceEncoder
from mop_jax.inference.posterior import Posterior
from mop_jax.likelihoods.store import LikelihoodStore
from mop_jax.lm.base import ScoringModel, TemperatureGrid
from mop_jax.models import MixtureData
from mop_jax.prompts import PromptBuilder
from mop_jax.survey.items import Items


@dataclass(frozen=True, eq=False)
class ChoiceComponents:
    """K personas and J exemplars that answer a survey's questions.

    Attributes:
        personas: K texts.
        exemplars: J real answers; see `draw_exemplars`.
        wording: how items are put.
        design: what all items share, embeddings of personas and exemplars among it.
    """

    personas: tuple[str, ...]
    exemplars: pd.DataFrame
    wording: Wording
    design: ChoiceDesign

    @classmethod
    def assemble(
        cls,
        items: Items,
        personas: Sequence[str],
        exemplars: pd.DataFrame,
        encoder: SentenceEncoder,
        *,
        wording: Wording | None = None,
        groups: Sequence[str] = (),
    ) -> ChoiceComponents:
        """Embeds personas and exemplars.

        Args:
            items: of all cells and questions that are known, held-out ones included; their counts
                are not looked at.
            personas: K texts.
            exemplars: J answers of these items' cells; see `draw_exemplars`.
            encoder: embeds them.
            wording: how items are put.
            groups: covariates, or interactions such as `age:education`, whose levels prefer
                personas (and options) of their own.

        Raises:
            DataError: if a grouping names no covariate.
        """
        wording = wording or Wording()
        contexts = exemplar_contexts(exemplars, items, wording)
        answered = [f"{c} {r}" for c, r in zip(contexts, exemplars["response"], strict=True)]
        design = ChoiceDesign(
            len(items.questions),
            tuple(Grouping.of(name, items.cells) for name in groups),
            encoder.encode(list(personas)),
            encoder.encode(answered),
            items.cells.iloc[exemplars["cell"]].reset_index(drop=True),
            encoder.encode(contexts),
        )
        return cls(tuple(personas), exemplars, wording, design)

    def score(
        self,
        items: Items,
        language_model: ScoringModel,
        *,
        num_components: int | None = None,
        num_orders: int = 2,
        seed: int = 0,
        prompts: PromptBuilder | None = None,
        store: LikelihoodStore | str | None = None,
    ) -> OptionTable:
        """What the language model says of every option of items, after components' prompts.

        Items of a question are given the same components, as far as they may see them: cells then
        differ by their people, not by what happens to be shown.

        Args:
            items: N items, of the survey or not; only their cells and questions count.
            language_model: scores options.
            num_components: B, components of an item (see `choose_components`); all by default.
            num_orders: R; see `option_orders`.
            seed: of components and orders.
            prompts: how prompts are built; the model's chat form by default.
            store: a store at τ = 1, or the folder of one, so that nothing is ever scored twice; by
                default scores are forgotten afterwards.

        Raises:
            DataError: see `score_options`.
        """
        num_personas, num_exemplars = len(self.personas), len(self.exemplars)
        components = choose_components(
            self.design.leave_out(items),
            num_personas,
            num_personas * num_exemplars if num_components is None else num_components,
            keys=[items.questions[q].id for q in items.question],
            seed=seed,
        )
        with ExitStack() as stack:
            if not isinstance(store, LikelihoodStore):
                folder = store or stack.enter_context(tempfile.TemporaryDirectory())
                grid = TemperatureGrid.single(1.0)
                store = LikelihoodStore(folder, language_model.fingerprint, grid)
                stack.enter_context(store)
            return score_options(
                items,
                self.personas,
                list(zip(self.exemplars["context"], self.exemplars["response"], strict=True)),
                prompts or PromptBuilder(language_model.tokenizer),
                store,
                language_model,
                wording=self.wording,
                num_orders=num_orders,
                seed=seed,
                components=components,
            )

    def preferences(self, items: Items, table: OptionTable) -> np.ndarray:
        """What the language model prefers of every question's options, nats of mean zero, [Q, M].

        The mean of the options' log-probabilities over the cells asked and their candidates: what
        the model says whoever answers. Candidates that show an answer to the very question do not
        count, unless there are no others: a question that nobody answered has none.

        Args:
            items: N items, nobody's answers to which are looked at. A question without any has
                zeros.
            table: of the same items.
        """
        answers = self.exemplars["question"].to_numpy()[table.exemplar_index]
        hidden = np.take_along_axis(self.design.leave_out(items), table.exemplar_index, axis=1)
        allowed = np.exp(np.where(hidden, -np.inf, table.log_weight))
        others = np.where(answers == items.question[:, None], 0.0, allowed)
        found = np.zeros((len(items.questions), table.mask.shape[1]))
        for question in np.unique(items.question):
            own = np.flatnonzero(items.question == question)
            weights = others[own] if others[own].any(1).all() else allowed[own]
            means = table.take(own).mean_log_probs(weights)
            # Cells count alike, however many histories theirs are told apart by.
            _, cell, counts = np.unique(items.cell[own], return_inverse=True, return_counts=True)
            mean = np.average(means, axis=0, weights=1 / counts[cell])
            options = items.questions[question].num_options
            found[question, :options] = mean[:options] - mean[:options].mean()
        return found

    def data(
        self,
        items: Items,
        table: OptionTable,
        encoder: SentenceEncoder,
        *,
        posterior: Posterior | None = None,
        option_offset: np.ndarray | None = None,
        preferences: np.ndarray | None = None,
    ) -> MixtureData:
        """What a model of closed answers is fitted to, or asked about.

        Args:
            items: N items; counts are zero where nobody has answered.
            table: of the same items.
            encoder: the one that the components were embedded with.
            posterior: of the fit that is asked, for items that it has not seen.
            option_offset: see `ChoiceDesign.data`.
            preferences: of the questions (see there), [Q, M], the same in a fit and wherever it is
                asked; needed for `mixture_of_choices(option_preference=True)`.
        """
        return self.design.data(
            items,
            table,
            encoder.encode(self.wording.contexts(items)),
            option_offset=option_offset,
            preferences=preferences,
            feature_maps=None if posterior is None else posterior.data.feature_maps,
            similarity=None if posterior is None else posterior.data.similarity,
        )
