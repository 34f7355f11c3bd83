"""Forms of prompts by name: what `prompt.form` of a configuration accepts.

A further form is a function that makes a `PromptTemplate`, and its line in `PROMPT_FORMS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from mop_jax.prompts.templates import PromptTemplate
from mop_jax.prompts.tokens import template_source


class FormSettings(Protocol):
    """What a configuration says of prompts, less the form and the instruction."""

    @property
    def component(self) -> str | None:
        """Text of the form `custom`."""
        ...

    @property
    def persona_only(self) -> str | None:
        """Text of the form `custom`."""
        ...

    @property
    def zero_shot(self) -> str | None:
        """Text of the form `custom`."""
        ...

    @property
    def end(self) -> str | None:
        """What ends a response of the forms `plain` and `custom`."""
        ...

    @property
    def chat_settings(self) -> dict[str, Any]:
        """How a chat template is rendered; see `ChatTemplate`."""
        ...


FormFunction = Callable[[Any, FormSettings], PromptTemplate]
"""(tokenizer, settings) → the template."""


def _custom(tokenizer: Any, settings: FormSettings) -> PromptTemplate:
    return PromptTemplate(
        str(settings.component),
        str(settings.persona_only),
        str(settings.zero_shot),
        str(settings.end),
    )


PROMPT_FORMS: dict[str, FormFunction] = {
    "chat": lambda tokenizer, settings: PromptTemplate.chat(tokenizer, **settings.chat_settings),
    "plain": lambda tokenizer, settings: PromptTemplate.plain(settings.end or "\n"),
    "custom": _custom,
}
"""Forms by name, besides `auto`: chat where the tokenizer has a chat template, else plain."""


def make_template(form: str, tokenizer: Any, settings: FormSettings) -> PromptTemplate:
    """The template of a form, for a language model's tokenizer."""
    if form == "auto":
        form = "chat" if template_source(tokenizer) else "plain"
    return PROMPT_FORMS[form](tokenizer, settings)
