"""Reading lists and weighted answers that a small language model wrote.

Small models keep no format for long: they number, dash or comma their items, explain them behind a
colon, repeat them, and break off in the middle. What is not understood is dropped, never guessed;
callers say how much was found.
"""

from __future__ import annotations

import json
import re
from typing import NamedTuple

# "1.", "(2)", "3)", "a)", "-", "*", "•" at the start of an item.
_BULLET = re.compile(r"^\s*(?:[-*•–—]+\s+|\(?(?:\d{1,3}|[a-zA-Z])[.)\]:](?:\s+|$)|#\d+\s+)")
_INLINE = re.compile(r"\s+(?=\(?\d{1,2}[.)]\s)")
_EXPLANATION = re.compile(r"\s*(?::|\s[–—-]\s|\s=\s|\().*$", re.S)
# Between commas longer parts are those of a sentence.
_COMMA_WORDS = 3
_WRAPPING = " \t*_`\"'“”‘’[]<>{}"


def parse_list(text: str, *, finished: bool = True, max_words: int = 6) -> list[str]:
    r"""The items of a list, in their order, each once.

    Items stand in lines, behind numbers in one line, or between commas or semicolons. An
    explanation behind a colon, a dash or an opening bracket is dropped, and so are items without a
    letter or digit, of more than `max_words` words (three between commas, where a sentence has such
    parts too), and the last one of an answer that broke off.

    Args:
        text: what the language model wrote.
        finished: whether it ended by itself.
        max_words: of an item; a longer one is a sentence about the list.

    Example:
        >>> parse_list("1. **Tone**: the mood\n2. Length\n3. tone\n4. Who i", finished=False)
        ['Tone', 'Length']
    """
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) == 1:
        lines = _INLINE.split(lines[0])
    if len(lines) == 1:
        max_words = min(max_words, _COMMA_WORDS)
        lines = re.split(r"[,;]\s*(?:and\s+)?|\s+and\s+(?=\S+\W*$)", _BULLET.sub("", lines[0]))
    if not finished and lines:
        lines = lines[:-1]
    if len(lines) > 1 and any(map(_BULLET.match, lines)):
        # What has no number beside what has one introduces the list or ends it; but the first may
        # continue a number that the prompt began.
        lines = [line for at, line in enumerate(lines) if at == 0 or _BULLET.match(line)]
    items: dict[str, str] = {}
    for line in lines:
        if line.rstrip().endswith(":"):
            continue  # an introduction
        item = _EXPLANATION.sub("", _BULLET.sub("", line).strip(_WRAPPING))
        item = item.strip(_WRAPPING).rstrip(".,;:!").strip(_WRAPPING)
        if re.search(r"\w", item) and len(item.split()) <= max_words:
            items.setdefault(item.casefold(), item)
    return list(items.values())


class Weighted(NamedTuple):
    """An answer with the probability that was stated of it.

    Attributes:
        text: of the answer.
        probability: as stated, in [0, 1]; None where none was stated.
    """

    text: str
    probability: float | None


_NUMBER = r"(?:(?P<percent>\d{1,3}(?:\.\d+)?)\s*%|(?P<share>[01]?\.\d+|[01](?![\d.])))"
_NAME = r"p(?:rob(?:ability)?)?\s*[:=]\s*"
# A number in brackets, or behind the word; or, at the start only, before a colon or a dash.
_MARKED = re.compile(rf"(?:[\[(<]\s*(?:{_NAME})?|\b{_NAME}){_NUMBER}\s*[\])>]?", re.I)
_BARE = re.compile(rf"{_NUMBER}\s*[:;,–—-]\s")
_ITEM = re.compile(r"^\s*(?:\(?\d{1,2}[.)\]:]|[-*•–])\s+", re.M)
_TAGGED = re.compile(r"<text>(?P<text>.*?)</text>(?P<rest>.*?)(?=<text>|\Z)", re.S | re.I)


def parse_weighted(text: str, *, finished: bool = True) -> list[Weighted]:
    r"""The answers of a list of answers with probabilities, in their order.

    Understood are a JSON list of objects with "text" and "probability", `<text>` tags, and numbered
    or dashed items, with the probability before or behind the answer ("1. (0.2) …", "- … (p = 20
    %)"). Answers without a letter are dropped, and so is the last one of a list that broke off, if
    there are others.

    Args:
        text: what the language model wrote.
        finished: whether it ended by itself.

    Returns:
        The answers; none if nothing of the kind was found.

    Example:
        >>> parse_weighted("1. (0.7) Good fun.\n2. (20%) Too long.")
        [Weighted(text='Good fun.', probability=0.7), Weighted(text='Too long.', probability=0.2)]
    """
    found = _from_json(text) or _from_tags(text)
    if not found:
        starts = [match.start() for match in _ITEM.finditer(text)]
        ends = [*starts[1:], len(text)]
        parts = [text[a:b] for a, b in zip(starts, ends, strict=False)]
        found = [_weighted(_ITEM.sub("", part, count=1)) for part in parts]
        if not finished and len(found) > 1:
            found = found[:-1]
    return [answer for answer in found if re.search(r"\w", answer.text)]


def _weighted(part: str) -> Weighted:
    part = " ".join(part.split())
    # A number that opens a sentence ("2 hours too long") is no probability.
    before = _MARKED.match(part) or _BARE.match(part)
    if before:
        # Some write the item's number behind the probability too.
        answer = _ITEM.sub("", part[before.end() :].lstrip(" :;,-–—"), count=1)
        return Weighted(_unquoted(answer), _number(before))
    stated = list(_MARKED.finditer(part))
    if stated and not re.search(r"\w", part[stated[-1].end() :]):
        answer = part[: stated[-1].start()].rstrip(" :;,-–—")
        return Weighted(_unquoted(answer), _number(stated[-1]))
    return Weighted(_unquoted(part), None)


def _from_json(text: str) -> list[Weighted]:
    start, end = text.find("["), text.rfind("]")
    if start < 0 or end < start:
        return []
    try:
        entries = json.loads(text[start : end + 1])
    except json.JSONDecodeError:
        return []
    found = []
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("text"), str):
            value = entry.get("probability")
            if not isinstance(value, int | float) or not 0 <= value <= 1:
                value = None
            found.append(Weighted(entry["text"].strip(), value))
    return found


def _from_tags(text: str) -> list[Weighted]:
    found = []
    for match in _TAGGED.finditer(text):
        number = re.search(_NUMBER, match["rest"])
        value = None if number is None else _number(number)
        found.append(Weighted(match["text"].strip(), value))
    return found


def _number(match: re.Match[str]) -> float | None:
    found = match.groupdict("")
    value = float(found["percent"]) / 100 if found["percent"] else float(found["share"])
    return value if 0 <= value <= 1 else None


def _unquoted(text: str) -> str:
    text = text.strip()
    pairs = {'"': '"', "“": "”", "'": "'"}
    if len(text) > 1 and pairs.get(text[0]) == text[-1]:
        text = text[1:-1].strip()
    return text
