"""When two texts are the same record: one normal form, and hashes of it.

The normal form is Unicode's compatibility caseless matching (NFKC, case folded, NFKC; The Unicode
Standard, section 3.13) without characters that are not seen, runs of blanks collapsed. An answer
stored as NFC and as NFD, in full-width or half-width letters, is one answer.
"""

from __future__ import annotations

import hashlib
import unicodedata

# A response of fewer words than this may well be two people's; a longer one is one record twice.
MIN_WORDS_OF_A_TWIN = 8
# Scripts without blanks between words: about so many characters make one.
_CHARACTERS_PER_WORD = 3
_UNSPACED = (
    "CJK UNIFIED",
    "CJK COMPATIBILITY",
    "HIRAGANA",
    "KATAKANA",
    "HALFWIDTH KATAKANA",
    "BOPOMOFO",
    "YI SYLLABLE",
    "THAI",
    "LAO",
    "KHMER",
    "MYANMAR",
    "TIBETAN",
    "TAI LE",
    "NEW TAI LUE",
    "TAI THAM",
    "JAVANESE",
    "BALINESE",
)


def normal_form(text: str) -> str:
    r"""The text as keys see it.

    Example:
        >>> normal_form("  Très\u00a0BIEN ") == normal_form("Tre\u0300s bien")
        True
    """
    if text.isascii():
        return " ".join(text.casefold().split())
    # Case folding undoes normal forms, and NFKC can bring capitals: both twice.
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    folded = unicodedata.normalize("NFKC", folded.casefold())
    seen = " ".join("".join(c for c in folded if not _is_unseen(c)).split())
    # A text of unseen characters only keeps them, or it would equal the empty one.
    return seen or " ".join(folded.split())


def num_words(text: str) -> float:
    """Words between blanks; where a script sets none, three characters count as one word.

    Example:
        >>> num_words("a film to remember"), num_words("とても良い映画です")
        (4.0, 3.0)
    """
    total = 0.0
    for word in text.split():
        unspaced = 0 if word.isascii() else sum(map(_is_unspaced, word))
        total += max(1.0, unspaced / _CHARACTERS_PER_WORD)
    return total


def is_long(text: str) -> bool:
    """Whether a text is too long to be written twice by chance: eight words or more."""
    return num_words(text) >= MIN_WORDS_OF_A_TWIN


def response_key(response: str) -> str | None:
    """A hash of a normalised response that is too long to be anybody else's; None for a short one.

    The same review may stand under two spellings of a film's name: whatever its context, it must
    not serve itself as an exemplar, nor be held out from itself.
    """
    return text_key("", response) if is_long(response) else None


def text_key(context: str, response: str) -> str:
    """A hash of the normal forms of both texts."""
    parts = (normal_form(text) for text in (context, response))
    return hashlib.sha256("\x00".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _is_unseen(character: str) -> bool:
    # Cf: zero-width joiners and blanks, soft hyphens, marks of direction; then variation selectors.
    return unicodedata.category(character) == "Cf" or "\ufe00" <= character <= "\ufe0f"


def _is_unspaced(character: str) -> bool:
    return character.isalpha() and unicodedata.name(character, "").startswith(_UNSPACED)
