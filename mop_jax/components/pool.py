"""The components as a model and its candidates see them: texts, embeddings, masks, proposals.

Nothing here asks a language model or an encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mop_jax.components.candidates import (
    CandidateSet,
    Proposal,
    defensive_proposal,
    full_candidates,
    gate_proposal,
    importance_candidates,
    renormalised_candidates,
)
from mop_jax.components.codes import codes_of, labels_known_before
from mop_jax.components.exemplars import LeaveOut, group_mask, leave_out_mask, refuse_twins
from mop_jax.components.personas import Persona
from mop_jax.components.rounds import extended_candidates
from mop_jax.components.surrogate import fit_surrogate, scores_of
from mop_jax.inference import Posterior, gate_at
from mop_jax.lm.base import TemperatureGrid
from mop_jax.models import MixtureData, mixture_data, with_bare_components
from mop_jax.population.population import Population
from mop_jax.prompts import Prompt, PromptBuilder

Method = Literal["importance", "full", "renormalised"]
Bare = Literal["none", "persona_only", "zero_shot"]
"""Which components without an exemplar there are: none, each persona's, or zero-shot as well."""

# Draws of a posterior that are looked at to propose components.
PROPOSING_DRAWS = 32
# Of the gate among what proposes a further round. With more, estimates of the gate's own mixture
# tighten sooner than those of the uniform one, and too few candidates flatter the gate; with none,
# they belittle it (benchmarks/candidates.py).
GATE_SHARE = 0.25


@dataclass(frozen=True)
class ComponentPool:
    """K personas and J exemplars with their embeddings; every pair is a component.

    Attributes:
        personas: K personas.
        exemplars: J records.
        persona_embeddings: h(g), float32 [K, D].
        exemplar_embeddings: h(x_j, y_j), float32 [J, D].
        leave_out_by: whether a record must not see itself ("record") or its group ("group").
        exemplar_context_embeddings: h(x_j), float32 [J, D]; without them the gate does not know how
            alike two contexts are.
        shown: whether prompts show the exemplar; without, one record stands for none at all.
        bare: which components without an exemplar there are besides.
    """

    personas: list[Persona]
    exemplars: Population
    persona_embeddings: np.ndarray
    exemplar_embeddings: np.ndarray
    leave_out_by: LeaveOut = "record"
    exemplar_context_embeddings: np.ndarray | None = None
    shown: bool = True
    bare: Bare = "none"

    @property
    def num_components(self) -> int:
        """K·J, of those with an exemplar."""
        return len(self.personas) * len(self.exemplars)

    @property
    def persona_texts(self) -> list[str]:
        """K texts."""
        return [persona.text for persona in self.personas]

    @property
    def exemplar_texts(self) -> list[tuple[str, str] | None]:
        """J (context, response) pairs; None where no exemplar is shown."""
        if not self.shown:
            return [None] * len(self.exemplars)
        return list(zip(self.exemplars.contexts, self.exemplars.responses, strict=True))

    @property
    def speakers(self) -> list[str | None]:
        """The texts of the gate's personas: K, and None for the zero-shot component."""
        return [*self.persona_texts, *([None] if self.bare == "zero_shot" else [])]

    @property
    def shown_exemplars(self) -> list[tuple[str, str] | None]:
        """The texts of the gate's exemplars: J, and None for none where a component is bare."""
        return [*self.exemplar_texts, *([None] if self.bare != "none" else [])]

    def bare_prompts(self, records: Population, prompts: PromptBuilder) -> list[list[Prompt]]:
        """Prompts of each record's bare components, those of personas first; none for none."""
        speakers = self.speakers if self.bare != "none" else []
        return [
            [prompts.component(speaker, None, context) for speaker in speakers]
            for context in records.contexts
        ]

    def leave_out(self, records: Population, *, held_out: bool = False) -> np.ndarray:
        """Exemplars that must not serve a record, bool [N, J].

        Args:
            records: N records.
            held_out: whether they are none of those that the pool was drawn from. Nothing of what
                they answered is looked at then; see `mop_jax.components.exemplars`.
        """
        if not self.shown:
            return np.zeros((len(records), len(self.exemplars)), bool)
        mask = group_mask if held_out else leave_out_mask
        return mask(records, self.exemplars, by=self.leave_out_by)

    def codes(self, records: Population) -> dict[str, Any]:
        """The records' `labels` and `groups` as the gate knows them.

        int32 [N] each, −1 where no exemplar has the label or group; None where either side has
        none.
        """
        return {
            "labels": codes_of(records.labels, self.exemplars.labels),
            "groups": codes_of(records.groups, self.exemplars.groups),
        }

    def propose(
        self,
        records: Population,
        context_embeddings: np.ndarray,
        record_embeddings: np.ndarray,
        num_candidates: int,
        *,
        method: Method = "importance",
        seed: int = 0,
        uniform_share: float = 0.5,
        similarity_temperature: float = 0.2,
        posterior: Posterior | None = None,
        held_out: bool = False,
    ) -> CandidateSet:
        """Chooses the components to score for each record before anything is scored.

        Args:
            records: N records.
            context_embeddings: h(x), [N, D].
            record_embeddings: h(x, y), [N, D]; not looked at for `renormalised`, which is a
                predictive density only if its components are chosen without the response.
            num_candidates: C; all components are taken where there are no more.
            method: see `mop_jax.components.candidates`.
            seed: of the draws.
            uniform_share: weight of the uniform distribution in the proposal.
            similarity_temperature: of the softmax over embedding similarities.
            posterior: propose from its gate instead of from similarity.
            held_out: see `leave_out`.

        Raises:
            DataError: if a held-out record is an exemplar (see `refuse_twins`), or as the functions
                of `mop_jax.components.candidates`.
        """
        if held_out and self.shown:
            refuse_twins(records, self.exemplars)
        leave_out = self.leave_out(records, held_out=held_out)
        num_personas, num_exemplars = len(self.personas), len(self.exemplars)
        if method == "full" or num_candidates >= self.num_components:
            return full_candidates(num_personas, num_exemplars, leave_out)
        proposal: Proposal
        if posterior is None:
            proposal = defensive_proposal(
                context_embeddings if method == "renormalised" else record_embeddings,
                self.exemplar_embeddings,
                num_personas,
                leave_out,
                uniform_share=uniform_share,
                temperature=similarity_temperature,
            )
        else:
            contexts, part = np.asarray(context_embeddings), self._codes_of_rows(records)
            proposal = gate_proposal(
                lambda start, stop: mean_gate(
                    posterior, contexts[start:stop], leave_out[start:stop], **part(start, stop)
                ),
                num_personas,
                leave_out,
                uniform_share=uniform_share,
            )
        draw = importance_candidates if method == "importance" else renormalised_candidates
        return draw(proposal, num_candidates, seed, record_keys=records.ids)

    def extend(
        self,
        records: Population,
        context_embeddings: np.ndarray,
        record_embeddings: np.ndarray,
        known: CandidateSet,
        log_likelihood: np.ndarray,
        num_candidates: int,
        *,
        seed: int,
        posterior: Posterior | None = None,
        uniform_share: float = 0.1,
        held_out: bool = False,
    ) -> CandidateSet:
        """A further round: what is scored, and new components up to C for each record.

        New ones are proposed where gate times likelihood is expected to be large: a mixture of the
        posterior's gate and the uniform one (that of the baseline, which is estimated from the same
        candidates), times what the scores of all records and this record's own say of the
        likelihood (`Surrogate`). See `mop_jax.components.rounds` for why the estimate is
        unbiased whatever the gate and the scores were.

        Args:
            records: N records.
            context_embeddings: h(x), [N, D].
            record_embeddings: h(x, y), [N, D].
            known: their candidates up to here, an `importance` set.
            log_likelihood: nats at τ = 1 of these, [N, C of `known`].
            num_candidates: C, components scored for each record in all.
            seed: of the draws; another one for each round.
            posterior: of the gate that proposes; the uniform one alone without it.
            uniform_share: weight of the uniform distribution in the proposal.
            held_out: see `leave_out`.
        """
        num_personas = len(self.personas)
        leave_out = self.leave_out(records, held_out=held_out)
        contexts, part = np.asarray(context_embeddings), self._codes_of_rows(records)
        scores = scores_of(known, log_likelihood, record_embeddings, self.exemplar_embeddings)
        surrogate = fit_surrogate(scores, num_personas)

        def expected(start: int, stop: int) -> np.ndarray:
            allowed = ~leave_out[start:stop, None, :]
            log_score = np.where(allowed, surrogate.log_score(scores, start, stop), -np.inf)
            probs = np.exp(log_score - log_score.max(axis=(1, 2), keepdims=True))
            if posterior is not None:
                uniform = allowed / (num_personas * allowed.sum(axis=2, keepdims=True))
                gate = mean_gate(
                    posterior, contexts[start:stop], leave_out[start:stop], **part(start, stop)
                )
                probs *= GATE_SHARE * gate + (1 - GATE_SHARE) * uniform
            return probs

        proposal = gate_proposal(expected, num_personas, leave_out, uniform_share=uniform_share)
        return extended_candidates(known, proposal, num_candidates, seed, record_keys=records.ids)

    def _codes_of_rows(self, records: Population) -> Callable[[int, int], dict[str, Any]]:
        """`codes` of the records from `start` to `stop`."""
        codes = self.codes(records)
        return lambda start, stop: {
            name: None if values is None else values[start:stop] for name, values in codes.items()
        }

    def data(
        self,
        records: Population,
        context_embeddings: np.ndarray,
        candidates: CandidateSet,
        log_likelihood: np.ndarray,
        grid: TemperatureGrid,
        *,
        held_out: bool = False,
        bare_log_likelihood: np.ndarray | None = None,
        **options: Any,
    ) -> MixtureData:
        """What a model is fitted to or evaluated on; `options` go to `mixture_data`.

        `bare_log_likelihood` [N, K, G] is that of the personas without an exemplar, with a further
        one, [N, K + 1, G], of zero-shot.

        A gate that is fitted to it may know the labels only where contexts ask for them, as the
        records must show (`labels_known_before`).
        """
        codes = self.codes(records)
        if not held_out and labels_known_before(records) is None:
            codes["labels"] = None
        own = self.codes(self.exemplars)
        data = mixture_data(
            context_embeddings=context_embeddings,
            persona_embeddings=self.persona_embeddings,
            exemplar_embeddings=self.exemplar_embeddings,
            persona_index=candidates.persona_index,
            exemplar_index=candidates.exemplar_index,
            log_weight=candidates.log_weight,
            log_likelihood=log_likelihood,
            temperature_grid=grid.temperatures,
            leave_out=self.leave_out(records, held_out=held_out),
            weights=records.weights,
            exemplar_contexts=self.exemplar_context_embeddings,
            exemplar_labels=own["labels"],
            exemplar_groups=own["groups"],
            **codes,
            **options,
        )
        if bare_log_likelihood is None:
            return data
        number = len(self.personas)
        alone, nothing = bare_log_likelihood[:, :number], bare_log_likelihood[:, number:]
        return with_bare_components(data, alone, nothing[:, 0] if nothing.shape[1] else None)


def mean_gate(
    posterior: Posterior,
    contexts: np.ndarray,
    leave_out: np.ndarray,
    *,
    labels: np.ndarray | None = None,
    groups: np.ndarray | None = None,
) -> np.ndarray:
    """E[π_k(x) Ω_kj(x)] over posterior draws, float64 [n, K, J]; see `gate_at` for the arguments.

    Of personas and exemplars that are some: what a gate gives to bare components is left out.

    Of many draws `PROPOSING_DRAWS` are taken, evenly spaced: a proposal need not be exact.
    """
    gate = gate_at(posterior, contexts, leave_out=leave_out, labels=labels, groups=groups)
    num_personas, num_exemplars = posterior.data.num_personas, posterior.data.num_exemplars
    total = np.zeros((len(contexts), num_personas, num_exemplars))
    count = min(PROPOSING_DRAWS, posterior.num_draws)
    for draw in np.linspace(0, posterior.num_draws - 1, count).round().astype(int).tolist():
        total += np.exp(np.asarray(gate.mixing_distribution(draw).mixing_log_probs))
    if posterior.data.bare is not None:
        # Bare components are scored for every record: they need no proposal.
        num_exemplars = leave_out.shape[1]
        num_personas -= int(posterior.data.bare.no_persona is not None)
        total = total[:, :num_personas, :num_exemplars]
    return total / count
