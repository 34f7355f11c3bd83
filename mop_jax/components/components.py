"""Components of the mixture, (persona, exemplar) pairs: made, scored, and sampled from.

`Components` holds the steps of a run without its folder: what `mop run` does on disk can be done by
hand with it, in a notebook or a script. What needs no language model is its `ComponentPool`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from mop_jax.components.candidates import CandidateSet
from mop_jax.components.codes import codes_of
from mop_jax.components.exemplars import Allocation, LeaveOut, cross_strata, select_exemplars
from mop_jax.components.personas import Persona, cluster_records, record_texts, synthesise_personas
from mop_jax.components.pool import Bare, ComponentPool, Method
from mop_jax.encoder.encoder import SentenceEncoder
from mop_jax.inference import Posterior, SimulatedResponse, simulate
from mop_jax.likelihoods.scoring import score_candidates, score_prompts
from mop_jax.likelihoods.store import LikelihoodStore
from mop_jax.lm.base import LanguageModel, TemperatureGrid
from mop_jax.models import MixtureData
from mop_jax.population.population import Population
from mop_jax.prompts import PromptBuilder

# Rounds of candidates have streams of random numbers of their own: offsets that no sum of a few
# multiples of the others comes near, so that runs with neighbouring seeds share none either.
SECOND_ROUND = 10**9


class Components(ComponentPool):
    """K personas and J exemplars; see `ComponentPool` for its fields."""

    @classmethod
    def synthesise(
        cls,
        population: Population,
        language_model: Any,
        encoder: SentenceEncoder,
        *,
        num_personas: int = 8,
        num_exemplars: int = 32,
        seed: int = 0,
        leave_out_by: LeaveOut = "record",
    ) -> Components:
        """Personas from the population's clusters, and an exemplar pool stratified over them.

        Args:
            population: training records.
            language_model: writes the personas.
            encoder: embeds records and personas.
            num_personas: K.
            num_exemplars: J.
            seed: of clustering, writing and drawing.
            leave_out_by: see the class.
        """
        embeddings = encoder.encode(record_texts(population))
        personas, clusters = synthesise_personas(
            population, embeddings, language_model, num_personas, seed=seed
        )
        return cls.assemble(
            population,
            embeddings,
            personas,
            clusters,
            encoder,
            num_exemplars=num_exemplars,
            seed=seed,
            leave_out_by=leave_out_by,
        )

    @classmethod
    def with_personas(
        cls,
        population: Population,
        personas: Sequence[Persona],
        encoder: SentenceEncoder,
        *,
        num_exemplars: int = 32,
        seed: int = 0,
        leave_out_by: LeaveOut = "record",
    ) -> Components:
        """The same with personas of your own; exemplars are stratified over as many clusters."""
        embeddings = encoder.encode(record_texts(population))
        clusters = cluster_records(embeddings, len(personas), seed).labels
        return cls.assemble(
            population,
            embeddings,
            list(personas),
            clusters,
            encoder,
            num_exemplars=num_exemplars,
            seed=seed,
            leave_out_by=leave_out_by,
        )

    @classmethod
    def assemble(
        cls,
        population: Population,
        embeddings: np.ndarray,
        personas: list[Persona],
        clusters: np.ndarray,
        encoder: SentenceEncoder,
        *,
        num_exemplars: int,
        seed: int,
        leave_out_by: LeaveOut = "record",
        allocation: Allocation = "proportional",
        stratify_labels: bool = True,
        bare: Bare = "none",
    ) -> Components:
        """Draws the exemplar pool, stratified over clusters and labels, and embeds the personas.

        With `num_exemplars=0` one record takes the place of the pool and is never shown.
        """
        strata = cross_strata(clusters, population.labels if stratify_labels else None)
        chosen = select_exemplars(
            population, strata, num_exemplars or 1, allocation=allocation, seed=seed
        )
        exemplars = population.take(chosen)
        return cls(
            personas,
            exemplars,
            encoder.encode([persona.text for persona in personas]),
            embeddings[chosen],
            leave_out_by,
            encoder.encode(exemplars.contexts),
            num_exemplars > 0,
            bare,
        )

    def score(
        self,
        records: Population,
        language_model: LanguageModel,
        encoder: SentenceEncoder,
        *,
        num_candidates: int = 32,
        method: Method = "importance",
        seed: int = 0,
        held_out: bool = False,
        posterior: Posterior | None = None,
        prompts: PromptBuilder | None = None,
        grid: TemperatureGrid | None = None,
        store: str | None = None,
        **options: Any,
    ) -> MixtureData:
        """Scores candidate components of records with the language model, ready to be fitted.

        `importance` candidates come in two rounds: the first half by similarity, the others by what
        the first half scored; see `extend`.

        Args:
            records: N records.
            language_model: scores.
            encoder: the one that the components were made with.
            num_candidates: C.
            method: see `mop_jax.components.candidates`.
            seed: of the candidates.
            held_out: whether the records are none of those that the pool was drawn from.
            posterior: of the gate that proposes the second round, so that held-out records are
                scored where their gate looks.
            prompts: how prompts are built; the model's chat form by default.
            grid: temperatures.
            store: folder of a likelihood store, so that nothing is ever scored twice; by default
                scores are kept in memory only.
            **options: of `mixture_data`; held-out records need `feature_maps=` of the training
                data only where models are compared by hand (posteriors bring their own).
        """
        grid = grid or TemperatureGrid()
        prompts = prompts or PromptBuilder(language_model.tokenizer)
        contexts = encoder.encode(records.contexts)
        texts = encoder.encode(record_texts(records))
        two_rounds = method == "importance" and 1 < num_candidates < self.num_components
        candidates = self.propose(
            records,
            contexts,
            texts,
            num_candidates // 2 if two_rounds else num_candidates,
            method=method,
            seed=seed,
            held_out=held_out,
        )
        with (
            tempfile.TemporaryDirectory() as scratch,
            LikelihoodStore(store or scratch, language_model.fingerprint, grid) as opened,
        ):

            def table(chosen: CandidateSet) -> np.ndarray:
                return score_candidates(
                    records,
                    chosen,
                    self.persona_texts,
                    self.exemplar_texts,
                    prompts,
                    opened,
                    language_model,
                ).log_likelihood

            log_likelihood = table(candidates)
            if two_rounds:
                candidates = self.extend(
                    records,
                    contexts,
                    texts,
                    candidates,
                    log_likelihood[..., grid.unit_index],
                    num_candidates,
                    seed=seed + SECOND_ROUND,
                    posterior=posterior,
                    held_out=held_out,
                )
                log_likelihood = table(candidates)
            if self.bare != "none":
                built = self.bare_prompts(records, prompts)
                options["bare_log_likelihood"] = score_prompts(
                    records, built, prompts, opened, language_model
                )
        return self.data(
            records, contexts, candidates, log_likelihood, grid, held_out=held_out, **options
        )

    def simulate(
        self,
        posterior: Posterior,
        contexts: Sequence[str],
        language_model: LanguageModel,
        encoder: SentenceEncoder,
        *,
        num_samples: int | None = None,
        seed: int = 0,
        prompts: PromptBuilder | None = None,
        labels: Sequence[str] | None = None,
        groups: Sequence[str] | None = None,
        **options: Any,
    ) -> list[SimulatedResponse]:
        """Simulates responses to contexts; see `mop_jax.inference.simulate` for `options`.

        `labels` and `groups`, texts of the contexts, are looked at by a gate that compares them
        with those of exemplars; without them it does without.
        """
        return simulate(
            posterior,
            language_model,
            prompts or PromptBuilder(language_model.tokenizer),
            personas=self.speakers,
            exemplars=self.shown_exemplars,
            contexts=contexts,
            context_embeddings=encoder.encode(list(contexts)),
            num_samples=len(contexts) if num_samples is None else num_samples,
            seed=seed,
            labels=codes_of(labels, self.exemplars.labels),
            groups=codes_of(groups, self.exemplars.groups),
            **options,
        )
