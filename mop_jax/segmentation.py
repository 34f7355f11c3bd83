"""Words and sentences of text in any script.

Chinese, Japanese, Thai and their like are written without blanks between words, so that a rule
about words of English has to be one about characters there. Sentences end at the marks that
Unicode gives the property Sentence_Terminal (Unicode Standard Annex 44), and those of scripts other
than Latin need no blank behind them.
"""

from __future__ import annotations

import unicodedata

import regex

# The scripts in which blanks do not stand between words, with marks that lengthen or repeat.
_UNSPACED = (
    r"[\p{scx=Han}\p{scx=Hiragana}\p{scx=Katakana}\p{Bopomofo}\p{Yi}\p{Thai}\p{Lao}\p{Khmer}"
    r"\p{Myanmar}\p{Tibetan}\p{Javanese}\p{Balinese}\p{Tai_Le}\p{New_Tai_Lue}\p{Tai_Tham}"
    r"\p{Tai_Viet}]"
)
_LETTER = rf"(?:(?=[\p{{L}}\p{{N}}\p{{Mc}}]){_UNSPACED}\p{{M}}*)"
# A word is one such character, or a run of others between blanks; marks belong to what they follow.
_WORD = regex.compile(rf"{_LETTER}[^\s\p{{L}}\p{{N}}]*|(?:(?!{_LETTER})\S)+")
_TOKEN = regex.compile(rf"{_LETTER}|(?:(?!{_LETTER})[\w'’])+")

_CLOSING = r"[\p{Pe}\p{Pf}\p{Pi}\"']"
_SENTENCE_END = regex.compile(
    # Latin marks also stand in numbers and names: a blank has to follow, or a script without any.
    rf"[.!?…]++{_CLOSING}*(?=\s|$)|(?<={_UNSPACED})(?:\.|[!?]++)(?={_UNSPACED})"
    # Others end a sentence wherever they stand, but for a quotation within one (「…！」と…).
    # Tibetan has a mark of its own that Unicode does not count.
    r"|(?:(?![.!?])[\p{Sentence_Terminal}།༎])[.!?…\p{Sentence_Terminal}།༎]*+"
    rf"(?:{_CLOSING}*(?=\s|$)|[\p{{Pe}}\p{{Pf}}]++(?!\p{{L}})|(?![\p{{Pe}}\p{{Pf}}]))"
)
# After these a full stop ends no sentence. "etc." is not among them: it may well.
_ABBREVIATIONS = frozenset(
    ("Dr.", "Drs.", "Mr.", "Mrs.", "Ms.", "Mx.", "Prof.", "Rev.", "Hon.", "Gen.", "Sen.", "Gov.",
     "Capt.", "Lt.", "Sgt.", "St.", "Mt.", "vs.", "cf.", "approx.", "e.g.", "i.e.", "z.B.", "d.h.",
     "u.a.", "p.ej.", "Mme.", "Mlle.", "Sr.", "Sra.")
)  # fmt: skip
_INITIALS = regex.compile(r"(?!I\.)(?:\p{Lu}\.)+")


def has_unspaced(text: str) -> bool:
    """Whether `text` holds characters of a script without blanks between words."""
    return bool(regex.search(_UNSPACED, text))


def words(text: str) -> list[str]:
    """The words of `text`, each with the marks behind it.

    Words stand between blanks; where a script has none, every character counts as a word.

    Example:
        >>> words("Not bad, 很好吃！")
        ['Not', 'bad,', '很', '好', '吃！']
    """
    return [match.group() for match in _WORD.finditer(text)]


def tokens(text: str) -> list[str]:
    """Words without marks and in one form, to compare texts with.

    Example:
        >>> tokens("Not BAD, 很好。")
        ['not', 'bad', '很', '好']
    """
    folded = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    return _TOKEN.findall(folded)


def first_words(text: str, number: int) -> str:
    """The beginning of `text` that holds its first `number` words; all of it if there are fewer."""
    for count, match in enumerate(_WORD.finditer(text), start=1):
        if count == number:
            return text[: match.end()]
    return text


def without_last_word(text: str) -> str:
    """`text` up to its last word, blanks before that left out."""
    starts = [match.start() for match in _WORD.finditer(text)]
    return text[: starts[-1]].rstrip() if starts else ""


def sentence_ends(text: str) -> list[int]:
    """Where sentences of `text` end: offsets just behind the closing marks.

    Example:
        >>> text = "Dr. No is here. 你好。再见"
        >>> [text[:end] for end in sentence_ends(text)]
        ['Dr. No is here.', 'Dr. No is here. 你好。']
    """
    return [
        match.end()
        for match in _SENTENCE_END.finditer(text)
        if match.group() != "." or not _abbreviated(text, match.end())
    ]


def sentences(text: str) -> list[str]:
    """The sentences of `text` without blanks around them; a rest without an end is one too."""
    ends = sentence_ends(text)
    pieces = [text[start:end].strip() for start, end in zip([0, *ends], [*ends, len(text)])]
    return [piece for piece in pieces if piece]


def _abbreviated(text: str, end: int) -> bool:
    """Whether the full stop before `end` belongs to an abbreviation or to initials."""
    word = text[:end].rpartition(" ")[2].lstrip("([\"'“‘«„")
    # At the end of a text "plan B." is likelier than a name that was cut.
    return word in _ABBREVIATIONS or (end < len(text) and bool(_INITIALS.fullmatch(word)))
