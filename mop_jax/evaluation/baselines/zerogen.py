"""ZeroGen: a plain text that a response would continue, with its class named, and no data.

The original writes a sentence such as *The movie review in positive sentiment is: "* and lets a
language model go on until the quotation mark closes. Its texts then train a small classifier; what
it filters or weights there concerns the classifier, not the texts, and has no part here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from mop_jax.evaluation.baselines.base import (
    Pending,
    PromptedResponder,
    Reading,
    Request,
    Setting,
    register,
)
from mop_jax.prompts import ConversationBuilder

_CLOSING = re.compile(r'["”]')


@dataclass(frozen=True)
class ZeroGen:
    """Continues 'Here is a response, which is of the kind "LABEL", to the request "CONTEXT": "'.

    It differs from the original in that the class stands beside the request of each sample, where
    the original has a sentence of its own for each data set, and in the model: a chat model is
    given a text without turns. Ancestral sampling follows the setting; the original truncates
    (top-k 40, top-p 0.9), which `Setting.truncation` can say.

    Attributes:
        kinds: what a label is called in the prompt; the label itself by default.

    References:
        Ye et al. (2022), ZeroGen: Efficient Zero-shot Learning via Dataset Generation, EMNLP.
    """

    kinds: Mapping[str, str] = field(default_factory=dict)
    name: str = "zerogen"
    title: str = "ZeroGen"
    reference: str = "Ye et al. (2022), ZeroGen"
    needs_labels: ClassVar[bool] = False

    def fit(self, setting: Setting) -> PromptedResponder:
        """Nothing is fitted: ZeroGen sees no data."""
        writer = ConversationBuilder(setting.prompts)

        def write(sample: Pending) -> Request:
            kind = None if sample.label is None else self.kinds.get(sample.label, sample.label)
            return Request(writer.plain(zerogen_text(sample.context, kind)))

        return PromptedResponder(setting, write, read_quoted, writer.line_ends())


def zerogen_text(context: str, kind: str | None) -> str:
    """The text that a response continues, up to the opening quotation mark."""
    # A quotation mark inside would close the sentence's own.
    asked = context.replace('"', "'").rstrip()
    of_kind = "" if kind is None else f', which is of the kind "{kind}",'
    return f'Here is a response{of_kind} to the request "{asked}":\n\n"'


def read_quoted(answer: str, finished: bool, sample: Pending) -> Reading:
    """What stands before the closing quotation mark; all of it where none was written."""
    text, mark, _ = _split(answer.lstrip())
    return Reading(text.strip(), finished or mark, {"closed": mark})


def _split(answer: str) -> tuple[str, bool, str]:
    found = _CLOSING.search(answer)
    if found is None or not answer[: found.start()].strip():
        return answer.strip('"“” '), False, ""
    return answer[: found.start()], True, answer[found.end() :]


register(ZeroGen())
