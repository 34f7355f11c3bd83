"""A model's own chat template: rendered with fixed arguments, and taken apart into static text.

Templates are programs. They may know no system role, move it, strip what they are given, write
today's date, or open a thought. What one does is found by rendering marks in place of the texts;
each text that a prompt is made from is rendered once more as it is, and one that the template
rewrites is refused.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mop_jax.errors import DataError
from mop_jax.prompts.dates import DEFAULT_DATE, fixed_day, in_words
from mop_jax.prompts.tokens import first_special, template_source

Messages = list[dict[str, str]]

ANSWER = "response"
FORMS: dict[str, tuple[str, ...]] = {
    "component": ("persona", "instruction", "exemplar_context", "exemplar_response", "context"),
    "persona_only": ("persona", "instruction", "context"),
    "zero_shot": ("context",),
}
"""The fields of each form, in their order."""

# Blanks of two kinds around a mark: what is left of them tells what a template strips.
_PAD = "\n\t\n"
_LEFT = {"": _PAD, "\n": "\t\n", "any": ""}
_RIGHT = {"": _PAD, "\n": "\n\t", "any": ""}


class Strip(NamedTuple):
    """What a template strips from a text: at each side "" (nothing), newlines, or "any" blank."""

    left: str = ""
    right: str = ""

    def __call__(self, text: str) -> str:
        """The text without what is stripped."""
        if self.left:
            text = text.lstrip("\n" if self.left == "\n" else None)
        if self.right:
            text = text.rstrip("\n" if self.right == "\n" else None)
        return text


class Conversation(NamedTuple):
    """A form of prompt taken apart.

    Attributes:
        prompt: what comes before the answer, with fields.
        opening: blanks that the template writes before an answer, as part of it.
        closing: blanks that it writes behind one.
        end: the special token that ends the turn, or "" if the template writes none.
        strips: of each field and the answer.
    """

    prompt: str
    opening: str
    closing: str
    end: str
    strips: dict[str, Strip]


class ChatTemplate:
    """The chat template of a tokenizer, with all that it depends on besides messages held fixed."""

    def __init__(
        self,
        tokenizer: Any,
        *,
        date: datetime.date = DEFAULT_DATE,
        arguments: Mapping[str, Any] | None = None,
    ):
        """Fixes the arguments.

        Args:
            tokenizer: has the template.
            date: what a template that writes the day is told.
            arguments: further ones by name; they come before the defaults, which are
                `enable_thinking` (off) and those that tell the day.

        Raises:
            DataError: if there is no template.
        """
        source = template_source(tokenizer)
        if not source:
            raise DataError(
                "The language model has no chat template; use the plain prompt form or give your "
                "own template."
            )
        self._tokenizer = tokenizer
        defaults = {"enable_thinking": False, "date_string": in_words(date, "%d %b %Y")}
        used = {name: value for name, value in defaults.items() if name in source}
        self._arguments = used | dict(arguments or {})
        if "strftime_now" in source:
            chosen = tokenizer.get_chat_template(self._arguments.get("chat_template"))
            # A template's own macro goes before the function that tells today's date.
            self._arguments["chat_template"] = fixed_day(date) + chosen
        # Whether persona and instruction are a system turn, or open the first user turn.
        self._system_turn = True

    def render(self, messages: Messages, generation: bool = False) -> str:
        """The text of a conversation; whatever the template raises comes through."""
        return self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=generation, **self._arguments
        )

    def messages(self, values: Mapping[str, str]) -> Messages:
        """The conversation of a prompt; its form goes by the fields that are given.

        With the field "response" it holds the answer too.
        """
        turns = [{"role": "user", "content": values["context"]}]
        if "exemplar_context" in values:
            example = {"role": "user", "content": values["exemplar_context"]}
            answer = {"role": "assistant", "content": values["exemplar_response"]}
            turns = [example, answer, *turns]
        if "persona" in values:
            described = f"{values['persona']} {values['instruction']}"
            system = {"role": "system", "content": described}
            turns = [system, *turns] if self._system_turn else opened(described, turns)
        if ANSWER in values:
            turns.append({"role": "assistant", "content": values[ANSWER]})
        return turns

    def take_apart(self) -> dict[str, Conversation]:
        """Every form as static text with fields.

        Raises:
            DataError: if the template fails, drops or reorders messages, rewrites them, or begins
                a response with something that it does not write before an answer.
        """
        reason = ""
        for self._system_turn in (True, False):
            try:
                found = self._static("component", "")
            except Exception as error:  # templates without a system role raise one of their own
                reason = str(error).strip() or type(error).__name__
                continue
            if found is not None:
                return {form: self._take_apart(form) for form in FORMS}
            wanted = ", ".join("{" + field + "}" for field in FORMS["component"])
            reason = f"its component text must hold the fields {wanted} once each and in this order"
        raise DataError(
            "The language model's chat template cannot write a persona, an exemplar and a request: "
            f"{reason}; use the plain prompt form or give your own template."
        )

    def _static(self, form: str, pad: str) -> list[str] | None:
        """The text between the marks of a form, or None if they do not come once and in order."""
        fields = (*FORMS[form], ANSWER)
        text = self.render(self.messages({field: f"{pad}@@{field}@@{pad}" for field in fields}))
        parts = re.split("@@(" + "|".join(fields) + ")@@", text)
        return parts[::2] if tuple(parts[1::2]) == fields else None

    def _take_apart(self, form: str) -> Conversation:
        fields = (*FORMS[form], ANSWER)
        static, padded = self._static(form, ""), self._static(form, _PAD)
        if static is None or padded is None:
            raise DataError(f"The language model's chat template drops a message ({form}).")
        strips = _find_strips(fields, static, padded)
        before = "".join(text + "{" + f + "}" for text, f in zip(static, fields, strict=False))
        before = before.removesuffix("{" + ANSWER + "}")
        generation = self.render(self.messages({f: "{" + f + "}" for f in FORMS[form]}), True)
        # Blanks go with the word that follows them, which is the response's.
        prompt = answer_begins(generation, before).rstrip(" ")
        behind, end = static[-1], first_special(self._tokenizer, static[-1])
        closing = behind if end is None else behind.partition(end)[0]
        if closing.strip():
            raise DataError(
                f"The language model's chat template ends an answer with {closing.strip()[:40]!r}, "
                "which is no special token of its tokenizer; give your own prompt template."
            )
        closing = "" if end is None else closing
        return Conversation(prompt, before[len(prompt) :], closing, end or "", strips)


def answer_begins(generation: str, before: str) -> str:
    """The prompt of an answer: where the template says that the model begins to write.

    Args:
        generation: the conversation with the template's generation prompt.
        before: what the template writes before an answer, when it is part of the conversation.

    Returns:
        The generation prompt, but for blanks that an answer does not have before it, and with what
        else the template writes before one: an empty thought, where it wants one.

    Raises:
        DataError: if the generation prompt goes on where an answer would begin.
    """
    if before.startswith(generation):
        return before if before[len(generation) :].strip() else generation
    if generation.startswith(before) and not generation[len(before) :].strip():
        return before
    shared = next(
        (i for i, (a, b) in enumerate(zip(generation, before, strict=False)) if a != b),
        min(len(generation), len(before)),
    )
    added = generation[shared:].strip()
    where = "inside a thought" if "think" in added else "where the model does not write them"
    raise DataError(
        f"The language model's chat template begins a response with {added[:40]!r}, which it does "
        f"not write before an answer: responses would be scored {where}. Use a model that answers "
        "at once, template arguments that switch this off, the plain prompt form, or a template "
        "of your own."
    )


def opened(described: str, turns: Sequence[dict[str, str]]) -> Messages:
    """Turns whose first begins with a description, for templates without a system role."""
    first, *others = turns
    return [{**first, "content": f"{described}\n\n{first['content']}"}, *others]


def answer_prompt(tokenizer: Any, messages: Messages, **settings: Any) -> str:
    """Any conversation as the text after which the model answers; the system turn comes first.

    Args:
        tokenizer: has the chat template.
        messages: the first may be a system turn; the last is a user's.
        **settings: of `ChatTemplate`.
    """
    chat = ChatTemplate(tokenizer, **settings)
    if messages[0]["role"] == "system" and not _puts_system_first(chat, messages):
        messages = opened(messages[0]["content"], messages[1:])
    generation = chat.render(messages, generation=True)
    mark = f"@@{ANSWER}@@"
    try:
        answered = chat.render([*messages, {"role": "assistant", "content": mark}])
    except Exception:  # a template that writes prompts only
        return generation
    return (
        answer_begins(generation, answered.partition(mark)[0]) if mark in answered else generation
    )


def _puts_system_first(chat: ChatTemplate, messages: Messages) -> bool:
    marked = [{**m, "content": f"@@{i}@@"} for i, m in enumerate(messages)]
    try:
        text = chat.render(marked, generation=True)
    except Exception:  # the template knows no system role
        return False
    found = re.findall("@@([0-9]+)@@", text)
    return found == [str(i) for i in range(len(messages))]


def _find_strips(
    fields: Sequence[str], static: Sequence[str], padded: Sequence[str]
) -> dict[str, Strip]:
    """What is left of the blanks around marks, static text by static text."""
    lefts, rights = [""] * len(fields), [""] * len(fields)
    for i, (plain, wide) in enumerate(zip(static, padded, strict=True)):
        # What follows field i − 1 and precedes field i.
        behind = _RIGHT if i > 0 else {"": ""}
        before = _LEFT if i < len(fields) else {"": ""}
        fitting = [
            (right, left)
            for right, kept_right in behind.items()
            for left, kept_left in before.items()
            if wide == kept_right + plain + kept_left
        ]
        if not fitting:
            raise DataError(
                "The language model's chat template rewrites the blanks around "
                f"{fields[min(i, len(fields) - 1)]}; give your own prompt template."
            )
        if i > 0:
            rights[i - 1] = fitting[0][0]
        if i < len(fields):
            lefts[i] = fitting[0][1]
    return dict(zip(fields, map(Strip, lefts, rights), strict=True))
