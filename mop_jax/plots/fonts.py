"""Fonts for what people write: characters that a figure can draw, and words for those it cannot.

Figures are set in DejaVu Sans, which comes with matplotlib and has the alphabets of Europe, Arabic
and some symbols. Other characters are taken from an installed font that has them. Where none has,
a word stands in their place ("[Japanese]", "[emoji]") instead of boxes, and a warning to the logger
"mop_jax" says what to install.
"""

from __future__ import annotations

import functools
import logging
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal

import regex
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

MAIN_FONT = "DejaVu Sans"
# Asked first, in this order, where they are installed; every other font after them.
PREFERRED_FONTS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans CJK KR", "Noto Sans JP", "Noto Sans SC",
    "Noto Sans KR", "Source Han Sans", "Hiragino Sans", "Yu Gothic", "Microsoft YaHei",
    "Malgun Gothic", "PingFang SC", "Apple SD Gothic Neo", "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei", "Droid Sans Fallback", "Noto Emoji", "Segoe UI Emoji", "Symbola",
    "Noto Sans", "Noto Sans Arabic", "Noto Sans Devanagari", "Noto Sans Thai", "Nirmala UI",
    "Leelawadee UI", "Noto Sans Symbols", "Noto Sans Symbols 2", "Segoe UI Symbol", "FreeSans",
    "Arial Unicode MS",
)  # fmt: skip
# Matplotlib's own fonts of boxes, and of mathematics by another encoding than Unicode.
_UNFIT = regex.compile(r"Last ?Resort|^cm[a-z]+\d+$|^STIX(NonUnicode|Size)|Color|Twemoji")
_SUGGESTIONS = {"emoji": "Noto Emoji", "Japanese": "Noto Sans CJK", "Han": "Noto Sans CJK",
                "Korean": "Noto Sans CJK"}  # fmt: skip

Weight = Literal["normal", "bold"]

# What has no mark of its own: controls, selectors, directions. Two of them join letters.
_INVISIBLE = regex.compile(
    r"(?V1)[\p{Cc}\p{Default_Ignorable_Code_Point}--[\u200c\u200d]]"
    r"|(?<![\p{L}\p{M}])[\u200c\u200d]|[\u200c\u200d](?!\p{L})"
)
_PICTURE = regex.compile(r"\p{Extended_Pictographic}|[\U0001F1E6-\U0001F1FF]|\u20e3")
_SCRIPTS = (
    ("emoji", _PICTURE),
    ("Japanese", regex.compile(r"[\p{Hiragana}\p{Katakana}]")),
    ("Korean", regex.compile(r"\p{Hangul}")),
    ("Han", regex.compile(r"\p{Han}")),
)
# More would run into the lines above and below.
_MAX_MARKS = 3
_log = logging.getLogger("mop_jax")


@contextmanager
def quiet_lookup() -> Iterator[None]:
    """Keeps matplotlib from saying, for each font, which weight stands in for one it lacks."""
    logger = logging.getLogger("matplotlib.font_manager")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@dataclass
class Needs:
    """What a figure turned out to need.

    Attributes:
        families: fonts beside the main one, in the order met.
        missing: names of what no installed font has.
    """

    families: list[str] = field(default_factory=list)
    missing: set[str] = field(default_factory=set)


_needs: ContextVar[Needs | None] = ContextVar("needs", default=None)


@contextmanager
def collected_needs() -> Iterator[Needs]:
    """Collects what `drawable` meets inside the block."""
    needs = Needs()
    token = _needs.set(needs)
    try:
        yield needs
    finally:
        _needs.reset(token)


def warn_of(missing: set[str]) -> None:
    """Says what was put into words, and what font would show it."""
    if missing:
        fonts = sorted({_SUGGESTIONS.get(name, f"Noto Sans {name}") for name in missing - {"?"}})
        _log.warning(
            "No font on this machine has some characters of a figure; they are shown as %s%s.",
            ", ".join(f"[{name}]" for name in sorted(missing)),
            f" (to see them, install a font such as {', '.join(fonts)})" if fonts else "",
        )


def drawable(text: str, weight: Weight = "normal") -> str:
    r"""`text` on one line with words in place of what no font on this machine can draw.

    Blanks are collapsed, invisible characters left out, and stacked marks limited to three.

    Args:
        text: anything.
        weight: of the font it is drawn with.

    Example:
        >>> drawable("tea  for\ttwo\x00 – très bon")
        'tea for two – très bon'
    """
    text = unicodedata.normalize("NFC", " ".join(text.split()))
    text = _INVISIBLE.sub("", text)
    text = regex.sub(rf"(\p{{M}}{{{_MAX_MARKS}}})\p{{M}}+", r"\1", text)
    if text.isascii():
        return text
    clusters = regex.findall(r"\X", text)
    pieces: list[str] = []
    pending, last = "", ""  # blanks behind a missing piece, and its name
    for cluster, name in zip(clusters, _missing(clusters, weight)):
        if name is None:
            if last and cluster == " ":
                pending += cluster
                continue
            pieces += [pending, cluster]
            pending, last = "", ""
            continue
        name = name or last or "symbol"
        if name != last:
            pieces += [pending, f"[{name}]"]
            needs = _needs.get()
            if needs is not None:
                needs.missing.add(name)
        pending, last = "", name
    return "".join([*pieces, pending]).strip()


def _missing(clusters: list[str], weight: Weight) -> list[str | None]:
    """What to call each character that cannot be drawn; None for the others.

    Where more than a tenth of a script is missing, all of it is put into words: a Japanese font has
    some characters of a Chinese sentence, which would be a riddle.
    """
    kana = any(_SCRIPTS[1][1].search(cluster) for cluster in clusters)
    names = [_name_of(c, kana) if not c.isascii() else "" for c in clusters]
    drawn = [all(_family_of(c, weight) is not None for c in cluster) for cluster in clusters]
    num_all = Counter(names)
    num_missing = Counter(name for name, fine in zip(names, drawn) if not fine)
    given_up = {
        name
        for name, number in num_missing.items()
        if name not in ("", "?", "emoji") and number > 0.1 * num_all[name]
    }
    missing = [name if not fine or name in given_up else None for name, fine in zip(names, drawn)]
    for cluster, name in zip(clusters, missing):
        if name is None:
            _note_families(cluster, weight)
    return missing


def numbered(names: Sequence[str]) -> list[str]:
    """`names`, each behind its number from 0 if two that differ would look the same."""
    drawn = [drawable(name) for name in names]
    if len(set(drawn)) == len(set(names)):
        return list(names)
    return [f"{number}: {name}" for number, name in enumerate(names)]


def _name_of(cluster: str, kana: bool) -> str:
    """What to call a character if it cannot be drawn; "" for marks that go with any script."""
    for name, pattern in _SCRIPTS:
        if pattern.search(cluster):
            return "Japanese" if kana and name == "Han" else name
    first = cluster[0]
    category = unicodedata.category(first)
    if category in ("Cn", "Co", "Cs"):
        return "?"
    if category[0] not in "LMN":
        return ""
    return unicodedata.name(first, "?").split(" ")[0].capitalize()


@functools.lru_cache(maxsize=65536)
def _family_of(character: str, weight: Weight) -> str | None:
    """The first font that has `character`, None if none has."""
    if character.isascii():
        return MAIN_FONT
    return next((f for f in _families() if _has(f, character, weight)), None)


def _note_families(cluster: str, weight: Weight) -> None:
    needs = _needs.get()
    if needs is None:
        return
    for character in cluster:
        family = _family_of(character, weight)
        if family is not None and family not in (MAIN_FONT, *needs.families):
            needs.families.append(family)


@functools.lru_cache(maxsize=1)
def _families() -> list[str]:
    installed = {entry.name for entry in fontManager.ttflist if not _UNFIT.search(entry.name)}
    first = [name for name in (MAIN_FONT, *PREFERRED_FONTS) if name in installed]
    return [*first, *sorted(installed.difference(first))]


def _has(family: str, character: str, weight: Weight) -> bool:
    """Whether a font maps `character` to something that it draws as an outline."""
    try:
        wanted = FontProperties(family=[family], weight=weight)
        with quiet_lookup():
            path = findfont(wanted, fallback_to_default=False)
        font = get_font(path)
        if not font.get_char_index(ord(character)):
            return False
        font.set_size(10, 72)
        font.load_char(ord(character))
        # Coloured emoji are pictures or layers, of which matplotlib would draw nothing.
        return bool(len(font.get_path()[0])) or unicodedata.category(character)[0] in "ZC"
    except (OSError, RuntimeError, ValueError):
        return False
