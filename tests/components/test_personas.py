"""Personas: clusters, prompts, cleaning, retries and files, with a stand-in for the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mop_jax.components.descriptions import (
    EXAMPLES,
    clean_persona,
    copied_sentences,
    likeness,
    summary_messages,
)
from mop_jax.components.personas import (
    Persona,
    cluster_records,
    read_personas,
    record_texts,
    synthesise_personas,
    write_personas,
)
from mop_jax.errors import DataError, FaultError
from mop_jax.population import Population
from mop_jax.segmentation import sentence_ends


class ScriptedModel:
    """Records what it is asked and answers prompt n of the call with `answer(prompt, seed)`."""

    def __init__(self, answer: Callable[[str, int], str], chat: bool = True) -> None:
        self.answer = answer
        self.calls: list[SimpleNamespace] = []
        self.tokenizer = SimpleNamespace(
            chat_template="template" if chat else None, apply_chat_template=self._apply
        )

    @staticmethod
    def _apply(messages: list[dict], add_generation_prompt: bool, tokenize: bool) -> str:
        assert add_generation_prompt
        assert not tokenize
        return "".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>"

    def generate(self, prompts: list[str], *, seed: int, **settings: Any) -> SimpleNamespace:
        self.calls.append(SimpleNamespace(prompts=prompts, seed=seed, **settings))
        return SimpleNamespace(texts=[self.answer(prompt, seed) for prompt in prompts])


def blobs(sizes: tuple[int, ...] = (9, 6, 3)) -> tuple[Population, np.ndarray, np.ndarray]:
    """Well separated clusters, shuffled: the population, its embeddings and the true clusters."""
    rng = np.random.default_rng(0)
    truth = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    centres = 10 * np.eye(len(sizes), 5)
    embeddings = centres[truth] + 0.1 * rng.normal(size=(len(truth), 5))
    n = len(truth)
    population = Population(
        [f"r{i}" for i in range(n)],
        ["x"] * n,
        [f"text {i} of blob {c}" for i, c in enumerate(truth)],
    )
    return population, embeddings.astype(np.float32), truth


def blob_of(prompt: str) -> str:
    """The blob that a prompt shows; fails if it shows several."""
    (blob,) = {part[0] for part in prompt.split("blob ")[1:]}
    return blob


def test_clusters_are_found_ordered_and_seeded() -> None:
    _, embeddings, truth = blobs()
    clusters = cluster_records(embeddings, 3, seed=0)
    np.testing.assert_array_equal(clusters.labels, truth)  # blob 0 is the largest, 2 the smallest
    for k, rows in enumerate(clusters.nearest):
        members = np.flatnonzero(truth == k)
        assert sorted(rows) == members.tolist()
        np.testing.assert_allclose(clusters.centres[k], embeddings[members].mean(0), atol=1e-5)
        distances = np.linalg.norm(embeddings[rows] - clusters.centres[k], axis=1)
        assert (np.diff(distances) >= 0).all()
    noise = np.random.default_rng(1).normal(size=(80, 4))
    first = cluster_records(noise, 7, seed=3)
    again = cluster_records(noise, 7, seed=3)
    np.testing.assert_array_equal(first.labels, again.labels)
    np.testing.assert_array_equal(first.centres, again.centres)
    assert np.bincount(first.labels).min() >= 1


def test_clustering_refusals() -> None:
    _, embeddings, _ = blobs()
    with pytest.raises(DataError, match="19 personas were asked for, but there are only 18"):
        cluster_records(embeddings, 19, seed=0)
    doubled = np.repeat(embeddings[:4], 3, axis=0)
    doubled[1] += 1e-7
    with pytest.raises(DataError, match="only 4 distinct records"):
        cluster_records(doubled, 5, seed=0)
    with pytest.raises(DataError, match="num_personas is 0"):
        cluster_records(embeddings, 0, seed=0)
    with pytest.raises(DataError, match="finite table"):
        cluster_records(embeddings * np.nan, 2, seed=0)


@pytest.mark.parametrize("chat", [True, False])
def test_synthesis_shows_the_nearest_records(chat: bool) -> None:
    population, embeddings, truth = blobs()
    model = ScriptedModel(lambda p, s: f" the voice of blob {blob_of(p)}. And un", chat=chat)
    personas, labels = synthesise_personas(
        population, embeddings, model, 3, seed=4, records_per_persona=5, max_new_tokens=33
    )
    np.testing.assert_array_equal(labels, truth)
    assert [p.text for p in personas] == [f"You are the voice of blob {k}." for k in range(3)]
    assert [p.cluster_size for p in personas] == [9, 6, 3]
    assert [len(p.record_ids) for p in personas] == [5, 5, 3]
    assert {p.seed for p in personas} == {4}
    assert {p.source for p in personas} == {"synthesised"}
    clusters = cluster_records(embeddings, 3, seed=4)
    assert personas[0].record_ids == [f"r{row}" for row in clusters.nearest[0][:5]]
    (call,) = model.calls  # all prompts in one batch
    assert (call.seed, call.max_new_tokens) == (4, 33)
    for prompt, persona in zip(call.prompts, personas, strict=True):
        assert prompt.endswith("<assistant>You are" if chat else "\n\nYou are")
        for record_id in persona.record_ids:
            assert population.responses[int(record_id[1:])] in prompt


def test_repeated_texts_are_shown_once() -> None:
    population, embeddings, _ = blobs((6,))
    same = Population(
        population.ids, population.contexts, ["Same", "same ", "other", "SAME", "third", "same"]
    )
    model = ScriptedModel(lambda p, s: " one. ")
    personas, _ = synthesise_personas(same, embeddings, model, 1, seed=0)
    assert len(personas[0].record_ids) == 3
    assert model.calls[0].prompts[0].casefold().count("→ same") == 1


def test_blank_and_repeated_descriptions_are_asked_for_again() -> None:
    population, embeddings, _ = blobs()
    asked: list[tuple[str, int]] = []

    def answer(prompt: str, seed: int) -> str:
        blob = blob_of(prompt)
        attempt = [b for b, _ in asked].count(blob)
        asked.append((blob, seed))
        if blob == "0":
            return " the same."
        return {"1": ["", " \n ", " late."], "2": [" the same.", " another."]}[blob][attempt]

    personas, _ = synthesise_personas(population, embeddings, ScriptedModel(answer), 3, seed=7)
    assert [p.text for p in personas] == [
        "You are the same.",
        "You are late.",
        "You are another.",
    ]
    assert [blob for blob, _ in asked] == ["0", "1", "2", "1", "2", "1"]
    seeds = [seed for _, seed in asked]
    assert seeds[:3] == [7, 7, 7]
    assert len({seeds[0], seeds[3], seeds[5]}) == 3
    assert [p.seed for p in personas] == [7, seeds[5], seeds[4]]


def test_a_mute_model_is_a_fault() -> None:
    population, embeddings, _ = blobs()
    mute = ScriptedModel(lambda p, s: "" if blob_of(p) == "1" else f" blob {blob_of(p)}.")
    with pytest.raises(FaultError, match=r"persona 2 \(1 of 3\) in 5 attempts"):
        synthesise_personas(population, embeddings, mute, 3, seed=0)
    assert len(mute.calls) == 5


def test_synthesis_refusals() -> None:
    population, embeddings, _ = blobs()
    model = ScriptedModel(lambda p, s: " x.")
    with pytest.raises(DataError, match="17 embeddings are given for 18"):
        synthesise_personas(population, embeddings[:17], model, 2, seed=0)
    with pytest.raises(DataError, match=r"19 personas.*only 18 distinct"):
        synthesise_personas(population, embeddings, model, 19, seed=0)
    with pytest.raises(DataError, match="records_per_persona is 0"):
        synthesise_personas(population, embeddings, model, 2, seed=0, records_per_persona=0)
    copies = Population(population.ids, population.contexts, ["same"] * 18)
    with pytest.raises(DataError, match="only 1 distinct"):
        synthesise_personas(copies, embeddings, model, 2, seed=0)
    assert not model.calls


@pytest.mark.parametrize(
    ("continuation", "expected"),
    [
        (" a critic. You like films. You ha", "You are a critic. You like films."),
        (" a critic.\n\nSecond paragraph.", "You are a critic."),
        ("\n\n a critic,\n of  films.", "You are a critic, of films."),
        (" a critic who never stops and nev", "You are a critic who never stops and."),
        (' a critic who says "no." You go', 'You are a critic who says "no."'),
        (" 4.5 stars on average. And", "You are 4.5 stars on average."),
        (", in short, kind.", "You are, in short, kind."),
        (" kind.<|im_end|>\n<|im_start|>user", "You are kind."),
        (" kind.</s>", "You are kind."),
        (" one who reads Dr. Smith", "You are one who reads Dr."),
        (" fond of tea. You read Dr.", "You are fond of tea."),
        ("热情的影迷。你喜欢老电影！你常常", "You are 热情的影迷。你喜欢老电影！"),
        ("热情的影迷，喜欢老电", "You are 热情的影迷，喜欢老。"),
        ("，热情。你", "You are，热情。"),
        ("好", ""),
        (" คนที่ชอบหนัง", "You are คนที่ชอบหนั"),
        (" ناقد صبور؟ نعم", "You are ناقد صبور؟"),
        (" फिल्मों के शौकीन हैं। आप", "You are फिल्मों के शौकीन हैं।"),
        (" फिल्मों के शौ", "You are फिल्मों के।"),
        ("", ""),
        (" \n\n ", ""),
        (" ...", ""),
        ("<|im_end|>", ""),
        (" k", ""),
    ],
)
def test_clean_persona(continuation: str, expected: str) -> None:
    assert clean_persona(continuation) == expected


def test_texts_and_messages() -> None:
    responses = ["No.", "long " * 100, "one two three four five six seven"]
    records = Population(["a", "b", "c"], ["Ask?", "Ask!", "Why?"], responses)
    assert record_texts(records)[0] == "Ask?\nNo."
    messages = summary_messages(records)
    roles = [message["role"] for message in messages]
    assert roles == ["system", *["user", "assistant"] * 3, "user"]
    shown = messages[-1]["content"].split("\n")
    # A word or two means nothing without what was asked; a long text is cut, and marked so.
    assert shown == ["- Ask? → No.", "- " + "long " * 60 + "…", f"- {responses[2]}"]


def test_excerpts_count_characters_where_there_are_no_blanks() -> None:
    responses = ["很好！", "很好吃我喜欢", "好" * 70, "No."]
    records = Population(list("abcd"), ["怎么样？"] * 3 + ["Why " * 80], responses)
    shown = summary_messages(records)[-1]["content"].split("\n")
    assert shown == [
        "- 怎么样？ → 很好！",
        "- 很好吃我喜欢",
        f"- {'好' * 60} …",
        # A long question does not push out its answer.
        f"- {'Why ' * 58}… → No.",
    ]


@given(st.text(max_size=60) | st.text("aB .!?。！？ 你好สี", max_size=60))
def test_a_clean_persona_is_whole_or_nothing(continuation: str) -> None:
    text = clean_persona(continuation)
    if not text:
        return
    assert text.startswith("You are")
    assert text == " ".join(text.split())
    assert any(c.isalnum() for c in text.removeprefix("You are"))
    ends = sentence_ends(text)
    # Thai has no full stop, and an abbreviation's is none.
    assert ends[-1:] == [len(text)] or text[-1] == "." or "\u0e00" < text[-1] < "\u0eff"


TRAVELLER = EXAMPLES[1].description.removeprefix("You are")
DISH = " an impatient diner who notices every fault in the meal. Your shirts are red and loud."
COPIES = {
    "an example": TRAVELLER,
    "in other letters": TRAVELLER.upper().replace(" ", "  "),
    "with one word changed": TRAVELLER.replace("traveller", "traveler"),
    "with every adjective changed": TRAVELLER.replace("cheerful", "carefree").replace("warm", "bo"),
    "with more behind": f"{TRAVELLER} You also like boats and trains.",
    "its first sentence": DISH,
    "its first sentence in other words": " a cheerful tourist who finds joy to love in every trip.",
    "a text of an example": " a critic. Your soup was cold again, and nobody said sorry.",
    "its style": f" a diver who counts fish. {EXAMPLES[0].description.split('. ')[1]}",
}


@pytest.mark.parametrize("copy", COPIES)
def test_copies_of_examples_are_drawn_again_without_the_example(
    copy: str, caplog: pytest.LogCaptureFixture
) -> None:
    population, embeddings, _ = blobs((6,))
    answers = iter([" a helpful AI assistant.", " a Chatbot for all.", COPIES[copy], " a human."])
    model = ScriptedModel(lambda p, s: next(answers))
    with caplog.at_level("INFO", logger="mop_jax"):
        personas, _ = synthesise_personas(population, embeddings, model, 1, seed=0)
    assert personas[0].text == "You are a human."
    (note,) = caplog.messages
    assert note.startswith("Persona 1 repeats an example of the prompt and is drawn again")
    for example in EXAMPLES:
        shown = [example.description in call.prompts[0] for call in model.calls]
        assert shown[:3] == [True] * 3
        assert shown[3] == (example not in copied_sentences(f"You are{COPIES[copy]}").values())


@pytest.mark.parametrize(
    "text",
    [
        "You are a cheerful baker who sings at work. You write with warmth and jokes.",
        "You are a careful critic who looks for every fault to avoid. Your words are dry.",
        "You are a reader.",
        "You are a traveller who finds every trip a burden, and says so in long letters.",
        "You are 一个快乐的旅行者，每次旅行都能找到喜欢的东西。",
    ],
)
def test_what_only_reminds_of_an_example_is_no_copy(text: str) -> None:
    assert not copied_sentences(text)


def test_a_model_that_copies_only_gives_no_persona() -> None:
    population, embeddings, _ = blobs((6,))
    model = ScriptedModel(lambda p, s: TRAVELLER)
    with pytest.raises(FaultError, match="copies of another persona or of the prompt's examples"):
        synthesise_personas(population, embeddings, model, 1, seed=0)
    assert len(model.calls) == 5


def test_what_is_left_without_copied_sentences_is_kept_and_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    population, embeddings, _ = blobs((6,))
    style = TRAVELLER.split(". ")[1]
    model = ScriptedModel(lambda p, s: f" a painter of boats. {style}")
    personas, _ = synthesise_personas(population, embeddings, model, 1, seed=0)
    assert personas[0].text == "You are a painter of boats."
    (note,) = [r for r in caplog.records if r.levelname == "WARNING"]
    assert "no persona 1 that is wholly its own" in note.getMessage()


def test_near_copies_of_another_persona_are_drawn_again_or_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    population, embeddings, _ = blobs()
    common = "soul who always helps the neighbours with the garden and the car"
    answers = {"0": f" a kind {common}.", "1": f" a good {common}!", "2": f" A KIND {common}"}

    def answer(prompt: str, seed: int) -> str:
        if blob_of(prompt) == "2" and seed != 5:
            return " of another kind."
        return answers[blob_of(prompt)] + (" And more." if seed != 5 else "")

    personas, _ = synthesise_personas(population, embeddings, ScriptedModel(answer), 3, seed=5)
    texts = [persona.text for persona in personas]
    assert texts[0] == f"You are a kind {common}."
    assert texts[2] == "You are of another kind."
    assert texts[1].startswith(f"You are a good {common}!")
    (note,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "no persona 2 that is wholly its own" in note


def test_the_same_persona_twice_is_never_kept() -> None:
    population, embeddings, _ = blobs()
    model = ScriptedModel(lambda p, s: " kind, always." if blob_of(p) != "0" else " KIND – always!")
    with pytest.raises(FaultError, match=r"persona 2 \(2 of 3\)"):
        synthesise_personas(population, embeddings, model, 3, seed=0)


WORDS = st.lists(
    st.sampled_from(["you", "tea", "hot", "cold", "likes", "reads", "slowly", "never"]),
    min_size=1,
    max_size=12,
)


@given(WORDS, WORDS)
def test_likeness_is_symmetric_and_one_for_one_text_only(first: list[str], second: list[str]):
    a, b = f"You are {' '.join(first)}.", f"You are {' '.join(second)}."
    assert likeness(a, b) == likeness(b, a)
    assert 0 <= likeness(a, b) <= 1
    assert (likeness(a, b) == 1) == (first == second)
    assert likeness(a, a.upper().replace(" ", ", ").replace("YOU, ARE,", "You are")) == 1


def test_files_round_trip(tmp_path: Path) -> None:
    personas = [
        Persona("You are é.", 5, ["r1", "r2"], 12, "synthesised"),
        Persona("You are a user's own."),
    ]
    write_personas(tmp_path / "p.json", personas)
    assert read_personas(tmp_path / "p.json") == personas


def test_users_own_files(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("You are  one.\nYou are two.\n\n", "utf-8")
    (tmp_path / "p.json").write_text('["You are one.", {"text": " You are two.", "note": 1}]')
    expected = [Persona("You are one."), Persona("You are two.")]
    assert read_personas(tmp_path / "p.txt") == expected
    assert read_personas(tmp_path / "p.json") == expected
    assert expected[0].source == "user"
    assert expected[0].seed is None


BAD_FILES: dict[str, tuple[str, str | bytes, str]] = {
    "blank line": ("p.txt", "one\n \ntwo\n", r"p\.txt, line 2, is blank"),
    "blank entry": ("p.json", '["one", ""]', "entry 2, is blank"),
    "blank text": ("p.json", '[{"text": " "}]', "entry 1, is blank"),
    "repeated in another normal form": ("p.json", '["caf\u00e9", "cafe\u0301"]', "repeats entry 1"),
    "repeated": ("p.txt", "one\ntwo\none \n", "line 3, repeats line 1"),
    "empty": ("p.txt", "\n", "holds no personas"),
    "empty json": ("p.json", "", "holds no personas"),
    "empty list": ("p.json", "[]", "holds no personas"),
    "no list": ("p.json", '{"text": "one"}', "is not a JSON list"),
    "no text": ("p.json", '["one", {"persona": "two"}]', "entry 2, is neither"),
    "number": ("p.json", "[3]", "entry 1, is neither"),
    "null": ("p.json", '["a", null]', "entry 2, is neither"),
    "not json": ("p.json", '["one",\n', "line 2, is not JSON"),
    "encoding": ("p.txt", "caf\xe9\n".encode("latin-1"), "is not UTF-8"),
    "kind": ("p.yaml", "- one\n", "of no known kind"),
    "provenance": ("p.json", '[{"text": "a", "source": "synthesised"}]', "entry 1, is synthesised"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_refused(case: str, tmp_path: Path) -> None:
    name, content, message = BAD_FILES[case]
    data = content.encode("utf-8") if isinstance(content, str) else content
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        read_personas(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_missing_persona_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not found"):
        read_personas(tmp_path / "none.json")
    with pytest.raises(DataError, match="is a folder"):
        read_personas(tmp_path)


def test_written_file_is_plain_json(tmp_path: Path) -> None:
    write_personas(tmp_path / "p.json", [Persona("You are one.", 3, ["r0"], 1, "synthesised")])
    assert json.loads((tmp_path / "p.json").read_text("utf-8")) == [
        {
            "text": "You are one.",
            "cluster_size": 3,
            "record_ids": ["r0"],
            "seed": 1,
            "source": "synthesised",
        }
    ]


def test_random_records_ignore_the_clusters() -> None:
    """As many prompts as before, of the asked size, each of several blobs."""
    population, embeddings, truth = blobs()
    model = ScriptedModel(lambda prompt, seed: f"are person {hash(prompt)} of a kind.")
    options = {"seed": 4, "records_per_persona": 5, "described_from": "random_records"}
    personas, labels = synthesise_personas(population, embeddings, model, 3, **options)
    clustered = cluster_records(embeddings, 3, 4).labels
    np.testing.assert_array_equal(labels, clustered)
    assert [len(set(persona.record_ids)) for persona in personas] == [5, 5, 5]
    assert len({tuple(persona.record_ids) for persona in personas}) == 3
    assert all(persona.cluster_size == 0 for persona in personas)
    shown = [{truth[population.ids.index(i)] for i in persona.record_ids} for persona in personas]
    assert all(len(found) > 1 for found in shown)
    again = synthesise_personas(population, embeddings, model, 3, **options)[0]
    assert [p.record_ids for p in again] == [p.record_ids for p in personas]
