"""Lists and weighted answers as small models write them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mop_jax.evaluation.baselines import BASELINES
from mop_jax.evaluation.baselines.listing import Weighted, parse_list, parse_weighted
from mop_jax.evaluation.baselines.verbalized_sampling import probabilities
from mop_jax.prompts import PromptBuilder, PromptTemplate


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("1. Tone\n2. Length\n3. Style", ["Tone", "Length", "Style"]),
        ("1) Tone\n2) Length", ["Tone", "Length"]),
        ("(1) Tone\n(2) Length", ["Tone", "Length"]),
        ("- tone\n* length\n• style", ["tone", "length", "style"]),
        ("a) tone\nb) length", ["tone", "length"]),
        ("1. **Tone**: the mood\n2. `Length` - in words\n3. Style (how)",
         ["Tone", "Length", "Style"]),
        ("Sure! Here are some:\n1. Tone\n2. Length\nI hope this helps.", ["Tone", "Length"]),
        ("1. Tone 2. Length 3. Style", ["Tone", "Length", "Style"]),
        ("tone, length, and style", ["tone", "length", "style"]),
        ("1. tone, length and style.", ["tone", "length", "style"]),
        ("tone; length; style", ["tone", "length", "style"]),
        ("1. Tone\n2. tone\n3. TONE.", ["Tone"]),
        ("1. Tone\n\n2.   Length  \n3. ...", ["Tone", "Length"]),
        ("1. \"Tone\"\n2. 'Length'", ["Tone", "Length"]),
        ("1. Tone\n2. This is a whole sentence about nothing at all.", ["Tone"]),
        ("1. 10 words\n2. 3.5 stars", ["10 words", "3.5 stars"]),
        ("Tone\nLength", ["Tone", "Length"]),
        ("1. 語調\n2. 長さ", ["語調", "長さ"]),
        ("", []),
        ("1.", []),
        ("\n \n", []),
    ],
)  # fmt: skip
def test_lists(text: str, items: list[str]) -> None:
    assert parse_list(text) == items


def test_a_list_that_broke_off_loses_its_last_item() -> None:
    assert parse_list("1. Tone\n2. Length\n3. Sty", finished=False) == ["Tone", "Length"]
    assert parse_list("1. Ton", finished=False) == []


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ("1. (0.7) Good.\n2. (0.3) Bad.", [("Good.", 0.7), ("Bad.", 0.3)]),
        ("1. [0.7] Good.\n2. [0.3] Bad.", [("Good.", 0.7), ("Bad.", 0.3)]),
        ("1. (70%) Good.\n2. (30 %) Bad.", [("Good.", 0.7), ("Bad.", 0.3)]),
        ("1. (p = 0.7) Good.\n2. Probability: .3 - Bad.", [("Good.", 0.7), ("Bad.", 0.3)]),
        ("1. Good. (0.7)\n2. Bad. [probability: 0.3]", [("Good.", 0.7), ("Bad.", 0.3)]),
        ("1. 0.7: Good.\n2. 0.3 - Bad.", [("Good.", 0.7), ("Bad.", 0.3)]),
        ("1. Good.\n2. (0.3) Bad.", [("Good.", None), ("Bad.", 0.3)]),
        ("1. (0.7) \"Good.\"\n2. (0.3) “Bad.”", [("Good.", 0.7), ("Bad.", 0.3)]),
        ("1. (0.5) Two lines\nof one answer.\n2. (0.5) B.",
         [("Two lines of one answer.", 0.5), ("B.", 0.5)]),
        ("1. (0.5) 2 hours too long\n2. 2 hours too short",
         [("2 hours too long", 0.5), ("2 hours too short", None)]),
        ("1. (0.5) 1) A.\n2. (0.5) 2) B.", [("A.", 0.5), ("B.", 0.5)]),
        ("1. (0.5)\n2. (0.5) B.", [("B.", 0.5)]),
        ("1. (7) Seven?", [("(7) Seven?", None)]),
        ('[{"text": "Good.", "probability": 0.7}, {"text": "Bad."}]',
         [("Good.", 0.7), ("Bad.", None)]),
        ("<response><text>Good.</text><probability>0.7</probability></response>"
         "<response><text>Bad.</text><probability>0.3</probability></response>",
         [("Good.", 0.7), ("Bad.", 0.3)]),
        ("I would say that it is good.", []),
        ("", []),
    ],
)  # fmt: skip
def test_weighted_answers(text: str, answers: list[tuple[str, float | None]]) -> None:
    assert parse_weighted(text) == [Weighted(*one) for one in answers]


def test_a_weighted_list_that_broke_off() -> None:
    whole = "1. (0.7) Good.\n2. (0.3) Ba"
    assert parse_weighted(whole, finished=False) == [Weighted("Good.", 0.7)]
    assert parse_weighted("1. (0.7) Goo", finished=False) == [Weighted("Goo", 0.7)]


@given(st.text(alphabet="ab1.() [%]{}<>textp=:-0\n\"'", max_size=80), st.booleans())
def test_nothing_that_is_written_breaks_the_reader(text: str, finished: bool) -> None:
    for answer in parse_weighted(text, finished=finished):
        assert answer.text.strip()
        assert answer.probability is None or 0 <= answer.probability <= 1
    items = parse_list(text, finished=finished)
    assert len({item.casefold() for item in items}) == len(items)


def test_stated_probabilities() -> None:
    np.testing.assert_allclose(probabilities([0.2, 0.2]), [0.5, 0.5])
    np.testing.assert_allclose(probabilities([None, None, None]), 1 / 3)
    np.testing.assert_allclose(probabilities([0.5, None, None]), [0.5, 0.25, 0.25])
    np.testing.assert_allclose(probabilities([0.9, 0.3, None]), np.array([0.9, 0.3, 0.3]) / 1.5)
    np.testing.assert_allclose(probabilities([0.0, 0.0]), 0.5)
    np.testing.assert_allclose(probabilities([0.0, 1.0]), [0.0, 1.0])


def test_verbalised_answers_are_drawn_as_stated(make_setting) -> None:
    setting = make_setting(lambda prompt, seed, s: "75) Often.\n2. (0.25) Seldom.")
    found = BASELINES["verbalized_sampling"].fit(setting).respond(["Say it."], num_samples=400)
    share = np.mean([r.text == "Often." for r in found])
    # Five standard deviations of 0.75 ± 0.022; the seed is fixed.
    assert 0.64 < share < 0.86
    assert {r.text for r in found} == {"Often.", "Seldom."}
    assert found[0].details == {"parsed": 2, "stated": 2}
    assert all(r.finished for r in found)
    (call,) = setting.language_model.calls
    assert call.prompts[0].endswith("assistant\n1. (0.")
    assert "Say it.\n\nWrite 5 different answers" in call.prompts[0]
    assert call.max_new_tokens == 5 * 96


def test_what_verbalised_sampling_does_with_answers_of_another_kind(make_setting) -> None:
    answers = ["5) One.\n2. Two.\n3. Thr", "", "5) Only on", "Fine.\n2. (0.9) Bad."]
    setting = make_setting(
        lambda prompt, seed, s: answers[s], unfinished=lambda t: t.endswith(("Thr", "on"))
    )
    found = BASELINES["verbalized_sampling"].fit(setting).respond(["Say it."], num_samples=4)
    assert found[0].text in ("One.", "Two.")
    assert found[0].finished
    assert found[0].details == {"parsed": 2, "stated": 1}
    assert (found[1].text, found[1].details) == ("", {"parsed": 0, "stated": 0})
    assert (found[2].text, found[2].finished) == ("Only on", False)
    assert found[3].text in ("Fine.", "Bad.")
    assert found[3].details == {"parsed": 2, "stated": 1}


def test_a_list_in_the_plain_form_does_not_end_with_its_first_line(make_setting) -> None:
    setting = make_setting(template=PromptTemplate.plain())
    for name in ("verbalized_sampling", "attrprompt"):
        BASELINES[name].fit(setting).respond(["Say it."], num_samples=1)
    eos = setting.language_model.tokenizer.eos_token_id
    ends = [call.end_ids for call in setting.language_model.calls]
    assert [(eos,)] in ends
    assert isinstance(setting.prompts, PromptBuilder)
    lists = [call for call in setting.language_model.calls if "numbered list" in call.prompts[0]]
    assert lists
    assert all(call.end_ids == [(eos,)] for call in lists)
