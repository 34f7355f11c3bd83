"""Prompts and responses as token ids, segment by segment.

Segments are cut where a special token begins, which tokenizers never merge with its neighbours, so
that each can be tokenised once and shared. A chat template that has no such token between persona,
exemplar and request (as Llama 2's) is cut at a line, and its segments get the ids that they have
behind what precedes them; where the tokenizer joins the two, they become one. A response gets the
ids that it has behind the prompt. So prompt and response have the ids of the whole chat.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from mop_jax.errors import DataError
from mop_jax.prompts.chat import ANSWER, FORMS
from mop_jax.prompts.templates import DEFAULT_INSTRUCTION, FIELD, PromptTemplate
from mop_jax.prompts.tokens import (
    TextContinuation,
    begin_ids,
    first_special,
    parting_tokens,
    special_tokens,
)

# What is tried when a builder is made: persona, exemplar, context and response.
_PROBES = (
    ("You are x.", ("Say it.", "So be it, 12.5!"), "And now?", "A fine film."),
    ("Du bist Æ — né 美.", ("a\n\nb", "two\nlines"), "1 2  3\n- x", "né; 美しい映画 🎬\nend"),
    ("you", ("(a)", "'s"), '"b"', ".5"),
)
_FORMS_TEXTS = ("component", "persona_only", "zero_shot")


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


class _Segment(NamedTuple):
    """A part of a form, with fields; `parted` if it begins where nothing is ever merged."""

    text: str
    parted: bool


class PromptBuilder:
    """Turns personas, exemplars, contexts and responses into ids, for one model and template.

    Attributes:
        end_ids: ids that end a response.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: PromptTemplate | None = None,
        *,
        instruction: str = DEFAULT_INSTRUCTION,
    ):
        """Prepares the segments, and tries a few texts against the whole chat.

        Args:
            tokenizer: the language model's tokenizer.
            template: the chat form where the tokenizer has a chat template, else the plain form.
            instruction: text of the {instruction} field.

        Raises:
            DataError: if tokenizer and chat template do not go together.
        """
        if tokenizer is None:
            raise DataError("Building prompts needs a tokenizer; this checkpoint came without one.")
        if template is None:
            has_chat = bool(getattr(tokenizer, "chat_template", None))
            template = PromptTemplate.chat(tokenizer) if has_chat else PromptTemplate.plain()
        self.tokenizer = tokenizer
        self.template = template
        self.instruction = instruction
        self._ids = TextContinuation(tokenizer)
        self._special = special_tokens(tokenizer)
        longest_first = sorted(self._special, key=len, reverse=True)
        self._special_text = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        ids = tokenizer.convert_tokens_to_ids(self._special)
        self._special_ids = frozenset(ids) - {tokenizer.unk_token_id}
        self._parting = parting_tokens(tokenizer)
        self._checked: set[tuple[str, str, str]] = set()
        self._bos = begin_ids(tokenizer, template.component)
        self._segments = {form: self._cut_up(getattr(template, form)) for form in FORMS}
        # An end that is no special token has ids of its own, whatever stands before it.
        self._special_end = template.end in self._special
        self.end_ids = self._ids.inside(template.end)
        unknown = tokenizer.unk_token_id in self.end_ids and template.end != tokenizer.unk_token
        if not self.end_ids or unknown or (self._special_end and len(self.end_ids) != 1):
            raise DataError(
                f"The end of a response, {template.end!r}, has no ids of its own in the language "
                "model's tokenizer, so no response could end; give another end."
            )
        if template.source is not None:
            self._try_whole_chats()

    @property
    def end_id(self) -> int:
        """The id that completes the end of a response."""
        return self.end_ids[-1]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all texts that a prompt may hold, the rendered chat template's included.

        The tokenizer has its own.
        """
        template = self.template
        texts = [getattr(template, form) for form in _FORMS_TEXTS]
        answer = [template.opening, template.closing, template.end]
        strips = {form: dict(fields) for form, fields in template.strips.items()}
        content = json.dumps([texts, answer, strips, self.instruction], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def component(
        self, persona: str | None, exemplar: tuple[str, str] | None, context: str
    ) -> Prompt:
        """Prompt of a component: persona and exemplar (context, response), then the request.

        Without an exemplar (None) it is that of the persona alone, and without either zero-shot.

        Raises:
            DataError: for an exemplar without a persona.
        """
        if persona is None:
            if exemplar is not None:
                raise DataError("A prompt with an exemplar needs a persona; the persona is None.")
            return self.zero_shot(context)
        if exemplar is None:
            return self.persona_only(persona, context)
        values = {
            "persona": persona,
            "exemplar_context": exemplar[0],
            "exemplar_response": exemplar[1],
            "context": context,
        }
        return self._build("component", values)

    def persona_only(self, persona: str, context: str) -> Prompt:
        """Prompt with a persona and no exemplar."""
        return self._build("persona_only", {"persona": persona, "context": context})

    def zero_shot(self, context: str) -> Prompt:
        """Prompt with neither persona nor exemplar."""
        return self._build("zero_shot", {"context": context})

    def response(self, text: str) -> tuple[int, ...]:
        """Ids of a response, its end included: those that follow a prompt in the whole chat.

        Raises:
            DataError: if the text holds what ends a response: it could not be generated; or if it
                begins with blanks that the tokenizer joins to the prompt.
        """
        self._check("component", ANSWER, text)
        ids = self._answer_ids(text)
        if self.template.source is not None and not self._is_whole(
            self.zero_shot("x"), ids, {"context": "x", ANSWER: text}
        ):
            raise DataError(
                f"The response {text[:60]!r} has other tokens in a whole chat than on its own; "
                "remove the blanks at its beginning and end."
            )
        if _find(ids, self.end_ids) != len(ids) - len(self.end_ids):
            what = "token" if len(self.end_ids) == 1 else "text"
            raise DataError(
                f"The response {text[:60]!r} holds the {what} {self.template.end!r}, which ends a "
                "response in this prompt template; change the template's end or the text."
            )
        return ids

    def _answer_ids(self, text: str) -> tuple[int, ...]:
        # Behind the request, whose context does not matter where the template's text follows it.
        before = self.template.fill(
            "component", {"context": "x"}, self._segments["component"][-1].text
        )
        written = self.template.answer(text)
        if self._special_end:
            found = self._ids.after(before, written + self.template.end)
            if found is not None and found[-1:] == self.end_ids:
                return found
        else:
            found = self._ids.after(before, written)
            if found is not None:
                return found + self.end_ids
        if self.template.source is not None:
            raise DataError(
                f"The response {text[:60]!r} begins with characters that the language model's "
                "tokenizer joins to the end of the prompt; remove the blanks at its beginning."
            )
        return self._ids.inside(written) + self.end_ids

    def _build(self, form: str, values: Mapping[str, str]) -> Prompt:
        filled = {**values, "instruction": self.instruction}
        for field in FORMS[form]:
            self._check(form, field, filled[field])
        segments = self._segments[form]
        if self.template.source is None:
            ids = [self._separate(form, s, filled, not i) for i, s in enumerate(segments)]
        else:
            ids = self._joint([(self.template.fill(form, filled, t), p) for t, p in segments])
        *prefix, request = (self._bos + ids[0], *ids[1:])
        return Prompt(tuple(segment for segment in prefix if segment), request)

    def _joint(self, segments: list[tuple[str, bool]]) -> list[tuple[int, ...]]:
        """Ids of segments that are together those of the whole text."""
        found: list[tuple[int, ...]] = []
        group, first = "", 0  # the text since the last cut where nothing is merged, and its segment
        for text, parted in segments:
            if parted or not found:
                group, first = text, len(found)
                found.append(self._ids.encode(text))
                continue
            group += text
            whole = self._ids.encode(group)
            # What the tokenizer joins across the cut belongs to the later segment.
            for i in range(first, len(found)):
                shared = _common(found[i], whole)
                found[i], whole = found[i][:shared], whole[shared:]
            found.append(whole)
        return found

    def _separate(
        self, form: str, segment: _Segment, values: Mapping[str, str], first: bool
    ) -> tuple[int, ...]:
        """Ids of a segment on its own.

        An exemplar's response gets the very ids that scoring gives a response, its end included:
        behind the end of a line, a tokenizer would merge a further one into another token.
        """
        encode = self._ids.encode if first or segment.parted else self._ids.inside
        shown = "{exemplar_response}" + self.template.end
        before, answer, after = segment.text.partition(shown)
        if not answer or self._special_end:
            return encode(self.template.fill(form, values, segment.text))
        answered = self.response(values["exemplar_response"])
        behind = self._ids.inside(self.template.fill(form, values, after))
        return encode(self.template.fill(form, values, before)) + answered + behind

    def _cut_up(self, text: str) -> list[_Segment]:
        """Segments of a form: up to the exemplar, the exemplar, and from the request on."""
        segments: list[_Segment] = []
        parted = False
        for field in ("exemplar_context", "context"):
            before, found, after = text.partition("{" + field + "}")
            if not found:
                continue
            cut, next_parted = self._cut(before)
            if cut:
                segments.append(_Segment(before[:cut], parted))
                parted = next_parted
            text = before[cut:] + found + after
        return [*segments, _Segment(text, parted)]

    def _cut(self, text: str) -> tuple[int, bool]:
        # Where the next field's turn begins: at a special token, else at the start of the line.
        fields = list(FIELD.finditer(text))
        after = fields[-1].end() if fields else 0
        special = max((text.rfind(token, after) for token in self._parting), default=-1)
        if special >= 0:
            return special, True
        return max(after, text.rfind("\n", after) + 1), False

    def _check(self, form: str, field: str, text: str) -> None:
        """Refuses a text that would change the structure of a prompt."""
        if (form, field, text) in self._checked:
            return
        found = self._special_in(text)
        if found:
            raise DataError(
                f"The text {text[:60]!r} holds {found!r}, a special token of the language "
                "model, which would change the structure of the prompt; remove it."
            )
        if self.template.source is not None:
            self._check_rendering(form, field, text)
        self._checked.add((form, field, text))

    def _special_in(self, text: str) -> str | None:
        written = self._special_text.search(text)
        if written:
            return written[0]
        # A normaliser can make one of other characters.
        made = self._special_ids.intersection(self._ids.encode(text))
        return self.tokenizer.convert_ids_to_tokens(min(made)) if made else None

    def _check_rendering(self, form: str, field: str, text: str) -> None:
        values = dict.fromkeys(FORMS[form], "x") | {ANSWER: "x", field: text}
        expected = self.template.fill(form, values) + self.template.answer(values[ANSWER])
        rendered = self._whole(values)
        if not rendered.startswith(expected):
            raise DataError(
                f"The chat template of the language model rewrites the text {text[:60]!r}; change "
                "the text, use the plain prompt form, or give your own template."
            )

    def _whole(self, values: Mapping[str, str]) -> str:
        """The whole chat as the model's own template writes it."""
        chat = self.template.source
        assert chat is not None
        return chat.render(chat.messages(values))

    def _try_whole_chats(self) -> None:
        """Compares ids with those of whole chats, so that no template is misread in silence.

        Raises:
            DataError: if they differ.
        """
        for persona, exemplar, context, answer in _PROBES:
            texts = (persona, self.instruction, *exemplar, context)
            fields = dict(zip(FORMS["component"], texts, strict=True))
            ids = self._answer_ids(answer)
            for prompt, form in (
                (self.component(persona, exemplar, context), "component"),
                (self.persona_only(persona, context), "persona_only"),
                (self.zero_shot(context), "zero_shot"),
            ):
                values = {field: fields[field] for field in FORMS[form]} | {ANSWER: answer}
                if not self._is_whole(prompt, ids, values):
                    raise DataError(
                        "The language model's tokenizer splits a chat otherwise as a whole than in "
                        f"parts (tried with the response {answer!r}), so its responses cannot be "
                        "scored exactly in the chat form; use the plain prompt form."
                    )

    def _is_whole(self, prompt: Prompt, ids: tuple[int, ...], values: Mapping[str, str]) -> bool:
        """Whether prompt and response have the ids of the whole chat with these texts."""
        text = self._whole(values)
        found = (*prompt.token_ids, *ids)
        # A template that writes no end of turn is ended by the end of sequence.
        if first_special(self.tokenizer, text[text.rfind(values[ANSWER]) :]) is None:
            found = found[:-1]
        return (self._bos + self._ids.encode(text))[: len(found)] == found


def _common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """How many ids two sequences share at their beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _find(ids: tuple[int, ...], part: tuple[int, ...]) -> int:
    """Where `part` occurs first in `ids`, or -1."""
    last = len(ids) - len(part)
    return next((i for i in range(last + 1) if ids[i : i + len(part)] == part), -1)
