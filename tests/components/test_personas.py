"""Personas: clusters, prompts, cleaning, retries and files, with a stand-in for the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mop_jax.components.personas import (
    Persona,
    clean_persona,
    cluster_records,
    read_personas,
    record_texts,
    summary_messages,
    synthesise_personas,
    write_personas,
)
from mop_jax.errors import DataError, FaultError
from mop_jax.population import Population


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


def test_self_descriptions_and_copies_are_refused() -> None:
    population, embeddings, _ = blobs((6,))
    example = summary_messages(population)[2]["content"].removeprefix("You are")
    answers = iter([" a helpful AI assistant.", " a Chatbot for all.", example, " a human."])
    model = ScriptedModel(lambda p, s: next(answers))
    personas, _ = synthesise_personas(population, embeddings, model, 1, seed=0)
    assert personas[0].text == "You are a human."
    assert len(model.calls) == 4


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
