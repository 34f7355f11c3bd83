"""Which texts count as one record."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mop_jax.population import Population, is_long, normal_form, response_key, text_key

LONG = {
    "English": "I would see this film again any day",
    "Japanese": "とても良い映画でした。音楽も素晴らしく、最後まで飽きずに見ることができました。",
    "Chinese": "这部电影非常好看,音乐也很棒,我从头到尾都没有觉得无聊。",
    "Thai": "ภาพยนตร์เรื่องนี้ดีมากดนตรีก็ยอดเยี่ยมและฉันไม่เบื่อเลย",
    "half-width": "ﾄﾃﾓﾖｲｴｲｶﾞﾃﾞｼﾀｵﾝｶﾞｸﾓｽﾊﾞﾗｼｸｻｲｺﾞﾏﾃﾞﾐﾏｼﾀ",
}
SHORT = {
    "English": "I strongly agree with all of it",
    "Japanese": "どちらかといえば賛成",
    "Chinese": "非常同意",
    "one long word": "a" * 200,
    "a link": "https://example.org/" + "x/" * 50,
}


@pytest.mark.parametrize("language", LONG)
def test_long_answers(language: str) -> None:
    assert is_long(LONG[language])
    assert response_key(LONG[language]) is not None


@pytest.mark.parametrize("language", SHORT)
def test_short_answers(language: str) -> None:
    assert not is_long(SHORT[language])
    assert response_key(SHORT[language]) is None


@given(st.text())
def test_one_key_for_all_normal_forms(text: str) -> None:
    keys = {text_key("x", unicodedata.normalize(f, text)) for f in ("NFC", "NFD", "NFKC", "NFKD")}
    assert len(keys) == 1
    assert normal_form(normal_form(text)) == normal_form(text)
    assert text_key("x", f" {text}\n") == text_key("x", text)


@given(st.text(st.characters(codec="ascii")), st.text(st.characters(codec="ascii")))
def test_keys_of_plain_texts_are_as_they_were(one: str, two: str) -> None:
    same = one.casefold().split() == two.casefold().split()
    assert (text_key("", one) == text_key("", two)) == same


def test_keys() -> None:
    assert normal_form("ＧＯＯＤ\u200b  ﬁlm") == "good film"
    assert text_key("a b", "c") != text_key("a", "b c")
    assert text_key("", "STRASSE") == text_key("", "Straße")
    assert text_key("", "x") != text_key("", "y")
    assert text_key("", "\u200b") != text_key("", "")


@pytest.mark.parametrize("language", LONG)
def test_twins_are_never_on_both_sides(language: str) -> None:
    answers = [f"{LONG[language]}{chr(0x4E00 + i)}" for i in range(20)]
    decomposed = [unicodedata.normalize("NFD", answer) for answer in answers]
    population = Population(
        [str(i) for i in range(40)], ["x"] * 20 + ["z"] * 20, [*answers, *decomposed]
    )
    for seed in range(3):
        train, test = population.split(10, seed=seed)
        assert not set(train.response_keys) & set(test.response_keys)
