"""Prompts that no likelihood is of: several exemplars, a description, plain text.

The forms of a component belong to `PromptBuilder`. Baselines show several exemplars or none, and
ask for lists; simulation may show several components together. Here their prompts get the ids that
the whole chat has, or, in the plain form, those of the builder's own pieces one behind the other.
"""

from __future__ import annotations

from collections.abc import Sequence

from mop_jax.prompts.builder import Prompt, PromptBuilder
from mop_jax.prompts.chat import answer_begins
from mop_jax.prompts.tokens import TextContinuation, begin_ids

Pair = tuple[str, str]
"""A context and its response."""

_MARK = "@@response@@"
# Two contexts that begin differently tell where prompts with the same exemplars part.
_PROBES = ("A", "7 z")


class ConversationBuilder:
    """Writes prompts in the form, chat or plain, of a `PromptBuilder`."""

    def __init__(self, prompts: PromptBuilder):
        """`prompts` decides on the form, and refuses texts that would change its structure."""
        self._prompts = prompts
        self._tokenizer = prompts.tokenizer
        self._ids = TextContinuation(prompts.tokenizer)
        self._parts: dict[tuple, tuple[int, ...]] = {}

    def conversation(
        self,
        exemplars: Sequence[Pair],
        context: str,
        *,
        description: str = "",
        opening: str = "",
        shared: bool = False,
    ) -> Prompt:
        """A prompt in which exemplars were answered, one turn each, before the context is asked.

        Args:
            exemplars: (context, response) texts; none for zero-shot.
            context: what is to be answered.
            description: stands before all, in the first user turn.
            opening: what the answer begins with; the language model goes on from there.
            shared: whether other prompts have the same exemplars and description, so that they
                should be run once. Where every prompt has others, that would only take memory.

        Raises:
            DataError: for a text that holds a special token, or a response that holds what ends it.
        """
        pairs = tuple((x, y) for x, y in exemplars)
        ids = self._whole(pairs, context, description, opening)
        if not shared:
            return Prompt((), ids)
        prefix = self._shared(pairs, description)
        if ids[: len(prefix)] != prefix or len(prefix) == len(ids):
            return Prompt((), ids)
        return Prompt((prefix,) if prefix else (), ids[len(prefix) :])

    def component(self, persona: str | None, exemplars: Sequence[Pair], context: str) -> Prompt:
        """A component's prompt with several exemplars: a turn each, under one persona.

        With one exemplar it has the ids of `PromptBuilder.component`, with none those of
        `PromptBuilder.persona_only`.

        Args:
            persona: the description; None for zero-shot, which shows no exemplar either.
            exemplars: (context, response) texts, in their order.
            context: what is to be answered.

        Raises:
            DataError: as `conversation`.
        """
        if persona is None:
            return Prompt((), tuple(self._prompts.zero_shot(context).token_ids))
        if not exemplars:
            return Prompt((), tuple(self._prompts.persona_only(persona, context).token_ids))
        # The builder refuses what would change the structure of a prompt.
        built = [self._prompts.component(persona, pair, context) for pair in exemplars]
        source = self._prompts.template.source
        if source is None:
            shown = [i for prompt in built for segment in prompt.prefix[1:] for i in segment]
            return Prompt((), (*built[0].prefix[0], *shown, *built[0].request))
        (first, answer), *others = exemplars
        *turns, request = source.messages(
            {
                "persona": persona,
                "instruction": self._prompts.instruction,
                "exemplar_context": first,
                "exemplar_response": answer,
                "context": context,
            }
        )
        turns += [turn for pair in others for turn in _turns(*pair)]
        text = self._asking([*turns, request])
        return Prompt((), begin_ids(self._tokenizer, text) + self._ids.encode(text))

    def plain(self, text: str) -> Prompt:
        """A text to be continued, without any turns."""
        self._prompts.zero_shot(text)  # refuses special tokens
        return Prompt((), begin_ids(self._tokenizer, text) + self._ids.encode(text))

    def line_ends(self) -> list[tuple[int, ...]]:
        """Ids that end a continued text: an end of line, of the response, or of the sequence."""
        ends = [self._ids.inside("\n"), self._ids.inside("\n\n"), tuple(self._prompts.end_ids)]
        if self._tokenizer.eos_token_id is not None:
            ends.append((self._tokenizer.eos_token_id,))
        unknown = self._tokenizer.unk_token_id
        known = [end for end in ends if end and (unknown is None or unknown not in end)]
        return list(dict.fromkeys(known))

    def text_ends(self) -> list[tuple[int, ...]]:
        """Ids that end an answer of several lines: in the plain form a response ends with its own.

        Without an end of sequence an answer there is one line after all.
        """
        eos = self._tokenizer.eos_token_id
        if self._prompts.template.source is not None or eos is None:
            return [tuple(self._prompts.end_ids)]
        return [(eos,)]

    def _whole(
        self, pairs: tuple[Pair, ...], context: str, description: str, opening: str
    ) -> tuple[int, ...]:
        # The builder refuses what would change the structure of a prompt; its ids of a response
        # are those that the response is scored with.
        for text in (context, *(x for x, _ in pairs), *filter(None, (description, opening))):
            self._prompts.zero_shot(text)
        answers = [self._prompts.response(y) for _, y in pairs]
        if self._prompts.template.source is None:
            return self._pieces(pairs, answers, context, description, opening)
        text = self._chat(pairs, context, description)
        if opening:
            text += self._prompts.template.opening + opening
        return begin_ids(self._tokenizer, text) + self._ids.encode(text)

    def _chat(self, pairs: tuple[Pair, ...], context: str, description: str) -> str:
        asked = [x for x, _ in pairs] + [context]
        if description:
            asked[0] = f"{description}\n\n{asked[0]}"
        turns: list[dict[str, str]] = []
        for text, (_, answer) in zip(asked, pairs, strict=False):
            turns += _turns(text, answer)
        return self._asking([*turns, {"role": "user", "content": asked[-1]}])

    def _asking(self, turns: list[dict[str, str]]) -> str:
        """Turns as the template writes them, up to where the next answer begins."""
        source = self._prompts.template.source
        assert source is not None
        answered = source.render([*turns, {"role": "assistant", "content": _MARK}])
        before = answered.rpartition(_MARK)[0]
        # Blanks go with the word that follows them, which is the response's.
        return answer_begins(source.render(turns, generation=True), before).rstrip(" ")

    def _pieces(
        self,
        pairs: tuple[Pair, ...],
        answers: list[tuple[int, ...]],
        context: str,
        description: str,
        opening: str,
    ) -> tuple[int, ...]:
        template = self._prompts.template
        begin = begin_ids(self._tokenizer, template.zero_shot)
        ids = begin + (self._ids.encode(f"{description}\n\n") if description else ())
        parting = self._parting()
        for (x, _), answer in zip(pairs, answers, strict=True):
            ids += self._asked(x, begin) + answer + parting
        ids += self._asked(context, begin)
        return ids + (self._ids.inside(template.opening + opening) if opening else ())

    def _asked(self, context: str, begin: tuple[int, ...]) -> tuple[int, ...]:
        ids = tuple(self._prompts.zero_shot(context).token_ids)
        return ids[len(begin) :] if begin and ids[: len(begin)] == begin else ids

    def _parting(self) -> tuple[int, ...]:
        """What the template writes between the end of an exemplar and the next request."""
        template = self._prompts.template
        between = template.component.partition("{exemplar_response}")[2].partition("{context}")[0]
        before = template.zero_shot.partition("{context}")[0]
        if before and between.endswith(before):
            between = between[: -len(before)]
        elif before:
            between = f"{template.end}\n"
        text = between.removeprefix(template.closing).removeprefix(template.end)
        return self._ids.inside(text) if text else ()

    def _shared(self, pairs: tuple[Pair, ...], description: str) -> tuple[int, ...]:
        key = (pairs, description)
        if key not in self._parts:
            one, other = (self._whole(pairs, probe, description, "") for probe in _PROBES)
            self._parts[key] = one[: common_length(one, other)]
        return self._parts[key]


def _turns(context: str, response: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": context}, {"role": "assistant", "content": response}]


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids two sequences share at their beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
