"""Verbalised sampling: the language model states several answers and how probable each is.

Asked for one answer, an aligned model gives its most typical one; asked for a distribution over
answers, it remembers that there are others. One of the stated answers is then drawn by the stated
probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mop_jax.errors import DataError
from mop_jax.evaluation.baselines.base import (
    Pending,
    PromptedResponder,
    Reading,
    Request,
    Setting,
    register,
)
from mop_jax.evaluation.baselines.listing import parse_weighted
from mop_jax.prompts import ConversationBuilder

# With the first digits at hand a small model goes on with a number, not with a remark.
_OPENING = "1. (0."


@dataclass(frozen=True)
class VerbalizedSampling:
    """Asks for k answers with probabilities and draws one of them.

    It differs from the original in that the answer is already opened ("1. (0."), so that a small
    model keeps the form (and gives its first answer less than certainty); that each sample asks
    anew and uses one of its k answers, so that samples are independent; and that a turn is as long
    as one response times k at most.

    Where answers are found but no probabilities, each is as probable as the others; where only some
    have one, the others share what is left, or the smallest one stated. Where no answer is found,
    the whole text is the response. `details` says which (`parsed`, `stated`), so that a table can
    count them.

    Attributes:
        num_answers: k.

    References:
        Zhang et al. (2025), Verbalized Sampling: How to Mitigate Mode Collapse and Unlock LLM
        Diversity.
    """

    num_answers: int = 5
    name: str = "verbalized_sampling"
    title: str = "verbalised sampling"
    reference: str = "Zhang et al. (2025)"
    needs_labels: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuses an impossible k."""
        if self.num_answers < 2:
            raise DataError(f"num_answers is {self.num_answers}; at least 2 are needed.")

    def fit(self, setting: Setting) -> PromptedResponder:
        """Nothing is fitted."""
        writer = ConversationBuilder(setting.prompts)

        def write(sample: Pending) -> Request:
            text = verbalized_text(sample.context, self.num_answers)
            return Request(writer.conversation((), text, opening=_OPENING))

        return PromptedResponder(
            setting, write, _read, writer.text_ends(), self.num_answers * setting.max_new_tokens
        )


def verbalized_text(context: str, num_answers: int) -> str:
    """What is asked for one request."""
    return (
        f"{context}\n\nWrite {num_answers} different answers to this request, as different people "
        "would give them. Begin each with its number and, in brackets, the probability from 0 to 1 "
        "that somebody answers so, then the answer in one line."
    )


def probabilities(stated: list[float | None]) -> np.ndarray:
    """What each answer is drawn with, [k], from what was stated of it.

    Example:
        >>> probabilities([0.6, 0.2, None]).round(2).tolist()
        [0.6, 0.2, 0.2]
    """
    known = [p for p in stated if p is not None and p > 0]
    if not known:
        return np.full(len(stated), 1 / len(stated))
    missing = sum(p is None for p in stated)
    left = (1 - sum(known)) / missing if missing else 0.0
    share = left if left > 0 else min(known)
    weights = np.asarray([share if p is None else p for p in stated], float)
    return weights / weights.sum()


def _read(answer: str, finished: bool, sample: Pending) -> Reading:
    # Where no digit follows, the bracket was not taken up.
    opening = _OPENING if answer.lstrip()[:1].isdigit() else "1. "
    found = parse_weighted(opening + answer.lstrip(), finished=finished)
    if not found:
        return Reading(answer.strip(), finished, {"parsed": 0, "stated": 0})
    stated = [entry.probability for entry in found]
    chosen = int(sample.rng.choice(len(found), p=probabilities(stated)))
    # A list that broke off has lost its last answer already, unless that is its only one.
    whole = finished or len(found) > 1
    counts = {"parsed": len(found), "stated": sum(p is not None for p in stated)}
    return Reading(found[chosen].text, whole, counts)


register(VerbalizedSampling())
