"""AttrPrompt: the language model names what answers differ in, and each sample asks for one mix.

In the fit the model is asked for dimensions (tone, length, …) and for values of each, by label
where there are labels. A sample's prompt then names one random value of every dimension.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from mop_jax import segmentation
from mop_jax.evaluation.baselines.base import (
    Pending,
    PromptedResponder,
    Request,
    Setting,
    derived_seed,
    register,
)
from mop_jax.evaluation.baselines.drafts import write_drafts
from mop_jax.evaluation.baselines.listing import parse_list
from mop_jax.lm.base import Truncation
from mop_jax.prompts import Prompt
from mop_jax.prompts.conversations import ConversationBuilder, Pair

_log = logging.getLogger("mop_jax")

_OPENING = "1."
_ATTEMPTS = 3
_LIST_TOKENS = 120
_LIST_TEMPERATURE, _LIST_TRUNCATION = 0.7, Truncation(top_p=0.9)
_NUM_SHOWN = 5
# A dimension's name is short; a value may say a little more.
_NAME_WORDS, _VALUE_WORDS = 4, 12
_LEAST = 2
_STREAM = 11

FALLBACK: dict[str, tuple[str, ...]] = {
    "length": ("one short sentence", "one long sentence", "two or three sentences"),
    "tone": ("enthusiastic", "matter-of-fact", "ironic", "disappointed", "warm"),
    "style": ("casual and chatty", "formal and precise", "blunt", "vivid, with images"),
    "focus": ("the main point only", "one telling detail", "a comparison", "the feeling it left"),
}
"""What stands in where the language model names too little."""


# A worked example: without one a small model repeats the requests that it is shown.
_EXAMPLE_CONTEXTS = ("Write a letter about the hotel Seaview.", "Write a letter about the inn.")
_EXAMPLE_DIMENSIONS = ("Tone", "Length", "Reason for the stay", "What stood out")
_EXAMPLE_VALUES = ("the breakfast", "a noisy street", "the view", "a rude porter", "the price")
# An item of which more words than this share stand in the requests names nothing new.
_ECHO = 0.7


class Attributes(NamedTuple):
    """What answers may differ in.

    Attributes:
        values: dimension → label ("" for all) → values.
        invented: values of the language model's own, by dimension, all labels together.
        fallbacks: what had to be filled from `FALLBACK`: "dimensions", or a dimension's name with
            its label.
    """

    values: dict[str, dict[str, list[str]]]
    invented: dict[str, int]
    fallbacks: list[str]

    def draw(self, label: str | None, rng: np.random.Generator) -> dict[str, str]:
        """A random value of every dimension."""
        drawn = {}
        for dimension, by_label in self.values.items():
            options = by_label.get(label or "", by_label[next(iter(by_label))])
            drawn[dimension] = options[int(rng.integers(len(options)))]
        return drawn


@dataclass(frozen=True)
class AttrPrompt:
    """Random attributes in every prompt, the attributes asked of the model itself.

    It differs from the original in that no person chooses among the dimensions, and that the task
    is described by contexts of training records (never their responses) where the original has a
    sentence of its own for each data set. A worked example shows the form; items that only repeat
    the requests are dropped. Every dimension's values depend on the label; without
    labels they are common to all. A list that holds fewer than two items in three attempts is
    replaced by one of `FALLBACK`, with a warning; `report` counts what the model found itself.

    Attributes:
        num_dimensions: how many are asked for.
        num_values: of each dimension, and label.

    References:
        Yu et al. (2023), Large Language Model as Attributed Training Data Generator: A Tale of
        Diversity and Bias, NeurIPS.
    """

    num_dimensions: int = 4
    num_values: int = 8
    name: str = "attrprompt"
    title: str = "AttrPrompt"
    reference: str = "Yu et al. (2023)"
    needs_labels: ClassVar[bool] = False

    def fit(self, setting: Setting) -> PromptedResponder:
        """Asks for dimensions and values."""
        writer = ConversationBuilder(setting.prompts)
        found = self._ask(setting, writer)

        def write(sample: Pending) -> Request:
            chosen = found.draw(sample.label, sample.rng)
            text = attributed_text(sample.context, chosen)
            return Request(writer.conversation((), text), details={"attributes": chosen})

        report = {
            "dimensions": {name: dict(by_label) for name, by_label in found.values.items()},
            "values_found": found.invented,
            "fallbacks": found.fallbacks,
        }
        return PromptedResponder(setting, write, report=report)

    def _ask(self, setting: Setting, writer: ConversationBuilder) -> Attributes:
        rng = np.random.default_rng(derived_seed(setting.seed, _STREAM))
        contexts = list(dict.fromkeys(setting.train.contexts))
        rows = rng.choice(len(contexts), min(_NUM_SHOWN, len(contexts)), replace=False)
        shown = [contexts[row] for row in rows]

        def ask(example: Pair, texts: Sequence[str], words: int, what: int) -> list[list[str]]:
            # In the plain form an exemplar's answer is one line.
            exemplars = [example] if setting.prompts.template.source is not None else []
            prompts = [writer.conversation(exemplars, text, opening=_OPENING) for text in texts]
            return _lists(setting, prompts, words, what, shown)

        (names,) = ask(
            (dimensions_text(_EXAMPLE_CONTEXTS, 4), _numbered(_EXAMPLE_DIMENSIONS)),
            [dimensions_text(shown, self.num_dimensions)],
            _NAME_WORDS,
            0,
        )
        names = names[: self.num_dimensions]
        fallbacks: list[str] = []
        if len(names) < _LEAST:
            names, fallbacks = list(FALLBACK)[: self.num_dimensions], ["dimensions"]
        labels = sorted(set(setting.train.labels)) if setting.train.labels else [""]
        asked = [(name, label) for name in names for label in labels]
        texts = [values_text(shown, name, label, self.num_values) for name, label in asked]
        example = values_text(_EXAMPLE_CONTEXTS, _EXAMPLE_DIMENSIONS[-1], "", 5)
        lists = ask((example, _numbered(_EXAMPLE_VALUES)), texts, _VALUE_WORDS, 1)
        values: dict[str, dict[str, list[str]]] = {name: {} for name in names}
        invented = dict.fromkeys(names, 0)
        for at, ((name, label), items) in enumerate(zip(asked, lists, strict=True)):
            items = items[: self.num_values]
            if len(items) >= _LEAST:
                invented[name] += len(items)
            else:
                fallbacks.append(f"{name} ({label})" if label else name)
                items = list(_stand_in(name, at // len(labels)))
            values[name][label] = items
        if fallbacks:
            _log.warning(
                "AttrPrompt: the language model gave no usable list for %s in %d attempts; values "
                "from a fixed list stand in.",
                ", ".join(fallbacks),
                _ATTEMPTS,
            )
        return Attributes(values, invented, fallbacks)


def dimensions_text(contexts: Sequence[str], number: int) -> str:
    """What is asked for the dimensions."""
    return (
        f"{_described(contexts)}\n\nAnswers to such requests differ in many ways, for example in "
        f"their length. Name {number} attributes in which they differ, in one to three words each, "
        "as a numbered list."
    )


def values_text(contexts: Sequence[str], dimension: str, label: str, number: int) -> str:
    """What is asked for the values of a dimension."""
    kind = f' of the kind "{label}"' if label else ""
    return (
        f'{_described(contexts)}\n\nAnswers{kind} to such requests differ in this: "{dimension}". '
        f"List {number} different values that it can have, in a few words each, as a numbered list."
    )


def attributed_text(context: str, attributes: Mapping[str, str]) -> str:
    """A request with the attributes that its answer shall have."""
    lines = "\n".join(f"- {name}: {value}" for name, value in attributes.items())
    return f"{context}\n\nThe answer has these attributes:\n{lines}"


def _described(contexts: Sequence[str]) -> str:
    return "Here are requests that people answered:\n" + "\n".join(f"- {x}" for x in contexts)


def _stand_in(name: str, place: int) -> tuple[str, ...]:
    names = list(FALLBACK)
    return FALLBACK[name if name in FALLBACK else names[place % len(names)]]


def _numbered(items: Sequence[str]) -> str:
    return "\n".join(f"{number}. {item}" for number, item in enumerate(items, 1))


def is_echo(item: str, contexts: Sequence[str]) -> bool:
    """Whether an item only repeats the requests, or a value of the worked example.

    Example:
        >>> is_echo("Positive review", ["Write a positive review of Alien."])
        True
        >>> is_echo("Tone of the review", ["Write a positive review of Alien."])
        False
    """
    words = segmentation.tokens(item)
    known = {word for context in contexts for word in segmentation.tokens(context)}
    copied = item.casefold() in {value.casefold() for value in _EXAMPLE_VALUES}
    return copied or sum(word in known for word in words) > _ECHO * len(words)


def _lists(
    setting: Setting,
    prompts: Sequence[Prompt],
    words: int,
    what: int,
    contexts: Sequence[str],
) -> list[list[str]]:
    """A list for each prompt; those too short are asked for again, and the longest is kept."""
    best: list[list[str]] = [[] for _ in prompts]
    ends = ConversationBuilder(setting.prompts).text_ends()
    for attempt in range(_ATTEMPTS):
        open_ = [n for n, items in enumerate(best) if len(items) < _LEAST]
        if not open_:
            break
        drafts = write_drafts(
            setting,
            [prompts[n] for n in open_],
            task="Asking for attributes",
            seed=derived_seed(setting.seed, _STREAM, what, attempt),
            max_new_tokens=_LIST_TOKENS,
            temperature=_LIST_TEMPERATURE,
            truncation=_LIST_TRUNCATION,
            end_ids=ends,
        )
        for n, draft in zip(open_, drafts, strict=True):
            items = parse_list(f"{_OPENING} {draft.text}", finished=draft.finished, max_words=words)
            own = [item for item in items if not is_echo(item, contexts)]
            best[n] = max(best[n], own, key=len)
    return best


register(AttrPrompt())
