"""ProGen: rounds of generation, each shown what helped a classifier most in the rounds before.

A classifier is trained on all texts generated so far; the influence function says which of them
help it most on a validation set; the next round's prompts show some of these as exemplars. After
the last round the most helpful texts of all rounds stand in the prompts of responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from mop_jax import segmentation
from mop_jax.components.exemplars import select_exemplars
from mop_jax.errors import DataError, FaultError
from mop_jax.evaluation.baselines.base import (
    Pending,
    PromptedResponder,
    Request,
    Setting,
    derived_seed,
    refuse_unknown_label,
    refuse_without_labels,
    register,
)
from mop_jax.evaluation.baselines.drafts import Draft, write_drafts
from mop_jax.evaluation.baselines.influence import fit_softmax, influence
from mop_jax.population.population import Population
from mop_jax.prompts import ConversationBuilder

_STREAM = 23
_VALIDATION, _CONTEXTS, _SHOWN = range(3)


class Generated(NamedTuple):
    """A text of an earlier round.

    Attributes:
        context: that it answers.
        label: of the context.
        text: the language model's.
    """

    context: str
    label: str
    text: str


@dataclass(frozen=True)
class ProGen:
    """In-context feedback from the influence of generated texts.

    It differs from the original in the classifier, a softmax regression over sentence embeddings,
    for which the influence function is exact; in the validation set, real training records where
    the original has generated ones and a loss that bears their noise; in the contexts, which are
    those of training records; and in the prompt, turns of a chat. A text that broke off is kept up
    to its last whole sentence.

    Attributes:
        num_rounds: of generation, in the fit.
        texts_per_round: generated in each, shared out equally over the labels.
        num_validation: training records, stratified by label; at most half of them.
        num_helpful: texts of each label that may be shown.
        num_shown: of them in one prompt.
        penalty: λ of the classifier.

    References:
        Ye et al. (2022), ProGen: Progressive Zero-shot Dataset Generation via In-context Feedback,
        Findings of EMNLP.
    """

    num_rounds: int = 3
    texts_per_round: int = 96
    num_validation: int = 128
    num_helpful: int = 16
    num_shown: int = 4
    penalty: float = 1e-3
    name: str = "progen"
    title: str = "ProGen"
    reference: str = "Ye et al. (2022), ProGen"
    needs_labels: ClassVar[bool] = True

    def fit(self, setting: Setting) -> PromptedResponder:
        """Generates the rounds.

        Raises:
            DataError: if the training records have no labels, or only one.
            FaultError: if the language model wrote nothing that a classifier can learn from.
        """
        labels = refuse_without_labels(self.name, setting.train.labels, "training records")
        if len(set(labels)) < 2:
            raise DataError(f"Baseline {self.name!r} needs at least two labels; all are one.")
        writer, train = ConversationBuilder(setting.prompts), setting.train
        size = min(self.num_validation, len(train) // 2)
        rows = select_exemplars(
            train, list(labels), size, seed=derived_seed(setting.seed, _STREAM, _VALIDATION)
        )
        validation = train.take(rows)
        features = np.asarray(setting.encode(validation.responses), np.float64)
        pool: list[Generated] = []
        embeddings = np.zeros((0, features.shape[1]))
        helpful: dict[str, list[Generated]] = {}
        history = []
        for number in range(self.num_rounds):
            fresh = self._round(setting, writer, helpful, number)
            known = {(one.label, one.text) for one in pool}
            fresh = [one for one in dict.fromkeys(fresh) if (one.label, one.text) not in known]
            if fresh:
                added = np.asarray(setting.encode([one.text for one in fresh]), np.float64)
                embeddings = np.concatenate([embeddings, added])
                pool += fresh
            scores, accuracy = self._influences(pool, embeddings, validation, features)
            helpful = most_helpful(pool, scores, self.num_helpful)
            history.append(
                {
                    "texts": len(pool),
                    "validation_accuracy": accuracy,
                    "helpful_share": float((scores > 0).mean()),
                }
            )

        def write(sample: Pending) -> Request:
            given = None if sample.label is None else [sample.label]
            (label,) = refuse_without_labels(self.name, given, "contexts")
            refuse_unknown_label(self.name, label, helpful)
            chosen = _draw(helpful[label], self.num_shown, sample.rng)
            prompt = writer.conversation([(g.context, g.text) for g in chosen], sample.context)
            return Request(prompt, tuple(g.text for g in chosen))

        report = {
            "rounds": history,
            "helpful": {label: [g.text for g in found] for label, found in helpful.items()},
        }
        return PromptedResponder(setting, write, report=report)

    def _round(
        self,
        setting: Setting,
        writer: ConversationBuilder,
        helpful: dict[str, list[Generated]],
        number: int,
    ) -> list[Generated]:
        """Texts for contexts of training records, equally many of each label."""
        rng = np.random.default_rng(derived_seed(setting.seed, _STREAM, _CONTEXTS, number))
        asked = balanced_contexts(setting.train, self.texts_per_round, rng)
        shown = np.random.default_rng(derived_seed(setting.seed, _STREAM, _SHOWN, number))
        prompts = []
        for context, label in asked:
            chosen = _draw(helpful.get(label, []), self.num_shown, shown)
            prompts.append(writer.conversation([(g.context, g.text) for g in chosen], context))
        drafts = write_drafts(
            setting,
            prompts,
            task=f"ProGen, round {number + 1} of {self.num_rounds}",
            seed=derived_seed(setting.seed, _STREAM, number),
            temperature=setting.temperature,
            truncation=setting.truncation,
        )
        found = []
        for (context, label), draft in zip(asked, drafts, strict=True):
            text = whole_text(draft)
            if text and _can_be_shown(setting, text):
                found.append(Generated(context, label, text))
        return found

    def _influences(
        self,
        pool: list[Generated],
        embeddings: np.ndarray,
        validation: Population,
        features: np.ndarray,
    ) -> tuple[np.ndarray, float]:
        labels, wanted = [one.label for one in pool], list(validation.labels or ())
        missing = sorted(set(wanted) - set(labels))
        if missing:
            raise FaultError(
                f"The language model wrote no whole sentence of the label {missing[0]!r} for "
                "ProGen; raise max_new_tokens or texts_per_round, or leave this baseline out."
            )
        classifier = fit_softmax(embeddings, labels, penalty=self.penalty)
        scores = influence(classifier, embeddings, labels, features, wanted)
        right = classifier.log_prob(features).argmax(1) == classifier.codes(wanted)
        return scores, float(right.mean())


def whole_text(draft: Draft) -> str:
    """A text that can stand as an answer: one that broke off ends with its last whole sentence.

    Example:
        >>> whole_text(Draft("Good fun. It has som", finished=False))
        'Good fun.'
    """
    text = draft.text
    if not draft.finished:
        ends = segmentation.sentence_ends(text)
        text = text[: ends[-1]].strip() if ends else ""
    return text if segmentation.words(text) else ""


def most_helpful(
    pool: Sequence[Generated], scores: np.ndarray, number: int
) -> dict[str, list[Generated]]:
    """The texts of each label without which the validation loss would rise most, the best first."""
    best: dict[str, list[Generated]] = {}
    for at in np.argsort(-scores, kind="stable"):
        of_label = best.setdefault(pool[at].label, [])
        if len(of_label) < number:
            of_label.append(pool[at])
    return best


def balanced_contexts(
    population: Population, number: int, rng: np.random.Generator
) -> list[tuple[str, str]]:
    """Contexts of records with their labels, the labels in turn; drawn with replacement."""
    labels = population.labels or []
    rows = {
        label: [i for i, own in enumerate(labels) if own == label] for label in sorted(set(labels))
    }
    order = list(rows)
    chosen = [(label, rows[label][int(rng.integers(len(rows[label])))]) for label in
              (order[i % len(order)] for i in range(number))]  # fmt: skip
    return [(population.contexts[row], label) for label, row in chosen]


def _draw(found: Sequence[Generated], number: int, rng: np.random.Generator) -> list[Generated]:
    rows = rng.choice(len(found), min(number, len(found)), replace=False) if found else ()
    return [found[row] for row in rows]


def _can_be_shown(setting: Setting, text: str) -> bool:
    try:
        setting.prompts.response(text)
        setting.prompts.zero_shot(text)
    except DataError:
        return False
    return True


register(ProGen())
