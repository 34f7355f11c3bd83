"""Prompts as segments of token ids; the only place where a prompt is built.

A component's prompt is *instruction and persona*, *exemplar*, *request*, and what is scored after
it is the response with its end-of-turn token. Each segment is tokenised on its own, and prompts are
concatenations of segments: scoring and generation condition on the very same ids, and prompts that
share a persona or an exemplar share a prefix of ids exactly.

A template is one text with the fields {instruction}, {persona}, {exemplar_context},
{exemplar_response} and {context}. The chat form is obtained by rendering the model's own chat
template around those fields; segments are then cut where a special token begins, so that the ids
equal those of the whole prompt tokenised at once.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from mop_jax.errors import DataError

FIELDS = ("instruction", "persona", "exemplar_context", "exemplar_response", "context")
_FIELD = re.compile(r"\{(" + "|".join(FIELDS) + r")\}")

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
        end: text of the single token that ends a response.
    """

    component: str
    persona_only: str
    zero_shot: str
    end: str

    def __post_init__(self) -> None:
        """Checks the fields and their order."""
        for name, needed in (
            ("component", FIELDS[1:]),
            ("persona_only", ("persona", "context")),
            ("zero_shot", ("context",)),
        ):
            found = _FIELD.findall(getattr(self, name))
            content = [field for field in found if field != "instruction"]
            if content != list(needed):
                raise DataError(
                    f"The prompt template's {name} text must hold the fields "
                    f"{', '.join('{' + f + '}' for f in needed)} once each and in this order; it "
                    f"holds {', '.join('{' + f + '}' for f in content) or 'none'}."
                )

    @classmethod
    def chat(cls, tokenizer: Any) -> PromptTemplate:
        """The form of the paper, rendered through the model's own chat template.

        Persona and instruction are the system turn (or open the first user turn, where the template
        knows no system role), the exemplar is a user and an assistant turn, the request the last
        user turn.

        Raises:
            DataError: if the tokenizer has no chat template, or one that rewrites its messages.
        """
        if not getattr(tokenizer, "chat_template", None):
            raise DataError(
                "The language model has no chat template; use the plain prompt form or give your "
                "own template."
            )
        marks = {field: f"@@{field}@@" for field in FIELDS}
        described = f"{marks['persona']} {marks['instruction']}"
        request = {"role": "user", "content": marks["context"]}
        example = [
            {"role": "user", "content": marks["exemplar_context"]},
            {"role": "assistant", "content": marks["exemplar_response"]},
        ]

        def render(messages: list[dict[str, str]], generation: bool = True) -> str:
            text = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=generation
            )
            for field, mark in marks.items():
                text = text.replace(mark, "{" + field + "}")
            return text

        def with_description(messages: list[dict[str, str]]) -> str:
            try:
                return render([{"role": "system", "content": described}, *messages])
            except Exception:  # templates without a system role raise a Jinja error of their own
                first = messages[0]
                opened = {**first, "content": f"{described}\n\n{first['content']}"}
                return render([opened, *messages[1:]])

        answered = render([request, {"role": "assistant", "content": "@@answer@@"}], False)
        end = _first_special(tokenizer, answered.partition("@@answer@@")[2])
        return cls(
            component=with_description([*example, request]),
            persona_only=with_description([request]),
            zero_shot=render([request]),
            end=end or tokenizer.eos_token,
        )

    @classmethod
    def plain(cls, end: str = "\n") -> PromptTemplate:
        """A form without special tokens, for base models; a response ends with its line."""
        return cls(_PLAIN_COMPONENT, _PLAIN_PERSONA, _PLAIN_REQUEST, end)


@dataclass(frozen=True)
class Prompt:
    """A prompt as segments of token ids.

    Attributes:
        prefix: shared segments, outermost first: instruction and persona, then the exemplar.
        request: what is particular to the record and precedes its response; never empty.
    """

    prefix: tuple[tuple[int, ...], ...]
    request: tuple[int, ...]

    @property
    def token_ids(self) -> list[int]:
        """The whole prompt."""
        return [i for segment in (*self.prefix, self.request) for i in segment]


class PromptBuilder:
    """Turns personas, exemplars, contexts and responses into ids, for one model and template."""

    def __init__(
        self,
        tokenizer: Any,
        template: PromptTemplate | None = None,
        *,
        instruction: str = DEFAULT_INSTRUCTION,
    ):
        """Prepares the segments.

        Args:
            tokenizer: the language model's tokenizer.
            template: the chat form where the tokenizer has a chat template, else the plain form.
            instruction: text of the {instruction} field.

        Raises:
            DataError: if the end of a response is not one token.
        """
        if tokenizer is None:
            raise DataError("Building prompts needs a tokenizer; this checkpoint came without one.")
        if template is None:
            has_chat = bool(getattr(tokenizer, "chat_template", None))
            template = PromptTemplate.chat(tokenizer) if has_chat else PromptTemplate.plain()
        self.tokenizer = tokenizer
        self.template = template
        self.instruction = instruction
        self._special = special_tokens(tokenizer)
        self._encode = lru_cache(maxsize=65_536)(self._encode_uncached)
        end = self._encode(template.end)
        if len(end) != 1:
            raise DataError(
                f"The end of a response, {template.end!r}, must be one token of the model; it is "
                f"{len(end)} tokens."
            )
        self.end_id = end[0]
        self._bos = begin_ids(tokenizer, template.component)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of template and instruction (the tokenizer has its own)."""
        content = json.dumps([asdict(self.template), self.instruction], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def component(self, persona: str, exemplar: tuple[str, str], context: str) -> Prompt:
        """Prompt of a component: persona and exemplar (context, response), then the request."""
        values = {
            "persona": persona,
            "exemplar_context": exemplar[0],
            "exemplar_response": exemplar[1],
            "context": context,
        }
        return self._build(self.template.component, values, ("exemplar_context", "context"))

    def persona_only(self, persona: str, context: str) -> Prompt:
        """Prompt with a persona and no exemplar."""
        values = {"persona": persona, "context": context}
        return self._build(self.template.persona_only, values, ("context",))

    def zero_shot(self, context: str) -> Prompt:
        """Prompt with neither persona nor exemplar."""
        return self._build(self.template.zero_shot, {"context": context}, ("context",))

    def response(self, text: str) -> tuple[int, ...]:
        """Ids of a response, end-of-turn included.

        Raises:
            DataError: if the text holds the token that ends a response: it could not be generated.
        """
        ids = self._content(text)
        if self.end_id in ids:
            raise DataError(
                f"The response {text[:60]!r} holds the token {self.template.end!r}, which ends a "
                "response in this prompt template; change the template's end or the text."
            )
        return (*ids, self.end_id)

    def _build(self, text: str, values: dict[str, str], cuts: Sequence[str]) -> Prompt:
        segments: list[tuple[int, ...]] = []
        rest = text
        for field in cuts:
            before, _, after = rest.partition("{" + field + "}")
            head, tail = self._cut(before)
            segments.append(self._fill(head, values))
            rest = tail + "{" + field + "}" + after
        *prefix, request = (*segments, self._fill(rest, values))
        prefix[0] = self._bos + prefix[0] if prefix[0] else prefix[0]
        if not prefix[0]:
            request = self._bos + request
        return Prompt(tuple(segment for segment in prefix if segment), request)

    def _cut(self, text: str) -> tuple[str, str]:
        # Cut where the next field's turn begins: at a special token, which tokenisers never merge
        # with its neighbours, else at the start of the line.
        fields = list(_FIELD.finditer(text))
        after = fields[-1].end() if fields else 0
        special = max((text.rfind(token, after) for token in self._special), default=-1)
        cut = special if special >= 0 else max(after, text.rfind("\n", after) + 1)
        return text[:cut], text[cut:]

    def _fill(self, text: str, values: dict[str, str]) -> tuple[int, ...]:
        # An exemplar's response gets the very ids that scoring gives a response, its end included:
        # after "\n" as the end, a tokenizer would merge a following "\n" into another token.
        before, answer, after = text.partition("{exemplar_response}" + self.template.end)
        if answer:
            answered = self.response(values["exemplar_response"])
            return self._fill(before, values) + answered + self._fill(after, values)
        filled = {"instruction": self.instruction, **values}
        for field in _FIELD.findall(text):
            self._refuse_special(filled[field])
        return self._encode(_FIELD.sub(lambda match: filled[match.group(1)], text))

    def _content(self, text: str) -> tuple[int, ...]:
        self._refuse_special(text)
        return self._encode(text)

    def _refuse_special(self, text: str) -> None:
        for token in self._special:
            if token in text:
                raise DataError(
                    f"The text {text[:60]!r} holds {token!r}, a special token of the language "
                    "model, which would change the structure of the prompt; remove it."
                )

    def _encode_uncached(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))


def begin_ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    """The ids that the tokenizer puts before a text of its own accord, unless `text` has them."""
    bos = tokenizer.bos_token_id
    if bos is None or text.startswith(tokenizer.bos_token):
        return ()
    return (bos,) if tokenizer.encode("a")[:1] == [bos] else ()


def special_tokens(tokenizer: Any) -> list[str]:
    """Texts of the tokens that structure prompts, those that have no role by name included.

    Llama 3's turn headers, for one, are among the added tokens only.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    named = [token for token in tokenizer.all_special_tokens if token]
    return list(dict.fromkeys([*named, *(token.content for token in added if token.special)]))


def _first_special(tokenizer: Any, text: str) -> str | None:
    found = [(text.find(token), token) for token in special_tokens(tokenizer) if token in text]
    return min(found)[1] if found else None
