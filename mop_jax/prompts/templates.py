"""Templates of prompts: three texts with fields, the user's own or the model's chat form."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mop_jax.errors import DataError
from mop_jax.prompts.chat import ANSWER, ChatTemplate, Strip
from mop_jax.prompts.dates import DEFAULT_DATE

FIELDS = ("instruction", "persona", "exemplar_context", "exemplar_response", "context")
FIELD = re.compile(r"\{(" + "|".join(FIELDS) + r")\}")

DEFAULT_INSTRUCTION = "You embody the persona in the description to complete the task."

_PLAIN_EXAMPLE = "Request: {exemplar_context}\nResponse:\n{exemplar_response}\n\n"
_PLAIN_REQUEST = "Request: {context}\nResponse:\n"
_PLAIN_COMPONENT = "{persona}\n{instruction}\n\n" + _PLAIN_EXAMPLE + _PLAIN_REQUEST
_PLAIN_PERSONA = "{persona}\n{instruction}\n\n" + _PLAIN_REQUEST


@dataclass(frozen=True)
class PromptTemplate:
    """The three texts that prompts are made from, and the text that ends a response.

    Attributes:
        component: persona and exemplar; must hold {context} last, and {persona}.
        persona_only: the baseline without an exemplar.
        zero_shot: the baseline without persona and exemplar.
        end: text that ends a response: a special token, or any text.
        opening: what is written between a prompt and its response, and scored with it.
        closing: what is written between a response and its end, and scored with it.
        strips: of each form, what is stripped from each field and from the response.
        source: the chat template that it was made from. Then the ids are those of the whole chat.
    """

    component: str
    persona_only: str
    zero_shot: str
    end: str
    opening: str = ""
    closing: str = ""
    strips: Mapping[str, Mapping[str, Strip]] = field(default_factory=dict)
    source: ChatTemplate | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Checks the fields and their order."""
        for name, needed in (
            ("component", FIELDS[1:]),
            ("persona_only", ("persona", "context")),
            ("zero_shot", ("context",)),
        ):
            found = FIELD.findall(getattr(self, name))
            content = [field for field in found if field != "instruction"]
            if content != list(needed):
                raise DataError(
                    f"The prompt template's {name} text must hold the fields "
                    f"{', '.join('{' + f + '}' for f in needed)} once each and in this order; it "
                    f"holds {', '.join('{' + f + '}' for f in content) or 'none'}."
                )
        if not self.end:
            raise DataError("The prompt template's end is blank; a response needs an end.")

    @classmethod
    def chat(
        cls,
        tokenizer: Any,
        *,
        date: datetime.date = DEFAULT_DATE,
        arguments: Mapping[str, Any] | None = None,
    ) -> PromptTemplate:
        """The form of the paper, rendered through the model's own chat template.

        Persona and instruction are the system turn (or open the first user turn, where the template
        knows no system role or puts it elsewhere), the exemplar is a user and an assistant turn,
        the request the last user turn.

        Args:
            tokenizer: the language model's.
            date: what a template that writes today's date is told instead.
            arguments: of the chat template; thinking is off by default.

        Raises:
            DataError: if the tokenizer has no chat template, or one that rewrites its messages or
                begins responses inside a thought.
        """
        template = ChatTemplate(tokenizer, date=date, arguments=arguments)
        forms = template.take_apart()
        first = forms["component"]
        answer = (first.opening, first.closing, first.end, first.strips[ANSWER])
        for form in forms.values():
            if (form.opening, form.closing, form.end, form.strips[ANSWER]) != answer:
                raise DataError(
                    "The language model's chat template writes an answer differently with and "
                    "without a persona; give your own prompt template."
                )
        end = first.end or tokenizer.eos_token
        if not end:
            raise DataError(
                "The language model's chat template writes no token that ends a turn, and its "
                "tokenizer has no end of sequence; give your own prompt template."
            )
        return cls(
            **{name: form.prompt for name, form in forms.items()},
            end=end,
            opening=first.opening,
            closing=first.closing,
            strips={name: form.strips for name, form in forms.items()},
            source=template,
        )

    @classmethod
    def plain(cls, end: str = "\n") -> PromptTemplate:
        """A form without special tokens, for base models; a response ends with its line."""
        return cls(_PLAIN_COMPONENT, _PLAIN_PERSONA, _PLAIN_REQUEST, end)

    def fill(self, form: str, values: Mapping[str, str], text: str | None = None) -> str:
        """The text of a form, or a part of it, with texts in place of its fields."""
        strips = self.strips.get(form, {})
        shown = {name: strips.get(name, Strip())(value) for name, value in values.items()}
        template = getattr(self, form) if text is None else text
        return FIELD.sub(lambda match: shown[match.group(1)], template)

    def answer(self, text: str) -> str:
        """A response as the template writes it, without its end."""
        strip = self.strips.get("component", {}).get(ANSWER, Strip())
        return f"{self.opening}{strip(text)}{self.closing}"
