"""The registry, and what all prompted baselines share: samples, skipping, keys, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from mop_jax.errors import DataError
from mop_jax.evaluation import baselines
from mop_jax.evaluation.baselines import BASELINES, PromptedResponder, Setting
from mop_jax.evaluation.baselines.base import (
    Reading,
    Request,
    derived_seed,
    draw_records,
    sample_rng,
)
from mop_jax.evaluation.baselines.few_shot import FewShot
from mop_jax.population import Population
from mop_jax.prompts import PromptBuilder

CONTEXTS = ["w30 w31", "w32", "w33 w34 w35"]
PROMPTED = ["zero_shot", "persona_only", "few_shot_1", "few_shot_4", "uniform_mixture", "zerogen"]


@pytest.fixture(scope="module")
def words() -> Population:
    labels = ["w50", "w51"] * 5
    return Population(
        ids=[str(i) for i in range(10)],
        contexts=[f"w{60 + i} w7" for i in range(10)],
        responses=[f"w{80 + i} w8 w9" for i in range(10)],
        labels=labels,
    )


@pytest.fixture(scope="module")
def setting(tiny_chat_lm, words) -> Setting:
    return Setting(
        train=words,
        language_model=tiny_chat_lm,
        prompts=PromptBuilder(tiny_chat_lm.tokenizer),
        encode=lambda texts: np.zeros((len(texts), 2)),
        personas=["w1 w2 w3", "w4", "w5 w6"],
        exemplars=words.take([0, 3, 4]),
        seed=9,
        max_new_tokens=5,
    )


def test_the_baselines_of_the_paper_are_registered() -> None:
    wanted = {*PROMPTED, "attrprompt", "progen", "picle", "verbalized_sampling"}
    assert wanted <= set(BASELINES)
    assert [b.name for b in BASELINES.values()] == list(BASELINES)
    assert len({b.title for b in BASELINES.values()}) == len(BASELINES)
    assert all("20" in b.reference for b in BASELINES.values())
    assert [b.name for b in BASELINES.values() if b.needs_labels] == ["progen"]


def test_a_baseline_is_registered_once_and_by_a_plain_name(monkeypatch) -> None:
    monkeypatch.setattr("mop_jax.evaluation.baselines.base.BASELINES", {})
    baselines.register(FewShot(2))
    with pytest.raises(DataError, match="There is a baseline 'few_shot_2' already"):
        baselines.register(FewShot(2))

    class Bad(FewShot):
        name = "no name"

    with pytest.raises(DataError, match="'no name'; accepted are letters"):
        baselines.register(Bad(2))
    with pytest.raises(DataError, match="num_exemplars is 0"):
        FewShot(0)


@pytest.mark.parametrize("name", PROMPTED)
def test_a_samples_text_does_not_depend_on_what_is_skipped(name, setting) -> None:
    responder = BASELINES[name].fit(setting)
    ten = responder.respond(CONTEXTS, num_samples=10)
    assert [r.sample for r in ten] == list(range(10))
    assert [r.context_index for r in ten] == [s % 3 for s in range(10)]
    assert len({r.text for r in ten}) > 5
    seen = []
    some = responder.respond(CONTEXTS, num_samples=10, skip={0, 4, 9}, on_responses=seen.extend)
    assert some == [r for r in ten if r.sample not in {0, 4, 9}]
    assert sorted(seen, key=lambda r: r.sample) == some
    assert responder.respond(CONTEXTS, num_samples=4) == ten[:4]
    assert BASELINES[name].fit(setting).respond(CONTEXTS, num_samples=10) == ten


def test_prompted_baselines_draw_with_the_samples_own_key(setting, tiny_chat_lm) -> None:
    """Zero-shot is the language model's own sampling of the zero-shot prompt."""
    found = BASELINES["zero_shot"].fit(setting).respond(CONTEXTS, num_samples=7)
    prompts = [setting.prompts.zero_shot(CONTEXTS[s % 3]).token_ids for s in range(7)]
    expected = tiny_chat_lm.generate(
        prompts, seed=9, max_new_tokens=5, end_ids=[setting.prompts.end_ids]
    )
    assert [r.text for r in found] == [text.strip() for text in expected.texts]
    assert [r.finished for r in found] == expected.finished.tolist()


def test_the_setting_reaches_the_language_model(make_setting) -> None:
    setting = make_setting(temperature=0.5, max_new_tokens=17)
    BASELINES["zero_shot"].fit(setting).respond(["What?"], num_samples=2)
    (call,) = setting.language_model.calls
    assert call.seed == 5
    assert call.temperature.tolist() == [0.5, 0.5]
    assert call.max_new_tokens == 17
    assert call.end_ids == [setting.prompts.end_ids]


def test_a_reader_sees_the_answer_and_fresh_random_numbers(make_setting) -> None:
    setting = make_setting()
    drawn = {}

    def write(sample):
        drawn[sample.number] = [float(sample.rng.random())]
        return Request(setting.prompts.zero_shot(sample.context), ("shown",), {"a": 1})

    def read(answer, finished, sample):
        drawn[sample.number].append(float(sample.rng.random()))
        return Reading(f"{answer}!", False, {"label": sample.label})

    responder = PromptedResponder(setting, write, read)
    found = responder.respond(["x", "y"], labels=["l", "m"], num_samples=3)
    assert [r.text for r in found] == ["answer 0!", "answer 1!", "answer 2!"]
    assert [r.details for r in found] == [{"a": 1, "label": k} for k in "lml"]
    assert [r.shown for r in found] == [("shown",)] * 3
    assert len({x for pair in drawn.values() for x in pair}) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"contexts": "one text"}, "put the one text in a list"),
        ({"contexts": []}, "There are no contexts"),
        ({"contexts": ["x"], "labels": ["a", "b"]}, "There are 2 labels for 1 contexts"),
        ({"contexts": ["x"], "num_samples": 0}, "num_samples is 0"),
    ],
)
def test_what_cannot_be_answered_is_refused(make_setting, arguments, message) -> None:
    responder = BASELINES["zero_shot"].fit(make_setting())
    with pytest.raises(DataError, match=message):
        responder.respond(**{"num_samples": 1, **arguments})


def test_missing_labels_and_personas_are_said(make_setting, population) -> None:
    frame = population.frame.drop(columns="label")
    bare = Population.from_dataframe(frame, context="context", response="response")
    with pytest.raises(DataError, match="'progen' needs labels, and the training records have "
                       r"none; .* the baselines that need labels \(progen\)"):  # fmt: skip
        BASELINES["progen"].fit(make_setting(train=bare))
    for name in ("persona_only", "uniform_mixture"):
        with pytest.raises(DataError, match=f"'{name}' needs personas"):
            BASELINES[name].fit(make_setting(personas=[]))
    with pytest.raises(DataError, match="'picle' needs personas"):
        BASELINES["picle"].fit(make_setting(train=bare, personas=[]))


def test_random_numbers_have_streams_of_their_own() -> None:
    values = {sample_rng(seed, s, stream).random() for seed in (0, 1) for s in range(50)
              for stream in (1, 2)}  # fmt: skip
    assert len(values) == 200
    seeds = {derived_seed(seed, stream, n) for seed in range(5) for stream in range(5)
             for n in range(5)}  # fmt: skip
    assert len(seeds) == 125
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_records_are_drawn_by_weight_and_without_replacement(population) -> None:
    weighted = Population(
        population.ids, population.contexts, population.responses, weights=np.r_[np.ones(11), 11.0]
    )
    rng = np.random.default_rng(0)
    counts = np.bincount([draw_records(weighted, 1, rng)[0] for _ in range(2000)], minlength=12)
    # Half of the weight; ten standard deviations of 1000 ± 22 on either side.
    assert 780 < counts[11] < 1220
    assert sorted(draw_records(weighted, 12, rng)) == list(range(12))
    with pytest.raises(DataError, match="13 exemplars were asked for, but there are only 12"):
        draw_records(weighted, 13, rng)
