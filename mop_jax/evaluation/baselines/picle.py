"""PICLe: the exemplars that a persona makes more probable, by a likelihood ratio.

Records are ranked by how much more probable their responses are to a language model that has been
told of the persona than to the plain one; the first few stand in every prompt of that persona.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from mop_jax.evaluation.baselines.base import (
    Pending,
    PromptedResponder,
    Request,
    Setting,
    derived_seed,
    draw_records,
    refuse_unknown_label,
    refuse_without_labels,
    register,
)
from mop_jax.evaluation.baselines.drafts import score_responses
from mop_jax.evaluation.baselines.persona_only import refuse_no_personas
from mop_jax.population.population import Population
from mop_jax.prompts.conversations import ConversationBuilder, Pair

_STREAM = 37


class Ranking(NamedTuple):
    """Records of one persona, the most telling first.

    Attributes:
        description: of the persona.
        rows: positions in the training records.
        ratios: log p(y | x, persona) − log p(y | x), nats, in the order of `rows`.
        demonstrations: positions of the records that stood in for the persona.
    """

    description: str
    rows: list[int]
    ratios: list[float]
    demonstrations: list[int]


@dataclass(frozen=True)
class PICLe:
    """Likelihood-ratio choice of exemplars.

    It differs from the original in what stands for the persona. There a copy of the language model
    is fine-tuned on the persona's records, and the ratio is between that and the plain one. Here
    nothing is fine-tuned: the ratio is between the language model after a description of the
    persona and a few of its records as demonstrations, and the language model after the request
    alone. A label is a persona, described by its name, whose records are those with the label;
    without labels the mixture's personas are, each for itself, and every record is a candidate.

    A sample's prompt holds the persona's description and its first `num_exemplars` records, as in
    the original the same ones for every request of that persona.

    Attributes:
        num_exemplars: shown in a prompt; the original has three.
        num_candidates: records that are ranked for each persona.
        num_demonstrations: records that stand for the persona while candidates are scored; they
            are no candidates.

    References:
        Choi and Li (2024), PICLe: Eliciting Diverse Behaviors from Large Language Models with
        Persona In-Context Learning, ICML.
    """

    num_exemplars: int = 3
    num_candidates: int = 128
    num_demonstrations: int = 4
    name: str = "picle"
    title: str = "PICLe"
    reference: str = "Choi and Li (2024)"
    needs_labels: ClassVar[bool] = False

    def fit(self, setting: Setting) -> PromptedResponder:
        """Ranks the training records of each label, or for each persona.

        Raises:
            DataError: if there are neither labels nor personas.
        """
        writer, train = ConversationBuilder(setting.prompts), setting.train
        labelled = train.labels is not None
        if labelled:
            targets = [
                (label, label_description(label)) for label in sorted(set(train.labels or ()))
            ]
        else:
            targets = [
                (str(k), text) for k, text in enumerate(refuse_no_personas(self.name, setting))
            ]
        rankings = {
            key: self._rank(setting, writer, description, key if labelled else None, number)
            for number, (key, description) in enumerate(targets)
        }

        def write(sample: Pending) -> Request:
            if labelled:
                given = None if sample.label is None else [sample.label]
                (key,) = refuse_without_labels(self.name, given, "contexts")
                refuse_unknown_label(self.name, key, rankings)
            else:
                key = targets[int(sample.rng.integers(len(targets)))][0]
            ranking = rankings[key]
            rows = ranking.rows[: self.num_exemplars]
            pairs = _pairs(train, rows)
            prompt = writer.conversation(
                pairs, sample.context, description=ranking.description, shared=True
            )
            details = {"target": key, "exemplars": [train.ids[row] for row in rows]}
            return Request(prompt, tuple(y for _, y in pairs), details)

        report = {
            key: {
                "exemplars": [train.ids[row] for row in ranking.rows[: self.num_exemplars]],
                "log_ratios": ranking.ratios[: self.num_exemplars],
                "candidates": len(ranking.rows),
            }
            for key, ranking in rankings.items()
        }
        return PromptedResponder(setting, write, report=report)

    def _rank(
        self,
        setting: Setting,
        writer: ConversationBuilder,
        description: str,
        label: str | None,
        number: int,
    ) -> Ranking:
        train = setting.train
        rng = np.random.default_rng(derived_seed(setting.seed, _STREAM, number))
        labels = train.labels or []
        rows = [i for i in range(len(train)) if label is None or labels[i] == label]
        rows = _distinct(train, rows)
        # A label of very few records has fewer demonstrations, so that candidates are left.
        wanted = self.num_demonstrations if label is not None else 0
        num_shown = min(wanted, max(0, len(rows) - self.num_exemplars))
        order = draw_records(train.take(rows), min(num_shown + self.num_candidates, len(rows)), rng)
        drawn = [rows[at] for at in order]
        demonstrations, candidates = drawn[:num_shown], sorted(drawn[num_shown:])
        ratios = likelihood_ratios(
            setting, writer, description, _pairs(train, demonstrations), _pairs(train, candidates)
        )
        best = np.argsort(-ratios, kind="stable")
        return Ranking(
            description,
            [candidates[at] for at in best],
            ratios[best].tolist(),
            demonstrations,
        )


def likelihood_ratios(
    setting: Setting,
    writer: ConversationBuilder,
    description: str,
    demonstrations: Sequence[Pair],
    candidates: Sequence[Pair],
) -> np.ndarray:
    """Log p(y | x, description, demonstrations) − log p(y | x) of candidates (x, y), nats, [n]."""
    answers = [setting.prompts.response(y) for _, y in candidates]
    told = [writer.conversation(demonstrations, x, description=description) for x, _ in candidates]
    plain = [writer.conversation((), x) for x, _ in candidates]
    task = "Scoring exemplars (PICLe)"
    return score_responses(setting, told, answers, task=task) - score_responses(
        setting, plain, answers, task=task
    )


def label_description(label: str) -> str:
    """What the language model is told of a label."""
    return f'Every answer here is of one kind: "{label}".'


def _pairs(train: Population, rows: Sequence[int]) -> list[Pair]:
    return [(train.contexts[row], train.responses[row]) for row in rows]


def _distinct(train: Population, rows: Sequence[int]) -> list[int]:
    """The first record of each text: a demonstration must not be a candidate too."""
    first: dict[str, int] = {}
    for row in rows:
        first.setdefault(train.text_keys[row], row)
    return list(first.values())


register(PICLe())
