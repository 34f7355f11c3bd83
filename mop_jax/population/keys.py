"""When two texts are the same record: one normal form, and hashes of it.

The normal form is Unicode's compatibility caseless matching (NFKC, case folded, NFKC; The Unicode
Standard, section 3.13) without characters that are not seen, runs of blanks collapsed. An answer
stored as NFC and as NFD, in full-width or half-width letters, is one answer.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Sequence

# A response of fewer words than this may well be two people's; a longer one is one record twice,
MIN_WORDS_OF_A_TWIN = 8
# unless more records than this, and a larger share of all, have it: then it is an option to choose.
MOST_TWINS, LARGEST_SHARE_OF_TWINS = 2, 0.005
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
    """A hash of a normalised response that is too long to be written twice; None for a short one.

    The same review may stand under two spellings of a film's name: whatever its context, it must
    not serve itself as an exemplar, nor be held out from itself. `twin_keys` leaves out the long
    options of closed questions.
    """
    return text_key("", response) if is_long(response) else None


def twin_keys(responses: Sequence[str]) -> list[str | None]:
    """`response_key` of each of a whole population's responses that is rare, else None.

    A long response that more than max(2, 0.005 N) of the N records have is an option of a closed
    question ("The government should see to it that …"): those who chose it are different people. To
    take them for one would leave no record on one side of a split, and hide from a record whoever
    answered as it did: a mask that depends on y.

    Args:
        responses: N, of all records before they are split or sampled: what is rare in a part may be
            common in the whole.
    """
    keys = [response_key(response) for response in responses]
    counts = Counter(keys)
    most = max(MOST_TWINS, LARGEST_SHARE_OF_TWINS * len(keys))
    return [key if counts[key] <= most else None for key in keys]


def text_key(context: str, response: str) -> str:
    """A hash of the normal forms of both texts."""
    parts = (normal_form(text) for text in (context, response))
    return hashlib.sha256("\x00".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _is_unseen(character: str) -> bool:
    # Cf: zero-width joiners and blanks, soft hyphens, marks of direction; then variation selectors.
    return unicodedata.category(character) == "Cf" or "\ufe00" <= character <= "\ufe0f"


def _is_unspaced(character: str) -> bool:
    return character.isalpha() and unicodedata.name(character, "").startswith(_UNSPACED)
