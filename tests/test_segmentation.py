"""Words and sentences of many scripts: what is known of a few, and what holds for any text."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mop_jax.segmentation import (
    first_words,
    sentence_ends,
    sentences,
    tokens,
    without_last_word,
    words,
)

# Two sentences and the beginning of a third.
CUT_OFF = {
    "Chinese": "你是热情的影迷。你喜欢老电影！你常常",
    "Chinese, half-width marks": "你是热情的影迷.你喜欢老电影!你常常",
    "Japanese": "あなたは映画が好きです。いつも「すごい！」と言います。とき",
    "Korean": "당신은 영화를 좋아합니다. 늘 웃습니다. 가끔",
    "Arabic": "أنت ناقد صبور. هل تحب الأفلام؟ وأن",
    "Urdu": "آپ فلموں کے شوقین ہیں۔ آپ ہنستے ہیں۔ کبھی",
    "Hindi": "आप फिल्मों के शौकीन हैं। आप हँसते हैं। कभ",
    "Armenian": "Դուք քննադատ եք։ Դուք ծիծաղում եք։ Երբ",
    "Amharic": "ፊልም ይወዳሉ። ሁልጊዜ ይስቃሉ። አንዳ",
    "Burmese": "ရုပ်ရှင်ကြိုက်တယ်။ ရယ်တယ်။ တစ်ခါ",
    "Khmer": "អ្នកចូលចិត្តភាពយន្ត។ អ្នកសើច។ ពេល",
    "Tibetan": "ཁྱེད་རང་བདེ་པོ། ཁྱེད་རང་དགའ་པོ། སྐབས",
    "Russian": "Вы любите кино. Вы смеётесь! Иног",
    "German": "Sie mögen „Filme.“ Sie sind z.B. laut. Man",
    "English": 'You like Dr. Who. You say "no!" (Never "yes.") But J. R. R. Tol',
}


@pytest.mark.parametrize("script", CUT_OFF)
def test_a_cut_off_sentence_is_told_from_whole_ones(script: str) -> None:
    text = CUT_OFF[script]
    *whole, rest = sentences(text)
    assert len(whole) == (3 if script == "English" else 2)
    assert text.endswith(rest)
    assert len(sentence_ends(text)) == len(whole)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4.5 stars, at 3.30 p.m", ["4.5 stars, at 3.30 p.m"]),
        ("You admire Dr.", ["You admire Dr."]),
        ("You like plan B.", ["You like plan B."]),
        ("You and I. Or", ["You and I.", "Or"]),
        ("Wait... what?! Yes", ["Wait...", "what?!", "Yes"]),
        ("他说：“好。”然后", ["他说：“好。”然后"]),
        ("好。“走", ["好。", "“走"]),
        ("好……吧。", ["好……吧。"]),
        ("", []),
        (" \n", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected
    assert bool(sentence_ends(text)) == (bool(expected) and text not in ("You admire Dr.",
        "4.5 stars, at 3.30 p.m", "他说：“好。”然后"))  # fmt: skip


def test_characters_are_words_where_there_are_no_blanks() -> None:
    assert words("ラーメンが最高！！") == ["ラ", "ー", "メ", "ン", "が", "最", "高！！"]
    assert words("สวัสดี") == ["ส", "วั", "ส", "ดี"]
    assert words("영화가 좋아요.") == ["영화가", "좋아요."]
    assert words("iPhone很好用 🙂") == ["iPhone", "很", "好", "用", "🙂"]
    assert first_words("iPhone很好用", 3) == "iPhone很好"
    assert without_last_word("iPhone很好用。") == "iPhone很好"
    assert without_last_word("one") == ""


def test_tokens_forget_case_marks_and_form() -> None:
    assert tokens("Don’t, STRASSE (Ｃafe\u0301)…") == tokens("don't straße café")
    assert tokens("很好。") == ["很", "好"]


texts = st.text(max_size=40) | st.text("aB1 .!?。！？…“”」é\u0301好すส\n", max_size=40)


@given(texts)
@example("。" * 30)
@example("\u0301 \u0e31")
def test_nothing_is_lost_or_made_up(text: str) -> None:
    bare = "".join(text.split())
    assert "".join("".join(words(text)).split()) == bare
    assert "".join("".join(sentences(text)).split()) == bare
    ends = sentence_ends(text)
    assert ends == sorted(set(ends))
    assert all(0 < end <= len(text) for end in ends)


@given(texts, st.integers(1, 10))
def test_first_words_are_a_beginning_of_that_many(text: str, number: int) -> None:
    beginning = first_words(text, number)
    assert text.startswith(beginning)
    assert words(beginning) == words(text)[:number]
    assert words(without_last_word(text)) == words(text)[:-1]


@given(st.text("abc ", max_size=30), st.text("abc ", min_size=1, max_size=30))
def test_latin_words_are_those_between_blanks(first: str, second: str) -> None:
    text = f"{first}. {second}"
    assert words(text) == text.split()
    assert sentence_ends(text)[:1] == [len(first) + 1]


@given(st.text("你好吗天气", min_size=1), st.text("你好吗天气", min_size=1))
def test_ideographs_need_no_blank_behind_a_sentence(first: str, second: str) -> None:
    for mark in "。！？｡":
        assert sentences(f"{first}{mark}{second}") == [f"{first}{mark}", second]
    assert len(words(first)) == len(first)
