"""Any text in a figure: no boxes, no warnings, and fonts of the machine where they are needed."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.text import Text
from rich.cells import cell_len

from mop_jax import plots
from mop_jax.plots import fonts
from mop_jax.plots.fonts import MAIN_FONT, drawable, numbered
from mop_jax.plots.style import shortened, wrapped
from tests.figure_reading import panels, title, y_labels

HARD = {
    "Chinese": "You are 热情的影迷，喜欢老电影和长长的对话，写得很短。",
    "emoji": "🤣🔥 a fan of tacos 🌮 and 👩‍👩‍👧 🇩🇪 ❤️ 1️⃣",
    "Japanese": "あなたは映画が大好きな人です。いつも笑っています。",
    "Arabic": "أنت ناقد صبور يحب الأفلام الطويلة ولا يضحك أبدا",
    "marks": "Z" + "\u0301\u0302\u0303\u0304\u0305\u0306" * 5 + "algo c\u0301afe\u0301",
    "controls": "a\x00b\x07c\x1b[0m \u200b\u200d\ufeff\u202e\U000e0001 d\u2028e",
    "dollars": "$5 for $\\frac{ and _x^2 $$",
    "long word": "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamten" * 3,
    "Hindi": "आप फिल्मों के शौकीन हैं",
    "Thai": "คุณชอบดูหนังและหัวเราะเสมอ",
    "Korean": "당신은 영화를 좋아합니다",
    "no character": "x \ud800 \U000f0000 \uffff \u0378 y",
    "rare": "𓂀 \U0001d400 ꧁",
    "nothing": "",
}


@pytest.fixture(autouse=True)
def matplotlib_s_fonts_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same on every machine: DejaVu Sans and one other font that comes with matplotlib."""
    found = fonts._family_of
    found.cache_clear()
    monkeypatch.setattr(fonts, "_families", lambda: [MAIN_FONT, "STIXGeneral"])
    yield
    found.cache_clear()


def hard_figures() -> dict[str, Figure]:
    """Every figure, with hard text wherever it takes text."""
    rng = np.random.default_rng(0)
    texts = list(HARD.values())
    size, everything = len(texts), " ".join(texts)
    weights = rng.dirichlet(np.full(size, 9.0), size=20)
    labels = [texts[0], texts[2]] * 10
    return {
        "elbo": plots.elbo_trace(
            rng.normal(100, 1, 40), converged=True, reason=everything, unit=texts[2]
        ),
        "weights": plots.persona_weights(
            weights, texts, population_label=everything[:200], temperatures=1 + weights
        ),
        "shares": plots.persona_shares(
            *[np.full((size, 3), 1 / size)] * 2, texts, population_label=everything[:200]
        ),
        "omega": plots.omega_heatmap(
            rng.dirichlet(np.ones(size), size=(2, size)), texts[:2], texts, texts, note=everything
        ),
        "map": plots.embedding_map(
            rng.normal(size=(20, 5)),
            rng.normal(size=(20, 5)),
            real_labels=labels,
            simulated_labels=labels,
            reference=rng.normal(size=(20, 5)),
            reference_name=texts[1],
        ),
        "held_out": plots.held_out_comparison(
            [(text, -9.0 - i, 0.1) for i, text in enumerate(texts)],
            [(text, 1.0 + i, 0.1) for i, text in enumerate(texts)],
            everything,
        ),
    }


def test_no_figure_warns_of_any_text(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, figure in hard_figures().items():
            plots.save_figure(tmp_path / f"{name}.png", figure)
            width, height = figure.get_size_inches()
            box = figure.get_tightbbox()
            assert min(box.x0, box.y0) >= 0, name
            assert box.x1 <= width, name
            assert box.y1 <= height, name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("naïve café — “x” … 3 °C, Ωραία, Привет", "naïve café — “x” … 3 °C, Ωραία, Привет"),
        (HARD["Chinese"], "You are [Han]"),
        (HARD["Japanese"], "[Japanese]"),
        (HARD["Korean"], "[Korean]"),
        (HARD["Hindi"], "[Devanagari]"),
        (HARD["Thai"], "[Thai]"),
        (HARD["Arabic"], HARD["Arabic"]),
        ("so 🤣🤣 good 🌮!", "so [emoji] good [emoji]!"),
        ("日本語 と 🌮 と ok", "[Japanese] [emoji] [Japanese] ok"),
        ("a\x00b\t\u200bc \u2028 d", "ab c d"),
        ("cafe\u0301", "café"),
        ("q" + "\u0301" * 9, "q" + "\u0301" * 3),
        ("\u0645\u06cc\u200c\u062e", "\u0645\u06cc\u200c\u062e"),  # Persian: parts what it joins
        (" \ud800 ", "[?]"),
        ("", ""),
    ],
)
def test_words_stand_for_what_no_font_has(text: str, expected: str) -> None:
    assert drawable(text) == expected


any_text = st.text(st.characters(), max_size=30) | st.text(
    "a 好é😀🤣ा\u200d\x00\ud800", max_size=30
)


@functools.cache
def characters(weight: Any) -> set[int]:
    return set().union(
        *(
            get_font(findfont(fonts.FontProperties(family=family, weight=weight))).get_charmap()
            for family in (MAIN_FONT, "STIXGeneral")
        )
    )


@given(any_text, st.sampled_from(["normal", "bold"]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@example("\u0903", "normal")
@example("𐀀𐀀 。", "bold")
def test_every_character_left_has_a_font(text: str, weight: Any) -> None:
    drawn = drawable(text, weight)
    assert {ord(c) for c in drawn} <= characters(weight) | {0x20}
    assert drawable(drawn, weight) == drawn
    assert bool(drawn) or not any(c.isalnum() for c in text)
    if text.isascii() and text.isprintable():
        assert drawn == " ".join(text.split())


@given(any_text, st.integers(4, 12), st.integers(1, 3))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_labels_fit_their_columns_and_lose_nothing(text: str, width: int, lines: int) -> None:
    broken = wrapped(text, width)
    assert "".join("".join(broken).split()) == "".join(text.split())
    cut = shortened(text, width, lines).split("\n")
    assert len(cut) <= lines
    assert all(cell_len(line) <= width for line in cut)


def test_wide_characters_take_two_columns() -> None:
    assert wrapped("你好世界 ok", 4) == ["你好", "世界", "ok"]
    assert wrapped("ก" * 5, 2) == ["กก", "กก", "ก"]


def test_a_font_of_the_machine_is_used_where_it_is_needed(tmp_path: Path) -> None:
    main = get_font(findfont(MAIN_FONT)).get_charmap()
    others = get_font(findfont("STIXGeneral")).get_charmap()
    rare = next(chr(c) for c in sorted(others) if c not in main and chr(c).isalpha())

    def draw(name: str) -> Figure:
        return plots.persona_weights([[0.6, 0.4]], [name, "b"], population_label="x")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = draw(f"with {rare}")
        plots.save_figure(tmp_path / "a.png", figure)
    assert y_labels(panels(figure)[0])[0] == f"with {rare}"
    families = {tuple(text.get_fontfamily()) for text in figure.findobj(Text)}
    assert families == {(MAIN_FONT, "STIXGeneral")}
    plain = draw("with it")
    assert {tuple(t.get_fontfamily()) for t in plain.findobj(Text)} == {(MAIN_FONT,)}


def test_what_is_put_into_words_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    plots.persona_weights([[0.5, 0.5]], [HARD["Japanese"], "🤣"], population_label="x")
    (note,) = caplog.messages
    assert "[Japanese], [emoji]" in note
    assert "Noto Emoji, Noto Sans CJK" in note
    caplog.clear()
    plots.persona_weights([[0.5, 0.5]], ["a", "b"], population_label="x")
    assert not caplog.messages


def test_personas_that_would_look_the_same_are_numbered() -> None:
    names = ["你好", "世界", "ok"]
    assert numbered(names) == ["0: 你好", "1: 世界", "2: ok"]
    assert numbered(["你好", "ok", "ok"]) == ["你好", "ok", "ok"]
    figure = plots.persona_weights([[0.2, 0.3, 0.5]], names, population_label="x")
    assert y_labels(panels(figure)[0]) == ["2: ok", "1: [Han]", "0: [Han]"]


def test_a_script_that_is_missing_in_part_is_put_into_words_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fonts, "_family_of", lambda c, w: None if c in "热电" else MAIN_FONT)
    assert drawable("好热的电影 ok") == "[Han] ok"
    assert drawable("好的影" * 10 + "热") == "好的影" * 10 + "[Han]"


def test_true_minus_in_headings() -> None:
    figure = plots.elbo_trace([1.0], converged=True, reason="By -0.1 (-2), 8-11 and a-1.")
    assert figure.texts[1].get_text().startswith("By −0.1 (−2), 8-11 and a-1.")
    assert "1 steps" in title(figure)
