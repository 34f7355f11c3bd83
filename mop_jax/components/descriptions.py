"""What the language model is asked about a cluster of records, and how its answer is read.

Three worked examples come before the records: without them a small model describes itself. A small
model also repeats them, so that every answer is compared with them and with the other personas.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from typing import NamedTuple

import regex

from mop_jax import segmentation
from mop_jax.population.population import Population

OPENING = "You are"
_EXCERPT_WORDS = 60
_SHORT_WORDS = 6
_INSTRUCTION = (
    "Read the texts and describe the person who wrote them in two sentences: what they like, their "
    "mood, and how they write."
)
# Runs of words that two texts share by chance seldom have four.
_RUN = 4
# A sentence is a copy from this share of its runs on, or, of the sentence that says who somebody
# is, from this share of its words in the same order ("a carefree tourist who finds …").
_COPIED_RUNS = 0.5
_COPIED_WORDS = 0.75
_SHORTEST_COPY = 8
# From this share of the runs of the shorter of two on, personas are one.
_SAME_RUNS = 0.6


class Example(NamedTuple):
    """A worked example of the prompt.

    Attributes:
        texts: what somebody wrote.
        description: of that person.
    """

    texts: tuple[str, ...]
    description: str


EXAMPLES = (
    Example(
        ("The soup was cold again, and nobody said sorry.", "Forty minutes for a burger? Never."),
        "You are an impatient diner who notices every fault in the service. Your sentences are "
        "short and blunt.",
    ),
    Example(
        ("We got lost twice and laughed the whole way.", "The tent leaked, but what a sunrise!"),
        "You are a cheerful traveller who finds something to love in every trip. You write the "
        "way you talk, with warmth and jokes.",
    ),
    Example(
        ("The second edition corrects the errors of the first.", "Sound, but the sample is small."),
        "You are a careful reader who weighs every claim before judging it. Your tone is dry and "
        "fair.",
    ),
)
# What a chat model says when it speaks of itself instead of the author.
_NOT_AN_AUTHOR = regex.compile(
    r"^You are (an?|the) (\S+ ){0,2}"
    r"(AI|chatbot|language model|(helpful|virtual|digital) assistant)\b",
    regex.I,
)
# Full stops of scripts that have their own; Thai and Lao have none.
_FULL_STOPS = (
    (r"[\p{Han}\p{Hiragana}\p{Katakana}]", "。"),
    (r"[\p{Thai}\p{Lao}]", ""),
    (r"[\p{Devanagari}\p{Bengali}\p{Gurmukhi}\p{Oriya}]", "।"),
    (r"\p{Armenian}", "։"),
    (r"\p{Ethiopic}", "።"),
    (r"\p{Khmer}", "។"),
    (r"\p{Myanmar}", "။"),
    (r"\p{Tibetan}", "།"),
)


def summary_messages(
    records: Population, examples: Sequence[Example] = EXAMPLES
) -> list[dict[str, str]]:
    """Chat messages that ask for a short second-person description of the records' author.

    Worked examples come first: without them a small model describes itself ("You are a helpful AI
    assistant"). A response of a few words is shown behind its context, without which it says
    nothing; one of more than 60 words is shown by its first 60, marked with "…": this prompt asks
    for an impression, and nothing is scored with it. Where a script has no blanks between words,
    characters are counted.
    """
    messages = [{"role": "system", "content": _INSTRUCTION}]
    for texts, description in examples:
        shown = "\n".join(f"- {text}" for text in texts)
        messages.append({"role": "user", "content": shown})
        messages.append({"role": "assistant", "content": description})
    pairs = zip(records.contexts, records.responses, strict=True)
    shown = "\n".join(f"- {_excerpt(context, response)}" for context, response in pairs)
    return [*messages, {"role": "user", "content": shown}]


def clean_persona(continuation: str) -> str:
    """The persona that a continuation of "You are" holds, or "" if it holds none.

    Its first paragraph, blanks collapsed, up to the last whole sentence; a fragment without any end
    of a sentence loses its last, perhaps unfinished, word, which is one character where a script
    has no blanks.
    """
    paragraphs = [p for p in regex.split(r"\n\s*\n", continuation.strip("\n")) if p.strip()]
    # Special tokens that a tokenizer leaves in the text end it.
    words = regex.split(r"<\||</?s>", paragraphs[0])[0].split() if paragraphs else []
    if not words:
        return ""
    glue = "" if regex.match(r"[\p{Terminal_Punctuation}'’…]", words[0]) else " "
    text = OPENING + glue + " ".join(words)
    ends = segmentation.sentence_ends(text)
    text = text[: ends[-1]] if ends else _closed(segmentation.without_last_word(text))
    if not text.startswith(OPENING) or not regex.search(r"[\p{L}\p{N}]", text[len(OPENING) :]):
        return ""
    return text


def speaks_of_itself(text: str) -> bool:
    """Whether a persona is the language model's own ("You are a helpful AI assistant …")."""
    return bool(_NOT_AN_AUTHOR.match(text))


def copied_sentences(text: str, examples: Sequence[Example] = EXAMPLES) -> dict[str, Example]:
    """Sentences of a persona that are an example's, word for word or nearly, with that example.

    A sentence is a copy if half of its runs of four words stand in the example, its texts included,
    or if it says who somebody is with three quarters of the example's words in the same order.

    Example:
        >>> text = "You are a carefree tourist who finds something to love in every trip. You hum."
        >>> list(copied_sentences(text))
        ['You are a carefree tourist who finds something to love in every trip.']
    """
    copied = {}
    for sentence in segmentation.sentences(text):
        for example in examples:
            if _is_copy(sentence, example):
                copied[sentence] = example
    return copied


def without_sentences(text: str, dropped: Collection[str]) -> str:
    """`text` without some of its sentences; "" if the one that says who somebody is was dropped."""
    for sentence in dropped:
        text = text.replace(sentence, "")
    return " ".join(text.split()) if text.startswith(OPENING) else ""


def likeness(text: str, other: str) -> float:
    """Share of the runs of four words that two personas have in common, of the shorter one's.

    1 if they differ in case, marks or the form of characters only.
    """
    ours, theirs = _own_tokens(text), _own_tokens(other)
    if ours == theirs:
        return 1.0
    runs, others = _runs(ours), _runs(theirs)
    # Less than one: nobody could tell which of the two is meant by it otherwise.
    return min(len(runs & others) / max(min(len(runs), len(others)), 1), 0.99)


def are_alike(text: str, other: str) -> bool:
    """Whether two personas are one, word for word or nearly."""
    return likeness(text, other) >= _SAME_RUNS


def _is_copy(sentence: str, example: Example) -> bool:
    ours = _own_tokens(sentence)
    runs = _runs(ours)
    sources = [*segmentation.sentences(example.description), *example.texts]
    theirs = [_own_tokens(source) for source in sources]
    known = set().union(*map(_runs, theirs))
    if ours in theirs or (runs and len(runs & known) >= _COPIED_RUNS * len(runs)):
        return True
    if len(ours) < _SHORTEST_COPY or not sentence.startswith(OPENING):
        return False
    matcher = difflib.SequenceMatcher(None, ours, theirs[0], autojunk=False)
    return sum(block.size for block in matcher.get_matching_blocks()) >= _COPIED_WORDS * len(ours)


def _own_tokens(text: str) -> list[str]:
    """Words to compare; "You are" was the prompt's, not the model's."""
    return segmentation.tokens(text.removeprefix(OPENING))


def _runs(tokens: list[str]) -> set[tuple[str, ...]]:
    return {tuple(tokens[i : i + _RUN]) for i in range(len(tokens) - _RUN + 1)}


def _closed(fragment: str) -> str:
    """A fragment with the full stop of its script."""
    text = fragment.rstrip(",;:–—、，；：،؛ ")
    last = "".join(regex.findall(r"\p{L}", text)[-1:])
    stops = (stop for script, stop in _FULL_STOPS if regex.match(script, last))
    stop = next(stops, ".")
    return text if text.endswith(stop) else text + stop


def _excerpt(context: str, response: str) -> str:
    shown = " ".join(response.split())
    num_words = len(segmentation.words(shown))
    if num_words < _SHORT_WORDS:
        # A long question must not push out its answer.
        question = _beginning(" ".join(context.split()), _EXCERPT_WORDS - 1 - num_words)
        return f"{question} → {shown}"
    return _beginning(shown, _EXCERPT_WORDS)


def _beginning(text: str, num_words: int) -> str:
    beginning = segmentation.first_words(text, num_words)
    return text if len(beginning) == len(text) else f"{beginning} …"
