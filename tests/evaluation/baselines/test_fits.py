"""Baselines that ask the language model something in their fit, and what is kept of it."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest

from mop_jax.errors import DataError, FaultError
from mop_jax.evaluation.baselines import BASELINES
from mop_jax.evaluation.baselines.attrprompt import FALLBACK, AttrPrompt
from mop_jax.evaluation.baselines.drafts import CHUNK, score_responses, write_drafts
from mop_jax.evaluation.baselines.picle import PICLe, label_description, likelihood_ratios
from mop_jax.evaluation.baselines.progen import (
    Generated,
    ProGen,
    balanced_contexts,
    most_helpful,
)
from mop_jax.population import Population
from mop_jax.prompts import PromptBuilder
from mop_jax.prompts.conversations import ConversationBuilder

KINDS = {"tone": ["warm", "cold"], "length": ["short", "long", "endless"]}


def attributes(prompt: str, seed: int, sample: int) -> str:
    """Names two dimensions and their values, by label; answers anything else."""
    # Behind the worked example.
    asked = prompt.rsplit("<|im_start|>user", 1)[1]
    if "attributes in which they differ" in asked:
        return "Tone: the mood\n2. Length\n3. Review film"
    if "different values" in asked:
        label = "good" if 'of the kind "good"' in asked else "bad"
        values = KINDS["tone" if '"Tone"' in asked else "length"]
        return "\n".join(f"{n}. {value} {label}" for n, value in enumerate(values, 1))[3:]
    return f"answer {sample}"


def test_attributes_are_asked_for_and_drawn_by_label(make_setting) -> None:
    setting = make_setting(attributes)
    responder = BASELINES["attrprompt"].fit(setting)
    assert responder.report["values_found"] == {"Tone": 4, "Length": 6}
    assert responder.report["fallbacks"] == []
    assert responder.report["dimensions"]["Tone"] == {
        "good": ["warm good", "cold good"],
        "bad": ["warm bad", "cold bad"],
    }
    found = responder.respond(["Now what?", "And?"], labels=["good", "bad"], num_samples=60)
    drawn = {tuple(r.details["attributes"].values()) for r in found if r.context_index == 0}
    assert drawn == {(f"{t} good", f"{n} good") for t in KINDS["tone"] for n in KINDS["length"]}
    for response, prompt in zip(found, setting.language_model.calls[-1].prompts, strict=True):
        for name, value in response.details["attributes"].items():
            assert f"\n- {name}: {value}" in prompt
        assert not response.shown
    # Without a label at hand, values of some label stand in.
    (one,) = responder.respond(["Now what?"], num_samples=1)
    assert set(one.details["attributes"]) == {"Tone", "Length"}


def test_responses_of_records_are_not_in_the_questions(make_setting, population) -> None:
    setting = make_setting(attributes)
    BASELINES["attrprompt"].fit(setting)
    for call in setting.language_model.calls:
        for prompt in call.prompts:
            assert not any(text in prompt for text in population.responses)
            assert "- Review film" in prompt


def test_a_model_without_lists_falls_back_and_says_so(make_setting, caplog) -> None:
    setting = make_setting(
        lambda prompt, seed, s: "I do not know about that, I am sorry to say it."
    )
    with caplog.at_level(logging.WARNING, "mop_jax"):
        responder = AttrPrompt(num_dimensions=3).fit(setting)
    assert responder.report["fallbacks"][0] == "dimensions"
    assert set(responder.report["dimensions"]) == set(list(FALLBACK)[:3])
    assert sum(responder.report["values_found"].values()) == 0
    assert "no usable list for dimensions" in caplog.text
    for name, by_label in responder.report["dimensions"].items():
        assert by_label == {label: list(FALLBACK[name]) for label in ("good", "bad")}
    # Three attempts, with seeds of their own.
    assert len({call.seed for call in setting.language_model.calls}) == 6


def test_a_second_attempt_counts(make_setting) -> None:
    seeds: list[int] = []

    def slow(prompt: str, seed: int, sample: int) -> str:
        seeds.append(seed)
        return "?" if seed == seeds[0] else attributes(prompt, seed, sample)

    responder = BASELINES["attrprompt"].fit(make_setting(slow))
    assert responder.report["fallbacks"] == []
    assert set(responder.report["dimensions"]) == {"Tone", "Length"}


def test_what_was_generated_is_found_again(make_setting, tmp_path) -> None:
    first = make_setting(attributes, cache=tmp_path / "cache")
    responder = BASELINES["attrprompt"].fit(first)
    second = make_setting(lambda *_: pytest.fail("asked again"), cache=tmp_path / "cache")
    again = BASELINES["attrprompt"].fit(second)
    assert again.report == responder.report
    assert not second.language_model.calls
    # Another seed, or another language model, asks anew.
    for changes in ({"seed": 6}, {}):
        other = make_setting(attributes, cache=tmp_path / "cache", **changes)
        other.language_model.fingerprint = "other" if not changes else "scripted"
        BASELINES["attrprompt"].fit(other)
        assert other.language_model.calls


def test_a_killed_generation_goes_on_with_the_same_texts(make_setting, tmp_path) -> None:
    prompts = [make_setting().prompts.zero_shot(f"Say {n}.") for n in range(2 * CHUNK + 9)]
    whole = write_drafts(
        make_setting(lambda prompt, seed, s: f"{s} {prompt}"), prompts, task="t", seed=3
    )
    assert [int(draft.text.split()[0]) for draft in whole] == list(range(len(prompts)))
    calls = 0

    def dying(prompt: str, seed: int, s: int) -> str:
        nonlocal calls
        calls += 1
        if calls > CHUNK + 5:
            raise KeyboardInterrupt
        return f"{s} {prompt}"

    with pytest.raises(KeyboardInterrupt):
        write_drafts(make_setting(dying, cache=tmp_path), prompts, task="t", seed=3)
    calls = 0
    resumed = make_setting(
        lambda prompt, seed, s: dying(prompt, seed, s) if s < CHUNK else f"{s} {prompt}",
        cache=tmp_path,
    )
    assert write_drafts(resumed, prompts, task="t", seed=3) == whole
    assert calls == 0
    damaged = min(tmp_path.iterdir())
    damaged.write_text(damaged.read_text()[:5])
    with pytest.raises(DataError, match=r"is damaged .* delete it"):
        write_drafts(resumed, prompts, task="t", seed=3)


def rounds(prompt: str, seed: int, sample: int) -> str:
    """Follows the label of the request; every third text is of the other kind."""
    request = prompt.rsplit("Review film", 1)[1]
    good = ("good" in request) != (sample % 3 == 2)
    return f"{'superb splendid' if good else 'awful poor'} {seed % 97} {sample}"


def test_progen_shows_what_helps(make_setting, population) -> None:
    truth = Population(
        population.ids,
        population.contexts,
        [f"{'superb' if n % 2 == 0 else 'awful'} {n}" for n in range(12)],
        labels=population.labels,
    )
    setting = make_setting(rounds, train=truth)
    baseline = ProGen(
        num_rounds=3, texts_per_round=24, num_validation=6, num_helpful=6, num_shown=2
    )
    responder = baseline.fit(setting)
    helpful = responder.report["helpful"]
    assert all(text.startswith("superb") for text in helpful["good"])
    assert all(text.startswith("awful") for text in helpful["bad"])
    assert [r["texts"] for r in responder.report["rounds"]] == [24, 48, 72]
    first, second, _ = setting.language_model.calls
    assert not any("assistant\nsuperb" in prompt for prompt in first.prompts)
    # The second round shows helpful texts of the label that is asked for, and no real responses.
    for prompt in second.prompts:
        good = "good" in prompt.rsplit("Review film", 1)[1]
        shown = prompt.count("<|im_start|>assistant\n") - 1
        assert shown == 2
        assert prompt.count("assistant\nsuperb") == (2 if good else 0)
        assert not any(f"assistant\n{y}<" in prompt for y in truth.responses)
    found = responder.respond(["Review film 99, good."], labels=["good"], num_samples=5)
    for response, prompt in zip(found, setting.language_model.calls[-1].prompts, strict=True):
        assert len(response.shown) == 2
        assert set(response.shown) <= set(helpful["good"])
        assert all(f"assistant\n{text}<|im_end|>" in prompt for text in response.shown)
    assert baseline.fit(make_setting(rounds, train=truth)).report == responder.report


def test_progen_refusals(make_setting, population) -> None:
    responder = ProGen(num_rounds=1, texts_per_round=12, num_validation=4).fit(make_setting(rounds))
    with pytest.raises(DataError, match="'progen' needs labels, and the contexts have none"):
        responder.respond(["x"], num_samples=1)
    with pytest.raises(DataError, match=r"nothing of the label 'odd'; .* have bad, good"):
        responder.respond(["x"], labels=["odd"], num_samples=1)
    with pytest.raises(FaultError, match="wrote no whole sentence of the label 'bad'"):
        BASELINES["progen"].fit(make_setting(rounds, unfinished=lambda text: True))
    one = population.take([0, 2, 4, 6])
    with pytest.raises(DataError, match="at least two labels"):
        BASELINES["progen"].fit(make_setting(rounds, train=one))


def test_most_helpful_and_balanced(population) -> None:
    pool = [Generated("x", label, str(n)) for n, label in enumerate("aabba")]
    best = most_helpful(pool, np.asarray([0.1, 0.3, -1.0, -2.0, 0.2]), 2)
    assert {k: [g.text for g in found] for k, found in best.items()} == {
        "a": ["1", "4"],
        "b": ["2", "3"],
    }
    asked = balanced_contexts(population, 7, np.random.default_rng(0))
    assert [label for _, label in asked] == ["bad", "good"] * 3 + ["bad"]
    assert all(label in context for context, label in asked)


def pull(prompt: str, response: str) -> float:
    """Told of the kind, the tenth record is far more probable; else length decides."""
    told = "of one kind" in prompt or "You are" in prompt
    return (5.0 if told and "number 10" in response else 0.0) - 0.1 * len(response)


def test_picle_takes_what_the_description_makes_likelier(make_setting, population) -> None:
    setting = make_setting(score=pull)
    responder = PICLe(num_exemplars=2, num_demonstrations=1).fit(setting)
    report = responder.report
    assert {key: found["candidates"] for key, found in report.items()} == {"bad": 5, "good": 5}
    scored = {response for _, response in setting.language_model.scored}
    if any("number 10" in response for response in scored):
        assert report["good"]["exemplars"][0] == "r10"
        assert report["good"]["log_ratios"][0] == pytest.approx(5.0)
    found = responder.respond(["Film?", "Film!"], labels=["good", "bad"], num_samples=4)
    for response, prompt in zip(found, setting.language_model.calls[-1].prompts, strict=True):
        label = ["good", "bad"][response.context_index]
        assert response.details == {"target": label, "exemplars": report[label]["exemplars"]}
        assert label_description(label) in prompt
        assert len(response.shown) == 2
        assert all(f"assistant\n{text}<|im_end|>" in prompt for text in response.shown)
        assert all(text.startswith(label) for text in response.shown)
    with pytest.raises(DataError, match="'picle' needs labels, and the contexts have none"):
        responder.respond(["x"], num_samples=1)
    with pytest.raises(DataError, match="nothing of the label 'odd'"):
        responder.respond(["x"], labels=["odd"], num_samples=1)


def test_picle_without_labels_has_exemplars_for_each_persona(make_setting, population) -> None:
    frame = population.frame.drop(columns="label")
    bare = Population.from_dataframe(frame, id="id", context="context", response="response")
    setting = make_setting(score=pull, train=bare)
    responder = PICLe(num_exemplars=2).fit(setting)
    assert [found["exemplars"][0] for found in responder.report.values()] == ["r10", "r10"]
    found = responder.respond(["Film?"], num_samples=20)
    assert {r.details["target"] for r in found} == {"0", "1"}
    for response, prompt in zip(found, setting.language_model.calls[-1].prompts, strict=True):
        assert setting.personas[int(response.details["target"])] in prompt


def test_demonstrations_are_no_candidates(make_setting, population) -> None:
    setting = make_setting(score=pull)
    responder = PICLe(num_exemplars=2, num_demonstrations=3).fit(setting)
    for label in ("good", "bad"):
        assert responder.report[label]["candidates"] == 3
    for prompt, response in setting.language_model.scored:
        assert f"assistant\n{response}" not in prompt


def test_a_likelihood_ratio_is_that_of_two_scores(tiny_chat_lm, make_setting, tmp_path) -> None:
    """Scored one by one, each after its whole prompt."""
    prompts = PromptBuilder(tiny_chat_lm.tokenizer)
    setting = make_setting(language_model=tiny_chat_lm, prompts=prompts, cache=tmp_path)
    writer = ConversationBuilder(prompts)
    demonstrations = [("w1 w2", "w3"), ("w4", "w5 w6")]
    candidates = [("w7 w8", "w9 w10"), ("w11", "w12 w13 w14"), ("w7", "w15")]
    found = likelihood_ratios(setting, writer, "w20 w21", demonstrations, candidates)
    for n, (x, y) in enumerate(candidates):
        told = writer.conversation(demonstrations, x, description="w20 w21").token_ids
        plain = prompts.zero_shot(x).token_ids
        answer = prompts.response(y)
        one, other = tiny_chat_lm.log_likelihood([told, plain], [answer, answer])
        np.testing.assert_allclose(found[n], one - other, atol=1e-3)
    assert np.ptp(found) > 0.1
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2
    assert all(len(json.loads(file.read_text())) == 3 for file in files)
    np.testing.assert_array_equal(
        likelihood_ratios(setting, writer, "w20 w21", demonstrations, candidates), found
    )
    assert score_responses(setting, [], [], task="none").shape == (0,)
