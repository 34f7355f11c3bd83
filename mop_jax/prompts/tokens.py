"""What a prompt needs to know of a tokenizer: which tokens structure it, and how text continues.

Tokenizers split a text at their added tokens first; what lies between is normalised and merged
section by section. SentencePiece tokenizers put a blank before a text, or before each section: a
piece of a longer text must therefore be tokenised behind something, never on its own.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from mop_jax.errors import DataError

# A token that can be told from ordinary text: no letter, digit or blank at either end.
_MARKER = re.compile(r"[^\w\s]\S+[^\w\s]")
# What a text is tokenised behind, to see how it continues one.
_GUARDS = ("\n", "x\n", ".", ":", "0", "x")
_CONTINUATIONS = ("a", "Be it so.", "É 12", "。")


def begin_ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    """The ids that the tokenizer puts before a text of its own accord, unless `text` has them."""
    bos = tokenizer.bos_token_id
    if bos is None or text.startswith(tokenizer.bos_token):
        return ()
    return (bos,) if tokenizer.encode("a")[:1] == [bos] else ()


def special_tokens(tokenizer: Any) -> list[str]:
    """Texts of the tokens that structure prompts.

    Besides those that have a role by name they are the added tokens that are marked as special, as
    Llama 3's turn headers, and, whatever their mark, those that the chat template writes, as the
    turn tokens of some converted checkpoints or Qwen's `<think>`.
    """
    added = list(getattr(tokenizer, "added_tokens_decoder", {}).values())
    named = [token for token in tokenizer.all_special_tokens if token]
    marked = [token.content for token in added if token.special]
    source = template_source(tokenizer)
    written = [
        token.content
        for token in added
        if not token.special and token.content in source and _MARKER.fullmatch(token.content)
    ]
    return list(dict.fromkeys([*named, *marked, *written]))


def template_source(tokenizer: Any) -> str:
    """The source of the chat template, or of all where there are several; "" without one."""
    template = getattr(tokenizer, "chat_template", None) or ""
    return template if isinstance(template, str) else "\n".join(map(str, template.values()))


def parting_tokens(tokenizer: Any) -> list[str]:
    """The special tokens before which a text can be cut without a change in its ids.

    Not so tokens that swallow the blanks before them, or that are looked for only after
    normalisation, which may have changed what they are looked for in.
    """
    added = {t.content: t for t in getattr(tokenizer, "added_tokens_decoder", {}).values()}
    return [
        token
        for token in special_tokens(tokenizer)
        if token not in added or not (added[token].lstrip or added[token].normalized)
    ]


def first_special(tokenizer: Any, text: str) -> str | None:
    """The special token that comes first in a text; of several at one place the longest."""
    found = [(text.find(token), -len(token), token) for token in special_tokens(tokenizer)]
    return min((entry for entry in found if entry[0] >= 0), default=(0, 0, None))[2]


def end_of_turn(tokenizer: Any) -> int | None:
    """The id that ends an assistant's turn in the chat template, or None where none can be found.

    By its role, whatever the tokenizer calls its end of sequence.
    """
    if tokenizer is None or not template_source(tokenizer):
        return None
    answer = "@@response@@"
    turns = [{"role": "user", "content": "@@context@@"}, {"role": "assistant", "content": answer}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception:  # templates raise whatever they like; one of their own is checked elsewhere
        return None
    end = first_special(tokenizer, text.partition(answer)[2])
    ids = [] if end is None else tokenizer.encode(end, add_special_tokens=False)
    return ids[0] if len(ids) == 1 else None


class TextContinuation:
    """Ids of texts as they stand within a longer text.

    Raises:
        DataError: if no way is found to tokenise a text without a blank before it.
    """

    def __init__(self, tokenizer: Any):
        """Finds out whether the tokenizer puts something before a text."""
        self._tokenizer = tokenizer
        self.encode = lru_cache(maxsize=65_536)(self._encode)
        self._guard: str | None = None
        if all(self._behind(guard, text) in (None, self.encode(text))
               for guard in _GUARDS for text in _CONTINUATIONS):  # fmt: skip
            return
        for guard in _GUARDS:
            # What is unknown is joined to whatever else is.
            if tokenizer.unk_token_id in self.encode(guard):
                continue
            if all(self._behind(guard, text) is not None for text in _CONTINUATIONS):
                self._guard = guard
                return
        raise DataError(
            "The language model's tokenizer puts a blank before every text and joins it to what "
            "stands before; prompts cannot be put together from segments with it."
        )

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    def after(self, left: str, text: str) -> tuple[int, ...] | None:
        """Ids of `text` behind `left`, or None if the tokenizer joins the two."""
        return self._behind(left, text)

    def inside(self, text: str) -> tuple[int, ...]:
        """Ids of `text` behind no text in particular, without a blank that it does not have."""
        if self._guard is None or not text:
            return self.encode(text)
        found = self._behind(self._guard, text)
        return self.encode(text) if found is None else found

    def _behind(self, left: str, text: str) -> tuple[int, ...] | None:
        before, both = self.encode(left), self.encode(left + text)
        return both[len(before) :] if both[: len(before)] == before else None
