"""Prompts as segments of token ids; the only place where a prompt is built.

A component's prompt is *instruction and persona*, *exemplar*, *request*, and what is scored after
it is the response with its end of turn. Prompts are concatenations of segments: scoring and
generation condition on the very same ids, and prompts that share a persona or an exemplar share a
prefix of ids exactly.
"""

from mop_jax.prompts.builder import Prompt, PromptBuilder
from mop_jax.prompts.chat import ChatTemplate, answer_prompt
from mop_jax.prompts.conversations import ConversationBuilder
from mop_jax.prompts.dates import DEFAULT_DATE
from mop_jax.prompts.forms import PROMPT_FORMS, make_template
from mop_jax.prompts.templates import DEFAULT_INSTRUCTION, FIELDS, PromptTemplate
from mop_jax.prompts.tokens import begin_ids, end_of_turn, special_tokens

__all__ = [
    "DEFAULT_DATE",
    "DEFAULT_INSTRUCTION",
    "FIELDS",
    "PROMPT_FORMS",
    "ChatTemplate",
    "ConversationBuilder",
    "Prompt",
    "PromptBuilder",
    "PromptTemplate",
    "answer_prompt",
    "begin_ids",
    "end_of_turn",
    "make_template",
    "special_tokens",
]
