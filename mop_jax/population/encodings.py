"""From bytes to text: the encoding that the configuration names, the mark says, or a guess.

UTF-8 and UTF-16 announce themselves. Other encodings cannot be told apart for certain; what is
guessed is said, and what cannot be guessed is refused with the place of the first strange byte.
"""

from __future__ import annotations

import codecs
import logging
import re
import unicodedata
from typing import NoReturn

from mop_jax.errors import DataError

logger = logging.getLogger("mop_jax")

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# In this order where two read a file equally well.
_WESTERN = ("cp1252", "mac_roman", "cp1250")
_OTHERS = ("cp932", "euc_jp", "gb18030", "big5", "cp949", "cp1251", "koi8_r", "cp1253", "cp1254")
_FOREIGN = {
    b"PK\x03\x04": "a workbook or a zip archive",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook (.xls)",
    b"\x1f\x8b": "packed with gzip",
    b"PAR1": "a Parquet file",
    b"$FL2": "an SPSS file",
    b"%PDF": "a PDF",
}


def check_encoding(name: str) -> str:
    """The encoding, if Python knows it as one of text.

    Raises:
        DataError: if it does not.
    """
    try:
        info = codecs.lookup(name)
        "".encode(name)
    except (LookupError, ValueError) as error:
        raise DataError(
            f"The encoding {name!r} is not known; accepted are names such as utf-8, utf-16, "
            "cp1252, latin-1, mac-roman, cp932 and gb18030."
        ) from error
    return info.name


def decode(name: str, data: bytes, encoding: str | None) -> str:
    """The text of a file.

    Args:
        name: the file, for refusals and what is said.
        data: its bytes.
        encoding: how they are read; by default as the mark at the beginning says, UTF-8, UTF-16
            where every other byte is zero, or a guess.

    Raises:
        DataError: if the bytes are no such text.
    """
    for magic, what in _FOREIGN.items():
        if data.startswith(magic):
            raise DataError(f"{name} is {what} despite its name; give it the suffix that it needs.")
    if encoding is not None:
        return _strict(name, data, check_encoding(encoding)).removeprefix("\ufeff")
    for mark, announced in _MARKS:
        if data.startswith(mark):
            return _strict(name, data, announced)
    wide = _without_mark(data)
    if wide is not None:
        _say(name, wide)
        return _strict(name, data, wide)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        guessed = _guess(data)
        if guessed is None:
            _refuse(name, data, error, "UTF-8")
        _say(name, guessed)
        return data.decode(guessed)


def _strict(name: str, data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        label = "UTF-8" if encoding in ("utf-8", "utf-8-sig") else encoding
        _refuse(name, data, error, label)


def _say(name: str, encoding: str) -> None:
    logger.warning(
        "%s is not UTF-8 and is read as %s; set encoding if letters look wrong.", name, encoding
    )


def _refuse(name: str, data: bytes, error: UnicodeDecodeError, label: str) -> NoReturn:
    # Under utf-8-sig the reported position counts from behind the mark.
    start = error.start + (
        3 if error.encoding == "utf-8" and data.startswith(b"\xef\xbb\xbf") else 0
    )
    start = min(start, len(data) - 1)
    line = data.count(b"\n", 0, start) + 1
    raise DataError(
        f"{name} is not {label}: byte 0x{data[start]:02x} at offset {start}, on line {line}; set "
        "encoding (such as cp1252, mac-roman, cp932 or gb18030), or convert the file to UTF-8."
    ) from error


def _without_mark(data: bytes) -> str | None:
    """UTF-16 without a mark: ASCII characters have a zero beside them."""
    head = data[: 1 << 16]
    head = head[: len(head) // 2 * 2]
    if head.count(0) * 8 < len(head) or not head:
        return None
    even, odd = head[::2].count(0), head[1::2].count(0)
    return "utf-16-le" if odd > 4 * even else "utf-16-be" if even > 4 * odd else None


def _guess(data: bytes) -> str | None:
    if _is_damaged_utf8(data):
        return None
    # A letter with an accent stands alone among plain ones; other scripts make runs.
    strange = sum(byte >= 0x80 for byte in data)
    in_runs = sum(len(run) for run in re.findall(rb"[\x80-\xff]{2,}", data))
    if 2 * in_runs < strange:
        found = [(_strangeness(data, encoding), encoding) for encoding in _WESTERN]
        best = min(found, key=lambda pair: pair[0])
        return best[1] if best[0] < 0.2 else None
    if _has_kana(data, "cp932"):
        return "cp932"
    if _has_kana(data, "euc_jp"):
        return "euc_jp"
    from charset_normalizer import from_bytes

    matches = list(from_bytes(data, cp_isolation=list(_OTHERS)))
    if not matches or (len(matches) > 1 and matches[1].chaos - matches[0].chaos < 0.05):
        return None
    return matches[0].encoding


def _is_damaged_utf8(data: bytes) -> bool:
    """Whether most of what is not ASCII is UTF-8: then a guess would spoil what is right."""
    text = data.decode("utf-8", errors="replace")
    wrong = text.count("\ufffd")
    return sum(character > "\x7f" for character in text) - wrong > wrong


def _strangeness(data: bytes, encoding: str) -> float:
    """The share of characters outside ASCII that do not look as if they belonged into a text."""
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        return 1.0
    strange, total = 0.0, 0
    for at, character in enumerate(text):
        if character <= "\x7f":
            continue
        total += 1
        before, after = text[max(at - 1, 0) : at], text[at + 1 : at + 2]
        kind = unicodedata.category(character)
        if kind.startswith("L"):
            # A capital behind a small letter, as in "cafŽ".
            strange += character.isupper() and before.islower()
            strange += 0.1 * (character not in _COMMON)
        elif after.isalpha() and (before.isalpha() or kind == "No"):
            strange += character not in "’‘·–—\xad"
        elif kind in ("Cc", "Co", "Cn"):
            strange += 1
        else:
            strange += 0.2 * (character not in "’‘“”–—…«»„‚€£°§·¿¡\xa0®©™½¼¾²³")
    return strange / max(total, 1)


_COMMON = frozenset(
    "äöüßÄÖÜàâæçéèêëîïôœùûÿÀÂÇÉÈÊËÎÏÔŒÙÛáíóúñÁÍÓÚÑãõÃÕìòÌÒåøÅØÆªº"
    "ąćęłńśźżĄĆĘŁŃŚŹŻčďěňřšťůžČĎĚŇŘŠŤŮŽőűŐŰýÝğışĞİŞ"
)


def _has_kana(data: bytes, encoding: str) -> bool:
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        return False
    kana = sum("\u3041" <= character <= "\u30fe" for character in text)
    half_width = sum("\uff61" <= character <= "\uff9f" for character in text)
    return kana > half_width and 5 * kana > sum(character > "\x7f" for character in text)
